//! Tests of where secrets are read from, and that they go nowhere else.

use super::*;

#[test]
fn secrets_are_read_from_files() {
    let given = Given::new(&[])
        .without(AUTHORIZATION.0)
        .secret_file("VARIANCE_AUTHORIZATION_FILE", "Bearer from-a-file-of-its-own \n\n");
    let loaded = given.load();
    let path = given.directory.path().join("secret");
    let Authorization { value, file } = &loaded.config.service.destination.authorization;
    assert_eq!((value.to_str().unwrap(), file.as_ref()), ("Bearer from-a-file-of-its-own", Some(&path)));
    assert!(value.is_sensitive());
    let value = Some(r#"29 characters ending in "wn""#.to_owned());
    assert_eq!(setting(&loaded, "variance.authorization"), (value, Origin::SecretFile(path.clone())));
    assert_eq!(setting(&loaded, "variance.authorization_file").0, Some(path.display().to_string()));

    let tokens = "0123456789abcdef\n\n  an,other-token-with-comma\r\n";
    let loaded = Given::new(&[]).secret_file("CONNECTOR_TOKEN_FILE", tokens).load();
    assert_eq!(loaded.config.service.auth.tokens.len(), 2);
    let value = r#"16 characters ending in "ef", 25 characters ending in "ma""#;
    assert_eq!(setting(&loaded, "server.token").0.as_deref(), Some(value));
}

#[test]
fn several_secrets_are_an_array_or_have_commas() {
    let secret = "whsec_QW4gZXhhbXBsZSwgbm90IGEgc2VjcmV0IQ==";
    let loaded =
        Given::new(&[("CONNECTOR_TOKEN", "0123456789abcdef, fedcba9876543210,"), ("CONNECTOR_SIGNING_SECRET", secret)])
            .load();
    assert_eq!((loaded.config.service.auth.tokens.len(), loaded.config.service.auth.signing_secrets.len()), (2, 1));
    let file = format!("[server]\ntoken = ['0123456789,abcdef']\nsigning_secret = ['{secret}', '{secret}']");
    let loaded = Given::new(&[]).file(&file).load();
    assert_eq!((loaded.config.service.auth.tokens.len(), loaded.config.service.auth.signing_secrets.len()), (1, 2));
}

#[test]
fn a_secret_and_its_file_are_not_both_given() {
    let given = Given::new(&[("CONNECTOR_TOKEN_FILE", "/nowhere")]).file("server.token = '0123456789abcdef'");
    assert_eq!(
        given.problems(),
        ["server.token (config.toml line 1) and server.token_file (environment variable CONNECTOR_TOKEN_FILE) are \
          both given: leave one of them out"]
    );
}

#[test]
fn a_file_without_a_secret_is_told() {
    for name in ["CONNECTOR_TOKEN", "CONNECTOR_SIGNING_SECRET", "VARIANCE_AUTHORIZATION"] {
        let variable = format!("{name}_FILE");
        let given = || Given::new(&[]).without(AUTHORIZATION.0);
        let is_told = |given: &Given, problem: &str| {
            let start = format!("(environment variable {variable}): the file ");
            assert!(given.problems().iter().any(|text| text.contains(&start) && text.ends_with(problem)));
        };
        is_told(&given().secret_file(&variable, " \n"), "secret cannot be used: it is empty");
        let mut missing = given();
        missing.variables.insert((&variable).into(), "/no/such/file".into());
        is_told(&missing, "/no/such/file cannot be used: No such file or directory (os error 2)");
    }
}

#[test]
fn user_and_password_of_the_url_are_gone_everywhere() {
    let given = Given::new(&[]).without(URL.0).file("[variance]\nwebhook_url = 'https://me:hunter2@host/hook'");
    let loaded = given.load();
    assert_eq!(setting(&loaded, "variance.webhook_url").0.as_deref(), Some("https://host/… (4 characters)"));
    assert!(!format!("{loaded:?}").contains("hunter2"));
}

#[test]
fn no_message_and_no_debug_output_has_a_secret() {
    let secret = "S3CRET";
    let authorization = format!("Bearer {secret}-{secret}-{secret}");
    let token = format!("{secret}-0123456789-{secret}-x");
    let loaded = Given::new(&[("VARIANCE_AUTHORIZATION", &authorization), ("CONNECTOR_TOKEN", &token)])
        .file(&format!("[server]\nsigning_secret = 'whsec_{secret}{secret}{secret}{secret}{secret}{secret}'"))
        .load();
    assert!(!format!("{loaded:?}").contains(secret));

    let wrong_line = format!("{secret}\u{7}");
    for variable in ["VARIANCE_AUTHORIZATION", "CONNECTOR_TOKEN", "CONNECTOR_SIGNING_SECRET"] {
        let mut given = Given::new(&[]).without(variable);
        given.variables.insert(variable.into(), (&wrong_line).into());
        check(&given);
        let given = Given::new(&[]).without(variable).without(AUTHORIZATION.0);
        check(&given.secret_file(&format!("{variable}_FILE"), &wrong_line));
    }
    for file in [
        format!("[variance]\nauthorization = \"{secret}"),
        format!("[variance]\nauthorization = {secret}"),
        format!("[variance]\nauthorization = ['{secret}']"),
        format!("[server]\ntoken = '{secret}'\n"),
        format!("[server]\ntoken = '0123456789abcdef'\ntoken = '{secret}'"),
        format!("[server]\ntoken = ['{secret}', 3]"),
        format!("[server]\ntokens = '{secret}'"),
        format!("[variance]\nwebhook_url = 'ftp://{secret}@host'"),
    ] {
        check(&Given::new(&[]).without(AUTHORIZATION.0).without(URL.0).file(&file));
    }

    fn check(given: &Given) {
        let error = load(&given.flags, &given.variables).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("S3CRET"), "{error}");
    }
}

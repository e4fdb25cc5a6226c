use std::{fs, path::PathBuf};

use tempfile::TempDir;

use super::*;
use crate::{mapping::Format, variance::Call};

const URL: (&str, &str) = ("VARIANCE_WEBHOOK_URL", "https://variance.example/hook");
const AUTHORIZATION: (&str, &str) = ("VARIANCE_AUTHORIZATION", "Bearer s3cr3t-of-variance");
const EXAMPLE: &str = include_str!("../../config.example.toml");

/// A configuration in the making: the required settings are there until they are taken out.
struct Given {
    directory: TempDir,
    flags: Flags,
    variables: Vec<(OsString, OsString)>,
}

impl Given {
    fn new(variables: &[(&str, &str)]) -> Self {
        let variables = [URL, AUTHORIZATION].iter().chain(variables);
        Self {
            directory: TempDir::new().unwrap(),
            flags: Flags::default(),
            variables: variables.map(|(name, value)| (name.into(), value.into())).collect(),
        }
    }

    fn without(mut self, name: &str) -> Self {
        self.variables.retain(|(given, _)| given != name);
        self
    }

    fn file(mut self, text: &str) -> Self {
        self.flags.config = Some(self.write("config.toml", text));
        self
    }

    /// Writes a file and says in a variable where it is.
    fn secret_file(mut self, variable: &str, content: &str) -> Self {
        let path = self.write("secret", content);
        self.variables.push((variable.into(), path.into()));
        self
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn load(&self) -> Loaded {
        load(&self.flags, self.variables.clone()).unwrap()
    }

    /// The problems, without the directory's name.
    fn problems(&self) -> Vec<String> {
        let error = load(&self.flags, self.variables.clone()).unwrap_err();
        error.problems.iter().map(|problem| self.shortened(problem)).collect()
    }

    fn warnings(&self) -> Vec<String> {
        self.load().warnings.iter().map(|warning| self.shortened(warning)).collect()
    }

    fn shortened(&self, message: &str) -> String {
        message.replace(&format!("{}/", self.directory.path().display()), "")
    }
}

fn setting(loaded: &Loaded, name: &str) -> (Option<String>, Origin) {
    let setting = loaded.settings.iter().find(|setting| setting.key.name == name).unwrap();
    (setting.value.clone(), setting.origin.clone())
}

#[test]
fn the_two_required_settings_suffice() {
    let Loaded { config, settings, warnings } = Given::new(&[]).load();
    assert_eq!(config.service.destination.webhook_url.as_str(), URL.1);
    assert_eq!(config.service.destination.authorization.value, AUTHORIZATION.1);
    assert!(config.service.destination.authorization.value.is_sensitive());
    assert_eq!(config.service.server.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.service.server.webhook_deadline, Duration::from_millis(2500));
    assert_eq!(config.service.server.max_body, 64 << 20);
    assert_eq!(config.service.mapping.calls, [Call::Capture, Call::Page, Call::Identify, Call::Alias]);
    assert_eq!(config.service.outbox.concurrency, 64);
    assert_eq!(config.service.outbox.retry_for, Duration::from_secs(3600));
    assert!(config.service.auth.tokens.is_empty() && config.service.auth.signing_secrets.is_empty());
    assert_eq!(warnings, [""; 0]);
    let names: Vec<_> = settings.iter().map(|setting| setting.key.name).collect();
    let keys: Vec<_> = KEYS.iter().map(|key| key.name).collect();
    assert_eq!(names, keys, "every key of the table is read");
}

#[test]
fn the_example_is_the_default() {
    let (with, without) = (Given::new(&[]).file(EXAMPLE).load(), Given::new(&[]).load());
    assert_eq!(format!("{:?}", with.config), format!("{:?}", without.config));
    assert_eq!(with.warnings, [""; 0]);
}

#[test]
fn the_example_with_all_that_is_commented_out_loads_too() {
    let is_example = |line: &&str| !line.starts_with("# ") && !line.contains("_file = ");
    let lines: Vec<_> = EXAMPLE.lines().filter(is_example).map(|line| line.trim_start_matches('#')).collect();
    let Loaded { config, .. } = Given::new(&[]).without(URL.0).without(AUTHORIZATION.0).file(&lines.join("\n")).load();
    assert_eq!(config.service.auth.tokens.len(), 1);
    assert_eq!(config.service.auth.signing_secrets.len(), 1);
    assert_eq!(config.service.mapping.exclude.len(), 2);
}

#[test]
fn a_flag_comes_before_the_environment_and_that_before_the_file_and_that_before_the_default() {
    let file = "[server]\n\nlisten = '127.0.0.1:3'\n[log]\nlevel = 'error'";
    let mut given = Given::new(&[("CONNECTOR_LISTEN", "127.0.0.1:2")]).file(file);
    given.flags.listen = Some("127.0.0.1:1".to_owned());
    let path = given.flags.config.clone().unwrap();
    for (port, origin) in [
        (1, Origin::Flag("--listen")),
        (2, Origin::Variable("CONNECTOR_LISTEN")),
        (3, Origin::Line(path, 3)),
        (8080, Origin::Default),
    ] {
        let loaded = given.load();
        assert_eq!(loaded.config.service.server.listen.port(), port);
        assert_eq!(setting(&loaded, "server.listen"), (Some(format!("127.0.0.1:{port}")), origin.clone()));
        assert_eq!(listen(&given.flags, given.variables.clone()).unwrap().port(), port);
        match origin {
            Origin::Flag(_) => given.flags.listen = None,
            Origin::Variable(_) => given = given.without("CONNECTOR_LISTEN"),
            _ => given.flags.config = None,
        }
    }
}

#[test]
fn an_empty_variable_counts_as_absent() {
    let names = KEYS.iter().flat_map(|key| key.variables).chain([&FILE_VARIABLE, &"CONNECTOR_NO_SUCH"]);
    let empty: Vec<_> = names.map(|name| (*name, "")).collect();
    let mut given = Given::new(&[]);
    given.variables.splice(0..0, empty.iter().map(|(name, value)| (name.into(), value.into())));
    assert_eq!(given.warnings(), [""; 0]);
}

#[test]
fn the_variable_of_the_log_level_comes_before_the_common_one_and_that_before_the_file() {
    let level = |variables: &[(&str, &str)]| {
        setting(&Given::new(variables).file("log.level = 'error'").load(), "log.level").0.unwrap()
    };
    assert_eq!(level(&[("CONNECTOR_LOG_LEVEL", "debug"), ("RUST_LOG", "trace")]), "debug");
    assert_eq!(level(&[("CONNECTOR_LOG_LEVEL", ""), ("RUST_LOG", "trace")]), "trace");
    assert_eq!(level(&[]), "error");
}

#[test]
fn the_environment_can_name_the_file() {
    let given = Given::new(&[]);
    let path = given.write("other.toml", "[variance]\nformat = 'posthog'");
    let mut given = given;
    given.variables.push((FILE_VARIABLE.into(), path.into()));
    assert_eq!(given.load().config.service.mapping.format, Format::Posthog);
    assert_eq!(given.warnings(), [""; 0]);
}

#[test]
fn a_wrong_value_is_told_with_its_key_and_origin_and_what_would_be_right() {
    for (variable, value, problem) in [
        (
            "VARIANCE_FORMAT",
            "xml",
            r#"variance.format (environment variable VARIANCE_FORMAT) is "xml", but must be variance or posthog"#,
        ),
        (
            "CONNECTOR_LISTEN",
            "8080",
            r#"server.listen (environment variable CONNECTOR_LISTEN) is "8080", but must be an IP address and a port, such as "127.0.0.1:8080" or "0.0.0.0:8080""#,
        ),
        (
            "CONNECTOR_ALLOW_ANONYMOUS",
            "yes",
            r#"server.allow_anonymous (environment variable CONNECTOR_ALLOW_ANONYMOUS) is "yes", but must be true or false"#,
        ),
        (
            "CONNECTOR_WEBHOOK_DEADLINE",
            "0s",
            r#"server.webhook_deadline (environment variable CONNECTOR_WEBHOOK_DEADLINE) is "0s", but must be a duration such as "10s", more than zero and at most 365 days"#,
        ),
        (
            "CONNECTOR_MAX_BODY",
            "big",
            r#"server.max_body (environment variable CONNECTOR_MAX_BODY) is "big", but must be a size such as "64MiB", at least 1 B and at most 1.0 TiB"#,
        ),
        (
            "CONNECTOR_MAX_HELD",
            "15MiB",
            r#"delivery.max_held (environment variable CONNECTOR_MAX_HELD) is "15MiB", but must be a size such as "64MiB", at least 16.0 MiB and at most 1.0 TiB"#,
        ),
        (
            "CONNECTOR_CALLS",
            "page,track",
            r#"filter.calls (environment variable CONNECTOR_CALLS) is "track", but must be one or more of capture, page, identify, alias, group"#,
        ),
        (
            "CONNECTOR_EXCLUDE",
            " ,",
            r#"filter.exclude (environment variable CONNECTOR_EXCLUDE) is "", but must be names of events, or `prefix*`"#,
        ),
        (
            "CONNECTOR_ACCOUNT_GROUP",
            " ",
            r#"filter.account_group (environment variable CONNECTOR_ACCOUNT_GROUP) is "", but must be some text, or left out"#,
        ),
        (
            "CONNECTOR_CONCURRENCY",
            "0",
            r#"delivery.concurrency (environment variable CONNECTOR_CONCURRENCY) is "0", but must be a whole number from 1 to 10000"#,
        ),
        (
            "CONNECTOR_LOG_FORMAT",
            "xml",
            r#"log.format (environment variable CONNECTOR_LOG_FORMAT) is "xml", but must be text or json"#,
        ),
        (
            "RUST_LOG",
            "loud",
            r#"log.level (environment variable RUST_LOG) is "loud", but must be a level (off, error, warn, info, debug, trace) or directives such as "variance_connector=debug,hyper=info""#,
        ),
        (
            "CONNECTOR_TOKEN",
            "tooshort",
            "server.token (environment variable CONNECTOR_TOKEN) must be a token of at least 16 characters",
        ),
        (
            "VARIANCE_WEBHOOK_URL",
            "variance.example",
            "variance.webhook_url (environment variable VARIANCE_WEBHOOK_URL) must be the http or https URL from Variance > Integrations > PostHog",
        ),
        (
            "VARIANCE_AUTHORIZATION",
            "two\nlines",
            "variance.authorization (environment variable VARIANCE_AUTHORIZATION) must be one line that an HTTP header can carry",
        ),
    ] {
        let mut given = Given::new(&[]).without(variable);
        given.variables.push((variable.into(), value.into()));
        assert_eq!(given.problems(), [problem]);
    }
}

#[test]
fn a_wrong_line_of_the_file_is_told() {
    for (file, problem) in [
        (
            "[server]\n\nwebhook_deadline = 3",
            r#"server.webhook_deadline (config.toml line 3) is an integer, but must be a duration in quotes, such as "10s""#,
        ),
        (
            "server.max_body = 64",
            r#"server.max_body (config.toml line 1) is an integer, but must be a size in quotes, such as "64MiB""#,
        ),
        (
            "[filter]\nperson_traits = 'true'",
            "filter.person_traits (config.toml line 2) is a string, but must be true or false without quotes",
        ),
        (
            "[delivery]\nconcurrency = '64'",
            "delivery.concurrency (config.toml line 2) is a string, but must be a whole number without quotes",
        ),
        (
            "[delivery]\nconcurrency = -1",
            r#"delivery.concurrency (config.toml line 2) is "-1", but must be a whole number from 1 to 10000"#,
        ),
        (
            "[filter]\ncalls = ['page', 1]",
            "filter.calls (config.toml line 2) is an array, but must be an array of strings, or a string with commas",
        ),
        ("[filter]\ncalls = []", "filter.calls (config.toml line 2) is empty: nothing would be forwarded"),
        (
            "[server]\nlisten = ['127.0.0.1:1']",
            "server.listen (config.toml line 2) is an array, but must be a string in quotes",
        ),
        ("[server.listen]\nport = 1", "server.listen (config.toml line 1) is a table, but must be a string in quotes"),
        (
            "[log]\nlevel = 'loud'",
            r#"log.level (config.toml line 2) is "loud", but must be a level (off, error, warn, info, debug, trace) or directives such as "variance_connector=debug,hyper=info""#,
        ),
        ("[server]\ntoken = ''", "server.token (config.toml line 2) must be a token of at least 16 characters"),
        ("[server]\nlissten = ''", "unknown key server.lissten (config.toml line 2): did you mean server.listen?"),
        (
            "[server]\nretry_for = '1h'",
            "unknown key server.retry_for (config.toml line 2): did you mean delivery.retry_for?",
        ),
        ("listen = ''", "unknown key listen (config.toml line 1): did you mean server.listen?"),
        ("[server]\ncolour = 'red'", "unknown key server.colour (config.toml line 2)"),
        ("[[server]]", "server (config.toml line 1) is an array, but must be a section: [server]"),
        ("[sever]\nlisten = ''", "unknown section sever (config.toml line 1): did you mean server?"),
        ("[database]", "unknown section database (config.toml line 1)"),
        ("a = 1\na = 2", "config.toml line 2 is not valid TOML: duplicate key"),
    ] {
        assert_eq!(Given::new(&[]).file(file).problems(), [problem], "{file}");
    }
}

#[test]
fn all_problems_are_told_at_once_even_those_that_something_else_comes_before() {
    let file = "[server]\nlisten = 1\nname = 'x'\n[delivery]\nretry_for = 'long'";
    let given = Given::new(&[("CONNECTOR_LISTEN", "127.0.0.1:1"), ("CONNECTOR_CONCURRENCY", "0")]);
    let problems = given.without(URL.0).without(AUTHORIZATION.0).file(file).problems();
    let starts = [
        "variance.webhook_url (environment variable VARIANCE_WEBHOOK_URL) is missing: copy it from Variance > Integrations > PostHog",
        "variance.authorization (environment variable VARIANCE_AUTHORIZATION) is missing: ",
        "delivery.concurrency (environment variable CONNECTOR_CONCURRENCY) is ",
        "delivery.retry_for (config.toml line 5) is \"long\"",
        "unknown key server.name (config.toml line 3)",
        "server.listen (config.toml line 2) is an integer",
    ];
    assert_eq!(problems.len(), starts.len(), "{problems:#?}");
    for (problem, start) in problems.iter().zip(starts) {
        assert!(problem.starts_with(start), "{problem}");
    }
    let error = Error { problems: vec!["one".to_owned(), "two".to_owned()] };
    assert_eq!(error.to_string(), "one\ntwo");
}

#[test]
fn a_file_that_cannot_be_read_is_told_with_who_named_it() {
    let mut given = Given::new(&[]);
    given.flags.config = Some(given.directory.path().join("none.toml"));
    assert_eq!(
        given.problems(),
        ["the configuration file none.toml (flag --config): No such file or directory (os error 2)"]
    );
    given.variables.push((FILE_VARIABLE.into(), given.flags.config.take().unwrap().into()));
    assert!(given.problems()[0].contains("none.toml (environment variable CONNECTOR_CONFIG): "));
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_utf_8_is_told_by_its_name() {
    use std::os::unix::ffi::OsStringExt as _;
    let mut given = Given::new(&[]);
    given.variables.push(("CONNECTOR_TOKEN".into(), OsString::from_vec(b"0123456789abcdef\xff".to_vec())));
    given.variables.push((OsString::from_vec(b"CONNECTOR_\xff".to_vec()), "of somebody else".into()));
    assert_eq!(given.problems(), ["server.token (environment variable CONNECTOR_TOKEN) is not UTF-8"]);
}

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
        missing.variables.push(((&variable).into(), "/no/such/file".into()));
        is_told(&missing, "/no/such/file cannot be used: No such file or directory (os error 2)");
    }
}

#[test]
fn others_cannot_send_without_a_credential_unless_that_is_said() {
    let open = ("CONNECTOR_LISTEN", "0.0.0.0:8080");
    assert_eq!(
        Given::new(&[open]).problems(),
        ["server.listen (environment variable CONNECTOR_LISTEN) is 0.0.0.0:8080, which others can reach, and no \
          credential is asked of senders: set server.token (CONNECTOR_TOKEN), or server.signing_secret \
          (CONNECTOR_SIGNING_SECRET), or, if only who may send can reach it, server.allow_anonymous \
          (CONNECTOR_ALLOW_ANONYMOUS) to true"]
    );
    assert_eq!(
        Given::new(&[open, ("CONNECTOR_ALLOW_ANONYMOUS", "true")]).warnings(),
        ["server.listen (environment variable CONNECTOR_LISTEN) is 0.0.0.0:8080 and server.allow_anonymous \
          (environment variable CONNECTOR_ALLOW_ANONYMOUS) is true: whoever reaches it can send events to Variance"]
    );
    let secret = ("CONNECTOR_SIGNING_SECRET", "whsec_QW4gZXhhbXBsZSwgbm90IGEgc2VjcmV0IQ==");
    for credential in [("CONNECTOR_TOKEN", "0123456789abcdef"), secret] {
        assert_eq!(Given::new(&[open, credential]).warnings(), [""; 0]);
    }
    for loopback in ["127.1.2.3:1", "[::1]:1", "localhost:1", "[::ffff:127.0.0.1]:1"] {
        assert_eq!(Given::new(&[("CONNECTOR_LISTEN", loopback)]).warnings(), [""; 0]);
    }
    assert_eq!(Given::new(&[open, ("CONNECTOR_MAX_BODY", "big")]).problems().len(), 2);
    // What is wrong with the token is told, not what would follow from there being none.
    assert_eq!(Given::new(&[open, ("CONNECTOR_TOKEN", "short")]).problems().len(), 1);
}

#[test]
fn what_is_most_likely_not_meant_is_warned_of() {
    for (variable, value, warning) in [
        (
            "VARIANCE_WEBHOOK_URL",
            "http://variance.example/",
            "variance.webhook_url (environment variable VARIANCE_WEBHOOK_URL) is plain http: events and the credential can be read on their way",
        ),
        (
            "VARIANCE_WEBHOOK_URL",
            "https://me:pass@variance.example/",
            "variance.webhook_url (environment variable VARIANCE_WEBHOOK_URL) has a user or a password, which is not sent: set variance.authorization instead",
        ),
        (
            "CONNECTOR_WEBHOOK_DEADLINE",
            "3s",
            "server.webhook_deadline (environment variable CONNECTOR_WEBHOOK_DEADLINE) is not under 3s: PostHog gives up then, and never sees the reply",
        ),
        (
            "CONNECTOR_BATCH_DEADLINE",
            "5min",
            "server.batch_deadline (environment variable CONNECTOR_BATCH_DEADLINE) is not under 5m: PostHog gives up then, and never sees the reply",
        ),
        (
            "CONNECTOR_SHUTDOWN_GRACE",
            "11s",
            "delivery.shutdown_grace (environment variable CONNECTOR_SHUTDOWN_GRACE) is more than 10s: Docker kills then unless told otherwise (`--stop-timeout`)",
        ),
        ("CONNECTOR_LISTENN", "x", "unknown environment variable CONNECTOR_LISTENN: did you mean CONNECTOR_LISTEN?"),
        (
            "CONNECTOR_WEBHOOK_URL",
            "x",
            "unknown environment variable CONNECTOR_WEBHOOK_URL: did you mean VARIANCE_WEBHOOK_URL?",
        ),
        ("VARIANCE_CONNECTOR_PORT_8080_TCP", "x", "unknown environment variable VARIANCE_CONNECTOR_PORT_8080_TCP"),
    ] {
        let mut given = Given::new(&[]).without(variable);
        given.variables.push((variable.into(), value.into()));
        assert_eq!(given.warnings(), [warning]);
    }
    for fine in [("VARIANCE_WEBHOOK_URL", "http://localhost:9/"), ("CONNECTOR_SHUTDOWN_GRACE", "10s")] {
        let mut given = Given::new(&[]).without(fine.0);
        given.variables.push((fine.0.into(), fine.1.into()));
        assert_eq!(given.warnings(), [""; 0]);
    }
}

#[test]
fn user_and_password_of_the_url_are_gone_everywhere() {
    let given = Given::new(&[]).without(URL.0).file("[variance]\nwebhook_url = 'https://me:hunter2@host/hook'");
    let loaded = given.load();
    assert_eq!(setting(&loaded, "variance.webhook_url").0.as_deref(), Some("https://host/hook"));
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
        given.variables.push((variable.into(), (&wrong_line).into()));
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
        let error = load(&given.flags, given.variables.clone()).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("S3CRET"), "{error}");
    }
}

#[test]
fn the_address_alone_is_read_whatever_is_wrong_with_the_rest() {
    let file = "[server]\nlisten = '0.0.0.0:9'\ncolour = 'red'\nmax_body = 3";
    let given = Given::new(&[("CONNECTOR_CONCURRENCY", "0")]).without(URL.0).file(file);
    assert_eq!(listen(&given.flags, given.variables.clone()).unwrap().to_string(), "0.0.0.0:9");

    let given = Given::new(&[]).file("[server]\nlisten = 9");
    let error = listen(&given.flags, given.variables.clone()).unwrap_err();
    assert!(given.shortened(&error.to_string()).starts_with("server.listen (config.toml line 2) is an integer"));

    let mut given = Given::new(&[("CONNECTOR_LISTEN", "127.0.0.1:9")]);
    given.flags.config = Some("/no/such/file".into());
    assert_eq!(listen(&given.flags, given.variables.clone()).unwrap().port(), 9);
    let given = given.without("CONNECTOR_LISTEN");
    assert!(listen(&given.flags, given.variables.clone()).unwrap_err().to_string().contains("/no/such/file"));
}

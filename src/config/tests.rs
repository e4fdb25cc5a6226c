use std::{fs, path::PathBuf};

use tempfile::TempDir;

use super::*;
use crate::{mapping::Format, variance::Call};

mod problems;
mod secrets;

const URL: (&str, &str) = ("VARIANCE_WEBHOOK_URL", "https://variance.example/hook");
const AUTHORIZATION: (&str, &str) = ("VARIANCE_AUTHORIZATION", "Bearer s3cr3t-of-variance");
const POSTHOG: [(&str, &str); 3] = [
    ("POSTHOG_URL", "https://us.posthog.com"),
    ("POSTHOG_PROJECT_ID", "12345"),
    ("POSTHOG_API_KEY", "phx_s3cret-of-posthog"),
];
const EXAMPLE: &str = include_str!("../../config.example.toml");

/// A configuration in the making, with the required settings until they are removed.
struct Given {
    directory: TempDir,
    flags: Flags,
    variables: Variables,
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
        self.variables.retain(|given, _| given != name);
        self
    }

    fn file(mut self, text: &str) -> Self {
        self.flags.config = Some(self.write("config.toml", text));
        self
    }

    /// Writes a file and sets a variable to its path.
    fn secret_file(mut self, variable: &str, content: &str) -> Self {
        let path = self.write("secret", content);
        self.variables.insert(variable.into(), path.into());
        self
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn load(&self) -> Loaded {
        load(&self.flags, &self.variables).unwrap()
    }

    /// Returns the problems, without the directory's name.
    fn problems(&self) -> Vec<String> {
        let error = load(&self.flags, &self.variables).unwrap_err();
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
    assert_eq!(config.service.outbox.concurrency, 256);
    assert_eq!(config.service.outbox.retry_for, Duration::from_secs(3600));
    assert!(config.service.auth.tokens.is_empty() && config.service.auth.signing_secrets.is_empty());
    assert_eq!(warnings, [""; 0]);
    let names: Vec<_> = settings.iter().map(|setting| setting.key.name).collect();
    let posthog =
        posthog(&Flags::default(), &POSTHOG.map(|(name, value)| (name.into(), value.into())).into(), true).unwrap();
    let names: Vec<_> = names.into_iter().chain(posthog.settings.iter().map(|setting| setting.key.name)).collect();
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
fn settings_that_nobody_sets_are_those_that_the_parts_take_by_default() {
    let ServiceSettings { server, mapping, outbox, .. } = Given::new(&[]).load().config.service;
    assert_eq!(format!("{server:?}"), format!("{:?}", ServerSettings::default()));
    assert_eq!(format!("{mapping:?}"), format!("{:?}", MappingSettings::default()));
    assert_eq!(format!("{outbox:?}"), format!("{:?}", outbox::OutboxSettings::default()));
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
        assert_eq!(listen(&given.flags, &given.variables).unwrap().port(), port);
        match origin {
            Origin::Flag(_) => given.flags.listen = None,
            Origin::Variable(_) => given = given.without("CONNECTOR_LISTEN"),
            _ => given.flags.config = None,
        }
    }
}

#[test]
fn an_empty_variable_counts_as_absent() {
    let mut given = Given::new(&[]);
    for name in KEYS.iter().flat_map(|key| key.variables).chain([&FILE_VARIABLE, &"CONNECTOR_NO_SUCH"]) {
        given.variables.entry(name.into()).or_default();
    }
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
    given.variables.insert(FILE_VARIABLE.into(), path.into());
    assert_eq!(given.load().config.service.mapping.format, Format::Posthog);
    assert_eq!(given.warnings(), [""; 0]);
}

#[test]
fn others_cannot_send_without_a_credential_unless_that_is_said() {
    let open = ("CONNECTOR_LISTEN", "0.0.0.0:8080");
    assert_eq!(
        Given::new(&[open]).problems(),
        ["server.listen (environment variable CONNECTOR_LISTEN) is 0.0.0.0:8080, which others can reach, but \
          senders need no credential: set server.token (CONNECTOR_TOKEN) or server.signing_secret \
          (CONNECTOR_SIGNING_SECRET). If only senders that you trust can reach it, set server.allow_anonymous \
          (CONNECTOR_ALLOW_ANONYMOUS) to true instead"]
    );
    assert_eq!(
        Given::new(&[open, ("CONNECTOR_ALLOW_ANONYMOUS", "true")]).warnings(),
        ["server.listen (environment variable CONNECTOR_LISTEN) is 0.0.0.0:8080 and server.allow_anonymous \
          (environment variable CONNECTOR_ALLOW_ANONYMOUS) is true: anybody who reaches this address can send events to Variance"]
    );
    let secret = ("CONNECTOR_SIGNING_SECRET", "whsec_QW4gZXhhbXBsZSwgbm90IGEgc2VjcmV0IQ==");
    for credential in [("CONNECTOR_TOKEN", "0123456789abcdef"), secret] {
        assert_eq!(Given::new(&[open, credential]).warnings(), [""; 0]);
    }
    for loopback in ["127.1.2.3:1", "[::1]:1", "localhost:1", "[::ffff:127.0.0.1]:1"] {
        assert_eq!(Given::new(&[("CONNECTOR_LISTEN", loopback)]).warnings(), [""; 0]);
    }
    assert_eq!(Given::new(&[open, ("CONNECTOR_MAX_BODY", "big")]).problems().len(), 2);
    // The wrong token is reported, and not what would follow from there being none.
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
            "server.webhook_deadline (environment variable CONNECTOR_WEBHOOK_DEADLINE) is 3s, but PostHog gives up after 3s and does not see a later reply: set it below that",
        ),
        (
            "CONNECTOR_BATCH_DEADLINE",
            "5min",
            "server.batch_deadline (environment variable CONNECTOR_BATCH_DEADLINE) is 5m, but PostHog gives up after 5m and does not see a later reply: set it below that",
        ),
        ("CONNECTOR_LISTENN", "x", "unknown environment variable CONNECTOR_LISTENN: did you mean CONNECTOR_LISTEN?"),
        (
            "CONNECTOR_WEBHOOK_URL",
            "x",
            "unknown environment variable CONNECTOR_WEBHOOK_URL: did you mean VARIANCE_WEBHOOK_URL?",
        ),
        ("VARIANCE_URL", "x", "unknown environment variable VARIANCE_URL"),
        ("VARIANCE_CONNECTOR_PORT_8080_TCP", "x", "unknown environment variable VARIANCE_CONNECTOR_PORT_8080_TCP"),
    ] {
        let mut given = Given::new(&[]).without(variable);
        given.variables.insert(variable.into(), value.into());
        assert_eq!(given.warnings(), [warning]);
    }
    for fine in [("VARIANCE_WEBHOOK_URL", "http://localhost:9/"), ("CONNECTOR_SHUTDOWN_GRACE", "11s")] {
        let mut given = Given::new(&[]).without(fine.0);
        given.variables.insert(fine.0.into(), fine.1.into());
        assert_eq!(given.warnings(), [""; 0]);
    }
}

#[test]
fn a_grace_that_docker_cuts_short_is_warned_of_in_a_container() {
    let grace = ("CONNECTOR_SHUTDOWN_GRACE", "11s");
    assert_eq!(
        Given::new(&[grace, ("container", "oci")]).warnings(),
        ["delivery.shutdown_grace (environment variable CONNECTOR_SHUTDOWN_GRACE) is 11s, but by default \
          Docker kills a container 10s after asking it to stop: give it more time (`--stop-timeout`)"]
    );
    for elsewhere in [&[grace][..], &[grace, ("container", "oci"), ("KUBERNETES_SERVICE_HOST", "10.0.0.1")]] {
        assert_eq!(Given::new(elsewhere).warnings(), [""; 0]);
    }
}

#[test]
fn what_was_given_along_with_a_value_is_taken_off_and_warned_of() {
    let loaded = |variable: &str, value: &str| {
        let mut given = Given::new(&[]).without(variable);
        given.variables.insert(variable.into(), value.into());
        given.load()
    };
    for (value, flaws) in [
        ("\"Bearer s3cr3t\"", "quotation marks"),
        ("Bearer s3cr3t\n", "white space around it"),
        ("authorization: Bearer s3cr3t", "`authorization:`"),
        ("\u{feff}Bearer s3cr\u{200b}3t", "invisible characters"),
    ] {
        let Loaded { config, warnings, .. } = loaded(AUTHORIZATION.0, value);
        assert_eq!(config.service.destination.authorization.value, "Bearer s3cr3t");
        let name = "variance.authorization (environment variable VARIANCE_AUTHORIZATION)";
        assert_eq!(warnings, [format!("{name} has {flaws}. This is not part of the value and is ignored")]);
    }
    let Loaded { config, warnings, .. } = loaded(URL.0, "'https://variance.example/hook'");
    assert_eq!((config.service.destination.webhook_url.as_str(), warnings.len()), (URL.1, 1));
    let Loaded { config, warnings, .. } = loaded("CONNECTOR_RETRY_FOR", "\"2h\"");
    assert_eq!((config.service.outbox.retry_for, warnings.len()), (Duration::from_secs(7200), 1));
    for value in ["\"page,alias\"", "\"page\",'alias'"] {
        let Loaded { config, warnings, .. } = loaded("CONNECTOR_CALLS", value);
        assert_eq!((config.service.mapping.calls, warnings.len()), (vec![Call::Page, Call::Alias], 1));
    }
    let Loaded { config, warnings, .. } = loaded("CONNECTOR_TOKEN", "Bearer 0123456789abcdef, 'fedcba9876543210'");
    let tokens = ["0123456789abcdef", "fedcba9876543210"].map(|token| token.parse().unwrap());
    assert_eq!((&*config.service.auth.tokens, warnings.len()), (&tokens[..], 2));
    // In the file, quotation marks can be part of a value; around a secret they never are.
    let file = Given::new(&[])
        .file("[filter]\naccount_group = '\"company\"'\n[server]\ntoken = ['\"0123456789abcdef\"']")
        .load();
    assert_eq!(file.config.service.mapping.account_group.as_deref(), Some("\"company\""));
    assert_eq!((&*file.config.service.auth.tokens, file.warnings.len()), (&tokens[..1], 1));
}

#[test]
fn the_address_alone_is_read_whatever_is_wrong_with_the_rest() {
    let file = "[server]\nlisten = '0.0.0.0:9'\ncolour = 'red'\nmax_body = 3";
    let given = Given::new(&[("CONNECTOR_CONCURRENCY", "0")]).without(URL.0).file(file);
    assert_eq!(listen(&given.flags, &given.variables).unwrap().to_string(), "0.0.0.0:9");

    let given = Given::new(&[]).file("[server]\nlisten = 9");
    let error = listen(&given.flags, &given.variables).unwrap_err();
    assert!(given.shortened(&error.to_string()).starts_with("server.listen (config.toml line 2) is an integer"));

    let mut given = Given::new(&[("CONNECTOR_LISTEN", "127.0.0.1:9")]);
    given.flags.config = Some("/no/such/file".into());
    assert_eq!(listen(&given.flags, &given.variables).unwrap().port(), 9);
    let given = given.without("CONNECTOR_LISTEN");
    assert!(listen(&given.flags, &given.variables).unwrap_err().to_string().contains("/no/such/file"));
}

#[test]
fn the_way_to_posthogs_api_is_read_alone() {
    let read_if = |is_required, variables: &[(&str, &str)]| {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        posthog(&Flags::default(), &variables, is_required)
    };
    let read = |variables: &[(&str, &str)]| read_if(true, variables);
    let if_set = |variables: &[(&str, &str)]| read_if(false, variables);
    let loaded = read(&POSTHOG).unwrap();
    assert!(!format!("{loaded:?}").contains("s3cret"));
    let settings = loaded.config.unwrap();
    assert_eq!((settings.url.as_str(), settings.project_id), ("https://us.posthog.com/", 12345));
    assert_eq!(settings.api_key.expose(), "phx_s3cret-of-posthog");

    let missing = read(&[]).unwrap_err().problems;
    assert_eq!(missing.len(), 3);
    assert!(if_set(&[]).unwrap().config.is_none());
    assert_eq!(if_set(&POSTHOG[..1]).unwrap_err().problems, missing[1..]);
    assert_eq!(if_set(&POSTHOG).unwrap().config.map(|settings| settings.project_id), Some(12345));
    let wrong = [
        ("POSTHOG_URL", "https://us.posthog.com/?a=b", "posthog.url (environment variable POSTHOG_URL) is "),
        (
            "POSTHOG_PROJECT_ID",
            "phc_abc",
            "posthog.project_id (environment variable POSTHOG_PROJECT_ID) is \"phc_abc\"",
        ),
        ("POSTHOG_API_KEY", "two words", "posthog.api_key (environment variable POSTHOG_API_KEY) must be a personal"),
    ];
    let problems = read(&wrong.map(|(name, value, _)| (name, value))).unwrap_err().problems;
    for ((_, value, start), problem) in wrong.iter().zip(&problems) {
        assert!(problem.starts_with(start), "{value}: {problem}");
    }
    assert_eq!(
        read(&[POSTHOG[0], POSTHOG[1], ("POSTHOG_API_KEY", "phc_of-a-project")]).unwrap_err().problems,
        [
            "posthog.api_key (environment variable POSTHOG_API_KEY) must be a personal API key of PostHog without white space, such \
             as `phx_…`, but it is the key of a PostHog project (`phc_…`), which can only send events"
        ]
    );
    let plain = read(&[("POSTHOG_URL", "http://posthog.example"), POSTHOG[1], POSTHOG[2]]).unwrap();
    assert_eq!(
        plain.warnings,
        ["posthog.url (environment variable POSTHOG_URL) is plain http: events and the key can be read on their way"]
    );
}

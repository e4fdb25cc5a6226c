//! Tests of the messages about a configuration that is wrong.

use proptest::{prelude::*, sample::select};

use super::*;

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
            "64",
            r#"server.max_body (environment variable CONNECTOR_MAX_BODY) is "64", but must be a size such as "64MiB", at least 1.0 KiB and at most 1.0 TiB"#,
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
            r#"filter.exclude (environment variable CONNECTOR_EXCLUDE) is "", but must be names of events, or `prefix*` with its only `*` at the end"#,
        ),
        (
            "CONNECTOR_EXCLUDE",
            "a,*",
            r#"filter.exclude (environment variable CONNECTOR_EXCLUDE) is "*", but must be names of events, or `prefix*` with its only `*` at the end"#,
        ),
        (
            "CONNECTOR_EXCLUDE",
            "a*b",
            r#"filter.exclude (environment variable CONNECTOR_EXCLUDE) is "a*b", but must be names of events, or `prefix*` with its only `*` at the end"#,
        ),
        (
            "CONNECTOR_INCLUDE",
            "signed up,$pageview",
            r#"filter.include (environment variable CONNECTOR_INCLUDE) is "$pageview", but must be names of capture events, which do not start with `$`, or `prefix*` with its only `*` at the end"#,
        ),
        (
            "CONNECTOR_INCLUDE",
            "*",
            r#"filter.include (environment variable CONNECTOR_INCLUDE) is "*", but must be names of capture events, which do not start with `$`, or `prefix*` with its only `*` at the end"#,
        ),
        (
            "CONNECTOR_KEEP_PROPERTIES",
            "$survey_*,plan",
            r#"filter.keep_properties (environment variable CONNECTOR_KEEP_PROPERTIES) is "plan", but must be names of properties that start with `$` (all others are forwarded anyway), or `$prefix*` with its only `*` at the end"#,
        ),
        (
            "CONNECTOR_KEEP_PROPERTIES",
            "$*_id",
            r#"filter.keep_properties (environment variable CONNECTOR_KEEP_PROPERTIES) is "$*_id", but must be names of properties that start with `$` (all others are forwarded anyway), or `$prefix*` with its only `*` at the end"#,
        ),
        (
            "CONNECTOR_ANONYMOUS",
            "no",
            r#"filter.anonymous (environment variable CONNECTOR_ANONYMOUS) is "no", but must be true or false"#,
        ),
        (
            "CONNECTOR_ACCOUNT_GROUP",
            " ",
            r#"filter.account_group (environment variable CONNECTOR_ACCOUNT_GROUP) is "", but must be the name of a group type, such as "company", or not be set at all"#,
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
            "server.token (environment variable CONNECTOR_TOKEN) must be a token of at least 16 characters, but it has 8 characters",
        ),
        (
            "VARIANCE_WEBHOOK_URL",
            "variance.example",
            "variance.webhook_url (environment variable VARIANCE_WEBHOOK_URL) must be the http or https URL from Variance > Integrations > PostHog, but it does not begin with https:// or http://",
        ),
        (
            "VARIANCE_WEBHOOK_URL",
            "https://{host}/hook",
            "variance.webhook_url (environment variable VARIANCE_WEBHOOK_URL) must be the http or https URL from Variance > Integrations > PostHog, but no request can be made to it: is the host right, and is the URL complete?",
        ),
        (
            "CONNECTOR_SIGNING_SECRET",
            "whsec_not_base64_but_long_enough_to_be_a_secret",
            "server.signing_secret (environment variable CONNECTOR_SIGNING_SECRET) must be a signing secret in base64 (letters, digits, `+` and `/`), such as `whsec_…`, but it has 47 characters",
        ),
        (
            "VARIANCE_AUTHORIZATION",
            "\"Bearer abc",
            "variance.authorization (environment variable VARIANCE_AUTHORIZATION) must be the header's whole value on one line, in ASCII characters and without quotation marks around it, but it begins with an unmatched quotation mark",
        ),
        (
            "VARIANCE_AUTHORIZATION",
            "two\nlines",
            "variance.authorization (environment variable VARIANCE_AUTHORIZATION) must be the header's whole value on one line, in ASCII characters and without quotation marks around it, but it has more than one line",
        ),
    ] {
        let mut given = Given::new(&[]).without(variable);
        given.variables.insert(variable.into(), value.into());
        assert_eq!(given.problems(), [problem]);
    }
}

#[test]
fn what_is_included_must_be_forwarded() {
    let given = Given::new(&[
        ("CONNECTOR_CALLS", "page"),
        ("CONNECTOR_INCLUDE", "plan upgraded,plan *,order_*,signed up"),
        ("CONNECTOR_EXCLUDE", "plan *,order_9,signed up"),
    ]);
    let included = "filter.include (environment variable CONNECTOR_INCLUDE)";
    let excluded = "filter.exclude (environment variable CONNECTOR_EXCLUDE)";
    assert_eq!(
        given.problems(),
        [
            format!(
                "{included} names capture events, but filter.calls (environment variable CONNECTOR_CALLS) does not \
                 have `capture`: add it"
            ),
            format!("{included} and {excluded} both name \"plan upgraded\": remove it from one of them"),
            format!("{included} and {excluded} both name \"plan *\": remove it from one of them"),
            format!("{included} and {excluded} both name \"signed up\": remove it from one of them"),
        ]
    );
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
            "filter.calls (config.toml line 2) is an array with something other than strings in it, but must be an array of strings, or a string with commas",
        ),
        (
            "[filter]\ncalls = []",
            "filter.calls (config.toml line 2) is empty, so nothing would be forwarded: name at least one call",
        ),
        (
            "[server]\nlisten = ['127.0.0.1:1']",
            "server.listen (config.toml line 2) is an array, but must be a string in quotes",
        ),
        ("[server.listen]\nport = 1", "server.listen (config.toml line 1) is a table, but must be a string in quotes"),
        (
            "[log]\nlevel = 'loud'",
            r#"log.level (config.toml line 2) is "loud", but must be a level (off, error, warn, info, debug, trace) or directives such as "variance_connector=debug,hyper=info""#,
        ),
        (
            "[server]\ntoken = ''",
            "server.token (config.toml line 2) must be a token of at least 16 characters, but it is empty",
        ),
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
        ["the configuration file none.toml (flag --config) cannot be read: No such file or directory (os error 2)"]
    );
    given.variables.insert(FILE_VARIABLE.into(), given.flags.config.take().unwrap().into());
    assert!(given.problems()[0].contains("none.toml (environment variable CONNECTOR_CONFIG) cannot be read: "));
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_utf_8_is_told_by_its_name() {
    use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};

    let mut given = Given::new(&[]);
    given.variables.insert("CONNECTOR_TOKEN".into(), OsString::from_vec(b"0123456789abcdef\xff".to_vec()));
    given.variables.insert(OsString::from_vec(b"CONNECTOR_\xff".to_vec()), "of somebody else".into());
    assert_eq!(given.problems(), ["server.token (environment variable CONNECTOR_TOKEN) is not UTF-8"]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_configuration_panics_or_shows_a_secret(
        variables in prop::collection::vec((select(variables()), value()), 0..4),
        lines in prop::collection::vec((select(names()), value(), select(vec!["'", "'", "'", "['", "\"", ""])), 0..4),
        rest in prop_oneof![3 => Just(String::new()), 1 => "[\\[\\]={}a-z.'\"\\\\ \n#-]{0,12}"],
    ) {
        let secret = "S3CRET";
        let written = lines.iter().map(|(name, value, quote)| {
            let end = match *quote {
                "['" => "']",
                quote => quote,
            };
            format!("{name} = {quote}{value}{end}\n")
        });
        let file = written.collect::<String>() + &rest;
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, &**value)).collect();
        let given = Given::new(&variables).file(&file);
        let said = match load(&given.flags, &given.variables) {
            Ok(loaded) => format!("{loaded:?}"),
            Err(error) => {
                prop_assert!(!error.problems.is_empty());
                format!("{error} {error:?}")
            }
        };
        // A setting that is not a secret is shown, and nobody could know that it holds one.
        let is_secret = |name: &str| ["authorization", "token", "signing_secret"].iter().any(|last| name.ends_with(last));
        let in_file = lines.iter().map(|(name, value, _)| (*name, &**value));
        let mut all = variables.iter().copied().chain(in_file);
        let is_shown = all.any(|(name, value)| !is_secret(&name.to_lowercase()) && value.contains(secret));
        prop_assert!(is_shown || !said.contains(secret), "{}", said);
    }
}

fn names() -> Vec<&'static str> {
    KEYS.iter().map(|key| key.name).collect()
}

/// Returns the variables that do not name a file, since the contents of files are not tested here.
fn variables() -> Vec<&'static str> {
    KEYS.iter().flat_map(|key| key.variables).copied().filter(|name| !name.ends_with("_FILE")).collect()
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        1 => "[0-9]{1,25} ?(ms|s|h|B|MiB|TiB|)",
        1 => "(https?|ftp)://[a-z{\"@:\\[]{0,8}(:[0-9]{0,6})?/?",
        3 => "(whsec_|Bearer |)S3CRET[A-Za-z0-9+/=, \u{7}é]{0,40}",
        1 => "(true|false|page|track|posthog|info|hyper=debug|[a-z*, ]{0,10})",
        1 => "\\PC{0,10}",
    ]
}

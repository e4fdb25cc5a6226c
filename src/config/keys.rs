//! The table of all settings. Each row is complete: a setting's names, its default, its purpose, how it is written, how
//! much of it may be shown, and how it is parsed.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use http::HeaderValue;
use url::Url;

use super::values;
use crate::{
    auth::{SigningSecret, Token},
    destination::Authorization,
    mapping::{Format, NamePattern},
    secret::Secret,
    telemetry::{self, Directives},
    variance::Call,
};

/// The variable that names the configuration file; the flag `--config` comes before it.
pub const FILE_VARIABLE: &str = "CONNECTOR_CONFIG";

pub(super) static WEBHOOK_URL: Row<Url> =
    Row::new("variance.webhook_url", &["VARIANCE_WEBHOOK_URL"], Kind::Text, values::webhook_url)
        .shown(Shown::Url)
        .doc("Where events go: the URL from Variance > Integrations > PostHog. Required, here or in a file.");

pub(super) static WEBHOOK_URL_FILE: Row<PathBuf> =
    Row::new("variance.webhook_url_file", &["VARIANCE_WEBHOOK_URL_FILE"], Kind::Text, values::path)
        .doc("A file with that URL. It is read again when Variance replies as if the URL were wrong.");

pub(super) static AUTHORIZATION: Row<HeaderValue> =
    Row::new("variance.authorization", &["VARIANCE_AUTHORIZATION"], Kind::Text, values::authorization)
        .shown(Shown::Masked)
        .pasted_with(Authorization::PREFIXES)
        .doc("The whole value of the `Authorization` header that Variance asks for. Required, here or in a file.");

pub(super) static AUTHORIZATION_FILE: Row<PathBuf> =
    Row::new("variance.authorization_file", &["VARIANCE_AUTHORIZATION_FILE"], Kind::Text, values::path)
        .doc("A file with that value. It is read again when Variance replies 401 or 403.");

pub(super) static FORMAT: Row<Format> = Row::new("variance.format", &["VARIANCE_FORMAT"], Kind::Text, values::format)
    .default("variance")
    .doc("The bodies that are posted: `variance` (calls) or `posthog` (events as they were received).");

pub(super) static LISTEN: Row<SocketAddr> =
    Row::new("server.listen", &["CONNECTOR_LISTEN"], Kind::Text, values::listen)
        .default("127.0.0.1:8080")
        .doc("The address and port to listen on.");

pub(super) static TOKEN: Row<Token> = Row::new("server.token", &["CONNECTOR_TOKEN"], Kind::List, values::parsed)
    .shown(Shown::Masked)
    .pasted_with(Token::PREFIXES)
    .doc("The token that senders must present, of at least 16 characters. Several are accepted, to change it.");

pub(super) static TOKEN_FILE: Row<PathBuf> = Row::new(
    "server.token_file",
    &["CONNECTOR_TOKEN_FILE"],
    Kind::Text,
    values::path,
)
.doc("A file with that token, or with several, one on each line. It is read again when a sender presents an unknown one.");

pub(super) static SIGNING_SECRET: Row<SigningSecret> =
    Row::new("server.signing_secret", &["CONNECTOR_SIGNING_SECRET"], Kind::List, values::parsed)
        .shown(Shown::Masked)
        .doc("The Standard Webhooks secret (`whsec_…`) that senders sign with. Several are accepted, to change it.");

pub(super) static SIGNING_SECRET_FILE: Row<PathBuf> =
    Row::new("server.signing_secret_file", &["CONNECTOR_SIGNING_SECRET_FILE"], Kind::Text, values::path)
        .doc("A file with that secret, or with several, one on each line. It is read again when a sender presents an unknown signature.");

pub(super) static ALLOW_ANONYMOUS: Row<bool> =
    Row::new("server.allow_anonymous", &["CONNECTOR_ALLOW_ANONYMOUS"], Kind::Flag, values::flag)
        .default("false")
        .doc("Whether to listen on an address that others reach with neither token nor signing secret.");

pub(super) static WEBHOOK_DEADLINE: Row<Duration> =
    Row::new("server.webhook_deadline", &["CONNECTOR_WEBHOOK_DEADLINE"], Kind::Duration, values::duration)
        .default("2500ms")
        .doc("How long a request to `/webhook` may take. PostHog gives up after 3 s.");

pub(super) static BATCH_DEADLINE: Row<Duration> =
    Row::new("server.batch_deadline", &["CONNECTOR_BATCH_DEADLINE"], Kind::Duration, values::duration)
        .default("240s")
        .doc("How long a request to `/batch` may take. PostHog gives up after 300 s.");

pub(super) static MAX_BODY: Row<usize> =
    Row::new("server.max_body", &["CONNECTOR_MAX_BODY"], Kind::Size, values::body_size)
        .default("64MiB")
        .doc("The largest body, before and after decompression.");

pub(super) static CALLS: Row<Call> = Row::new("filter.calls", &["CONNECTOR_CALLS"], Kind::List, values::call)
    .default("capture,page,identify,alias")
    .doc("The calls that are forwarded; `group` may be added.");

pub(super) static EXCLUDE: Row<NamePattern> =
    Row::new("filter.exclude", &["CONNECTOR_EXCLUDE"], Kind::List, values::name_pattern)
        .doc("Names of events that are not forwarded; `prefix*` matches all that start with `prefix`.");

pub(super) static INCLUDE: Row<NamePattern> =
    Row::new("filter.include", &["CONNECTOR_INCLUDE"], Kind::List, values::included_pattern).doc(
        "The only names of custom events (capture) that are forwarded; `prefix*` matches all that start with `prefix`.",
    );

pub(super) static ANONYMOUS: Row<bool> =
    Row::new("filter.anonymous", &["CONNECTOR_ANONYMOUS"], Kind::Flag, values::flag)
        .default("true")
        .doc("Whether capture and page events of people who are not identified are forwarded.");

pub(super) static KEEP_PROPERTIES: Row<NamePattern> =
    Row::new("filter.keep_properties", &["CONNECTOR_KEEP_PROPERTIES"], Kind::List, values::property_pattern)
        .doc("Properties starting with `$` that are forwarded all the same: `$name`, or `$prefix*`.");

pub(super) static PERSON_TRAITS: Row<bool> =
    Row::new("filter.person_traits", &["CONNECTOR_PERSON_TRAITS"], Kind::Flag, values::flag)
        .default("false")
        .doc("Whether the person's properties go along with every event. They are personal data.");

pub(super) static ACCOUNT_GROUP: Row<String> =
    Row::new("filter.account_group", &["CONNECTOR_ACCOUNT_GROUP"], Kind::Text, values::group_type)
        .doc("The PostHog group type that is an account at Variance.");

pub(super) static CONCURRENCY: Row<usize> =
    Row::new("delivery.concurrency", &["CONNECTOR_CONCURRENCY"], Kind::Count, values::concurrency)
        .default("256")
        .doc("The most POSTs in flight to Variance. Below that, the connector measures how many Variance can handle.");

pub(super) static ATTEMPT_TIMEOUT: Row<Duration> =
    Row::new("delivery.attempt_timeout", &["CONNECTOR_ATTEMPT_TIMEOUT"], Kind::Duration, values::duration)
        .default("10s")
        .doc("How long one POST may take, including the name look-up and connecting.");

pub(super) static RETRY_FOR: Row<Duration> =
    Row::new("delivery.retry_for", &["CONNECTOR_RETRY_FOR"], Kind::Duration, values::duration)
        .default("1h")
        .doc("How long an event that Variance does not accept is held and retried.");

pub(super) static MAX_HELD: Row<usize> =
    Row::new("delivery.max_held", &["CONNECTOR_MAX_HELD"], Kind::Size, values::held_size)
        .default("64MiB")
        .doc("The most memory for held events, bookkeeping included; at least 16 MiB.");

pub(super) static SHUTDOWN_GRACE: Row<Duration> =
    Row::new("delivery.shutdown_grace", &["CONNECTOR_SHUTDOWN_GRACE"], Kind::Duration, values::duration)
        .default("8s")
        .doc("How long a stopping service may take to finish. By default, Docker kills after 10 s.");

pub(super) static LOG_FORMAT: Row<telemetry::Format> =
    Row::new("log.format", &["CONNECTOR_LOG_FORMAT"], Kind::Text, values::parsed)
        .doc("`text` or `json`; without it `text` on a terminal and `json` elsewhere.");

pub(super) static LOG_LEVEL: Row<Directives> =
    Row::new("log.level", &["CONNECTOR_LOG_LEVEL", "RUST_LOG"], Kind::Text, values::parsed)
        .default("info")
        .doc("`error`, `warn`, `info`, `debug` or `trace` for this program, or directives such as `hyper=debug`.");

pub(super) static POSTHOG_URL: Row<Url> = Row::new("posthog.url", &["POSTHOG_URL"], Kind::Text, values::posthog_url)
    .doc("The address of PostHog's own API, for `backfill --from-posthog` alone, such as `https://us.posthog.com`.");

pub(super) static POSTHOG_PROJECT_ID: Row<u64> =
    Row::new("posthog.project_id", &["POSTHOG_PROJECT_ID"], Kind::Count, values::project_id)
        .doc("The number of the project that events are fetched from: it is in the URL of every page of the project.");

pub(super) static POSTHOG_API_KEY: Row<Secret> =
    Row::new("posthog.api_key", &["POSTHOG_API_KEY"], Kind::Text, values::api_key)
        .shown(Shown::Masked)
        .pasted_with(Token::PREFIXES)
        .doc("A personal API key (`phx_…`) with the scope `query:read`.");

pub(super) static POSTHOG_API_KEY_FILE: Row<PathBuf> =
    Row::new("posthog.api_key_file", &["POSTHOG_API_KEY_FILE"], Kind::Text, values::path).doc("A file with that key.");

/// All settings, in the order of their documentation.
pub const KEYS: &[&Key] = &[
    &WEBHOOK_URL.key,
    &WEBHOOK_URL_FILE.key,
    &AUTHORIZATION.key,
    &AUTHORIZATION_FILE.key,
    &FORMAT.key,
    &LISTEN.key,
    &TOKEN.key,
    &TOKEN_FILE.key,
    &SIGNING_SECRET.key,
    &SIGNING_SECRET_FILE.key,
    &ALLOW_ANONYMOUS.key,
    &WEBHOOK_DEADLINE.key,
    &BATCH_DEADLINE.key,
    &MAX_BODY.key,
    &CALLS.key,
    &EXCLUDE.key,
    &INCLUDE.key,
    &ANONYMOUS.key,
    &KEEP_PROPERTIES.key,
    &PERSON_TRAITS.key,
    &ACCOUNT_GROUP.key,
    &CONCURRENCY.key,
    &ATTEMPT_TIMEOUT.key,
    &RETRY_FOR.key,
    &MAX_HELD.key,
    &SHUTDOWN_GRACE.key,
    &LOG_FORMAT.key,
    &LOG_LEVEL.key,
    &POSTHOG_URL.key,
    &POSTHOG_PROJECT_ID.key,
    &POSTHOG_API_KEY.key,
    &POSTHOG_API_KEY_FILE.key,
];

/// The description of a setting, whatever its type.
#[derive(Debug)]
pub struct Key {
    /// The name, as in the file: `section.key`.
    pub name: &'static str,
    /// The environment variables that set it. The first takes precedence.
    pub variables: &'static [&'static str],
    /// The value if nothing sets it.
    pub default: Option<&'static str>,
    /// The purpose, in a line.
    pub doc: &'static str,
    pub(super) kind: Kind,
    pub(super) shown: Shown,
    pub(super) pasted_with: &'static [&'static str],
}

/// A setting whose values, or the elements of whose lists, are `T`.
pub(super) struct Row<T> {
    pub(super) key: Key,
    pub(super) parse: Parse<T>,
}

/// A parser from text to a value, or to what would be right, as the end of a sentence that starts with "must be".
pub(super) type Parse<T> = fn(&str) -> Result<T, String>;

/// The form of a setting in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Duration,
    Size,
    Count,
    Flag,
    List,
}

/// How much of a setting's value may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// All of it.
    Plainly,
    /// A URL: its host, and of its path and query the length and the end.
    Url,
    /// Its length and its end.
    Masked,
}

impl<T> Row<T> {
    const fn new(name: &'static str, variables: &'static [&'static str], kind: Kind, parse: Parse<T>) -> Self {
        let key = Key { name, variables, default: None, doc: "", kind, shown: Shown::Plainly, pasted_with: &[] };
        Self { key, parse }
    }

    const fn default(mut self, text: &'static str) -> Self {
        self.key.default = Some(text);
        self
    }

    const fn doc(mut self, doc: &'static str) -> Self {
        self.key.doc = doc;
        self
    }

    /// Sets the text that is often pasted along with a secret and is not part of it.
    const fn pasted_with(mut self, prefixes: &'static [&'static str]) -> Self {
        self.key.pasted_with = prefixes;
        self
    }

    const fn shown(mut self, shown: Shown) -> Self {
        self.key.shown = shown;
        self
    }
}

impl Key {
    /// Returns the variable to set it with.
    pub fn variable(&self) -> &'static str {
        self.variables[0]
    }
}

impl Kind {
    /// Returns the form that the file must use.
    pub(super) fn in_toml(self) -> &'static str {
        match self {
            Self::Text => "a string in quotes",
            Self::Duration => r#"a duration in quotes, such as "10s""#,
            Self::Size => r#"a size in quotes, such as "64MiB""#,
            Self::Count => "a whole number without quotes",
            Self::Flag => "true or false without quotes",
            Self::List => "an array of strings, or a string with commas",
        }
    }
}

/// Returns the end of a message about an unknown name: the nearest known name, if one is near. A name counts as near if
/// only the part before the separator is wrong.
pub(super) fn did_you_mean(name: &str, separator: char, known: impl Iterator<Item = &'static str>) -> String {
    const NEAR: f64 = 0.75;
    let last = |name: &str| name.split_once(separator).map_or(name, |(_, last)| last).to_owned();
    let nearness = |known: &str| match last(known) == last(name) {
        true => 1.0,
        false => strsim::normalized_damerau_levenshtein(known, name),
    };
    let nearest = known.map(|known| (nearness(known), known)).max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((nearness, known)) if nearness >= NEAR => format!(": did you mean {known}?"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        fmt::Write as _,
    };

    use super::*;

    const EXAMPLE: &str = include_str!("../../config.example.toml");
    const PAGE: &str = include_str!("../../docs/configuration.md");

    #[test]
    fn names_and_variables_are_unique_and_well_formed() {
        let names: BTreeSet<_> = KEYS.iter().map(|key| key.name).collect();
        let variables: BTreeSet<_> = KEYS.iter().flat_map(|key| key.variables).copied().collect();
        assert_eq!(names.len(), KEYS.len());
        assert_eq!(variables.len(), KEYS.iter().map(|key| key.variables.len()).sum::<usize>());
        for key in KEYS {
            assert_eq!(key.name.split('.').count(), 2, "{}", key.name);
            assert!(["CONNECTOR_", "VARIANCE_", "POSTHOG_"].iter().any(|start| key.variable().starts_with(start)));
            assert!(!key.doc.contains(['|', '\n']), "{} goes into a table", key.name);
        }
    }

    #[test]
    fn the_example_has_every_key_at_its_default() {
        let documented = assignments(EXAMPLE);
        for Key { name, variables, default, .. } in KEYS {
            let (value, is_active) =
                documented.get(*name).unwrap_or_else(|| panic!("config.example.toml has no {name}"));
            assert_eq!(*is_active, default.is_some(), "{name}: only what has a default may be set");
            if let Some(default) = default {
                assert_eq!(value.replace(['"', '[', ']', ' '], ""), *default, "{name}");
            }
            for variable in *variables {
                assert!(EXAMPLE.contains(variable), "config.example.toml does not name {variable}");
            }
        }
        let known: BTreeSet<_> = KEYS.iter().map(|key| key.name.to_owned()).collect();
        assert_eq!(documented.into_keys().collect::<BTreeSet<_>>(), known);
    }

    #[test]
    fn the_documentation_has_every_key_as_it_is_here() {
        let mut table = String::from("| key | environment | default | |\n|---|---|---|---|\n");
        for Key { name, variables, default, doc, .. } in KEYS {
            let variables: Vec<_> = variables.iter().map(|variable| format!("`{variable}`")).collect();
            let default = default.map_or_else(|| "none".to_owned(), |default| format!("`{default}`"));
            writeln!(table, "| `{name}` | {} | {default} | {doc} |", variables.join(", ")).unwrap();
        }
        assert!(PAGE.contains(&format!("\n\n{table}\n")), "docs/configuration.md needs this table:\n{table}");
    }

    /// Returns the `key = value` lines of an example, by the key's full name, and whether each is in effect: an example
    /// that is commented out has no space after its `#`.
    fn assignments(example: &str) -> BTreeMap<String, (String, bool)> {
        let mut section = "";
        let mut found = BTreeMap::new();
        for line in example.lines() {
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_end_matches(']');
            } else if let Some((key, value)) = line.split_once(" = ")
                && !line.starts_with("# ")
            {
                let name = format!("{section}.{}", key.trim_start_matches('#'));
                let previous = found.insert(name, (value.to_owned(), !key.starts_with('#')));
                assert_eq!(previous, None, "{line}");
            }
        }
        found
    }
}

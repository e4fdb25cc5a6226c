//! The table of all settings: what they are called, what they are by default, and what they are for.

use std::fmt::Write as _;

/// The variable that names the configuration file; the flag `--config` comes before it.
pub const FILE_VARIABLE: &str = "CONNECTOR_CONFIG";

/// One setting.
#[derive(Debug)]
pub struct Key {
    /// Its name, as in the file: `section.key`.
    pub name: &'static str,
    /// The environment variables that set it, the first before the others.
    pub variables: &'static [&'static str],
    /// Its value where nothing sets it.
    pub default: Option<&'static str>,
    /// What it is for, in a line.
    pub doc: &'static str,
    pub(super) kind: Kind,
    pub(super) shown: Shown,
}

/// How a setting is written in the file.
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

/// All settings, in the order of their documentation.
pub const KEYS: &[Key] = &[
    Key {
        name: "variance.webhook_url",
        variables: &["VARIANCE_WEBHOOK_URL"],
        default: None,
        doc: "Where events go: the URL from Variance > Integrations > PostHog. Required.",
        kind: Kind::Text,
        shown: Shown::Url,
    },
    Key {
        name: "variance.authorization",
        variables: &["VARIANCE_AUTHORIZATION"],
        default: None,
        doc: "The whole value of the `Authorization` header that Variance asks for. Required, here or in a file.",
        kind: Kind::Text,
        shown: Shown::Masked,
    },
    Key {
        name: "variance.authorization_file",
        variables: &["VARIANCE_AUTHORIZATION_FILE"],
        default: None,
        doc: "A file with that value. It is read again when Variance answers 401 or 403.",
        kind: Kind::Text,
        shown: Shown::Plainly,
    },
    Key {
        name: "variance.format",
        variables: &["VARIANCE_FORMAT"],
        default: Some("variance"),
        doc: "The bodies that are posted: `variance` (calls) or `posthog` (events as they were received).",
        kind: Kind::Text,
        shown: Shown::Plainly,
    },
    Key {
        name: "server.listen",
        variables: &["CONNECTOR_LISTEN"],
        default: Some("127.0.0.1:8080"),
        doc: "The address and port to listen on.",
        kind: Kind::Text,
        shown: Shown::Plainly,
    },
    Key {
        name: "server.token",
        variables: &["CONNECTOR_TOKEN"],
        default: None,
        doc: "The token that senders must present, of at least 16 characters; several while it is changed.",
        kind: Kind::List,
        shown: Shown::Masked,
    },
    Key {
        name: "server.token_file",
        variables: &["CONNECTOR_TOKEN_FILE"],
        default: None,
        doc: "A file with that token, or with several, each on its line.",
        kind: Kind::Text,
        shown: Shown::Plainly,
    },
    Key {
        name: "server.signing_secret",
        variables: &["CONNECTOR_SIGNING_SECRET"],
        default: None,
        doc: "The Standard Webhooks secret (`whsec_…`) that senders sign with; several while it is changed.",
        kind: Kind::List,
        shown: Shown::Masked,
    },
    Key {
        name: "server.signing_secret_file",
        variables: &["CONNECTOR_SIGNING_SECRET_FILE"],
        default: None,
        doc: "A file with that secret, or with several, each on its line.",
        kind: Kind::Text,
        shown: Shown::Plainly,
    },
    Key {
        name: "server.allow_anonymous",
        variables: &["CONNECTOR_ALLOW_ANONYMOUS"],
        default: Some("false"),
        doc: "Whether to listen on an address that others reach with neither token nor signing secret.",
        kind: Kind::Flag,
        shown: Shown::Plainly,
    },
    Key {
        name: "server.webhook_deadline",
        variables: &["CONNECTOR_WEBHOOK_DEADLINE"],
        default: Some("2500ms"),
        doc: "How long a request to `/webhook` may take. PostHog gives up after 3 s.",
        kind: Kind::Duration,
        shown: Shown::Plainly,
    },
    Key {
        name: "server.batch_deadline",
        variables: &["CONNECTOR_BATCH_DEADLINE"],
        default: Some("240s"),
        doc: "How long a request to `/batch` may take. PostHog gives up after 300 s.",
        kind: Kind::Duration,
        shown: Shown::Plainly,
    },
    Key {
        name: "server.max_body",
        variables: &["CONNECTOR_MAX_BODY"],
        default: Some("64MiB"),
        doc: "The largest body, before and after decompression.",
        kind: Kind::Size,
        shown: Shown::Plainly,
    },
    Key {
        name: "filter.calls",
        variables: &["CONNECTOR_CALLS"],
        default: Some("capture,page,identify,alias"),
        doc: "The calls that are forwarded; `group` may be added.",
        kind: Kind::List,
        shown: Shown::Plainly,
    },
    Key {
        name: "filter.exclude",
        variables: &["CONNECTOR_EXCLUDE"],
        default: None,
        doc: "Names of events that are not forwarded; `prefix*` for all that start so.",
        kind: Kind::List,
        shown: Shown::Plainly,
    },
    Key {
        name: "filter.person_traits",
        variables: &["CONNECTOR_PERSON_TRAITS"],
        default: Some("false"),
        doc: "Whether the person's properties go along with every event. They are personal data.",
        kind: Kind::Flag,
        shown: Shown::Plainly,
    },
    Key {
        name: "filter.account_group",
        variables: &["CONNECTOR_ACCOUNT_GROUP"],
        default: None,
        doc: "The PostHog group type that is an account at Variance.",
        kind: Kind::Text,
        shown: Shown::Plainly,
    },
    Key {
        name: "delivery.concurrency",
        variables: &["CONNECTOR_CONCURRENCY"],
        default: Some("64"),
        doc: "POSTs in flight to Variance.",
        kind: Kind::Count,
        shown: Shown::Plainly,
    },
    Key {
        name: "delivery.attempt_timeout",
        variables: &["CONNECTOR_ATTEMPT_TIMEOUT"],
        default: Some("10s"),
        doc: "How long one of them may take; at most 3 s of it to connect.",
        kind: Kind::Duration,
        shown: Shown::Plainly,
    },
    Key {
        name: "delivery.retry_for",
        variables: &["CONNECTOR_RETRY_FOR"],
        default: Some("1h"),
        doc: "How long an event that Variance does not take is held and tried again.",
        kind: Kind::Duration,
        shown: Shown::Plainly,
    },
    Key {
        name: "delivery.max_held",
        variables: &["CONNECTOR_MAX_HELD"],
        default: Some("64MiB"),
        doc: "Memory for such events, bookkeeping included; at least 16 MiB.",
        kind: Kind::Size,
        shown: Shown::Plainly,
    },
    Key {
        name: "delivery.shutdown_grace",
        variables: &["CONNECTOR_SHUTDOWN_GRACE"],
        default: Some("8s"),
        doc: "How long a stopping service may take to finish. Docker kills after 10 s unless told otherwise.",
        kind: Kind::Duration,
        shown: Shown::Plainly,
    },
    Key {
        name: "log.format",
        variables: &["CONNECTOR_LOG_FORMAT"],
        default: None,
        doc: "`text` or `json`; without it `text` on a terminal and `json` elsewhere.",
        kind: Kind::Text,
        shown: Shown::Plainly,
    },
    Key {
        name: "log.level",
        variables: &["CONNECTOR_LOG_LEVEL", "RUST_LOG"],
        default: Some("info"),
        doc: "`error`, `warn`, `info`, `debug` or `trace` for this program, or directives such as `hyper=debug`.",
        kind: Kind::Text,
        shown: Shown::Plainly,
    },
];

impl Key {
    /// The setting of that name.
    ///
    /// # Panics
    /// If there is none: the name is a slip of the programmer.
    pub(super) fn named(name: &str) -> &'static Self {
        KEYS.iter().find(|key| key.name == name).expect("a name in the table")
    }

    /// The variable to set it with.
    pub fn variable(&self) -> &'static str {
        self.variables[0]
    }
}

impl Kind {
    /// How the file must have it.
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

/// The table as text for the command line's help.
pub fn help() -> String {
    let mut text = String::from("Settings, by environment variable or in the file:\n");
    for Key { name, variables, default, doc, kind: _, shown: _ } in KEYS {
        let default = default.map(|default| format!(" [default: {default}]")).unwrap_or_default();
        write!(text, "\n  {} ({name}){default}\n      {doc}", variables.join(", ")).expect("a string takes all");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

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
            assert!(["CONNECTOR_", "VARIANCE_"].iter().any(|start| key.variable().starts_with(start)));
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

    /// The `key = value` lines of an example, by the key's full name, and whether they are in effect: an example that is
    /// commented out has no space after its `#`.
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

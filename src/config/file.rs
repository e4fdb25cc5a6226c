//! The configuration file, flattened to its keys.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::{
    given::{Given, Origin, Value},
    keys::{KEYS, Key, Kind, did_you_mean},
};

/// The entries of a file by key, right or wrong.
#[derive(Default)]
pub(super) struct File {
    entries: BTreeMap<&'static str, Result<Given, String>>,
    unknown: Vec<String>,
}

impl File {
    /// Reads TOML. A problem repeats nothing of the file but the names of keys, since it may hold secrets.
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, String> {
        let source = Source { path, text };
        let root = DeTable::parse(text).map_err(|error| {
            let origin = match error.span() {
                Some(span) => source.origin(span.start).to_string(),
                None => path.display().to_string(),
            };
            format!("{origin} is not valid TOML: {}", error.message())
        })?;
        let mut file = Self::default();
        for (section, content) in root.get_ref() {
            let origin = source.origin(section.span().start);
            let section = section.get_ref();
            match content.get_ref() {
                DeValue::Table(table) if sections().any(|known| known == section) => {
                    for (name, value) in table {
                        let (origin, name) = (source.origin(name.span().start), name.get_ref());
                        file.add(&format!("{section}.{name}"), value.get_ref(), origin);
                    }
                }
                DeValue::Table(_) => {
                    let hint = did_you_mean(section, '.', sections());
                    file.unknown.push(format!("unknown section {} ({origin}){hint}", section.escape_debug()));
                }
                value if sections().any(|known| known == section) => {
                    file.unknown.push(format!(
                        "{section} ({origin}) is {}, but must be a section: [{section}]",
                        with_article(value)
                    ));
                }
                value => file.add(section, value, origin),
            }
        }
        Ok(file)
    }

    pub(super) fn find(&self, key: &Key) -> Option<Result<Given, String>> {
        self.entries.get(key.name).cloned()
    }

    pub(super) fn problems(&self) -> impl Iterator<Item = &str> {
        let wrong = self.entries.values().filter_map(|entry| entry.as_ref().err());
        self.unknown.iter().chain(wrong).map(String::as_str)
    }

    fn add(&mut self, name: &str, value: &DeValue<'_>, origin: Origin) {
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            let hint = did_you_mean(name, '.', KEYS.iter().map(|key| key.name));
            self.unknown.push(format!("unknown key {} ({origin}){hint}", name.escape_debug()));
            return;
        };
        let entry = match read(key.kind, value) {
            Some(value) => Ok(Given { value, origin }),
            None => {
                let found = match (key.kind, value) {
                    (Kind::List, DeValue::Array(_)) => "an array with something other than strings in it",
                    (_, value) => with_article(value),
                };
                Err(format!("{name} ({origin}) is {found}, but must be {}", key.kind.in_toml()))
            }
        };
        self.entries.insert(key.name, entry);
    }
}

/// A file's text, for finding line numbers.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn origin(&self, offset: usize) -> Origin {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Origin::Line(PathBuf::from(self.path), line)
    }
}

fn sections() -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter_map(|key| Some(key.name.split_once('.')?.0))
}

fn read(kind: Kind, value: &DeValue<'_>) -> Option<Value> {
    match (kind, value) {
        (Kind::Text | Kind::Duration | Kind::Size | Kind::List, DeValue::String(text)) => {
            Some(Value::One(text.to_string()))
        }
        (Kind::List, DeValue::Array(elements)) => {
            let elements = elements.iter().map(|element| element.get_ref().as_str().map(str::to_owned));
            elements.collect::<Option<_>>().map(Value::Many)
        }
        (Kind::Count, DeValue::Integer(number)) => Some(Value::One(number.to_string())),
        (Kind::Flag, DeValue::Boolean(flag)) => Some(Value::One(flag.to_string())),
        _ => None,
    }
}

fn with_article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

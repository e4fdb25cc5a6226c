//! Reads settings one by one, and notes what each is and what is wrong.

use std::path::PathBuf;

use super::{
    Setting,
    keys::{KEYS, Key, Shown},
    sources::{Given, Origin, Sources, Value},
    values,
};
use crate::secret;

/// There is no value, and the reason is among the problems.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reported;

/// From text to a value, or to what would be right: the end of a sentence that starts with "must be".
type Parse<T> = fn(&str) -> Result<T, String>;

/// The sources, and what reading them has shown so far.
pub(super) struct Reader {
    sources: Sources,
    settings: Vec<Setting>,
    problems: Vec<String>,
}

impl Reader {
    pub(super) fn new(sources: Sources) -> Self {
        Self { sources, settings: Vec::new(), problems: Vec::new() }
    }

    /// A setting with a default.
    pub(super) fn value<T>(&mut self, name: &str, parse: Parse<T>) -> Result<T, Reported> {
        self.option(name, parse).map(|value| value.expect("a setting with a default is never without a value"))
    }

    /// A setting without a default.
    pub(super) fn option<T>(&mut self, name: &str, parse: Parse<T>) -> Result<Option<T>, Reported> {
        let key = Key::named(name);
        let Some(Given { value, origin }) = self.find(key)? else { return Ok(None) };
        let text = value.into_text();
        let text = text.trim();
        let value = parse(text).map_err(|right| self.wrong(key, &origin, text, &right))?;
        self.note(key, Some(shown(key, text)), origin);
        Ok(Some(value))
    }

    /// A setting with any number of values.
    pub(super) fn list<T>(&mut self, name: &str, parse: Parse<T>) -> Result<Vec<T>, Reported> {
        let key = Key::named(name);
        let given = self.find(key)?;
        given.map_or(Ok(Vec::new()), |given| self.elements(key, given, parse))
    }

    /// A secret, and the file that it was read from.
    pub(super) fn secret<T>(
        &mut self,
        name: &str,
        file_name: &str,
        parse: Parse<T>,
    ) -> Result<Option<(T, Option<PathBuf>)>, Reported> {
        let key = Key::named(name);
        let Some(Given { value, origin }) = self.find_secret(key, Key::named(file_name))? else { return Ok(None) };
        let text = value.into_text();
        let value = parse(&text).map_err(|right| self.wrong(key, &origin, &text, &right))?;
        self.note(key, Some(shown(key, &text)), origin.clone());
        let file = match origin {
            Origin::SecretFile(path) => Some(path),
            _ => None,
        };
        Ok(Some((value, file)))
    }

    /// Any number of secrets; in a file, each has a line.
    pub(super) fn secrets<T>(&mut self, name: &str, file_name: &str, parse: Parse<T>) -> Result<Vec<T>, Reported> {
        let key = Key::named(name);
        let Some(mut given) = self.find_secret(key, Key::named(file_name))? else { return Ok(Vec::new()) };
        if let (Value::One(text), Origin::SecretFile(_)) = (&given.value, &given.origin) {
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            given.value = Value::Many(lines.map(str::to_owned).collect());
        }
        self.elements(key, given, parse)
    }

    /// Notes a problem, if it is not among them yet.
    pub(super) fn problem(&mut self, problem: String) -> Reported {
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
        Reported
    }

    /// A setting that was read and where its value came from, for a message.
    pub(super) fn named(&self, name: &str) -> String {
        let setting = self.settings.iter().find(|setting| setting.key.name == name).expect("it was read");
        format!("{name} ({})", setting.origin)
    }

    /// The problem that a setting was not given, and where to have its value from.
    pub(super) fn missing(&mut self, name: &str, from: &str) -> Reported {
        let variable = Key::named(name).variable();
        self.problem(format!("{name} (environment variable {variable}) is missing: {from}"))
    }

    pub(super) fn into_problems(self) -> Vec<String> {
        self.problems
    }

    pub(super) fn sources(&self) -> &Sources {
        &self.sources
    }

    /// What was read, in the order of the table, and all problems: also those of the file that nothing has come upon,
    /// because a flag or a variable comes before it.
    pub(super) fn finish(mut self) -> (Vec<Setting>, Vec<String>) {
        let of_the_file: Vec<_> = self.sources.problems_of_the_file().map(str::to_owned).collect();
        for problem in of_the_file {
            self.problem(problem);
        }
        self.settings.sort_by_key(|setting| KEYS.iter().position(|key| key.name == setting.key.name));
        (self.settings, self.problems)
    }

    /// What was said about a setting. If nothing was, that is noted.
    fn find(&mut self, key: &'static Key) -> Result<Option<Given>, Reported> {
        let given = self.sources.find(key).map_err(|problem| self.problem(problem))?;
        if given.is_none() {
            self.note(key, None, Origin::Default);
        }
        Ok(given)
    }

    /// What was said about a secret, or what stands in the file that was said to hold it.
    fn find_secret(&mut self, key: &'static Key, file_key: &'static Key) -> Result<Option<Given>, Reported> {
        let (given, file) = (self.find(key), self.find(file_key));
        match (given?, file?) {
            (given, None) => Ok(given),
            (Some(given), Some(file)) => Err(self.problem(format!(
                "{} ({}) and {} ({}) are both given: leave one of them out",
                key.name, given.origin, file_key.name, file.origin
            ))),
            (None, Some(Given { value, origin })) => {
                let path = PathBuf::from(value.into_text().trim());
                let text = secret::read(&path).map_err(|error| {
                    let path = path.display();
                    self.problem(format!("{} ({origin}): the file {path} cannot be used: {error}", file_key.name))
                })?;
                self.note(file_key, Some(path.display().to_string()), origin);
                Ok(Some(Given { value: Value::One(text), origin: Origin::SecretFile(path) }))
            }
        }
    }

    fn elements<T>(&mut self, key: &'static Key, given: Given, parse: Parse<T>) -> Result<Vec<T>, Reported> {
        let Given { value, origin } = given;
        let texts = match value {
            Value::Many(texts) => texts,
            Value::One(text) => {
                let parts = text.split(',').filter(|part| !part.trim().is_empty());
                let texts: Vec<_> = parts.map(str::to_owned).collect();
                // What is said to be something must not turn out to be nothing.
                if texts.is_empty() { vec![String::new()] } else { texts }
            }
        };
        let texts: Vec<_> = texts.iter().map(|text| text.trim()).collect();
        let values: Vec<_> =
            texts.iter().map(|text| parse(text).map_err(|right| self.wrong(key, &origin, text, &right))).collect();
        let values = values.into_iter().collect::<Result<_, _>>()?;
        let shown: Vec<_> = texts.iter().map(|text| shown(key, text)).collect();
        self.note(key, Some(shown.join(", ")), origin);
        Ok(values)
    }

    fn wrong(&mut self, key: &Key, origin: &Origin, text: &str, right: &str) -> Reported {
        let name = key.name;
        self.problem(match key.shown {
            Shown::Plainly => format!("{name} ({origin}) is {text:?}, but must be {right}"),
            Shown::Url | Shown::Masked => format!("{name} ({origin}) must be {right}"),
        })
    }

    /// Notes what a setting is, over what was noted of it before.
    fn note(&mut self, key: &'static Key, value: Option<String>, origin: Origin) {
        self.settings.retain(|setting| setting.key.name != key.name);
        self.settings.push(Setting { key, value, origin });
    }
}

/// What may be shown of a value that is right.
fn shown(key: &Key, text: &str) -> String {
    match key.shown {
        Shown::Plainly => text.to_owned(),
        Shown::Masked => values::masked(text),
        Shown::Url => values::url_without_secrets(text),
    }
}

impl Value {
    fn into_text(self) -> String {
        match self {
            Self::One(text) => text,
            Self::Many(texts) => texts.join(","),
        }
    }
}

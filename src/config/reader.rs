//! A reader of settings, which collects their values, warnings and problems.

use std::path::PathBuf;

use super::{
    Error, Loaded, Setting,
    given::{Given, Origin, Value},
    keys::{KEYS, Key, Parse, Row, Shown},
    sources::Sources,
    values,
};
use crate::secret;

/// The error of a missing value whose reason is among the problems.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reported;

/// The sources, and the results of reading them so far.
pub(super) struct Reader {
    pub(super) sources: Sources,
    settings: Vec<Setting>,
    warnings: Vec<String>,
    problems: Vec<String>,
}

impl Reader {
    pub(super) fn new(sources: Sources) -> Self {
        Self { sources, settings: Vec::new(), warnings: Vec::new(), problems: Vec::new() }
    }

    /// Reads a setting with a default.
    pub(super) fn get<T>(&mut self, row: &'static Row<T>) -> Result<T, Reported> {
        self.option(row).map(|value| value.expect("a setting with a default is never without a value"))
    }

    /// Reads a setting without a default.
    pub(super) fn option<T>(&mut self, Row { key, parse }: &'static Row<T>) -> Result<Option<T>, Reported> {
        let given = self.find(key)?;
        given.map(|given| self.one(key, given, *parse)).transpose()
    }

    /// Reads a setting with any number of values.
    pub(super) fn list<T>(&mut self, Row { key, parse }: &'static Row<T>) -> Result<Vec<T>, Reported> {
        let given = self.find(key)?;
        given.map_or(Ok(Vec::new()), |given| self.elements(key, given, *parse))
    }

    /// Reads a secret, and the file that it came from.
    pub(super) fn secret<T>(
        &mut self,
        Row { key, parse }: &'static Row<T>,
        file: &'static Row<PathBuf>,
    ) -> Result<Option<(T, Option<PathBuf>)>, Reported> {
        let Some(given) = self.find_secret(key, file)? else { return Ok(None) };
        let file = given.origin.secret_file();
        Ok(Some((self.one(key, given, *parse)?, file)))
    }

    /// Reads any number of secrets, and the file that they came from, which has one per line.
    pub(super) fn secrets<T>(
        &mut self,
        Row { key, parse }: &'static Row<T>,
        file: &'static Row<PathBuf>,
    ) -> Result<(Vec<T>, Option<PathBuf>), Reported> {
        let Some(mut given) = self.find_secret(key, file)? else { return Ok((Vec::new(), None)) };
        let file = given.origin.secret_file();
        if let (Value::One(text), Some(_)) = (&given.value, &file) {
            given.value = Value::Many(secret::lines(text).map(str::to_owned).collect());
        }
        Ok((self.elements(key, given, *parse)?, file))
    }

    /// Adds a warning of something possible, but most likely not intended, unless it is there already.
    pub(super) fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// True in a container that Docker or Podman stops: its image says so, by systemd's convention, and no Kubernetes runs it.
    pub(super) fn is_in_container(&self) -> bool {
        let has = |name| self.sources.foreign_variable(name).is_some();
        has("container") && !has("KUBERNETES_SERVICE_HOST")
    }

    /// Warns of variables that look as if they were meant for this program.
    pub(super) fn warn_of_unknown_variables(&mut self) {
        self.warnings.extend(self.sources.unknown_variables());
    }

    /// Adds a problem, unless it is there already.
    pub(super) fn problem(&mut self, problem: String) -> Reported {
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
        Reported
    }

    /// True if a setting was read, with or without success.
    pub(super) fn has_read(&self, key: &Key) -> bool {
        self.settings.iter().any(|setting| setting.key.name == key.name)
    }

    /// Names a setting that was read and the origin of its value, for a message.
    pub(super) fn named(&self, key: &Key) -> String {
        let setting = self.settings.iter().find(|setting| setting.key.name == key.name).expect("it was read");
        format!("{} ({})", key.name, setting.origin)
    }

    /// Returns a value that must be given; `from` says where to get it.
    pub(super) fn required<T>(
        &mut self,
        value: Result<Option<T>, Reported>,
        key: &Key,
        from: &str,
    ) -> Result<T, Reported> {
        let (name, variable) = (key.name, key.variable());
        value?.ok_or_else(|| self.problem(format!("{name} (environment variable {variable}) is missing: {from}")))
    }

    /// Returns the value with everything that was collected on the way, or else all problems.
    pub(super) fn finish<T>(self, value: Result<T, Reported>) -> Result<Loaded<T>, Error> {
        let Self { mut settings, warnings, problems, sources: _ } = self;
        settings.sort_by_key(|setting| KEYS.iter().position(|key| key.name == setting.key.name));
        match value {
            Ok(config) if problems.is_empty() => Ok(Loaded { config, settings, warnings }),
            _ => Err(Error { problems }),
        }
    }

    /// Adds the problems of the file, even where a flag or a variable takes precedence.
    pub(super) fn check_file(&mut self) {
        let problems: Vec<_> = self.sources.file.problems().map(str::to_owned).collect();
        for problem in problems {
            self.problem(problem);
        }
    }

    /// Returns the value given for a setting. If there is none, that is recorded.
    fn find(&mut self, key: &'static Key) -> Result<Option<Given>, Reported> {
        let given = self.sources.find(key).map_err(|problem| self.problem(problem))?;
        if given.is_none() {
            self.note(key, None, Origin::Default);
        }
        Ok(given)
    }

    /// Returns the value given for a secret, or the content of the file that was named for it.
    fn find_secret(&mut self, key: &'static Key, file: &'static Row<PathBuf>) -> Result<Option<Given>, Reported> {
        let (given, path) = (self.find(key), self.option(file));
        let given = given?;
        let Some(path) = path? else { return Ok(given) };
        let name = self.named(&file.key);
        if let Some(Given { origin, .. }) = given {
            let key = key.name;
            return Err(self.problem(format!("{key} ({origin}) and {name} are both given: leave one of them out")));
        }
        let text = secret::read(&path)
            .map_err(|error| self.problem(format!("{name}: the file {} cannot be used: {error}", path.display())))?;
        Ok(Some(Given { value: Value::One(text), origin: Origin::SecretFile(path) }))
    }

    fn one<T>(&mut self, key: &'static Key, given: Given, parse: Parse<T>) -> Result<T, Reported> {
        let Given { value, origin } = given;
        let text = self.cleaned(key, &origin, &value.into_text());
        let value = parse(&text).map_err(|right| self.wrong(key, &origin, &text, &right))?;
        self.note(key, Some(shown(key, &text)), origin);
        Ok(value)
    }

    fn elements<T>(&mut self, key: &'static Key, given: Given, parse: Parse<T>) -> Result<Vec<T>, Reported> {
        let Given { value, origin } = given;
        let texts = match value {
            Value::Many(texts) => texts,
            Value::One(text) => {
                let text = self.cleaned(key, &origin, &text);
                let parts = text.split(',').filter(|part| !part.trim().is_empty());
                let texts: Vec<_> = parts.map(str::to_owned).collect();
                // A text that was given must not turn into an empty list.
                if texts.is_empty() { vec![String::new()] } else { texts }
            }
        };
        let texts: Vec<_> = texts.iter().map(|text| self.cleaned(key, &origin, text.trim())).collect();
        let values: Vec<_> =
            texts.iter().map(|text| parse(text).map_err(|right| self.wrong(key, &origin, text, &right))).collect();
        let values = values.into_iter().collect::<Result<_, _>>()?;
        let shown: Vec<_> = texts.iter().map(|text| shown(key, text)).collect();
        self.note(key, Some(shown.join(", ")), origin);
        Ok(values)
    }

    /// Returns a text without what was given along with it and is not part of it, and warns of that.
    fn cleaned(&mut self, key: &Key, origin: &Origin, text: &str) -> String {
        let (cleaned, flaws) = match key.shown {
            Shown::Plainly => match secret::unquoted(text.trim()).filter(|_| matches!(origin, Origin::Variable(_))) {
                Some(inner) => (inner.trim().to_owned(), vec![secret::QUOTATION_MARKS.to_owned()]),
                None => (text.trim().to_owned(), Vec::new()),
            },
            Shown::Url | Shown::Masked => secret::repaired(text, key.pasted_with),
        };
        if !flaws.is_empty() {
            let (name, flaws) = (key.name, flaws.join(" and "));
            self.warn(format!("{name} ({origin}) has {flaws}. This is not part of the value and is ignored"));
        }
        cleaned
    }

    fn wrong(&mut self, key: &Key, origin: &Origin, text: &str, right: &str) -> Reported {
        let name = key.name;
        self.problem(match key.shown {
            Shown::Plainly => format!("{name} ({origin}) is {text:?}, but must be {right}"),
            Shown::Url => format!("{name} ({origin}) must be {right}, but {}", values::described_url(text)),
            Shown::Masked => format!("{name} ({origin}) must be {right}, but {}", secret::described(text)),
        })
    }

    /// Records the value of a setting, in place of any earlier one.
    fn note(&mut self, key: &'static Key, value: Option<String>, origin: Origin) {
        self.settings.retain(|setting| setting.key.name != key.name);
        self.settings.push(Setting { key, value, origin });
    }
}

/// Returns as much of a valid value as may be shown.
fn shown(key: &Key, text: &str) -> String {
    match key.shown {
        Shown::Plainly => text.to_owned(),
        Shown::Masked => values::masked(text),
        Shown::Url => values::url_without_secrets(text),
    }
}

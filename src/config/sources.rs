//! The sources of values: a flag, the environment, the file, or else the default.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
};

use super::{
    file::File,
    given::{Given, Origin, Value},
    keys::{FILE_VARIABLE, KEYS, Key, LISTEN, LOG_FORMAT, LOG_LEVEL, did_you_mean},
};

/// The flags of the command line, which take precedence over everything else.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--config`: the configuration file.
    pub config: Option<PathBuf>,
    /// `--listen`: `server.listen`.
    pub listen: Option<String>,
    /// `--log-level`: `log.level`.
    pub log_level: Option<String>,
    /// `--log-format`: `log.format`.
    pub log_format: Option<String>,
}

/// The environment.
pub type Variables = BTreeMap<OsString, OsString>;

/// Everything that was given.
#[derive(Default)]
pub(super) struct Sources {
    flags: Flags,
    variables: Variables,
    pub(super) file: File,
}

impl Sources {
    /// Takes the flags and the environment.
    pub(super) fn new(flags: &Flags, variables: &Variables) -> Self {
        Self { flags: flags.clone(), variables: variables.clone(), file: File::default() }
    }

    /// Returns a variable; an empty one counts as absent.
    fn variable(&self, name: &str) -> Option<&OsString> {
        self.variables.get(OsStr::new(name)).filter(|value| !value.is_empty())
    }

    /// Returns a variable that is not one of this program's own, even if it is empty.
    pub(super) fn foreign_variable(&self, name: &str) -> Option<OsString> {
        self.variables.get(OsStr::new(name)).cloned()
    }

    /// Adds the file, if one was named.
    pub(super) fn read_file(&mut self) -> Result<(), String> {
        let (path, origin) = if let Some(path) = &self.flags.config {
            (path.as_path(), Origin::Flag("--config"))
        } else if let Some(path) = self.variable(FILE_VARIABLE) {
            (Path::new(path), Origin::Variable(FILE_VARIABLE))
        } else {
            return Ok(());
        };
        let text = std::fs::read_to_string(path).map_err(|error| {
            let what = match error.kind() {
                io::ErrorKind::InvalidData => "it is not UTF-8".to_owned(),
                _ => error.to_string(),
            };
            format!("the configuration file {} ({origin}) cannot be read: {what}", path.display())
        })?;
        self.file = File::parse(path, &text)?;
        Ok(())
    }

    /// Returns the value of a setting from the source that takes precedence, or the problem with it.
    pub(super) fn find(&self, key: &'static Key) -> Result<Option<Given>, String> {
        let one = |text: &str, origin| Given { value: Value::One(text.to_owned()), origin };
        if let Some((flag, text)) = self.flags.find(key) {
            return Ok(Some(one(text, Origin::Flag(flag))));
        }
        for variable in key.variables {
            if let Some(text) = self.variable(variable) {
                let origin = Origin::Variable(variable);
                return match text.to_str() {
                    Some(text) => Ok(Some(one(text, origin))),
                    None => Err(format!("{} ({origin}) is not UTF-8", key.name)),
                };
            }
        }
        match self.file.find(key) {
            Some(given) => given.map(Some),
            None => Ok(key.default.map(|text| one(text, Origin::Default))),
        }
    }

    /// Returns warnings of variables that look as if they were meant for this program.
    pub(super) fn unknown_variables(&self) -> impl Iterator<Item = String> {
        let known = || KEYS.iter().flat_map(|key| key.variables).copied().chain([FILE_VARIABLE]);
        let names = self.variables.keys().filter_map(|name| name.to_str()).filter(|name| self.variable(name).is_some());
        let meant = move || known().filter(|name| !name.starts_with("POSTHOG_"));
        let is_ours = |name: &&str| name.starts_with("CONNECTOR_") || name.starts_with("VARIANCE_");
        names
            .filter(is_ours)
            .filter(move |name| known().all(|known| known != *name))
            .map(move |name| format!("unknown environment variable {name}{}", did_you_mean(name, '_', meant())))
    }
}

impl Flags {
    fn find(&self, key: &Key) -> Option<(&'static str, &str)> {
        let Self { config: _, listen, log_level, log_format } = self;
        let flags = [
            ("--listen", &LISTEN.key, listen),
            ("--log-level", &LOG_LEVEL.key, log_level),
            ("--log-format", &LOG_FORMAT.key, log_format),
        ];
        let (flag, _, value) = flags.into_iter().find(|(_, flagged, _)| flagged.name == key.name)?;
        Some((flag, value.as_deref()?))
    }
}

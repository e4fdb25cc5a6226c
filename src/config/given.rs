//! A value as it was given, with its origin.

use std::{fmt, path::PathBuf};

/// A value that has not been parsed yet.
#[derive(Clone)]
pub(super) struct Given {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// One text, or the elements of an array.
#[derive(Clone)]
pub(super) enum Value {
    One(String),
    Many(Vec<String>),
}

/// The origin of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A flag.
    Flag(&'static str),
    /// An environment variable.
    Variable(&'static str),
    /// A line of the configuration file.
    Line(PathBuf, usize),
    /// A file that a setting ending in `_file` names.
    SecretFile(PathBuf),
    /// Nothing set the value.
    Default,
}

impl Value {
    pub(super) fn into_text(self) -> String {
        match self {
            Self::One(text) => text,
            Self::Many(texts) => texts.join(","),
        }
    }
}

impl Origin {
    pub(super) fn secret_file(&self) -> Option<PathBuf> {
        match self {
            Self::SecretFile(path) => Some(path.clone()),
            _ => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Line(path, line) => write!(f, "{} line {line}", path.display()),
            Self::SecretFile(path) => write!(f, "file {}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

//! Text that must not be printed, and the files that hold it.

use std::{fmt, fs, io, path::Path};

/// A credential. Its `Debug` shows nothing of it, and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the credential in.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The credential itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// The text of a file that holds a secret, without the white space at its end, which editors and `echo` leave there.
///
/// # Errors
/// When the file cannot be read, or holds nothing else.
pub fn read(file: &Path) -> io::Result<String> {
    let text = fs::read_to_string(file)?;
    match text.trim_end() {
        "" => Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty")),
        text => Ok(text.to_owned()),
    }
}

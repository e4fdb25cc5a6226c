//! The credential that Variance asks for, and the file that may have a newer one.

use std::{io, path::PathBuf, sync::Mutex};

use http::{
    HeaderMap, HeaderValue,
    header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, USER_AGENT},
};
use tokio::time::Instant;

use crate::{repeated::Repeated, secret};

/// The value of the `Authorization` header, and the file that may have a newer one.
#[derive(Clone, Debug)]
pub struct Authorization {
    /// The whole header value, marked sensitive.
    pub value: HeaderValue,
    /// The file that the value was read from.
    pub file: Option<PathBuf>,
}

impl Authorization {
    /// Text that is often pasted along with the value and is not part of it.
    pub const PREFIXES: &[&str] = &["Authorization:"];

    /// Reads the header value in a file, without white space at its end.
    ///
    /// # Errors
    /// When the file cannot be read, is empty, or has something that no header can carry.
    pub fn read(file: PathBuf) -> io::Result<Self> {
        let (text, _) = secret::repaired(&secret::read(&file)?, Self::PREFIXES);
        let mut value = HeaderValue::from_str(&text).map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "it must hold the header's value on one line, in ASCII characters",
            )
        })?;
        value.set_sensitive(true);
        Ok(Self { value, file: Some(file) })
    }
}

/// The headers of every attempt, with a credential that is read again once Variance does not accept it.
#[derive(Debug)]
pub(super) struct Credential {
    file: Option<PathBuf>,
    current: Mutex<Current>,
    unreadable: Repeated,
}

#[derive(Debug)]
struct Current {
    headers: HeaderMap,
    reading: Reading,
    is_in_doubt: bool,
}

/// The number of the reading of the file whose credential an attempt has. Its result says nothing about a later reading, so of
/// many attempts that fail together only one reads the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading(u64);

impl Credential {
    /// Creates the headers of attempts at this `host`.
    pub(super) fn new(Authorization { value, file }: Authorization, host: HeaderValue) -> Self {
        // All that a request has, so that the client adds nothing: each attempt gets a copy, which could not take one more
        // without growing. The length is set with the body. The capacity is that of the index, which needs more room.
        let mut headers = HeaderMap::with_capacity(12);
        headers.extend([
            (HOST, host),
            (AUTHORIZATION, value),
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (ACCEPT, HeaderValue::from_static("*/*")),
            (USER_AGENT, HeaderValue::from_static(super::USER_AGENT)),
            (CONTENT_LENGTH, HeaderValue::from(0)),
        ]);
        let current = Current { headers, reading: Reading(0), is_in_doubt: false };
        Self { file, current: Mutex::new(current), unreadable: Repeated::default() }
    }

    /// Returns the headers of an attempt that begins now.
    pub(super) fn headers(&self) -> (HeaderMap, Reading) {
        let mut current = self.current.lock().expect("no panic while it is held");
        if current.is_in_doubt {
            current.is_in_doubt = false;
            current.reading.0 += 1;
            self.read_again(&mut current.headers);
        }
        (current.headers.clone(), current.reading)
    }

    /// Notes that Variance did not accept the credential of this reading.
    pub(super) fn doubt(&self, reading: Reading) {
        let mut current = self.current.lock().expect("no panic while it is held");
        current.is_in_doubt |= current.reading == reading;
    }

    fn read_again(&self, headers: &mut HeaderMap) {
        let Some(file) = &self.file else { return };
        match Authorization::read(file.clone()) {
            Ok(Authorization { value, .. }) => {
                if headers.insert(AUTHORIZATION, value.clone()).is_none_or(|old| old != value) {
                    tracing::info!("Variance's credential was read again: it has changed");
                }
            }
            Err(error) => {
                if let Some(times) = self.unreadable.note(Instant::now()) {
                    let error = format!("{}: {error}", file.display());
                    tracing::warn!(times, error, "Variance's credential could not be read again");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_attempts_that_fail_together_one_reads_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("authorization");
        let write = |text: &str| std::fs::write(&file, text).unwrap();
        write("first");
        let credential = Credential::new(Authorization::read(file.clone()).unwrap(), HeaderValue::from_static("host"));
        let value = || credential.headers().0[AUTHORIZATION].to_str().unwrap().to_owned();
        let together: Vec<_> = (0..64).map(|_| credential.headers().1).collect();
        write("second");
        assert_eq!(value(), "first", "nothing was wrong with it");
        together[..32].iter().for_each(|reading| credential.doubt(*reading));
        assert_eq!(value(), "second");
        write("third");
        together[32..].iter().for_each(|reading| credential.doubt(*reading));
        assert_eq!(value(), "second", "what came of the first says nothing of the second");
        credential.doubt(credential.headers().1);
        assert_eq!(value(), "third");
    }

    #[test]
    fn a_file_that_cannot_be_read_leaves_the_credential_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("authorization");
        std::fs::write(&file, "first \n").unwrap();
        let credential = Credential::new(Authorization::read(file.clone()).unwrap(), HeaderValue::from_static("host"));
        for content in [&b""[..], b" \n", b"a\nb", b"\xff"] {
            std::fs::write(&file, content).unwrap();
            credential.doubt(credential.headers().1);
            assert_eq!(credential.headers().0[AUTHORIZATION], "first", "{content:?}");
        }
        std::fs::write(&file, "second").unwrap();
        credential.doubt(credential.headers().1);
        assert_eq!(credential.headers().0[AUTHORIZATION], "second");
    }
}

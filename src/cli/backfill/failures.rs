//! What Variance will not get: its reason for people, its original for the next try.

use std::{
    fmt::Display,
    fs::File,
    io::{self, Write},
    path::Path,
};

use anyhow::Context as _;

use super::progress::Progress;
use crate::cli::input::Original;

/// Where failures go.
#[derive(Debug)]
pub(super) struct Failures {
    file: Option<File>,
    progress: Progress,
    /// More of the last line may come.
    is_open: bool,
    /// Lines that wait for that one to end.
    waiting: Vec<u8>,
}

impl Failures {
    /// Appends to the file, if there is to be one: what stands in it already is not lost.
    pub(super) fn open(path: Option<&Path>, progress: Progress) -> anyhow::Result<Self> {
        let file = path.map(|path| {
            let file = File::options().append(true).create(true).open(path);
            file.with_context(|| format!("--failed {} cannot be written", path.display()))
        });
        Ok(Self { file: file.transpose()?, progress, is_open: false, waiting: Vec::new() })
    }

    /// Notes what is invalid, and keeps its line open.
    pub(super) fn invalid(
        &mut self,
        place: &dyn Display,
        reason: &dyn Display,
        original: Original<'_>,
    ) -> io::Result<()> {
        self.progress.say(&format!("{place}: invalid: {reason}"));
        if self.file.is_some() {
            let mut line = Vec::with_capacity(original.len());
            original.write(&mut line)?;
            self.append(&line)?;
            self.is_open = true;
        }
        Ok(())
    }

    /// Adds to the line that is open.
    pub(super) fn rest(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.append(&bytes.iter().map(|&byte| if byte == b'\n' { b' ' } else { byte }).collect::<Vec<_>>())
    }

    /// Notes what has failed after it was read.
    pub(super) fn failed(&mut self, place: &str, reason: &dyn Display, original: &[u8]) -> io::Result<()> {
        self.progress.say(&format!("{place}: {reason}"));
        if self.file.is_some() {
            self.waiting.extend_from_slice(original);
            self.waiting.push(b'\n');
        }
        if self.is_open { Ok(()) } else { self.write_waiting() }
    }

    /// Ends the line that is open.
    pub(super) fn close(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.is_open) {
            self.append(b"\n")?;
            self.write_waiting()?;
        }
        Ok(())
    }

    fn write_waiting(&mut self) -> io::Result<()> {
        let lines = std::mem::take(&mut self.waiting);
        self.append(&lines)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = self.file.as_mut().map_or(Ok(()), |file| file.write_all(bytes));
        written
            .map_err(|error| io::Error::new(error.kind(), format!("the file of --failed cannot be written: {error}")))
    }
}

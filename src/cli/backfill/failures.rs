//! What Variance will not get: its reason for people, its original for the next try.

use std::{fmt::Display, fs::File, io::Write, path::Path};

use anyhow::Context as _;

use super::{progress::Progress, reader::Work};

/// Where failures go.
#[derive(Debug)]
pub(super) struct Failures {
    file: Option<File>,
    progress: Progress,
}

impl Failures {
    /// Appends to the file, if there is to be one: what stands in it already is not lost.
    pub(super) fn open(path: Option<&Path>, progress: Progress) -> anyhow::Result<Self> {
        let file = path.map(|path| {
            let file = File::options().append(true).create(true).open(path);
            file.with_context(|| format!("--failed {} cannot be written", path.display()))
        });
        Ok(Self { file: file.transpose()?, progress })
    }

    /// Notes what has failed, and why.
    pub(super) fn add(&mut self, work: Work, reason: &dyn Display) -> anyhow::Result<()> {
        let Work { place, original: mut line, .. } = work;
        self.progress.say(&format!("{place}: {reason}"));
        line.push(b'\n');
        let written = self.file.as_mut().map_or(Ok(()), |file| file.write_all(&line));
        written.context("the file of --failed cannot be written")
    }
}

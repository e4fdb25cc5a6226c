//! Events that Variance will not get: the reason for people, the original for the next try.

use std::{fmt::Display, fs::File, io::Write, path::Path};

use anyhow::Context as _;

use super::{progress::Progress, reader::Work};

/// The place where failures go.
#[derive(Debug)]
pub(super) struct Failures {
    file: Option<File>,
    progress: Progress,
}

impl Failures {
    /// Opens the file, if one is wanted, to append to it, so that its earlier contents are not lost.
    pub(super) fn open(path: Option<&Path>, progress: Progress) -> anyhow::Result<Self> {
        let file = path.map(|path| {
            let file = File::options().append(true).create(true).open(path);
            file.with_context(|| format!("--failed {} cannot be written", path.display()))
        });
        Ok(Self { file: file.transpose()?, progress })
    }

    /// Records an event that has failed, and the reason.
    pub(super) fn add(&mut self, work: Work, reason: &dyn Display) -> anyhow::Result<()> {
        let Work { place, original: mut line, .. } = work;
        self.progress.say(&format!("{place}: {reason}"));
        line.push(b'\n');
        let written = self.file.as_mut().map_or(Ok(()), |file| file.write_all(&line));
        written.context("the file that --failed names cannot be written")
    }
}

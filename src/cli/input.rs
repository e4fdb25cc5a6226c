//! What `preview` and `backfill` read: files and standard input, cut into events with the service's own decoder.
//!
//! A problem costs as little as it can: a line that is no JSON costs that line, a file that cannot be read that file. Each
//! is told with its place.

use std::{
    fmt,
    fs::File,
    io::{self, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use self::{
    unpack::unpack,
    values::{At, Piece, Values, Why},
};
use crate::{
    json::Raw,
    posthog::{self, Body, BodyError, Envelope, Event},
};

mod export;
mod skip;
mod unpack;
mod values;

/// A file, or standard input.
#[derive(Clone, Debug)]
pub(super) struct Source {
    path: Option<PathBuf>,
    name: String,
}

/// How far reading has come.
#[derive(Clone, Debug, Default)]
pub(super) struct Position {
    bytes: Arc<AtomicU64>,
}

/// Where an event stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    source: &'a str,
    at: At,
}

/// What is found in the sources.
#[derive(Debug)]
pub(super) enum Item<'a> {
    /// An event.
    Event(Place<'a>, &'a Event<'a>, Original<'a>),
    /// What should have been one.
    Invalid(Place<'a>, Reason, Original<'a>),
    /// More of the original of what was invalid last.
    Rest(&'a [u8]),
    /// A source that could not be read, or not to its end, and why.
    Unreadable(String),
    /// Something that is no event, and should not be.
    Note(String),
}

/// Why something is no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Reason {
    /// It is not JSON, or too large.
    #[error(transparent)]
    Unusable(Why),
    /// It is JSON, and no body.
    #[error(transparent)]
    NoBody(BodyError),
    /// It is an element of a body, and no event.
    #[error(transparent)]
    NoEvent(posthog::Invalid),
}

/// What stands in the source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Original<'a> {
    bytes: &'a [u8],
    sent_at: Option<Raw<'a>>,
}

impl Source {
    /// The sources of these arguments; `-` is standard input.
    pub(super) fn all(paths: &[PathBuf]) -> Vec<Self> {
        paths.iter().map(|path| Self::new(path)).collect()
    }

    fn new(path: &Path) -> Self {
        match path == Path::new("-") {
            true => Self { path: None, name: "standard input".to_owned() },
            false => Self { path: Some(path.to_owned()), name: path.display().to_string() },
        }
    }

    /// Whether reading it waits for somebody to type.
    pub(super) fn is_terminal(&self) -> bool {
        self.path.is_none() && io::stdin().is_terminal()
    }

    /// Its size in bytes, if that is known beforehand.
    ///
    /// # Errors
    /// What is wrong with a file that cannot be read.
    pub(super) fn len(&self) -> Result<Option<u64>, String> {
        let Some(path) = &self.path else { return Ok(None) };
        match path.metadata() {
            Ok(metadata) if metadata.is_dir() => Err(format!("{}: it is a directory; name the files in it", self.name)),
            Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
            Err(error) => Err(format!("{}: {error}", self.name)),
        }
    }

    /// Hands everything in it to `take`, but for the next `skipped` of the events and of what should have been one.
    pub(super) fn read(
        &self,
        position: &Position,
        skipped: &mut u64,
        take: &mut dyn FnMut(Item<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let stream: io::Result<Box<dyn Read + Send>> = match &self.path {
            None => Ok(Box::new(io::stdin())),
            Some(path) => File::open(path).map(|file| Box::new(file) as Box<dyn Read + Send>),
        };
        match stream.and_then(|stream| unpack(stream, &self.name, Arc::clone(&position.bytes))) {
            Ok(text) => Reading { source: &self.name, skipped, take, is_passed: false }.all(Values::new(text)),
            Err(error) => take(Item::Unreadable(format!("{}: {error}", self.name))),
        }
    }
}

impl Position {
    /// The bytes that have been read.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// One source on its way.
struct Reading<'r> {
    source: &'r str,
    skipped: &'r mut u64,
    take: &'r mut dyn FnMut(Item<'_>) -> anyhow::Result<()>,
    /// The piece whose rest may follow is passed over.
    is_passed: bool,
}

impl<'r> Reading<'r> {
    fn all(mut self, mut values: Values<impl Read>) -> anyhow::Result<()> {
        loop {
            let line = values.line();
            let piece = match values.next() {
                Ok(Some(piece)) => piece,
                Ok(None) => return Ok(()),
                Err(error) => {
                    return (self.take)(Item::Unreadable(format!(
                        "{}:{line}: reading ends here: {error}",
                        self.source
                    )));
                }
            };
            match piece {
                Piece::Value(at, text) => self.value(at, text)?,
                Piece::Bad(at, _, why @ Why::Unclosed) => {
                    (self.take)(Item::Unreadable(format!("{}:{}: {why}", self.source, at.line)))?;
                }
                Piece::Bad(at, bytes, why) => {
                    self.is_passed = self.is_skipped();
                    if !self.is_passed {
                        let place = self.place(at);
                        (self.take)(Item::Invalid(place, Reason::Unusable(why), Original::new(bytes)))?;
                    }
                }
                Piece::Rest(_) if self.is_passed => {}
                Piece::Rest(bytes) => (self.take)(Item::Rest(bytes))?,
            }
        }
    }

    fn value(&mut self, at: At, text: &str) -> anyhow::Result<()> {
        if at.index.is_some() {
            let element = Raw::parse(text).expect("it has been checked");
            return self.element(at, element, &Envelope::default());
        }
        let body = match Body::parse(text, |element| element.raw) {
            Ok(body) => body,
            Err(_) if self.is_skipped() => return Ok(()),
            Err(error) => {
                let place = self.place(at);
                return (self.take)(Item::Invalid(place, Reason::NoBody(error), Original::new(text.as_bytes())));
            }
        };
        let is_batch = body.elements.first().is_none_or(|first| first.as_str().len() < text.trim_ascii().len());
        for (index, element) in body.elements.iter().enumerate() {
            let index = is_batch.then_some(index as u64);
            self.element(At { index, ..at }, *element, &body.envelope)?;
        }
        Ok(())
    }

    fn element(&mut self, at: At, element: Raw<'_>, envelope: &Envelope<'_>) -> anyhow::Result<()> {
        if self.is_skipped() {
            return Ok(());
        }
        let original = Original { bytes: element.as_str().as_bytes(), sent_at: envelope.sent_at };
        let rewritten = export::as_sent(element);
        let sent = rewritten.as_ref().map_or(element, |text| Raw::parse(text).expect("an object in place of a string"));
        let place = self.place(at);
        match Event::decode(sent, envelope) {
            Ok(event) => (self.take)(Item::Event(place, &event, original)),
            Err(posthog::Invalid::NoName) if is_manifest(element) => {
                (self.take)(Item::Note(format!("{place}: a list of exported files, not an event")))
            }
            Err(invalid) => (self.take)(Item::Invalid(place, Reason::NoEvent(invalid), original)),
        }
    }

    fn place(&self, at: At) -> Place<'r> {
        Place { source: self.source, at }
    }

    fn is_skipped(&mut self) -> bool {
        let is_skipped = *self.skipped > 0;
        *self.skipped = self.skipped.saturating_sub(1);
        is_skipped
    }
}

/// Whether this is the `…_manifest.json` that PostHog leaves beside exported files.
fn is_manifest(element: Raw<'_>) -> bool {
    posthog::member(element, "files").is_some_and(|files| files.as_str().starts_with('['))
}

impl<'a> Original<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, sent_at: None }
    }

    /// Its bytes, and what is added to them.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() + self.sent_at.map_or(0, |sent_at| sent_at.as_str().len() + 32)
    }

    /// Writes it so that it means the same by itself, without the newline at its end. Newlines within it are white space
    /// of JSON, and become spaces.
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        if let Some(sent_at) = self.sent_at {
            write!(out, "{{\"sent_at\":{},\"batch\":[", sent_at.as_str())?;
        }
        let mut lines = self.bytes.split(|&byte| byte == b'\n');
        out.write_all(lines.next().unwrap_or_default())?;
        for line in lines {
            out.write_all(b" ")?;
            out.write_all(line)?;
        }
        if self.sent_at.is_some() {
            out.write_all(b"]}")?;
        }
        Ok(())
    }
}

impl Reason {
    /// The same for all that is wrong in the same way.
    pub(super) fn kind(&self) -> String {
        match self {
            Self::Unusable(Why::Syntax(_) | Why::NotUtf8(_)) | Self::NoBody(BodyError::NotJson(_)) => {
                "not JSON".to_owned()
            }
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source, self.at.line)?;
        self.at.index.map_or(Ok(()), |index| write!(f, "[{index}]"))
    }
}

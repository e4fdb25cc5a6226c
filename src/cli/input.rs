//! The input of `preview` and `backfill`: JSON Lines from files and standard input, each line through the service's own
//! decoder.
//!
//! A first line that does not close begins a document over several lines, which is read whole. A problem costs as
//! little as possible: a line that is not JSON costs that line, a file that cannot be read costs that file. Each
//! problem is reported with its place.

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, IsTerminal, Read},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
};

use self::unpack::{BYTE_ORDER_MARK, unpack};
use crate::{
    json::{Raw, Scanner},
    posthog::{self, Body, BodyError, Event},
};

mod unpack;

/// The most bytes of a line, and of a document over several lines: the default limit of the service.
const MAX_TEXT_BYTES: usize = 64 << 20;

/// The memory that is kept from one line to the next.
const KEPT: usize = 1 << 20;

/// A file, or standard input.
#[derive(Clone, Debug)]
pub(super) struct Source {
    path: Option<PathBuf>,
    pub(super) name: String,
}

/// The number of bytes that have been read.
pub(super) type Position = Arc<AtomicU64>;

/// The place of an event.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    source: &'a str,
    line: u64,
    /// The position in its array or batch, if it is an element of one.
    index: Option<usize>,
}

/// An item of a source.
#[derive(Debug)]
pub(super) enum Item<'a> {
    /// An event.
    Event(Place<'a>, &'a Event<'a>, Original<'a>),
    /// Something that should have been an event.
    Invalid(Place<'a>, Reason, Original<'a>),
    /// A source that cannot be read at all, or not to its end, and the reason.
    Unreadable(String),
    /// Something that is not an event, and is not meant to be one.
    Note(String),
}

/// The reason why something is not an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reason {
    /// The kind of problem, the same for all that is wrong in the same way.
    pub(super) kind: String,
    /// Details of this case, or nothing.
    pub(super) detail: String,
}

/// The text in the source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Original<'a> {
    bytes: &'a [u8],
    sent_at: Option<Raw<'a>>,
}

impl Source {
    /// Returns the source that an argument names; `-` is standard input.
    pub(super) fn new(path: &PathBuf) -> Self {
        match path == Path::new("-") {
            true => Self { path: None, name: "standard input".to_owned() },
            false => Self { path: Some(path.to_owned()), name: path.display().to_string() },
        }
    }

    /// True if reading waits for somebody to type.
    pub(super) fn is_terminal(&self) -> bool {
        self.path.is_none() && io::stdin().is_terminal()
    }

    /// The size in bytes, if it is known beforehand.
    pub(super) fn len(&self) -> Option<u64> {
        let metadata = self.path.as_ref()?.metadata().ok()?;
        metadata.is_file().then_some(metadata.len())
    }

    /// Passes everything in the source to `take`.
    pub(super) fn read(
        &self,
        position: &Position,
        take: &mut dyn FnMut(Item<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let stream = match &self.path {
            Some(path) if path.is_dir() => Err(io::Error::other("it is a directory: name the files in it")),
            _ => self.open(),
        };
        match stream.and_then(|stream| unpack(stream, &self.name, Arc::clone(position))) {
            Ok(text) => Reading { source: &self.name, take }.all(text),
            Err(error) => take(Item::Unreadable(format!("{}: {error}", self.name))),
        }
    }

    /// Opens the source as it is, compressed or not.
    pub(super) fn open(&self) -> io::Result<Box<dyn Read>> {
        Ok(match &self.path {
            None => Box::new(io::stdin()),
            Some(path) => Box::new(File::open(path)?),
        })
    }
}

/// A source that is being read.
struct Reading<'r> {
    source: &'r str,
    take: &'r mut dyn FnMut(Item<'_>) -> anyhow::Result<()>,
}

impl<'r> Reading<'r> {
    fn all(mut self, mut stream: impl BufRead) -> anyhow::Result<()> {
        let (mut line, mut text, mut is_first) = (1, Vec::new(), true);
        loop {
            text.clear();
            text.shrink_to(KEPT);
            let mut read = stream.by_ref().take(MAX_TEXT_BYTES as u64 + 1).read_until(b'\n', &mut text);
            let mut is_document = false;
            if is_first && !is_blank(&text) && read.is_ok() {
                is_first = false;
                is_document = is_open(&text);
                if is_document {
                    let room = (MAX_TEXT_BYTES + 1).saturating_sub(text.len());
                    read = stream.by_ref().take(room as u64).read_to_end(&mut text);
                }
            }
            let place = Place { source: self.source, line, index: None };
            if text.len() > MAX_TEXT_BYTES {
                self.too_large(place)?;
                if !is_document && !text.ends_with(b"\n") {
                    read = stream.skip_until(b'\n');
                }
            } else if !is_blank(&text) {
                self.text(place, &text, is_document)?;
            }
            match read {
                Ok(_) if is_document => return Ok(()),
                Ok(0) => return Ok(()),
                Ok(_) => line += 1,
                Err(error) => {
                    return (self.take)(Item::Unreadable(format!("{place}: it cannot be read from here on: {error}")));
                }
            }
        }
    }

    /// Passes on the events of a line or document.
    fn text(&mut self, place: Place<'r>, bytes: &[u8], is_document: bool) -> anyhow::Result<()> {
        let bytes = without_mark(bytes).trim_ascii();
        let body = match std::str::from_utf8(bytes) {
            Err(error) => Err(Reason::not_json(&format_args!("not UTF-8 at byte {}", error.valid_up_to()))),
            Ok(text) => match Body::split(text) {
                Ok(body) => Ok(body),
                Err(BodyError::TooManyElements) => return self.too_large(place),
                Err(BodyError::NotJson(error)) => Err(Reason::not_json(&error)),
                Err(error @ BodyError::NoContainer) => Err(Reason::new(&error)),
            },
        };
        match body {
            Ok(body) => {
                let is_single = body.elements.first().is_some_and(|first| first.as_str().len() == bytes.len());
                for (index, element) in body.elements.iter().enumerate() {
                    let index = (!is_single).then_some(index);
                    self.element(Place { index, ..place }, *element, body.sent_at)?;
                }
                Ok(())
            }
            Err(reason) if is_document => {
                let problem = format!(
                    "{place}: this line is only the beginning of JSON, and together with the rest of the input it is {reason}"
                );
                (self.take)(Item::Unreadable(problem))
            }
            Err(reason) => (self.take)(Item::Invalid(place, reason, Original { bytes, sent_at: None })),
        }
    }

    fn element(&mut self, place: Place<'r>, element: Raw<'_>, sent_at: Option<Raw<'_>>) -> anyhow::Result<()> {
        let original = Original { bytes: element.as_str().as_bytes(), sent_at };
        Event::decode(element, sent_at, |event| match event {
            Ok(event) => (self.take)(Item::Event(place, &event, original)),
            Err(posthog::Invalid::NoName) if is_manifest(element) => {
                (self.take)(Item::Note(format!("{place}: this is a list of exported files, not an event")))
            }
            Err(invalid) => (self.take)(Item::Invalid(place, Reason::new(&invalid), original)),
        })
    }

    fn too_large(&mut self, place: Place<'_>) -> anyhow::Result<()> {
        let most = posthog::MAX_ELEMENTS;
        (self.take)(Item::Unreadable(format!(
            "{place}: more than {most} events or {} MiB in one piece; give each event a line of its own first, with \
             `jq -c '.[]'` for an array, `jq -c '.batch[]'` for a batch",
            MAX_TEXT_BYTES >> 20
        )))
    }
}

/// Removes a byte order mark. Any line may have one, since files that begin with one may have been concatenated.
fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
}

fn is_blank(text: &[u8]) -> bool {
    without_mark(text).trim_ascii().is_empty()
}

/// True if a line is the beginning of JSON that continues after it. No line ends within a string.
fn is_open(line: &[u8]) -> bool {
    let text = std::str::from_utf8(without_mark(line));
    text.is_ok_and(|text| Scanner::new(text).value().is_err_and(|error| error.offset == text.len()))
}

/// True for the `…_manifest.json` that PostHog leaves beside exported files.
fn is_manifest(element: Raw<'_>) -> bool {
    element.member("files").is_some_and(Raw::is_array)
}

impl<'a> Original<'a> {
    /// Returns the original of a line that is not an element of anything.
    pub(super) fn line(line: &'a str) -> Self {
        Self { bytes: line.as_bytes(), sent_at: None }
    }

    /// Returns a line that means the same by itself, without a newline at its end. Newlines within are white space of
    /// JSON, and become spaces.
    pub(super) fn to_line(self) -> Vec<u8> {
        let (before, after) = match self.sent_at {
            Some(sent_at) => (format!("{{\"sent_at\":{},\"batch\":[", sent_at.as_str()), "]}"),
            None => (String::new(), ""),
        };
        let mut line = [before.as_bytes(), self.bytes, after.as_bytes()].concat();
        line.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
        line
    }
}

impl Reason {
    pub(super) fn new(kind: &dyn fmt::Display) -> Self {
        Self { kind: kind.to_string(), detail: String::new() }
    }

    fn not_json(detail: &dyn fmt::Display) -> Self {
        Self { kind: "not JSON".to_owned(), detail: detail.to_string() }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, detail } = self;
        if detail.is_empty() { write!(f, "{kind}") } else { write!(f, "{kind}: {detail}") }
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source, self.line)?;
        self.index.map_or(Ok(()), |index| write!(f, "[{index}]"))
    }
}

#[cfg(test)]
mod tests;

//! Cuts a stream into JSON values: one on each line, one over many lines, one after the other, or an array's elements,
//! each by itself, so that no file is ever in memory whole.
//!
//! What is no JSON is handed out as it stood, up to where values can be told apart again: mostly the end of its line.

use std::{
    io::{self, BufRead, BufReader, Read},
    ops::Range,
};

use super::skip::Skip;
use crate::{
    json::{Scanner, SyntaxError},
    posthog::MAX_ELEMENT_BYTES,
};

/// The most bytes of a batch: what the service takes by default.
const MAX_BATCH_BYTES: usize = 64 << 20;

/// How much is read at once.
const CHUNK: usize = 128 << 10;

/// How much is looked at in search of a value's end, at least.
const MIN_WINDOW: usize = 4 << 10;

/// How much memory is kept although it is not in use.
const KEPT: usize = 8 << 20;

/// The values of a stream.
#[derive(Debug)]
pub(super) struct Values<R> {
    reader: BufReader<R>,
    buffer: Vec<u8>,
    start: usize,
    ended: bool,
    /// Why it ended, if that was not its end. What was read before comes first.
    broken: Option<io::Error>,
    line: u64,
    /// White space since the line began, if there was nothing else.
    indent: Option<usize>,
    array: Option<Array>,
    skip: Option<Skip>,
    last_len: usize,
}

/// The array whose elements are being read.
#[derive(Debug)]
struct Array {
    at: At,
    next_index: u64,
    needs_comma: bool,
}

/// Where a value begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub(super) line: u64,
    /// In the array that it is an element of.
    pub(super) index: Option<u64>,
}

/// A piece of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// A value, which may stand in an array.
    Value(At, &'a str),
    /// No value; more of it may follow as [`Piece::Rest`].
    Bad(At, &'a [u8], Why),
    /// More of what was bad.
    Rest(&'a [u8]),
}

/// Why something is no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::cli) enum Why {
    /// It is not JSON.
    #[error("not JSON: {0}")]
    Syntax(SyntaxError),
    /// It is not text.
    #[error("not JSON: not UTF-8 at byte {0}")]
    NotUtf8(usize),
    /// It is larger than an event, or a batch, can be.
    #[error("the event is larger than {} MiB", MAX_ELEMENT_BYTES >> 20)]
    TooLarge,
    /// An array has no end; its elements have been read.
    #[error("the array that begins here is not closed")]
    Unclosed,
}

enum Found {
    Value,
    Bad(Why),
    Rest,
}

type Located = (At, Range<usize>, Found);

impl<R: Read> Values<R> {
    pub(super) fn new(reader: R) -> Self {
        let (buffer, array, skip) = (Vec::new(), None, None);
        Self {
            reader: BufReader::with_capacity(CHUNK, reader),
            buffer,
            start: 0,
            ended: false,
            broken: None,
            line: 1,
            indent: Some(0),
            array,
            skip,
            last_len: 0,
        }
    }

    /// The line that comes next.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// The next piece; nothing at the end of the stream.
    pub(super) fn next(&mut self) -> io::Result<Option<Piece<'_>>> {
        let Some((at, range, found)) = self.find_next()? else { return Ok(None) };
        let bytes = &self.buffer[range];
        Ok(Some(match found {
            Found::Value => Piece::Value(at, std::str::from_utf8(bytes).expect("it has been scanned as text")),
            Found::Bad(why) => Piece::Bad(at, bytes, why),
            Found::Rest => Piece::Rest(bytes),
        }))
    }

    fn find_next(&mut self) -> io::Result<Option<Located>> {
        if self.skip.is_some() {
            return self.rest();
        }
        loop {
            self.skip_white_space();
            let (at, start) = (self.at(), self.start);
            let Some(&byte) = self.buffer.get(start) else {
                // That an array is not closed goes without saying in what is cut short.
                let unclosed = self.array.take();
                return match self.broken.take() {
                    Some(error) => Err(error),
                    None => Ok(unclosed.map(|array| (array.at, start..start, Found::Bad(Why::Unclosed)))),
                };
            };
            match (&mut self.array, byte) {
                (None, b'[') => self.array = Some(Array { at, next_index: 0, needs_comma: false }),
                (Some(_), b']') => self.array = None,
                (Some(array), b',') => array.needs_comma = false,
                (Some(Array { needs_comma: true, at, .. }), _) => {
                    let at = *at;
                    self.array = None;
                    return Ok(Some((at, start..start, Found::Bad(Why::Unclosed))));
                }
                _ => return Ok(Some(self.value(at))),
            }
            self.consume(1);
        }
    }

    /// A value that begins here, or what is wrong with it.
    fn value(&mut self, at: At) -> Located {
        let mut window = self.first_window();
        loop {
            self.fill(window);
            let left = &self.buffer[self.start..];
            let bytes = &left[..window.min(left.len())];
            let is_all = self.ended && bytes.len() == left.len();
            let (text, broken) = match std::str::from_utf8(bytes) {
                Ok(text) => (text, false),
                Err(error) => {
                    let valid = &bytes[..error.valid_up_to()];
                    let text = std::str::from_utf8(valid).expect("valid up to there");
                    (text, is_all || error.error_len().is_some())
                }
            };
            match Scanner::new(text).value() {
                Ok(value) if is_all || value.as_str().len() < text.len() || text.ends_with(['}', ']', '"']) => {
                    let len = value.as_str().len();
                    return self.end_value(at, len);
                }
                Err(error) if broken && error.offset == text.len() => {
                    return self.bad(at, Why::NotUtf8(error.offset), error.offset);
                }
                Err(error) if is_all || !may_go_on(&text[error.offset..]) => {
                    return self.bad(at, Why::Syntax(error), error.offset);
                }
                Ok(_) | Err(_) => {}
            }
            if bytes.len() > MAX_ELEMENT_BYTES
                && (bytes.len() > MAX_BATCH_BYTES || self.array.is_some() || !opens_batch(text))
            {
                self.skip = Some(Skip::value(self.array.is_none()));
                return self.skipped(at, bytes.len(), Found::Bad(Why::TooLarge));
            }
            window = match bytes.len() * 2 {
                // Here it is decided whether there may be more.
                twice if bytes.len() <= MAX_ELEMENT_BYTES => twice.min(MAX_ELEMENT_BYTES + 1),
                twice => twice,
            };
        }
    }

    /// What is looked at first: the line, if it is not much longer than the last value.
    fn first_window(&self) -> usize {
        let left = &self.buffer[self.start..];
        let near = &left[..left.len().min(MIN_WINDOW.max(4 * self.last_len))];
        near.iter().position(|&byte| byte == b'\n').map_or(near.len(), |newline| newline + 1).max(1)
    }

    /// A value is there. Outside of an array, nothing may follow it on its line but another one.
    fn end_value(&mut self, at: At, len: usize) -> Located {
        if self.array.is_none() {
            let mut end = len;
            let next = loop {
                self.fill(end + 1);
                match self.buffer.get(self.start + end) {
                    Some(b' ' | b'\t' | b'\r') => end += 1,
                    next => break next,
                }
            };
            if !matches!(next, None | Some(b'\n' | b'{' | b'[')) {
                let error = SyntaxError { offset: end, expected: "nothing more" };
                return self.bad(at, Why::Syntax(error), end);
            }
        }
        self.last_len = len;
        (at, self.pass(len), Found::Value)
    }

    /// There is no value here: finds where the next may begin.
    fn bad(&mut self, at: At, why: Why, error_offset: usize) -> Located {
        let mut newline = None;
        while newline.is_none() && !self.ended && self.buffer.len() - self.start <= MAX_ELEMENT_BYTES {
            let seen = self.buffer.len() - self.start;
            self.fill(seen + 1);
            newline = self.newline_after(seen);
        }
        let first_line = self.newline_after(0).unwrap_or(self.buffer.len() - self.start);
        if error_offset > first_line {
            let len = self.resume_after(first_line, error_offset);
            return (at, self.pass_bad(len), Found::Bad(why));
        }
        if self.array.is_some() {
            // An element that is wrong inside, but whose end can be seen, leaves its neighbours alone.
            let element = Skip::value(false).end_in(&self.buffer[self.start..self.start + first_line]);
            return (at, self.pass_bad(element.filter(|end| *end > 0).unwrap_or(first_line)), Found::Bad(why));
        }
        if first_line == self.buffer.len() - self.start && !self.ended {
            self.skip = Some(Skip::line());
            return self.skipped(at, first_line, Found::Bad(why));
        }
        (at, self.pass(first_line), Found::Bad(why))
    }

    /// The length up to the newline before the first later line on which a value may begin: one that is indented no
    /// further than this one, or else the one after the error.
    fn resume_after(&self, first_line: usize, error_offset: usize) -> usize {
        let left = &self.buffer[self.start..];
        let indent = self.indent.unwrap_or_default();
        let mut line = first_line + 1;
        while line <= error_offset && line < left.len() {
            let white = left[line..].iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
            if white <= indent && matches!(left.get(line + white), Some(b'{' | b'[' | b']')) {
                return line - 1;
            }
            line = self.newline_after(line).map_or(left.len(), |newline| newline + 1);
        }
        let len = line.min(left.len());
        if left[..len].ends_with(b"\n") { len - 1 } else { len }
    }

    fn newline_after(&self, offset: usize) -> Option<usize> {
        let left = &self.buffer[self.start + offset..];
        left.iter().position(|&byte| byte == b'\n').map(|newline| offset + newline)
    }

    /// The first bytes of what is skipped.
    fn skipped(&mut self, at: At, len: usize, found: Found) -> Located {
        let end = self.skip.as_mut().and_then(|skip| skip.end_in(&self.buffer[self.start..self.start + len]));
        if end.is_some() {
            self.skip = None;
        }
        (at, self.pass(end.unwrap_or(len)), found)
    }

    /// More of what is skipped.
    fn rest(&mut self) -> io::Result<Option<Located>> {
        let at = self.at();
        self.fill(1);
        match self.buffer.len() - self.start {
            0 => {
                self.skip = None;
                self.find_next()
            }
            len => Ok(Some(self.skipped(at, len, Found::Rest))),
        }
    }

    fn at(&self) -> At {
        At { line: self.line, index: self.array.as_ref().map(|array| array.next_index) }
    }

    /// Moves over what is handed out.
    fn pass(&mut self, len: usize) -> Range<usize> {
        let range = self.start..self.start + len;
        let is_rest = self.skip.is_some();
        self.line += self.buffer[range.clone()].iter().filter(|&&byte| byte == b'\n').count() as u64;
        self.indent = self.buffer[range.clone()].ends_with(b"\n").then_some(0);
        if let Some(array) = self.array.as_mut().filter(|_| !is_rest) {
            array.next_index += 1;
            array.needs_comma = true;
        }
        self.start += len;
        range
    }

    /// Moves over what is wrong. Whether there was a comma at its end makes no difference.
    fn pass_bad(&mut self, len: usize) -> Range<usize> {
        let range = self.pass(len);
        if let Some(array) = &mut self.array {
            array.needs_comma = false;
        }
        range
    }

    fn consume(&mut self, len: usize) {
        self.start += len;
        self.indent = None;
    }

    fn skip_white_space(&mut self) {
        loop {
            self.fill(1);
            match self.buffer.get(self.start) {
                Some(b'\n') => {
                    self.line += 1;
                    self.indent = Some(0);
                }
                Some(b' ' | b'\t' | b'\r') => self.indent = self.indent.map(|indent| indent + 1),
                _ => return,
            }
            self.start += 1;
        }
    }

    /// Reads until there are so many bytes, or all.
    fn fill(&mut self, len: usize) {
        while self.buffer.len() - self.start < len && !self.ended {
            if self.start > 0 {
                self.buffer.drain(..self.start);
                self.start = 0;
                if self.buffer.len() < CHUNK && self.buffer.capacity() > KEPT {
                    self.buffer.shrink_to(CHUNK);
                }
            }
            let read = match self.reader.fill_buf() {
                Ok(bytes) => {
                    self.buffer.extend_from_slice(bytes);
                    bytes.len()
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.broken = Some(error);
                    0
                }
            };
            self.reader.consume(read);
            self.ended = read == 0;
        }
    }
}

/// Whether what stands where a scanner stopped may become right with more text: nothing yet, or half a literal.
fn may_go_on(rest: &str) -> bool {
    ["true", "false", "null"].iter().any(|literal| literal.starts_with(rest))
}

/// Whether a text that is cut off is that of a batch.
fn opens_batch(text: &str) -> bool {
    let mut found = false;
    let scanned = Scanner::new(text).object(|scanner, key| {
        found |= *key.unescaped() == *b"batch" && scanner.next_byte() == Some(b'[');
        scanner.value().map(drop)
    });
    found && scanned.is_err()
}

#[cfg(test)]
mod tests;

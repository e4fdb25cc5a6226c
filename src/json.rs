//! JSON as slices of the sender's bytes, which are checked but never rebuilt.
//!
//! PostHog's values must reach Variance digit for digit and escape for escape, and of a repeated key the last counts.
//! `serde_json` can keep a value's text (`RawValue`), but reads it again at every level below, and its structs reject a
//! repeated key. This module walks over the bytes once, by the grammar of RFC 8259, and cuts slices out of them where
//! the caller asks for it; strings, which are most of a body, pass eight bytes at a time. Undoing escapes is left to
//! `serde_json`. A property test checks that both accept exactly the same texts.

use std::borrow::Cow;

pub use self::scanner::Scanner;

mod scanner;

/// One JSON value as it stands in the text, without white space around it.
///
/// Only a [`Scanner`] makes one, so the text has been checked. The default is `null`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raw<'a>(&'a str);

impl Default for Raw<'_> {
    fn default() -> Self {
        Self("null")
    }
}

/// An object as it stands in the text, or inside a string of the text. Only [`Raw::object_text`] makes one, so it has
/// been checked.
#[derive(Clone, Debug)]
pub struct ObjectText<'a>(Cow<'a, str>);

/// The inside of a JSON string as it stands in the text: without its quotes, escapes still in place.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    inside: &'a str,
    escaped: bool,
}

/// A departure of a text from JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} at byte {offset}")]
pub struct SyntaxError {
    /// Bytes from the start of the text.
    pub offset: usize,
    /// The pieces that the grammar allows there.
    pub expected: &'static str,
}

impl<'a> Raw<'a> {
    /// Checks that `text` is one JSON value with nothing but white space around it.
    ///
    /// # Errors
    /// When the text departs from RFC 8259.
    pub fn parse(text: &'a str) -> Result<Self, SyntaxError> {
        let mut scanner = Scanner::new(text);
        let value = scanner.value()?;
        scanner.end()?;
        Ok(value)
    }

    /// The value's own text.
    pub fn as_str(self) -> &'a str {
        self.0
    }

    /// Returns the value, or `None` if it is `null`.
    #[inline]
    pub fn non_null(self) -> Option<Self> {
        (self.0 != "null").then_some(self)
    }

    /// Returns the value, or `None` if JavaScript takes it for false: `null`, `false`, `""` and every way to write
    /// zero.
    pub fn truthy(self) -> Option<Self> {
        let falsy = match self.0.as_bytes()[0] {
            b'"' => self.0 == "\"\"",
            b'f' | b'n' => true,
            b'-' | b'0'..=b'9' => self.0.parse::<f64>() == Ok(0.0),
            _ => false,
        };
        (!falsy).then_some(self)
    }

    /// Returns the inside of a string, or `None` if the value is of another type.
    pub fn as_text(self) -> Option<Text<'a>> {
        let inside = self.0.strip_prefix('"')?.strip_suffix('"')?;
        Some(Text { inside, escaped: inside.contains('\\') })
    }

    /// Returns the text of a string, each lone surrogate replaced by U+FFFD, or the JSON of any other value.
    pub fn to_plain(self) -> Cow<'a, str> {
        self.as_text().map_or(Cow::Borrowed(self.0), Text::to_scalar_string)
    }

    /// True if the value is an object.
    pub fn is_object(self) -> bool {
        self.0.starts_with('{')
    }

    /// True if the value is an array.
    pub fn is_array(self) -> bool {
        self.0.starts_with('[')
    }

    /// Returns the object that the value is, or that it holds as JSON text in a string.
    pub fn object_text(self) -> Option<ObjectText<'a>> {
        if self.is_object() {
            return Some(ObjectText(Cow::Borrowed(self.0)));
        }
        let inside = self.as_text()?;
        // Only strings that begin like this can hold an object, and the others are not worth a copy.
        if !inside.as_written().starts_with(['{', '\\', ' ']) {
            return None;
        }
        let text = inside.to_scalar_string();
        let is_object = Raw::parse(&text).is_ok_and(Raw::is_object);
        is_object.then_some(ObjectText(text))
    }

    /// Returns the members of an object in their order, repeated keys included, and none if the value is of another
    /// type.
    pub fn members(self) -> Vec<(Text<'a>, Self)> {
        if self.is_object() { members(self.0) } else { Vec::new() }
    }

    /// Returns the last member of that name, unless it is null or the value is of another type than an object.
    pub fn member(self, name: &str) -> Option<Self> {
        last(&self.members(), name)
    }
}

impl ObjectText<'_> {
    /// The object's text, perhaps with white space around it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the members in their order, repeated keys included.
    pub fn members(&self) -> Vec<(Text<'_>, Raw<'_>)> {
        members(&self.0)
    }

    /// Returns the last member of that name, unless it is null.
    pub fn member(&self, name: &str) -> Option<Raw<'_>> {
        last(&self.members(), name)
    }
}

/// Returns the last member of that name, unless it is null.
fn last<'a>(members: &[(Text<'_>, Raw<'a>)], name: &str) -> Option<Raw<'a>> {
    members.iter().rfind(|(key, _)| *key.unescaped() == *name.as_bytes())?.1.non_null()
}

fn members(object: &str) -> Vec<(Text<'_>, Raw<'_>)> {
    let mut members = Vec::new();
    let scanned = Scanner::new(object).object(|scanner, key| {
        members.push((key, scanner.value()?));
        Ok::<_, SyntaxError>(())
    });
    scanned.expect("it has been checked");
    members
}

impl<'a> Text<'a> {
    /// A text that needs no escapes.
    pub(crate) fn plain(inside: &'a str) -> Self {
        Self { inside, escaped: false }
    }

    /// The text as it stands between the quotes.
    pub fn as_written(self) -> &'a str {
        self.inside
    }

    /// Returns the text with its escapes undone, in bytes: UTF-8, but for lone surrogates, which take the three bytes
    /// of WTF-8.
    #[inline]
    pub fn unescaped(self) -> Cow<'a, [u8]> {
        match self.escaped {
            false => Cow::Borrowed(self.inside.as_bytes()),
            true => Cow::Owned(self.unescape()),
        }
    }

    #[cold]
    fn unescape(self) -> Vec<u8> {
        let quoted = format!("\"{}\"", self.inside);
        let bytes: serde_bytes::ByteBuf = serde_json::from_str(&quoted).expect("the scanner has checked every escape");
        bytes.into_vec()
    }

    /// Returns the text with its escapes undone as a string, each lone surrogate replaced by U+FFFD as JavaScript does
    /// where it needs a well-formed string (WHATWG Infra, "convert into a scalar value string").
    pub fn to_scalar_string(self) -> Cow<'a, str> {
        match self.unescaped() {
            Cow::Borrowed(_) => Cow::Borrowed(self.inside),
            Cow::Owned(bytes) => Cow::Owned(bytes.utf8_chunks().fold(String::new(), |mut scalar, chunk| {
                scalar.push_str(chunk.valid());
                // In WTF-8 only a surrogate is not UTF-8: 0xED and two more bytes, each of which is a chunk by itself.
                scalar.extend((chunk.invalid() == [0xed]).then_some(char::REPLACEMENT_CHARACTER));
                scalar
            })),
        }
    }

    /// True for a name that PostHog made up itself, which starts with `$`.
    #[inline]
    pub fn is_internal(self) -> bool {
        match self.inside.as_bytes().first() {
            Some(b'\\') => self.inside.starts_with(r"\u0024"),
            first => first == Some(&b'$'),
        }
    }

    /// True if the text has escapes.
    pub fn is_escaped(self) -> bool {
        self.escaped
    }
}

#[cfg(test)]
mod tests;

//! The search for the `api_key` of a batch, before anything else is done for its sender.

use crate::json::{Raw, Text};

/// The longest key or value of the envelope that is considered: that of a token, with room to spare.
const MAX_TEXT: usize = 4 << 10;

/// A walk over a body, which may come in pieces, that finds the `api_key` of its envelope and keeps nothing else.
///
/// It takes a few steps for each byte, whatever the byte is, and at most a few KiB of memory. It tells strings from
/// brackets and no more: the key that it finds proves who sent the body, not that the body is JSON.
#[derive(Debug, Default)]
pub struct ApiKeyWalk {
    /// Brackets that are open.
    depth: usize,
    in_string: bool,
    /// The next byte belongs to an escape.
    is_escaped: bool,
    /// The current or last string of the outermost object, with its quotes.
    text: Vec<u8>,
    /// The outermost object's last key.
    key: Member,
    /// The same key, while the walk is at its value.
    member: Option<Member>,
    /// Whether the object has an array called `batch`: without one it is no envelope, and has no `api_key`.
    has_batch: bool,
    api_key: Option<Vec<u8>>,
    end: End,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Member {
    ApiKey,
    Batch,
    #[default]
    Other,
}

/// The state of the outermost object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    Closed,
    /// The body is not one object.
    NoObject,
}

impl ApiKeyWalk {
    /// Moves over the next piece of the body.
    pub fn walk(&mut self, mut piece: &[u8]) {
        while let [byte, rest @ ..] = piece {
            piece = match self.in_string {
                true => self.string(piece),
                false => {
                    self.structure(*byte);
                    rest
                }
            };
        }
    }

    /// Returns the value of the last `api_key` as it stands in the body, once the whole body has been walked over.
    pub fn api_key(&self) -> Option<Raw<'_>> {
        let api_key = self.api_key.as_deref().filter(|_| self.has_batch && self.end == End::Closed)?;
        Raw::parse(str::from_utf8(api_key).ok()?).ok()
    }

    /// Moves over the inside of a string up to its end or to an escape, and returns the rest of the piece.
    fn string<'p>(&mut self, piece: &'p [u8]) -> &'p [u8] {
        let len = match std::mem::take(&mut self.is_escaped) {
            true => 1,
            false => {
                let at = piece.iter().position(|byte| matches!(byte, b'"' | b'\\'));
                self.is_escaped = at.is_some_and(|at| piece[at] == b'\\');
                self.in_string = at.is_none_or(|at| piece[at] == b'\\');
                at.map_or(piece.len(), |at| at + 1)
            }
        };
        let (inside, rest) = piece.split_at(len);
        if self.depth == 1 {
            let space = MAX_TEXT - self.text.len();
            self.text.extend_from_slice(&inside[..len.min(space)]);
            if !self.in_string {
                self.member_string();
            }
        }
        rest
    }

    /// Judges a string of the outermost object: a key, or the value of one.
    fn member_string(&mut self) {
        match self.member {
            Some(Member::ApiKey) => self.api_key = Some(std::mem::take(&mut self.text)),
            Some(Member::Batch | Member::Other) => {}
            None => {
                let key = str::from_utf8(&self.text).ok().and_then(|key| Raw::parse(key).ok()?.as_text());
                self.key = match key.map(Text::unescaped).as_deref() {
                    Some(b"api_key") => Member::ApiKey,
                    Some(b"batch") => Member::Batch,
                    _ => Member::Other,
                };
            }
        }
    }

    /// Moves over a byte outside of strings.
    fn structure(&mut self, byte: u8) {
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' => {}
            b'}' | b']' if self.depth > 0 => {
                self.depth -= 1;
                if self.depth == 0 {
                    self.end = End::Closed;
                }
            }
            _ if self.depth > 1 => match byte {
                b'{' | b'[' => self.depth += 1,
                b'"' => self.in_string = true,
                _ => {}
            },
            b'{' if self.depth == 0 && self.end == End::Open => self.depth = 1,
            // A byte order mark.
            0xef | 0xbb | 0xbf if self.depth == 0 && self.end == End::Open => {}
            _ if self.depth == 0 => self.end = End::NoObject,
            b':' => self.member = Some(self.key),
            b',' => self.member = None,
            _ => {
                match self.member {
                    Some(Member::ApiKey) => self.api_key = None,
                    Some(Member::Batch) => self.has_batch = byte == b'[',
                    Some(Member::Other) | None => {}
                }
                match byte {
                    b'{' | b'[' => self.depth += 1,
                    b'"' => {
                        self.in_string = true;
                        self.text.clear();
                        self.text.push(b'"');
                    }
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(body: &[u8], piece: usize) -> Option<String> {
        let mut walk = ApiKeyWalk::default();
        body.chunks(piece).for_each(|piece| walk.walk(piece));
        walk.api_key().map(|api_key| api_key.as_str().to_owned())
    }

    #[test]
    fn finds_the_last_key_of_an_envelope_and_of_nothing_else() {
        let long = format!(r#"{{"batch":[],"api_key":"{}"}}"#, "k".repeat(MAX_TEXT));
        let long_key = format!(r#"{{"batch":[],"api_{}key":"k"}}"#, "x".repeat(MAX_TEXT));
        for (body, api_key) in [
            (r#"{"api_key":"k","batch":[]}"#, Some(r#""k""#)),
            ("\u{feff} { \"batch\" : [ { \"api_key\" : 1 } , \"}\\\"]\" ] , \"api_key\" : \"k\" } \n", Some(r#""k""#)),
            (r#"{"batch":[],"\u0061pi_key":"\u006b\\\"}"}"#, Some(r#""\u006b\\\"}""#)),
            (r#"{"batch":[],"api_key":"k","api_key":"l"}"#, Some(r#""l""#)),
            (r#"{"batch":7,"batch":[],"api_key":"k"}"#, Some(r#""k""#)),
            (r#"{"batch":[],"api_key":"k","api_key":null}"#, None),
            (r#"{"batch":[],"api_key":"k","api_key":["k"]}"#, None),
            (r#"{"batch":[],"api_key":{"api_key":"k"}}"#, None),
            (r#"{"batch":[],"batch":0,"api_key":"k"}"#, None),
            (r#"{"batch":{},"api_key":"k"}"#, None),
            (r#"{"event":"e","api_key":"k"}"#, None),
            (r#"{"x":"batch","x":[],"x":"api_key","x":"k"}"#, None),
            (r#"{"batch":[{"api_key":"k"}],"x":{"api_key":"k"}}"#, None),
            (r#"[{"batch":[],"api_key":"k"}]"#, None),
            (r#""{\"batch\":[],\"api_key\":\"k\"}""#, None),
            (r#"{"api_key":"k","batch":[]"#, None),
            (r#"{"api_key":"k","batch":[]}}"#, None),
            (r#"{"api_key":"k","batch":[]}{}"#, None),
            (r#"x{"api_key":"k","batch":[]}"#, None),
            ("", None),
            (&long, None),
            (&long_key, None),
        ] {
            for piece in [1, 2, 3, 7, usize::MAX] {
                assert_eq!(found(body.as_bytes(), piece).as_deref(), api_key, "{body} in pieces of {piece}");
            }
        }
        for bytes in [&b"\xff{}"[..], b"{\"batch\":[],\"api_key\":\"\xff\"}", &[b'['; 100_000], &[b'"'; 9]] {
            assert_eq!(found(bytes, usize::MAX), None);
        }
    }

    proptest! {
        #[test]
        fn finds_what_a_parser_finds(
            parts in prop::collection::vec(prop::sample::select(vec![
                "\"api_key\"", "\"batch\"", "\"a\\u0070i_key\"", "\"x\\\\\"", "\"\\\"\"", ":", ":", ",", ",", "[", "]", "{", "}", "[]",
                "null", "1", " ", "\"k\"", "\"api_key\":\"l\"", "\"batch\":[]", "\"batch\":[{\"api_key\":\"m\"}]",
            ]), 0..12),
            piece in 1..9_usize,
        ) {
            let body = format!("{{{}}}", parts.concat());
            if let Ok(parsed) = Raw::parse(&body) {
                let is_batch = parsed.member("batch").is_some_and(Raw::is_array);
                let expected = parsed.member("api_key").filter(|api_key| is_batch && api_key.as_text().is_some());
                let expected = expected.map(|api_key| api_key.as_str().to_owned());
                prop_assert_eq!(found(body.as_bytes(), piece), expected, "{}", body);
            }
        }
    }
}

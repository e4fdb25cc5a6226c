//! JSON as it stands in the sender's bytes: checked and cut into slices, never copied or rebuilt.
//!
//! PostHog's values must reach Variance digit for digit and escape for escape, one bad event must not cost its
//! neighbours, and nesting may be as deep as the sender likes. `serde_json` gives up on the whole text at a lone
//! surrogate, at a number that fits no `f64` and at 128 levels, and to keep raw text *and* look inside it would read it
//! twice. So this module walks the text itself, by the grammar of RFC 8259, and leaves to `serde_json` what it does
//! better: undoing escapes. A property test holds it to accepting exactly what `serde_json` accepts.

use std::borrow::Cow;

/// One JSON value as it stood in the text, without white space around it.
///
/// Only a [`Scanner`] makes one, so its text has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raw<'a>(&'a str);

/// The inside of a JSON string as it stood in the text: without its quotes, escapes still in place.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    inside: &'a str,
    escaped: bool,
}

/// Where and why a text is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} at byte {offset}")]
pub struct SyntaxError {
    /// Bytes from the start of the text.
    pub offset: usize,
    /// What the grammar allows there.
    pub expected: &'static str,
}

impl<'a> Raw<'a> {
    /// Checks that `text` is one JSON value with nothing but white space around it.
    ///
    /// # Errors
    /// Where the text departs from RFC 8259.
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

    /// The value, or nothing if it is `null`.
    #[inline]
    pub fn non_null(self) -> Option<Self> {
        (self.0 != "null").then_some(self)
    }

    /// The value, or nothing if JavaScript takes it for false: `null`, `false`, `""` and every way to write zero.
    pub fn truthy(self) -> Option<Self> {
        let falsy = match self.0.as_bytes()[0] {
            b'"' => self.0 == "\"\"",
            b'f' | b'n' => true,
            b'-' | b'0'..=b'9' => self.0.parse::<f64>() == Ok(0.0),
            _ => false,
        };
        (!falsy).then_some(self)
    }

    /// The inside of a string; nothing if the value is of another type.
    pub fn as_text(self) -> Option<Text<'a>> {
        let inside = self.0.strip_prefix('"')?.strip_suffix('"')?;
        Some(Text { inside, escaped: inside.contains('\\') })
    }

    /// Whether the value is an object.
    pub fn is_object(self) -> bool {
        self.0.starts_with('{')
    }

    /// Whether the value is an array.
    pub fn is_array(self) -> bool {
        self.0.starts_with('[')
    }

    /// The members of an object in their order, repeated keys included; none if the value is of another type.
    pub fn members(self) -> Vec<(Text<'a>, Self)> {
        let mut members = Vec::new();
        if self.is_object() {
            let scanned = Scanner::new(self.0).object(|scanner, key| {
                members.push((key, scanner.value()?));
                Ok::<_, SyntaxError>(())
            });
            scanned.expect("a raw value has been checked");
        }
        members
    }
}

impl<'a> Text<'a> {
    /// The text as it stands between the quotes.
    pub fn as_written(self) -> &'a str {
        self.inside
    }

    /// What the text means, in bytes: UTF-8, but for lone surrogates, which take the three bytes of WTF-8.
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

    /// What the text means as a string, each lone surrogate replaced by U+FFFD as JavaScript does where it needs a
    /// well-formed string (WHATWG Infra, "convert into a scalar value string").
    pub fn to_scalar_string(self) -> Cow<'a, str> {
        match self.unescaped() {
            Cow::Borrowed(_) => Cow::Borrowed(self.inside),
            Cow::Owned(bytes) => Cow::Owned(String::from_utf8(bytes).unwrap_or_else(|not_utf8| {
                let mut scalar = String::new();
                let mut rest = not_utf8.as_bytes();
                // In WTF-8 only a surrogate is not UTF-8, and it is always three bytes.
                while let Err(error) = std::str::from_utf8(rest) {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    scalar.push_str(&String::from_utf8_lossy(good));
                    scalar.push(char::REPLACEMENT_CHARACTER);
                    rest = bad.get(3..).unwrap_or_default();
                }
                scalar.push_str(&String::from_utf8_lossy(rest));
                scalar
            })),
        }
    }

    /// Whether PostHog made this name up itself: it starts with `$`.
    #[inline]
    pub fn is_internal(self) -> bool {
        match self.inside.as_bytes().first() {
            Some(b'\\') => self.unescaped().first() == Some(&b'$'),
            first => first == Some(&b'$'),
        }
    }
}

impl PartialEq for Text<'_> {
    fn eq(&self, other: &Self) -> bool {
        match self.escaped || other.escaped {
            false => self.inside == other.inside,
            true => self.unescaped() == other.unescaped(),
        }
    }
}

/// A position in a text that moves over one piece of grammar at a time.
#[derive(Debug)]
pub struct Scanner<'a> {
    text: &'a str,
    at: usize,
    nesting: Nesting,
    /// What should have stood where the scanner stopped.
    expected: &'static str,
}

impl<'a> Scanner<'a> {
    /// Starts before the first byte of `text`.
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0, nesting: Nesting::default(), expected: "" }
    }

    /// Moves over one value and white space before it, however deeply it nests.
    ///
    /// # Errors
    /// Where the text departs from RFC 8259.
    #[inline]
    pub fn value(&mut self) -> Result<Raw<'a>, SyntaxError> {
        self.skip_white_space();
        let start = self.at;
        let walked = match self.peek() {
            Some(b'"') => self.string().map(drop),
            Some(b'{' | b'[') => self.container(),
            _ => self.scalar(),
        };
        match walked {
            Ok(()) => Ok(Raw(&self.text[start..self.at])),
            Err(Stopped) => Err(self.error()),
        }
    }

    /// Moves over one object and white space before it, and calls `member` after each key, before its value: it must move
    /// over exactly that.
    ///
    /// # Errors
    /// Where the text departs from RFC 8259 or is of another type, and what `member` returns.
    pub fn object<E: From<SyntaxError>>(
        &mut self,
        mut member: impl FnMut(&mut Self, Text<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.series([b'{', b'}'], ["an object", "`,` or `}`"], |scanner| match scanner.key() {
            Ok(Key { start, end, escaped }) => member(scanner, Text { inside: &scanner.text[start..end], escaped }),
            Err(Stopped) => Err(scanner.error().into()),
        })
    }

    /// Moves over one array and white space before it, and calls `element` before each element: it must move over exactly
    /// that.
    ///
    /// # Errors
    /// Where the text departs from RFC 8259 or is of another type, and what `element` returns.
    pub fn array<E: From<SyntaxError>>(&mut self, element: impl FnMut(&mut Self) -> Result<(), E>) -> Result<(), E> {
        self.series([b'[', b']'], ["an array", "`,` or `]`"], element)
    }

    #[inline]
    fn series<E: From<SyntaxError>>(
        &mut self,
        [open, close]: [u8; 2],
        [container, separator]: [&'static str; 2],
        mut item: impl FnMut(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.eat_after_space(open) {
            self.expected = container;
            return Err(self.error().into());
        }
        if self.eat_after_space(close) {
            return Ok(());
        }
        loop {
            item(self)?;
            let at = self.after_space(self.at);
            match self.byte(at) {
                Some(b',') => self.at = at + 1,
                Some(byte) if byte == close => {
                    self.at = at + 1;
                    return Ok(());
                }
                _ => {
                    self.at = at;
                    self.expected = separator;
                    return Err(self.error().into());
                }
            }
        }
    }

    /// The first byte of what comes next, white space aside.
    pub fn next_byte(&mut self) -> Option<u8> {
        self.skip_white_space();
        self.peek()
    }

    /// What the scanner moves over while `walk` runs, white space before it aside.
    ///
    /// # Errors
    /// What `walk` returns.
    pub fn spanned<T, E>(&mut self, walk: impl FnOnce(&mut Self) -> Result<T, E>) -> Result<(Raw<'a>, T), E> {
        self.skip_white_space();
        let start = self.at;
        let result = walk(self)?;
        Ok((Raw(&self.text[start..self.at]), result))
    }

    /// Checks that only white space is left.
    ///
    /// # Errors
    /// Where something else stands.
    pub fn end(&mut self) -> Result<(), SyntaxError> {
        self.skip_white_space();
        if self.at == self.text.len() {
            return Ok(());
        }
        self.expected = "nothing more";
        Err(self.error())
    }

    /// Moves over a value with brackets around it, without recursion: its depth is the sender's choice.
    fn container(&mut self) -> Result<(), Stopped> {
        self.nesting.clear();
        loop {
            match self.peek() {
                Some(b'"') => self.string().map(drop)?,
                Some(b'{') => {
                    self.at += 1;
                    if !self.eat_after_space(b'}') {
                        self.nesting.push(Bracket::Brace);
                        self.key()?;
                        continue;
                    }
                }
                Some(b'[') => {
                    self.at += 1;
                    if !self.eat_after_space(b']') {
                        self.nesting.push(Bracket::Square);
                        continue;
                    }
                }
                _ => self.scalar()?,
            }
            if !self.close_finished()? {
                return Ok(());
            }
        }
    }

    /// After a value: closes the brackets that end here. True if another value must follow.
    fn close_finished(&mut self) -> Result<bool, Stopped> {
        while let Some(bracket) = self.nesting.top() {
            self.skip_white_space();
            match (self.peek(), bracket) {
                (Some(b','), _) => {
                    self.at += 1;
                    self.skip_white_space();
                    if bracket == Bracket::Brace {
                        self.key()?;
                    }
                    return Ok(true);
                }
                (Some(b'}'), Bracket::Brace) | (Some(b']'), Bracket::Square) => {
                    self.at += 1;
                    self.nesting.pop();
                }
                (_, Bracket::Brace) => return self.stop("`,` or `}`"),
                (_, Bracket::Square) => return self.stop("`,` or `]`"),
            }
        }
        Ok(false)
    }

    /// Moves over a key, its colon, and the white space around them.
    #[inline]
    fn key(&mut self) -> Result<Key, Stopped> {
        if self.next_byte() != Some(b'"') {
            return self.stop("a key in quotes");
        }
        let start = self.at + 1;
        let escaped = self.string()?;
        let end = self.at - 1;
        let colon = self.after_space(end + 1);
        if self.byte(colon) != Some(b':') {
            self.at = colon;
            return self.stop("`:`");
        }
        self.at = self.after_space(colon + 1);
        Ok(Key { start, end, escaped })
    }

    /// Moves over a string whose opening quote is next. True if there are escapes in it.
    #[inline]
    fn string(&mut self) -> Result<bool, Stopped> {
        let inside = self.at + 1;
        let end = inside + plain_prefix(&self.text.as_bytes()[inside..]);
        if self.byte(end) == Some(b'"') {
            self.at = end + 1;
            return Ok(false);
        }
        self.at = end;
        self.rest_of_string()
    }

    /// Moves over a string from its first byte that is not plain.
    fn rest_of_string(&mut self) -> Result<bool, Stopped> {
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(true);
                }
                Some(b'\\') => self.escape()?,
                Some(_) => return self.stop("an escape in place of a control character"),
                None => return self.stop("the closing quote of a string"),
            }
            self.at += plain_prefix(&self.text.as_bytes()[self.at..]);
        }
    }

    /// Moves over one escape sequence. A surrogate need not have its other half: PostHog sends such strings.
    fn escape(&mut self) -> Result<(), Stopped> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                for _ in 0..4 {
                    self.at += 1;
                    if !self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                        return self.stop("four hexadecimal digits");
                    }
                }
                self.at += 1;
            }
            _ => return self.stop("one of `\"\\/bfnrtu`"),
        }
        Ok(())
    }

    /// Moves over a literal or a number.
    fn scalar(&mut self) -> Result<(), Stopped> {
        match self.peek() {
            Some(b't') => self.literal("true"),
            Some(b'f') => self.literal("false"),
            Some(b'n') => self.literal("null"),
            _ => self.number(),
        }
    }

    fn literal(&mut self, literal: &'static str) -> Result<(), Stopped> {
        if !self.text.as_bytes()[self.at..].starts_with(literal.as_bytes()) {
            return self.stop("a value");
        }
        self.at += literal.len();
        Ok(())
    }

    fn number(&mut self) -> Result<(), Stopped> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits()?,
            _ => return self.stop("a value"),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Stopped> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start { self.stop("a digit") } else { Ok(()) }
    }

    /// Moves over white space, and over `byte` if it is what comes next.
    #[inline]
    fn eat_after_space(&mut self, byte: u8) -> bool {
        self.skip_white_space();
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    #[inline]
    fn skip_white_space(&mut self) {
        self.at = self.after_space(self.at);
    }

    /// Where the white space that may stand at `at` ends.
    #[inline]
    fn after_space(&self, at: usize) -> usize {
        match self.byte(at) {
            Some(..=b' ') => self.after_some_space(at),
            // Machines write none.
            _ => at,
        }
    }

    #[cold]
    fn after_some_space(&self, mut at: usize) -> usize {
        while matches!(self.byte(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            at += 1;
        }
        at
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.byte(self.at)
    }

    #[inline]
    fn byte(&self, at: usize) -> Option<u8> {
        self.text.as_bytes().get(at).copied()
    }

    #[cold]
    fn stop<T>(&mut self, expected: &'static str) -> Result<T, Stopped> {
        self.expected = expected;
        Err(Stopped)
    }

    #[cold]
    fn error(&self) -> SyntaxError {
        SyntaxError { offset: self.at, expected: self.expected }
    }
}

/// The text departs from the grammar: where is the scanner's position, and how is in its `expected`. So that what is
/// returned for each string and number fits a register.
struct Stopped;

/// A key has been moved over, and the colon behind it.
struct Key {
    /// Where its first byte stands.
    start: usize,
    /// Where its closing quote stands.
    end: usize,
    escaped: bool,
}

/// How many bytes of a string pass before one that needs a look: a quote, a backslash or a control character.
///
/// Eight bytes at a time, because property values are most of a body: a byte's high bit is set where subtracting borrows,
/// and the lowest bit that is set is always right.
#[inline]
fn plain_prefix(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGHS: u64 = ONES << 7;
    let zero_bytes = |word: u64| word.wrapping_sub(ONES) & !word;

    let mut at = 0;
    while let Some(word) = bytes[at..].first_chunk() {
        let word = u64::from_le_bytes(*word);
        let quote = zero_bytes(word ^ (ONES * u64::from(b'"')));
        let backslash = zero_bytes(word ^ (ONES * u64::from(b'\\')));
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        let special = (quote | backslash | control) & HIGHS;
        if special != 0 {
            return at + special.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let is_special = |&byte: &u8| byte == b'"' || byte == b'\\' || byte < 0x20;
    at + bytes[at..].iter().position(is_special).unwrap_or(bytes.len() - at)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bracket {
    Square,
    Brace,
}

/// The brackets that are open, one bit each: a body of nothing but brackets costs an eighth of its size.
#[derive(Debug, Default)]
struct Nesting {
    /// The innermost up to 64 levels, the innermost in the lowest bit.
    bits: u64,
    depth: usize,
    /// The outer levels, 64 to a word.
    outer: Vec<u64>,
}

impl Nesting {
    fn clear(&mut self) {
        self.depth = 0;
        self.outer.clear();
    }

    fn push(&mut self, bracket: Bracket) {
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.outer.push(self.bits);
        }
        self.bits = self.bits << 1 | u64::from(bracket == Bracket::Brace);
        self.depth += 1;
    }

    fn pop(&mut self) {
        self.bits >>= 1;
        self.depth -= 1;
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.bits = self.outer.pop().expect("64 levels were put there on the way in");
        }
    }

    fn top(&self) -> Option<Bracket> {
        match (self.depth, self.bits & 1) {
            (0, _) => None,
            (_, 0) => Some(Bracket::Square),
            _ => Some(Bracket::Brace),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accepted(text: &str) -> bool {
        Raw::parse(text).is_ok()
    }

    /// `serde_json` in the mode that checks everything and keeps nothing, so that depth and size do not matter.
    fn serde_accepts(text: &str) -> bool {
        serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn accepts_exactly_what_serde_json_accepts(text in r#"[\[\]{}:,"\\ \n\t0-9eE+.\-truefalsn]{0,24}"#) {
            prop_assert_eq!(accepted(&text), serde_accepts(&text), "{}", text);
        }

        #[test]
        fn accepts_what_serde_json_writes_and_nothing_that_was_cut(value in value(), pretty: bool, cut: prop::sample::Index) {
            let text = match pretty {
                true => serde_json::to_string_pretty(&value).unwrap(),
                false => value.to_string(),
            };
            prop_assert!(accepted(&text));
            let cut = &text[..text.floor_char_boundary(cut.index(text.len()))];
            prop_assert_eq!(accepted(cut), serde_accepts(cut), "{}", cut);
        }

        #[test]
        fn cuts_at_the_same_places(value in value()) {
            let text = value.to_string();
            let raw = Raw::parse(&text).unwrap();
            let members: serde_json::Map<_, _> = raw
                .members()
                .into_iter()
                .map(|(key, value)| (key.to_scalar_string().into_owned(), serde_json::from_str(value.as_str()).unwrap()))
                .collect();
            prop_assert_eq!(members, value.as_object().cloned().unwrap_or_default());
            let mut elements: Vec<serde_json::Value> = Vec::new();
            let walked = Scanner::new(&text).array(|scanner| {
                elements.push(serde_json::from_str(scanner.value()?.as_str()).unwrap());
                Ok::<_, SyntaxError>(())
            });
            prop_assert_eq!(walked.is_ok(), value.is_array());
            prop_assert_eq!(elements, value.as_array().cloned().unwrap_or_default());
        }
    }

    fn value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(8, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    #[test]
    fn nests_as_deep_as_the_sender_likes() {
        let open = "[{\"k\":".repeat(1000) + &"[".repeat(9000);
        let close = "]".repeat(9000) + &"}]".repeat(1000);
        assert!(accepted(&format!("{open}0{close}")));
        assert!(!accepted(&format!("{open}0{}", close.replacen(']', "}", 1))));
        assert!(!accepted(&open));
    }

    #[test]
    fn says_where_a_text_stops_being_json() {
        for (text, offset, expected) in [
            ("", 0, "a value"),
            ("{\"a\":1", 6, "`,` or `}`"),
            ("[1 2]", 3, "`,` or `]`"),
            ("{a:1}", 1, "a key in quotes"),
            ("{\"a\" 1}", 5, "`:`"),
            ("\"\\x\"", 2, "one of `\"\\/bfnrtu`"),
            ("\"\u{1}\"", 1, "an escape in place of a control character"),
            ("\"abc", 4, "the closing quote of a string"),
            ("01", 1, "nothing more"),
            ("nul", 0, "a value"),
        ] {
            assert_eq!(Raw::parse(text), Err(SyntaxError { offset, expected }), "{text}");
        }
    }

    #[test]
    fn truth_is_javascripts() {
        for falsy in ["null", "false", "\"\"", "0", "-0", "0.0", "0e99", "-0.00E-3", "1e-999"] {
            assert_eq!(Raw::parse(falsy).unwrap().truthy(), None, "{falsy}");
        }
        for truthy in ["true", "\"0\"", "\" \"", "1", "-1e-9", "1e999", "{}", "[]"] {
            assert!(Raw::parse(truthy).unwrap().truthy().is_some(), "{truthy}");
        }
    }

    #[test]
    fn names_are_compared_by_what_they_mean() {
        let text = |inside| Raw::parse(inside).unwrap().as_text().unwrap();
        assert!(text(r#""\u0024set""#) == text(r#""$set""#));
        assert!(text(r#""\u0024set""#).is_internal());
        assert!(text(r#""\ud83d""#) == text(r#""\uD83D""#));
        assert!(text(r#""\ud83d""#) != text(r#""\ufffd""#));
        assert_eq!(text(r#""a\ud83d!\u00e9\ud83e\udd94""#).to_scalar_string(), "a\u{fffd}!é🦔");
    }
}

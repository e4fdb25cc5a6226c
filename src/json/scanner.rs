//! The walk over the text: the grammar of RFC 8259, a piece at a time.

use super::{Raw, SyntaxError, Text};

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

//! A walk over a text by the grammar of RFC 8259, a piece at a time.

use super::{Raw, SyntaxError, Text};

/// A position in a text that moves over one piece of grammar at a time.
#[derive(Debug)]
pub struct Scanner<'a> {
    text: &'a str,
    at: usize,
    nesting: Nesting,
    /// The pieces that the grammar allows where the scanner stopped.
    expected: &'static str,
}

impl<'a> Scanner<'a> {
    /// Creates a scanner before the first byte of `text`.
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0, nesting: Nesting::default(), expected: "" }
    }

    /// Moves over one value and the white space before it, however deeply it nests.
    ///
    /// # Errors
    /// When the text departs from RFC 8259.
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

    /// Moves over one object and the white space before it. After each key it calls `member`, which must move over
    /// exactly the value.
    ///
    /// # Errors
    /// When the text departs from RFC 8259 or is of another type, and whatever `member` returns.
    pub fn object<E: From<SyntaxError>>(
        &mut self,
        mut member: impl FnMut(&mut Self, Text<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.series(b'{', b'}', "an object", |scanner| match scanner.key() {
            Ok(Key { start, end, escaped }) => member(scanner, Text { inside: &scanner.text[start..end], escaped }),
            Err(Stopped) => Err(scanner.error().into()),
        })
    }

    /// Moves over one array and the white space before it. For each element it calls `element`, which must move over
    /// exactly that element.
    ///
    /// # Errors
    /// When the text departs from RFC 8259 or is of another type, and whatever `element` returns.
    pub fn array<E: From<SyntaxError>>(&mut self, element: impl FnMut(&mut Self) -> Result<(), E>) -> Result<(), E> {
        self.series(b'[', b']', "an array", element)
    }

    #[inline]
    fn series<E: From<SyntaxError>>(
        &mut self,
        open: u8,
        close: u8,
        container: &'static str,
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
                    self.expected = separator(close);
                    return Err(self.error().into());
                }
            }
        }
    }

    /// Moves over white space and returns the byte after it.
    pub fn next_byte(&mut self) -> Option<u8> {
        self.skip_white_space();
        self.peek()
    }

    /// Returns the text that the scanner moves over while `walk` runs, without white space before it, and the result of
    /// `walk`.
    ///
    /// # Errors
    /// The error that `walk` returns.
    pub fn spanned<T, E>(&mut self, walk: impl FnOnce(&mut Self) -> Result<T, E>) -> Result<(Raw<'a>, T), E> {
        self.skip_white_space();
        let start = self.at;
        let result = walk(self)?;
        Ok((Raw(&self.text[start..self.at]), result))
    }

    /// Checks that only white space is left.
    ///
    /// # Errors
    /// When something else is left.
    pub fn end(&mut self) -> Result<(), SyntaxError> {
        self.skip_white_space();
        if self.at == self.text.len() {
            return Ok(());
        }
        self.expected = "nothing more";
        Err(self.error())
    }

    /// Moves over an object or array without recursion, since its depth is the sender's choice.
    fn container(&mut self) -> Result<(), Stopped> {
        self.nesting.depth = 0;
        loop {
            match self.peek() {
                Some(b'"') => self.string().map(drop)?,
                Some(b'{') => {
                    self.at += 1;
                    if !self.eat_after_space(b'}') {
                        self.nesting.push(b'}');
                        self.key()?;
                        continue;
                    }
                }
                Some(b'[') => {
                    self.at += 1;
                    if !self.eat_after_space(b']') {
                        self.nesting.push(b']');
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

    /// Closes the brackets that end after a value. Returns true if another value must follow.
    fn close_finished(&mut self) -> Result<bool, Stopped> {
        while let Some(close) = self.nesting.top() {
            self.skip_white_space();
            match self.peek() {
                Some(b',') => {
                    self.at += 1;
                    self.skip_white_space();
                    if close == b'}' {
                        self.key()?;
                    }
                    return Ok(true);
                }
                Some(byte) if byte == close => {
                    self.at += 1;
                    self.nesting.depth -= 1;
                }
                _ => return self.stop(separator(close)),
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

    /// Moves over a string whose opening quote is next. Returns true if it has escapes.
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

    /// Moves over the rest of a string from its first byte that is not plain. Returns true, because it has escapes.
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

    /// Moves over one escape sequence. A surrogate may lack its other half: PostHog sends such strings.
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
        let literal = match self.peek() {
            Some(b't') => "true",
            Some(b'f') => "false",
            Some(b'n') => "null",
            _ => return self.number(),
        };
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
            _ => self.digits("a value")?,
        }
        if self.eat(b".") {
            self.digits("a digit")?;
        }
        if self.eat(b"eE") {
            self.eat(b"+-");
            self.digits("a digit")?;
        }
        Ok(())
    }

    fn digits(&mut self, expected: &'static str) -> Result<(), Stopped> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start { self.stop(expected) } else { Ok(()) }
    }

    /// Moves over white space, and over `byte` if it comes next.
    #[inline]
    fn eat_after_space(&mut self, byte: u8) -> bool {
        self.skip_white_space();
        self.eat(&[byte])
    }

    /// Moves over the next byte if it is one of these.
    #[inline]
    fn eat(&mut self, bytes: &[u8]) -> bool {
        let found = self.peek().is_some_and(|byte| bytes.contains(&byte));
        self.at += usize::from(found);
        found
    }

    #[inline]
    fn skip_white_space(&mut self) {
        self.at = self.after_space(self.at);
    }

    /// Returns the end of the white space that may stand at `at`.
    #[inline]
    fn after_space(&self, at: usize) -> usize {
        match self.byte(at) {
            Some(..=b' ') => self.after_some_space(at),
            // Machines write no white space.
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

/// The error of a text that departs from the grammar. It is empty so that the result for each string and number fits a
/// register: the scanner's position says where, and its `expected` says why.
struct Stopped;

/// A key that has been moved over, with the colon after it.
struct Key {
    /// The position of its first byte.
    start: usize,
    /// The position of its closing quote.
    end: usize,
    escaped: bool,
}

/// Returns how many bytes of a string pass before one that needs a look: a quote, a backslash or a control character.
///
/// It takes eight bytes at a time, because property values are most of a body: a byte's high bit is set where
/// subtracting borrows, and the lowest bit that is set is always right. With one bit changed, the quote is the one byte
/// beside the control characters that is less than 0x21.
#[inline]
fn plain_prefix(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGHS: u64 = ONES << 7;
    let bytes_below = |bound: u64, word: u64| word.wrapping_sub(ONES * bound) & !word;

    let mut at = 0;
    while let Some(word) = bytes[at..].first_chunk() {
        let word = u64::from_le_bytes(*word);
        let quote_or_control = bytes_below(0x21, word ^ (ONES * 2));
        let backslash = bytes_below(1, word ^ (ONES * u64::from(b'\\')));
        let special = (quote_or_control | backslash) & HIGHS;
        if special != 0 {
            return at + special.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let is_special = |&byte: &u8| byte == b'"' || byte == b'\\' || byte < 0x20;
    at + bytes[at..].iter().position(is_special).unwrap_or(bytes.len() - at)
}

/// Returns the pieces that may follow a value within a container that ends with `close`.
fn separator(close: u8) -> &'static str {
    if close == b'}' { "`,` or `}`" } else { "`,` or `]`" }
}

/// The closing brackets of all open containers, one bit each: a body of nothing but brackets costs an eighth of its
/// size.
#[derive(Debug, Default)]
struct Nesting {
    /// A bit for each level, set for a brace: 64 levels to a word, the outermost in the lowest bit of the first.
    braces: Vec<u64>,
    depth: usize,
}

impl Nesting {
    fn push(&mut self, close: u8) {
        let (word, bit) = (self.depth / 64, self.depth % 64);
        if word == self.braces.len() {
            self.braces.push(0);
        }
        self.braces[word] = self.braces[word] & !(1 << bit) | u64::from(close == b'}') << bit;
        self.depth += 1;
    }

    fn top(&self) -> Option<u8> {
        let innermost = self.depth.checked_sub(1)?;
        let is_brace = self.braces[innermost / 64] >> (innermost % 64) & 1 == 1;
        Some(if is_brace { b'}' } else { b']' })
    }
}

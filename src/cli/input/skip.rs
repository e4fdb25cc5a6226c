//! The end of what cannot be taken, found without keeping it.

/// Moves over bytes that are no value, or too large a one.
#[derive(Debug)]
pub(super) struct Skip {
    is_line: bool,
    /// A line that begins with a brace begins something new.
    is_outermost: bool,
    depth: u64,
    in_string: bool,
    escaped: bool,
    after_newline: bool,
}

impl Skip {
    /// To the end of the line.
    pub(super) fn line() -> Self {
        Self { is_line: true, ..Self::value(false) }
    }

    /// To the end of the value, or to where it cannot be one.
    pub(super) fn value(is_outermost: bool) -> Self {
        Self { is_line: false, is_outermost, depth: 0, in_string: false, escaped: false, after_newline: false }
    }

    /// Where in these bytes, which follow those before, the end is.
    pub(super) fn end_in(&mut self, bytes: &[u8]) -> Option<usize> {
        if self.is_line {
            return bytes.iter().position(|&byte| byte == b'\n');
        }
        for (index, &byte) in bytes.iter().enumerate() {
            let after_newline = std::mem::replace(&mut self.after_newline, byte == b'\n');
            match byte {
                b'\n' if self.in_string => return Some(index),
                _ if std::mem::take(&mut self.escaped) => {}
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' | b'[' if after_newline && self.is_outermost => return Some(index),
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth == 0 => return Some(index),
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(index + 1);
                    }
                }
                b',' if self.depth == 0 => return Some(index),
                _ => {}
            }
        }
        None
    }
}

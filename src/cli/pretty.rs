//! JSON over several lines, with every value as it was: a parser would round numbers and reject lone surrogates.

use std::io::{self, Write};

/// Writes valid JSON with a line for each member and element.
pub(super) fn indent(json: &[u8], out: &mut impl Write) -> io::Result<()> {
    let (mut depth, mut in_string, mut is_escaped, mut has_opened) = (0, false, false, false);
    for &byte in json {
        if in_string {
            in_string = is_escaped || byte != b'"';
            is_escaped = byte == b'\\' && !is_escaped;
            out.write_all(&[byte])?;
            continue;
        }
        if byte.is_ascii_whitespace() {
            continue;
        }
        let closes = matches!(byte, b'}' | b']');
        depth -= usize::from(closes);
        if has_opened != closes {
            new_line(depth, out)?;
        }
        out.write_all(&[byte])?;
        match byte {
            b',' => new_line(depth, out)?,
            b':' => out.write_all(b" ")?,
            _ => {}
        }
        has_opened = matches!(byte, b'{' | b'[');
        depth += usize::from(has_opened);
        in_string = byte == b'"';
    }
    Ok(())
}

fn new_line(depth: usize, out: &mut impl Write) -> io::Result<()> {
    /// Nobody reads deeper than this, and white space would grow with the square of the depth.
    const DEEPEST: usize = 32;
    write!(out, "\n{:1$}", "", 2 * depth.min(DEEPEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_white_space_between_values_changes() {
        let mut out = Vec::new();
        let json = br#"{"a":[1.50E+400,"x\"{,\\", {} ],"b":[ ] , "half":"\ud83d"}"#;
        indent(json, &mut out).unwrap();
        let expected = r#"{
  "a": [
    1.50E+400,
    "x\"{,\\",
    {}
  ],
  "b": [],
  "half": "\ud83d"
}"#;
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}

//! JSON over several lines, with every value as it was: a parser would round numbers and refuse half characters.

use std::io::{self, Write};

/// Writes valid JSON with a line for each member and element.
pub(super) fn indent(json: &[u8], out: &mut impl Write) -> io::Result<()> {
    let mut depth = 0;
    let mut rest = json.trim_ascii();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'"' => {
                let end = string_end(rest);
                out.write_all(b"\"")?;
                out.write_all(&rest[..end])?;
                rest = &rest[end..];
            }
            b' ' | b'\t' | b'\r' | b'\n' => {}
            b'{' | b'[' => {
                out.write_all(&[byte])?;
                rest = rest.trim_ascii_start();
                match rest {
                    [close @ (b'}' | b']'), after @ ..] => {
                        out.write_all(&[*close])?;
                        rest = after;
                    }
                    _ => {
                        depth += 1;
                        new_line(depth, out)?;
                    }
                }
            }
            b'}' | b']' => {
                depth -= 1;
                new_line(depth, out)?;
                out.write_all(&[byte])?;
            }
            b',' => {
                out.write_all(b",")?;
                new_line(depth, out)?;
            }
            b':' => out.write_all(b": ")?,
            other => out.write_all(&[other])?,
        }
    }
    Ok(())
}

/// The bytes up to the end of a string, its closing quote included.
fn string_end(inside: &[u8]) -> usize {
    let mut escaped = false;
    let end = inside.iter().position(|&byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    end.map_or(inside.len(), |quote| quote + 1)
}

fn new_line(depth: usize, out: &mut impl Write) -> io::Result<()> {
    /// Deeper than this nobody reads, and white space would grow with the square of the depth.
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

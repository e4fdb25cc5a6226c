//! Secrets, the files that hold them, and the repair of those that were pasted with something else.

use std::{fmt, fs, io, path::Path};

/// A credential. Its `Debug` shows nothing of it, and it has no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a credential.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The credential itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// The flaw of a text in quotation marks, as [`repaired`] names it.
pub const QUOTATION_MARKS: &str = "quotation marks";

/// The start of the key of a PostHog project, which is not a secret and opens nothing.
pub const PROJECT_KEY_START: &str = "phc_";

/// Reads a file that holds a secret, without the white space at its end, which editors and `echo` leave there.
///
/// # Errors
/// When the file cannot be read, is not UTF-8 or is empty.
pub fn read(file: &Path) -> io::Result<String> {
    let text = fs::read_to_string(file).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => io::Error::new(error.kind(), "it is not UTF-8"),
        _ => error,
    })?;
    match text.trim_end() {
        "" => Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty")),
        text => Ok(text.to_owned()),
    }
}

/// The lines of such a file that are not blank.
pub fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim().is_empty())
}

/// Removes what was pasted along with a secret and cannot be part of it: invisible characters, white space and
/// quotation marks around it, and `prefixes` such as the name of its header. Also returns what was removed, for a
/// warning.
pub fn repaired(text: &str, prefixes: &[&str]) -> (String, Vec<String>) {
    let mut flaws = Vec::new();
    let visible: String = text.chars().filter(|character| !is_invisible(*character)).collect();
    if visible.len() < text.len() {
        flaws.push("invisible characters".to_owned());
    }
    let mut rest = visible.trim();
    if rest.len() < visible.len() {
        flaws.push("white space around it".to_owned());
    }
    if let Some(inner) = unquoted(rest) {
        flaws.push(QUOTATION_MARKS.to_owned());
        rest = inner.trim();
    }
    for prefix in prefixes {
        let split = rest.split_at_checked(prefix.len());
        if let Some((start, end)) = split.filter(|(start, _)| start.eq_ignore_ascii_case(prefix)) {
            flaws.push(format!("`{}`", start.trim()));
            rest = end.trim();
        }
    }
    (rest.to_owned(), flaws)
}

/// Describes a wrong secret without showing any of it, as the end of a sentence.
pub fn described(text: &str) -> String {
    let length = text.chars().count();
    let odd = text.char_indices().find(|(_, character)| !character.is_ascii_graphic() && *character != ' ');
    match (text.chars().next(), odd) {
        (None, _) => "it is empty".to_owned(),
        _ if text.starts_with(PROJECT_KEY_START) => {
            format!("it is the key of a PostHog project (`{PROJECT_KEY_START}…`), which can only send events")
        }
        _ if is_half_quoted(text) => "it begins with an unmatched quotation mark".to_owned(),
        (_, Some((_, '\n' | '\r'))) => "it has more than one line".to_owned(),
        (_, Some((_, odd))) if odd.is_control() => format!("it has a control character (U+{:04X})", u32::from(odd)),
        (_, Some((at, _))) => {
            format!("it has {length} characters, and character {} is not ASCII", text[..at].chars().count() + 1)
        }
        (_, _) if length == 1 => "it has 1 character".to_owned(),
        (_, _) => format!("it has {length} characters"),
    }
}

/// Returns the text between two quotation marks of one kind, if they can only be meant to surround it: Docker's
/// `--env-file` keeps those that a shell would remove.
pub fn unquoted(text: &str) -> Option<&str> {
    ['"', '\''].into_iter().find_map(|mark| {
        let inner = text.strip_prefix(mark)?.strip_suffix(mark)?;
        (!inner.contains(mark)).then_some(inner)
    })
}

/// True if a text begins with a quotation mark, straight or not, whose removal would be a guess.
pub fn is_half_quoted(text: &str) -> bool {
    text.starts_with(['"', '\'', '“', '‘', '„', '«'])
}

/// True for a byte order mark, and for invisible characters that web pages and word processors put between letters.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{feff}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{00ad}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_of_a_wrong_secret_shows_none_of_it() {
        for (text, description) in [
            ("", "it is empty"),
            ("a", "it has 1 character"),
            ("tooshort", "it has 8 characters"),
            ("\"open", "it begins with an unmatched quotation mark"),
            ("“Bearer abc”", "it begins with an unmatched quotation mark"),
            ("phc_a1", "it is the key of a PostHog project (`phc_…`), which can only send events"),
            ("two\nlines", "it has more than one line"),
            ("bell\u{7}", "it has a control character (U+0007)"),
            ("Bearer schlüssel", "it has 16 characters, and character 12 is not ASCII"),
        ] {
            assert_eq!(described(text), description);
        }
    }

    #[test]
    fn what_was_pasted_along_with_a_secret_is_taken_off_and_told() {
        let header = &["Authorization:"][..];
        let token = &["Authorization:", "Bearer "][..];
        for (text, prefixes, secret, flaws) in [
            ("Bearer abc", header, "Bearer abc", &[][..]),
            ("Bearer abc\n", header, "Bearer abc", &["white space around it"]),
            ("\"Bearer abc\"", header, "Bearer abc", &["quotation marks"]),
            ("' Bearer abc'", header, "Bearer abc", &["quotation marks"]),
            ("authorization:Bearer abc", header, "Bearer abc", &["`authorization:`"]),
            (
                "'Authorization: Bearer abc'\r\n",
                header,
                "Bearer abc",
                &["white space around it", "quotation marks", "`Authorization:`"],
            ),
            ("Authorization: Bearer abc", token, "abc", &["`Authorization:`", "`Bearer`"]),
            ("\u{feff}abc\u{200b}def", token, "abcdef", &["invisible characters"]),
            ("\u{a0}abc", token, "abc", &["white space around it"]),
            // Whatever may be intended stays.
            ("\"abc", header, "\"abc", &[]),
            ("\"", header, "\"", &[]),
            ("Custom id=\"a\", key=\"b\"", header, "Custom id=\"a\", key=\"b\"", &[]),
            ("\"a\"b\"", header, "\"a\"b\"", &[]),
            ("Bearer", token, "Bearer", &[]),
            ("bäärer abc", token, "bäärer abc", &[]),
            ("", token, "", &[]),
        ] {
            let (repaired, told) = repaired(text, prefixes);
            assert_eq!((&*repaired, told), (secret, flaws.iter().map(|flaw| (*flaw).to_owned()).collect()), "{text:?}");
        }
    }
}

//! The form of fields in lines of text: a value with a space is quoted, so that its end is clear.

use std::fmt;

use tracing::field::Field;
use tracing_subscriber::{
    field::MakeExt,
    fmt::{FormatFields, format, format::Writer},
};

/// Formats the message, then `name=value` for each field, with spaces between.
pub(super) fn fields() -> impl for<'w> FormatFields<'w> + Clone + Send + Sync + 'static {
    format::debug_fn(field).delimited(" ")
}

fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let value = format!("{value:?}");
    match field.name() {
        "message" if value.contains(char::is_control) => write!(writer, "{}", value.escape_debug()),
        "message" => writer.write_str(&value),
        name => {
            write!(writer, "{name}=")?;
            match is_plain(&value) {
                true => writer.write_str(&value),
                false => write!(writer, "{value:?}"),
            }
        }
    }
}

/// True if the end of the value is clear as it stands: it is one word, or quoted already, as texts are by their
/// `Debug`.
fn is_plain(value: &str) -> bool {
    let is_in_words = |char: char| char.is_whitespace() || char.is_control() || matches!(char, '"' | '=');
    !value.is_empty() && !value.contains(is_in_words) || serde_json::from_str::<String>(value).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_one_word_or_quoted() {
        for plain in ["3", "127.0.0.1:80", "\"a text\"", "\"a \\\"quoted\\\" text\"", "2.5s"] {
            assert!(is_plain(plain), "{plain}");
        }
        for other in ["", "two words", "a=b", "\"a\" and \"b\"", "\"half", "a\u{1b}[31m"] {
            assert!(!is_plain(other), "{other}");
        }
    }
}

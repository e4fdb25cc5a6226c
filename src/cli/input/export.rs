//! What exported files write otherwise than senders: `properties` may be a string that holds the object.

use crate::json::{Raw, Scanner, SyntaxError};

/// An element in the shape that senders have, if it is in another one.
///
/// Only strings that hold an object are meant: PostHog has no other properties.
pub(super) fn as_sent(element: Raw<'_>) -> Option<String> {
    if !element.is_object() {
        return None;
    }
    let text = element.as_str();
    let (mut rewritten, mut copied) = (String::new(), 0);
    let scanned = Scanner::new(text).object(|scanner, key| {
        let value = scanner.value()?;
        if matches!(key.as_written(), "properties" | "person_properties")
            && let Some(inside) = value.as_text()
        {
            let object = inside.to_scalar_string();
            if Raw::parse(&object).is_ok_and(Raw::is_object) {
                // A value is a slice of the text that it was found in.
                let start = value.as_str().as_ptr() as usize - text.as_ptr() as usize;
                rewritten.push_str(&text[copied..start]);
                rewritten.push_str(&object);
                copied = start + value.as_str().len();
            }
        }
        Ok::<_, SyntaxError>(())
    });
    scanned.expect("a raw value has been checked");
    (copied > 0).then(|| rewritten + &text[copied..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_in_a_string_become_an_object_and_nothing_else_changes() {
        for (exported, sent) in [
            (r#"{"event":"a","properties":{"b":"{}"}}"#, None),
            (r#"{"event":"a","properties":"text","person_properties":"[1]"}"#, None),
            (r#"{"event":"a","other":"{}"}"#, None),
            ("[]", None),
            (
                r#"{"properties" : "{\"n\":18446744073709551617,\"s\":\"\\ud83d\"}", "event":"a\u0301"}"#,
                Some(r#"{"properties" : {"n":18446744073709551617,"s":"\ud83d"}, "event":"a\u0301"}"#),
            ),
            (
                r#"{"properties":"{}","person_properties":"{\"a\":1}"}"#,
                Some(r#"{"properties":{},"person_properties":{"a":1}}"#),
            ),
        ] {
            assert_eq!(as_sent(Raw::parse(exported).unwrap()).as_deref(), sent);
        }
    }
}

use proptest::prelude::*;

use super::*;

fn accepted(text: &str) -> bool {
    Raw::parse(text).is_ok()
}

/// Asks `serde_json` in the mode that checks everything and keeps nothing, so that depth and size do not matter.
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
    let meant = |inside| text(inside).unescaped();
    assert_eq!(meant(r#""\u0024set""#), meant(r#""$set""#));
    assert!(text(r#""\u0024set""#).is_internal());
    assert_eq!(meant(r#""\ud83d""#), meant(r#""\uD83D""#));
    assert_ne!(meant(r#""\ud83d""#), meant(r#""\ufffd""#));
    assert_eq!(text(r#""a\ud83d!\u00e9\ud83e\udd94""#).to_scalar_string(), "a\u{fffd}!é🦔");
}

#[test]
fn a_string_may_hold_any_byte_that_serde_json_takes_at_any_place() {
    for at in 0..20 {
        for byte in 0..0x80 {
            let text = format!("\"{}{}{}\"", "x".repeat(at), char::from(byte), "é".repeat(5));
            assert_eq!(accepted(&text), serde_accepts(&text), "{text:?}");
        }
    }
}

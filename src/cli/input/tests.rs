//! Tests of how a stream is cut into items.

use super::*;

/// Lists what is found in a source with this content, one line for each item.
fn found(content: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let mut take = |item: Item<'_>| {
        found.push(match item {
            Item::Event(place, event, _) => format!("{place} {}", event.name.as_str()),
            Item::Invalid(place, reason, original) => {
                format!("{place} {}: {reason}", String::from_utf8_lossy(&original.to_line()))
            }
            Item::Unreadable(problem) => format!("! {problem}"),
            Item::Note(note) => note,
        });
        Ok(())
    };
    Reading { source: "f", take: &mut take }.all(content).unwrap();
    found
}

#[test]
fn lines_are_read_each_by_itself_and_a_first_line_that_does_not_close_with_all_after_it() {
    for (content, expected) in [
        ("", &[][..]),
        (" \n\r\n", &[]),
        ("{\"event\":\"a\"}\r\n\n  {\"event\":\"b\"}", &["f:1 \"a\"", "f:3 \"b\""]),
        (
            "{\"event\":\"a\"}\n{\"event\":\n{\"event\":\"b\"}",
            &["f:1 \"a\"", "f:2 {\"event\":: not JSON: expected a value at byte 9", "f:3 \"b\""],
        ),
        // A line never ends within a string, so this one does not continue.
        (
            "{\"event\":\"a\n{\"event\":\"b\"}",
            &["f:1 {\"event\":\"a: not JSON: expected the closing quote of a string at byte 11", "f:2 \"b\""],
        ),
        ("\n{\n\"event\":\n\"a\"}\n", &["f:2 \"a\""]),
        (
            "[\n{\"event\":\"a\"},\n{\"event\":\n7}\n]",
            &[
                "f:1[0] \"a\"",
                "f:1[1] {\"event\": 7}: the event has no name: `event` must be a string that is not empty",
            ],
        ),
        (
            "{\"event\":\n\"a\"}\n{\"event\":\"b\"}",
            &[
                "! f:1: this line is only the beginning of JSON, and together with the rest of the input it is not JSON: expected nothing more at byte 15",
            ],
        ),
        ("[]\n{\"batch\":[]}\n[7]", &["f:3[0] 7: an event must be a JSON object"]),
        (
            "{\"event\":\"a\"} {\"event\":\"b\"}",
            &["f:1 {\"event\":\"a\"} {\"event\":\"b\"}: not JSON: expected nothing more at byte 14"],
        ),
        ("\u{feff}{\"event\":\"a\"}\n\u{feff}{\"event\":\"b\"}\n\u{feff}\n", &["f:1 \"a\"", "f:2 \"b\""]),
        ("\u{feff}[\n{\"event\":\"a\"}]", &["f:1[0] \"a\""]),
    ] {
        assert_eq!(found(content.as_bytes()), expected, "{content:?}");
    }
    assert_eq!(found(b"\"\xe9\"\n{\"event\":\"a\"}"), ["f:1 \"\u{fffd}\": not JSON: not UTF-8 at byte 1", "f:2 \"a\""]);
}

#[test]
fn what_is_too_large_in_one_piece_is_told_how_to_cut_and_costs_no_other_line() {
    let advice = "more than 10000 events or 64 MiB in one piece; give each event a line of its own first, with \
                  `jq -c '.[]'` for an array, `jq -c '.batch[]'` for a batch";
    let too_many = format!("[{}{{}}]", "{},".repeat(posthog::MAX_ELEMENTS));
    let long = format!("[\"{}\"]", "x".repeat(MAX_TEXT_BYTES));
    for large in [too_many, long] {
        let content = format!("{{\"event\":\"a\"}}\n{large}\n{{\"event\":\"b\"}}");
        assert_eq!(found(content.as_bytes()), ["f:1 \"a\"", &format!("! f:2: {advice}"), "f:3 \"b\""]);
        assert_eq!(found(format!("[\n{}", &large[1..]).as_bytes()), [format!("! f:1: {advice}")]);
    }
}

#[test]
fn what_was_read_before_a_fault_counts() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
    }
    let mut found = Vec::new();
    let mut take = |item: Item<'_>| {
        found.push(format!("{item:?}"));
        Ok(())
    };
    let stream = io::BufReader::new("{\"event\":\"a\"}\n{\"eve".as_bytes().chain(Broken));
    Reading { source: "f", take: &mut take }.all(stream).unwrap();
    assert_eq!(found.len(), 3);
    assert!(found[0].starts_with("Event(") && found[1].starts_with("Invalid("), "{found:?}");
    assert_eq!(found[2], "Unreadable(\"f:2: it cannot be read from here on: broken\")");
}

#[test]
fn an_element_of_a_batch_keeps_when_it_was_sent() {
    let mut lines = Vec::new();
    let mut take = |item: Item<'_>| {
        if let Item::Event(_, _, original) = item {
            lines.push(String::from_utf8(original.to_line()).unwrap());
        }
        Ok(())
    };
    let batch = "{\"batch\":[{\"event\":\n\"a\"}],\n\"sent_at\":\"2026\"}";
    Reading { source: "f", take: &mut take }.all(batch.as_bytes()).unwrap();
    assert_eq!(lines, ["{\"sent_at\":\"2026\",\"batch\":[{\"event\": \"a\"}]}"]);
}

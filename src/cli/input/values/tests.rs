//! What a stream is cut into, however it arrives.

use std::cmp::min;

use proptest::prelude::*;

use super::*;

/// A reader that gives a few bytes at a time.
struct Dripping<'a>(&'a [u8], usize);

impl Read for Dripping<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = min(min(self.1, buffer.len()), self.0.len());
        let (now, later) = self.0.split_at(len);
        buffer[..len].copy_from_slice(now);
        self.0 = later;
        Ok(len)
    }
}

/// The pieces, one to a line: the place, a mark, the text.
fn cut(text: &[u8], step: usize) -> Vec<String> {
    let mut values = Values::new(Dripping(text, step));
    let mut pieces = Vec::new();
    while let Some(piece) = values.next().unwrap() {
        let place = |at: At| at.index.map_or_else(|| at.line.to_string(), |index| format!("{}[{index}]", at.line));
        pieces.push(match piece {
            Piece::Value(at, text) => format!("{} {text}", place(at)),
            Piece::Bad(at, bytes, why) => format!("{} ! {:?} {why}", place(at), String::from_utf8_lossy(bytes)),
            Piece::Rest(bytes) => format!("… {}", bytes.len()),
        });
    }
    pieces
}

fn assert_cut(text: &str, expected: &[&str]) {
    for step in [1, 7, usize::MAX] {
        let pieces: Vec<_> = cut(text.as_bytes(), step)
            .iter()
            .map(|piece| piece.split(" not JSON").next().unwrap().to_owned())
            .collect();
        assert_eq!(pieces, expected, "{text:?} by {step}");
    }
}

#[test]
fn lines_values_over_lines_and_values_without_lines_are_all_values() {
    assert_cut("", &[]);
    assert_cut(" \n\n", &[]);
    assert_cut("{\"a\":1}\n{\"b\":2}\r\n\n{\"c\":3}", &["1 {\"a\":1}", "2 {\"b\":2}", "4 {\"c\":3}"]);
    assert_cut("{\n  \"a\": {\n    \"b\": true\n  }\n}\n{}\n", &["1 {\n  \"a\": {\n    \"b\": true\n  }\n}", "6 {}"]);
    assert_cut(
        "{\"a\":1}{\"b\":2} {}\n17\n\"x\"\nnull",
        &["1 {\"a\":1}", "1 {\"b\":2}", "1 {}", "2 17", "3 \"x\"", "4 null"],
    );
}

#[test]
fn the_elements_of_an_array_are_values_by_themselves() {
    assert_cut("[]\n[ ]{}", &["2 {}"]);
    assert_cut("[{\"a\":1}, {\"b\":[2]},3]\n{}", &["1[0] {\"a\":1}", "1[1] {\"b\":[2]}", "1[2] 3", "2 {}"]);
    assert_cut("[\n  {\n    \"a\": 1\n  },\n  {}\n]\n", &["2[0] {\n    \"a\": 1\n  }", "5[1] {}"]);
}

#[test]
fn what_is_wrong_costs_its_line_and_nothing_else() {
    assert_cut("{\"a\":1}\nhello\n{\"b\":2}\n", &["1 {\"a\":1}", "2 ! \"hello\"", "3 {\"b\":2}"]);
    assert_cut("{\"a\":\"x\n{\"b\":2}\n", &["1 ! \"{\\\"a\\\":\\\"x\"", "2 {\"b\":2}"]);
    assert_cut("{\"a\":1,\n{\"b\":2}\n{\"c\":3}\n", &["1 ! \"{\\\"a\\\":1,\"", "2 {\"b\":2}", "3 {\"c\":3}"]);
    assert_cut("{\"a\":1} x\n{}\n", &["1 ! \"{\\\"a\\\":1} x\"", "2 {}"]);
    assert_cut("{\"a\":", &["1 ! \"{\\\"a\\\":\""]);
    assert_cut(
        "{\n  \"a\": 1\n  \"b\": 2\n}\n{\"c\":3}\n",
        &["1 ! \"{\\n  \\\"a\\\": 1\\n  \\\"b\\\": 2\"", "4 ! \"}\"", "5 {\"c\":3}"],
    );
}

#[test]
fn an_element_that_is_wrong_leaves_its_neighbours_alone() {
    assert_cut("[{\"a\":1},{\"b\":x},{\"c\":3}]", &["1[0] {\"a\":1}", "1[1] ! \"{\\\"b\\\":x}\"", "1[2] {\"c\":3}"]);
    assert_cut(
        "[\n{\"a\":1},\n{\"b\":\"x\n{\"c\":3}\n]\n",
        &["2[0] {\"a\":1}", "3[1] ! \"{\\\"b\\\":\\\"x\"", "4[2] {\"c\":3}"],
    );
    assert_cut("[{\"a\":1},", &["1[0] {\"a\":1}", "1 ! \"\" the array that begins here is not closed"]);
    assert_cut(
        "[{\"a\":1}\n{\"b\":2}\n",
        &["1[0] {\"a\":1}", "1 ! \"\" the array that begins here is not closed", "2 {\"b\":2}"],
    );
}

#[test]
fn what_is_no_text_is_bad_by_its_line() {
    let pieces = cut(b"{\"a\":\"\xff\"}\n{}\n\xf0\x9f\x98", 3);
    assert_eq!(
        pieces,
        [
            "1 ! \"{\\\"a\\\":\\\"\u{fffd}\\\"}\" not JSON: not UTF-8 at byte 6",
            "2 {}",
            "3 ! \"\u{fffd}\" not JSON: not UTF-8 at byte 0"
        ]
    );
}

#[test]
fn what_is_too_large_is_passed_through_in_pieces_and_its_neighbours_stay() {
    let large = format!("{{\"event\":\"e\",\"x\":\"{}\"}}", "x".repeat(MAX_ELEMENT_BYTES + (300 << 10)));
    let noise = "x".repeat(MAX_ELEMENT_BYTES + (300 << 10));
    for (text, is_array) in [
        (format!("{{\"a\":1}}\n{large}\n{{\"b\":2}}\n"), false),
        (format!("{{\"a\":1}}\n{noise}\n{{\"b\":2}}\n"), false),
        (format!("[{{\"a\":1}},{large},{{\"b\":2}}]"), true),
    ] {
        let mut values = Values::new(Dripping(text.as_bytes(), usize::MAX));
        let (mut good, mut bad) = (Vec::new(), 0);
        while let Some(piece) = values.next().unwrap() {
            match piece {
                Piece::Value(at, text) => good.push((at.line, at.index, text.to_owned())),
                Piece::Bad(_, bytes, _) | Piece::Rest(bytes) => bad += bytes.len(),
            }
        }
        let index = |index| is_array.then_some(index);
        let last = if is_array { 1 } else { 3 };
        assert_eq!(good, [(1, index(0), "{\"a\":1}".to_owned()), (last, index(2), "{\"b\":2}".to_owned())]);
        assert_eq!(bad, if text.contains("event") { large.len() } else { noise.len() });
        assert!(values.buffer.capacity() < 3 * MAX_ELEMENT_BYTES);
    }
}

#[test]
fn a_batch_may_be_larger_than_an_event() {
    let event = format!("{{\"event\":\"e\",\"x\":\"{}\"}}", "x".repeat(1 << 20));
    let batch = format!("{{\"batch\":[{}],\"sent_at\":1}}", [event.as_str(); 5].join(","));
    assert_eq!(cut(batch.as_bytes(), usize::MAX), [format!("1 {batch}")]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_is_handed_out_once_and_no_matter_how_it_arrives(
        pieces in prop::collection::vec(prop::sample::select(&[
            "{\"a\":1}", "{\"b\":[true, \"x\\\"\"]}", "\n", "\n  ", "[", "]", ",", " ", "\"", "{", "}", "nul", "\u{e9}", "\u{0}", "7",
        ][..]), 0..40),
        step in 1..20_usize,
    ) {
        let text = pieces.concat();
        let whole = cut(text.as_bytes(), usize::MAX);
        prop_assert_eq!(&whole, &cut(text.as_bytes(), step));
        let mut values = Values::new(text.as_bytes());
        let mut handed_out = Vec::new();
        while let Some(piece) = values.next().unwrap() {
            handed_out.extend_from_slice(match piece {
                Piece::Value(_, text) => text.as_bytes(),
                Piece::Bad(_, bytes, _) | Piece::Rest(bytes) => bytes,
            });
        }
        let telling = |bytes: &[u8]| bytes.iter().copied().filter(|byte| !b" \r\n[],".contains(byte)).collect::<Vec<_>>();
        prop_assert_eq!(telling(&handed_out), telling(text.as_bytes()));
    }

    #[test]
    fn good_lines_are_found_among_bad_ones(lines in prop::collection::vec(prop::sample::select(&[
        "{\"a\":1}", "{\"b\":\"x\"}", "rubbish", "{\"a\":", "{\"a\":\"", "\"", "{]", "{\"a\":1},", "17 4",
    ][..]), 0..30)) {
        let good: Vec<_> = lines.iter().copied().filter(|line| ["{\"a\":1}", "{\"b\":\"x\"}"].contains(line)).collect();
        let found = cut(lines.join("\n").as_bytes(), 5);
        let found: Vec<_> = found.iter().filter(|piece| !piece.contains('!')).map(|piece| &piece[piece.find(' ').unwrap() + 1..]).collect();
        prop_assert_eq!(found, good);
    }
}

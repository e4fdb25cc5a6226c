//! `preview` shows what would be posted, and for everything else its place and the reason why it would not be.

use serde_json::{Value, json};

use crate::program::{Ended, Program};

/// Returns the path of a file beside the tests.
pub fn fixture(name: &str) -> String {
    format!("{}/tests/it/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn bodies(ended: &Ended) -> Vec<Value> {
    ended.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids(ended: &Ended) -> Vec<String> {
    bodies(ended).iter().map(|body| body["messageId"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn an_export_is_shown_the_same_however_it_is_packed() {
    let plain = Program::new(["preview", &fixture("export.jsonl")]).run().await;
    assert_eq!(plain.code, 0, "{plain:?}");
    let ids = ids(&plain);
    assert_eq!(ids, [0, 1, 3, 4].map(|n| format!("0198c4c1-0000-7000-8000-00000000000{n}")));
    let bodies = bodies(&plain);
    assert_eq!((&bodies[0]["type"], &bodies[1]["type"]), (&json!("track"), &json!("page")));
    assert_eq!(bodies[2]["properties"], json!({"plan": "team", "seats": 12}), "its properties were in a string");
    let table = "    5  events\n    4  would be posted\n      3  capture (type track)\n      1  page (type page)\n    \
                 1  filtered\n      1  $autocapture: not one of the calls that Variance accepts\n    0  invalid\n";
    assert_eq!(
        plain.err.replace("      ", "   ").replace("    ", ""),
        table.replace("      ", "   ").replace("    ", "")
    );
    for name in ["export.jsonl.gz", "export.jsonl.br"] {
        let packed = std::fs::read(fixture(name)).unwrap();
        let from_pipe = Program::new(["preview"]).input(packed).run().await;
        let from_file = Program::new(["preview", &fixture(name)]).run().await;
        for ended in [from_pipe, from_file] {
            assert_eq!((ended.code, &ended.out, &ended.err), (0, &plain.out, &plain.err), "{name}");
        }
    }
}

#[tokio::test]
async fn every_shape_of_body_is_read_over_lines_or_not() {
    let event = |n: u32| json!({"event": "e", "uuid": format!("u{n}"), "distinct_id": "d", "properties": {"n": n}});
    let batch = json!({"batch": [event(3), {"event": event(4), "person": {}}], "sent_at": "2026-08-20T00:00:00Z"});
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let pretty = |value: Value| serde_json::to_string_pretty(&value).unwrap();
    let lines = file("lines", &format!("\n{}\r\n \n{batch}\n{}", event(0), json!([event(1), event(2)])));
    let wrapped = file("wrapped", &pretty(json!({"event": event(5), "person": {"properties": {}}})));
    let array = file("array", &format!("\u{feff}\n[\n{},\n{}\n]\n", event(6), event(7)));
    let pretty_batch = file("batch", &pretty(json!({"batch": [event(8)]})));
    let ended = Program::new(["preview", &lines, &wrapped, &array, &pretty_batch]).run().await;
    assert_eq!(ids(&ended), ["u0", "u3", "u4", "u1", "u2", "u5", "u6", "u7", "u8"], "{ended:?}");
    assert_eq!(bodies(&ended)[2]["sentAt"], "2026-08-20T00:00:00Z");
    let input = event(0).to_string();
    let pretty = Program::new(["preview", "--pretty", "-q"]).input(input).run().await;
    assert!(pretty.out.starts_with("{\n  \"messageId\": \"u0\",\n"), "{}", pretty.out);
    assert_eq!(pretty.err, "");
}

#[tokio::test]
async fn what_is_invalid_is_named_with_file_and_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mixed.jsonl");
    let input = "{\"event\":\"a\",\"uuid\":\"1\"}\nno json\n{\"event\":7}\n[{\"event\":\"b\",\"uuid\":\"2\"},{}]\n\
                 {\"event\":\"c\",\"prop\n{\"event\":\"d\",\"uuid\":\"3\"}\n42\n";
    std::fs::write(&file, input).unwrap();
    let manifest = directory.path().join("2026_manifest.json");
    std::fs::write(&manifest, r#"{"files": ["a.jsonl.gz"]}"#).unwrap();
    let ended = Program::new(["preview", file.to_str().unwrap(), manifest.to_str().unwrap()]).run().await;
    assert_eq!((ended.code, ids(&ended)), (0, vec!["1".to_owned(), "2".to_owned(), "3".to_owned()]), "{ended:?}");
    let file = file.display();
    for line in [
        format!("2  not JSON: {file}:2 (expected a value at byte 0), {file}:5 (expected the closing quote"),
        format!("1  the event has no name: `event` must be a string that is not empty: {file}:3"),
        format!("1  the event has no name: `event` is missing: {file}:4[1]"),
        format!("1  the body must be a JSON object or array: {file}:7"),
        format!("note: {}:1: this is a list of exported files", manifest.display()),
    ] {
        assert!(ended.err.contains(&line), "{line} in {}", ended.err);
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_named_and_the_rest_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let packed = std::fs::read(fixture("export.jsonl.gz")).unwrap();
    std::fs::write(path("cut.gz"), &packed[..packed.len() - 100]).unwrap();
    let brotli = std::fs::read(fixture("export.jsonl.br")).unwrap();
    std::fs::write(path("cut.br"), &brotli[..brotli.len() - 10]).unwrap();
    std::fs::write(path("rubbish"), [0x7f, 0, 1, 2, 3, 0xff, 0xfe, 0xfd, 9]).unwrap();
    std::fs::write(path("empty"), "").unwrap();
    let files = ["missing", "", "cut.gz", "cut.br", "rubbish", "empty"].map(path);
    let arguments = ["preview".to_owned()].into_iter().chain(files).chain([fixture("export.jsonl")]);
    let ended = Program::new(arguments).run().await;
    assert_eq!(ended.code, 1);
    for problem in [
        format!("error: {}: No such file", path("missing")),
        format!("error: {}: it is a directory", path("")),
        format!("error: {}:5: it cannot be read from here on: ", path("cut.gz")),
        format!("error: {}:5: it cannot be read from here on: ", path("cut.br")),
        format!("error: {}: this is neither text nor gzip nor Brotli", path("rubbish")),
    ] {
        assert!(ended.err.contains(&problem), "{problem} in {}", ended.err);
    }
    assert_eq!(ended.err.matches("error: ").count(), 5, "{}", ended.err);
    assert!(ids(&ended).ends_with(&["0198c4c1-0000-7000-8000-000000000004".to_owned()]), "the last file was read");
}

#[tokio::test]
async fn filters_count_if_they_are_configured_and_nothing_else_need_be() {
    let input = "{\"event\":\"a\"}\n{\"event\":\"$pageview\"}\n{\"event\":\"b1\"}\n";
    let run = || Program::new(["preview"]).input(input);
    let ended = run().env("CONNECTOR_EXCLUDE", "b*").env("CONNECTOR_CALLS", "capture").run().await;
    assert_eq!((ended.code, ended.out.lines().count()), (0, 1), "{ended:?}");
    assert!(ended.err.contains("$pageview: the call `page` is not in filter.calls"), "{}", ended.err);
    assert!(ended.err.contains("b1: excluded by filter.exclude"), "{}", ended.err);
    let ended = run().env("CONNECTOR_CALLS", "walk").run().await;
    assert_eq!((ended.code, ended.out.as_str()), (64, ""));
}

#[tokio::test]
async fn a_reader_who_has_seen_enough_is_no_error() {
    let input = "{\"event\":\"an event with a name that is not short\"}\n".repeat(50_000);
    let mut running = Program::new(["preview"]).input(input).start();
    drop(running.child.as_mut().unwrap().stdout.take());
    let ended = running.ended().await;
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
}

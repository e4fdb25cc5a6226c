//! `backfill` forwards files and loses nothing in them.

use std::{
    collections::HashSet,
    fs,
    path::PathBuf,
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    preview::fixture,
    program::Program,
    variance::{Behaviour, Variance},
};

/// A directory for the files of one test.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn named(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).unwrap();
        self.named(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
}

fn event(id: &str) -> Value {
    json!({"event": "e", "uuid": id, "distinct_id": "d", "timestamp": "2026-08-20T09:00:00Z", "properties": {"a": 1}})
}

/// Returns a line for each of `count` events.
fn lines(count: u32) -> String {
    (0..count).map(|n| format!("{}\n", event(&format!("u{n}")))).collect()
}

#[tokio::test]
async fn exports_are_delivered_once_and_the_summary_adds_up() {
    let variance = Variance::start().await;
    let ended =
        Program::new(["backfill", &fixture("export.jsonl.gz"), &fixture("export.jsonl.br")]).to(&variance).run().await;
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    assert_eq!(ended.summary(), "10 events read = 8 delivered + 2 filtered + 0 refused + 0 invalid");
    let mut ids = variance.ids();
    ids.sort();
    assert_eq!(ids, [0, 1, 3, 4].map(|n| format!("0198c4c1-0000-7000-8000-00000000000{n}")), "the second file repeats");
    let in_string =
        variance.bodies().into_iter().find(|body| body["messageId"].as_str().unwrap().ends_with('3')).unwrap();
    assert_eq!(in_string["properties"], json!({"plan": "team", "seats": 12}));
    let ended = Program::new(["backfill", "-q", "-"]).to(&variance).input(event("piped").to_string()).run().await;
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (0, "", ""));
    assert_eq!(variance.ids().last().unwrap(), "piped");
}

#[tokio::test]
async fn failures_are_kept_as_they_were_and_can_be_the_next_input() {
    let variance = Variance::start().await;
    variance.script(|received| Behaviour::Status(if received.id().starts_with("bad") { 422 } else { 200 }));
    let files = Files::new();
    let bad = r#"{"event" : "e","uuid":"bad1", "properties":"{\"n\":1.50}"}"#;
    let large = format!(r#"{{"event":"e","x":"{}"}}"#, "x".repeat(5 << 20));
    let batch = format!(r#"{{"sent_at":"2026-08-20T00:00:00Z","batch":[{},{}]}}"#, event("b1"), event("bad2"));
    let pretty = serde_json::to_string_pretty(&json!([event("c1"), {"event": 7}])).unwrap();
    let input = format!("{bad}\nno json\n{}\n{large}\n{batch}\n\u{0}\u{1}\n{}", event("a1"), event("a2"));
    let input = files.write("in.jsonl", input);
    let pretty = files.write("pretty.json", pretty);
    let arguments = ["backfill", "--failed", &files.named("failed.jsonl"), &input, &pretty];
    let ended = Program::new(arguments).to(&variance).run().await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert_eq!(ended.summary(), "10 events read = 4 delivered + 0 filtered + 2 refused + 4 invalid");
    for reason in [
        format!("{input}:1: refused: Variance refused the event: 422 Unprocessable Entity"),
        format!("{input}:2: invalid: not JSON: expected a value at byte 0"),
        format!("{input}:4: invalid: the event is larger than 4 MiB"),
        format!("{input}:5[1]: refused: Variance refused the event: 422 Unprocessable Entity"),
        format!("{pretty}:1[1]: invalid: the event has no name"),
        format!("{input}:6: invalid: not JSON"),
    ] {
        assert!(ended.err.contains(&reason), "{reason} in {}", ended.err);
    }
    let failed = files.read("failed.jsonl");
    let wrapped = format!(r#"{{"sent_at":"2026-08-20T00:00:00Z","batch":[{}]}}"#, event("bad2"));
    let expected = HashSet::from([bad, "no json", &large, &wrapped, r#"{     "event": 7   }"#, "\u{0}\u{1}"]);
    assert_eq!(failed.lines().collect::<HashSet<_>>(), expected);

    variance.always(Behaviour::Status(200));
    let again = Program::new(["backfill", "--failed", &files.named("rest.jsonl"), &files.named("failed.jsonl")]);
    let ended = again.to(&variance).run().await;
    assert_eq!(ended.summary(), "6 events read = 2 delivered + 0 filtered + 0 refused + 4 invalid");
    let bodies = variance.bodies();
    let body = bodies.iter().rfind(|body| body["messageId"] == "bad2").unwrap();
    assert_eq!(body["sentAt"], "2026-08-20T00:00:00Z", "it still knows when its batch was sent");
    assert!(
        String::from_utf8_lossy(&variance.received().iter().rfind(|received| received.id() == "bad1").unwrap().body)
            .contains("1.50")
    );
}

#[tokio::test]
async fn only_the_times_that_are_asked_for_are_forwarded() {
    let variance = Variance::start().await;
    let at = |time: &str| format!("{}\n", json!({"event": "e", "uuid": time, "timestamp": time}));
    let times = [
        "2026-08-19T23:59:59.9Z",
        "2026-08-20T00:00:00+00:00",
        "2026-08-20 23:00:00",
        "2026-08-21T01:00:00+02:00",
        "2026-08-21T00:00:00Z",
        "soon",
    ];
    let input: String = times.iter().map(|time| at(time)).collect();
    let arguments = ["backfill", "--since", "2026-08-20", "--until=2026-08-21T00:00:00Z", "-"];
    let ended = Program::new(arguments).to(&variance).input(input).run().await;
    assert_eq!(ended.code, 1, "{ended:?}");
    let mut ids = variance.ids();
    ids.sort();
    assert_eq!(ids, [times[2], times[1], times[3]]);
    assert_eq!(
        ended.summary(),
        "6 events read = 3 delivered + 0 filtered + 0 refused + 1 invalid + 2 outside of the times asked for"
    );
    assert!(ended.err.contains("standard input:6: invalid: the event has no readable timestamp"), "{}", ended.err);
}

#[tokio::test]
async fn no_more_events_a_second_are_posted_than_allowed_and_there_is_a_line_now_and_then() {
    let variance = Variance::start().await;
    let start = Instant::now();
    let ended = Program::new(["backfill", "--rate", "4", "-"]).to(&variance).input(lines(24)).run().await;
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!((ended.code, variance.received().len()), (0, 24));
    assert!(
        ended.out.contains("(4 events per second)") || ended.out.contains("(3 events per second)"),
        "{}",
        ended.out
    );
    // The first event goes at once, and a tenth of a second may be caught up.
    assert!(seconds > 23.0 / 4.0 - 0.2, "{seconds}");
    assert!(
        ended.err.contains("events/s, ") && ended.err.contains(" delivered, 0 refused, 0 invalid"),
        "{}",
        ended.err
    );
}

#[tokio::test]
async fn while_variance_is_away_it_waits_even_longer_than_the_service_would() {
    let mut variance = Variance::start().await;
    let files = Files::new();
    let input = files.write("in.jsonl", lines(30));
    variance.vanish();
    // The first pause is longer than this, so that the event is given up before there is another attempt.
    let program = Program::new(["backfill", &input]).to(&variance).env("CONNECTOR_RETRY_FOR", "300ms");
    let mut running = program.start();
    let mut errors = running.errors();
    errors.line("Variance does not accept events (no connection to Variance's host): waiting").await;
    variance.come_back();
    let ended = running.ended().await;
    assert_eq!(
        (ended.code, ended.summary()),
        (0, "30 events read = 30 delivered + 0 filtered + 0 refused + 0 invalid")
    );
    assert_eq!(variance.ids().into_iter().collect::<HashSet<_>>().len(), 30);
}

#[tokio::test]
async fn an_outage_that_outlasts_retry_for_costs_no_event() {
    let variance = Variance::start().await;
    // Each of two outages is longer than an event may be held.
    let start = OnceLock::new();
    variance.script(move |_| {
        let seconds = start.get_or_init(Instant::now).elapsed().as_secs_f64();
        let is_away = (0.3..2.0).contains(&seconds) || (2.5..4.0).contains(&seconds);
        let status = Behaviour::Status(if is_away { 503 } else { 200 });
        Behaviour::After(Duration::from_millis(20), Box::new(status))
    });
    let program = Program::new(["backfill", "-"]).to(&variance).env("CONNECTOR_RETRY_FOR", "300ms");
    let ended = program.input(lines(3000)).run().await;
    assert_eq!(
        (ended.code, ended.summary()),
        (0, "3,000 events read = 3,000 delivered + 0 filtered + 0 refused + 0 invalid"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn an_event_that_variance_always_fails_on_ends_as_refused() {
    let variance = Variance::start().await;
    variance.script(|received| Behaviour::Status(if received.id() == "u7" { 500 } else { 200 }));
    let program = Program::new(["backfill", "-"]).to(&variance).env("CONNECTOR_RETRY_FOR", "2s");
    let ended = program.input(lines(300)).run().await;
    assert_eq!(
        (ended.code, ended.summary()),
        (1, "300 events read = 299 delivered + 0 filtered + 1 refused + 0 invalid"),
        "{ended:?}"
    );
    let line = ended.err.lines().find(|line| line.starts_with("standard input:8: refused: ")).expect(&ended.err);
    assert!(line.ends_with("Variance answered 500 Internal Server Error"), "{line}");
}

#[tokio::test]
async fn an_interrupted_run_says_how_to_go_on_and_nothing_is_left_out() {
    let variance = Variance::start().await;
    let files = Files::new();
    let input = format!("no json\n{}", lines(200));
    let input = files.write("in put.jsonl", input);
    let failed = files.named("failed");
    let running = Program::new(["backfill", "--rate=50", "--failed", &failed, &input]).to(&variance).start();
    variance.received_at_least(10).await;
    let pid = running.child.as_ref().unwrap().id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let ended = running.ended().await;
    assert_eq!(ended.code, 1, "{ended:?}");
    let sent = variance.received().len();
    assert!(sent < 200, "it stopped early");
    let line = ended.err.lines().find(|line| line.contains("--skip")).unwrap();
    let expected = format!("  variance-connector backfill --skip {} --failed {failed} --rate 50 '{input}'", sent + 1);
    assert_eq!(line, expected, "{ended:?}");
    let skip = (sent + 1).to_string();
    let ended = Program::new(["backfill", "--skip", &skip, &input]).to(&variance).run().await;
    let rest = 200 - sent;
    assert_eq!(ended.summary(), format!("{rest} events read = {rest} delivered + 0 filtered + 0 refused + 0 invalid"));
    assert_eq!(variance.ids().into_iter().collect::<HashSet<_>>().len(), 200);
    assert_eq!(variance.received().len(), 200, "none was sent twice");
}

#[tokio::test]
async fn inputs_that_cannot_be_read_are_named_and_the_rest_is_delivered() {
    let variance = Variance::start().await;
    let files = Files::new();
    let packed = fs::read(fixture("export.jsonl.gz")).unwrap();
    let cut = files.write("cut.gz", &packed[..packed.len() - 100]);
    let empty = files.write("empty.jsonl", "");
    let missing = files.named("missing");
    let ended = Program::new(["backfill", &missing, &files.named("."), &cut, &empty, &fixture("export.jsonl")])
        .to(&variance)
        .run()
        .await;
    assert_eq!(ended.code, 1);
    for problem in [
        format!("error: {missing}: No such file"),
        format!("error: {cut}:5: it cannot be read from here on"),
        "it is a directory".to_owned(),
    ] {
        assert!(ended.err.contains(&problem), "{problem} in {}", ended.err);
    }
    assert_eq!(
        ended.summary(),
        "10 events read = 7 delivered + 2 filtered + 0 refused + 1 invalid; inputs that could not be read to the end: 3"
    );
    assert_eq!(variance.received().len(), 4);
}

#[tokio::test]
async fn bad_usage_and_configuration_are_64_and_nothing_is_sent() {
    let variance = Variance::start().await;
    let files = Files::new();
    let input = files.write("in.jsonl", lines(1));
    for arguments in [
        &["backfill"][..],
        &["backfill", "--rate", "0", &input],
        &["backfill", "--since", "yesterday", &input],
        &["backfill", "--failed", &input, &input],
    ] {
        let ended = Program::new(arguments).to(&variance).run().await;
        assert_eq!((ended.code, ended.out.as_str()), (64, ""), "{arguments:?}");
    }
    let ended = Program::new(["backfill", &input]).run().await;
    assert!(ended.code == 64 && ended.err.contains("variance.webhook_url"), "{ended:?}");
    assert_eq!(files.read("in.jsonl"), lines(1));
    assert!(variance.received().is_empty());
    let ended = Program::new(["backfill", &input]).to(&variance).env("CONNECTOR_LISTEN", "0.0.0.0:80").run().await;
    assert_eq!(ended.code, 0, "it receives nothing, so it needs no credential of senders: {ended:?}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_failure_that_cannot_be_kept_ends_the_run_and_says_how_to_go_on() {
    let variance = Variance::start().await;
    let files = Files::new();
    let input = files.write("in.jsonl", format!("{}no json\n{}", lines(2), event("last")));
    let ended = Program::new(["backfill", "--failed", "/dev/full", &input]).to(&variance).run().await;
    assert_eq!((ended.code, variance.received().len()), (1, 2), "{ended:?}");
    assert!(ended.err.contains("the file that --failed names cannot be written: No space left"), "{}", ended.err);
    assert!(ended.err.contains(" --skip 2 "), "{}", ended.err);
}

#[tokio::test]
async fn a_credential_that_variance_does_not_accept_ends_it_early_unless_it_has_delivered_before() {
    let variance = Variance::start().await;
    let files = Files::new();
    let input = files.write("in.jsonl", lines(300));
    variance.always(Behaviour::Status(401));
    let ended = Program::new(["backfill", &input]).to(&variance).run().await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.summary().contains("= 0 delivered + 0 filtered + 0 refused + 0 invalid + "), "{ended:?}");
    assert!(ended.out.contains("(0 events per second)"), "{ended:?}");
    let advice =
        "error: credential refused: Variance answered 401 Unauthorized. variance.authorization must be the whole value";
    assert!(ended.err.contains(advice), "{}", ended.err);
    assert!(
        ended.err.ends_with(&format!("To go on from here:\n  variance-connector backfill --skip 0 {input}\n")),
        "{}",
        ended.err
    );

    let answers = std::sync::atomic::AtomicUsize::new(0);
    variance.script(move |_| {
        let number = answers.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Behaviour::Status(if (50..100).contains(&number) { 401 } else { 200 })
    });
    let ended = Program::new(["backfill", &input]).to(&variance).run().await;
    assert_eq!(ended.code, 0, "{ended:?}");
}

#[tokio::test]
async fn a_variance_that_refuses_the_first_events_ends_it_early_and_nothing_is_left_out() {
    let variance = Variance::start().await;
    let files = Files::new();
    let input = files.write("in.jsonl", lines(1000));
    variance.always(Behaviour::Status(400));
    let ended = Program::new(["backfill", "--failed", &files.named("failed"), &input]).to(&variance).run().await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(
        ended.err.contains("error: event refused: Variance answered 400 Bad Request. It accepted the credential"),
        "{}",
        ended.err
    );
    let failed = files.read("failed").lines().count();
    assert!((20..1000).contains(&failed), "{failed}");

    variance.always(Behaviour::Status(200));
    let (_, command) = ended.err.split_once("backfill --skip ").unwrap();
    let skip = command.split_whitespace().next().unwrap();
    let before = variance.received().len();
    for arguments in [&["backfill", "--skip", skip, &input][..], &["backfill", &files.named("failed")]] {
        let ended = Program::new(arguments).to(&variance).run().await;
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    let delivered: HashSet<_> = variance.received()[before..].iter().map(|received| received.id()).collect();
    assert_eq!(delivered.len(), 1000);
}

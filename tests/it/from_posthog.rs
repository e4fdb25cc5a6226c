//! `backfill --from-posthog` against a scripted stand-in for PostHog's Query API: its queries, and its treatment of
//! wrong answers. `tests/posthog/run` does the same with a real ClickHouse.

use std::{
    collections::HashSet,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    certificates,
    program::Program,
    tls,
    variance::{Behaviour, Received, Variance},
};

const KEY: &str = "phx_the_canary_of_the_key";

const PAGE: [&str; 7] =
    ["ev_uuid", "ev_name", "ev_distinct_id", "ev_timestamp", "ev_created_at", "ev_properties", "ev_person"];

/// Returns a row of PostHog's table, as it stands in a page.
fn row(number: u32) -> Value {
    let uuid = format!("0198c4c1-6c1e-7d3a-9b54-{number:012}");
    let time = format!("2026-08-20 09:{:02}:{:02}.000000", number / 60, number % 60);
    json!([uuid, "e", "user", time, time, format!("{{\"n\":{number}}}"), "{\"email\":\"ada@example.com\"}"])
}

fn reply(columns: &[&str], results: &[Value]) -> Behaviour {
    text(200, &table(columns, results))
}

fn table(columns: &[&str], results: &[Value]) -> String {
    json!({"columns": columns, "results": results, "error": null, "hasMore": false}).to_string()
}

fn text(status: u16, body: &str) -> Behaviour {
    Behaviour::Bytes(format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes())
}

/// Returns the answer of a server with these rows, which returns three at most.
fn answer(rows: &[Value], received: &Received) -> Behaviour {
    let query = &received.json()["query"];
    let text = query["query"].as_str().unwrap();
    let value = |placeholder: &str| query["values"][placeholder.trim_matches(['{', '}'])].as_str().unwrap().to_owned();
    let placeholder = |before: &str| text.split_once(before).map(|(_, rest)| value(&rest[..rest.find('}').unwrap()]));
    let after = placeholder("OR toString(uuid) > ").unwrap_or_default();
    let left = rows.iter().filter(|row| row[0].as_str().unwrap() > after.as_str());
    if text.contains("ev_day") {
        return match placeholder("timestamp >= toDateTime(").unwrap().as_str() < "2026-08-21" {
            true => reply(&["ev_day", "ev_count"], &[json!(["2026-08-20", left.count()])]),
            false => reply(&["ev_day", "ev_count"], &[]),
        };
    }
    reply(&PAGE, &left.take(3).cloned().collect::<Vec<_>>())
}

fn program(variance: &Variance, posthog: &Variance, arguments: &[&str]) -> Program {
    Program::new([&["backfill", "--from-posthog"], arguments].concat())
        .to(variance)
        .env("POSTHOG_URL", format!("http://{}", posthog.address))
        .env("POSTHOG_PROJECT_ID", "7")
        .env("POSTHOG_API_KEY", KEY)
}

const DAY: [&str; 4] = ["--since", "2026-08-20", "--until", "2026-08-21"];

#[tokio::test]
async fn every_event_of_a_time_is_fetched_until_a_page_is_empty() {
    let (variance, posthog) = (Variance::start().await, Variance::start().await);
    let rows: Vec<_> = (0..20).map(row).collect();
    posthog.script(move |received| answer(&rows, received));
    let ended = program(&variance, &posthog, &DAY).env("CONNECTOR_PERSON_TRAITS", "true").run().await;
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(ended.summary(), "20 events read = 20 delivered + 0 filtered + 0 refused + 0 invalid");
    assert!(ended.err.contains("PostHog has 20 events that are forwarded, from 2026-08-20T00:00:00Z"), "{}", ended.err);
    assert!(!format!("{ended:?}").contains("canary"), "{ended:?}");
    let bodies = variance.bodies();
    assert_eq!(variance.ids().into_iter().collect::<HashSet<_>>().len(), 20);
    assert_eq!(bodies[0]["timestamp"].as_str().unwrap().len(), "2026-08-20T09:00:00Z".len());
    assert_eq!(bodies[0]["context"]["traits"], json!({"email": "ada@example.com"}));
    let ended = program(&variance, &posthog, &[]).run().await;
    assert!(ended.code == 0 && ended.err.contains("note: reading ends at 20"), "{ended:?}");
    assert!(ended.err.contains("PostHog has 20 events that are forwarded, from 1970-01-01T00:00:00Z"), "{}", ended.err);
    assert_eq!(posthog.max_in_flight(), 1, "one query at a time");
    for received in posthog.received() {
        assert_eq!(received.line, "POST /api/projects/7/query/ HTTP/1.1");
        assert_eq!(received.headers["authorization"], format!("Bearer {KEY}"));
        let body = received.json();
        assert_eq!(body["refresh"], "force_blocking");
        let keys: HashSet<_> = body["query"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, HashSet::from(["kind", "query", "values", "modifiers"]));
    }
}

#[tokio::test]
async fn what_an_older_posthog_does_not_know_is_left_out() {
    let (variance, posthog) = (Variance::start().await, Variance::start().await);
    posthog.script(|received| match received.json() {
        body if body["refresh"] != true => text(400, r#"{"detail":"refresh: value could not be parsed to a boolean"}"#),
        body if body["query"].get("modifiers").is_some() => text(400, r#"{"detail":"extra inputs are not permitted"}"#),
        _ => answer(&[row(1)], received),
    });
    let ended = program(&variance, &posthog, &DAY).run().await;
    assert_eq!((ended.code, variance.received().len()), (0, 1), "{ended:?}");
}

#[tokio::test]
async fn what_no_waiting_helps_ends_at_once_and_says_what_to_do() {
    let variance = Variance::start().await;
    let moved = "HTTP/1.1 302 X\r\nLocation: https://eu.posthog.com/login\r\nContent-Length: 0\r\n\r\n";
    let bad_row = json!(["one value"]);
    for (behaviour, says) in [
        (
            text(401, r#"{"detail":"Invalid personal API key."}"#),
            "Invalid personal API key. 127.0.0.1 does not know posthog.api_key",
        ),
        (text(403, r#"{"detail":"API key missing required scope 'query:read'"}"#), "give it query:read in Settings"),
        (text(403, r#"{"detail":"You don't have access to the project."}"#), "has no access to project 7"),
        (text(404, r#"{"detail":"Not found."}"#), "There is no project 7 at 127.0.0.1: posthog.project_id is"),
        (text(429, r#"{"detail":"maximum concurrency limit: 0"}"#), "quota is used up, so waiting does not help"),
        (Behaviour::Bytes(moved.into()), ", a redirect to https://eu.posthog.com: set posthog.url"),
        (text(200, "<!DOCTYPE html><title>Log in</title>"), "something other than JSON, such as a login page"),
        (text(200, r#"{"status":"ok"}"#), "columns that were not asked for"),
        (reply(&["uuid"], &[]), "columns that were not asked for"),
        (reply(&["ev_day", "ev_count"], &[bad_row]), "rows in an unexpected form"),
        (reply(&["ev_day", "ev_count"], &[json!(["soon", "many"])]), "counts in an unexpected form"),
        (text(200, r#"{"columns":[],"results":[],"error":"it broke"}"#), "PostHog could not answer: \"it broke\""),
    ] {
        let posthog = Variance::start().await;
        posthog.always(behaviour);
        let ended = program(&variance, &posthog, &DAY).run().await;
        assert_eq!(ended.code, 1, "{ended:?}");
        assert!(ended.err.contains(says), "{says} in {}", ended.err);
        assert!(!format!("{ended:?}").contains("canary"), "{ended:?}");
        assert_eq!(posthog.received().len(), 1, "{says}");
    }
    assert!(variance.received().is_empty());
}

#[tokio::test]
async fn rows_that_were_not_asked_for_end_it_before_any_is_lost() {
    let variance = Variance::start().await;
    let mut outside = row(1);
    outside[3] = json!("2026-08-21 00:00:00.000000");
    for (rows, says) in [
        (vec![row(2), row(1)], "in the wrong order"),
        (vec![outside], "outside of the time range that was asked for"),
        (vec![json!([1, 2, 3, 4, 5, 6, 7])], "values in an unexpected form"),
    ] {
        let posthog = Variance::start().await;
        posthog.script(move |received| match received.json()["query"]["query"].as_str() {
            Some(query) if query.contains("ev_day") => answer(&[row(1)], received),
            _ => reply(&PAGE, &rows),
        });
        let ended = program(&variance, &posthog, &DAY).run().await;
        assert_eq!(ended.code, 1, "{ended:?}");
        assert!(ended.err.contains(says), "{says} in {}", ended.err);
        assert!(ended.err.contains("To go on from here:"), "{}", ended.err);
    }
}

#[tokio::test]
async fn what_passes_is_waited_for_and_too_much_is_asked_for_in_pieces() {
    let (variance, posthog) = (Variance::start().await, Variance::start().await);
    let rows: Vec<_> = (0..9).map(row).collect();
    let faults = Mutex::new(vec![
        Behaviour::StatusWith(429, "Retry-After: 1\r\n".to_owned()),
        Behaviour::Status(503),
        Behaviour::Reset,
        Behaviour::BytesThenClose(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"columns\":".to_vec()),
        Behaviour::Status(504),
        Behaviour::Status(500),
        Behaviour::Status(512),
    ]);
    let count = Mutex::new(0);
    posthog.script(move |received| {
        let mut count = count.lock().unwrap();
        *count += 1;
        let fault = (*count % 2 == 0).then(|| faults.lock().unwrap().pop()).flatten();
        fault.unwrap_or_else(|| answer(&rows, received))
    });
    let ended = program(&variance, &posthog, &DAY).run().await;
    assert_eq!((ended.code, variance.ids().len()), (0, 9), "{ended:?}");
    for says in ["PostHog answered 429", "asking again in 1s", "PostHog answered 504", "asking for less at once"] {
        assert!(ended.err.contains(says), "{says} in {}", ended.err);
    }
}

#[tokio::test]
async fn a_posthog_that_goes_away_after_events_have_flowed_is_waited_for() {
    let (variance, mut posthog) = (Variance::start().await, Variance::start().await);
    let rows: Vec<_> = (0..9).map(row).collect();
    posthog.script(move |received| match received.json()["query"]["query"].as_str() {
        Some(query) if query.contains("toString(uuid) >") => {
            Behaviour::After(Duration::from_millis(300), Box::new(answer(&rows, received)))
        }
        _ => answer(&rows, received),
    });
    let mut running = program(&variance, &posthog, &DAY).start();
    let mut errors = running.errors();
    variance.received_at_least(1).await;
    posthog.vanish();
    errors.line("PostHog cannot be reached").await;
    posthog.come_back();
    let ended = running.ended().await;
    assert_eq!((ended.code, variance.ids().len()), (0, 9), "{ended:?}");
}

#[tokio::test]
async fn of_a_day_that_has_grown_what_came_late_is_read_and_an_interruption_repeats_only_what_was_in_flight() {
    let (variance, posthog) = (Variance::start().await, Variance::start().await);
    let mut rows: Vec<_> = (0..10).map(row).collect();
    // The last four come in during the run: one before its page is read, the others after that.
    let now = jiff::Timestamp::now().strftime("%F %T.%6f").to_string();
    rows[6..].iter_mut().for_each(|row| row[4] = json!(now));
    let counts = AtomicUsize::new(0);
    posthog.script(move |received| {
        let query = received.json()["query"]["query"].to_string();
        let count = if query.contains("ev_day") { counts.fetch_add(1, Ordering::Relaxed) } else { 0 };
        let rows = match query.contains(" AND created_at >= toDateTime(") {
            true => &rows[6..],
            false if count > 0 => &rows[..],
            false => &rows[..7],
        };
        answer(rows, received)
    });
    let late: Vec<_> = (7..10).map(|number| row(number)[0].as_str().unwrap().to_owned()).collect();
    let is_late = late.clone();
    variance.script(move |received| match is_late.contains(&received.id()) {
        true => Behaviour::BytesThenSilence(Vec::new()),
        false => Behaviour::Status(200),
    });
    let running = program(&variance, &posthog, &DAY).env("CONNECTOR_SHUTDOWN_GRACE", "100ms").start();
    variance.received_at_least(10).await;
    running.signal("-INT");
    let ended = running.ended().await;
    assert_eq!(
        ended.summary(),
        "10 events read = 7 delivered + 0 filtered + 0 refused + 0 invalid + 3 not delivered yet",
        "{ended:?}"
    );
    assert!(ended.err.contains("2026-08-20 has 3 more events by now: reading what PostHog took in since"), "{ended:?}");
    let (_, command) =
        ended.err.split_once("To go on from here:\n  variance-connector backfill --from-posthog ").unwrap();
    let arguments: Vec<_> = command.trim_end().split(' ').collect();
    let up_to = row(6)[0].as_str().unwrap().to_owned();
    assert_eq!(arguments[..4], ["--since", "2026-08-20T09:00:06Z", "--until", "2026-08-21T00:00:00Z"]);
    assert_eq!([arguments[4], arguments[6], arguments[7]], ["--ingested-since", "--after", &up_to]);
    variance.always(Behaviour::Status(200));
    let ended = program(&variance, &posthog, &arguments).run().await;
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(ended.summary(), "3 events read = 3 delivered + 0 filtered + 0 refused + 0 invalid");
    let mut again = variance.ids().split_off(10);
    again.sort();
    assert_eq!(again, late);
}

#[tokio::test]
async fn events_that_posthog_counts_and_does_not_return_are_missing() {
    let (variance, posthog) = (Variance::start().await, Variance::start().await);
    posthog.script(|received| match received.json()["query"]["query"].as_str() {
        Some(query) if query.contains("ev_day") => reply(&["ev_day", "ev_count"], &[json!(["2026-08-20", 1200])]),
        _ => answer(&[row(0), row(1)], received),
    });
    let ended = program(&variance, &posthog, &DAY).run().await;
    assert_eq!(ended.code, 1, "{ended:?}");
    for says in
        ["has 1,198 more events by now: reading all of it again\n", "counts 1200 events, but returned only 2 of them"]
    {
        assert!(ended.err.contains(says), "{says} in {}", ended.err);
    }
    assert_eq!(
        ended.summary(),
        "2 events read = 2 delivered + 0 filtered + 0 refused + 0 invalid; events not found in PostHog: 1,198"
    );
    assert_eq!(variance.count(), 2, "none is sent twice");
}

#[tokio::test]
async fn a_posthog_with_a_certificate_of_ones_own_is_trusted_by_ssl_cert_file_and_else_given_up_at_once() {
    let variance = Variance::start().await;
    let (port, requests) = tls::server_for_localhost(table(&["ev_day", "ev_count"], &[]));
    let asking = |host: &str, authority: &str| {
        let program = Program::new([&["backfill", "--from-posthog"], &DAY[..]].concat()).to(&variance);
        let program = program.env("POSTHOG_URL", format!("https://{host}:{port}")).env("SSL_CERT_FILE", authority);
        program.env("POSTHOG_PROJECT_ID", "7").env("POSTHOG_API_KEY", KEY).run()
    };
    let ended = asking("localhost", certificates::AUTHORITY).await;
    assert!(ended.code == 0 && ended.err.contains("PostHog has 0 events"), "{ended:?}");
    let requests: Vec<_> = requests.try_iter().collect();
    assert!(requests.iter().all(|head| head.starts_with("POST /api/projects/7/query/ HTTP/1.1\r\n")), "{requests:?}");
    assert_eq!(requests.len(), 2, "the count at the start, and the one at the end");
    let ended = asking("localhost", tls::AUTHORITY).await;
    let says = "error: PostHog's certificate cannot be trusted (invalid peer certificate: UnknownIssuer): \
                SSL_CERT_FILE can name a bundle with the authority that issued it\n";
    assert!(ended.code == 1 && ended.err.contains(says), "{ended:?}");
    let ended = asking("127.0.0.1", certificates::AUTHORITY).await;
    assert!(ended.code == 1 && ended.err.contains("not valid for name \"127.0.0.1\""), "{ended:?}");
    assert!(!ended.err.contains("SSL_CERT_FILE"), "{ended:?}");
    let ended = asking("localhost", "/nowhere").await;
    assert!(ended.code == 64 && ended.err.contains("error: SSL_CERT_FILE"), "{ended:?}");
}

#[tokio::test]
async fn an_event_whose_properties_are_no_json_costs_no_other() {
    let (variance, posthog) = (Variance::start().await, Variance::start().await);
    let mut bad = row(1);
    bad[5] = json!("{\"cut\":");
    let rows = [row(0), bad, row(2)];
    posthog.script(move |received| answer(&rows, received));
    let directory = tempfile::tempdir().unwrap();
    let failed = directory.path().join("failed.jsonl");
    let ended = program(&variance, &posthog, &[&DAY[..], &["--failed", failed.to_str().unwrap()]].concat()).run().await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert_eq!(ended.summary(), "3 events read = 2 delivered + 0 filtered + 0 refused + 1 invalid");
    let id = "0198c4c1-6c1e-7d3a-9b54-000000000001";
    assert!(ended.err.contains(&format!("PostHog's event {id}: invalid: its `properties` are not")), "{}", ended.err);
    let kept: Value = serde_json::from_str(&std::fs::read_to_string(&failed).unwrap()).unwrap();
    assert_eq!((&kept["uuid"], &kept["properties"]), (&json!(id), &json!("{\"cut\":")));
}

#[tokio::test]
async fn bad_usage_and_configuration_ask_nothing_and_exit_with_64() {
    let (variance, posthog) = (Variance::start().await, Variance::start().await);
    let future = (jiff::Timestamp::now() + Duration::from_secs(86400)).to_string();
    let just_now = jiff::Timestamp::now().to_string();
    for (arguments, says) in [
        (&["--since", "2026-08-21", "--until", "2026-08-20"][..], "--since 2026-08-21T00:00:00Z is not before --until"),
        (&["--until", &future], "is in the future"),
        (&["--since", &just_now], "is less than 15 minutes ago"),
        (&["--since", "soon"], "it must be a date or a time"),
        (&["a.jsonl"], "cannot be used with"),
        (&["--after", "0198c4c1-6c1e-7d3a-9b54-000000000001"], "--since"),
        (&["--lost", "-", "--since", "2026-08-20"], "cannot be used with"),
        (&["--lost", "-", "--ingested-since", "2026-08-20"], "cannot be used with"),
        (&["--since", "2026-08-20", "--skip", "3"], "--skip is for files and --lost"),
    ] {
        let ended = program(&variance, &posthog, arguments).run().await;
        assert_eq!(ended.code, 64, "{ended:?}");
        assert!(ended.err.contains(says), "{says} in {}", ended.err);
    }
    for (name, value, says) in [
        ("POSTHOG_API_KEY", "", "posthog.api_key"),
        (
            "POSTHOG_API_KEY",
            "phc_key_of_a_project",
            "it is the key of a PostHog project (`phc_…`), which can only send events",
        ),
        ("POSTHOG_PROJECT_ID", "phc_x", "posthog.project_id"),
        ("POSTHOG_PROJECT_ID", "", "posthog.project_id"),
        ("POSTHOG_URL", "https://eu.i.posthog.com", "https://eu.posthog.com: eu.i.posthog.com only takes events in"),
        ("POSTHOG_URL", "", "posthog.url"),
    ] {
        let ended = program(&variance, &posthog, &DAY).env(name, value).run().await;
        assert_eq!(ended.code, 64, "{name} {value}: {ended:?}");
        assert!(ended.err.contains(says) && !ended.err.contains("key_of_a_project"), "{says} in {}", ended.err);
    }
    assert!(posthog.received().is_empty());
    for argument in ["--ingested", "--ingested-since=2026-08-20", "--lost=a.log"] {
        let ended = Program::new(["backfill", argument, "-"]).to(&variance).run().await;
        assert!(ended.code == 64 && ended.err.contains("need --from-posthog"), "{argument}: {ended:?}");
    }
}

#[tokio::test]
async fn what_a_log_names_as_lost_is_fetched_and_what_posthog_does_not_have_is_named() {
    let (variance, posthog) = (Variance::start().await, Variance::start().await);
    let rows: Vec<_> = (0..5).map(row).collect();
    posthog.script(move |received| {
        let values = received.json()["query"]["values"].clone();
        let is_asked = |row: &&Value| values.as_object().unwrap().values().any(|value| *value == row[0]);
        // The events are older than a day before the line in the log.
        match values["v0"].as_str().unwrap() < "2026-08-20" {
            true => answer(&rows.iter().filter(is_asked).cloned().collect::<Vec<_>>(), received),
            false => reply(&PAGE, &[]),
        }
    });
    let [a, b, unknown] = [1, 4, 9].map(|number| row(number)[0].as_str().unwrap().to_owned());
    let line = json!({"timestamp": "2026-08-25T00:00:00Z", "message": "events are lost", "uuids": format!("{a} x {b} {unknown} {a}")});
    let log = format!("connector-1  | INFO ready\n{line}\n\u{0}\n");
    let ended = program(&variance, &posthog, &["--lost", "-"]).input(log).run().await;
    assert_eq!(ended.code, 1, "{ended:?}");
    let mut ids = variance.ids();
    ids.sort();
    assert_eq!(ids, [a, b]);
    assert!(ended.err.contains(&format!("PostHog does not have {unknown}\n")), "{}", ended.err);
    assert!(ended.err.contains("not the uuid of an event of PostHog: x\n"), "{}", ended.err);
    assert_eq!(
        ended.summary(),
        "2 events read = 2 delivered + 0 filtered + 0 refused + 0 invalid; events not found in PostHog: 2"
    );

    let asked = posthog.received().len();
    let ended =
        program(&variance, &posthog, &["--lost", "-"]).input("INFO variance_connector::cli: ready\n").run().await;
    assert_eq!((ended.code, ended.out.as_str()), (0, "The log names no event as lost: nothing is lost.\n"));
    assert!(ended.err.contains("cannot name what it lost: use --ingested for that time"), "{ended:?}");
    // A text that is not a log of the connector says nothing about what was lost.
    for other in ["", "Error: No such container: variance-connector\n"] {
        let ended = program(&variance, &posthog, &["--lost", "-"]).input(other).run().await;
        assert!(ended.code == 1 && ended.out.is_empty(), "{ended:?}");
        assert!(ended.err.contains("standard input (--lost) has no line of the connector's log"), "{ended:?}");
    }
    let ended = program(&variance, &posthog, &["--lost", "no/such/log"]).run().await;
    assert!(
        ended.code == 1 && ended.err.contains("the log no/such/log (--lost) cannot be read: No such file"),
        "{ended:?}"
    );
    assert_eq!(posthog.received().len(), asked);
}

#[tokio::test]
async fn an_interrupted_run_over_a_log_that_was_piped_in_says_to_pipe_it_in_again() {
    let (variance, posthog) = (Variance::start().await, Variance::start().await);
    posthog.script(|received| answer(&[row(1)], received));
    variance.always(Behaviour::BytesThenSilence(Vec::new()));
    let log =
        format!("2026-08-20T10:00:00Z variance_connector: events are lost uuids={}\n", row(1)[0].as_str().unwrap());
    let running = program(&variance, &posthog, &["--lost", "-"]).env("CONNECTOR_SHUTDOWN_GRACE", "100ms").input(log);
    let running = running.start();
    variance.received_at_least(1).await;
    running.signal("-INT");
    let ended = running.ended().await;
    let says = "To go on from here:\n  variance-connector backfill --from-posthog --lost -\nPipe the same input into it again.\n";
    assert!(ended.code == 1 && ended.err.ends_with(says), "{ended:?}");
}

#[tokio::test]
async fn check_tries_the_key_with_one_row_and_says_what_the_answer_means() {
    let (variance, posthog) = (Variance::start().await, Variance::start().await);
    let check = |arguments: &[&str]| {
        let program = Program::new([&["check"], arguments].concat()).to(&variance);
        program.env("POSTHOG_URL", format!("http://{}", posthog.address)).env("POSTHOG_PROJECT_ID", "7")
    };
    let ended = check(&[]).env("POSTHOG_API_KEY", KEY).run().await;
    assert!(ended.code == 0 && ended.out.contains("posthog.project_id") && posthog.received().is_empty(), "{ended:?}");
    let ended = check(&[]).run().await;
    assert!(ended.code == 0 && ended.out.contains("warning: posthog.api_key"), "{ended:?}");
    let ended = check(&["--posthog"]).run().await;
    assert!(ended.code == 64 && ended.err.contains("posthog.api_key"), "{ended:?}");
    posthog.always(reply(&["ev_name"], &[json!(["e"])]));
    let ended = check(&["--posthog"]).env("POSTHOG_API_KEY", KEY).run().await;
    assert!(ended.code == 0 && ended.out.ends_with("PostHog answers: project 7 has events\n"), "{ended:?}");
    assert!(posthog.received()[0].json()["query"]["query"].as_str().unwrap().ends_with("LIMIT 1"));
    posthog.always(text(401, "{}"));
    let ended = check(&["--posthog", "--format", "json"]).env("POSTHOG_API_KEY", KEY).run().await;
    let report: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((ended.code, &report["posthog"]["works"]), (1, &json!(false)));
    assert!(!format!("{ended:?}").contains("canary"), "{ended:?}");
    assert!(variance.received().is_empty());
}

//! The program's log, as a machine reads it.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

use crate::{
    harness::{AUTHORIZATION, Reply, client},
    variance::{Behaviour, Variance},
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

const TOKEN: &str = "a-token-of-the-tests";

/// `serve`, whose log is read line by line. It is killed when it is dropped.
struct Program {
    child: Child,
    lines: Receiver<Value>,
    client: Client,
    address: String,
    /// The warnings before it was ready.
    before: Vec<Value>,
    /// The line that says that it is ready.
    ready: Value,
}

impl Program {
    fn start(variance: &Variance, variables: &[(&str, &str)]) -> Self {
        Self::start_as(Command::new(env!("CARGO_BIN_EXE_variance-connector")), variance, variables)
    }

    fn start_as(mut command: Command, variance: &Variance, variables: &[(&str, &str)]) -> Self {
        let mut child = command
            .env_clear()
            .envs([("VARIANCE_WEBHOOK_URL", &*variance.url()), ("VARIANCE_AUTHORIZATION", AUTHORIZATION)])
            .envs([("CONNECTOR_LISTEN", "127.0.0.1:0"), ("CONNECTOR_TOKEN", TOKEN)])
            .envs(variables.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let log = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in log.lines() {
                let line = line.unwrap();
                let line = serde_json::from_str(&line).unwrap_or_else(|_| panic!("a line is JSON, not {line:?}"));
                // The test may have seen enough.
                drop(sender.send(line));
            }
        });
        let mut ready: Value = lines.recv_timeout(PATIENCE).unwrap();
        let mut before = Vec::new();
        while ready["message"] != "ready" {
            before.push(std::mem::replace(&mut ready, lines.recv_timeout(PATIENCE).unwrap()));
        }
        let address = ready["address"].as_str().unwrap_or_else(|| panic!("no address in {ready}")).to_owned();
        Self { child, lines, client: client(), address, before, ready }
    }

    fn request(&self, path: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.client.post(format!("http://{}{path}", self.address)).body(body)
    }

    async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Reply {
        Reply::of(self.request(path, body).bearer_auth(TOKEN)).await
    }

    /// Returns the next line. The stand-in goes on meanwhile.
    fn line(&self) -> Value {
        tokio::task::block_in_place(|| self.lines.recv_timeout(PATIENCE)).expect("there is another line")
    }

    fn terminate(&self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    }

    /// Ends the program as an orchestrator does. Returns the lines that it logged until then.
    fn stop(&mut self) -> (ExitStatus, Vec<Value>) {
        self.terminate();
        let rest = tokio::task::block_in_place(|| self.lines.iter().collect());
        (self.child.wait().unwrap(), rest)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // The program may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn events(prefix: &str, count: usize) -> String {
    let event = |number| json!({"event": "e", "uuid": format!("{prefix}{number}"), "distinct_id": "d"});
    json!((0..count).map(event).collect::<Vec<_>>()).to_string()
}

/// Returns a line without its time and its target.
fn essence(line: &Value) -> Value {
    let mut line = line.clone();
    let object = line.as_object_mut().unwrap();
    assert!(humantime::parse_rfc3339(object.remove("timestamp").unwrap().as_str().unwrap()).is_ok());
    assert!(object.remove("target").unwrap().as_str().unwrap().starts_with("variance_connector"));
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_line_says_what_runs_and_the_last_that_it_stopped_and_nothing_is_said_of_requests() {
    let variance = Variance::start().await;
    let mut program = Program::start(&variance, &[("CONNECTOR_EXCLUDE", "a,b*")]);
    let expected = json!({
        "level": "INFO",
        "message": "ready",
        "version": env!("CARGO_PKG_VERSION"),
        "address": program.address,
        "variance": "127.0.0.1",
        "format": "variance",
        "calls": "capture,page,identify,alias",
        "excluded": 2,
        "auth": "token",
    });
    assert!(program.before.is_empty(), "{:?}", program.before);
    assert_eq!(essence(&program.ready), expected);
    assert_eq!(program.post("/batch", events("e", 10)).await.status, 200);
    assert_eq!(program.post("/webhook", "no JSON").await.status, 400);
    let (status, rest) = program.stop();
    assert!(status.success());
    let expected = [
        json!({"level": "INFO", "message": "stopping: no more events are taken in", "grace": "8s"}),
        json!({"level": "INFO", "message": "stopped", "abandoned": 0}),
    ];
    assert_eq!(rest.iter().map(essence).collect::<Vec<_>>(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_that_ends_and_each_request_is_a_line_at_debug() {
    let variance = Variance::start().await;
    let program = Program::start(&variance, &[("CONNECTOR_LOG_LEVEL", "debug")]);
    assert_eq!(program.post("/batch", events("e", 3)).await.status, 200);
    let mut ids = Vec::new();
    for _ in 0..3 {
        let mut ended = essence(&program.line());
        ids.push(ended["uuid"].take());
        assert!(ended["seconds"].take().is_f64());
        let expected = json!({
            "level": "DEBUG",
            "message": "an event has ended",
            "uuid": null,
            "call": "capture",
            "outcome": "delivered",
            "attempts": 1,
            "seconds": null,
        });
        assert_eq!(ended, expected);
    }
    ids.sort_by_key(Value::to_string);
    assert_eq!(ids, ["e0", "e1", "e2"]);
    let expected = json!({"level": "DEBUG", "message": "replied", "route": "batch", "status": 200, "received": 3});
    assert_eq!(essence(&program.line()), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_is_a_line_at_debug_that_says_what_became_of_it() {
    let variance = Variance::start().await;
    let program = Program::start(&variance, &[("CONNECTOR_LOG_LEVEL", "debug")]);
    let event = json!({"event": "$autocapture", "uuid": "filtered"}).to_string();
    assert_eq!(program.post("/webhook", event).await.status, 200);
    let expected = json!({
        "level": "DEBUG",
        "message": "an event has ended",
        "uuid": "filtered",
        "call": "none",
        "outcome": "filtered",
        "reason": "not one of the calls that Variance accepts",
    });
    assert_eq!(essence(&program.line()), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_one_line_when_it_begins_and_one_when_it_ends() {
    let variance = Variance::start().await;
    variance.always(Behaviour::Status(502));
    let mut program = Program::start(&variance, &[("CONNECTOR_WEBHOOK_DEADLINE", "1s")]);
    assert_eq!(program.post("/webhook", events("e", 20)).await.status, 503);
    let mut begins = essence(&program.line());
    assert!((5..=20).contains(&begins["held"].take().as_u64().unwrap()), "so many were in when the fifth failed");
    let expected = json!({
        "level": "WARN",
        "message": "Variance cannot take events: they are held and retried",
        "reason": "Variance answered 502 Bad Gateway",
        "held": null,
    });
    assert_eq!(begins, expected);
    // At least two more probes fail, and log nothing.
    variance.received_at_least(variance.received().len() + 2).await;
    variance.always(Behaviour::Status(200));
    // The line comes ten seconds later, so that outages that come and go do not fill the log.
    let mut ends = essence(&program.line());
    assert!(ends["paused_seconds"].take().as_u64().is_some());
    assert!(ends["held"].take().as_u64().unwrap() <= 20);
    assert!(ends["bytes"].take().is_u64());
    let expected = json!({
        "level": "INFO",
        "message": "Variance takes events again",
        "paused_seconds": null,
        "held": null,
        "bytes": null,
    });
    assert_eq!(ends, expected);
    let (status, rest) = program.stop();
    assert!(status.success());
    assert_eq!(rest.len(), 2, "{rest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_senders_are_summed_up() {
    let variance = Variance::start().await;
    let mut program = Program::start(&variance, &[]);
    for _ in 0..50 {
        let request = program.request("/webhook", "{}").header("x-forwarded-for", "203.0.113.7, 10.0.0.1");
        assert_eq!(Reply::of(request).await.status, 401);
    }
    let (_, rest) = program.stop();
    let lines: Vec<_> = rest.iter().filter(|line| line["message"] == "senders were refused").map(essence).collect();
    let first = json!({
        "level": "WARN",
        "message": "senders were refused",
        "requests": 1,
        "reason": "no credential: the header `Authorization: Bearer <token>` is missing",
        "route": "webhook",
        "address": "127.0.0.1",
        "claimed": "203.0.113.7, 10.0.0.1",
    });
    assert_eq!(lines[0], first);
    // On a machine so slow that ten seconds pass, there is another line.
    assert!(lines.len() < 10, "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variance_that_refuses_every_event_is_an_error_that_says_where_to_look() {
    let variance = Variance::start().await;
    variance.always(Behaviour::Status(422));
    let program = Program::start(&variance, &[("CONNECTOR_WEBHOOK_DEADLINE", "300ms")]);
    assert_eq!(program.post("/webhook", events("refused-", 1)).await.status, 503);
    let mut line = essence(&program.line());
    assert!(line["held"].take().is_u64());
    let expected = json!({
        "level": "ERROR",
        "message": "Variance refuses every event, so they are held: are variance.webhook_url and variance.format right?",
        "status": "422 Unprocessable Entity",
        "held": null,
    });
    assert_eq!(line, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_connector_says_so_and_how_full_it_is() {
    let mut variance = Variance::start().await;
    let settings = [("CONNECTOR_MAX_HELD", "16MiB"), ("CONNECTOR_WEBHOOK_DEADLINE", "50ms")];
    let program = Program::start(&variance, &settings);
    variance.vanish();
    let large = |n: usize| json!({"event": "e", "uuid": format!("e{n}"), "properties": {"x": "x".repeat(1 << 20)}});
    // On a busy machine, a body may take longer to arrive than its request has, and its event is not held.
    let mut held = 0;
    for posted in 0.. {
        let reply = program.post("/webhook", large(posted).to_string()).await;
        if reply.status == 429 {
            break;
        }
        held += reply.counts()[5];
    }
    let mut line = program.line();
    while line["message"] == "Variance cannot take events: they are held and retried" {
        line = program.line();
    }
    let mut line = essence(&line);
    let bytes = line["bytes"].take().as_u64().unwrap();
    assert!(bytes > 14 << 20 && bytes <= 16 << 20, "{bytes}");
    let expected = json!({
        "level": "WARN",
        "message": "the connector is full: senders must send again later",
        "held": held,
        "bytes": null,
        "limit": 16 << 20,
        "times": 1,
    });
    assert_eq!(line, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_that_is_lost_is_named_a_hundred_to_a_line() {
    let variance = Variance::start().await;
    variance.script(|received| Behaviour::Status(if received.id().starts_with("refused") { 422 } else { 200 }));
    let event = |id: String| json!({"event": "e", "uuid": id, "distinct_id": "d"});
    let five = |n| (0..5).map(move |m| event(if m == 0 { format!("refused-{n}") } else { format!("taken-{n}-{m}") }));
    let mut program = Program::start(&variance, &[]);
    assert_eq!(program.post("/batch", events("taken-", 1)).await.status, 200);
    // The events come in parts, so that 20 are never refused in a row, however late the replies that accept come.
    for part in 0..25 {
        let interleaved = json!((10 * part..10 * (part + 1)).flat_map(five).collect::<Vec<_>>());
        assert_eq!(program.post("/batch", interleaved.to_string()).await.status, 200);
    }
    let mut named: Vec<String> = Vec::new();
    let mut others = Vec::new();
    // The program goes on: lost events are logged soon, and not when it ends.
    while named.len() < 250 {
        let line = program.line();
        if line["message"] != "events are lost" {
            others.push(line);
            continue;
        }
        assert_eq!(line["level"], "ERROR");
        assert_eq!(line["reason"], "Variance refused the event: 422 Unprocessable Entity");
        let uuids: Vec<_> = line["uuids"].as_str().unwrap().split(' ').map(str::to_owned).collect();
        assert_eq!(line["count"], uuids.len());
        assert!(uuids.len() <= 100);
        named.extend(uuids);
    }
    named.sort();
    let mut expected: Vec<_> = (0..250).map(|number| format!("refused-{number}")).collect();
    expected.sort();
    assert_eq!(named, expected);
    others.extend(program.stop().1);
    let messages: Vec<_> = others.iter().map(|line| line["message"].as_str().unwrap()).collect();
    assert_eq!(messages, ["stopping: no more events are taken in", "stopped"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stopping_program_holds_is_named() {
    let variance = Variance::start().await;
    variance.always(Behaviour::Status(503));
    let variables = [("CONNECTOR_WEBHOOK_DEADLINE", "1s"), ("CONNECTOR_SHUTDOWN_GRACE", "100ms")];
    let mut program = Program::start(&variance, &variables);
    assert_eq!(program.post("/webhook", events("held ", 3)).await.status, 503);
    let (status, rest) = program.stop();
    assert!(status.success(), "what is lost is told by the log, not by the shell");
    let lost: Vec<_> = rest.iter().filter(|line| line["message"] == "events are lost").collect();
    assert_eq!(lost.len(), 1, "{rest:?}");
    assert_eq!(lost[0]["count"], 3);
    assert_eq!(lost[0]["reason"], "the connector stopped before Variance accepted the event");
    assert_eq!(rest.last().unwrap()["abandoned"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_signal_ends_the_program_at_once_and_what_it_holds_is_named() {
    let variance = Variance::start().await;
    variance.always(Behaviour::Status(503));
    let variables = [("CONNECTOR_WEBHOOK_DEADLINE", "1s"), ("CONNECTOR_SHUTDOWN_GRACE", "1h")];
    let mut program = Program::start(&variance, &variables);
    assert_eq!(program.post("/webhook", events("held-", 1)).await.status, 503);
    program.terminate();
    while program.line()["message"] != "stopping: no more events are taken in" {}
    // Signals within a second of the first do not count as others.
    let mut line = loop {
        program.terminate();
        match program.lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) if line["message"] == "another signal: ending at once" => break line,
            _ => {}
        }
    };
    assert_eq!(line["level"], "ERROR");
    line = program.line();
    assert_eq!((&line["message"], &line["uuids"]), (&json!("events are lost"), &json!("held-0")));
    assert_eq!(program.line()["message"], "stopped");
    assert_eq!(program.child.wait().unwrap().code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_up_is_told_of_and_ends_nothing() {
    let variance = Variance::start().await;
    let program = Program::start(&variance, &[]);
    let id = program.child.id().to_string();
    assert!(Command::new("kill").args(["-HUP", &id]).status().unwrap().success());
    let message =
        "the files of secrets were read again; there is no configuration file, and other settings need a restart";
    assert_eq!(essence(&program.line()), json!({"level": "INFO", "message": message}));
    assert_eq!(program.post("/webhook", events("e", 1)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_was_changed_is_told_of_and_so_is_one_that_cannot_be_read() {
    let variance = Variance::start().await;
    variance.script(|received| Behaviour::Status(if received.headers["authorization"] == "new" { 200 } else { 401 }));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("authorization");
    std::fs::write(&file, "old").unwrap();
    let variables = [
        ("VARIANCE_AUTHORIZATION", ""),
        ("VARIANCE_AUTHORIZATION_FILE", file.to_str().unwrap()),
        ("CONNECTOR_WEBHOOK_DEADLINE", "1s"),
    ];
    let mut program = Program::start(&variance, &variables);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(program.post("/webhook", events("e", 1)).await.status, 503);
    let unreadable = program.line();
    assert_eq!(unreadable["level"], "WARN");
    assert_eq!(unreadable["message"], "Variance's credential could not be read again");
    assert_eq!(unreadable["times"], 1);
    let error = unreadable["error"].as_str().unwrap();
    assert!(error.starts_with(&format!("{}: No such file", file.display())), "{unreadable}");
    // The file is looked for at least once more.
    variance.received_at_least(variance.received().len() + 2).await;
    std::fs::write(&file, "new").unwrap();
    let time = |line: &Value| humantime::parse_rfc3339(line["timestamp"].as_str().unwrap()).unwrap();
    let mut line = program.line();
    while line["level"] == "WARN" {
        if line["message"] == unreadable["message"] {
            let apart = time(&line).duration_since(time(&unreadable)).unwrap();
            assert!(apart >= Duration::from_millis(9_990), "another line after {apart:?}");
        }
        line = program.line();
    }
    let line = essence(&line);
    let changed = json!({"level": "INFO", "message": "Variance's credential was read again: it has changed"});
    assert_eq!(line, changed);
    let goes_on = async { while program.post("/webhook", events("e", 20)).await.status != 200 {} };
    tokio::time::timeout(PATIENCE, goes_on).await.expect("it is taken");
    let (_, rest) = program.stop();
    assert!(rest.iter().all(|line| line["message"] != changed["message"]), "it is told once: {rest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_descriptors_are_told_of_at_the_start_and_when_they_are_used_up() {
    let variance = Variance::start().await;
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 40 && exec \"$0\"", env!("CARGO_BIN_EXE_variance-connector")]);
    let program = Program::start_as(command, &variance, &[]);
    let low = json!({"level": "WARN", "message": "the limit of open files is low", "limit": 40, "wanted": 2368});
    assert_eq!(program.before.iter().map(essence).collect::<Vec<_>>(), [low]);
    let connections: Vec<_> = (0..60).map(|_| std::net::TcpStream::connect(&program.address).unwrap()).collect();
    let line = essence(&program.line());
    assert_eq!((&line["level"], &line["message"]), (&json!("WARN"), &json!("connections could not be accepted")));
    assert_eq!(line["times"], 1);
    assert!(line["error"].as_str().unwrap().contains("Too many open files"), "{line}");
    drop(connections);
    assert_eq!(program.post("/webhook", events("e", 1)).await.status, 200, "it goes on");
}

#[test]
fn every_line_that_the_documentation_names_is_read_by_a_test_here() {
    let page = include_str!("../../docs/operations.md");
    let section = page.split("\n## Logs\n").nth(1).expect("the page has a section on logs");
    let rows = section.split("\n## ").next().unwrap().lines().filter_map(|line| line.strip_prefix("| `"));
    let messages: Vec<_> = rows.map(|row| row.split('`').next().unwrap()).collect();
    assert!(messages.len() > 10, "{messages:?}");
    for message in messages {
        let tests = [
            include_str!("logs.rs"),
            include_str!("reload.rs"),
            include_str!("replies.rs"),
            include_str!("unread_log.rs"),
        ];
        assert!(tests.iter().any(|tests| tests.contains(&format!("\"{message}\""))), "{message}");
    }
}

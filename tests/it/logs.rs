//! What the program logs, as a machine reads it.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

use crate::{
    harness::{AUTHORIZATION, Reply, install_provider},
    variance::{Behaviour, Variance},
};

/// More than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

const TOKEN: &str = "a-token-of-the-tests";

/// `serve`, whose log is read line by line. It is killed when it is dropped.
struct Program {
    child: Child,
    lines: Receiver<Value>,
    client: Client,
    address: String,
    /// The first line.
    ready: Value,
}

impl Program {
    async fn start(variance: &Variance, variables: &[(&str, &str)]) -> Self {
        install_provider();
        let mut child = Command::new(env!("CARGO_BIN_EXE_variance-connector"))
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
        let ready: Value = lines.recv_timeout(PATIENCE).unwrap();
        let address = ready["address"].as_str().unwrap_or_else(|| panic!("no address in {ready}")).to_owned();
        Self { child, lines, client: Client::builder().no_proxy().build().unwrap(), address, ready }
    }

    fn request(&self, path: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.client.post(format!("http://{}{path}", self.address)).body(body)
    }

    async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Reply {
        Reply::of(self.request(path, body).bearer_auth(TOKEN)).await
    }

    /// The next line. The stand-in goes on meanwhile.
    fn line(&self) -> Value {
        tokio::task::block_in_place(|| self.lines.recv_timeout(PATIENCE)).expect("there is another line")
    }

    /// Ends it as an orchestrator does. Returns what it logged until then.
    fn stop(&mut self) -> (ExitStatus, Vec<Value>) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let rest = tokio::task::block_in_place(|| self.lines.iter().collect());
        (self.child.wait().unwrap(), rest)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn events(prefix: &str, count: usize) -> String {
    let event = |number| json!({"event": "e", "uuid": format!("{prefix}{number}"), "distinct_id": "d"});
    json!((0..count).map(event).collect::<Vec<_>>()).to_string()
}

/// A line without its time and its place.
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
    let mut program = Program::start(&variance, &[("CONNECTOR_EXCLUDE", "a,b*")]).await;
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
async fn each_request_is_a_line_at_debug() {
    let variance = Variance::start().await;
    let program = Program::start(&variance, &[("CONNECTOR_LOG_LEVEL", "debug")]).await;
    assert_eq!(program.post("/batch", events("e", 3)).await.status, 200);
    let expected = json!({"level": "DEBUG", "message": "replied", "route": "batch", "status": 200, "received": 3});
    assert_eq!(essence(&program.line()), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_one_line_when_it_begins_and_one_when_it_ends() {
    let variance = Variance::start().await;
    variance.always(Behaviour::Status(502));
    let mut program = Program::start(&variance, &[("CONNECTOR_WEBHOOK_DEADLINE", "1s")]).await;
    assert_eq!(program.post("/webhook", events("e", 20)).await.status, 503);
    let mut begins = essence(&program.line());
    assert!((5..=20).contains(&begins["held"].take().as_u64().unwrap()), "so many were in when the fifth failed");
    let expected = json!({
        "level": "WARN",
        "message": "Variance cannot take events: they are held and tried again",
        "reason": "Variance answered 502 Bad Gateway",
        "held": null,
    });
    assert_eq!(begins, expected);
    // At least two probes that fail too, and say nothing.
    variance.received_at_least(variance.received().len() + 2).await;
    variance.always(Behaviour::Status(200));
    let mut ends = essence(&program.line());
    assert!(ends["paused_seconds"].take().as_u64().is_some());
    assert!((1..=20).contains(&ends["held"].take().as_u64().unwrap()), "it was held at the end");
    assert!(ends["bytes"].take().as_u64().unwrap() > 0);
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
    let mut program = Program::start(&variance, &[]).await;
    for _ in 0..50 {
        assert_eq!(Reply::of(program.request("/webhook", "{}")).await.status, 401);
    }
    let (_, rest) = program.stop();
    let lines: Vec<_> = rest.iter().filter(|line| line["message"] == "senders were refused").map(essence).collect();
    let first = json!({
        "level": "WARN",
        "message": "senders were refused",
        "requests": 1,
        "reason": "no credential: the header `Authorization: Bearer <token>` is missing",
    });
    assert_eq!(lines[0], first);
    // Where a machine is so slow that ten seconds pass, there is another line.
    assert!(lines.len() < 10, "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_that_is_lost_is_named_a_hundred_to_a_line_and_a_hundred_in_a_row_are_an_error() {
    let variance = Variance::start().await;
    variance.always(Behaviour::Status(422));
    let mut program = Program::start(&variance, &[]).await;
    assert_eq!(program.post("/batch", events("refused ", 250)).await.status, 422);
    let (_, rest) = program.stop();
    let lost: Vec<_> = rest.iter().filter(|line| line["message"] == "events are lost").collect();
    let mut named: Vec<String> = Vec::new();
    for line in &lost {
        assert_eq!(line["level"], "ERROR");
        assert_eq!(line["reason"], "Variance refused the event: 422 Unprocessable Entity");
        let uuids: Vec<String> = serde_json::from_str(line["uuids"].as_str().unwrap()).unwrap();
        assert_eq!(line["count"], uuids.len());
        assert!(uuids.len() <= 100);
        named.extend(uuids);
    }
    named.sort();
    let mut expected: Vec<_> = (0..250).map(|number| format!("refused {number}")).collect();
    expected.sort();
    assert_eq!(named, expected);
    let all = "Variance has refused the last 100 events: is variance.webhook_url right?";
    assert_eq!(rest.iter().filter(|line| line["message"] == all).count(), 1, "{rest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stopping_program_holds_is_named() {
    let variance = Variance::start().await;
    variance.always(Behaviour::Status(503));
    let variables = [("CONNECTOR_WEBHOOK_DEADLINE", "1s"), ("CONNECTOR_SHUTDOWN_GRACE", "100ms")];
    let mut program = Program::start(&variance, &variables).await;
    assert_eq!(program.post("/webhook", events("held ", 3)).await.status, 503);
    let (status, rest) = program.stop();
    assert!(status.success(), "what is lost is told by the log, not by the shell");
    let lost: Vec<_> = rest.iter().filter(|line| line["message"] == "events are lost").collect();
    assert_eq!(lost.len(), 1, "{rest:?}");
    assert_eq!(lost[0]["count"], 3);
    assert_eq!(lost[0]["reason"], "the connector stopped before Variance had it");
    assert_eq!(rest.last().unwrap()["abandoned"], 3);
}

//! Secrets and personal data stay where they belong, whatever goes wrong.
//!
//! Every secret and every value of an event has `canary` in it, and nothing that the program outputs may.

use std::{fmt::Debug, net::TcpListener};

use futures_util::future;
use http::Method;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use variance_connector::{
    auth::Auth,
    config::{self, Flags},
    destination::Destination,
};

use crate::{
    harness::{PATIENCE, Reply, client, install_provider},
    program::{Errors, Program, Running},
    tls,
    variance::{Behaviour, Variance},
};

const AUTHORIZATION: &str = "Bearer canary-authorization";
const TOKEN: &str = "canary-token-0123456789";
/// The base64 of `canary-signing-secret-0123456789`.
const SIGNING_SECRET: &str = "whsec_Y2FuYXJ5LXNpZ25pbmctc2VjcmV0LTAxMjM0NTY3ODk=";
const PATH: &str = "canary-path?team=canary-query#canary-fragment";

/// The ways in which a canary can be written.
const CANARIES: [&str; 5] = ["canary", "Y2FuYXJ5", "63616e617279", "%63anary", "99, 97, 110, 97, 114, 121"];

/// The level at which this program, and the libraries that see what it sends and receives, log the most.
const LEVEL: &str = "trace,hyper=trace,hyper_util=trace,reqwest=trace,rustls=trace";

#[track_caller]
fn assert_no_canary(what: impl Debug, text: &str) {
    let lower = text.to_ascii_lowercase();
    let found = CANARIES.iter().find_map(|canary| lower.find(&canary.to_ascii_lowercase()));
    if let Some(at) = found {
        let around = lower.floor_char_boundary(at.saturating_sub(200))..lower.ceil_char_boundary(at + 100);
        panic!("{what:?} leaks: …{}…", &text[around]);
    }
}

fn secrets(scheme: &str, variance: &Variance) -> Vec<(&'static str, String)> {
    vec![
        ("VARIANCE_WEBHOOK_URL", format!("{scheme}://canary-user:canary-password@{}/{PATH}", variance.address)),
        ("VARIANCE_AUTHORIZATION", AUTHORIZATION.to_owned()),
        ("CONNECTOR_TOKEN", TOKEN.to_owned()),
        ("CONNECTOR_SIGNING_SECRET", SIGNING_SECRET.to_owned()),
    ]
}

fn with(program: Program, variables: &[(&str, String)]) -> Program {
    variables.iter().fold(program, |program, (name, value)| program.env(name, value))
}

/// Returns an event whose every value is personal data. Its id decides what Variance does with it.
fn event(id: &str) -> String {
    json!({
        "event": {
            "event": "signed up", "uuid": id, "distinct_id": "canary-distinct-id",
            "properties": {"canary key": "canary value", "email": "canary@example.com", "$ip": "canary-ip"},
        },
        "person": {"properties": {"email": "canary@example.com"}},
    })
    .to_string()
}

/// A fault of Variance, with the log's message about it.
#[derive(Clone)]
struct Fault {
    said: &'static str,
    behaviour: Behaviour,
    /// Variables that override the usual ones.
    variables: Vec<(&'static str, String)>,
    vanishes: bool,
}

fn fault(said: &'static str, behaviour: Behaviour) -> Fault {
    Fault { said, behaviour, variables: Vec::new(), vanishes: false }
}

fn answer(status: &str, header: &str) -> Behaviour {
    let body = "canary-reply";
    let length = body.len();
    Behaviour::Bytes(format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{header}\r\n{body}").into_bytes())
}

impl Fault {
    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }
}

fn faults() -> Vec<Fault> {
    let fine = Behaviour::Status(200);
    let (tls, _requests) = tls::server();
    let tls = format!("https://canary-user:canary-password@localhost:{tls}/{PATH}");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    vec![
        fault("Variance refuses every event: 422", answer("422 canary-reason", "")),
        fault("Variance answered 500", answer("500 canary-reason", "X-Canary: canary-header\r\n")),
        fault("Variance answered 302", answer("302 Found", "Location: http://127.0.0.1:1/canary-location?canary\r\n")),
        fault("Variance answered 401", answer("401 Unauthorized", "WWW-Authenticate: canary-realm\r\n"))
            .with("VARIANCE_AUTHORIZATION_FILE", "canary"),
        fault("Variance answered 429", answer("429 Too Many Requests", "Retry-After: canary-time\r\n")),
        fault("the connection to Variance broke", Behaviour::Reset),
        fault("could not be read as HTTP/1.1", Behaviour::BytesThenClose(b"canary garbage\r\n\r\n".to_vec())),
        fault("Variance did not answer in time", Behaviour::BytesThenSilence(b"HTTP/1.1 200 canary".to_vec()))
            .with("CONNECTOR_ATTEMPT_TIMEOUT", "100ms"),
        Fault { vanishes: true, ..fault("no connection to Variance's host", fine.clone()) },
        fault("no connection to Variance's host", fine.clone())
            .with("HTTP_PROXY", format!("http://canary-user:canary-password@{closed}")),
        fault("no trusted TLS connection", fine.clone()).with("VARIANCE_WEBHOOK_URL", &tls),
        fault("is for another name", fine).with("VARIANCE_WEBHOOK_URL", tls).with("SSL_CERT_FILE", tls::AUTHORITY),
    ]
}

/// The service at the level that logs the most, with its log so far and its address.
struct Verbose {
    running: Running,
    errors: Errors,
    log: Vec<String>,
    address: String,
    client: Client,
}

impl Verbose {
    async fn start(format: &str, variance: &Variance, variables: &[(&str, String)]) -> Self {
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--log-level", LEVEL, "--log-format", format];
        let program = with(with(Program::new(arguments), &secrets("http", variance)), variables);
        let program = program.env("CONNECTOR_WEBHOOK_DEADLINE", "2s").env("CONNECTOR_SHUTDOWN_GRACE", "100ms");
        let mut running = program.env("CONNECTOR_PERSON_TRAITS", "true").start();
        let errors = running.errors();
        let mut verbose = Self { running, errors, log: Vec::new(), address: String::new(), client: client() };
        let ready = verbose.said("127.0.0.1:").await;
        let port = ready.split("127.0.0.1:").nth(1).unwrap().chars().take_while(char::is_ascii_digit);
        verbose.address = format!("127.0.0.1:{}", port.collect::<String>());
        verbose
    }

    /// Waits until the log has this.
    async fn said(&mut self, what: &str) -> String {
        loop {
            let line = timeout(PATIENCE, self.errors.next()).await.expect("the log goes on");
            let line = line.unwrap_or_else(|| panic!("nothing says {what:?} in {:#?}", self.log));
            self.log.push(line.clone());
            if line.contains(what) {
                return line;
            }
        }
    }

    fn request(&self, method: Method, path: &str, body: impl Into<String>) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.address)).body(body.into())
    }

    async fn post(&self, path: &str, body: impl Into<String>) -> Reply {
        Reply::of(self.request(Method::POST, path, body).bearer_auth(TOKEN)).await
    }

    /// Returns the pages that anybody may ask for.
    async fn pages(&self) -> Vec<Reply> {
        let pages = ["/healthz", "/readyz", "/metrics"].map(|page| format!("{page}?canary=canary"));
        future::join_all(pages.iter().map(|page| Reply::of(self.request(Method::GET, page, "canary")))).await
    }

    /// Ends the service, and looks for canaries in its arguments, in its output and in all of its log.
    async fn end(mut self) -> String {
        if cfg!(target_os = "linux") {
            let process = self.running.child.as_ref().unwrap().id();
            let arguments = std::fs::read(format!("/proc/{process}/cmdline")).unwrap();
            assert!(arguments.starts_with(b"/"), "they are whole");
            assert_no_canary("the arguments", &String::from_utf8_lossy(&arguments));
        }
        self.running.signal("-TERM");
        let ended = self.running.ended().await;
        assert_eq!((ended.code, &*ended.out), (0, ""));
        while let Some(line) = self.errors.next().await {
            self.log.push(line);
        }
        let log = self.log.join("\n");
        assert!(log.contains("replied") && log.contains("stopped"), "the log is whole: {log}");
        assert_no_canary("the log", &log);
        log
    }
}

fn assert_no_canaries(replies: &[Reply]) {
    for reply in replies {
        assert_no_canary("a reply", &format!("{} {:?} {}", reply.status, reply.headers, reply.text));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_wrong_with_variance_neither_log_nor_reply_has_a_secret_or_a_persons_data() {
    let cases = faults().into_iter().flat_map(|fault| [("text", fault.clone()), ("json", fault)]);
    let cases = cases.map(|(format, Fault { said, behaviour, mut variables, vanishes })| async move {
        let folder = tempfile::tempdir().unwrap();
        if let Some((_, file)) = variables.iter_mut().find(|(name, _)| *name == "VARIANCE_AUTHORIZATION_FILE") {
            let path = folder.path().join("authorization");
            std::fs::write(&path, AUTHORIZATION).unwrap();
            *file = path.display().to_string();
            variables.push(("VARIANCE_AUTHORIZATION", String::new()));
        }
        let mut variance = Variance::start().await;
        variance.always(behaviour);
        let mut verbose = Verbose::start(format, &variance, &variables).await;
        if vanishes {
            variance.vanish();
        }
        // As many events as it takes until Variance is left alone.
        let events: Vec<Value> = (0..6).map(|n| serde_json::from_str(&event(&format!("e{n}"))).unwrap()).collect();
        let mut replies = vec![verbose.post("/webhook", json!(events).to_string()).await];
        if !verbose.log.iter().any(|line| line.contains(said)) {
            verbose.said(said).await;
        }
        replies.push(verbose.post("/batch", event("while it is so")).await);
        replies.extend(verbose.pages().await);
        assert_no_canaries(&replies);
        assert!(replies[0].text.contains("\"uuid\":\"e0\""), "an event's id may be told: {}", replies[0].text);
        let log = verbose.end().await;
        assert!(log.contains("e0"), "an event's id may be told: {log}");
    });
    future::join_all(cases).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_senders_do_neither_log_nor_reply_has_a_secret_or_a_persons_data() {
    for format in ["text", "json"] {
        let variance = Variance::start().await;
        let verbose = Verbose::start(format, &variance, &[]).await;
        let request = |path, body: &str| verbose.request(Method::POST, path, body);
        let mut replies = vec![verbose.post("/webhook", event("fine")).await];
        assert_eq!(replies[0].status, 200);
        let batch = json!({
            "api_key": TOKEN,
            "canary": "canary",
            "batch": [
                {"event": {"canary": "canary"}}, "canary", ["canary"], {"event": "$canary", "distinct_id": "canary"},
                {"event": ["canary"]}, {"event": "", "uuid": "an id", "properties": {"canary": "canary"}},
            ],
        });
        replies.push(Reply::of(request("/batch", &batch.to_string())).await);
        for bad in [r#"{"canary"#, r#""canary""#, r#"{"event":"canary}"#, "canary=canary", r#"[{"event":"a"},canary]"#]
        {
            replies.push(verbose.post("/webhook", bad).await);
        }
        let wrong_key = json!({"api_key": "canary-wrong-key", "batch": []}).to_string();
        for wrong in [
            request("/webhook", &event("wrong")).bearer_auth("canary-wrong-token"),
            request("/webhook", &event("wrong")).basic_auth("canary", Some("canary")),
            request("/webhook", &event("wrong")).header("x-connector-token", "canary"),
            request("/batch", &wrong_key),
            request("/webhook", &event("signed"))
                .header("webhook-id", "canary-id")
                .header("webhook-timestamp", "canary")
                .header("webhook-signature", "v1,canary"),
            request("/webhook", &event("packed")).bearer_auth(TOKEN).header("content-encoding", "canary"),
            request("/webhook", &event("not packed")).bearer_auth(TOKEN).header("content-encoding", "gzip"),
            request("/webhook", &event("typed")).bearer_auth(TOKEN).header("content-type", "canary/canary"),
            request("/canary?canary=canary", &event("lost")).bearer_auth(TOKEN),
            verbose.request(Method::PUT, "/webhook?canary", event("put")).bearer_auth(TOKEN),
        ] {
            replies.push(Reply::of(wrong).await);
            assert!((400..500).contains(&replies.last().unwrap().status), "{replies:?}");
        }
        replies.extend(verbose.pages().await);
        assert_no_canaries(&replies);
        for broken in [
            "canary\r\n\r\n".to_owned(),
            "POST /canary canary\r\n\r\n".to_owned(),
            "POST /webhook HTTP/1.1\r\nHost: x\r\ncanary canary: canary\r\n\r\n".to_owned(),
            "POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: canary\r\n\r\n".to_owned(),
            format!("POST /webhook HTTP/1.1\r\nHost: x\r\nAuthorization: {TOKEN}\r\nContent-Length: 9\r\n\r\ncanary"),
            format!("POST /webhook HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "canary".repeat(10_000)),
        ] {
            let mut stream = TcpStream::connect(&verbose.address).await.unwrap();
            // The service may have stopped reading before the end.
            drop(stream.write_all(broken.as_bytes()).await);
            drop(stream.shutdown().await);
            let mut reply = Vec::new();
            drop(stream.read_to_end(&mut reply).await);
            assert_no_canary(broken.chars().take(40).collect::<String>(), &String::from_utf8_lossy(&reply));
        }
        let log = verbose.end().await;
        assert!(log.contains("a connection broke") && log.contains("senders were refused"), "{log}");
        assert_eq!(variance.received().len(), 1);
    }
}

#[tokio::test]
async fn what_commands_print_has_no_secret() {
    let variance = Variance::start().await;
    let secrets = secrets("http", &variance);
    for arguments in [
        &["--help"][..],
        &["serve", "--help"],
        &["check", "--help"],
        &["healthcheck", "--help"],
        &["check", "--format", "json"],
        &["check", "--format", "text"],
        &["check", "--send"],
        &["serve", "--canary"],
        &["serve", "--listen", "canary"],
        &["completions", "bash"],
    ] {
        let ended = with(Program::new(arguments), &secrets).run().await;
        assert!(!ended.out.is_empty() || !ended.err.is_empty(), "{arguments:?}");
        // The command line holds no secret, and errors should name what is wrong on it.
        let said = format!("{}{}", ended.out, ended.err).replace("--canary", "").replace("\"canary\"", "");
        assert_no_canary(arguments, &said);
    }
}

#[tokio::test]
async fn what_variance_answers_to_a_command_is_told_without_what_may_be_a_secret() {
    let variance = Variance::start().await;
    let folder = tempfile::tempdir().unwrap();
    let export = folder.path().join("export.jsonl");
    std::fs::write(&export, format!("{}\n{{\"event\":[\"canary\"]}}\n{{\"canary\n", event("an id"))).unwrap();
    for (behaviour, says) in [
        (answer("200 canary-reason", "X-Canary: canary-header\r\n"), "accepted"),
        (answer("404 canary-reason", ""), "wrong path"),
        (answer("401 canary-reason", "WWW-Authenticate: canary-realm\r\n"), "credential refused"),
        (answer("422 canary-reason", ""), "event refused"),
        (answer("302 Found", "Location: /canary-location?canary#canary\r\n"), "another path of the same host"),
        (answer("302 Found", "Location: http://canary:canary@127.0.0.1:1/canary?canary\r\n"), "127.0.0.1:1. "),
        (answer("302 Found", "Location: canary://canary\r\n"), "redirect"),
        (Behaviour::Reset, "connection broken"),
    ] {
        variance.always(behaviour);
        for arguments in [&["check", "--send"][..], &["check", "--send", "--format", "json"]] {
            let ended = with(Program::new(arguments), &secrets("http", &variance)).run().await;
            assert!(ended.out.contains(says), "{says}: {ended:?}");
            assert_no_canary(arguments, &format!("{}{}", ended.out, ended.err));
        }
    }
    variance.always(answer("422 canary-reason", ""));
    let ended = with(Program::new(["backfill", export.to_str().unwrap()]), &secrets("http", &variance)).run().await;
    let said = format!("{}{}", ended.out, ended.err);
    assert!(said.contains("1 refused + 2 invalid"), "{said}");
    assert_no_canary("backfill", &said);
}

#[tokio::test]
async fn what_is_wrong_with_a_secret_is_said_without_it() {
    let variance = Variance::start().await;
    for (name, value) in [
        ("VARIANCE_WEBHOOK_URL", "canary"),
        ("VARIANCE_WEBHOOK_URL", "ftp://canary-user:canary-password@example.com/canary"),
        ("VARIANCE_WEBHOOK_URL", "http://canary-user:canary-password@[canary]/canary"),
        ("VARIANCE_AUTHORIZATION", "canary\ncanary"),
        ("CONNECTOR_TOKEN", "canary"),
        ("CONNECTOR_SIGNING_SECRET", "whsec_canary!"),
        ("CONNECTOR_SIGNING_SECRET", "whsec_Y2FuYXJ5"),
    ] {
        for command in ["serve", "check"] {
            let ended = with(Program::new([command]), &secrets("http", &variance)).env(name, value).run().await;
            assert_eq!(ended.code, 64, "{name}={value}: {}", ended.err);
            assert!(ended.err.contains(name), "{name}={value}: {}", ended.err);
            assert_no_canary((name, value), &format!("{}{}", ended.out, ended.err));
        }
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_file_is_said_without_what_it_holds() {
    let variance = Variance::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    for (variable, content) in [
        ("CONNECTOR_CONFIG", "[variance]\nauthorization = \"canary"),
        ("CONNECTOR_CONFIG", "[variance]\nauthorization = canary"),
        ("CONNECTOR_CONFIG", "[variance]\nwebhook_url = ['https://variance.example/canary']"),
        ("CONNECTOR_CONFIG", "[server]\ntoken = ['canary', 3]"),
        ("CONNECTOR_CONFIG", "[server]\ntoken = 'canary'\ntoken = 'canary'"),
        ("CONNECTOR_CONFIG", "[server]\nsigning_secrets = 'canary'"),
        ("VARIANCE_AUTHORIZATION_FILE", "canary\ncanary"),
        ("CONNECTOR_TOKEN_FILE", "canary"),
        ("CONNECTOR_SIGNING_SECRET_FILE", "whsec_canary"),
    ] {
        std::fs::write(&file, content).unwrap();
        for command in ["serve", "check"] {
            let program = with(Program::new([command]), &secrets("http", &variance));
            // A secret and its file together would be an error of their own.
            let program = program.env(variable.trim_end_matches("_FILE"), "").env(variable, &file);
            let ended = program.run().await;
            assert_eq!(ended.code, 64, "{variable}: {content}: {}", ended.err);
            assert!(ended.err.contains(file.to_str().unwrap()), "{variable}: {content}: {}", ended.err);
            assert_no_canary((variable, content), &format!("{}{}", ended.out, ended.err));
        }
    }
}

#[tokio::test]
async fn what_developers_print_has_no_secret() {
    install_provider();
    let variance = Variance::start().await;
    variance.always(answer("302 Found", "Location: /canary-location\r\n"));
    let variables = secrets("http", &variance).into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    let loaded = config::load(&Flags::default(), &variables).unwrap();
    let forwarding = config::forwarding(&Flags::default(), &variables, false).unwrap();
    assert_no_canary("the configuration", &format!("{loaded:?} {loaded:#?} {forwarding:?}"));
    let auth = Auth::new(loaded.config.service.auth);
    let destination = Destination::new(loaded.config.service.destination);
    let attempt = destination.post("{}".into()).await;
    assert!(attempt.1.location().is_some(), "it is a whole answer");
    assert_no_canary("the parts", &format!("{auth:?} {destination:?} {attempt:?}"));
}

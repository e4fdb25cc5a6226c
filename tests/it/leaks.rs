//! Secrets and personal data stay where they belong, whatever goes wrong.
//!
//! Every secret and every value of an event has `canary` in it, and nothing that comes out of the program may.

use std::fmt::Debug;

use serde_json::json;
use variance_connector::{
    auth::Auth,
    config::{self, Flags},
    destination::Destination,
};

use crate::{
    harness::{Reply, client, install_provider},
    program::Program,
    variance::{Behaviour, Variance},
};

const AUTHORIZATION: &str = "Bearer canary-authorization";
const TOKEN: &str = "canary-token-0123456789";
/// In base64: `canary-signing-secret-0123456789`.
const SIGNING_SECRET: &str = "whsec_Y2FuYXJ5LXNpZ25pbmctc2VjcmV0LTAxMjM0NTY3ODk=";
const PATH: &str = "canary-path?team=canary-query#canary-fragment";

/// All ways in which a canary can be written.
const CANARIES: [&str; 4] = ["canary", "Y2FuYXJ5", "63616e617279", "%63anary"];

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

/// An event whose every value is personal data. Its id says what Variance does with it.
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

fn answer(id: &str) -> Behaviour {
    let reply = |status: &str, headers: &str| {
        let body = "canary-reply";
        Behaviour::Bytes(
            format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len()).into_bytes(),
        )
    };
    match id {
        "refused" => reply("422 canary-reason", ""),
        "failed" => reply("500 canary-reason", "X-Canary: canary-header\r\n"),
        "moved" => reply("302 Found", "Location: http://canary-host.invalid/canary-location\r\n"),
        "denied" => reply("401 Unauthorized", "WWW-Authenticate: canary-realm\r\n"),
        "later" => reply("503 Unavailable", "Retry-After: canary-time\r\n"),
        "reset" => Behaviour::Reset,
        "garbled" => Behaviour::BytesThenClose(b"canary garbage\r\n\r\n".to_vec()),
        _ => Behaviour::Status(200),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_log_nor_reply_has_a_secret_or_a_persons_data_whatever_goes_wrong() {
    for (format, scheme) in [("text", "http"), ("json", "http"), ("json", "https")] {
        let variance = Variance::start().await;
        variance.script(|received| answer(&received.id()));
        let program =
            Program::new(["serve", "--listen", "127.0.0.1:0", "--log-level", "trace", "--log-format", format]);
        let variables = [
            ("CONNECTOR_WEBHOOK_DEADLINE", "200ms"),
            ("CONNECTOR_SHUTDOWN_GRACE", "100ms"),
            ("CONNECTOR_PERSON_TRAITS", "true"),
        ];
        let program = variables
            .iter()
            .fold(with(program, &secrets(scheme, &variance)), |program, (name, value)| program.env(name, value));
        let mut running = program.start();
        let mut errors = running.errors();
        let mut log = Vec::new();
        let address = loop {
            log.push(errors.next().await.expect("it says where it listens"));
            let (_, after) = log.last().unwrap().split_once("127.0.0.1:").unwrap_or_default();
            if let Some(end) = after.find(|after: char| !after.is_ascii_digit()).filter(|end| *end > 0) {
                break format!("127.0.0.1:{}", &after[..end]);
            }
        };

        let post = |route: &str, body: String| client().post(format!("http://{address}{route}")).body(body);
        let mut replies = Vec::new();
        for id in ["fine", "refused", "failed", "moved", "denied", "later", "reset", "garbled", "fine again"] {
            replies.push(Reply::of(post("/webhook", event(id)).bearer_auth(TOKEN)).await);
        }
        let batch = json!({"api_key": TOKEN, "canary": "canary", "batch": [{"event": {"canary": "canary"}}, "canary", {"event": "$canary"}]});
        replies.push(Reply::of(post("/batch", batch.to_string())).await);
        for bad in [r#"{"canary"#, r#""canary""#, r#"{"event":"canary}"#, "canary=canary"] {
            replies.push(Reply::of(post("/webhook", bad.to_owned()).bearer_auth(TOKEN)).await);
        }
        replies.push(Reply::of(post("/webhook", event("wrong")).bearer_auth("canary-wrong-token")).await);
        let wrong_key = json!({"api_key": "canary-wrong-key", "batch": []});
        replies.push(Reply::of(post("/batch", wrong_key.to_string())).await);
        let signed = post("/webhook", event("signed")).header("webhook-id", "canary-id");
        let signed = signed.header("webhook-timestamp", "canary").header("webhook-signature", "v1,canary");
        replies.push(Reply::of(signed).await);
        replies.push(Reply::of(post("/webhook", event("packed")).header("content-encoding", "canary")).await);
        replies.push(Reply::of(post("/canary", event("lost")).header("content-type", "canary/canary")).await);
        for page in ["/healthz", "/readyz", "/metrics"] {
            replies.push(Reply::of(client().get(format!("http://{address}{page}?canary=canary"))).await);
        }
        for reply in replies {
            assert_no_canary(format, &format!("{:?} {}", reply.headers, reply.text));
        }

        let process = running.child.as_ref().unwrap().id();
        let arguments = std::fs::read(format!("/proc/{process}/cmdline")).unwrap();
        assert_no_canary("the arguments", &String::from_utf8_lossy(&arguments));

        running.signal("-TERM");
        assert_eq!(running.ended().await.code, 0);
        while let Some(line) = errors.next().await {
            log.push(line);
        }
        let log = log.join("\n");
        assert!(log.contains("replied") && log.contains("stopped"), "the log is whole: {log}");
        assert_no_canary((format, scheme), &log);
        assert_eq!(variance.received().is_empty(), scheme == "https");
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
        // What stands on the command line is no secret, and errors should name it.
        let said = format!("{}{}", ended.out, ended.err).replace("--canary", "").replace("\"canary\"", "");
        assert_no_canary(arguments, &said);
    }
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
async fn what_developers_print_has_no_secret() {
    install_provider();
    let variance = Variance::start().await;
    variance.always(answer("moved"));
    let variables = || secrets("http", &variance).into_iter().map(|(name, value)| (name.into(), value.into()));
    let loaded = config::load(&Flags::default(), variables()).unwrap();
    let forwarding = config::forwarding(&Flags::default(), variables()).unwrap();
    assert_no_canary("the configuration", &format!("{loaded:?} {loaded:#?} {forwarding:?}"));
    let auth = Auth::new(loaded.config.service.auth);
    let destination = Destination::new(loaded.config.service.destination, 1).unwrap();
    let attempt = destination.post("{}".into()).await;
    assert!(attempt.1.location().is_some(), "it is a whole answer");
    assert_no_canary("the parts", &format!("{auth:?} {destination:?} {attempt:?}"));
}

//! `status`: the report on the running service, for people and for programs.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    time::Duration,
};

use futures_util::future::join;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};
use variance_connector::backoff::Backoff;

use crate::{
    harness::Service,
    program::Program,
    variance::{Behaviour, Variance},
};

const TOKEN: &str = "a-token-of-the-tests";

fn status(service: &Service, arguments: &[&str]) -> Program {
    Program::new(["status"].iter().chain(arguments)).env("CONNECTOR_LISTEN", service.address.to_string())
}

/// Starts a service that has delivered two events, was refused one, left one out, turned a stranger away, and holds one
/// because Variance is away.
async fn after_some_traffic(variance: &mut Variance) -> Service {
    variance.script(|received| Behaviour::Status(if received.id() == "refused" { 400 } else { 200 }));
    let service = Service::start(variance, |settings| {
        settings.auth.tokens = vec![TOKEN.parse().unwrap()];
        settings.server.webhook_deadline = Duration::from_secs(1);
        settings.server.shutdown_grace = Duration::from_millis(200);
        let day = Duration::from_secs(24 * 60 * 60);
        settings.outbox.pacing.open_for = Backoff::new(day, day);
    })
    .await;
    let post = async |body: Value, token: &str| {
        let request = service.client.post(service.url("/webhook")).bearer_auth(token).body(body.to_string());
        request.send().await.unwrap().status().as_u16()
    };
    let event = |id: &str, name: &str| json!({"event": name, "uuid": id, "distinct_id": "d"});
    assert_eq!(post(json!([event("1", "$pageview"), event("2", "a"), event("refused", "a")]), TOKEN).await, 200);
    assert_eq!(post(event("3", "$autocapture"), TOKEN).await, 200);
    assert_eq!(post(event("4", "a"), "another-token-of-the-tests").await, 401);
    variance.always(Behaviour::StatusWith(429, "retry-after: 300\r\n".to_owned()));
    assert_eq!(post(event("5", "a"), TOKEN).await, 503);
    service
}

#[tokio::test]
async fn one_screen_says_how_the_service_is() {
    let mut variance = Variance::start().await;
    let service = after_some_traffic(&mut variance).await;
    let shown = status(&service, &[]).run().await;
    assert_eq!((shown.code, &*shown.err), (0, ""));
    for piece in [
        &format!("variance-connector {} at {}, started", env!("CARGO_PKG_VERSION"), service.address),
        "Variance   paused for ",
        ": Variance answered 429 Too Many Requests\n",
        "           accepted an event ",
        "s ago; next attempt in 4m ",
        "Events      delivered   filtered    refused    invalid  abandoned   returned\n",
        "  capture           1          0          1          0          0          0\n",
        "  page              1          0          0          0          0          0\n",
        "  none              0          1          0          0          0          0\n",
        "  all               2          1          1          0          0          0\n",
        "Received   5 (0.0/s); 0 were re-sends of known events\n",
        "Held       1 (",
        " of 64.0 MiB); the oldest for ",
        " of 1h\n",
        "Attempts   4 (0.0/s); 0 in flight of ",
        "Replies    webhook: 4 (0.0/s); half in ",
        "Senders    refused: 0 without a credential, 1 with a wrong one\n",
        "Lost       1 refused by Variance, 0 given up; 0 lines of the log\n",
    ] {
        assert!(shown.out.contains(piece), "{piece:?} is not in:\n{}", shown.out);
    }
    assert!(!shown.out.contains('\x1b'), "{:?}", shown.out);
    assert!(shown.out.lines().all(|line| line.len() <= 80) && shown.out.lines().count() < 24, "{}", shown.out);
}

#[tokio::test]
async fn programs_get_the_same_as_an_object() {
    let mut variance = Variance::start().await;
    let service = after_some_traffic(&mut variance).await;
    let shown = status(&service, &["--format", "json"]).run().await;
    assert_eq!(shown.out.lines().count(), 1, "{}", shown.out);
    let report: Value = serde_json::from_str(&shown.out).unwrap();
    assert_eq!(report["variance"]["state"], "paused");
    assert_eq!(report["variance"]["reason"], "Variance answered 429 Too Many Requests");
    assert!(report["variance"]["next_attempt_seconds"].as_f64().unwrap() > 200.0, "{report}");
    assert_eq!(report["outcomes"]["delivered"]["total"], 2);
    assert_eq!(report["events"]["page"]["delivered"], 1);
    assert_eq!(report["events"]["none"]["filtered"], 1);
    assert_eq!(report["held"]["events"], 1);
    assert_eq!(report["held"]["retry_for_seconds"], 3600.0);
    assert_eq!(report["attempts"]["total"], 4);
    assert_eq!(report["senders_refused"]["wrong"]["total"], 1);
}

#[tokio::test]
async fn a_service_that_does_not_answer_is_exit_1_and_something_else_there_too() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let shown = Program::new(["status", "--listen", &nobody]).run().await;
    assert_eq!((shown.code, &*shown.out), (1, ""));
    assert!(shown.err.starts_with(&format!("error: no reply from {nobody} (")), "{}", shown.err);

    let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = other.local_addr().unwrap().to_string();
    let answer = async {
        let (mut stream, _) = other.accept().await.unwrap();
        assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
        stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        stream
    };
    let (shown, _stream) = join(Program::new(["status", "--listen", &address]).run(), answer).await;
    assert_eq!(shown.code, 1);
    assert!(shown.err.contains("is it variance-connector?"), "{}", shown.err);
}

/// Returns the pieces that a reader gets, as they come.
fn pieces(mut reader: impl Read + Send + 'static) -> mpsc::UnboundedReceiver<Vec<u8>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        // Reading fails on a terminal whose program has ended.
        while let Ok(length @ 1..) = reader.read(&mut piece) {
            drop(sender.send(piece[..length].to_vec()));
        }
    });
    receiver
}

#[tokio::test]
async fn watching_prints_a_line_each_second_where_there_is_no_terminal() {
    let mut variance = Variance::start().await;
    let service = after_some_traffic(&mut variance).await;
    let mut running = status(&service, &["--watch"]).start();
    let out = running.child.as_mut().unwrap().stdout.take().unwrap();
    let lines = tokio::task::spawn_blocking(|| BufReader::new(out).lines().take(3).map(Result::unwrap).collect());
    let lines: Vec<String> = lines.await.unwrap();
    for line in &lines {
        let (time, rest) = line.split_once(' ').unwrap();
        humantime::parse_rfc3339(time).unwrap();
        let expected = "Variance paused; received 5 (0.0/s); delivered 2 (0.0/s); held 1; in flight 0 of ";
        assert!(rest.starts_with(expected) && rest.ends_with("; lost 1"), "{line}");
    }
}

#[tokio::test]
async fn watching_repaints_a_real_terminal_in_colour_and_outlives_a_restart() {
    let mut variance = Variance::start().await;
    let service = after_some_traffic(&mut variance).await;
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let path = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let inside = File::options().read(true).write(true).open(path).unwrap();
    let _running = status(&service, &["--watch"]).out(inside).start();
    let mut pieces = pieces(File::from(terminal));
    let mut shown = String::new();
    let mut until = async |shown: &mut String, piece: &str, times: usize| {
        while shown.matches(piece).count() < times {
            let more = pieces.recv().await.unwrap_or_else(|| panic!("{times} times {piece:?} is not in {shown:?}"));
            shown.push_str(&String::from_utf8_lossy(&more));
        }
    };
    until(&mut shown, "\x1b[J", 3).await;
    assert!(shown.starts_with("\x1b[2J\x1b[H"), "{shown:?}");
    assert!(shown.contains("Variance   \x1b[31mpaused\x1b[0m for "), "{shown:?}");
    assert_eq!(shown.matches("\x1b[H").count(), shown.matches("variance-connector ").count(), "{shown:?}");
    assert!(shown.contains("\x1b[K\r\n"), "{shown:?}");

    service.stopped().await;
    until(&mut shown, "no reply from", 2).await;
}

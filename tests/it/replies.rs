//! Odd replies of Variance: whatever they say about their events counts, and no event is posted twice because of them.

use std::time::Duration;

use futures_util::future;
use serde_json::json;
use tokio::time::{Instant, timeout};
use variance_connector::backoff::Backoff;

use crate::{
    harness::{PATIENCE, Service, event},
    program::Program,
    variance::{Behaviour, Variance},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn reply(head: &str) -> Behaviour {
    Behaviour::Bytes(format!("HTTP/1.1 {head}\r\nContent-Length: 2\r\n\r\nok").into_bytes())
}

/// Returns heads that a strict reader rejects.
fn odd_heads() -> Vec<(&'static str, String)> {
    let many = |count| (0..count).map(|n| format!("\r\nx-{n}: x")).collect::<String>();
    vec![
        ("a control character", "200 OK\r\nSet-Cookie: a=\u{1}b".to_owned()),
        ("a control character in a name", "200 OK\r\nX\u{1}: a".to_owned()),
        ("a line without a colon", "200 OK\r\nnonsense".to_owned()),
        ("an obsolete folding", "200 OK\r\nX: a\r\n b".to_owned()),
        ("a space before the colon", "200 OK\r\nX : a".to_owned()),
        ("no reason", "204".to_owned()),
        ("150 headers", format!("200 OK{}", many(150))),
        ("a header of 20 KiB", format!("200 OK\r\nX: {}", "x".repeat(20 << 10))),
        ("a header of 300 KiB", format!("202 Accepted\r\nX: {}", "x".repeat(300 << 10))),
    ]
}

#[tokio::test]
async fn a_2xx_is_success_whatever_its_other_headers_are_and_costs_one_request() {
    for (what, head) in odd_heads() {
        let variance = Variance::start().await;
        variance.always(reply(&head));
        let service = Service::start(&variance, |settings| {
            settings.server.webhook_deadline = Duration::from_secs(5);
            settings.outbox.pacing.backoff = Backoff::new(DAY, DAY);
        })
        .await;
        for id in ["a", "b"] {
            let reply = service.post("/webhook", event(id)).await;
            assert_eq!((reply.status, reply.counts()), (200, [1, 1, 0, 0, 0, 0]), "{what}: {}", reply.text);
        }
        assert_eq!(variance.ids(), ["a", "b"], "{what}");
    }
}

/// Returns replies whose meaning cannot be read.
fn unreadable() -> Vec<String> {
    let many: String = (0..1000).map(|n| format!("x-{n}: x\r\n")).collect();
    vec![
        "220 mail.example ESMTP\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok".to_owned(),
        format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 0\r\n\r\n"),
    ]
}

#[tokio::test]
async fn a_reply_that_cannot_be_read_costs_one_request_and_another_after_ten_seconds() {
    let cases = unreadable().into_iter().map(|bytes| async move {
        let variance = Variance::start().await;
        let service = Service::start(&variance, |settings| {
            settings.server.webhook_deadline = Duration::from_millis(500);
            settings.outbox.pacing.backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(1));
        })
        .await;
        // The next request may use a connection that was idle.
        assert_eq!(service.post("/webhook", event("before")).await.status, 200);
        variance.always(Behaviour::BytesThenClose(bytes.clone().into_bytes()));
        let start = Instant::now();
        let reply = service.post("/webhook", event("a")).await;
        let reason =
            "Variance does not have the event yet (the reply of Variance's host could not be read as HTTP/1.1): send the request again";
        assert_eq!((reply.status, reply.reasons()), (503, vec![reason.to_owned()]), "{bytes}");
        assert_eq!(variance.ids(), ["before", "a"], "{bytes}");
        variance.always(Behaviour::Status(200));
        variance.received_at_least(3).await;
        assert!(start.elapsed() >= Duration::from_secs(10), "{bytes}");
    });
    future::join_all(cases).await;
}

#[tokio::test]
async fn a_reply_that_nobody_asked_for_closes_its_connection_and_is_no_other_events() {
    let variance = Variance::start().await;
    let accepted = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let refused = "HTTP/1.1 422 No\r\nContent-Length: 2\r\n\r\nno";
    variance.script(move |received| match received.id().as_str() {
        "a" => Behaviour::Bytes(format!("{accepted}{refused}").into_bytes()),
        _ => Behaviour::Status(200),
    });
    let service = Service::start(&variance, |settings| settings.outbox.concurrency = 1).await;
    for id in ["a", "b", "c"] {
        assert_eq!(service.post("/webhook", event(id)).await.status, 200, "{id}");
    }
    assert_eq!(variance.ids(), ["a", "b", "c"]);
    assert_eq!(variance.connections(), 2);
}

#[tokio::test]
async fn a_2xx_with_a_web_page_is_success_and_warned_of_once() {
    let variance = Variance::start().await;
    variance.always(Behaviour::StatusWith(200, "Content-Type: text/html; charset=utf-8".to_owned()));
    let (mut running, address) = {
        let mut running = Program::serve(&variance).start();
        let mut errors = running.errors();
        let ready: serde_json::Value = serde_json::from_str(&errors.line("{").await).unwrap();
        let client = crate::harness::client();
        let url = format!("http://{}/webhook", ready["address"].as_str().unwrap());
        for id in ["a", "b", "c"] {
            assert_eq!(client.post(&url).body(event(id)).send().await.unwrap().status(), 200);
        }
        (errors, running)
    };
    address.signal("-TERM");
    let mut lines = Vec::new();
    while let Some(line) = running.next().await {
        lines.push(line);
    }
    let warning = r#""message":"Variance answered 200 with a web page: is variance.webhook_url right?""#;
    assert_eq!(lines.iter().filter(|line| line.contains(warning)).count(), 1, "{lines:#?}");

    let check = Program::new(["check", "--send", "--quiet"]).to(&variance).run().await;
    assert_eq!((check.code, check.out.lines().count()), (0, 1), "{check:?}");
    assert!(check.out.starts_with("accepted, but the reply is a web page: "), "{check:?}");
}

#[tokio::test]
async fn of_four_backends_one_that_is_bad_gets_no_more_than_its_share() {
    const EVENTS: usize = 400;
    for status in [500, 421] {
        let variance = Variance::start().await;
        variance.script(move |received| Behaviour::Status(if received.connection % 4 == 0 { status } else { 200 }));
        let service = Service::start(&variance, |settings| {
            settings.outbox.concurrency = 8;
            settings.outbox.pacing.backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(1));
        })
        .await;
        let event = |n: usize| json!({"event": "e", "uuid": n.to_string(), "distinct_id": "d"});
        let body = json!((0..EVENTS).map(event).collect::<Vec<_>>()).to_string();
        assert_eq!(service.post("/batch", body).await.status, 200);
        let bad = variance.received().iter().filter(|received| received.connection % 4 == 0).count();
        let share = bad as f64 / variance.count() as f64;
        assert!(share <= 0.25, "{status}: {bad} of {} attempts", variance.count());
    }
}

#[tokio::test]
async fn a_connection_is_made_anew_after_a_while_under_constant_traffic_too() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |settings| {
        settings.outbox.concurrency = 1;
        settings.destination.connections_kept_for = Duration::from_millis(100);
    })
    .await;
    let renewed = async {
        for n in 0.. {
            assert_eq!(service.post("/webhook", event(n)).await.status, 200);
            if variance.connections() >= 5 {
                return n;
            }
        }
        unreachable!("there is always another event")
    };
    let posted = timeout(PATIENCE, renewed).await.expect("it is made anew");
    assert_eq!(variance.count(), posted + 1, "none was posted twice");
}

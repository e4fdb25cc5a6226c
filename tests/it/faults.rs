//! Whatever Variance does to an attempt, its event is accepted, refused, or tried again.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use serde_json::json;
use tokio::task::JoinSet;
use variance_connector::{backoff::Backoff, outbox::Pacing};

use crate::{
    harness::Service,
    variance::{Accepting, Behaviour, Variance},
};

const EVENT: &str = r#"{"event":"e","uuid":"a","distinct_id":"d"}"#;

/// The party at fault, as a status says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nobodys,
    Events,
    Variances,
}

/// The table of all statuses, which spells out the one in docs/delivery.md.
fn fault_of(status: u16) -> Fault {
    match status {
        200..=299 => Fault::Nobodys,
        401..=408 | 410 | 417 | 421 | 425 | 426 | 429 | 431 | 499 => Fault::Variances,
        400..=499 => Fault::Events,
        300..=399 | 500..=599 => Fault::Variances,
        _ => unreachable!("{status} is none of these"),
    }
}

#[tokio::test]
async fn each_status_is_success_or_the_events_fault_or_variances() {
    let variance = Variance::start().await;
    let posts = Mutex::new(HashMap::<u16, usize>::new());
    variance.script(move |received| {
        let status = received.id().parse().unwrap();
        let mut posts = posts.lock().unwrap();
        let posts = posts.entry(status).or_default();
        *posts += 1;
        Behaviour::Status(if *posts > 1 && fault_of(status) == Fault::Variances { 200 } else { status })
    });
    let service = Service::start(&variance, |settings| {
        let at_once = Backoff::new(Duration::from_millis(1), Duration::from_millis(1));
        settings.outbox.pacing = Pacing { backoff: at_once, open_for: at_once, ..settings.outbox.pacing };
    })
    .await;
    let event = |status: u16| json!({"event": "e", "uuid": status.to_string(), "distinct_id": "d"});
    // Refusals are believed while others are accepted.
    assert_eq!(service.post("/webhook", event(200).to_string()).await.status, 200);
    let mut all: Vec<_> = (200..=599).collect();
    all.sort_by_key(|status| status % 100);
    let all: Vec<_> = all.into_iter().map(event).collect();
    let reply = service.post("/batch", json!(all).to_string()).await;
    assert_eq!((reply.status, reply.counts()), (200, [400, 316, 0, 84, 0, 0]));
    let mut posts = HashMap::<u16, usize>::new();
    for id in variance.ids() {
        *posts.entry(id.parse().unwrap()).or_default() += 1;
    }
    for status in 200..=599 {
        // This one is answered from memory.
        let reply = service.post("/webhook", event(status).to_string()).await;
        let expected = match fault_of(status) {
            Fault::Nobodys => (200, 1),
            Fault::Events => (422, 1),
            Fault::Variances => (200, 2),
        };
        assert_eq!((reply.status, posts[&status]), expected, "{status}: {}", reply.text);
        if fault_of(status) == Fault::Events {
            let reason = &reply.reasons()[0];
            assert!(reason.starts_with(&format!("Variance refused the event: {status} ")), "{reason}");
        }
    }
}

/// A reply that is complete once it is read to its end.
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn a_reply_whose_head_is_whole_and_says_2xx_is_success() {
    for behaviour in [
        Behaviour::EndlessBody,
        Behaviour::SlowBytes(OK.to_vec(), Duration::from_millis(1)),
        Behaviour::Bytes(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()),
        Behaviour::Bytes([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n", OK].concat()),
        Behaviour::BytesThenClose(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok".to_vec()),
        Behaviour::BytesThenSilence(b"HTTP/1.1 202 Accepted\r\nContent-Length: 100\r\n\r\nok".to_vec()),
    ] {
        let variance = Variance::start().await;
        variance.always(behaviour.clone());
        let service = Service::start(&variance, |settings| settings.outbox.concurrency = 1).await;
        // Whatever comes after the head, the one worker goes on with the next event.
        for event in [EVENT, r#"{"event":"e","uuid":"b","distinct_id":"d"}"#] {
            let reply = service.post("/webhook", event).await;
            assert_eq!((reply.status, reply.counts()), (200, [1, 1, 0, 0, 0, 0]), "{behaviour:?}");
        }
        assert_eq!(variance.ids(), ["a", "b"], "{behaviour:?}");
    }
}

/// A fault of Variance.
#[derive(Clone, Debug)]
enum Trouble {
    /// Its treatment of a request.
    Reply(Behaviour),
    /// Its treatment of a connection.
    Connection(Accepting),
    /// Nothing listens at its address.
    Gone,
    /// The webhook URL begins like this, and nothing that Variance does can put that right.
    Url(&'static str, Accepting),
}

/// The reason for an attempt that takes too long.
const STALL: &str = "Variance did not answer in time";
const BROKEN: &str = "the connection to Variance broke before its reply";

const UNREADABLE: &str = "the reply of Variance's host could not be read as HTTP/1.1";

/// Returns every way for an attempt to end without the head of a reply, with the reason that its sender gets.
fn troubles() -> Vec<(Trouble, &'static str)> {
    use Trouble::{Connection, Gone, Reply, Url};
    const NO_HOST: &str = "http://a-label-of-more-than-63-characters-is-no-name-in-dns-whoever-is-asked.invalid";
    let endless_head = [b"HTTP/1.1 500 Oh\r\nX: ".to_vec(), vec![b'x'; 1 << 20]].concat();
    vec![
        (Reply(Behaviour::Reset), BROKEN),
        (Reply(Behaviour::BytesThenClose(Vec::new())), BROKEN),
        (Reply(Behaviour::BytesThenClose(b"HTTP/1.1 20".to_vec())), BROKEN),
        (Reply(Behaviour::BytesThenClose(b"HTTP/1.1 200 OK\r\nContent-".to_vec())), BROKEN),
        (Reply(Behaviour::BytesThenClose(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec())), BROKEN),
        (Reply(Behaviour::BytesThenClose(b"\0\xff nothing of HTTP\r\n\r\n".to_vec())), UNREADABLE),
        (Reply(Behaviour::BytesThenClose(endless_head)), UNREADABLE),
        (Reply(Behaviour::BytesThenSilence(Vec::new())), STALL),
        (Reply(Behaviour::BytesThenSilence(b"HTTP/1.1 20".to_vec())), STALL),
        (Reply(Behaviour::BytesThenSilence(b"HTTP/1.1 200 OK\r\n".to_vec())), STALL),
        (Reply(Behaviour::BytesThenSilence(b"HTTP/1.1 102 Processing\r\n\r\n".repeat(100))), STALL),
        (Reply(Behaviour::SlowBytes(OK.to_vec(), Duration::from_millis(100))), STALL),
        (Connection(Accepting::Resetting), BROKEN),
        (Connection(Accepting::Silently), STALL),
        (Gone, "no connection to Variance's host"),
        (Url(NO_HOST, Accepting::Normally), "the name of Variance's host could not be resolved"),
        (Url("https://127.0.0.1", Accepting::Saying(OK)), "no trusted TLS connection to Variance's host"),
        (Url("https://127.0.0.1", Accepting::Resetting), "no connection to Variance's host"),
        (Url("https://127.0.0.1", Accepting::Silently), STALL),
    ]
}

#[tokio::test]
async fn an_attempt_without_the_head_of_a_reply_is_made_again() {
    let mut rows: JoinSet<_> = troubles().into_iter().map(|(trouble, reason)| try_again(trouble, reason)).collect();
    while let Some(row) = rows.join_next().await {
        row.unwrap();
    }
}

async fn try_again(trouble: Trouble, reason: &'static str) {
    let mut variance = Variance::start().await;
    let mut webhook_url = variance.url();
    match trouble.clone() {
        Trouble::Reply(behaviour) => variance.always(behaviour),
        Trouble::Connection(accepting) => variance.accepting(accepting),
        Trouble::Gone => variance.vanish(),
        Trouble::Url(start, accepting) => {
            webhook_url = format!("{start}:{}/hooks/posthog", variance.address.port());
            variance.accepting(accepting);
        }
    }
    let service = Service::start(&variance, |settings| {
        settings.server.webhook_deadline = Duration::from_millis(300);
        settings.destination.webhook_url = webhook_url.parse().unwrap();
        if reason == STALL {
            settings.destination.attempt_timeout = Duration::from_millis(100);
        }
    })
    .await;
    loop {
        let reply = service.post("/webhook", EVENT).await;
        assert_eq!((reply.status, reply.counts()), (503, [1, 0, 0, 0, 0, 1]), "{trouble:?}");
        // On a busy machine there may not have been an attempt yet.
        if reply.reasons() != ["Variance does not have the event yet: send the request again"] {
            assert_eq!(
                reply.reasons(),
                [format!("Variance does not have the event yet ({reason}): send the request again")]
            );
            break;
        }
    }
    let tried = variance.ids();
    match &trouble {
        Trouble::Reply(_) => variance.always(Behaviour::Status(200)),
        Trouble::Connection(_) => variance.accepting(Accepting::Normally),
        Trouble::Gone => variance.come_back(),
        Trouble::Url(..) => return assert_eq!(service.outbox.snapshot().held_events, 1, "{trouble:?}"),
    }
    service.emptied().await;
    let reply = service.post("/webhook", EVENT).await;
    assert_eq!((reply.status, reply.counts()), (200, [1, 1, 0, 0, 0, 0]), "{trouble:?}");
    assert!(variance.received().len() > tried.len(), "{trouble:?}");
    assert!(variance.ids().iter().all(|id| id == "a"), "{trouble:?}");
}

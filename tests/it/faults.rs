//! Whatever Variance does to an attempt, its event is taken, refused, or tried again.

use std::time::Duration;

use crate::{
    harness::Service,
    variance::{Accepting, Behaviour, Variance},
};

const EVENT: &str = r#"{"event":"e","uuid":"a","distinct_id":"d"}"#;

async fn service(variance: &Variance) -> Service {
    Service::start(variance, |settings| {
        settings.server.webhook_deadline = Duration::from_millis(300);
        settings.destination.attempt_timeout = Duration::from_millis(150);
    })
    .await
}

/// A reply that is complete when it is read to its end.
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
        let service = Service::start(&variance, |_| {}).await;
        let reply = service.post("/webhook", EVENT).await;
        assert_eq!((reply.status, reply.counts()), (200, [1, 1, 0, 0, 0, 0]), "{behaviour:?}");
        assert_eq!(variance.ids(), ["a"], "{behaviour:?}");
    }
}

#[tokio::test]
async fn an_attempt_without_a_whole_head_is_made_again() {
    let stall = "Variance did not answer in time";
    let broken = "the connection to Variance broke before its answer";
    for (behaviour, reason) in [
        (Behaviour::Reset, broken),
        (Behaviour::BytesThenClose(Vec::new()), broken),
        (Behaviour::BytesThenClose(b"HTTP/1.1 20".to_vec()), broken),
        (Behaviour::BytesThenClose(b"HTTP/1.1 200 OK\r\nContent-".to_vec()), broken),
        (Behaviour::BytesThenClose(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()), broken),
        (Behaviour::BytesThenClose(b"\0\xff nothing of HTTP\r\n\r\n".to_vec()), broken),
        (Behaviour::BytesThenSilence(Vec::new()), stall),
        (Behaviour::BytesThenSilence(b"HTTP/1.1 200 OK\r\n".to_vec()), stall),
        (Behaviour::BytesThenSilence(b"HTTP/1.1 102 Processing\r\n\r\n".to_vec()), stall),
        (Behaviour::SlowBytes(OK.to_vec(), Duration::from_millis(100)), stall),
    ] {
        let variance = Variance::start().await;
        variance.always(behaviour.clone());
        let service = service(&variance).await;
        let reply = service.post("/webhook", EVENT).await;
        assert_eq!((reply.status, reply.counts()), (503, [1, 0, 0, 0, 0, 1]), "{behaviour:?}");
        assert!(reply.reasons()[0].contains(reason), "{behaviour:?}: {:?}", reply.reasons());
        variance.always(Behaviour::Status(200));
        service.outbox.emptied().await;
        assert_eq!(service.post("/webhook", EVENT).await.status, 200, "{behaviour:?}");
    }
}

#[tokio::test]
async fn a_connection_that_is_not_served_is_made_again() {
    for (accepting, reason) in [
        (Accepting::Resetting, "the connection to Variance broke before its answer"),
        (Accepting::Silently, "Variance did not answer in time"),
    ] {
        let variance = Variance::start().await;
        variance.accepting(accepting);
        let service = service(&variance).await;
        let reply = service.post("/webhook", EVENT).await;
        assert_eq!(reply.status, 503, "{accepting:?}");
        assert!(reply.reasons()[0].contains(reason), "{accepting:?}: {:?}", reply.reasons());
        variance.accepting(Accepting::Normally);
        service.outbox.emptied().await;
        assert_eq!(variance.ids(), ["a"], "{accepting:?}");
    }
}

#[tokio::test]
async fn a_pooled_connection_that_variance_closes_is_no_fault() {
    let variance = Variance::start().await;
    let idle = Behaviour::ThenCloseIdle(Box::new(Behaviour::Status(200)), Duration::from_millis(1));
    variance.always(idle);
    let service = Service::start(&variance, |_| {}).await;
    for n in 0..200 {
        let reply = service.post("/webhook", format!(r#"{{"event":"e","uuid":"{n}"}}"#)).await;
        assert_eq!(reply.status, 200);
    }
    assert!(variance.connections() > 1, "no connection was ever closed");
    assert_eq!(variance.received().len(), 200);
    for fault in ["status", "timeout", "connect", "broken"] {
        let attempts = service.metric(&format!(r#"variance_connector_attempts_total{{result="{fault}"}}"#)).await;
        assert_eq!(attempts, 0.0, "{fault}");
    }
}

//! Connections that are reused, and those that cannot be.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::time::timeout;
use variance_connector::backoff::Backoff;

use crate::{
    harness::{PATIENCE, Service, event},
    variance::{Accepting, Behaviour, Variance},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

async fn attempts(service: &Service, result: &str) -> f64 {
    service.metric(&format!(r#"variance_connector_attempts_total{{result="{result}"}}"#)).await
}

async fn assert_no_fault(service: &Service) {
    for fault in ["status", "timeout", "connect", "broken"] {
        assert_eq!(attempts(service, fault).await, 0.0, "{fault}");
    }
}

#[tokio::test]
async fn a_pooled_connection_that_variance_closes_is_no_fault() {
    let variance = Variance::start().await;
    let idle = Behaviour::ThenCloseIdle(Box::new(Behaviour::Status(200)), Duration::ZERO);
    variance.always(idle);
    let service = Service::start(&variance, |_| {}).await;
    for n in 0..200 {
        let reply = service.post("/webhook", event(n)).await;
        assert_eq!(reply.status, 200);
    }
    assert!(variance.connections() > 1, "no connection was ever closed");
    assert_eq!(variance.received().len(), 200);
    assert_no_fault(&service).await;
}

/// Starts a service with one worker, which puts its connection back before it takes the next event.
async fn with_one_connection(variance: &Variance) -> Service {
    Service::start(variance, |settings| settings.outbox.concurrency = 1).await
}

#[tokio::test]
async fn a_pooled_connection_that_closes_just_as_a_request_comes_costs_one_more_request_and_no_fault() {
    const EVENTS: usize = 20;
    let variance = Variance::start().await;
    variance.always(Behaviour::ThenCloseUnread(Box::new(Behaviour::Status(200))));
    let service = with_one_connection(&variance).await;
    for n in 0..EVENTS {
        assert_eq!(service.post("/webhook", event(n)).await.status, 200, "{n}");
        assert_eq!(service.get("/healthz").await.json()["destination"]["state"], "up", "{n}");
    }
    assert_eq!(variance.connections(), EVENTS, "none was used twice");
    assert_eq!(variance.ids(), (0..EVENTS).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(attempts(&service, "accepted").await, EVENTS as f64);
    assert_no_fault(&service).await;
}

#[tokio::test]
async fn a_pooled_connection_that_closes_instead_of_an_answer_costs_one_more_request_and_no_fault() {
    const EVENTS: usize = 20;
    let variance = Variance::start().await;
    let requests = AtomicUsize::new(0);
    variance.script(move |_| match requests.fetch_add(1, Ordering::SeqCst) % 2 {
        0 => Behaviour::Status(200),
        _ => Behaviour::BytesThenClose(Vec::new()),
    });
    let service = with_one_connection(&variance).await;
    for n in 0..EVENTS {
        assert_eq!(service.post("/webhook", event(n)).await.status, 200, "{n}");
        assert_eq!(service.get("/healthz").await.json()["destination"]["state"], "up", "{n}");
    }
    let twice_but_the_first = (0..EVENTS).flat_map(|n| [n.to_string(), n.to_string()]).skip(1);
    assert_eq!(variance.ids(), twice_but_the_first.collect::<Vec<_>>());
    assert_eq!(attempts(&service, "accepted").await, EVENTS as f64);
    assert_no_fault(&service).await;
}

#[tokio::test]
async fn a_new_connection_that_breaks_is_a_fault_and_not_tried_again_at_once() {
    for breaks in [Behaviour::Reset, Behaviour::BytesThenClose(b"HTTP/1.1 20".to_vec())] {
        let variance = Variance::start().await;
        variance.always(breaks.clone());
        let service = Service::start(&variance, |settings| {
            settings.server.webhook_deadline = Duration::from_millis(100);
            settings.outbox.pacing.backoff = Backoff::new(DAY, DAY);
            settings.outbox.pacing.open_for = Backoff::new(DAY, DAY);
        })
        .await;
        for n in 0..5 {
            assert_eq!(service.get("/healthz").await.json()["held"]["events"], n);
            assert_eq!(service.post("/webhook", event(n)).await.status, 503);
            let broken = async { while attempts(&service, "broken").await < n as f64 + 1.0 {} };
            timeout(PATIENCE, broken).await.expect("a broken connection is told of");
            assert_eq!(variance.received().len(), n + 1, "{breaks:?}");
        }
        assert_eq!(service.get("/healthz").await.json()["destination"]["state"], "paused", "five faults, not ten");
    }
}

#[tokio::test]
async fn a_connection_that_could_not_be_made_is_not_made_again_at_once() {
    let variance = Variance::start().await;
    variance.accepting(Accepting::Saying(b"this is no TLS"));
    let service = Service::start(&variance, |settings| {
        settings.server.webhook_deadline = Duration::from_millis(100);
        settings.destination.webhook_url = format!("https://{}", variance.address).parse().unwrap();
        settings.outbox.pacing.backoff = Backoff::new(DAY, DAY);
    })
    .await;
    assert_eq!(service.post("/webhook", event(0)).await.status, 503);
    let failed = async { while attempts(&service, "connect").await < 1.0 {} };
    timeout(PATIENCE, failed).await.expect("the attempt fails");
    assert_eq!(variance.connections(), 1);
}

#[tokio::test]
async fn a_connection_that_breaks_again_at_once_is_a_fault_and_not_tried_a_third_time() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |settings| {
        settings.outbox.concurrency = 1;
        settings.server.webhook_deadline = Duration::from_secs(2);
        settings.outbox.pacing.backoff = Backoff::new(DAY, DAY);
    })
    .await;
    assert_eq!(service.post("/webhook", event(0)).await.status, 200);
    variance.always(Behaviour::Reset);
    assert_eq!(service.post("/webhook", event(1)).await.status, 503);
    let broken = async { while attempts(&service, "broken").await < 1.0 {} };
    timeout(PATIENCE, broken).await.expect("a broken connection is told of");
    assert_eq!(variance.ids(), ["0", "1", "1"]);
}

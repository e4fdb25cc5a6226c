//! Events that Variance does not have yet are held, tried again, and sent once.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use serde_json::json;

use crate::{
    harness::{Reply, Service, event},
    variance::{Accepting, Behaviour, Variance},
};

/// Returns a webhook's body with this identity.
/// Starts a service whose webhook deadline is shorter than anything that the stand-in may be waiting for.
async fn impatient(variance: &Variance) -> Service {
    Service::start(variance, |settings| settings.server.webhook_deadline = Duration::from_millis(100)).await
}

async fn events_total(service: &Service, call: &str, outcome: &str) -> f64 {
    service.metric(&format!(r#"variance_connector_events_total{{call="{call}",outcome="{outcome}"}}"#)).await
}

#[tokio::test]
async fn a_re_send_of_what_is_under_way_joins_it() {
    let variance = Variance::start().await;
    variance.always(Behaviour::After(Duration::from_millis(200), Box::new(Behaviour::Status(200))));
    let service = Service::start(&variance, |_| {}).await;
    let first = tokio::spawn(Reply::of(service.client.post(service.url("/webhook")).body(event("a"))));
    variance.received_at_least(1).await;
    let second = service.post("/webhook", event("a")).await;
    let first = first.await.unwrap();
    for reply in [first, second] {
        assert_eq!((reply.status, reply.counts()), (200, [1, 1, 0, 0, 0, 0]));
    }
    assert_eq!(variance.ids(), ["a"]);
    assert_eq!(service.metric(r#"variance_connector_joined_events_total{same="true"}"#).await, 1.0);
}

#[tokio::test]
async fn a_re_send_of_what_has_ended_is_answered_from_memory() {
    let variance = Variance::start().await;
    variance.script(|received| Behaviour::Status(if received.id() == "bad" { 400 } else { 200 }));
    let service = Service::start(&variance, |_| {}).await;
    for _ in 0..3 {
        let good = service.post("/webhook", event("good")).await;
        assert_eq!((good.status, good.counts()), (200, [1, 1, 0, 0, 0, 0]));
        let bad = service.post("/webhook", event("bad")).await;
        assert_eq!((bad.status, bad.counts()), (422, [1, 0, 0, 1, 0, 0]));
        assert_eq!(bad.reasons(), ["Variance refused the event: 400 Bad Request"]);
    }
    assert_eq!(variance.ids(), ["good", "bad"]);
    assert_eq!(service.metric("variance_connector_remembered_outcomes").await, 2.0);
}

#[tokio::test]
async fn an_event_without_an_answer_by_the_deadline_is_held_and_delivered_later() {
    let variance = Variance::start().await;
    variance.always(Behaviour::Status(500));
    let service = impatient(&variance).await;
    let reply = service.post("/webhook", event("a")).await;
    assert_eq!((reply.status, reply.counts()), (503, [1, 0, 0, 0, 0, 1]));
    assert!(reply.headers.contains_key("retry-after"));
    assert_eq!(service.metric("variance_connector_held_events").await, 1.0);
    assert!(service.metric("variance_connector_held_bytes").await > 0.0);
    assert_eq!(service.get("/healthz").await.json()["held"]["events"], 1);

    variance.always(Behaviour::Status(200));
    service.emptied().await;
    let posts = variance.received().len();
    assert_eq!(service.post("/webhook", event("a")).await.counts(), [1, 1, 0, 0, 0, 0]);
    assert_eq!(variance.received().len(), posts, "it was delivered once");
    assert_eq!(events_total(&service, "capture", "delivered").await, 1.0);
}

#[tokio::test]
async fn a_sender_that_hangs_up_changes_nothing() {
    let variance = Variance::start().await;
    variance.always(Behaviour::Status(500));
    let service = Service::start(&variance, |_| {}).await;
    let sender = tokio::spawn(service.client.post(service.url("/webhook")).body(event("a")).send());
    variance.received_at_least(2).await;
    sender.abort();
    assert!(sender.await.unwrap_err().is_cancelled());
    variance.always(Behaviour::Status(200));
    service.emptied().await;
    assert_eq!(events_total(&service, "capture", "delivered").await, 1.0);
}

#[tokio::test]
async fn everything_sent_during_an_outage_arrives_once_when_it_is_over() {
    let mut variance = Variance::start().await;
    let service = Service::start(&variance, |settings| {
        settings.server.webhook_deadline = Duration::from_millis(100);
        settings.outbox.concurrency = 8;
    })
    .await;
    variance.vanish();
    for n in 0..50 {
        assert_eq!(service.post("/webhook", event(n)).await.status, 503);
    }
    assert_eq!(service.metric("variance_connector_held_events").await, 50.0);
    assert_eq!(service.get("/readyz").await.status, 200, "an outage does not make the service unready");
    assert_eq!(service.get("/readyz").await.json()["destination"]["state"], "paused");
    variance.come_back();
    service.emptied().await;
    let mut ids: Vec<u32> = variance.ids().iter().map(|id| id.parse().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, Vec::from_iter(0..50));
    assert!(variance.max_in_flight() <= 8, "{}", variance.max_in_flight());
    assert!(service.metric("variance_connector_breaker_openings_total").await >= 1.0);
}

#[tokio::test]
async fn when_a_pause_is_over_what_is_held_is_posted_as_concurrently_as_it_may() {
    const CONCURRENCY: usize = 8;
    let variance = Variance::start().await;
    let service = Service::start(&variance, |settings| {
        settings.server.webhook_deadline = Duration::from_millis(100);
        settings.outbox.concurrency = CONCURRENCY;
    })
    .await;
    variance.accepting(Accepting::Resetting);
    let events: Vec<_> = (0..50).map(event).collect();
    let reply = service.post("/webhook", format!("[{}]", events.join(","))).await;
    assert_eq!((reply.status, reply.counts()), (503, [50, 0, 0, 0, 0, 50]));
    // The first request is the probe. After it, none gets an answer, so later ones have not waited for another.
    let has_been_probed = AtomicBool::new(false);
    variance.script(move |_| match has_been_probed.swap(true, Ordering::SeqCst) {
        false => Behaviour::Status(200),
        true => Behaviour::BytesThenSilence(Vec::new()),
    });
    variance.accepting(Accepting::Normally);
    variance.received_at_least(1 + CONCURRENCY).await;
    assert_eq!(variance.max_in_flight(), CONCURRENCY);
}

/// Starts a service that holds events for half a second.
async fn forgetful(variance: &Variance) -> Service {
    Service::start(variance, |settings| {
        settings.server.webhook_deadline = Duration::from_millis(100);
        settings.outbox.retry_for = Duration::from_millis(500);
    })
    .await
}

#[tokio::test]
async fn what_nobody_could_be_told_in_its_time_is_abandoned() {
    let variance = Variance::start().await;
    variance.always(Behaviour::Status(500));
    let service = forgetful(&variance).await;
    assert_eq!(service.post("/webhook", event("a")).await.status, 503);
    service.emptied().await;
    assert_eq!(events_total(&service, "capture", "abandoned").await, 1.0);
    variance.always(Behaviour::Status(200));
    while service.post("/webhook", event("a")).await.status != 200 {}
    assert_eq!(events_total(&service, "capture", "delivered").await, 1.0, "an abandoned event is not remembered");
}

#[tokio::test]
async fn an_event_that_always_fails_is_refused_at_the_end_of_its_time_because_others_were_taken() {
    let variance = Variance::start().await;
    variance.script(|received| Behaviour::Status(if received.id() == "poison" { 500 } else { 200 }));
    let service = forgetful(&variance).await;
    let reply = loop {
        let reply = service.post("/webhook", event("poison")).await;
        if reply.status != 503 {
            break reply;
        }
        service.post("/webhook", event(fastrand::u64(..))).await;
    };
    assert_eq!((reply.status, reply.counts()), (422, [1, 0, 0, 1, 0, 0]));
    assert!(reply.reasons()[0].contains("kept failing while Variance accepted others"), "{:?}", reply.reasons());
}

#[tokio::test]
async fn at_rest_what_was_received_is_the_sum_of_its_ends_what_joined_and_what_is_held() {
    let variance = Variance::start().await;
    variance.script(|received| match received.id().as_str() {
        "refused" => Behaviour::Status(422),
        "held" => Behaviour::Status(500),
        _ => Behaviour::Status(200),
    });
    let service = Service::start(&variance, |settings| settings.server.webhook_deadline = Duration::from_secs(2)).await;
    let body = json!([
        {"event": "e", "uuid": "delivered"},
        {"event": "e", "uuid": "delivered"},
        {"event": "$snapshot"},
        {"event": 7},
        {"event": "e", "uuid": "refused"},
        {"event": "e", "uuid": "held"},
    ]);
    let reply = service.post("/webhook", body.to_string()).await;
    assert_eq!((reply.status, reply.counts()), (503, [6, 2, 1, 1, 1, 1]));
    assert_eq!(service.metric("variance_connector_received_events_total").await, 6.0);
    assert_eq!(events_total(&service, "capture", "delivered").await, 1.0);
    assert_eq!(events_total(&service, "none", "filtered").await, 1.0);
    assert_eq!(events_total(&service, "none", "invalid").await, 1.0);
    assert_eq!(events_total(&service, "capture", "refused").await, 1.0);
    assert_eq!(events_total(&service, "none", "returned").await, 0.0);
    assert_eq!(service.metric(r#"variance_connector_joined_events_total{same="true"}"#).await, 1.0);
    assert_eq!(service.metric("variance_connector_held_events").await, 1.0);
}

#[tokio::test]
async fn stopping_delivers_what_it_can_and_tells_what_it_abandons() {
    let variance = Variance::start().await;
    variance.always(Behaviour::Status(500));
    let service = impatient(&variance).await;
    assert_eq!(service.post("/webhook", event("a")).await.status, 503);
    service.shut_down();
    variance.always(Behaviour::Status(200));
    assert_eq!(service.stopped().await, 0, "it had the time");

    variance.always(Behaviour::Status(500));
    let service = Service::start(&variance, |settings| {
        settings.server.webhook_deadline = Duration::from_millis(100);
        settings.server.shutdown_grace = Duration::from_millis(300);
    })
    .await;
    assert_eq!(service.post("/webhook", event("b")).await.status, 503);
    assert_eq!(service.stopped().await, 1);
}

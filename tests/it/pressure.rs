//! Many events at once: each reply comes in time, and nobody gets in another's way.

use std::time::{Duration, Instant};

use futures_util::future;
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    harness::{PATIENCE, Reply, Service},
    variance::{Behaviour, Variance},
};

fn event(id: impl std::fmt::Display) -> serde_json::Value {
    json!({"event": "e", "uuid": id.to_string(), "distinct_id": "d"})
}

#[tokio::test]
async fn with_a_variance_that_stalls_for_ever_500_requests_are_answered_by_their_deadline() {
    const DEADLINE: Duration = Duration::from_millis(2500);
    let variance = Variance::start().await;
    variance.always(Behaviour::BytesThenSilence(Vec::new()));
    let service = Service::start(&variance, |settings| {
        settings.server.webhook_deadline = DEADLINE;
        settings.destination.attempt_timeout = PATIENCE;
    })
    .await;
    let mut requests = JoinSet::new();
    for n in 0..500 {
        let request = service.client.post(service.url("/webhook")).body(event(n).to_string());
        requests.spawn(async move {
            let start = Instant::now();
            (Reply::of(request).await.status, start.elapsed())
        });
    }
    let mut slowest = Duration::ZERO;
    while let Some(result) = requests.join_next().await {
        let (status, time) = result.unwrap();
        assert_eq!(status, 503);
        slowest = slowest.max(time);
    }
    println!("the slowest of 500 replies took {slowest:?}");
    assert!(slowest < DEADLINE + Duration::from_secs(2), "{slowest:?}");
    assert_eq!(service.metric("variance_connector_held_events").await, 500.0);
}

#[tokio::test]
async fn a_webhook_beside_four_large_batches_waits_for_their_windows_and_not_for_them() {
    const WINDOWS: usize = 4 * 256;
    let variance = Variance::start().await;
    variance.always(Behaviour::After(Duration::from_millis(20), Box::new(Behaviour::Status(200))));
    let service = Service::start(&variance, |_| {}).await;
    let mut batches = JoinSet::new();
    for batch in 0..4 {
        let events: Vec<_> = (0..2500).map(|n| event(format_args!("{batch}-{n}"))).collect();
        let request = service.client.post(service.url("/batch")).body(json!({"batch": events}).to_string());
        batches.spawn(Reply::of(request));
    }
    variance.received_at_least(1000).await;
    let mut slowest = Duration::ZERO;
    let mut before = Vec::new();
    for n in 0..5 {
        before.push(variance.count());
        let start = Instant::now();
        let reply = service.post("/webhook", event(format_args!("live-{n}")).to_string()).await;
        slowest = slowest.max(start.elapsed());
        assert_eq!(reply.status, 200, "{}", reply.text);
        let held = service.metric("variance_connector_held_events").await;
        assert!(held <= WINDOWS as f64, "{held} of four requests are held at once");
    }
    println!("the slowest of 5 webhooks took {slowest:?}");
    while let Some(reply) = batches.join_next().await {
        assert_eq!(reply.unwrap().counts(), [2500, 2500, 0, 0, 0, 0]);
    }
    let ids = variance.ids();
    for (n, before) in before.into_iter().enumerate() {
        let place = ids.iter().position(|id| *id == format!("live-{n}")).unwrap();
        // Some events pass before the webhook has come in.
        assert!(place < before + 2 * WINDOWS, "{} events passed webhook {n}", place - before);
        assert!(place < 10_000, "webhook {n} came when the batches were over");
    }
    assert!(variance.max_in_flight() <= 64, "{}", variance.max_in_flight());
}

#[tokio::test]
async fn one_event_that_always_fails_holds_up_none_of_a_thousand_good_ones() {
    future::join_all([500, 403].map(|poison| async move {
        let variance = Variance::start().await;
        variance.script(move |received| Behaviour::Status(if received.id() == "poison" { poison } else { 200 }));
        let service = Service::start(&variance, |settings| {
            settings.server.batch_deadline = Duration::from_secs(15);
        })
        .await;
        let mut events: Vec<_> = (0..1000).map(event).collect();
        events.insert(100, event("poison"));
        let reply = service.post("/batch", json!(events).to_string()).await;
        assert_eq!((reply.status, reply.counts()), (503, [1001, 1000, 0, 0, 0, 1]), "{poison}");
        assert_eq!(reply.json()["problems"][0]["uuid"], "poison");
        assert_eq!(service.metric("variance_connector_held_events").await, 1.0);
    }))
    .await;
}

#[tokio::test]
async fn many_who_wait_for_the_same_event_do_not_hold_each_other_up_when_they_give_up() {
    let variance = Variance::start().await;
    variance.always(Behaviour::BytesThenSilence(Vec::new()));
    let service = Service::start(&variance, |settings| {
        settings.server.webhook_deadline = Duration::from_secs(1);
    })
    .await;
    let same = json!(vec![event("same"); 300]).to_string();
    let start = Instant::now();
    let mut requests = JoinSet::new();
    for _ in 0..400 {
        requests.spawn(Reply::of(service.client.post(service.url("/webhook")).body(same.clone())));
    }
    while let Some(reply) = requests.join_next().await {
        assert_eq!(reply.unwrap().status, 503);
    }
    let time = start.elapsed();
    println!("the last of 400 replies came after {time:?}");
    assert!(time < Duration::from_secs(40), "{time:?}");
    assert_eq!(service.metric("variance_connector_held_events").await, 1.0);
}

#[tokio::test]
async fn a_batch_of_more_than_there_is_room_for_goes_on_as_room_comes() {
    let variance = Variance::start().await;
    variance.always(Behaviour::After(Duration::from_millis(1), Box::new(Behaviour::Status(200))));
    let service = Service::start(&variance, |settings| settings.outbox.max_held = 20_000).await;
    let events: Vec<_> = (0..500).map(event).collect();
    let reply = service.post("/batch", json!(events).to_string()).await;
    assert_eq!((reply.status, reply.counts()), (200, [500, 500, 0, 0, 0, 0]));
    assert!(variance.max_in_flight() < 30, "{} events of over 640 bytes had room", variance.max_in_flight());
}

#[tokio::test]
async fn an_event_for_which_there_can_never_be_room_is_invalid_and_its_neighbours_go_on() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |settings| settings.outbox.max_held = 20_000).await;
    let mut large = event("large");
    large["properties"] = json!({"x": "x".repeat(20_000)});
    let reply = service.post("/webhook", json!([event("a"), large, event("b")]).to_string()).await;
    assert_eq!((reply.status, reply.counts()), (200, [3, 2, 0, 0, 1, 0]));
    assert_eq!(reply.reasons(), ["the event is larger than delivery.max_held"]);
    assert_eq!(service.post("/webhook", large.to_string()).await.status, 422);
    let mut ids = variance.ids();
    ids.sort();
    assert_eq!(ids, ["a", "b"]);
}

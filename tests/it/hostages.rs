//! No event is another's hostage, and none is given up before its time. These cases broke earlier versions, and run
//! with the delays of the real program.

use std::time::Duration;

use futures_util::future;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use variance_connector::outbox::Pacing;

use crate::{
    harness::{PATIENCE, Service, event},
    variance::{Behaviour, Received, Variance},
};

/// Starts a service with the real delays between attempts.
async fn real(variance: &Variance, webhook_deadline: Duration) -> Service {
    Service::start(variance, |settings| {
        settings.outbox.pacing = Pacing::default();
        settings.server.webhook_deadline = webhook_deadline;
    })
    .await
}

/// Returns a script that accepts everything, except that events whose id begins with `poison` get `poison`.
fn poisoned(poison: Behaviour) -> impl Fn(&Received) -> Behaviour + Send + Sync + 'static {
    move |received| if received.id().starts_with("poison") { poison.clone() } else { Behaviour::Status(200) }
}

async fn outcomes(service: &Service, outcome: &str) -> f64 {
    service.metric(&format!(r#"variance_connector_events_total{{call="capture",outcome="{outcome}"}}"#)).await
}

#[tokio::test]
async fn events_that_variance_always_fails_on_delay_no_other() {
    let poisons =
        [Behaviour::Status(500), Behaviour::Status(403), Behaviour::StatusWith(503, "Retry-After: 30\r\n".to_owned())];
    future::join_all(poisons.map(|poison| async move {
        let variance = Variance::start().await;
        variance.script(poisoned(poison.clone()));
        let service = real(&variance, Duration::from_millis(2500)).await;
        // Something is accepted first, because a `Retry-After` binds everything while nothing has been accepted.
        assert_eq!(service.post("/webhook", event("first")).await.status, 200);
        let mut poisons = JoinSet::new();
        for n in 0..40 {
            for _ in 0..4 {
                let request = service.client.post(service.url("/webhook")).body(event(format!("poison-{n}")));
                poisons.spawn(async move { request.send().await.unwrap().status().as_u16() });
            }
            let healthy = service.post("/webhook", event(format!("healthy-{n}"))).await;
            assert_eq!(healthy.status, 200, "{n} beside {poison:?}: {}", healthy.text);
        }
        while let Some(status) = poisons.join_next().await {
            assert_eq!(status.unwrap(), 503, "{poison:?}");
        }
        assert_eq!(outcomes(&service, "refused").await, 0.0);
    }))
    .await;
}

#[tokio::test]
async fn one_event_that_always_fails_on_a_quiet_system_lets_the_next_one_through_at_once() {
    let variance = Variance::start().await;
    variance.script(poisoned(Behaviour::Status(500)));
    let service = real(&variance, Duration::from_secs(1)).await;
    for n in 0..3 {
        assert_eq!(service.post("/webhook", event("poison")).await.status, 503);
        let healthy = service.post("/webhook", event(format!("healthy-{n}"))).await;
        assert_eq!(healthy.status, 200, "{n}: {}", healthy.text);
    }
}

#[tokio::test]
async fn after_a_start_many_events_that_always_fail_do_not_keep_a_healthy_one_from_its_turn() {
    let poisons = [Behaviour::Status(500), Behaviour::Status(403), Behaviour::Status(400), Behaviour::Reset];
    future::join_all(poisons.map(|poison| async move {
        let variance = Variance::start().await;
        variance.script(poisoned(poison));
        let service = Service::start(&variance, |settings| {
            settings.outbox.pacing = Pacing::default();
            // So the first faults come before the healthy event's turn.
            settings.outbox.concurrency = 4;
            settings.server.webhook_deadline = Duration::from_millis(200);
        })
        .await;
        let id = |n| if n == 30 { "healthy".to_owned() } else { format!("poison-{n}") };
        let batch: Vec<_> = (0..61).map(|n| json!({"event": "e", "uuid": id(n), "distinct_id": "d"})).collect();
        assert_eq!(service.post("/webhook", json!(batch).to_string()).await.status, 503);
        let delivered = async {
            while outcomes(&service, "delivered").await == 0.0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, delivered).await.expect("it has its turn");
    }))
    .await;
}

#[tokio::test]
async fn an_event_that_was_never_attempted_is_abandoned_and_not_refused_and_comes_through_when_it_is_sent_again() {
    let variance = Variance::start().await;
    let slow = Behaviour::After(Duration::from_millis(400), Box::new(Behaviour::Status(200)));
    variance.script(move |received| if received.id() == "late" { Behaviour::Status(200) } else { slow.clone() });
    let service = Service::start(&variance, |settings| {
        settings.outbox.concurrency = 1;
        settings.outbox.retry_for = Duration::from_millis(300);
        settings.server.webhook_deadline = Duration::from_millis(50);
    })
    .await;
    assert_eq!(service.post("/webhook", event("slow")).await.status, 503);
    assert_eq!(service.post("/webhook", event("late")).await.status, 503);
    service.emptied().await;
    assert_eq!((outcomes(&service, "abandoned").await, outcomes(&service, "refused").await), (1.0, 0.0));
    assert_eq!(service.post("/webhook", event("late")).await.status, 200, "it is not remembered");
    assert_eq!(variance.ids(), ["slow", "late"]);
}

#[tokio::test]
async fn what_variance_refused_while_it_was_broken_can_be_sent_again_once_it_is_mended() {
    let variance = Variance::start().await;
    let service =
        Service::start(&variance, |settings| settings.outbox.pacing.refusals_known_for = Duration::from_secs(1)).await;
    assert_eq!(service.post("/webhook", event("first")).await.status, 200);
    variance.always(Behaviour::Status(400));
    assert_eq!(service.post("/webhook", event("a")).await.status, 422);
    assert_eq!(variance.ids(), ["first", "a"]);
    variance.always(Behaviour::Status(200));
    while service.post("/webhook", event("a")).await.status != 200 {
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(variance.ids(), ["first", "a", "a"]);
}

#[tokio::test]
async fn a_wrong_url_that_refuses_everything_loses_nothing() {
    let variance = Variance::start().await;
    variance.always(Behaviour::Status(400));
    let service =
        Service::start(&variance, |settings| settings.server.webhook_deadline = Duration::from_millis(200)).await;
    let batch: Vec<_> = (0..100).map(|n| json!({"event": "e", "uuid": n.to_string(), "distinct_id": "d"})).collect();
    assert_eq!(service.post("/webhook", json!(batch).to_string()).await.status, 503);
    assert_eq!(outcomes(&service, "refused").await, 0.0);
    variance.always(Behaviour::Status(200));
    service.emptied().await;
    assert_eq!(outcomes(&service, "delivered").await, 100.0);
}

#[tokio::test]
async fn a_stop_delivers_what_a_pause_and_backoffs_hold_back() {
    let variance = Variance::start().await;
    variance.always(Behaviour::StatusWith(429, "Retry-After: 300\r\n".to_owned()));
    let service = real(&variance, Duration::from_millis(200)).await;
    let batch: Vec<_> = (0..100).map(|n| json!({"event": "e", "uuid": n.to_string(), "distinct_id": "d"})).collect();
    assert_eq!(service.post("/webhook", json!(batch).to_string()).await.status, 503);
    while service.outbox.paused() < Some(Duration::from_secs(200)) {
        sleep(Duration::from_millis(1)).await;
    }
    variance.always(Behaviour::Status(200));
    assert_eq!(service.stopped().await, 0, "all were delivered");
}

#[tokio::test]
async fn nothing_is_posted_before_the_time_that_a_429_asks_for_whatever_else_is_answered() {
    let variance = Variance::start().await;
    variance.script(|received| match received.id().as_str() {
        "slow" => Behaviour::After(Duration::from_millis(300), Box::new(Behaviour::Status(200))),
        "limited" => Behaviour::StatusWith(429, "Retry-After: 2\r\n".to_owned()),
        _ => Behaviour::Status(200),
    });
    let service = real(&variance, Duration::from_secs(1)).await;
    let mut slow = JoinSet::new();
    let request = service.client.post(service.url("/webhook")).body(event("slow"));
    slow.spawn(async move { request.send().await.unwrap().status().as_u16() });
    variance.received_at_least(1).await;
    assert_eq!(service.post("/webhook", event("limited")).await.status, 503);
    let asked = Instant::now();
    assert_eq!(slow.join_next().await.unwrap().unwrap(), 200);
    variance.received_at_least(3).await;
    assert!(asked.elapsed() > Duration::from_millis(900), "{:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_do_not_wait_behind_batches_or_behind_what_is_held() {
    let variance = Variance::start().await;
    let slowly = |status| Behaviour::After(Duration::from_millis(20), Box::new(Behaviour::Status(status)));
    variance.always(slowly(503));
    let service = Service::start(&variance, |settings| {
        settings.outbox.concurrency = 4;
        settings.server.webhook_deadline = Duration::from_millis(1500);
    })
    .await;
    // A backlog of 500 events takes 2.5 s, at four a time and 20 ms each.
    let batch = |name: &str| {
        let events: Vec<_> = (0..250).map(|n| json!({"event": "e", "uuid": format!("{name}-{n}")})).collect();
        json!(events).to_string()
    };
    for name in ["a", "b"] {
        assert_eq!(service.post("/webhook", batch(name)).await.status, 503);
    }
    variance.always(slowly(200));
    while service.outbox.paused().is_some() {
        sleep(Duration::from_millis(1)).await;
    }
    let mut batches = JoinSet::new();
    for name in ["c", "d", "e"] {
        let request = service.client.post(service.url("/batch")).body(batch(name));
        batches.spawn(async move { request.send().await.unwrap().status().as_u16() });
    }
    for n in 0..20 {
        let reply = service.post("/webhook", event(format!("webhook-{n}"))).await;
        assert_eq!(reply.status, 200, "{n}: {}", reply.text);
    }
    assert!(service.metric("variance_connector_held_events").await > 100.0, "others wait still");
    variance.always(Behaviour::Status(200));
    while let Some(status) = batches.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    service.emptied().await;
}

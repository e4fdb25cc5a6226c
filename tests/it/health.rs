//! `/healthz` and `/readyz` report the truth in every state.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::time::timeout;
use variance_connector::{backoff::Backoff, service::ServiceSettings};

use crate::{
    harness::{Service, event},
    variance::{Behaviour, Variance},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Returns the answer of both, which must be the same but for the seconds that pass between them.
async fn health(service: &Service) -> Value {
    let [mut alive, mut ready] = [service.get("/healthz").await.json(), service.get("/readyz").await.json()];
    for json in [&mut alive, &mut ready] {
        let fields: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, ["destination", "held", "status", "uptime_seconds", "version"]);
        assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
        assert!(json["uptime_seconds"].take().is_u64());
        assert!(json["held"]["oldest_seconds"].take().is_u64());
        let destination: Vec<_> = json["destination"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(destination, ["last_success", "reason", "since", "state"]);
    }
    assert_eq!(alive, ready);
    alive
}

fn time(value: &Value) -> SystemTime {
    humantime::parse_rfc3339(value.as_str().unwrap_or_else(|| panic!("{value} is no time"))).unwrap()
}

/// Starts a service that answers before anything is settled, and after a failure waits for longer than any test.
async fn impatient(variance: &Variance, change: impl FnOnce(&mut ServiceSettings)) -> Service {
    Service::start(variance, |settings| {
        settings.server.webhook_deadline = Duration::from_millis(200);
        settings.outbox.pacing.backoff = Backoff::new(DAY, DAY);
        settings.outbox.pacing.open_for = Backoff::new(DAY, DAY);
        change(settings);
    })
    .await
}

/// Asks until the service is in this state, which may pass.
async fn in_state(service: &Service, state: &str) -> Value {
    let asking = async {
        loop {
            let health = service.get("/healthz").await.json();
            if health["destination"]["state"] == state {
                return health;
            }
        }
    };
    timeout(Duration::from_secs(60), asking).await.unwrap_or_else(|_| panic!("it never was {state}"))
}

#[tokio::test]
async fn the_fields_come_in_the_order_in_which_they_are_documented() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |_| {}).await;
    for path in ["/healthz", "/readyz"] {
        let text = service.get(path).await.text;
        let places = [
            "status",
            "version",
            "uptime_seconds",
            "destination",
            "state",
            "since",
            "reason",
            "last_success",
            "held",
            "events",
            "bytes",
            "oldest_seconds",
        ]
        .map(|name| text.find(&format!("{name:?}:")).unwrap_or_else(|| panic!("no {name} in {text}")));
        assert!(places.is_sorted(), "{text}");
    }
}

#[tokio::test]
async fn before_the_first_event_nothing_is_known_of_variance_and_then_it_is_up() {
    let variance = Variance::start().await;
    let started = SystemTime::now() - Duration::from_millis(1);
    let service = Service::start(&variance, |_| {}).await;
    let unknown = health(&service).await;
    assert_eq!(unknown["status"], "ok");
    assert_eq!(unknown["destination"]["state"], "unknown");
    assert_eq!(unknown["destination"]["reason"], Value::Null);
    assert_eq!(unknown["destination"]["last_success"], Value::Null);
    assert!(time(&unknown["destination"]["since"]) >= started);
    assert!(variance.received().is_empty(), "asking after the health asks nothing of Variance");

    assert_eq!(service.post("/webhook", event(0)).await.status, 200);
    let up = health(&service).await;
    assert_eq!(up["destination"]["state"], "up");
    assert_eq!(up["destination"]["reason"], Value::Null);
    assert!(time(&up["destination"]["since"]) >= time(&unknown["destination"]["since"]));
    assert_eq!(service.post("/webhook", event(1)).await.status, 200);
    let later = health(&service).await;
    assert_eq!(later["destination"]["since"], up["destination"]["since"], "it has been up since the first");
    assert!(time(&later["destination"]["last_success"]) >= time(&up["destination"]["since"]));
    assert_eq!(later["held"]["events"], 0);
}

#[tokio::test]
async fn a_variance_that_refuses_an_event_is_up_and_has_taken_nothing() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |_| {}).await;
    assert_eq!(service.post("/webhook", event(0)).await.status, 200);
    let before = health(&service).await;
    variance.always(Behaviour::Status(400));
    assert_eq!(service.post("/webhook", event(1)).await.status, 422);
    let after = health(&service).await;
    assert_eq!(after["destination"]["state"], "up");
    assert_eq!(after["destination"]["last_success"], before["destination"]["last_success"]);
}

#[tokio::test]
async fn a_variance_that_has_only_ever_refused_is_failing_and_nothing_is_taken_for_refused() {
    let variance = Variance::start().await;
    variance.always(Behaviour::Status(400));
    let service = impatient(&variance, |_| {}).await;
    let reply = service.post("/webhook", event(0)).await;
    assert_eq!((reply.status, reply.counts()), (503, [1, 0, 0, 0, 0, 1]));
    let reason = "Variance refuses every event: 400 Bad Request";
    assert_eq!(reply.reasons(), [format!("Variance does not have the event yet ({reason}): send the request again")]);
    let refusing = health(&service).await;
    assert_eq!(
        (&refusing["destination"]["state"], &refusing["destination"]["reason"]),
        (&json!("failing"), &json!(reason))
    );
    assert_eq!(refusing["held"]["events"], 1);
}

#[tokio::test]
async fn a_variance_that_fails_is_failing_and_after_five_faults_in_a_row_paused() {
    let variance = Variance::start().await;
    let service = impatient(&variance, |_| {}).await;
    assert_eq!(service.post("/batch", event(0)).await.status, 200);
    variance.always(Behaviour::Status(500));
    assert_eq!(service.post("/webhook", event(1)).await.status, 503);
    in_state(&service, "failing").await;
    let failing = health(&service).await;
    assert_eq!(failing["status"], "ok", "an outage of Variance is none of this service");
    assert_eq!(failing["destination"]["reason"], "Variance answered 500 Internal Server Error");
    assert!(failing["destination"]["last_success"].is_string(), "it took one before");
    assert_eq!(failing["held"]["events"], 1);
    assert!(failing["held"]["bytes"].as_u64().unwrap() > 100);

    variance.always(Behaviour::Status(403));
    let four: Vec<Value> = (2..6).map(|id| serde_json::from_str(&event(id)).unwrap()).collect();
    assert_eq!(service.post("/webhook", json!(four).to_string()).await.status, 503);
    in_state(&service, "paused").await;
    let paused = health(&service).await;
    assert_eq!(paused["status"], "ok");
    assert_eq!(paused["destination"]["reason"], "Variance answered 403 Forbidden");
    assert!(time(&paused["destination"]["since"]) >= time(&failing["destination"]["since"]));
    assert_eq!(paused["held"]["events"], 5);
}

#[tokio::test]
async fn a_pause_that_variance_asked_for_is_one_until_it_takes_events_again() {
    let variance = Variance::start().await;
    variance.always(Behaviour::StatusWith(429, "Retry-After: 1\r\n".to_owned()));
    let service = Service::start(&variance, |settings| {
        settings.server.webhook_deadline = Duration::from_millis(200);
    })
    .await;
    assert_eq!(service.post("/webhook", event(0)).await.status, 503);
    let paused = in_state(&service, "paused").await;
    assert_eq!(paused["destination"]["reason"], "Variance answered 429 Too Many Requests");
    variance.always(Behaviour::Status(200));
    let up = in_state(&service, "up").await;
    assert_eq!(up["destination"]["reason"], Value::Null);
    assert_eq!(up["held"]["events"], 0);
}

#[tokio::test]
async fn a_service_that_stops_is_alive_and_not_ready() {
    let variance = Variance::start().await;
    variance.always(Behaviour::Status(500));
    let service = impatient(&variance, |settings| settings.server.shutdown_grace = Duration::from_secs(60)).await;
    assert_eq!(service.post("/webhook", event(0)).await.status, 503);
    service.shut_down();
    let stopping = async { while service.get("/readyz").await.status == 200 {} };
    timeout(Duration::from_secs(60), stopping).await.expect("it stops");
    for (path, status) in [("/healthz", 200), ("/readyz", 503)] {
        let reply = service.get(path).await;
        assert_eq!(reply.status, status);
        assert_eq!(reply.json()["status"], "draining");
        assert_eq!(reply.json()["held"]["events"], 1);
    }
}

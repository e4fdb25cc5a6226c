//! Requests, the messages that they become, and the replies to the sender.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use variance_connector::mapping::Format;

use crate::{
    harness::{AUTHORIZATION, Service},
    variance::{Behaviour, Variance},
};

fn library() -> Value {
    json!({"name": "variance-connector", "version": env!("CARGO_PKG_VERSION")})
}

#[tokio::test]
async fn each_call_of_a_webhook_destination_becomes_the_call_that_variance_knows() {
    let page = json!({
        "host": "www.example.com",
        "path": "/pricing",
        "referrer": "$direct",
        "url": "https://www.example.com/pricing?utm_source=x",
        "search": "?utm_source=x",
    });
    let cases = [
        (
            include_str!("fixtures/capture.json"),
            json!({
                "messageId": "0198c4c1-6c1e-7d3a-9b54-2f1c7e0a4b11",
                "timestamp": "2026-08-20T09:14:03.512Z",
                "type": "track",
                "event": "plan upgraded",
                "anonymousId": "0198c4a0-1111-7aaa-8bbb-000000000001",
                "userId": "user_42",
                "context": {
                    "ip": "203.0.113.7",
                    "os": {"name": "Mac OS X"},
                    "page": {
                        "host": "app.example.com",
                        "path": "/billing",
                        "referrer": "https://app.example.com/home",
                        "url": "https://app.example.com/billing?ref=nav",
                        "search": "?ref=nav",
                    },
                    "screen": {"height": 982, "width": 1512},
                    "library": library(),
                },
                "libary": library(),
                "properties": {"plan": "team", "seats": 12, "token": "phc_xxx", "distinct_id": "user_42"},
            }),
        ),
        (
            include_str!("fixtures/page.json"),
            json!({
                "messageId": "0198c4c2-0a10-7f00-8000-000000000003",
                "timestamp": "2026-08-20T09:15:00.001Z",
                "type": "page",
                "anonymousId": "0198c4a0-1111-7aaa-8bbb-000000000001",
                "userId": "0198c4a0-1111-7aaa-8bbb-000000000001",
                "context": {"ip": "203.0.113.7", "page": page, "library": library()},
                "libary": library(),
                "properties": page,
            }),
        ),
        (
            include_str!("fixtures/identify.json"),
            json!({
                "messageId": "0198c4c3-2b1f-7a00-9000-000000000004",
                "timestamp": "2026-08-20T09:16:10.200Z",
                "type": "identify",
                "anonymousId": "0198c4a0-1111-7aaa-8bbb-000000000001",
                "userId": "user_42",
                "context": {"ip": "203.0.113.7", "library": library()},
                "libary": library(),
                "traits": {"email": "ada@example.com", "name": "Ada"},
            }),
        ),
        (
            include_str!("fixtures/alias.json"),
            json!({
                "messageId": "0198c4c4-3c20-7b00-9000-000000000005",
                "timestamp": "2026-08-20T09:17:00.000Z",
                "type": "alias",
                "anonymousId": "user_42",
                "userId": "crm-9001",
                "previousId": "user_42",
                "context": {"library": library()},
                "libary": library(),
            }),
        ),
    ];
    let variance = Variance::start().await;
    let service = Service::start(&variance, |_| {}).await;
    for (index, (body, expected)) in cases.into_iter().enumerate() {
        let reply = service.post("/webhook", body).await;
        assert_eq!((reply.status, reply.counts()), (200, [1, 1, 0, 0, 0, 0]));
        assert_eq!(variance.bodies()[index], expected);
    }
}

#[tokio::test]
async fn a_post_to_variance_carries_the_credential_and_our_name() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |_| {}).await;
    assert_eq!(service.post("/webhook", include_str!("fixtures/capture.json")).await.status, 200);
    let received = &variance.received()[0];
    assert_eq!(received.line, "POST /hooks/posthog?team=secret-team HTTP/1.1");
    assert_eq!(received.headers["authorization"], AUTHORIZATION);
    assert_eq!(received.headers["content-type"], "application/json");
    assert_eq!(received.headers["user-agent"], concat!("variance-connector/", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn person_and_account_go_along_when_the_settings_say_so() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |settings| {
        settings.mapping.person_traits = true;
        settings.mapping.account_group = Some("company".to_owned());
    })
    .await;
    assert_eq!(service.post("/webhook", include_str!("fixtures/capture.json")).await.status, 200);
    let context = &variance.bodies()[0]["context"];
    assert_eq!(context["traits"], json!({"email": "ada@example.com", "name": "Ada"}));
    assert_eq!(context["groupId"], "acme");
}

#[tokio::test]
async fn the_posthog_format_is_the_event_as_it_was_received() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |settings| settings.mapping.format = Format::Posthog).await;
    let event =
        r#"{ "event" : "a", "uuid":"u-1", "properties": {"n": 1e999, "s":"\ud83d", "d":18446744073709551617} }"#;
    let bodies = [event.to_owned(), format!(r#"{{"person":null, "event" : {event}}}"#), format!("[ {event} ]")];
    for (index, body) in bodies.into_iter().enumerate() {
        // Each is a different event, or it would be a re-send of the first.
        let body = body.replace("u-1", &format!("u-{index}"));
        assert_eq!(service.post("/webhook", body).await.counts(), [1, 1, 0, 0, 0, 0]);
        let expected = event.replace("u-1", &format!("u-{index}"));
        assert_eq!(String::from_utf8_lossy(&variance.received()[index].body), expected);
    }
}

#[tokio::test]
async fn a_mixed_batch_is_accounted_for_event_by_event() {
    let variance = Variance::start().await;
    variance.script(|received| match received.json()["event"].as_str() {
        Some("refuse me") => Behaviour::Status(422),
        _ => Behaviour::Status(204),
    });
    let service = Service::start(&variance, |_| {}).await;
    let body = json!({"batch": [
        {"event": "one", "uuid": "id-0", "distinct_id": "a", "timestamp": "2026-01-01T00:00:00Z"},
        {"event": "$autocapture", "uuid": "id-1", "distinct_id": "a"},
        {"event": "refuse me", "uuid": "id-2", "distinct_id": "a"},
        7,
        {"event": "$groupidentify", "uuid": "id-4", "distinct_id": "a"},
        {"event": "two", "uuid": "id-5", "distinct_id": "a"},
    ]});
    let reply = service.post("/batch", body.to_string()).await;
    assert_eq!((reply.status, reply.counts()), (200, [6, 2, 2, 1, 1, 0]));
    let problems = reply.json()["problems"].clone();
    let mut problems = problems.as_array().unwrap().clone();
    problems.sort_by_key(|problem| problem["index"].as_u64());
    assert_eq!(
        problems,
        [
            json!({"index": 2, "uuid": "id-2", "reason": "Variance refused the event: 422 Unprocessable Entity"}),
            json!({"index": 3, "reason": "an event must be a JSON object"}),
        ]
    );
    let mut ids = variance.ids();
    ids.sort();
    assert_eq!(ids, ["id-0", "id-2", "id-5"]);
}

#[tokio::test]
async fn events_of_a_request_are_posted_concurrently_but_never_more_than_the_setting() {
    let variance = Variance::start().await;
    variance.always(Behaviour::After(Duration::from_millis(20), Box::new(Behaviour::Status(200))));
    let service = Service::start(&variance, |settings| settings.outbox.concurrency = 8).await;
    let events: Vec<_> = (0..100).map(|n| json!({"event": "e", "uuid": format!("id-{n}")})).collect();
    let reply = service.post("/batch", json!({"batch": events}).to_string()).await;
    assert_eq!(reply.counts(), [100, 100, 0, 0, 0, 0]);
    assert_eq!(variance.max_in_flight(), 8);
}

#[tokio::test]
async fn a_redirect_is_neither_followed_nor_success() {
    let (variance, elsewhere) = (Variance::start().await, Variance::start().await);
    variance.always(Behaviour::StatusWith(302, format!("Location: {}\r\n", elsewhere.url())));
    let service = Service::start(&variance, |settings| settings.server.webhook_deadline = Duration::from_secs(2)).await;
    let reply = service.post("/webhook", r#"{"event":"a"}"#).await;
    assert_eq!((reply.status, reply.counts()), (503, [1, 0, 0, 0, 0, 1]));
    assert!(reply.headers.contains_key("retry-after"));
    assert!(reply.reasons()[0].contains("302"), "{:?}", reply.reasons());
    assert!(elsewhere.received().is_empty());
}

#[tokio::test]
async fn a_problem_names_the_event_as_variance_and_the_log_know_it_or_not_at_all() {
    let variance = Variance::start().await;
    variance.script(|received| Behaviour::Status(if received.json()["event"] == "taken" { 200 } else { 400 }));
    let service = Service::start(&variance, |_| {}).await;
    assert_eq!(service.post("/webhook", r#"{"event":"taken"}"#).await.status, 200);
    for body in [r#"{"event":"a","uuid":"u-1"}"#, r#"{"event":"b","timestamp":"2026-01-01T00:00:00Z"}"#] {
        let reply = service.post("/webhook", body).await;
        assert_eq!(reply.json()["problems"][0]["uuid"], variance.ids().last().unwrap().as_str());
    }
    let reply = service.post("/webhook", r#"{"event":"c"}"#).await;
    assert_eq!(reply.json()["problems"][0].get("uuid"), None, "nobody could find a random one again");
}

#[tokio::test]
async fn nothing_of_the_upstream_stands_in_a_reply() {
    let mut variance = Variance::start().await;
    let service =
        Service::start(&variance, |settings| settings.server.webhook_deadline = Duration::from_millis(200)).await;
    variance.vanish();
    let reply = service.post("/webhook", r#"{"event":"a"}"#).await;
    assert_eq!(reply.status, 503);
    for secret in [AUTHORIZATION, "secret-team", "hooks", &variance.address.to_string()] {
        assert!(!reply.text.contains(secret), "{}", reply.text);
    }
}

#[tokio::test]
async fn health_tells_what_is_known_of_variance() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |_| {}).await;
    for path in ["/healthz", "/readyz", "/healthz/", "/readyz/"] {
        let reply = service.get(path).await;
        assert_eq!(reply.status, 200);
        let json = reply.json();
        assert_eq!(json["status"], "ok");
        assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(json["destination"]["state"], "unknown");
        assert_eq!(json["destination"]["last_success"], Value::Null);
        assert_eq!(json["held"], json!({"events": 0, "bytes": 0, "oldest_seconds": 0}));
    }
    service.post("/webhook", include_str!("fixtures/page.json")).await;
    let json = service.get("/healthz").await.json();
    assert_eq!(json["destination"]["state"], "up");
    assert!(json["destination"]["last_success"].is_string());
}

#[tokio::test]
async fn wrong_methods_and_paths_are_told_so() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |_| {}).await;
    for (method, path, status, allowed) in [
        (Method::GET, "/webhook", 405, Some("POST")),
        (Method::PUT, "/batch/", 405, Some("POST")),
        (Method::POST, "/healthz", 405, Some("GET,HEAD")),
        (Method::OPTIONS, "/metrics", 405, Some("GET,HEAD")),
        (Method::POST, "/", 404, None),
        (Method::POST, "/webhook/more", 404, None),
        (Method::GET, "/favicon.ico", 404, None),
    ] {
        let request = service.client.request(method.clone(), service.url(path)).body("{}");
        let reply = crate::harness::Reply::of(request).await;
        assert_eq!(reply.status, status, "{method} {path}");
        assert_eq!(reply.headers.get("allow").map(|allow| allow.to_str().unwrap()), allowed, "{method} {path}");
        assert_eq!(reply.counts(), [0; 6]);
        assert_eq!(reply.reasons().len(), 1);
    }
}

#[tokio::test]
async fn head_is_answered_like_get_but_for_the_body() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |_| {}).await;
    for path in ["/healthz", "/readyz/", "//metrics"] {
        let get = service.get(path).await;
        let head = crate::harness::Reply::of(service.client.head(service.url(path))).await;
        assert_eq!((head.status, head.text.as_str()), (200, ""), "{path}");
        assert!(head.headers["content-length"].to_str().unwrap().parse::<usize>().unwrap() > 0, "{path}");
        assert_eq!(get.headers["content-type"], head.headers["content-type"], "{path}");
    }
}

//! Every mapped field present, absent, null, falsy and oddly typed, compared with what PostHog's own Variance app
//! posted.

use std::collections::HashMap;

use serde_json::{Value, json};
use variance_connector::variance::Call;

use crate::{harness::Service, variance::Variance};

const EVENTS: &str = include_str!("parity/events.ndjson");
const EXPECTED: &str = include_str!("parity/expected.ndjson");

/// Posts the bodies that `bodies` makes of all events, and compares what arrives, one by one.
async fn assert_parity(path: &str, bodies: impl Fn(&[&str]) -> Vec<String>) {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |settings| settings.mapping.calls = Call::ALL.to_vec()).await;
    let events: Vec<_> = EVENTS.lines().collect();
    for body in bodies(&events) {
        let reply = service.post(path, body).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
    let mut arrived: HashMap<_, _> =
        variance.received().iter().map(|received| (received.id(), received.json())).collect();
    let mut count = 0;
    for expected in EXPECTED.lines() {
        let expected: Value = serde_json::from_str(expected).unwrap();
        let arrived = arrived.remove(expected["uuid"].as_str().unwrap()).map_or(Value::Null, without_library);
        assert_eq!(arrived, expected["body"]);
        count += 1;
    }
    assert_eq!((count, arrived.len()), (240, 0), "all compared, and nothing else arrived");
}

/// Removes the library, which the cases do not have.
fn without_library(mut body: Value) -> Value {
    let library = json!({"name": "variance-connector", "version": env!("CARGO_PKG_VERSION")});
    let fields = body.as_object_mut().unwrap();
    assert_eq!(fields.remove("libary"), Some(library.clone()));
    let context = fields.get_mut("context").and_then(Value::as_object_mut).unwrap();
    assert_eq!(context.remove("library"), Some(library));
    if context.is_empty() {
        fields.remove("context");
    }
    body
}

#[tokio::test]
async fn as_a_webhook_destinations_default_body() {
    let bodies = |events: &[&str]| events.iter().map(|event| format!(r#"{{"event":{event},"person":null}}"#)).collect();
    assert_parity("/webhook", bodies).await;
}

#[tokio::test]
async fn as_bare_events() {
    assert_parity("/webhook", |events| events.iter().map(|&event| event.to_owned()).collect()).await;
}

#[tokio::test]
async fn as_an_array() {
    assert_parity("/batch", |events| vec![format!("[{}]", events.join(","))]).await;
}

#[tokio::test]
async fn as_a_batch() {
    let bodies = |events: &[&str]| {
        vec![format!(r#"{{"api_key":"phc_x","historical_migration":true,"batch":[{}]}}"#, events.join(","))]
    };
    assert_parity("/batch/", bodies).await;
}

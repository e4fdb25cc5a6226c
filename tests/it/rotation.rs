//! A credential that changes while the service runs.

use std::time::Duration;

use serde_json::json;
use variance_connector::{backoff::Backoff, destination::Authorization};

use crate::{
    harness::{Reply, Service},
    variance::{Behaviour, Variance},
};

#[tokio::test]
async fn events_that_met_a_rotated_credential_arrive_with_the_new_one() {
    for status in [401, 403] {
        let variance = Variance::start().await;
        variance.script(move |received| {
            Behaviour::Status(if received.headers["authorization"] == "Bearer new" { 200 } else { status })
        });
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("authorization");
        std::fs::write(&file, "Bearer old\n").unwrap();
        let service = Service::start(&variance, |settings| {
            settings.destination.authorization = Authorization::read(file.clone()).unwrap();
            settings.outbox.concurrency = 64;
            settings.outbox.pacing.open_for = Backoff::new(Duration::from_millis(5), Duration::from_millis(10));
        })
        .await;
        let events: Vec<_> = (0..100).map(|n| json!({"event": "e", "uuid": n.to_string()})).collect();
        let request = service.client.post(service.url("/batch")).body(json!(events).to_string());
        let request = tokio::spawn(Reply::of(request));
        // The breaker has opened, and probes fail because of the old credential.
        variance.received_at_least(64 + 3).await;
        std::fs::write(&file, "Bearer new\n").unwrap();
        let reply = request.await.unwrap();
        assert_eq!((reply.status, reply.counts()), (200, [100, 100, 0, 0, 0, 0]), "{status}");
        let received = variance.received();
        let (new, old): (Vec<_>, Vec<_>) =
            received.iter().partition(|received| received.headers["authorization"] == "Bearer new");
        assert_eq!(new.len(), 100, "{status}: each event is taken once");
        assert!(old.iter().all(|received| received.headers["authorization"] == "Bearer old"), "{status}");
        let last_old = received.iter().rposition(|received| received.headers["authorization"] == "Bearer old");
        let first_new = received.iter().position(|received| received.headers["authorization"] == "Bearer new");
        assert!(last_old < first_new, "{status}: nothing goes back to the old one");
    }
}

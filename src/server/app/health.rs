//! What `/healthz` and `/readyz` say, in the order in which people read it.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::{metrics::Snapshot, outbox};

/// The body of either.
#[derive(Serialize)]
pub(super) struct Health {
    status: &'static str,
    version: &'static str,
    uptime_seconds: u64,
    destination: Destination,
    held: Held,
}

/// What is known of Variance.
#[derive(Serialize)]
struct Destination {
    state: &'static str,
    since: String,
    reason: Option<String>,
    last_success: Option<String>,
}

/// What Variance does not have yet.
#[derive(Serialize)]
struct Held {
    events: usize,
    bytes: usize,
    oldest_seconds: u64,
}

impl Health {
    pub(super) fn new(is_draining: bool, uptime: Duration, health: &outbox::Health, snapshot: &Snapshot) -> Self {
        Self {
            status: if is_draining { "draining" } else { "ok" },
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: uptime.as_secs(),
            destination: Destination {
                state: health.state.into(),
                since: time(health.since),
                reason: health.reason.map(|fault| fault.to_string()),
                last_success: health.last_success().map(time),
            },
            held: Held {
                events: snapshot.held_events,
                bytes: snapshot.held_bytes,
                oldest_seconds: snapshot.held_oldest.as_secs(),
            },
        }
    }
}

fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

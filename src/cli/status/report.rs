//! The report on two looks at the service.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::Serialize;
use strum::VariantArray;

use super::look::{Health, Look};
use crate::metrics::{CallLabel, OutcomeLabel};

/// Everything that the command prints. In JSON, programs rely on its fields.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub address: String,
    pub version: String,
    pub status: String,
    pub uptime_seconds: u64,
    pub variance: Variance,
    /// The time over which the rates are taken.
    pub over_seconds: f64,
    pub received: Count,
    pub joined: Count,
    /// Events by how they ended.
    pub outcomes: BTreeMap<&'static str, Count>,
    /// Events by call, and by how they ended.
    pub events: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
    pub held: Held,
    pub attempts: Attempts,
    pub replies: BTreeMap<&'static str, Replies>,
    pub senders_refused: BTreeMap<&'static str, Count>,
    pub log_lines_dropped: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Variance {
    pub state: String,
    pub since: String,
    pub reason: Option<String>,
    /// The time until the next attempt, while posting is paused.
    pub next_attempt_seconds: Option<f64>,
    pub last_success: Option<String>,
}

/// A count since the service was started, and its rate in the last seconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Count {
    pub total: u64,
    pub per_second: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Held {
    pub events: u64,
    pub bytes: u64,
    pub limit_bytes: u64,
    pub oldest_seconds: f64,
    pub retry_for_seconds: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Attempts {
    pub in_flight: u64,
    pub limit: u64,
    #[serde(flatten)]
    pub count: Count,
    pub times: Option<Times>,
}

#[derive(Debug, Serialize)]
pub(super) struct Replies {
    #[serde(flatten)]
    pub count: Count,
    pub times: Option<Times>,
}

/// Upper bounds of times, in seconds; `None` if they are over the largest bucket.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Times {
    pub half_within: Option<f64>,
    /// The bound for 99 in 100.
    pub most_within: Option<f64>,
    /// True for the times of the last seconds. If there were none, these are the times since the start.
    pub recent: bool,
}

impl Report {
    pub(super) fn new(address: SocketAddr, before: &Look, now: &Look) -> Self {
        let seconds = (now.at - before.at).as_secs_f64();
        let total = |name: &str, labels: &[(&str, &str)]| now.figures.sum(name, labels) as u64;
        let count = |name: &str, labels: &[(&str, &str)]| {
            let increase = now.figures.sum(name, labels) - before.figures.sum(name, labels);
            Count {
                total: total(name, labels),
                per_second: if seconds > 0.0 { increase.max(0.0) / seconds } else { 0.0 },
            }
        };
        let times = |name: &str, labels: &[(&str, &str)]| {
            let all = now.figures.buckets(name, labels);
            let before = before.figures.buckets(name, labels);
            let increase = all.iter().zip(&before).map(|(now, before)| (now.0, now.1 - before.1)).collect::<Vec<_>>();
            Times::of(&increase, true).or_else(|| Times::of(&all, false))
        };
        let Health { status, version, uptime_seconds, destination } = now.health.clone();
        let next_attempt = now.figures.sum("next_attempt_seconds", &[]);
        Self {
            address: address.to_string(),
            version,
            status,
            uptime_seconds,
            variance: Variance {
                next_attempt_seconds: (destination.state == "paused").then_some(next_attempt),
                state: destination.state,
                since: destination.since,
                reason: destination.reason,
                last_success: destination.last_success,
            },
            over_seconds: seconds,
            received: count("received_events_total", &[]),
            joined: count("joined_events_total", &[]),
            outcomes: each(|outcome: OutcomeLabel| count("events_total", &[("outcome", outcome.into())])),
            events: each(|call: CallLabel| {
                each(|outcome: OutcomeLabel| {
                    total("events_total", &[("call", call.into()), ("outcome", outcome.into())])
                })
            }),
            held: Held {
                events: total("held_events", &[]),
                bytes: total("held_bytes", &[]),
                limit_bytes: total("held_limit_bytes", &[]),
                oldest_seconds: now.figures.sum("held_oldest_seconds", &[]),
                retry_for_seconds: now.figures.sum("retry_for_seconds", &[]),
            },
            attempts: Attempts {
                in_flight: total("attempts_in_flight", &[]),
                limit: total("attempts_limit", &[]),
                count: count("attempts_total", &[]),
                times: times("attempt_duration_seconds", &[]),
            },
            replies: ["webhook", "batch"]
                .map(|route| {
                    let labels = &[("route", route)];
                    let times = times("request_duration_seconds", labels);
                    (route, Replies { count: count("requests_total", labels), times })
                })
                .into(),
            senders_refused: ["missing", "wrong"]
                .map(|reason| (reason, count("auth_failures_total", &[("reason", reason)])))
                .into(),
            log_lines_dropped: total("log_lines_dropped_total", &[]),
        }
    }
}

/// Computes a value for each value of a label.
fn each<L: VariantArray + Copy + Into<&'static str>, T>(of: impl Fn(L) -> T) -> BTreeMap<&'static str, T> {
    L::VARIANTS.iter().map(|label| ((*label).into(), of(*label))).collect()
}

impl Times {
    /// Takes the upper bounds of a histogram's buckets with how many values were within each, in their order.
    fn of(buckets: &[(f64, f64)], recent: bool) -> Option<Self> {
        let all = buckets.last()?.1;
        let within = |part: f64| {
            let bound = buckets.iter().find(|(_, count)| *count >= part * all)?.0;
            bound.is_finite().then_some(bound)
        };
        (all > 0.0).then(|| Self { half_within: within(0.5), most_within: within(0.99), recent })
    }
}

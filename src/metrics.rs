//! The metrics of a service, as Prometheus reads them.
//!
//! Every label comes from a closed set. `docs/operations.md` lists the metrics and says how they add up.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::StatusCode;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, core::Collector,
};

pub use self::labels::{
    AttemptLabel, AuthFailureLabel, CallLabel, FilteredLabel, OutcomeLabel, RouteLabel, StateLabel,
};
use self::labels::{
    AttemptLabelTable, AuthFailureLabelTable, CallLabelTable, FilteredLabelTable, JoinedLabel, JoinedLabelTable,
    OutcomeLabelTable, RouteLabelTable, StateLabelTable,
};

mod labels;

/// The content type of the text that [`Metrics::encode`] returns.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics of one service: a value that is handed down, not a global.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

/// The registered metrics. Those with labels are looked up once, here.
#[derive(Debug)]
struct Inner {
    registry: Registry,
    received: IntCounter,
    events: CallLabelTable<OutcomeLabelTable<IntCounter>>,
    /// Re-sends of the same bytes, and of others.
    joined: JoinedLabelTable<IntCounter>,
    filtered: FilteredLabelTable<IntCounter>,
    /// With the status that each counts.
    requests: RouteLabelTable<Vec<(u16, IntCounter)>>,
    request_seconds: RouteLabelTable<Option<Histogram>>,
    received_bytes: IntCounter,
    attempts: AttemptLabelTable<IntCounter>,
    attempt_seconds: Histogram,
    breaker_openings: IntCounter,
    log_lines_dropped: IntCounter,
    auth_failures: AuthFailureLabelTable<IntCounter>,
    connections: IntGauge,
    held_events: IntGauge,
    held_bytes: IntGauge,
    held_limit: IntGauge,
    held_oldest: Gauge,
    retry_for: Gauge,
    remembered: IntGauge,
    attempts_in_flight: IntGauge,
    attempts_limit: IntGauge,
    next_attempt: Gauge,
    last_success: Gauge,
    memory_limit: IntGauge,
    state: StateLabelTable<IntGauge>,
}

/// The values that are read when Prometheus asks, not counted on the way.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    /// Events in memory that Variance does not have.
    pub held_events: usize,
    /// The memory that these events take.
    pub held_bytes: usize,
    /// The memory that they may take.
    pub held_limit: usize,
    /// The time for which the oldest of them has been held.
    pub held_oldest: Duration,
    /// The time for which each may be held.
    pub retry_for: Duration,
    /// Final outcomes in memory.
    pub remembered: usize,
    /// Attempts under way.
    pub attempts_in_flight: usize,
    /// The attempts that may be under way at present.
    pub attempts_limit: usize,
    /// The time until the next attempt; `None` if attempts are not paused.
    pub next_attempt: Option<Duration>,
    /// The time at which Variance last took an event.
    pub last_success: Option<SystemTime>,
    /// Variance's state.
    pub state: StateLabel,
}

const PREFIX: &str = "variance_connector_";

/// Upper bounds of the buckets for times, in seconds. A reply at the default deadline takes a little over 2.5, and what
/// PostHog gives up on takes over 3.
const SECONDS: [f64; 17] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 2.75, 3.0, 5.0, 10.0, 60.0, 240.0];

impl Metrics {
    /// Creates metrics that count from zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let counter = |name, help| register(&registry, IntCounter::with_opts(opts(name, help)));
        let counters = |name, help, labels: &[&str]| register(&registry, IntCounterVec::new(opts(name, help), labels));
        let gauge = |name, help| register(&registry, IntGauge::with_opts(opts(name, help)));
        let seconds_gauge = |name, help| register(&registry, Gauge::with_opts(opts(name, help)));
        let gauges = |name, help, labels: &[&str]| register(&registry, IntGaugeVec::new(opts(name, help), labels));
        let seconds = |name, help| HistogramOpts::new(format!("{PREFIX}{name}"), help).buckets(SECONDS.to_vec());

        let events = counters("events_total", "Events by how they ended.", &["call", "outcome"]);
        let joined =
            counters("joined_events_total", "Re-sends of an event that was under way or remembered.", &["same"]);
        let filtered = counters("filtered_events_total", "Events not forwarded on purpose.", &["reason"]);
        let requests = counters("requests_total", "Requests by route and status.", &["route", "status"]);
        let request_seconds = register(
            &registry,
            HistogramVec::new(seconds("request_duration_seconds", "Time to reply to a sender."), &["route"]),
        );
        let attempts = counters("attempts_total", "Attempts to post to Variance, by result.", &["result"]);
        let auth_failures = counters("auth_failures_total", "Requests without a right credential.", &["reason"]);
        let state = gauges("destination_state", "Variance's state: 1 for the current one.", &["state"]);
        gauges("build_info", "This program's version.", &["version"])
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        // Other systems have no such collector.
        #[cfg(target_os = "linux")]
        registry
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("its names are no one else's");

        // Looking a counter up makes it begin at zero. One that first appears at one shows no increase, and alerts would
        // not see the first event.
        Self(Arc::new(Inner {
            received: counter("received_events_total", "Events in bodies that were taken."),
            events: CallLabelTable::from_closure(|call| {
                OutcomeLabelTable::from_closure(|outcome| events.with_label_values(&[call.as_ref(), outcome.as_ref()]))
            }),
            joined: JoinedLabelTable::from_closure(|same| joined.with_label_values(&[same.as_ref()])),
            filtered: FilteredLabelTable::from_closure(|reason| filtered.with_label_values(&[reason.as_ref()])),
            requests: RouteLabelTable::from_closure(|route| {
                let counter = |status: &u16| requests.with_label_values(&[route.as_ref(), &status.to_string()]);
                route.statuses().iter().map(|status| (*status, counter(status))).collect()
            }),
            request_seconds: RouteLabelTable::from_closure(|route| {
                let takes_events = matches!(route, RouteLabel::Webhook | RouteLabel::Batch);
                takes_events.then(|| request_seconds.with_label_values(&[route.as_ref()]))
            }),
            received_bytes: counter("received_bytes_total", "Bytes of bodies, before decompression."),
            attempts: AttemptLabelTable::from_closure(|result| attempts.with_label_values(&[result.as_ref()])),
            attempt_seconds: register(
                &registry,
                Histogram::with_opts(seconds("attempt_duration_seconds", "Time of one attempt to post.")),
            ),
            breaker_openings: counter("breaker_openings_total", "Times that posting to Variance was paused."),
            log_lines_dropped: counter("log_lines_dropped_total", "Lines of the log that could not be written."),
            auth_failures: AuthFailureLabelTable::from_closure(|reason| {
                auth_failures.with_label_values(&[reason.as_ref()])
            }),
            connections: gauge("connections", "Open connections from senders."),
            held_events: gauge("held_events", "Events in memory that Variance does not have yet."),
            held_bytes: gauge("held_bytes", "Memory of the events held."),
            held_limit: gauge("held_limit_bytes", "The most that held_bytes can be."),
            held_oldest: seconds_gauge("held_oldest_seconds", "Age of the oldest event held; 0 if none is."),
            retry_for: seconds_gauge("retry_for_seconds", "The most that held_oldest_seconds can be."),
            remembered: gauge("remembered_outcomes", "Final outcomes in memory, from which re-sends are answered."),
            attempts_in_flight: gauge("attempts_in_flight", "Attempts under way."),
            attempts_limit: gauge("attempts_limit", "How many attempts may be under way at present."),
            next_attempt: seconds_gauge(
                "next_attempt_seconds",
                "Time until the next attempt; 0 if they are not paused.",
            ),
            last_success: seconds_gauge(
                "last_success_timestamp_seconds",
                "When Variance took an event last; 0 if never.",
            ),
            memory_limit: gauge("memory_limit_bytes", "The most memory that the settings allow for."),
            state: StateLabelTable::from_closure(|each| state.with_label_values(&[each.as_ref()])),
            registry,
        }))
    }

    /// Counts the events of a body, and its bytes before decompression.
    pub fn received(&self, events: usize, bytes: usize) {
        self.0.received.inc_by(events as u64);
        self.0.received_bytes.inc_by(bytes as u64);
    }

    /// Counts `count` events that have ended.
    pub fn ended(&self, call: CallLabel, outcome: OutcomeLabel, count: usize) {
        self.0.events[call][outcome].inc_by(count as u64);
    }

    /// Counts an event that is not forwarded, and why.
    pub fn filtered(&self, call: CallLabel, reason: FilteredLabel) {
        self.ended(call, OutcomeLabel::Filtered, 1);
        self.0.filtered[reason].inc();
    }

    /// Counts a re-send, by whether it has the same bytes as the event that it joins.
    pub fn joined(&self, is_same: bool) {
        self.0.joined[if is_same { JoinedLabel::True } else { JoinedLabel::False }].inc();
    }

    /// Counts an attempt and its time.
    pub fn attempted(&self, result: AttemptLabel, time: Duration) {
        self.0.attempts[result].inc();
        self.0.attempt_seconds.observe(time.as_secs_f64());
    }

    /// Counts a pause of all attempts.
    pub fn breaker_opened(&self) {
        self.0.breaker_openings.inc();
    }

    /// Counts a line that is missing from the log.
    pub fn log_line_dropped(&self) {
        self.0.log_lines_dropped.inc();
    }

    /// Counts a reply. Its time is observed for the routes that take events.
    pub fn replied(&self, route: RouteLabel, status: StatusCode, time: Duration) {
        let counter = self.0.requests[route].iter().find(|(each, _)| *each == status.as_u16());
        debug_assert!(counter.is_some(), "{route:?} has a reply that is not counted: {status}");
        if let Some((_, counter)) = counter {
            counter.inc();
        }
        if let Some(seconds) = &self.0.request_seconds[route] {
            seconds.observe(time.as_secs_f64());
        }
    }

    /// Counts a sender without a valid credential.
    pub fn auth_failed(&self, reason: AuthFailureLabel) {
        self.0.auth_failures[reason].inc();
    }

    /// Returns the gauge of open connections.
    pub fn connections(&self) -> &IntGauge {
        &self.0.connections
    }

    /// Sets how much memory the settings allow for.
    pub fn set_memory_limit(&self, bytes: usize) {
        set(&self.0.memory_limit, bytes);
    }

    /// Returns all metrics as Prometheus's text, with the values of the moment from `now`.
    pub fn encode(&self, now: Snapshot) -> Vec<u8> {
        let Snapshot {
            held_events,
            held_bytes,
            held_limit,
            held_oldest,
            retry_for,
            remembered,
            attempts_in_flight,
            attempts_limit,
            next_attempt,
            last_success,
            state,
        } = now;
        set(&self.0.held_events, held_events);
        set(&self.0.held_bytes, held_bytes);
        set(&self.0.held_limit, held_limit);
        set(&self.0.remembered, remembered);
        self.0.held_oldest.set(held_oldest.as_secs_f64());
        self.0.retry_for.set(retry_for.as_secs_f64());
        set(&self.0.attempts_in_flight, attempts_in_flight);
        set(&self.0.attempts_limit, attempts_limit);
        self.0.next_attempt.set(next_attempt.unwrap_or_default().as_secs_f64());
        let last_success = last_success.and_then(|last| last.duration_since(SystemTime::UNIX_EPOCH).ok());
        self.0.last_success.set(last_success.unwrap_or_default().as_secs_f64());
        self.0.state.transform(|each, gauge| gauge.set(i64::from(each == state)));
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.0.registry.gather(), &mut text).expect("a vector takes all that is written");
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn set(gauge: &IntGauge, value: usize) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("{PREFIX}{name}"), help)
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: prometheus::Result<C>) -> C {
    let collector = collector.expect("names and labels are well-formed");
    registry.register(Box::new(collector.clone())).expect("every name is registered once");
    collector
}

//! The metrics: every one in the list in docs/operations.md exists and moves, and there are no others.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::future::join;
use serde_json::{Value, json};
use tokio::time::timeout;
use variance_connector::backoff::Backoff;

use crate::{
    harness::{Reply, Service},
    variance::{Behaviour, Variance},
};

const TOKEN: &str = "a-token-of-the-tests";

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Label names with their values.
type Labels = BTreeMap<String, BTreeSet<String>>;

/// What `/metrics` has shown so far: the families with their labels, and which label values had a figure other than
/// zero.
#[derive(Default)]
struct Seen {
    families: BTreeMap<String, Labels>,
    moved: BTreeMap<String, Labels>,
}

impl Seen {
    /// Looks until a metric has a figure other than zero.
    async fn moves(&mut self, family: &str, service: &Service) {
        let moves = async {
            while !self.moved.contains_key(family) {
                self.look(service).await;
            }
        };
        timeout(PATIENCE, moves).await.unwrap_or_else(|_| panic!("{family} does not move"));
    }

    async fn look(&mut self, service: &Service) {
        let text = service.get("/metrics").await.text;
        let mut family = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                family = rest.split(' ').next().unwrap().to_owned();
                self.families.entry(family.clone()).or_default();
                continue;
            }
            if line.starts_with('#') {
                continue;
            }
            assert!(line.starts_with(&family), "{line} stands under {family}");
            let (series, value) = line.rsplit_once(' ').unwrap();
            let has_moved = value.parse::<f64>().unwrap() != 0.0;
            if has_moved {
                self.moved.entry(family.clone()).or_default();
            }
            let labels = series.split_once('{').map_or("", |(_, labels)| labels.trim_end_matches('}'));
            for (label, value) in labels.split(',').filter_map(|label| label.split_once('=')) {
                if label == "le" {
                    continue;
                }
                let note = |families: &mut BTreeMap<String, Labels>| {
                    let values = families.entry(family.clone()).or_default().entry(label.to_owned()).or_default();
                    values.insert(value.trim_matches('"').to_owned());
                };
                note(&mut self.families);
                if has_moved {
                    note(&mut self.moved);
                }
            }
        }
    }
}

/// Reads the table in docs/operations.md, which has a row for each metric, with its labels as
/// `` `name` = `value`, `value`; `name` = … ``.
fn documented() -> BTreeMap<String, Labels> {
    let page = include_str!("../../docs/operations.md");
    let section = page.split("\n## Metrics\n").nth(1).expect("the page has a section on metrics");
    let rows = section.split("\n## ").next().unwrap().lines().filter_map(|line| line.strip_prefix("| `"));
    let unquoted = |text: &str| text.trim().trim_matches('`').to_owned();
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').collect();
        let labels = cells[1].split("; ").filter_map(|label| label.split_once(" = "));
        let labels = labels.map(|(name, values)| (unquoted(name), values.split(", ").map(unquoted).collect()));
        (unquoted(cells[0]), labels.collect())
    })
    .collect()
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_exist() {
    let documented = documented();
    let files = [include_str!("../../deploy/alerts.yaml"), include_str!("../../deploy/grafana-dashboard.json")];
    for file in files {
        let words = file.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let names: BTreeSet<_> = words.filter(|word| word.starts_with("variance_connector_")).collect();
        assert!(names.len() > 5, "{names:?}");
        for name in names {
            assert!(documented.contains_key(name.strip_suffix("_bucket").unwrap_or(name)), "{name}");
        }
    }
}

#[test]
fn every_alert_has_a_section_in_the_runbook_that_it_names() {
    let alerts = include_str!("../../deploy/alerts.yaml").split("- alert: ").skip(1);
    let sections: Vec<_> =
        include_str!("../../docs/runbook.md").lines().filter_map(|l| l.strip_prefix("## ")).collect();
    let names = alerts.map(|alert| {
        let name = alert.lines().next().unwrap();
        let runbook = format!("runbook: docs/runbook.md#{}\n", name.to_ascii_lowercase());
        assert!(alert.contains(&runbook), "{name}");
        let words: Vec<_> = alert.split_whitespace().collect();
        assert!(["1.", "2.", "3."].iter().all(|step| words.contains(step)), "{name} says what to do first");
        name
    });
    assert_eq!(names.collect::<Vec<_>>(), sections);
}

async fn post(service: &Service, path: &str, body: impl Into<reqwest::Body>) -> Reply {
    Reply::of(service.client.post(service.url(path)).bearer_auth(TOKEN).body(body)).await
}

fn event(name: &str) -> Value {
    json!({"event": name, "uuid": name, "distinct_id": "d"})
}

/// Fails the events whose name says how: the first time or, where the service tries again at once, the first two times.
fn failing_at_first() -> impl Fn(&crate::variance::Received) -> Behaviour + Send + Sync {
    let (status, slow, broken) = (AtomicUsize::new(1), AtomicUsize::new(1), AtomicUsize::new(2));
    move |received| {
        let left = |count: &AtomicUsize| {
            count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
        };
        match &*received.id() {
            "refused" => Behaviour::Status(400),
            "status" if left(&status) => Behaviour::Status(500),
            "slow" if left(&slow) => Behaviour::After(Duration::from_secs(30), Box::new(Behaviour::Status(200))),
            "broken" if left(&broken) => Behaviour::Reset,
            _ => Behaviour::Status(200),
        }
    }
}

#[tokio::test]
async fn every_metric_of_the_readme_is_there_and_moves_and_no_other_is() {
    let mut seen = Seen::default();
    let mut variance = Variance::start().await;
    variance.script(failing_at_first());
    let service = Service::start(&variance, |settings| {
        settings.auth.tokens = vec![TOKEN.parse().unwrap()];
        settings.mapping.exclude = vec!["noise*".parse().unwrap()];
        let included = ["a", "refused", "status", "slow", "broken", "late*", "too late"];
        settings.mapping.include = included.map(|name| name.parse().unwrap()).into();
        settings.mapping.anonymous = false;
        settings.server.webhook_deadline = Duration::from_secs(1);
        settings.server.max_body = 1 << 20;
        settings.destination.attempt_timeout = Duration::from_secs(1);
        settings.outbox.max_held = 64 << 10;
        settings.outbox.retry_for = Duration::from_secs(8);
    })
    .await;
    seen.look(&service).await;

    let names = ["a", "$pageview", "$identify", "$create_alias", "refused", "status", "slow", "broken"];
    let filtered = ["$autocapture", "$groupidentify", "noise in tests", "not included"];
    let mut events: Vec<_> = names.iter().chain(&filtered).map(|name| event(name)).collect();
    let anonymous = json!({"event": "a", "uuid": "anonymous", "properties": {"$process_person_profile": false}});
    events.extend([event("a"), anonymous, json!({})]);
    let batch = post(&service, "/batch/", json!(events).to_string());
    let (reply, ()) = join(batch, seen.moves("variance_connector_attempts_in_flight", &service)).await;
    assert_eq!((reply.status, reply.counts()[0]), (200, 15), "{}", reply.text);
    seen.look(&service).await;

    // An id is used again for another event.
    let with_id = |plan: &str| json!({"event": "a", "uuid": "0198c4c1-6c1e-7d3a-9b54-2f1c7e0a4b11", "distinct_id": "d", "properties": {"plan": plan}});
    let reply = post(&service, "/batch", json!([with_id("team"), with_id("team"), with_id("free")]).to_string()).await;
    assert_eq!((reply.status, reply.counts()[..2].to_vec()), (200, vec![3, 3]), "{}", reply.text);
    for (same, count) in [("true", 2.0), ("false", 1.0)] {
        let name = format!("variance_connector_joined_events_total{{same={same:?}}}");
        assert_eq!(service.metric(&name).await, count, "{name}");
    }
    assert_eq!(post(&service, "/webhook", event("$autocapture").to_string()).await.status, 200);
    assert_eq!(post(&service, "/webhook", "{}").await.status, 422);
    assert_eq!(post(&service, "/webhook", "no JSON").await.status, 400);
    assert_eq!(post(&service, "/webhook", vec![b' '; 2 << 20]).await.status, 413);
    assert_eq!(service.post("/webhook", "{}").await.status, 401);
    let request = service.client.post(service.url("/webhook"));
    assert_eq!(Reply::of(request.try_clone().unwrap().bearer_auth("another").body("{}")).await.status, 401);
    assert_eq!(Reply::of(request.bearer_auth(TOKEN).header("content-type", "text/csv")).await.status, 415);
    assert_eq!(service.get("/webhook").await.status, 405);
    for (path, status) in [("/healthz", 200), ("/readyz", 200), ("/favicon.ico", 404)] {
        assert_eq!(service.get(path).await.status, status);
    }

    variance.vanish();
    let many: Vec<_> = (0..300).map(|number| event(&format!("late {number}"))).collect();
    assert_eq!(post(&service, "/webhook", json!(many).to_string()).await.status, 503);
    assert_eq!(post(&service, "/webhook", event("too late").to_string()).await.status, 429);
    seen.moves("variance_connector_next_attempt_seconds", &service).await;
    service.emptied().await;
    sums_agree(&service).await;
    seen.look(&service).await;

    fails_once(&mut seen).await;
    let mut documented = documented();
    if cfg!(target_os = "linux") {
        // The metric counts whole seconds, and looking takes time.
        seen.moves("process_cpu_seconds_total", &service).await;
    } else {
        documented.retain(|name, _| !name.starts_with("process_"));
    }
    // The value is this program's version, which no document can keep up with.
    let version = BTreeSet::from([env!("CARGO_PKG_VERSION").to_owned()]);
    documented.get_mut("variance_connector_build_info").unwrap().insert("version".to_owned(), version);
    assert_same(&seen.families, &documented, "docs/operations.md and /metrics do not have the same metrics");
    // This metric belongs to the program's log, which a test of its own blocks.
    assert!(documented.remove("variance_connector_log_lines_dropped_total").is_some());
    assert_same(&seen.moved, &documented, "not every metric has moved");
}

/// Makes the destination fail, and not often enough for a pause, which is a state of its own.
async fn fails_once(seen: &mut Seen) {
    let variance = Variance::start().await;
    variance.always(Behaviour::Status(500));
    let day = Duration::from_secs(24 * 60 * 60);
    let service = Service::start(&variance, |settings| {
        settings.server.webhook_deadline = Duration::from_millis(300);
        settings.outbox.pacing.backoff = Backoff::new(day, day);
    })
    .await;
    assert_eq!(service.post("/webhook", event("a").to_string()).await.status, 503);
    variance.received_at_least(1).await;
    let failing =
        async { while service.metric(r#"variance_connector_destination_state{state="failing"}"#).await == 0.0 {} };
    timeout(PATIENCE, failing).await.expect("it fails");
    seen.look(&service).await;
}

/// Checks the rule that holds whenever nothing is moving.
async fn sums_agree(service: &Service) {
    let text = service.get("/metrics").await.text;
    let sum = |name: &str| -> f64 {
        let name = format!("variance_connector_{name}");
        let values = text.lines().filter(|line| line.starts_with(&name)).map(|line| line.rsplit(' ').next().unwrap());
        values.map(|value| value.parse::<f64>().unwrap()).sum()
    };
    let ended = sum("events_total{");
    let (received, joined, held) = (sum("received_events_total "), sum("joined_events_total{"), sum("held_events "));
    assert_eq!(received, ended + joined + held, "{text}");
    assert!(received > 300.0 && ended > 300.0 && joined == 3.0, "{text}");
}

fn assert_same(left: &BTreeMap<String, Labels>, right: &BTreeMap<String, Labels>, what: &str) {
    let names: BTreeSet<_> = left.keys().chain(right.keys()).collect();
    let differing: Vec<_> = names
        .into_iter()
        .filter(|name| left.get(*name) != right.get(*name))
        .map(|name| format!("{name}: {:?}, and in the documentation {:?}", left.get(name), right.get(name)))
        .collect();
    assert!(differing.is_empty(), "{what}:\n{}", differing.join("\n"));
}

//! One look at the service: the answers of `/readyz` and `/metrics` at one time.

use anyhow::anyhow;
use reqwest::StatusCode;
use serde::Deserialize;
use tokio::time::Instant;

use crate::cli::ask::Service;

const PREFIX: &str = "variance_connector_";

#[derive(Debug)]
pub(super) struct Look {
    pub at: Instant,
    pub health: Health,
    pub figures: Figures,
}

/// The answer of `/readyz`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Health {
    pub status: String,
    pub version: String,
    pub uptime_seconds: u64,
    pub destination: Destination,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Destination {
    pub state: String,
    pub since: String,
    pub reason: Option<String>,
    pub last_success: Option<String>,
}

/// The series of `/metrics`.
#[derive(Debug)]
pub(super) struct Figures(Vec<Series>);

#[derive(Debug)]
struct Series {
    name: String,
    /// Names and values. No value of this program has a comma or a quote in it.
    labels: Vec<(String, String)>,
    value: f64,
}

/// Looks at the service. A service that is stopping answers too.
pub(super) async fn look(service: &Service) -> anyhow::Result<Look> {
    let health = service.get("/readyz", &[StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE]).await?;
    let health = serde_json::from_str(&health).map_err(|error| {
        anyhow!("{} answered /readyz with something else ({error}): is it variance-connector?", service.address)
    })?;
    let at = Instant::now();
    let metrics = service.get("/metrics", &[StatusCode::OK]).await?;
    Ok(Look { at, health, figures: Figures::parse(&metrics) })
}

impl Look {
    /// True if the service was restarted between this look and a later one.
    pub(super) fn is_before_restart_of(&self, later: &Self) -> bool {
        let name = "received_events_total";
        later.health.uptime_seconds < self.health.uptime_seconds
            || later.figures.sum(name, &[]) < self.figures.sum(name, &[])
    }
}

impl Figures {
    fn parse(text: &str) -> Self {
        let series = text.lines().filter_map(|line| {
            let (series, value) = line.strip_prefix(PREFIX)?.rsplit_once(' ')?;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let labels = labels.trim_end_matches('}').split(',').filter_map(|label| label.split_once('='));
            Some(Series {
                name: name.to_owned(),
                labels: labels.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned())).collect(),
                value: value.parse().ok()?,
            })
        });
        Self(series.collect())
    }

    /// Returns the sum of a metric's series with these labels, or zero if there are none. Names are without their
    /// prefix.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        // `sum` would return -0 for no series.
        self.having(name, labels).fold(0.0, |sum, series| sum + series.value)
    }

    /// Returns the buckets of a histogram: upper bounds, and how many values were within each.
    pub(super) fn buckets(&self, name: &str, labels: &[(&str, &str)]) -> Vec<(f64, f64)> {
        let bound = |series: &Series| series.labels.iter().find(|(name, _)| name == "le")?.1.parse().ok();
        self.having(&format!("{name}_bucket"), labels)
            .filter_map(|series| Some((bound(series)?, series.value)))
            .collect()
    }

    fn having(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &Series> {
        let has = |series: &Series, label: &(&str, &str)| {
            series.labels.iter().any(|(name, value)| (name.as_str(), value.as_str()) == *label)
        };
        self.0.iter().filter(move |series| series.name == name && labels.iter().all(|label| has(series, label)))
    }
}

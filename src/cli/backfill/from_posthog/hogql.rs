//! The queries, in HogQL that PostHog's versions of two years ago understand.
//!
//! Times go in with their zone and come out as UTC, since bare ones are in the project's zone. A page is ordered and
//! continued by the text of the uuid, because ClickHouse sorts UUIDs in another order. The conditions use the bare time
//! columns, since the table is partitioned by day.

use jiff::Timestamp;
use uuid::Uuid;

use super::pages::{Key, Page, Span};
use crate::{
    mapping::{self, MappingSettings},
    query_api::Query,
    variance::Call,
};

/// The columns of a page, in their order.
pub(super) const PAGE_COLUMNS: [&str; 7] =
    ["ev_uuid", "ev_name", "ev_distinct_id", "ev_timestamp", "ev_created_at", "ev_properties", "ev_person"];

/// The columns of the counts by day.
pub(super) const DAY_COLUMNS: [&str; 2] = ["ev_day", "ev_count"];

/// The columns of the earliest and the latest time.
pub(super) const BOUNDS_COLUMNS: [&str; 3] = ["ev_count", "ev_first", "ev_last"];

/// The most days in one answer.
const DAYS: usize = 1000;

/// The time that events are selected and ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// The time at which the event happened, by the sender's clock.
    Timestamp,
    /// The time at which PostHog took the event in.
    CreatedAt,
}

impl By {
    fn column(self) -> &'static str {
        match self {
            Self::Timestamp => "timestamp",
            Self::CreatedAt => "created_at",
        }
    }
}

/// The events to ask for.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    pub(super) by: By,
    /// The bounds of the other time, for events that are selected by when they came in: without them the whole table is
    /// read.
    pub(super) happened: Option<Span>,
    /// The earliest time at which PostHog took the events in.
    pub(super) ingested_since: Option<Timestamp>,
    /// The condition on the events themselves.
    pub(super) which: Which,
}

#[derive(Clone, Debug)]
pub(super) enum Which {
    /// Events with a call that is forwarded.
    Calls {
        /// True to include events with a name of the user's own.
        capture: bool,
        /// The names made up by PostHog that are included.
        named: Vec<&'static str>,
    },
    /// Events with one of these ids.
    Ids(Vec<Uuid>),
}

impl Which {
    /// Returns the condition for the events that these settings forward.
    pub(super) fn forwarded(mapping: &MappingSettings) -> Self {
        let named = mapping::CALLS.iter().filter(|(_, call)| mapping.calls.contains(call)).map(|(name, _)| *name);
        Self::Calls { capture: mapping.calls.contains(&Call::Capture), named: named.collect() }
    }
}

impl Selection {
    /// Queries a page: the next events of a window after a key, in order.
    pub(super) fn page(&self, Page { window, after, rows }: &Page) -> Query {
        let column = self.by.column();
        let mut query = Builder::default();
        query.push(
            "SELECT toString(uuid) AS ev_uuid, event AS ev_name, distinct_id AS ev_distinct_id, \
             toString(toTimeZone(timestamp, 'UTC')) AS ev_timestamp, \
             toString(toTimeZone(created_at, 'UTC')) AS ev_created_at, \
             properties AS ev_properties, person.properties AS ev_person FROM events WHERE ",
        );
        self.conditions(&mut query, Span { from: after.time, ..*window });
        self.behind(&mut query, after);
        query.push(&format!(" ORDER BY {column}, toString(uuid) LIMIT {rows}"));
        query.0
    }

    /// Queries the number of events after a key by day (of UTC), for as many days as fit into an answer.
    pub(super) fn days(&self, span: Span, after: Option<&Key>) -> Query {
        let mut query = Builder::default();
        let column = self.by.column();
        query.push(&format!(
            "SELECT substring(toString(toTimeZone({column}, 'UTC')), 1, 10) AS ev_day, \
             count(DISTINCT concat(toString(uuid), ' ', event, ' ', distinct_id)) AS ev_count FROM events WHERE "
        ));
        self.conditions(&mut query, span);
        if let Some(after) = after {
            self.behind(&mut query, after);
        }
        query.push(&format!(" GROUP BY ev_day ORDER BY ev_day LIMIT {DAYS}"));
        query.0
    }

    /// Queries the number of events, and the earliest and latest time at which they happened.
    pub(super) fn bounds(&self, span: Span) -> Query {
        let mut query = Builder::default();
        query.push(
            "SELECT count() AS ev_count, toString(toTimeZone(min(timestamp), 'UTC')) AS ev_first, \
             toString(toTimeZone(max(timestamp), 'UTC')) AS ev_last FROM events WHERE ",
        );
        self.conditions(&mut query, span);
        query.0
    }

    /// Excludes the events up to and including a key.
    fn behind(&self, query: &mut Builder, Key { time, uuid }: &Key) {
        if !uuid.is_empty() {
            let column = self.by.column();
            let (time, uuid) = (query.value(stamp(*time)), query.value(uuid.clone()));
            query.push(&format!(" AND ({column} > toDateTime({time}) OR toString(uuid) > {uuid})"));
        }
    }

    fn conditions(&self, query: &mut Builder, span: Span) {
        let spans = [(self.by.column(), Some(span)), (By::Timestamp.column(), self.happened)];
        for (index, (column, span)) in spans.iter().filter_map(|(column, span)| Some((column, (*span)?))).enumerate() {
            let (from, until) = (query.value(stamp(span.from)), query.value(stamp(span.until)));
            let and = if index > 0 { " AND " } else { "" };
            query.push(&format!("{and}{column} >= toDateTime({from}) AND {column} < toDateTime({until})"));
        }
        if let Some(since) = self.ingested_since {
            let since = query.value(stamp(since));
            query.push(&format!(" AND {} >= toDateTime({since})", By::CreatedAt.column()));
        }
        let (capture, named) = match &self.which {
            Which::Calls { capture, named } => (*capture, named),
            Which::Ids(ids) => {
                let ids: Vec<_> = ids.iter().map(|id| query.value(id.to_string())).collect();
                return query.push(&format!(" AND uuid IN ({})", ids.join(", ")));
            }
        };
        let named: Vec<_> = named.iter().map(|name| query.value((*name).to_owned())).collect();
        let mut either = Vec::new();
        if capture {
            either.push("event NOT LIKE '$%'".to_owned());
        }
        if !named.is_empty() {
            either.push(format!("event IN ({})", named.join(", ")));
        }
        query.push(&format!(" AND ({})", either.join(" OR ")));
    }
}

/// Formats a time for HogQL's `toDateTime`, exact to the microsecond.
fn stamp(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// A query in the making.
#[derive(Default)]
struct Builder(Query);

impl Builder {
    fn push(&mut self, text: &str) {
        self.0.text.push_str(text);
    }

    /// Adds a value, and returns its placeholder.
    fn value(&mut self, value: String) -> String {
        let name = format!("v{}", self.0.values.len());
        self.0.values.insert(name.clone(), value.into());
        format!("{{{name}}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span() -> Span {
        Span::new("2025-03-30T00:30:00Z".parse().unwrap(), "2025-03-30T01:30:00.123456Z".parse().unwrap())
    }

    fn selection(by: By, which: Which) -> Selection {
        Selection { by, happened: (by == By::CreatedAt).then(span), ingested_since: None, which }
    }

    #[test]
    fn a_page_asks_for_what_comes_after_a_key_and_times_have_their_zone() {
        let which = Which::forwarded(&MappingSettings::default());
        let after = Key { time: "2025-03-30T01:00:00Z".parse().unwrap(), uuid: "0198".to_owned() };
        let page = Page { window: span(), after, rows: 1000 };
        let Query { text, values } = selection(By::Timestamp, which.clone()).page(&page);
        assert!(
            text.ends_with(
                " FROM events WHERE timestamp >= toDateTime({v0}) AND timestamp < toDateTime({v1}) \
                 AND (event NOT LIKE '$%' OR event IN ({v2}, {v3}, {v4}, {v5})) \
                 AND (timestamp > toDateTime({v6}) OR toString(uuid) > {v7}) \
                 ORDER BY timestamp, toString(uuid) LIMIT 1000"
            ),
            "{text}"
        );
        let expected = [
            "2025-03-30T01:00:00.000000Z",
            "2025-03-30T01:30:00.123456Z",
            "$pageview",
            "$identify",
            "$set",
            "$create_alias",
            "2025-03-30T01:00:00.000000Z",
            "0198",
        ];
        for (index, expected) in expected.iter().enumerate() {
            assert_eq!(values[&format!("v{index}")], *expected);
        }
        let first = Page { after: Key::at(span().from), ..page };
        let late = Selection { ingested_since: Some(span().until), ..selection(By::Timestamp, which.clone()) };
        let Query { text, values } = late.page(&first);
        assert!(
            text.contains(" timestamp < toDateTime({v1}) AND created_at >= toDateTime({v2}) AND (event NOT LIKE"),
            "{text}"
        );
        assert_eq!(values["v2"], "2025-03-30T01:30:00.123456Z");
        let Query { text, .. } = selection(By::CreatedAt, which).page(&first);
        assert!(
            text.contains(
                "WHERE created_at >= toDateTime({v0}) AND created_at < toDateTime({v1}) \
                 AND timestamp >= toDateTime({v2}) AND timestamp < toDateTime({v3})"
            ) && text.ends_with("{v7})) ORDER BY created_at, toString(uuid) LIMIT 1000"),
            "{text}"
        );
    }

    #[test]
    fn only_what_is_forwarded_is_asked_for() {
        let which = |calls: &[Call]| {
            let mapping = MappingSettings { calls: calls.to_vec(), ..MappingSettings::default() };
            let query = selection(By::Timestamp, Which::forwarded(&mapping)).days(span(), None);
            query.text.split_once("{v1}) AND ").unwrap().1.split_once(" GROUP").unwrap().0.to_owned()
        };
        assert_eq!(which(&[Call::Capture]), "(event NOT LIKE '$%')");
        assert_eq!(which(&[Call::Group, Call::Page]), "(event IN ({v2}, {v3}))");
        let ids = Which::Ids(["0198c4c1-6c1e-7d3a-9b54-2f1c7e0a4b11".parse().unwrap()].to_vec());
        let query = selection(By::Timestamp, ids).bounds(span());
        assert!(query.text.ends_with(" AND uuid IN ({v2})"), "{}", query.text);
    }
}

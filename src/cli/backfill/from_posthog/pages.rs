//! The choice of the next page. It is pure: it knows neither PostHog nor a clock.
//!
//! A window of time is read page by page, in the order of time and uuid, and has ended only when a page is empty: a
//! short page may only mean that a server returns fewer rows than it was asked for. Where the answers are too much for
//! PostHog, first the pages get smaller, then the windows.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};

/// The number of rows that the first page asks for.
const FIRST_ROWS: usize = 1000;

/// The most rows that a page asks for: older servers return no more.
const MAX_ROWS: usize = 10_000;

/// The size below which pages do not shrink while the window still can.
const MIN_ROWS: usize = 50;

/// The least size of a page: this many events may share a time and a uuid, if their names differ.
const FEWEST_ROWS: usize = 4;

/// The time from one instant up to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) from: Timestamp,
    pub(super) until: Timestamp,
}

impl Span {
    /// Creates a span of whole microseconds, within what every ClickHouse can read as a time.
    pub(super) fn new(from: Timestamp, until: Timestamp) -> Self {
        /// The beginning of the year 2200.
        const LATEST: i64 = 7_258_118_400_000_000;
        let [from, until] = [from, until].map(|time| {
            let micros = time.as_microsecond().clamp(0, LATEST);
            Timestamp::from_microsecond(micros).expect("it is within the bounds of times")
        });
        Self { from, until }
    }
}

/// The place of an event in the order of pages.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) time: Timestamp,
    pub(super) uuid: String,
}

/// A page to be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) window: Span,
    /// The page begins after this key; with an empty uuid, at its time.
    pub(super) after: Key,
    pub(super) rows: usize,
}

/// The error of rows that were not asked for: continuing after them would lose some.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Disorder {
    #[error("PostHog answered with an event outside of the time range that was asked for")]
    Outside,
    #[error("PostHog answered with events in the wrong order")]
    Order,
}

/// The progress through the windows.
#[derive(Debug)]
pub(super) struct Pages {
    windows: VecDeque<Span>,
    after: Key,
    rows: usize,
    /// The number of rows that PostHog managed lately. It grows slowly, so that a limit is not hit again at once.
    most_rows: usize,
}

impl Pages {
    /// Begins with the first window, or after a key in it.
    pub(super) fn new(windows: impl IntoIterator<Item = Span>, after: Option<Key>) -> Self {
        let (windows, after_nothing) = (windows.into_iter().collect(), Key::at(Timestamp::MIN));
        let mut pages = Self { windows, after: after_nothing, rows: FIRST_ROWS, most_rows: MAX_ROWS };
        pages.begin();
        if let Some(after) = after {
            pages.after = after;
        }
        pages
    }

    /// Returns the next page, or `None` at the end.
    pub(super) fn next(&self) -> Option<Page> {
        let window = *self.windows.front()?;
        Some(Page { window, after: self.after.clone(), rows: self.rows })
    }

    /// The key after which the next page begins.
    pub(super) fn after(&self) -> &Key {
        &self.after
    }

    /// Takes the keys of a page's rows. Returns how many of the rows are to be used: the others come again.
    ///
    /// Events of one time and uuid may differ in name, and the page may end between them. So the last such events are
    /// left for the next page, unless the page has no others.
    pub(super) fn took(&mut self, keys: &[Key]) -> Result<usize, Disorder> {
        let Some(window) = self.windows.front() else { return Ok(0) };
        let is_inside = |key: &Key| {
            *key > self.after && key.time >= self.after.time && key.time < window.until && !key.uuid.is_empty()
        };
        if !keys.iter().all(is_inside) {
            return Err(Disorder::Outside);
        }
        if !keys.is_sorted() {
            return Err(Disorder::Order);
        }
        let Some(last) = keys.last() else {
            self.windows.pop_front();
            self.begin();
            return Ok(0);
        };
        let used = match keys.partition_point(|key| key < last) {
            0 => keys.len(),
            used => used,
        };
        self.after = keys[used - 1].clone();
        self.most_rows = (self.most_rows + self.most_rows / 32 + 1).min(MAX_ROWS);
        self.rows = (self.rows + self.rows / 4 + 1).min(self.most_rows);
        Ok(used)
    }

    /// Makes the page or its window smaller, because it was too much for PostHog. Returns false if neither can be
    /// smaller.
    pub(super) fn too_much(&mut self) -> bool {
        let Some(window) = self.windows.front_mut() else { return false };
        let left = window.until.duration_since(window.from.max(self.after.time));
        let half = SignedDuration::from_micros(i64::try_from(left.as_micros() / 2).unwrap_or(i64::MAX));
        if self.rows > MIN_ROWS {
            self.rows = (self.rows / 2).max(MIN_ROWS);
        } else if half > SignedDuration::ZERO {
            let (middle, until) = (window.until - half, window.until);
            window.until = middle;
            self.windows.insert(1, Span { from: middle, until });
        } else if self.rows > FEWEST_ROWS {
            self.rows = (self.rows / 2).max(FEWEST_ROWS);
        } else {
            return false;
        }
        self.most_rows = self.rows;
        true
    }

    fn begin(&mut self) {
        if let Some(window) = self.windows.front() {
            self.after = Key::at(window.from);
        }
    }
}

impl Key {
    /// Returns the key before everything at this time.
    pub(super) fn at(time: Timestamp) -> Self {
        Self { time, uuid: String::new() }
    }
}

/// Returns windows over these days and the time between them. Several days share a window if they would fit into one
/// page.
pub(super) fn windows(span: Span, days: impl IntoIterator<Item = (Span, u64)>) -> Vec<Span> {
    let mut windows: Vec<(Span, u64)> = Vec::new();
    for (day, count) in days {
        let day = Span { from: day.from.max(span.from), until: day.until.min(span.until) };
        match windows.last_mut() {
            Some((window, sum)) if *sum + count <= MAX_ROWS as u64 => {
                window.until = day.until;
                *sum += count;
            }
            _ => windows.push((day, count)),
        }
    }
    windows.into_iter().map(|(window, _)| window).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time(micros: i64) -> Timestamp {
        Timestamp::from_microsecond(micros).unwrap()
    }

    fn span(from: i64, until: i64) -> Span {
        Span { from: time(from), until: time(until) }
    }

    fn key(micros: i64, uuid: u8) -> Key {
        Key { time: time(micros), uuid: format!("{uuid:02x}") }
    }

    /// The answer of a server with these rows, which returns at most `limit` of them.
    fn answer(rows: &[(Key, u8)], page: &Page, limit: usize) -> Vec<(Key, u8)> {
        let is_asked = |key: &Key| {
            let Page { window, after, .. } = page;
            key.time >= after.time && key.time < window.until && (after.uuid.is_empty() || key > after)
        };
        rows.iter().filter(|(key, _)| is_asked(key)).take(limit.min(page.rows)).cloned().collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Few times and uuids, so that many rows share them, each with up to three names.
        #[test]
        fn every_row_is_used_once_whatever_the_server_returns_at_most_and_whatever_is_too_much(
            mut rows in prop::collection::vec((0..40_i64, 0..6_u8, 0..3_u8), 0..120),
            limit in 4..30_usize,
            cuts in prop::collection::vec(0..40_i64, 0..4),
            too_much in prop::collection::vec(any::<bool>(), 0..60),
        ) {
            rows.sort_unstable();
            rows.dedup();
            let rows: Vec<_> = rows.into_iter().map(|(micros, uuid, name)| (key(micros, uuid), name)).collect();
            let mut bounds = [&cuts[..], &[0, 40]].concat();
            bounds.sort_unstable();
            bounds.dedup();
            let mut pages = Pages::new(bounds.windows(2).map(|pair| span(pair[0], pair[1])), None);
            let (mut used, mut too_much) = (Vec::new(), too_much.into_iter());
            while let Some(page) = pages.next() {
                prop_assert!(page.rows > 0 && page.rows <= MAX_ROWS);
                if too_much.next().unwrap_or_default() && pages.too_much() {
                    continue;
                }
                let answer = answer(&rows, &page, limit);
                let keys: Vec<_> = answer.iter().map(|(key, _)| key.clone()).collect();
                let count = pages.took(&keys).unwrap();
                prop_assert!(count <= keys.len());
                used.extend_from_slice(&answer[..count]);
            }
            prop_assert_eq!(used, rows);
        }

        #[test]
        fn windows_cover_all_days_in_order_and_once(counts in prop::collection::vec(0..9000_u64, 1..30)) {
            let days: Vec<_> = counts.iter().enumerate().map(|(n, count)| (span(10 * n as i64, 10 * n as i64 + 10), *count)).collect();
            let whole = span(3, 10 * counts.len() as i64 - 2);
            let windows = windows(whole, days);
            prop_assert_eq!(windows[0].from, whole.from);
            prop_assert_eq!(windows.last().unwrap().until, whole.until);
            prop_assert!(windows.windows(2).all(|pair| pair[0].until == pair[1].from));
        }
    }

    #[test]
    fn rows_that_were_not_asked_for_are_an_error() {
        let pages = || Pages::new([span(10, 20)], Some(key(12, 5)));
        assert_eq!(pages().took(&[key(12, 6), key(13, 1), key(19, 0)]), Ok(2));
        for (keys, error) in [
            (&[key(12, 5)][..], Disorder::Outside),
            (&[key(11, 9)], Disorder::Outside),
            (&[key(13, 1), key(20, 1)], Disorder::Outside),
            (&[key(13, 2), key(13, 1)], Disorder::Order),
            (&[Key::at(time(13))], Disorder::Outside),
        ] {
            assert_eq!(pages().took(keys), Err(error), "{keys:?}");
        }
    }

    #[test]
    fn pages_grow_to_what_a_server_takes_and_shrink_to_a_few_rows_of_a_microsecond() {
        let mut pages = Pages::new([span(0, 1_000_000)], None);
        let full: Vec<_> = (1..=40).map(|n| key(n, 0)).collect();
        full.windows(2).for_each(|keys| assert_eq!(pages.took(keys), Ok(1)));
        assert_eq!(pages.next().unwrap().rows, MAX_ROWS);
        assert!(pages.too_much());
        let after_failure = pages.next().unwrap().rows;
        assert!(after_failure < MAX_ROWS && pages.took(&[key(50, 0), key(51, 0)]) == Ok(1));
        assert!(pages.next().unwrap().rows < after_failure + after_failure / 16, "it is not tried again at once");
        while pages.too_much() {}
        let Page { window, after, rows } = pages.next().unwrap();
        assert_eq!((rows, after), (FEWEST_ROWS, key(50, 0)));
        assert!(window.until <= time(52));
        assert_eq!(pages.windows.back().unwrap().until, time(1_000_000), "nothing is left out");
    }

    #[test]
    fn days_that_are_empty_cost_no_window_of_their_own() {
        let days = [(span(0, 10), 3), (span(50, 60), 9_000), (span(60, 70), 2_000), (span(90, 100), 8_000)];
        assert_eq!(windows(span(2, 95), days), [span(2, 60), span(60, 95)]);
        assert_eq!(windows(span(2, 95), []), []);
    }
}

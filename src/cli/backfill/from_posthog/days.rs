//! What was read of each day of PostHog's table.

use std::{
    collections::{BTreeMap, HashSet, hash_map::RandomState},
    hash::{BuildHasher, Hash},
};

use jiff::{
    Timestamp,
    civil::{Date, Time},
    tz::TimeZone,
};

use super::pages::Span;

/// The most events that are remembered, so that reading a day again sends none twice.
const MAX_SEEN: usize = 1_500_000;

/// The days that were read from.
#[derive(Debug, Default)]
pub(super) struct Days {
    days: BTreeMap<Date, Day>,
    /// The number of events that are remembered.
    seen: usize,
    hasher: RandomState,
}

#[derive(Debug)]
struct Day {
    read: u64,
    /// The number of those read that arrived late.
    late: u64,
    /// Fingerprints of the events that were read, while there is memory for them.
    seen: Option<HashSet<u64>>,
}

impl Days {
    /// The number of events that were read of a day.
    pub(super) fn read(&self, date: Date) -> u64 {
        self.days.get(&date).map_or(0, |day| day.read)
    }

    /// True if events that were read of a day are no longer told from others.
    pub(super) fn has_forgotten(&self, date: Date) -> bool {
        self.days.get(&date).is_some_and(|day| day.seen.is_none())
    }

    /// Notes an event. Returns false if it was read before, or if PostHog has it twice.
    pub(super) fn add(&mut self, date: Date, event: &impl Hash, is_late: bool) -> bool {
        let fingerprint = self.hasher.hash_one(event);
        let day = self.days.entry(date).or_insert_with(|| Day { read: 0, late: 0, seen: Some(HashSet::new()) });
        let is_new = day.seen.as_mut().is_none_or(|seen| seen.insert(fingerprint));
        if is_new {
            day.read += 1;
            day.late += u64::from(is_late);
            self.seen += usize::from(day.seen.is_some());
        }
        if self.seen > MAX_SEEN
            && let Some(seen) = self.days.values_mut().find_map(|day| day.seen.take())
        {
            self.seen -= seen.len();
        }
        is_new
    }

    /// Forgets the count of those events that are about to be read again and cannot be told from others: the late ones,
    /// or all.
    pub(super) fn begin_again(&mut self, date: Date, only_late: bool) {
        if let Some(Day { read, late, seen: None }) = self.days.get_mut(&date) {
            *read = if only_late { *read - *late } else { 0 };
            *late = 0;
        }
    }
}

/// Returns the day (of UTC) that a time is in.
pub(super) fn date_of(time: Timestamp) -> Date {
    TimeZone::UTC.to_datetime(time).date()
}

/// Returns the time from a day's beginning to its end.
pub(super) fn day_span(day: Date) -> Span {
    let midnight = |day: Date| TimeZone::UTC.to_timestamp(day.to_datetime(Time::midnight()));
    let from = midnight(day).unwrap_or(Timestamp::MIN);
    let until = day.tomorrow().and_then(midnight).unwrap_or(Timestamp::MAX);
    Span { from, until }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_counts_once_while_it_is_remembered() {
        let (mut days, [monday, tuesday]) = (Days::default(), [date(1), date(2)]);
        assert!(days.add(monday, &"a", false) && days.add(monday, &"b", true) && days.add(tuesday, &"a", false));
        assert!(!days.add(monday, &"a", false));
        days.begin_again(monday, false);
        assert!(!days.add(monday, &"b", true) && days.add(monday, &"c", true));
        assert_eq!([monday, tuesday, date(3)].map(|day| days.read(day)), [3, 1, 0]);
        assert!(!days.has_forgotten(monday));
    }

    #[test]
    fn of_a_day_that_is_forgotten_what_is_read_again_counts_anew() {
        let mut days = Days::default();
        for number in 0..=MAX_SEEN {
            days.add(date(1), &number, number < 10);
        }
        let all = MAX_SEEN as u64 + 1;
        assert!(days.has_forgotten(date(1)) && days.add(date(2), &0, false) && !days.has_forgotten(date(2)));
        days.begin_again(date(1), true);
        assert_eq!(days.read(date(1)), all - 10);
        assert!((0..12).all(|number| days.add(date(1), &number, true)));
        assert_eq!(days.read(date(1)), all + 2);
        days.begin_again(date(1), true);
        assert_eq!(days.read(date(1)), all - 10);
        days.begin_again(date(1), false);
        assert_eq!(days.read(date(1)), 0);
    }

    fn date(day: i8) -> Date {
        Date::new(2026, 6, day).unwrap()
    }
}

//! Counts of events by what became of them.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use indicatif::HumanCount;
use strum::VariantArray;

/// The ways in which an event can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, VariantArray)]
pub(super) enum End {
    Delivered,
    Filtered,
    Refused,
    Invalid,
    OutsideOfTimes,
    Undelivered,
}

impl End {
    fn name(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Filtered => "filtered",
            Self::Refused => "refused",
            Self::Invalid => "invalid",
            Self::OutsideOfTimes => "outside of the times asked for",
            Self::Undelivered => "not delivered yet",
        }
    }

    /// True for an end that is reported even if its count is zero.
    fn is_usual(self) -> bool {
        !matches!(self, Self::OutsideOfTimes | Self::Undelivered)
    }
}

/// The counts. Each event is in exactly one of them, so that they add up at any time.
#[derive(Debug, Default)]
pub(super) struct Counts {
    ends: [AtomicU64; End::VARIANTS.len()],
    queued: AtomicU64,
    unreadable: AtomicU64,
    missing: AtomicU64,
}

impl Counts {
    pub(super) fn add(&self, end: End) {
        self.ends[end as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an event that was read and is to be sent.
    pub(super) fn add_queued(&self) {
        self.queued.fetch_add(1, Ordering::Relaxed);
    }

    /// The part of the events read so far that has ended, from 0 to 1.
    pub(super) fn part_ended(&self) -> f64 {
        let [sent, passed_over] =
            [[End::Delivered, End::Refused, End::Invalid].as_slice(), &[End::Filtered, End::OutsideOfTimes]]
                .map(|ends| ends.iter().map(|end| self.of(*end)).sum::<u64>());
        let read = self.queued.load(Ordering::Relaxed) + passed_over;
        (sent + passed_over) as f64 / read.max(1) as f64
    }

    /// The number of events that have ended.
    pub(super) fn ended(&self) -> u64 {
        self.read() - self.of(End::Undelivered)
    }

    /// Counts a source that cannot be read at all, or not to its end.
    pub(super) fn add_unreadable(&self) {
        self.unreadable.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts events that should be in PostHog and were not found there.
    pub(super) fn add_missing(&self, count: u64) {
        self.missing.fetch_add(count, Ordering::Relaxed);
    }

    /// The number of all events that are counted.
    pub(super) fn read(&self) -> u64 {
        End::VARIANTS.iter().map(|end| self.of(*end)).sum()
    }

    pub(super) fn has_failures(&self) -> bool {
        let failed = [End::Refused, End::Invalid, End::Undelivered].iter().any(|end| self.of(*end) > 0);
        failed || [&self.unreadable, &self.missing].iter().any(|count| count.load(Ordering::Relaxed) > 0)
    }

    /// The counts that matter on the way, as text.
    pub(super) fn brief(&self) -> String {
        [End::Delivered, End::Refused, End::Invalid].map(|end| self.told(end)).join(", ")
    }

    fn of(&self, end: End) -> u64 {
        self.ends[end as usize].load(Ordering::Relaxed)
    }

    fn told(&self, end: End) -> String {
        format!("{} {}", HumanCount(self.of(end)), end.name())
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ends = End::VARIANTS.iter().filter(|end| end.is_usual() || self.of(**end) > 0);
        let ends: Vec<_> = ends.map(|end| self.told(*end)).collect();
        write!(f, "{} events read = {}", HumanCount(self.read()), ends.join(" + "))?;
        for (what, count) in [
            ("inputs that could not be read to the end", &self.unreadable),
            ("events not found in PostHog", &self.missing),
        ] {
            match count.load(Ordering::Relaxed) {
                0 => {}
                count => write!(f, "; {what}: {}", HumanCount(count))?,
            }
        }
        Ok(())
    }
}

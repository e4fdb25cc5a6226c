//! The times of events that are asked for.

use jiff::Timestamp;

use crate::posthog::{Event, Time};

/// The time from one instant up to another.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    pub(super) since: Option<Timestamp>,
    pub(super) until: Option<Timestamp>,
}

/// The error of an event whose time cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the event has no readable timestamp, which `--since` and `--until` need")]
pub(super) struct NoTime;

impl Times {
    /// True if an event is within the times. Its time is the one that is sent to Variance.
    pub(super) fn include(&self, event: &Event<'_>) -> Result<bool, NoTime> {
        let Self { since, until } = *self;
        if since.is_none() && until.is_none() {
            return Ok(true);
        }
        let time = event.time().and_then(Time::of).ok_or(NoTime)?.instant;
        Ok(since.is_none_or(|since| since <= time) && until.is_none_or(|until| time < until))
    }
}

/// Parses a time of the command line.
pub(super) fn parse_argument(text: &str) -> Result<Timestamp, &'static str> {
    Time::parse(text)
        .map(|time| time.instant)
        .ok_or("it must be a date or a time, such as 2026-08-20 or 2026-08-20T09:00:00Z")
}

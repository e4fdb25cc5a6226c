//! Which times are asked for.

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

use crate::{json::Raw, posthog::Event};

/// From a time on, up to another.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    pub(super) since: Option<Timestamp>,
    pub(super) until: Option<Timestamp>,
}

/// Its time cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it has no timestamp that can be read, which `--since` and `--until` go by")]
pub(super) struct NoTime;

impl Times {
    /// Whether an event is meant. Its time is the one that is sent to Variance.
    pub(super) fn include(&self, event: &Event<'_>) -> Result<bool, NoTime> {
        let Self { since, until } = *self;
        if since.is_none() && until.is_none() {
            return Ok(true);
        }
        let text = event.timestamp.or(event.sent_at).and_then(Raw::as_text).ok_or(NoTime)?;
        let time = parse(&text.to_scalar_string()).ok_or(NoTime)?;
        Ok(since.is_none_or(|since| since <= time) && until.is_none_or(|until| time < until))
    }
}

/// A time of the command line.
pub(super) fn parse_argument(text: &str) -> Result<Timestamp, &'static str> {
    parse(text).ok_or("it must be a date or a time such as 2026-08-20 or 2026-08-20T09:00:00Z")
}

/// Times have an offset, or are in UTC; dates begin at midnight.
fn parse(text: &str) -> Option<Timestamp> {
    text.parse().ok().or_else(|| TimeZone::UTC.to_timestamp(text.parse::<DateTime>().ok()?).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_utc_unless_they_say_otherwise() {
        for (text, utc) in [
            ("2026-08-20", Some("2026-08-20T00:00:00Z")),
            ("2026-08-20T09:14:03.512000+00:00", Some("2026-08-20T09:14:03.512Z")),
            ("2026-08-20T09:14:03.512Z", Some("2026-08-20T09:14:03.512Z")),
            ("2026-08-20 09:14:03.512000", Some("2026-08-20T09:14:03.512Z")),
            ("2026-08-20T09:14:03+02:00", Some("2026-08-20T07:14:03Z")),
            ("yesterday", None),
            ("", None),
            ("2026-13-01", None),
        ] {
            assert_eq!(parse(text).map(|time| time.to_string()).as_deref(), utc, "{text}");
        }
    }
}

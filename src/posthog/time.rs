//! The time of an event, in all the ways in which senders write it.

use std::fmt;

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

use crate::json::Raw;

/// An instant, with the precision in which it was written. It is displayed as RFC 3339, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    /// The instant.
    pub instant: Timestamp,
    /// The number of digits in the fraction of a second.
    digits: usize,
}

impl Time {
    /// Reads a value: text with an offset or in UTC, or a number since 1970. Returns `None` for any other.
    pub fn of(value: Raw<'_>) -> Option<Self> {
        match value.as_text() {
            Some(text) => Self::parse(&text.to_scalar_string()),
            None => Self::since_epoch(value.as_str()),
        }
    }

    /// Reads a text. Without an offset it is in UTC, and a date alone begins at midnight.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(time) = Self::since_epoch(text) {
            return Some(time);
        }
        let text = ["UTC", "GMT"].iter().find_map(|zone| text.strip_suffix(zone)).unwrap_or(text).trim_end();
        let in_utc = || TimeZone::UTC.to_timestamp(text.parse::<DateTime>().ok()?).ok();
        let instant = text.parse().ok().or_else(in_utc)?;
        let fraction = text.split_once(['.', ',']).map_or("", |(_, fraction)| fraction);
        Some(Self { instant, digits: fraction.bytes().take_while(u8::is_ascii_digit).count() })
    }

    /// Reads seconds between 1973 and 5138, or milliseconds, which have three digits more. Other numbers are not times.
    fn since_epoch(number: &str) -> Option<Self> {
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let (seconds, millis) = match whole.len() {
            9..=11 => (whole, ""),
            12..=14 => whole.split_at_checked(whole.len() - 3)?,
            _ => return None,
        };
        let fraction = format!("{millis}{fraction}");
        let nanos = format!("{fraction:0<9}");
        if nanos.len() > 9 || !nanos.bytes().chain(seconds.bytes()).all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let instant = Timestamp::new(seconds.parse().ok()?, nanos.parse().ok()?).ok()?;
        Some(Self { instant, digits: fraction.len() })
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.*}", self.digits, self.instant)
    }
}

/// True if a value is a string that RFC 3339 allows.
pub fn is_rfc3339(value: Raw<'_>) -> bool {
    let Some(text) = value.as_text() else { return false };
    let text = text.to_scalar_string();
    let Some((seconds, rest)) = text.as_bytes().split_at_checked(19) else { return false };
    let fraction = rest.strip_prefix(b".").unwrap_or_default();
    let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let rest = if digits > 0 { &fraction[digits..] } else { rest };
    let is_offset = matches!(rest, b"Z" | b"z") || is_like(rest, b"+00:00") || is_like(rest, b"-00:00");
    is_offset && is_like(seconds, b"0000-00-00T00:00:00")
}

/// True if a text has a digit wherever the pattern has a zero, and otherwise equals the pattern, in any case.
fn is_like(text: &[u8], pattern: &[u8]) -> bool {
    let is_like = |(byte, pattern): (&u8, &u8)| match pattern {
        b'0' => byte.is_ascii_digit(),
        letter => byte.eq_ignore_ascii_case(letter),
    };
    text.len() == pattern.len() && text.iter().zip(pattern).all(is_like)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Option<String> {
        Time::of(Raw::parse(json).unwrap()).map(|time| time.to_string())
    }

    #[test]
    fn times_are_read_as_senders_write_them_and_keep_instant_and_precision() {
        for (json, expected) in [
            (r#""2026-08-20T09:14:03.512Z""#, Some("2026-08-20T09:14:03.512Z")),
            (r#""2026-08-20 09:14:03.512000+00:00""#, Some("2026-08-20T09:14:03.512000Z")),
            (r#""2026-08-20 09:14:03.512000""#, Some("2026-08-20T09:14:03.512000Z")),
            (r#""2026-08-20T09:14:03""#, Some("2026-08-20T09:14:03Z")),
            (r#""2026-08-20T09:14:03+0200""#, Some("2026-08-20T07:14:03Z")),
            (r#""2026-08-20 09:14:03+02:00""#, Some("2026-08-20T07:14:03Z")),
            (r#""2026-08-20 09:14:03.5 UTC""#, Some("2026-08-20T09:14:03.5Z")),
            (r#""2026-08-20 09:14:03 UTC""#, Some("2026-08-20T09:14:03Z")),
            (r#""2026-08-20 09:14:03.123456789Z""#, Some("2026-08-20T09:14:03.123456789Z")),
            (r#""2026-08-20""#, Some("2026-08-20T00:00:00Z")),
            ("1787217243", Some("2026-08-20T09:14:03Z")),
            ("1787217243.512", Some("2026-08-20T09:14:03.512Z")),
            ("1787217243.0", Some("2026-08-20T09:14:03.0Z")),
            ("1787217243512", Some("2026-08-20T09:14:03.512Z")),
            ("1787217243512.25", Some("2026-08-20T09:14:03.51225Z")),
            (r#""1787217243512""#, Some("2026-08-20T09:14:03.512Z")),
            (r#""1787217243""#, Some("2026-08-20T09:14:03Z")),
            ("100000000", Some("1973-03-03T09:46:40Z")),
            ("99999999999", Some("5138-11-16T09:46:39Z")),
            ("99999999", None),
            ("100000000000000", None),
            ("0", None),
            ("-1787217243", None),
            ("1.787217243e9", None),
            ("1787217243.0123456789", None),
            (r#""2026-08-20T09:14:03.0123456789Z""#, None),
            (r#""2026-13-01""#, None),
            (r#""yesterday""#, None),
            (r#""UTC""#, None),
            ("\"\"", None),
            ("null", None),
            ("true", None),
            ("[1787217243]", None),
        ] {
            assert_eq!(parse(json).as_deref(), expected, "{json}");
        }
    }

    #[test]
    fn rfc_3339_is_told_from_what_is_not() {
        for text in [
            "2026-08-20T09:14:03Z",
            "2026-08-20t09:14:03z",
            "2026-08-20T09:14:03.5Z",
            "2026-08-20T09:14:03.123456789012Z",
            "2026-08-20T09:14:03.512+02:00",
            "2026-08-20T23:59:60-00:00",
            r"2026-08-20T09:14:03\u005a",
        ] {
            assert!(is_rfc3339(Raw::parse(&format!("\"{text}\"")).unwrap()), "{text}");
        }
        for text in [
            "2026-08-20 09:14:03Z",
            "2026-08-20T09:14:03",
            "2026-08-20T09:14:03.Z",
            "2026-08-20T09:14:03,5Z",
            "2026-08-20T09:14:03+0200",
            "2026-08-20T09:14:03 Z",
            "2026-08-20T09:14Z",
            "20260820T091403Z",
            "2026-08-20T09:14:03Zé",
            "éééééééééé",
            "",
        ] {
            assert!(!is_rfc3339(Raw::parse(&format!("\"{text}\"")).unwrap()), "{text}");
        }
        assert!(!is_rfc3339(Raw::parse("1787217243").unwrap()));
    }
}

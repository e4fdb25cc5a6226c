//! The conversion of a page's row into a line of an export.

use jiff::Timestamp;

use super::{hogql::By, pages::Key};
use crate::{json::Raw, posthog::Time};

/// An event of PostHog's table.
#[derive(Debug)]
pub(super) struct Line {
    /// The event in the shape of an export.
    pub(super) text: String,
    /// The reason why it is not an event that can be forwarded.
    pub(super) problem: Option<&'static str>,
    /// The time at which PostHog took it in.
    pub(super) ingested: Option<Timestamp>,
}

/// The error of a row whose values cannot be what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PostHog answered with values in an unexpected form")]
pub(super) struct Unusable;

/// Returns the key of a page's row.
pub(super) fn key(values: &[Raw<'_>], by: By) -> Result<Key, Unusable> {
    let [uuid, _, _, timestamp, created_at, ..] = values else { return Err(Unusable) };
    let time = match by {
        By::Timestamp => timestamp,
        By::CreatedAt => created_at,
    };
    let uuid = uuid.as_text().ok_or(Unusable)?.to_scalar_string().into_owned();
    Ok(Key { time: time_of(*time).ok_or(Unusable)?, uuid })
}

impl Line {
    /// Makes a line of a page's row.
    pub(super) fn of(values: &[Raw<'_>]) -> Result<Self, Unusable> {
        let [uuid, name, distinct_id, timestamp, created_at, properties, person] = values else { return Err(Unusable) };
        let mut text = format!("{{\"uuid\":{},\"event\":{}", uuid.as_str(), name.as_str());
        text.extend([",\"distinct_id\":", distinct_id.as_str()]);
        if let Some(happened) = time_of(*timestamp) {
            text.push_str(&format!(",\"timestamp\":\"{happened}\""));
        }
        let mut problem = None;
        for (name, value) in [("properties", *properties), ("person_properties", *person)] {
            match object(value) {
                Ok(None) => {}
                Ok(Some(object)) => text.extend([",\"", name, "\":", &object]),
                Err(()) if name == "properties" => {
                    problem = Some("its `properties` are not a JSON object");
                    text.extend([",\"", name, "\":", value.as_str()]);
                }
                Err(()) => {}
            }
        }
        text.push('}');
        Ok(Self { text, problem, ingested: time_of(*created_at) })
    }
}

/// Reads both forms of times: `2026-08-20 09:14:03.512000` in UTC, and with an offset.
pub(super) fn time_of(value: Raw<'_>) -> Option<Timestamp> {
    Some(Time::of(value)?.instant)
}

/// Returns the object that a value or its text is, or `None` if there is none.
fn object(value: Raw<'_>) -> Result<Option<String>, ()> {
    let text = value.to_plain();
    match Raw::parse(&text) {
        Ok(object) if object.is_object() => Ok(Some(text.into_owned())),
        _ if matches!(text.trim(), "" | "null") => Ok(None),
        _ => Err(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(properties: &str, person: &str) -> (Key, Line) {
        let texts = [
            "\"0198c4c1-6c1e-7d3a-9b54-2f1c7e0a4b11\"",
            "\"plan \\\"upgraded\\\" \\ud83d\"",
            "\"user\"",
            "\"2026-08-20 09:14:03.512000\"",
            "\"2026-08-21T01:00:00.000001+02:00\"",
            properties,
            person,
        ];
        let values = texts.map(|text| Raw::parse(text).unwrap());
        (key(&values, By::CreatedAt).unwrap(), Line::of(&values).unwrap())
    }

    #[test]
    fn a_row_becomes_an_exported_line() {
        let (key, line) = read(r#""{\"n\":18446744073709551617,\"half\":\"\\ud83d\"}""#, r#""{\"email\":\"a@b.c\"}""#);
        assert_eq!(key.time, "2026-08-20T23:00:00.000001Z".parse().unwrap());
        assert_eq!(line.ingested, Some(key.time));
        assert_eq!(
            line.text,
            r#"{"uuid":"0198c4c1-6c1e-7d3a-9b54-2f1c7e0a4b11","event":"plan \"upgraded\" \ud83d","distinct_id":"user","timestamp":"2026-08-20T09:14:03.512Z","properties":{"n":18446744073709551617,"half":"\ud83d"},"person_properties":{"email":"a@b.c"}}"#
        );
        assert_eq!(line.problem, None);
    }

    #[test]
    fn what_is_no_object_is_left_out_or_told() {
        for (properties, person, kept, problem) in [
            (r#"{"a":1}"#, "null", r#","properties":{"a":1}}"#, false),
            (r#""""#, r#""""#, r#""timestamp":"2026-08-20T09:14:03.512Z"}"#, false),
            (r#""{\"a\":""#, r#""{}""#, r#","properties":"{\"a\":","person_properties":{}}"#, true),
            (r#""[1]""#, r#""x""#, r#","properties":"[1]"}"#, true),
        ] {
            let (_, line) = read(properties, person);
            assert!(line.text.ends_with(kept), "{}", line.text);
            assert_eq!(line.problem.is_some(), problem, "{properties}");
        }
        let values = ["1", "2", "3", "4", "5", "6", "7"].map(|text| Raw::parse(text).unwrap());
        assert_eq!(key(&values, By::Timestamp), Err(Unusable));
        assert_eq!(Line::of(&values[1..]).unwrap_err(), Unusable);
    }
}

//! A row of a page, as an exported line.

use jiff::Timestamp;

use super::{hogql::By, pages::Key};
use crate::{json::Raw, posthog::Time};

/// An event of PostHog's table.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) key: Key,
    /// In the shape of an export.
    pub(super) line: String,
    /// Why it is no event that can be forwarded.
    pub(super) problem: Option<&'static str>,
}

/// The values of a row cannot be what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PostHog answered with values of another form than was asked for")]
pub(super) struct Unusable;

impl Row {
    /// Reads the values of a page's columns.
    pub(super) fn read(values: &[Raw<'_>], by: By) -> Result<Self, Unusable> {
        let [uuid, name, distinct_id, timestamp, created_at, properties, person] = values else { return Err(Unusable) };
        let [happened, ingested] = [timestamp, created_at].map(|time| time_of(*time));
        let time = match by {
            By::Timestamp => happened,
            By::CreatedAt => ingested,
        };
        let uuid_text = uuid.as_text().ok_or(Unusable)?.to_scalar_string().into_owned();
        let key = Key { time: time.ok_or(Unusable)?, uuid: uuid_text };
        let mut line = format!("{{\"uuid\":{},\"event\":{}", uuid.as_str(), name.as_str());
        line.extend([",\"distinct_id\":", distinct_id.as_str()]);
        if let Some(happened) = happened {
            line.push_str(&format!(",\"timestamp\":\"{happened}\""));
        }
        let mut problem = None;
        for (name, value) in [("properties", *properties), ("person_properties", *person)] {
            match object(value) {
                Ok(None) => {}
                Ok(Some(object)) => line.extend([",\"", name, "\":", &object]),
                Err(()) if name == "properties" => {
                    problem = Some("its `properties` are not a JSON object");
                    line.extend([",\"", name, "\":", value.as_str()]);
                }
                Err(()) => {}
            }
        }
        line.push('}');
        Ok(Self { key, line, problem })
    }
}

/// Both forms of times: `2026-08-20 09:14:03.512000` in UTC, and with an offset.
pub(super) fn time_of(value: Raw<'_>) -> Option<Timestamp> {
    Some(Time::of(value)?.instant)
}

/// The object that a value is, or that its text is. Nothing if there is none.
fn object(value: Raw<'_>) -> Result<Option<String>, ()> {
    let text = match value.as_text() {
        Some(text) => text.to_scalar_string().into_owned(),
        None => value.as_str().to_owned(),
    };
    match Raw::parse(&text) {
        Ok(object) if object.is_object() => Ok(Some(text)),
        _ if matches!(text.trim(), "" | "null") => Ok(None),
        _ => Err(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(properties: &str, person: &str) -> Row {
        let texts = [
            "\"0198c4c1-6c1e-7d3a-9b54-2f1c7e0a4b11\"",
            "\"plan \\\"upgraded\\\" \\ud83d\"",
            "\"user\"",
            "\"2026-08-20 09:14:03.512000\"",
            "\"2026-08-21T01:00:00.000001+02:00\"",
            properties,
            person,
        ];
        Row::read(&texts.map(|text| Raw::parse(text).unwrap()), By::CreatedAt).unwrap()
    }

    #[test]
    fn a_row_becomes_an_exported_line() {
        let row = read(r#""{\"n\":18446744073709551617,\"half\":\"\\ud83d\"}""#, r#""{\"email\":\"a@b.c\"}""#);
        assert_eq!(row.key.time, "2026-08-20T23:00:00.000001Z".parse().unwrap());
        assert_eq!(
            row.line,
            r#"{"uuid":"0198c4c1-6c1e-7d3a-9b54-2f1c7e0a4b11","event":"plan \"upgraded\" \ud83d","distinct_id":"user","timestamp":"2026-08-20T09:14:03.512Z","properties":{"n":18446744073709551617,"half":"\ud83d"},"person_properties":{"email":"a@b.c"}}"#
        );
        assert_eq!(row.problem, None);
    }

    #[test]
    fn what_is_no_object_is_left_out_or_told() {
        for (properties, person, kept, problem) in [
            (r#"{"a":1}"#, "null", r#","properties":{"a":1}}"#, false),
            (r#""""#, r#""""#, r#""timestamp":"2026-08-20T09:14:03.512Z"}"#, false),
            (r#""{\"a\":""#, r#""{}""#, r#","properties":"{\"a\":","person_properties":{}}"#, true),
            (r#""[1]""#, r#""x""#, r#","properties":"[1]"}"#, true),
        ] {
            let row = read(properties, person);
            assert!(row.line.ends_with(kept), "{}", row.line);
            assert_eq!(row.problem.is_some(), problem, "{properties}");
        }
        let values = ["1", "2", "3", "4", "5", "6", "7"].map(|text| Raw::parse(text).unwrap());
        assert_eq!(Row::read(&values, By::Timestamp).unwrap_err(), Unusable);
        assert_eq!(Row::read(&values[1..], By::Timestamp).unwrap_err(), Unusable);
    }
}

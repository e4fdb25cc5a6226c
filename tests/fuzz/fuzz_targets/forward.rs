//! Any body is decoded and mapped without a panic, and the result is what the table says, as JSON and with the right
//! id.

#![no_main]

use std::time::SystemTime;

use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;
use variance_connector::{
    destination::USER_AGENT,
    json::Raw,
    mapping::{Format, MappingSettings, NamePattern, NoMessage},
    posthog::{self, Body, BodyError, Event, Invalid, MAX_UUID_BYTES, Time},
    variance::Call,
};

use self::reference::Expected;

#[path = "../../../src/mapping/tests/reference.rs"]
mod reference;

/// The time of arrival, as it stands in messages.
const ARRIVED: &str = "1970-01-01T00:00:00.000Z";

/// The result for an element.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    Invalid(Invalid),
    Filtered,
    /// A message whose id was made at random, and would differ the next time.
    Random(String),
    Message(String),
}

fuzz_target!(|text: &str| {
    let json = text.strip_prefix('\u{feff}').unwrap_or(text);
    let is_json = serde_json::from_str::<IgnoredAny>(json).is_ok();
    let everything = MappingSettings {
        calls: Call::ALL.to_vec(),
        keep_properties: vec![NamePattern::Prefix("$s".to_owned())],
        person_traits: true,
        account_group: Some("company".to_owned()),
        ..MappingSettings::default()
    };
    let part = MappingSettings {
        exclude: vec![NamePattern::Exact("up".to_owned()), NamePattern::Prefix("$p".to_owned())],
        include: vec![NamePattern::Prefix("u".to_owned())],
        anonymous: false,
        ..MappingSettings::default()
    };
    for settings in [everything, part] {
        let outcomes = match Body::parse(text, |element| outcome(&settings, element.event)) {
            Ok(body) => body.elements,
            Err(BodyError::NotJson(_)) => return assert!(!is_json),
            Err(BodyError::NoContainer | BodyError::TooManyElements) => return,
        };
        assert!(is_json);
        let body = Body::split(text).expect("it is one");
        assert_eq!(body.elements.len(), outcomes.len());
        for (element, expected) in body.elements.iter().zip(&outcomes) {
            let by_itself = Event::decode(*element, body.sent_at, |event| outcome(&settings, event));
            assert!(
                by_itself == *expected || matches!((&by_itself, expected), (Outcome::Random(_), Outcome::Random(_)))
            );
        }
        // `serde_json` accepts no lone surrogate, no number beyond its floats, and no deep nesting.
        if let Some(value) = serde_json::from_str(json).ok().filter(is_all_read) {
            compare(&settings, &value, &outcomes);
        }
    }
});

fn outcome(settings: &MappingSettings, event: Result<Event<'_>, Invalid>) -> Outcome {
    let event = match event {
        Ok(event) => event,
        Err(invalid) => return Outcome::Invalid(invalid),
    };
    let id = event.uuid.as_str();
    assert!((1..=MAX_UUID_BYTES).contains(&id.len()));
    let posthog = MappingSettings { format: Format::Posthog, ..settings.clone() };
    let message = match mapped(settings, &event) {
        Ok(message) => message,
        Err(NoMessage::Filtered(_)) => return Outcome::Filtered,
        Err(NoMessage::Invalid(invalid)) => return Outcome::Invalid(invalid),
    };
    assert!(Raw::parse(&message).is_ok_and(Raw::is_object), "{message}");
    assert_eq!(mapped(&posthog, &event).as_deref(), Ok(event.raw.as_str()));
    if event.uuid.is_random() { Outcome::Random(message) } else { Outcome::Message(message) }
}

fn mapped(settings: &MappingSettings, event: &Event<'_>) -> Result<String, NoMessage> {
    let message = settings.message(event, SystemTime::UNIX_EPOCH, &mut Vec::new())?;
    assert_eq!(message.id(), event.uuid.as_str());
    assert!(message.allocated() <= event.max_message());
    Ok(String::from_utf8(message.body().to_vec()).expect("slices of a text and text"))
}

/// True if `serde_json` also reads all JSON text in strings.
fn is_all_read(value: &Value) -> bool {
    match value {
        Value::String(text) if serde_json::from_str::<IgnoredAny>(text).is_ok() => {
            serde_json::from_str(text).is_ok_and(|value: Value| is_all_read(&value))
        }
        Value::Array(values) => values.iter().all(is_all_read),
        Value::Object(members) => members.values().all(is_all_read),
        _ => true,
    }
}

fn compare(settings: &MappingSettings, body: &Value, outcomes: &[Outcome]) {
    let all_expected = reference::expected(settings, body);
    assert_eq!(outcomes.len(), all_expected.len());
    for (outcome, expected) in outcomes.iter().zip(all_expected) {
        match (outcome, expected) {
            (Outcome::Invalid(Invalid::MessageTooLarge), Expected::Message(_)) => {}
            (Outcome::Invalid(_), Expected::Invalid) | (Outcome::Filtered, Expected::Filtered) => {}
            (Outcome::Message(message) | Outcome::Random(message), Expected::Message(mut expected)) => {
                let message: Value = serde_json::from_str(message).expect("its parts are JSON");
                if expected.get("messageId").is_none() {
                    let id = message["messageId"].as_str().expect("every message has an id");
                    assert!(Uuid::try_parse(id).is_ok(), "{id}");
                    expected["messageId"] = json!(id);
                }
                if expected.get("timestamp").is_none() {
                    expected["timestamp"] = message["timestamp"].clone();
                }
                if message["context"]["page"].get("search").is_none() {
                    // It did not fit: the target `bounds` covers that. Only a page has it among its properties too.
                    let paths = ["/context/page", "/properties"];
                    for path in &paths[..if message["type"] == "page" { 2 } else { 1 }] {
                        expected.pointer_mut(path).and_then(Value::as_object_mut).map(|page| page.remove("search"));
                    }
                }
                assert_eq!(message, expected);
            }
            (outcome, expected) => panic!("{outcome:?} in place of {expected:?}"),
        }
    }
}

//! Any body is decoded and mapped without a panic, and what comes out is what the table says, in JSON and with the right id.

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
    mapping::{Filtered, Format, NamePattern, MappingSettings},
    posthog::{Body, BodyError, Element, Event, MAX_UUID_BYTES},
    variance::Call,
};

use self::reference::Expected;

#[path = "../../../src/mapping/tests/reference.rs"]
mod reference;

/// The time of arrival, as messages have it.
const ARRIVED: &str = "1970-01-01T00:00:00.000Z";

fuzz_target!(|text: &str| {
    let is_json = serde_json::from_str::<IgnoredAny>(text).is_ok();
    let body = match Body::parse(text, |element| element) {
        Ok(body) => body,
        Err(BodyError::NotJson(_)) => return assert!(!is_json),
        Err(BodyError::NoContainer | BodyError::TooManyElements) => return,
    };
    assert!(is_json);
    let everything = MappingSettings {
        format: Format::Variance,
        calls: Call::ALL.to_vec(),
        exclude: Vec::new(),
        person_traits: true,
        account_group: Some("company".to_owned()),
        ..MappingSettings::default()
    };
    let exclude = [NamePattern::Exact("up".to_owned()), NamePattern::Prefix("$p".to_owned())];
    for settings in [everything, MappingSettings { exclude: exclude.to_vec(), ..MappingSettings::default() }] {
        let outcomes: Vec<_> = body.elements.iter().map(|element| outcome(&settings, element, &body)).collect();
        // It takes no lone surrogate, no number beyond its floats, and no deep nesting.
        if let Ok(value) = serde_json::from_str(text) {
            compare(&settings, &value, &outcomes);
        }
    }
});

/// What becomes of an element: the name of that, and its message.
fn outcome(settings: &MappingSettings, element: &Element<'_>, body: &Body<'_, Element<'_>>) -> (&'static str, Option<String>) {
    let Ok(event) = &element.event else { return ("invalid", None) };
    let id = event.uuid.as_str();
    assert!((1..=MAX_UUID_BYTES).contains(&id.len()));
    let Ok(message) = mapped(settings, event, id) else { return ("filtered", None) };
    assert!(Raw::parse(&message).is_ok_and(Raw::is_object), "{message}");
    let by_itself = Event::decode(element.raw, &body.envelope).expect("it is one in its body");
    if !event.uuid.is_random() {
        assert_eq!(mapped(settings, &by_itself, id).as_deref(), Ok(&*message));
    }
    let posthog = MappingSettings { format: Format::Posthog, ..settings.clone() };
    assert_eq!(mapped(&posthog, event, id).as_deref(), Ok(event.raw.as_str()));
    ("message", Some(message))
}

fn mapped(settings: &MappingSettings, event: &Event<'_>, id: &str) -> Result<String, Filtered> {
    let message = settings.message(event, SystemTime::UNIX_EPOCH, &mut Vec::new())?;
    assert_eq!(message.id(), id);
    Ok(String::from_utf8(message.body().to_vec()).expect("slices of a text and text"))
}

fn compare(settings: &MappingSettings, body: &Value, outcomes: &[(&'static str, Option<String>)]) {
    let all_expected = reference::expected(settings, body);
    assert_eq!(outcomes.len(), all_expected.len());
    for ((name, message), expected) in outcomes.iter().zip(all_expected) {
        match expected {
            Expected::Invalid => assert_eq!(*name, "invalid"),
            Expected::Filtered => assert_eq!(*name, "filtered"),
            Expected::Message(mut expected) => {
                let message: Value = serde_json::from_str(message.as_deref().expect(name)).expect("its parts are JSON");
                if expected.get("messageId").is_none() {
                    let id = message["messageId"].as_str().expect("every message has an id");
                    assert!(Uuid::try_parse(id).is_ok(), "{id}");
                    expected["messageId"] = json!(id);
                }
                assert_eq!(message, expected);
            }
        }
    }
}

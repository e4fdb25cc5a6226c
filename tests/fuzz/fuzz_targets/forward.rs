//! Any body is decoded and mapped without a panic, and what comes out is JSON.

#![no_main]

use std::time::SystemTime;

use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use variance_connector::{
    json::Raw,
    mapping::{Format, Settings},
    posthog::{Body, BodyError, MAX_UUID_BYTES},
    variance::Call,
};

fuzz_target!(|text: &str| {
    let is_json = serde_json::from_str::<IgnoredAny>(text).is_ok();
    let body = match Body::parse(text, |element| element.event) {
        Ok(body) => body,
        Err(BodyError::NotJson(_)) => return assert!(!is_json),
        Err(BodyError::NoContainer | BodyError::TooManyElements) => return,
    };
    assert!(is_json);
    let mut settings = Settings {
        format: Format::Variance,
        calls: Call::ALL.to_vec(),
        exclude: Vec::new(),
        person_traits: true,
        account_group: Some("company".to_owned()),
    };
    let mut scratch = Vec::new();
    for event in body.elements.into_iter().flatten() {
        assert!((1..=MAX_UUID_BYTES).contains(&event.uuid.as_str().len()));
        settings.format = Format::Variance;
        if let Ok(message) = settings.message(&event, SystemTime::UNIX_EPOCH, &mut scratch) {
            let body = message.body();
            let body = std::str::from_utf8(&body).expect("slices of a text and text");
            assert!(Raw::parse(body).is_ok_and(Raw::is_object), "{body}");
            settings.format = Format::Posthog;
            let message = settings.message(&event, SystemTime::UNIX_EPOCH, &mut scratch);
            assert_eq!(message.expect("the format filters nothing").body(), event.raw.as_str());
        }
    }
});

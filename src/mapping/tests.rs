use std::time::{Duration, UNIX_EPOCH};

use proptest::{prelude::*, sample::select};
use serde_json::{Map, Value, json};

use self::reference::Expected;
use super::*;
use crate::destination::USER_AGENT;

mod bodies;
mod reference;

const ARRIVED: &str = "2026-08-20T09:14:03.512Z";

fn arrived() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(1_787_217_243_512)
}

fn settings() -> MappingSettings {
    MappingSettings { calls: Call::ALL.to_vec(), ..MappingSettings::default() }
}

/// The only message of a body, as text.
fn map(settings: &MappingSettings, body: &str) -> Result<String, Filtered> {
    let mut body = posthog::Body::parse(body, |element| element.event).unwrap();
    let event = body.elements.remove(0).unwrap();
    let message = settings.message(&event, arrived(), &mut Vec::new())?;
    assert_eq!(message.id(), event.uuid.as_str());
    Ok(String::from_utf8(message.body().to_vec()).unwrap())
}

/// What a body maps to when all calls are forwarded.
fn mapped(body: &str) -> Value {
    parse(&map(&settings(), body).unwrap())
}

/// `serde_json` takes no lone surrogate.
fn parse(message: &str) -> Value {
    serde_json::from_str(&message.replace("\\ud83d", "\\ufffd")).unwrap()
}

#[test]
fn every_recorded_case_maps_as_posthogs_own_app_did() {
    let events = include_str!("../../tests/it/parity/events.ndjson");
    let expected = include_str!("../../tests/it/parity/expected.ndjson");
    assert_eq!(events.lines().count(), expected.lines().count());
    for (event, expected) in events.lines().zip(expected.lines()) {
        let expected: Value = serde_json::from_str(expected).unwrap();
        let message = map(&settings(), event).map_or(Value::Null, |message| {
            let mut message: Map<_, _> = serde_json::from_str(&message).unwrap();
            message.remove("libary").unwrap();
            let context = message.get_mut("context").and_then(Value::as_object_mut).unwrap();
            context.remove("library").unwrap();
            if context.is_empty() {
                message.remove("context");
            }
            message.into()
        });
        assert_eq!(message, expected["body"], "{event}");
    }
}

#[test]
fn the_name_decides_the_call_and_whether_it_is_forwarded() {
    use Filtered::{CallOff, Excluded, NoCall};
    let settings = MappingSettings {
        calls: vec![Call::Capture, Call::Page, Call::Identify, Call::Alias],
        exclude: ["secret", "internal *", "$set", "é*"].map(|pattern| pattern.parse().unwrap()).to_vec(),
        ..settings()
    };
    for (name, expected) in [
        ("signed up", Ok("track")),
        ("pageview", Ok("track")),
        ("$pageview", Ok("page")),
        (r"\u0024pageview", Ok("page")),
        ("$identify", Ok("identify")),
        ("$create_alias", Ok("alias")),
        ("$groupidentify", Err(CallOff(Call::Group))),
        ("$set", Err(Excluded(Call::Identify))),
        ("$autocapture", Err(NoCall)),
        ("$pageview ", Err(NoCall)),
        ("$PAGEVIEW", Err(NoCall)),
        ("$merge_dangerously", Err(NoCall)),
        ("$", Err(NoCall)),
        (r"\u0024web_vitals", Err(NoCall)),
        ("secret", Err(Excluded(Call::Capture))),
        (r"s\u0065cret", Err(Excluded(Call::Capture))),
        ("secrets", Ok("track")),
        ("Secret", Ok("track")),
        ("internal ", Err(Excluded(Call::Capture))),
        ("internal ping", Err(Excluded(Call::Capture))),
        ("internal", Ok("track")),
        (r"\u00e9v\u00e9nement", Err(Excluded(Call::Capture))),
        (r"cut \ud83d", Ok("track")),
    ] {
        let message = map(&settings, &format!(r#"{{"event":"{name}"}}"#));
        let type_name = message.map(|message| parse(&message)["type"].clone());
        assert_eq!(type_name, expected.map(Value::from), "{name}");
    }
    let everything = MappingSettings { exclude: vec!["*".parse().unwrap()], ..settings };
    assert_eq!(map(&everything, r#"{"event":"signed up"}"#), Err(Excluded(Call::Capture)));
}

#[test]
fn what_is_copied_is_copied_byte_for_byte() {
    for value in [
        "18446744073709551617",
        "1e999",
        "-0.0",
        "1.10",
        r#""\ud83d""#,
        r#""\/\u0041""#,
        r#"{"$kept" :[ null,{"$kept":null} ],"a":1,"a":2}"#,
        "[ ]",
        "{}",
        "false",
        "\"\"",
    ] {
        let properties = format!(r#"{{"a.b[0]":{value},"\ud83d":{value}}}"#);
        let times = format!(r#""timestamp": {value},"sent_at":{value} "#);
        let event = format!(r#"{{"event":"e","uuid":"\u0061",{times},"properties": {properties}}}"#);
        let message = map(&settings(), &event).unwrap();
        let (start, rest) = message.split_once(r#","context":"#).unwrap();
        let expected = format!(r#"{{"messageId":"\u0061","timestamp":{value},"type":"track","sentAt":{value}"#);
        assert_eq!(start, expected);
        let expected = format!(r#""event":"e","properties":{properties}}}"#);
        assert!(rest.ends_with(&expected), "{message}");
    }
}

#[test]
fn the_posthog_format_is_the_event_as_it_was_received() {
    let settings = MappingSettings { format: Format::Posthog, calls: vec![Call::Capture], ..settings() };
    let event = r#"{"event" : "e", "properties": {"$a":1e999, "a":null} , "a":1,"a":"\ud83d"}"#;
    for body in [
        event.to_owned(),
        format!(r#"{{"event": {event} ,"person":{{"properties":{{}}}}}}"#),
        format!(r#"{{"batch":[ {event} ],"sent_at":"s"}}"#),
    ] {
        assert_eq!(map(&settings, &body).as_deref(), Ok(event));
    }
    assert_eq!(map(&settings, r#"{"event":"$pageview"}"#), Err(Filtered::CallOff(Call::Page)));
}

#[test]
fn a_message_has_a_time_in_any_case() {
    for (body, expected) in [
        (r#"{"event":"e","timestamp":"own","sent_at":"sent"}"#, json!(["own", "sent"])),
        (r#"{"event":"e","timestamp":0}"#, json!([0, null])),
        (r#"{"event":"e","timestamp":null,"sent_at":"sent"}"#, json!(["sent", "sent"])),
        (r#"{"sent_at":"batch","batch":[{"event":"e"}]}"#, json!(["batch", "batch"])),
        (r#"{"event":{"event":"e"},"sent_at":"outer"}"#, json!(["outer", "outer"])),
        (r#"{"event":"e","properties":{"$sent_at":"property"}}"#, json!([ARRIVED, "property"])),
        (r#"{"event":"e"}"#, json!([ARRIVED, null])),
    ] {
        let message = mapped(body);
        assert_eq!(json!([message["timestamp"], message["sentAt"]]), expected, "{body}");
    }
}

/// The expectations are what `new URL(…).search` is in JavaScript.
#[test]
fn search_is_what_javascript_says() {
    for (url, expected) in [
        ("https://a.example/pricing?utm_source=x&b=%20#top", Some("?utm_source=x&b=%20")),
        ("https://a.example/", Some("")),
        ("https://a.example?", Some("")),
        ("https://a.example/?#top", Some("")),
        ("https://a.example/#top?not=it", Some("")),
        ("https://a.example/??", Some("??")),
        ("https://a.example/?q=ü 'x' \\\"y\\\" <z>", Some("?q=%C3%BC%20%27x%27%20%22y%22%20%3Cz%3E")),
        ("https://a.example/?q=\\ud83d", Some("?q=%EF%BF%BD")),
        ("https://a.example/?q=%zz", Some("?q=%zz")),
        ("  https://a.example/?a\\tb\\nc  ", Some("?abc")),
        ("HTTPS://A.EXAMPLE:443/?A=B", Some("?A=B")),
        ("mailto:ada@example.com?subject='x'", Some("?subject='x'")),
        ("about:blank", Some("")),
        ("$direct", None),
        ("/pricing?relative=1", None),
        ("https://", None),
        ("https://[::1/?x", None),
        ("", None),
    ] {
        let page = mapped(&format!(r#"{{"event":"$pageview","properties":{{"$current_url":"{url}"}}}}"#));
        assert_eq!(page["context"]["page"].get("search"), expected.map(Value::from).as_ref(), "{url}");
        let not_empty = expected.filter(|search| !search.is_empty());
        assert_eq!(page["properties"].get("search"), not_empty.map(Value::from).as_ref(), "{url}");
        assert_eq!(page["context"]["page"]["url"], page["properties"]["url"], "{url}");
    }
    let not_a_string = mapped(r#"{"event":"$pageview","properties":{"$current_url":["https://a.example/?b"]}}"#);
    assert_eq!(not_a_string["properties"], json!({"url": ["https://a.example/?b"]}));
}

#[test]
fn many_keys_are_told_apart_as_few_are() {
    for count in [1, 31, 32, 33, 500] {
        let members =
            |value| (0..count).map(move |index| format!(r#""k{index}":{value}"#)).collect::<Vec<_>>().join(",");
        let properties = format!(r#"{},"$no":1,{},"\u006b0":3,"null":1,"null":null"#, members(1), members(2));
        let message = mapped(&format!(r#"{{"event":"e","properties":{{{properties}}}}}"#));
        let mut expected: Map<_, _> = (0..count).map(|index| (format!("k{index}"), 2.into())).collect();
        expected.insert("k0".into(), 3.into());
        assert_eq!(message["properties"], Value::Object(expected), "{count}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn maps_as_the_table_says(
        body in bodies::body(),
        calls in prop::sample::subsequence(Call::ALL.to_vec(), 0..=5),
        exclude in prop_oneof![3 => Just(None), 1 => select(vec!["up", "u*", "$page*", "*"]).prop_map(Some)],
        person_traits: bool,
        account_group in prop::option::of(select(vec!["company", "posthog_group_type", "$internal", "e\"é"])),
    ) {
        let settings = MappingSettings {
            format: Format::Variance,
            calls,
            exclude: exclude.iter().map(|pattern| pattern.parse().unwrap()).collect(),
            person_traits,
            account_group: account_group.map(str::to_owned),
            ..MappingSettings::default()
        };
        let expected = reference::expected(&settings, &serde_json::from_str(&body).unwrap());
        let message = map(&settings, &body).ok();
        let actual = message.as_deref().map(parse).map_or(Expected::Filtered, Expected::Message);
        prop_assert_eq!(vec![actual], expected, "{}", body);
        prop_assert!(message.is_none_or(|message| no_key_comes_twice(&message)), "{}", body);
    }

    #[test]
    fn a_damaged_body_is_told_from_a_whole_one_and_maps_as_the_table_says(
        (one, other) in (bodies::body(), bodies::body()),
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0..4, select(b"\"{}[],:\\u0 e".to_vec())), 0..3),
    ) {
        let mut body = format!(r#"{{"batch":[{one},{other}],"sent_at":"s"}}"#).into_bytes();
        for (at, how, byte) in damage {
            let at = at.index(body.len());
            match how {
                0 => drop(body.remove(at)),
                1 => body.insert(at, byte),
                2 => body[at] = byte,
                _ => body.truncate(at + 1),
            }
        }
        let Ok(body) = String::from_utf8(body) else { return Ok(()) };
        let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&body).is_ok();
        let parsed = posthog::Body::parse(&body, |element| element.event);
        prop_assert_eq!(is_json, !matches!(parsed, Err(posthog::BodyError::NotJson(_))), "{}", body);
        let (Ok(parsed), Ok(value)) = (parsed, serde_json::from_str(&body)) else { return Ok(()) };
        let settings = MappingSettings { person_traits: true, ..settings() };
        let outcomes = parsed.elements.into_iter().map(|event| {
            let Ok(event) = event else { return Expected::Invalid };
            let message = settings.message(&event, arrived(), &mut Vec::new());
            message.map_or(Expected::Filtered, |message| {
                let mut message: Map<_, _> = serde_json::from_slice(&message.body()).unwrap();
                let id = message.remove("messageId").unwrap();
                assert_eq!(id, event.uuid.as_str());
                Expected::Message(message.into())
            })
        });
        let mut expected = reference::expected(&settings, &value);
        for expected in &mut expected {
            if let Expected::Message(Value::Object(message)) = expected {
                message.remove("messageId");
            }
        }
        prop_assert_eq!(outcomes.collect::<Vec<_>>(), expected, "{}", body);
    }
}

/// Whether that is so in the objects that the mapping writes; what is copied into them may be otherwise.
fn no_key_comes_twice(message: &str) -> bool {
    let message = Raw::parse(message).unwrap();
    let objects = [&[][..], &["context"], &["context", "traits"], &["properties"], &["traits"]];
    objects.iter().filter_map(|path| path.iter().try_fold(message, |object, key| posthog::member(object, key))).all(
        |object| {
            let members = object.members();
            (1..members.len()).all(|index| members[..index].iter().all(|earlier| earlier.0 != members[index].0))
        },
    )
}

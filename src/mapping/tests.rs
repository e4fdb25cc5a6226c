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
    MappingSettings {
        format: Format::Variance,
        calls: Call::ALL.to_vec(),
        exclude: Vec::new(),
        include: Vec::new(),
        anonymous: true,
        keep_properties: Vec::new(),
        person_traits: false,
        account_group: None,
    }
}

fn patterns<const N: usize>(patterns: [&str; N]) -> Vec<NamePattern> {
    patterns.map(|pattern| pattern.parse().unwrap()).to_vec()
}

/// Returns the only message of a body, as text.
fn map(settings: &MappingSettings, body: &str) -> Result<String, NoMessage> {
    let message = |element: posthog::Element<'_>| {
        let event = element.event.unwrap();
        let message = settings.message(&event, arrived(), &mut Vec::new())?;
        assert_eq!(message.id(), event.uuid.as_str());
        Ok(String::from_utf8(message.body().to_vec()).unwrap())
    };
    posthog::Body::parse(body, message).unwrap().elements.remove(0)
}

/// Returns what a body maps to when all calls are forwarded.
fn mapped(body: &str) -> Value {
    parse(&map(&settings(), body).unwrap())
}

/// Parses a message, without its lone surrogate, which `serde_json` does not accept.
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
        exclude: patterns(["secret", "internal *", "$set", "é*"]),
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
        assert_eq!(type_name, expected.map(Value::from).map_err(NoMessage::from), "{name}");
    }
}

#[test]
fn only_capture_events_have_to_be_included() {
    let settings =
        MappingSettings { include: patterns(["signed up", "plan *"]), exclude: patterns(["plan x"]), ..settings() };
    for (name, expected) in [
        ("signed up", Ok(())),
        ("plan upgraded", Ok(())),
        ("plan", Err(Filtered::NotIncluded)),
        ("plan x", Err(Filtered::Excluded(Call::Capture))),
        ("logged in", Err(Filtered::NotIncluded)),
        ("$pageview", Ok(())),
        ("$identify", Ok(())),
        ("$create_alias", Ok(())),
        ("$groupidentify", Ok(())),
        ("$autocapture", Err(Filtered::NoCall)),
    ] {
        let message = map(&settings, &format!(r#"{{"event":"{name}"}}"#)).map(drop);
        assert_eq!(message, expected.map_err(NoMessage::from), "{name}");
    }
}

#[test]
fn events_of_people_who_are_not_identified_can_be_left_out() {
    let known_only = MappingSettings { anonymous: false, ..settings() };
    for (name, properties, is_anonymous) in [
        ("e", r#"{"$process_person_profile":false}"#, Some(Call::Capture)),
        ("e", r#"{"$is_identified":false}"#, Some(Call::Capture)),
        ("$pageview", r#"{"$is_identified":false,"$process_person_profile":true}"#, Some(Call::Page)),
        ("e", r#""{\"$is_identified\":false}""#, Some(Call::Capture)),
        ("e", r#"{"$process_person_profile":true,"$is_identified":true}"#, None),
        ("e", r#"{"$process_person_profile":"false","$is_identified":0}"#, None),
        ("e", r#"{"$is_identified":false,"$is_identified":null}"#, None),
        ("e", "{}", None),
        ("$identify", r#"{"$process_person_profile":false}"#, None),
        ("$create_alias", r#"{"$is_identified":false}"#, None),
        ("$groupidentify", r#"{"$process_person_profile":false}"#, None),
    ] {
        let body = format!(r#"{{"event":"{name}","properties":{properties}}}"#);
        let expected = is_anonymous.map_or(Ok(()), |call| Err(NoMessage::from(Filtered::Anonymous(call))));
        assert_eq!(map(&known_only, &body).map(drop), expected, "{body}");
        assert!(map(&settings(), &body).is_ok(), "{body}");
    }
}

#[test]
fn internal_properties_and_traits_can_be_kept() {
    let settings =
        MappingSettings { keep_properties: patterns(["$survey_*", "$browser"]), person_traits: true, ..settings() };
    let members =
        r#"{"$survey_id":1,"$survey_id":2,"\u0024survey_\u00e9":null,"$survey":3,"$browser":"x","$os":"y","a":4}"#;
    let kept = json!({"$survey_id": 2, "$browser": "x", "a": 4});
    let text = serde_json::to_string(members).unwrap();
    for members in [members, &text] {
        let body = format!(
            r#"{{"event":{{"event":"survey sent","properties":{members}}},"person":{{"properties":{members}}}}}"#
        );
        let message = parse(&map(&settings, &body).unwrap());
        assert_eq!((&message["properties"], &message["context"]["traits"]), (&kept, &kept), "{body}");
        for event in [
            format!(r#"{{"event":"$identify","properties":{{"$set":{members}}}}}"#),
            format!(r#"{{"event":"$identify","$set":{members}}}"#),
            format!(r#"{{"event":"$groupidentify","properties":{{"$group_set":{members}}}}}"#),
        ] {
            assert_eq!(parse(&map(&settings, &event).unwrap())["traits"], kept, "{event}");
        }
    }
}

#[test]
fn identify_without_a_set_takes_the_persons_properties() {
    let person = r#"{"email":"ada@example.com","$browser":"x","gone":null}"#;
    let traits = json!({"email": "ada@example.com"});
    for (body, expected) in [
        (format!(r#"{{"event":{{"event":"$identify"}},"person":{{"properties":{person}}}}}"#), Some(&traits)),
        (format!(r#"{{"event":{{"event":"$set"}},"person":{{"properties":{person}}}}}"#), Some(&traits)),
        (format!(r#"{{"event":"$identify","person_properties":{person}}}"#), Some(&traits)),
        (format!(r#"{{"event":"$identify","person_properties":{}}}"#, json!(person)), Some(&traits)),
        (
            format!(r#"{{"event":"$identify","$set":null,"properties":{{"$set":null}},"person_properties":{person}}}"#),
            Some(&traits),
        ),
        (
            format!(r#"{{"event":"$identify","properties":{{"$set":{{"a":1}}}},"person_properties":{person}}}"#),
            Some(&json!({"a": 1})),
        ),
        (format!(r#"{{"event":"$identify","properties":{{"$set":{{}}}},"person_properties":{person}}}"#), None),
        (format!(r#"{{"event":"$identify","$set":7,"person_properties":{person}}}"#), None),
        (r#"{"event":{"event":"$identify"},"person":{"id":"x"}}"#.to_owned(), None),
        (r#"{"event":{"event":"$identify"},"person":{"properties":[]}}"#.to_owned(), None),
        (r#"{"event":{"event":"$identify"},"person":null}"#.to_owned(), None),
        (format!(r#"{{"event":{{"event":"e"}},"person":{{"properties":{person}}}}}"#), None),
    ] {
        assert_eq!(mapped(&body).get("traits"), expected, "{body}");
    }
}

#[test]
fn a_groups_traits_are_its_properties_and_its_own_id_is_no_user() {
    let mapped_group = |properties: &str, outer: &str| {
        let event = format!(r#"{{"event":"$groupidentify","distinct_id":"$company_acme","properties":{properties}}}"#);
        mapped(&format!(r#"{{"event":{event}{outer}}}"#))
    };
    let of_acme = r#""$group_type":"company","$group_key":"acme","$device_id":"d""#;
    let outer = r#","groups":{"company":{"id":"acme","properties":{"tier":"old","seats":5,"$x":1}}}"#;
    for (more, outer, traits) in [
        (r#","$group_set":{"tier":"gold","$x":1,"gone":null}"#, "", json!({"tier": "gold"})),
        (r#","$group_set":{"tier":"gold"}"#, outer, json!({"tier": "gold"})),
        (r#","$group_set":"{\"tier\":\"gold\"}""#, "", json!({"tier": "gold"})),
        ("", outer, json!({"tier": "old", "seats": 5})),
        (r#","$group_set":["gold"]"#, outer, json!({"tier": "old", "seats": 5})),
        (r#","$group_set":"gold""#, "", json!({})),
        ("", r#","groups":["company"]"#, json!({})),
        ("", r#","groups":{"company":"acme"}"#, json!({})),
        ("", r#","groups":{"company":{"id":"acme"}}"#, json!({})),
        (
            r#","$groups":{"company":"acme","tier":"of groups"},"$group_set":{"tier":"gold","company":null}"#,
            "",
            json!({"company": "acme", "tier": "gold"}),
        ),
        (r#","$group_set":{"posthog_group_type":"own"}"#, "", json!({"posthog_group_type": "own"})),
    ] {
        let message = mapped_group(&format!("{{{of_acme}{more}}}"), outer);
        let mut expected = json!({"posthog_group_type": "company"});
        expected.as_object_mut().unwrap().extend(traits.as_object().unwrap().clone());
        assert_eq!((&message["groupId"], &message["traits"]), (&json!("acme"), &expected), "{more} {outer}");
        assert_eq!((message.get("userId"), message.get("anonymousId")), (None, None), "{more} {outer}");
    }
    for properties in [r#"{"$group_type":"company","$group_key":"other"}"#, r#"{"$group_key":"acme"}"#, "{}"] {
        assert_eq!(mapped_group(properties, "")["userId"], "$company_acme", "{properties}");
    }
    let numbered = r#"{"event":"$groupidentify","properties":{"distinct_id":"$company_5","$group_type":"company","$group_key":5}}"#;
    assert_eq!(mapped(numbered).get("userId"), None);
    assert_eq!(mapped(&numbered.replace("$groupidentify", "$identify"))["userId"], "$company_5");
}

#[test]
fn the_system_of_a_server_is_not_the_users() {
    for (is_server, os) in
        [("true", None), ("false", Some("Linux")), ("\"true\"", Some("Linux")), ("null", Some("Linux"))]
    {
        let message = mapped(&format!(r#"{{"event":"e","properties":{{"$os":"Linux","$is_server":{is_server}}}}}"#));
        assert_eq!(message["context"].get("os").map(|os| &os["name"]), os.map(Value::from).as_ref(), "{is_server}");
    }
}

#[test]
fn a_time_that_is_not_rfc_3339_becomes_so() {
    for (timestamp, expected) in [
        (r#""2026-08-20T09:14:03.512000+02:00""#, r#""2026-08-20T09:14:03.512000+02:00""#),
        (r#""2026-08-20T09:14:03\u005a""#, r#""2026-08-20T09:14:03\u005a""#),
        (r#""2026-08-20 09:14:03.512000+00:00""#, r#""2026-08-20T09:14:03.512000Z""#),
        (r#""2026-08-20 09:14:03.512 UTC""#, r#""2026-08-20T09:14:03.512Z""#),
        ("1787217243", r#""2026-08-20T09:14:03Z""#),
        ("1787217243512", r#""2026-08-20T09:14:03.512Z""#),
        (r#""yesterday""#, r#""yesterday""#),
        (r#"{ "a":1}"#, r#"{ "a":1}"#),
        ("0", "0"),
    ] {
        for event in
            [format!(r#"{{"event":"e","timestamp":{timestamp}}}"#), format!(r#"{{"event":"e","sent_at":{timestamp}}}"#)]
        {
            let message = map(&settings(), &event).unwrap();
            assert!(message.contains(&format!(r#""timestamp":{expected},"#)), "{message}");
            assert!(!event.contains("sent_at") || message.contains(&format!(r#""sentAt":{timestamp},"#)), "{message}");
        }
    }
}

/// Returns the event of a shape, with as much of `text` as it takes to reach `size`.
fn event_of(size: usize, text: &str, shape: impl Fn(&str) -> String) -> String {
    shape(&text.repeat((size - shape("").len()) / text.len()))
}

#[test]
fn a_message_is_at_most_twice_its_event_and_4_kib() {
    let page = |path: &str| format!(r#"{{"event":"$pageview","properties":{{"$current_url":"h:/?{path}"}}}}"#);
    let tail = |query: &str| format!(r#"{{"event":"e","properties":{{"$current_url":"https://a.example/?{query}"}}}}"#);
    let person = |id: &str| format!(r#"{{"event":{{"event":"$identify"}},"person":{{"properties":{{"id":"{id}"}}}}}}"#);
    for event in [
        event_of(1000, "<", page),
        event_of(100_000, "<", page),
        event_of(100_000, r"\u0001", page),
        event_of(100_000, "é", page),
        event_of(100_000, "\\\\", tail),
        event_of(100_000, "x", tail),
        event_of(100_000, r#"<\""#, tail),
        event_of(100_000, "x", person),
    ] {
        let message = map(&settings(), &event).unwrap();
        assert!(message.len() <= 2 * event.len() + 4096, "{} of {}", message.len(), event.len());
        let url = &parse(&event)["properties"]["$current_url"];
        assert_eq!(&parse(&message)["context"]["page"]["url"], url);
    }
    // A search that fits is there whole; of one that does not, nothing is.
    assert!(map(&settings(), &event_of(500, "<", page)).unwrap().contains(r#""search":"?%3C"#));
    assert!(!map(&settings(), &event_of(100_000, "<", page)).unwrap().contains(r#""search""#));
    assert!(map(&settings(), &event_of(100_000, "x", tail)).unwrap().contains(r#""search":"?xxx"#));

    let thrice = |id: &str| format!(r#"{{"event":"e","properties":{{"distinct_id":"{id}"}}}}"#);
    assert!(map(&settings(), &event_of(3000, "x", thrice)).is_ok());
    let too_large = event_of(100_000, "x", thrice);
    assert_eq!(map(&settings(), &too_large), Err(Invalid::MessageTooLarge.into()));
    let posthog = MappingSettings { format: Format::Posthog, ..settings() };
    assert_eq!(map(&posthog, &too_large), Ok(too_large));
    // An envelope's time is not part of the event, and would be copied into each message.
    let batch = format!(r#"{{"sent_at":"{}","batch":[{{"event":"e"}}]}}"#, "s".repeat(100_000));
    assert_eq!(map(&settings(), &batch), Err(Invalid::MessageTooLarge.into()));
}

#[test]
fn patterns_that_mean_nothing_or_something_else_are_none() {
    for pattern in ["", "*", "**", "a*b", "*a", "a**"] {
        assert_eq!(pattern.parse::<NamePattern>(), Err(()), "{pattern}");
    }
    for (one, other, covers) in [
        ("a", "a", true),
        ("a*", "a", true),
        ("a*", "ab*", true),
        ("a*", "a*", true),
        ("a", "b", false),
        ("ab*", "a*", false),
        ("a", "a*", false),
    ] {
        let [[one], [other]] = [[one], [other]].map(patterns).map(|patterns| <[_; 1]>::try_from(patterns).unwrap());
        assert_eq!(one.covers(&other), covers, "{one} {other}");
    }
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
    assert_eq!(map(&settings, r#"{"event":"$pageview"}"#), Err(Filtered::CallOff(Call::Page).into()));
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

/// The expected values are those of `new URL(…).search` in JavaScript.
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
    for count in [1, 2, 31, 32, 33, 500, 5000] {
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
        exclude in prop_oneof![3 => Just(None), 1 => select(vec!["up", "u*", "$page*"]).prop_map(Some)],
        include in prop_oneof![3 => Just(None), 1 => select(vec!["up", "u*", "a b*"]).prop_map(Some)],
        keep in prop_oneof![1 => Just(None), 1 => select(vec!["$internal", "$l*", "$s*", "$*"]).prop_map(Some)],
        anonymous: bool,
        person_traits: bool,
        account_group in prop::option::of(select(vec!["company", "posthog_group_type", "$internal", "e\"é"])),
    ) {
        let settings = MappingSettings {
            format: Format::Variance,
            calls,
            exclude: exclude.iter().map(|pattern| pattern.parse().unwrap()).collect(),
            include: include.iter().map(|pattern| pattern.parse().unwrap()).collect(),
            anonymous,
            keep_properties: keep.iter().map(|pattern| pattern.parse().unwrap()).collect(),
            person_traits,
            account_group: account_group.map(str::to_owned),
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
        let settings = MappingSettings { person_traits: true, ..settings() };
        let parsed = posthog::Body::parse(&body, |element| {
            let Ok(event) = element.event else { return Expected::Invalid };
            let message = settings.message(&event, arrived(), &mut Vec::new());
            message.map_or(Expected::Filtered, |message| {
                // A number such as 1e999 is JSON, but the reference cannot read the body either.
                let Ok(mut message) = serde_json::from_slice::<Map<_, _>>(&message.body()) else { return Expected::Invalid };
                let id = message.remove("messageId").unwrap();
                assert_eq!(id, event.uuid.as_str());
                Expected::Message(message.into())
            })
        });
        prop_assert_eq!(is_json, !matches!(parsed, Err(posthog::BodyError::NotJson(_))), "{}", body);
        let (Ok(parsed), Ok(value)) = (parsed, serde_json::from_str(&body)) else { return Ok(()) };
        let mut expected = reference::expected(&settings, &value);
        for expected in &mut expected {
            if let Expected::Message(Value::Object(message)) = expected {
                message.remove("messageId");
            }
        }
        prop_assert_eq!(parsed.elements, expected, "{}", body);
    }
}

/// Checks the objects that the mapping writes; objects that are copied into them may repeat keys.
fn no_key_comes_twice(message: &str) -> bool {
    let message = Raw::parse(message).unwrap();
    let objects = [&[][..], &["context"], &["context", "traits"], &["properties"], &["traits"]];
    objects.iter().filter_map(|path| path.iter().try_fold(message, |object: Raw<'_>, key| object.member(key))).all(
        |object| {
            let names: Vec<_> = object.members().into_iter().map(|(name, _)| name.unescaped()).collect();
            (1..names.len()).all(|index| !names[..index].contains(&names[index]))
        },
    )
}

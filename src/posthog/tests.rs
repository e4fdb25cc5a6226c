use proptest::prelude::*;
use uuid::{Uuid, Variant, Version};

use super::*;

const UUID: &str = "0198c4c1-6c1e-7d3a-9b54-2f1c7e0a4b11";

fn events(body: &str) -> Vec<Result<Event<'_>, Invalid>> {
    Body::walk(body, |element| element.event).unwrap().elements
}

fn event(body: &str) -> Event<'_> {
    let [event] = events(body).try_into().expect("one element");
    event.unwrap()
}

/// Returns the id of an event with these members.
fn with_uuid(members: &str) -> String {
    event(&format!(r#"{{"event":"e",{members}}}"#)).uuid.to_string()
}

fn text(raw: Option<Raw<'_>>) -> Option<&str> {
    raw.map(Raw::as_str)
}

#[test]
fn four_shapes_hold_the_same_event() {
    let bare = format!(r#"{{"uuid":"{UUID}","event":"signed up","properties":{{"plan":"team"}}}}"#);
    let nested = format!(r#"{{"person":{{"properties":{{"a":1}}}},"event":{bare},"groups":{{}}}}"#);
    for (body, count) in [
        (bare.clone(), 1),
        (nested.clone(), 1),
        (format!("[{bare},{nested}]"), 2),
        (format!(r#"{{"batch":[{nested},{bare}],"api_key":"phc_x","historical_migration":true}}"#), 2),
        (format!(r#"{{"api_key":"phc_x","batch":[{bare}]}}"#), 1),
        (format!(" \r\n{{ \"batch\" :\t[ {bare} , {nested} , {bare} ] }} \n"), 3),
    ] {
        let events = events(&body);
        assert_eq!(events.len(), count, "{body}");
        for event in events {
            let event = event.unwrap();
            assert_eq!((event.raw.as_str(), event.uuid.as_str(), &*event.name()), (&*bare, UUID, &b"signed up"[..]));
            assert_eq!(event.properties.own.len(), 1);
        }
    }
}

#[test]
fn a_body_without_elements_is_fine() {
    for body in ["[]", " [ ] ", r#"{"batch":[]}"#, r#"{"batch":[],"api_key":"k"}"#, r#"{"batch":7,"batch":[]}"#] {
        assert!(events(body).is_empty(), "{body}");
    }
}

#[test]
fn a_body_that_is_no_container_is_refused_as_a_whole() {
    for body in ["\"text\"", "12", "-0.5e3", "true", "null", " null "] {
        assert_eq!(Body::walk(body, drop).unwrap_err(), BodyError::NoContainer, "{body}");
    }
    for body in [
        "",
        " ",
        "{",
        "[1,]",
        "{}{}",
        "[] x",
        "null null",
        "event=a",
        r#"{"batch":[{"event":"a"}}"#,
        "\u{feff}\u{feff}{}",
        "\u{feff}",
    ] {
        assert!(matches!(Body::walk(body, drop), Err(BodyError::NotJson(_))), "{body}");
    }
    let json = |count: usize| vec!["1"; count].join(",");
    for body in [format!("[{}]", json(MAX_ELEMENTS)), format!(r#"{{"batch":[{}]}}"#, json(MAX_ELEMENTS))] {
        assert_eq!(events(&body).len(), MAX_ELEMENTS);
    }
    for body in [format!("[{}]", json(MAX_ELEMENTS + 1)), format!(r#"{{"batch":[{}]}}"#, json(MAX_ELEMENTS + 1))] {
        assert_eq!(Body::walk(&body, drop).unwrap_err(), BodyError::TooManyElements);
    }
}

#[test]
fn the_time_of_sending_beside_a_batch_is_the_bodys() {
    for (body, sent_at) in [
        (r#"{"api_key":"k","sent_at":"s","batch":[]}"#, Some("\"s\"")),
        (r#"{"batch":[],"sent_at":"s","api_key":"k"}"#, Some("\"s\"")),
        (r#"{"batch":[],"\u0073ent_at":"s","sent_at":"t"}"#, Some("\"t\"")),
        (r#"{"batch":[],"sent_at":"s","sent_at":null}"#, None),
        (r#"{"batch":[],"sent_at":7}"#, Some("7")),
        (r#"{"batch":[]}"#, None),
        ("\u{feff} {\"batch\":[],\"sent_at\":\"s\"}\n", Some("\"s\"")),
        (r#"{"batch":[[[{"sent_at":"s"}]]]}"#, None),
    ] {
        for found in [Body::walk(body, drop).unwrap().sent_at, sent_at_of(body).unwrap()] {
            assert_eq!(text(found), sent_at, "{body}");
        }
    }
    for body in [
        r#"{"event":"e","sent_at":"s"}"#,
        r#"{"batch":[],"batch":0,"sent_at":"s"}"#,
        r#"[{"sent_at":"s"}]"#,
        "{}",
        "[]",
    ] {
        assert_eq!(text(Body::walk(body, drop).unwrap().sent_at), None, "{body} is no batch");
    }
    for body in ["{", r#"{"sent_at":"s","batch":[1,]}"#, r#"{"sent_at":"s","batch":[]}}"#, "{'sent_at':'s'}"] {
        assert_eq!(BodyError::from(sent_at_of(body).unwrap_err()), Body::walk(body, drop).unwrap_err(), "{body}");
    }
}

#[test]
fn each_event_is_made_once_wherever_the_time_of_its_batch_stands() {
    let events = r#"[{"event":"a"},{"event":"b"}]"#;
    for body in [
        format!(r#"{{"batch":{events}}}"#),
        format!(r#"{{"sent_at":"s","batch":{events}}}"#),
        format!(r#"{{"batch":{events},"sent_at":"s"}}"#),
        format!(r#"{{"batch":{events},"sent_at":"s","api_key":"k"}}"#),
        format!(r#"{{"sent_at":"r","batch":{events},"sent_at":"s"}}"#),
        format!(r#"{{"batch":{events},"sent_at":"s","historical_migration":false}} "#),
    ] {
        let mut made = 0;
        let times = Body::parse(&body, |element| {
            made += 1;
            element.event.unwrap().sent_at.map(|sent_at| sent_at.as_str().to_owned())
        });
        let expected = body.contains("\"s\"").then(|| "\"s\"".to_owned());
        assert_eq!((times.unwrap().elements, made), (vec![expected.clone(), expected], 2), "{body}");
    }
}

#[test]
fn a_byte_order_mark_before_a_body_is_skipped() {
    for body in ["\u{feff}{\"event\":\"e\"}", "\u{feff} [{\"event\":\"e\"}]", "\u{feff}{\"batch\":[{\"event\":\"e\"}]}"]
    {
        assert_eq!(event(body).raw.as_str(), "{\"event\":\"e\"}");
    }
}

/// Returns what `make` makes of the only element.
fn made<T>(body: &str, make: impl Fn(Event<'_>) -> T) -> T {
    Body::parse(body, |element| make(element.event.unwrap())).unwrap().elements.remove(0)
}

#[test]
fn objects_may_be_json_text() {
    let properties = r#"{"plan":"a\"b","$os":"x","cut":"\ud83d","n":18446744073709551617}"#;
    let quoted = serde_json::to_string(properties).unwrap();
    let members = |event: Event<'_>| {
        let own =
            event.properties.own.iter().map(|(key, value)| (key.as_written().to_owned(), value.as_str().to_owned()));
        (own.collect::<Vec<_>>(), event.properties.os.map(|os| os.as_str().to_owned()))
    };
    let of = |properties: &str| made(&format!(r#"{{"event":"e","properties":{properties}}}"#), members);
    assert_eq!(of(&quoted), of(properties));
    assert_eq!(of(r#"" \n{\u0022plan\u0022:1}\t""#), of(r#"{"plan":1}"#));
    for properties in ["\"text\"", "\"[1]\"", "\"{\"", r#""{} {}""#, "\"\"", "[]", "7", "null"] {
        assert_eq!(of(properties), (vec![], None), "{properties}");
    }
    let received = format!(r#"{{"event":"e","uuid":"u","properties":{quoted}}}"#);
    let raw = |event: Event<'_>| event.raw.as_str().to_owned();
    assert_eq!(made(&received, raw), received, "it is kept as it was received");
    let element = Raw::parse(&received).unwrap();
    Event::decode(element, None, |event| assert_eq!(members(event.unwrap()), of(properties)));
}

#[test]
fn the_time_of_a_batch_is_that_of_its_events_wherever_it_stands() {
    for (body, sent_at) in [
        (r#"{"sent_at":"s","batch":[{"event":"e"}]}"#, Some("\"s\"")),
        (r#"{"batch":[{"event":"e"}],"sent_at":"s"}"#, Some("\"s\"")),
        (r#"{"sent_at":"r","batch":[{"event":"e"}],"sent_at":"s"}"#, Some("\"s\"")),
        (r#"{"sent_at":"r","batch":[{"event":"e"}],"sent_at":null}"#, None),
        (r#"{"batch":[{"event":"d"},{"event":"d"}],"sent_at":"s","batch":[{"event":"e"}]}"#, Some("\"s\"")),
        (r#"{"batch":[{"event":{"event":"e"},"sent_at":"outer"}],"sent_at":"s"}"#, Some("\"outer\"")),
        (r#"{"batch":[{"event":{"event":"e","sent_at":"own"},"sent_at":"outer"}],"sent_at":"s"}"#, Some("\"own\"")),
        (r#"[{"event":"e"}]"#, None),
    ] {
        let event = event(body);
        assert_eq!((event.name.as_str(), text(event.sent_at)), ("\"e\"", sent_at), "{body}");
    }
}

#[test]
fn an_element_that_names_no_event_is_invalid_and_its_neighbours_are_not() {
    use Invalid::{ActionWebhook, BatchIsNoArray, EventIsText, NoName, NoObject, UnfilledName, UnusableName};
    for (element, expected) in [
        ("{}", NoName),
        (r#"{"properties":{}}"#, NoName),
        (r#"{"event":{}}"#, NoName),
        (r#"{"event":""}"#, UnusableName),
        (r#"{"event":null}"#, UnusableName),
        (r#"{"event":7}"#, UnusableName),
        (r#"{"event":["e"]}"#, UnusableName),
        (r#"{"event":{"event":null}}"#, UnusableName),
        (r#"{"event":{"event":{"event":"e"}}}"#, UnusableName),
        (r#"{"event":"e","event":""}"#, UnusableName),
        (r#"{"event":"{event}"}"#, UnfilledName),
        (r#"{"event":" {{ event }} "}"#, UnfilledName),
        (r#"{"event":"{event.event}","properties":{}}"#, UnfilledName),
        (r#"{"event":"[object Object]"}"#, UnfilledName),
        (r#"{"event":{"event":"\u007bevent}"}}"#, UnfilledName),
        (r#"{"event":"{\"event\":\"e\",\"uuid\":\"u\"}","person":null}"#, EventIsText),
        (r#""{\"event\":\"e\"}""#, EventIsText),
        (r#"{"event":{"event":"e"},"event":null}"#, UnusableName),
        (r#"{"batch":"e"}"#, BatchIsNoArray),
        (r#"{"batch":{"event":"e"}}"#, BatchIsNoArray),
        (r#"{"batch":[],"batch":0}"#, BatchIsNoArray),
        (r#"{"text":"*Ada* did *signed up*"}"#, ActionWebhook),
        (r#"{"text":"…","blocks":[]}"#, ActionWebhook),
        ("null", NoObject),
        ("\"e\"", NoObject),
        ("[{\"event\":\"e\"}]", NoObject),
        ("7", NoObject),
    ] {
        let body = format!(r#"[{{"event":"before"}},{element},{{"event":"after"}}]"#);
        let [before, invalid, after] = events(&body).try_into().unwrap();
        assert_eq!(invalid.unwrap_err(), expected, "{element}");
        assert_eq!([before.unwrap().name(), after.unwrap().name()], [&b"before"[..], b"after"], "{element}");
        if element.starts_with('{') {
            let [alone] = events(element).try_into().unwrap();
            assert_eq!(alone.unwrap_err(), expected, "{element} alone");
        }
    }
}

#[test]
fn an_element_has_a_size_limit() {
    let of_size = |size: usize| {
        let frame = r#"{"event":"e","properties":{"p":""}}"#.len();
        format!(r#"{{"event":"e","properties":{{"p":"{}"}}}}"#, "x".repeat(size - frame))
    };
    let largest = of_size(MAX_ELEMENT_BYTES);
    assert_eq!(event(&largest).raw.as_str().len(), MAX_ELEMENT_BYTES);
    let body = format!("[{},{}]", of_size(MAX_ELEMENT_BYTES + 1), of_size(100));
    let [too_large, small] = events(&body).try_into().unwrap();
    assert_eq!(too_large.unwrap_err(), Invalid::TooLarge);
    assert!(small.is_ok());
}

#[test]
fn of_a_repeated_key_the_last_counts() {
    let twice = event(
        r#"{"event":"first","uuid":"u1","distinct_id":1,"properties":{"$os":"a","gone":1},"sent_at":"s",
            "event":"last","uuid":"u2","distinct_id":2,"properties":{"$os":"b","$os":"c","$ip":1,"$ip":null},"sent_at":null}"#,
    );
    assert_eq!((&*twice.name(), twice.uuid.as_str()), (&b"last"[..], "u2"));
    assert_eq!((text(twice.distinct_id), text(twice.sent_at)), (Some("2"), None));
    assert_eq!((text(twice.properties.os), text(twice.properties.ip)), (Some("\"c\""), None));
    assert!(twice.properties.own.is_empty());
    assert_eq!(&*event(r#"{"event":{"event":"nested"},"event":"bare"}"#).name(), b"bare");
    assert_eq!(&*event(r#"{"event":"bare","event":{"event":"nested"}}"#).name(), b"nested");
    let batch = events(r#"{"batch":[{"event":"a"},{"event":"b"}],"batch":[{"event":"c"}]}"#);
    assert_eq!(batch.into_iter().map(|event| event.unwrap().name()).collect::<Vec<_>>(), [&b"c"[..]]);
    assert!(event(r#"{"event":"e","properties":{"a":1},"properties":null}"#).properties.own.is_empty());
}

#[test]
fn names_and_keys_may_be_escaped() {
    let body = r#"{"b\u0061tch":[{"\u0065vent":"\u0024pageview","u\u0075id":"\u0041B",
        "properties":{"\u0024os":"x","\u0024custom":1,"pl\u0061n":2}}]}"#;
    let event = event(body);
    assert_eq!((&*event.name(), event.name.as_str()), (&b"$pageview"[..], r#""\u0024pageview""#));
    assert_eq!((event.uuid.as_str(), event.uuid.as_json()), ("AB", r#""\u0041B""#));
    assert_eq!(text(event.properties.os), Some("\"x\""));
    let own: Vec<_> = event.properties.own.iter().map(|(key, value)| (key.as_written(), value.as_str())).collect();
    assert_eq!(own, [(r"pl\u0061n", "2")]);
}

#[test]
fn properties_of_another_type_are_none() {
    for properties in ["", r#","properties":null"#, r#","properties":"$os""#, r#","properties":["$os"]"#] {
        let body = format!(r#"{{"event":"e"{properties}}}"#);
        let event = event(&body);
        assert!(event.properties.own.is_empty() && event.properties.os.is_none(), "{properties}");
    }
}

#[test]
fn a_uuid_is_a_string_of_up_to_200_bytes() {
    let longest = "u".repeat(MAX_UUID_BYTES);
    let longest_unescaped = r"\u0061".repeat(MAX_UUID_BYTES);
    let longest_accented = "é".repeat(MAX_UUID_BYTES / 2);
    let other_uuid = "0198C4C1-6C1E-7D3A-9B54-2F1C7E0A4B12";
    for (members, expected) in [
        (format!(r#""uuid":"{UUID}""#), UUID),
        (r#""uuid":"not a UUID""#.into(), "not a UUID"),
        (r#""uuid":" ""#.into(), " "),
        (format!(r#""uuid":"{longest}""#), &*longest),
        (format!(r#""uuid":"{longest_unescaped}""#), &*"a".repeat(MAX_UUID_BYTES)),
        (format!(r#""uuid":"{longest_accented}""#), &*longest_accented),
        (r#""uuid":"\ud83d""#.into(), "\u{fffd}"),
        (format!(r#""uuid":"u","id":"{UUID}""#), "u"),
        (format!(r#""id":"{UUID}""#), UUID),
        (format!(r#""id":"{other_uuid}","uuid":"""#), other_uuid),
        (format!(r#""uuid":null,"id":"{UUID}""#), UUID),
        (format!(r#""uuid":7,"id":"{UUID}""#), UUID),
        (format!(r#""uuid":["u"],"id":"{UUID}""#), UUID),
        (format!(r#""uuid":"{longest}u","id":"{UUID}""#), UUID),
        (format!(r#""uuid":"{longest_accented}é","id":"{UUID}""#), UUID),
    ] {
        assert_eq!(with_uuid(&members), expected, "{members}");
    }
}

#[test]
fn an_event_without_identity_gets_one_from_its_bytes_if_it_has_a_time() {
    let too_long = "u".repeat(MAX_UUID_BYTES + 1);
    for members in [
        r#""distinct_id":"ada""#.to_owned(),
        r#""uuid":"""#.into(),
        r#""uuid":null"#.into(),
        r#""uuid":12345"#.into(),
        format!(r#""uuid":"{too_long}""#),
        r#""id":"42""#.into(),
        r#""id":42"#.into(),
        r#""id":"""#.into(),
    ] {
        let timed = format!(r#""timestamp":"2026-08-20T09:14:03Z",{members}"#);
        let identity = Uuid::try_parse(&with_uuid(&timed)).unwrap();
        assert_eq!(
            (identity.get_version(), identity.get_variant()),
            (Some(Version::Sha1), Variant::RFC4122),
            "{members}"
        );
        assert_eq!(with_uuid(&timed), identity.to_string(), "a re-send keeps it: {members}");
        assert_ne!(with_uuid(&format!("{timed},\"properties\":{{}}")), identity.to_string(), "{members}");

        for timeless in [members.clone(), format!("{members},\"timestamp\":null,\"sent_at\":\"2026-08-20T09:14:03Z\"")]
        {
            let identity = Uuid::try_parse(&with_uuid(&timeless)).unwrap();
            assert_eq!(identity.get_version(), Some(Version::Random), "{timeless}");
            assert_ne!(with_uuid(&timeless), identity.to_string(), "it joins nothing: {timeless}");
        }
    }
    let bare = r#"{"event":"e","timestamp":"2026-08-20T09:14:03Z"}"#;
    let nested = format!(r#"{{"event":{bare},"person":{{"name":"Ada"}}}}"#);
    let batch = format!(r#"{{"sent_at":"s","batch":[{bare}]}}"#);
    let identities = [bare, &nested, &batch].map(|body| event(body).uuid.to_string());
    assert_eq!(identities, ["04f7fce0-20f0-5665-9cb8-11ea1099e75f"; 3], "only the event's bytes count, for ever");
}

#[test]
fn the_time_of_sending_is_the_events_own_or_that_of_what_it_came_in() {
    for (body, expected) in [
        (r#"{"event":"e"}"#, None),
        (r#"{"event":"e","sent_at":"own"}"#, Some("\"own\"")),
        (r#"{"event":{"event":"e","sent_at":"own"},"sent_at":"outer"}"#, Some("\"own\"")),
        (r#"{"event":{"event":"e","sent_at":null},"sent_at":"outer"}"#, Some("\"outer\"")),
        (r#"{"sent_at":"batch","batch":[{"event":"e","sent_at":"own"}]}"#, Some("\"own\"")),
        (r#"{"sent_at":"batch","batch":[{"event":"e","sent_at":null}]}"#, Some("\"batch\"")),
        (r#"{"batch":[{"event":"e"}],"sent_at":"batch"}"#, Some("\"batch\"")),
        (r#"{"batch":[{"event":{"event":"e"},"sent_at":"outer"}],"sent_at":"batch"}"#, Some("\"outer\"")),
        (r#"{"batch":[{"event":{"event":"e"}}],"sent_at":17}"#, Some("17")),
        (r#"{"batch":[{"event":"e"}],"sent_at":null}"#, None),
    ] {
        let event = event(body);
        assert_eq!((text(event.sent_at), text(event.timestamp)), (expected, None), "{body}");
    }
}

#[test]
fn the_person_is_beside_the_event_or_in_it() {
    for (body, expected) in [
        (r#"{"event":{"event":"e"},"person":{"properties":{"a":1}}}"#, Some(r#"{"a":1}"#)),
        (
            r#"{"event":{"event":"e","person":{"properties":{"b":1}}},"person":{"properties":{"a":1}}}"#,
            Some(r#"{"a":1}"#),
        ),
        (r#"{"event":{"event":"e","person":{"properties":{"b":1}}},"person":null}"#, Some(r#"{"b":1}"#)),
        (r#"{"event":"e","person":{"properties":{"b":1}}}"#, Some(r#"{"b":1}"#)),
        (r#"{"event":"e","person_properties":{"c":1}}"#, Some(r#"{"c":1}"#)),
        (r#"{"event":"e","person":{"id":""},"person_properties":{"c":1}}"#, Some(r#"{"c":1}"#)),
        (r#"{"event":"e","person":{"properties":{"a":1},"properties":{"b":2}}}"#, Some(r#"{"b":2}"#)),
        (r#"{"event":"e","person":{"properties":"{\"a\":\"\\ud83d\"}"}}"#, Some(r#"{"a":"\ud83d"}"#)),
        (r#"{"event":"e","person_properties":"{}"}"#, Some("{}")),
        (r#"{"event":"e","person":{"properties":"Ada"}}"#, None),
        (r#"{"event":"e","person":{"properties":["a"]}}"#, None),
        (r#"{"event":"e","person":"Ada"}"#, None),
        (r#"{"event":"e","person":null}"#, None),
        (r#"{"event":"e"}"#, None),
    ] {
        let properties = event(body).person_properties();
        assert_eq!(properties.as_ref().map(ObjectText::as_str), expected, "{body}");
    }
}

#[test]
fn the_groups_properties_are_those_of_its_type() {
    let groups =
        r#"{"company":{"id":"acme","properties":{"tier":"gold"}},"project":{"properties":"{\"a\":1}"},"odd":7}"#;
    for (group_type, expected) in [
        ("\"company\"", Some(r#"{"tier":"gold"}"#)),
        (r#""comp\u0061ny""#, Some(r#"{"tier":"gold"}"#)),
        ("\"project\"", Some(r#"{"a":1}"#)),
        ("\"odd\"", None),
        ("\"other\"", None),
        ("7", None),
    ] {
        let inner = format!(r#"{{"event":"$groupidentify","properties":{{"$group_type":{group_type}}}}}"#);
        let nested = format!(r#"{{"event":{inner},"groups":{groups}}}"#);
        let bare = format!(r#"{},"groups":{groups}}}"#, &inner[..inner.len() - 1]);
        for body in [nested, bare] {
            let properties = event(&body).group_properties();
            assert_eq!(properties.as_ref().map(ObjectText::as_str), expected, "{body}");
        }
    }
}

#[test]
fn only_a_uuid_tells_events_apart_by_itself() {
    let key = |uuid: &str, plan: &str| {
        let body = format!(r#"{{"event":"e","uuid":"{uuid}","distinct_id":"d","properties":{{"plan":"{plan}"}}}}"#);
        event(&body).key().map(|part| part.into_owned())
    };
    assert_eq!(key(UUID, "a"), key(UUID, "b"));
    assert_ne!(key(UUID, "a"), key(&UUID.replace('0', "1"), "a"));
    let of_all_rows = "data-warehouse-table-uuid-do-not-use";
    assert_ne!(key(of_all_rows, "a"), key(of_all_rows, "b"));
    assert_eq!(key(of_all_rows, "a"), key(of_all_rows, "a"));
}

#[test]
fn values_are_kept_as_they_were_written() {
    for value in [
        "1e999",
        "-1E-999",
        "18446744073709551617",
        "0.10000000000000000000000000001",
        "1.0",
        r#""\ud83d""#,
        r#""cut \uD83D\u00e9""#,
        r#""\/\u0041\n""#,
        r#""🦔""#,
        r#"{"a" : [ 1 ,null ], "a":2}"#,
        "[ ]",
    ] {
        let body = format!(r#"{{"event":"e","timestamp": {value} ,"properties":{{"\ud83d":{value},"$os": {value}}}}}"#);
        let event = event(&body);
        assert_eq!((text(event.timestamp), text(event.properties.os)), (Some(value), Some(value)));
        let (key, own) = event.properties.own[0];
        assert_eq!((key.as_written(), own.as_str()), (r"\ud83d", value));
    }
}

#[test]
fn nesting_may_be_deep() {
    let deep = "[".repeat(10_000) + &"]".repeat(10_000);
    let objects = r#"{"a":"#.repeat(10_000) + "1" + &"}".repeat(10_000);
    let body = format!(r#"{{"event":"e","properties":{{"deep":{deep},"$set":{objects}}},"extra":{objects}}}"#);
    let event = event(&body);
    assert_eq!(event.properties.own[0].1.as_str(), deep);
    assert_eq!(text(event.properties.set), Some(&*objects));
    assert_eq!(Body::walk(&deep, drop).unwrap().elements.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_body_panics(body in r#"([\[\]{},:]|"(event|batch|uuid|properties|person|\$set|sent_at)"|"[a-z\\\\]*"|null|1){0,40}"#) {
        if let Ok(body) = Body::walk(&body, |element| element.event) {
            for event in body.elements.into_iter().flatten() {
                prop_assert!(!event.name().is_empty() && event.uuid.as_str().len() <= MAX_UUID_BYTES);
            }
        }
    }
}

use std::time::{Duration, UNIX_EPOCH};

use proptest::{prelude::*, sample::select};
use serde_json::{Map, Value, json};

use super::*;

const ARRIVED: &str = "2026-08-20T09:14:03.512Z";

fn arrived() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(1_787_217_243_512)
}

fn settings() -> Settings {
    Settings {
        format: Format::Variance,
        calls: Call::ALL.to_vec(),
        exclude: Vec::new(),
        person_traits: false,
        account_group: None,
    }
}

/// The only message of a body, as text.
fn map(settings: &Settings, body: &str) -> Result<String, Filtered> {
    let body = posthog::Body::parse(body).unwrap();
    let event = Event::decode(body.elements[0], &body.envelope).unwrap();
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
    let settings = Settings {
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
        ("$set", Err(Excluded)),
        ("$autocapture", Err(NoCall)),
        ("$pageview ", Err(NoCall)),
        ("$PAGEVIEW", Err(NoCall)),
        ("$merge_dangerously", Err(NoCall)),
        ("$", Err(NoCall)),
        (r"\u0024web_vitals", Err(NoCall)),
        ("secret", Err(Excluded)),
        (r"s\u0065cret", Err(Excluded)),
        ("secrets", Ok("track")),
        ("Secret", Ok("track")),
        ("internal ", Err(Excluded)),
        ("internal ping", Err(Excluded)),
        ("internal", Ok("track")),
        (r"\u00e9v\u00e9nement", Err(Excluded)),
        (r"cut \ud83d", Ok("track")),
    ] {
        let message = map(&settings, &format!(r#"{{"event":"{name}"}}"#));
        let type_name = message.map(|message| parse(&message)["type"].clone());
        assert_eq!(type_name, expected.map(Value::from), "{name}");
    }
    let everything = Settings { exclude: vec!["*".parse().unwrap()], ..settings };
    assert_eq!(map(&everything, r#"{"event":"signed up"}"#), Err(Excluded));
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
    let settings = Settings { format: Format::Posthog, calls: vec![Call::Capture], ..settings() };
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
        body in body(),
        calls in prop::sample::subsequence(Call::ALL.to_vec(), 0..=5),
        exclude in prop_oneof![3 => Just(None), 1 => select(vec!["up", "u*", "$page*", "*"]).prop_map(Some)],
        person_traits: bool,
        account_group in prop::option::of(select(vec!["company", "posthog_group_type", "$internal", "e\"é"])),
    ) {
        let settings = Settings {
            format: Format::Variance,
            calls,
            exclude: exclude.iter().map(|pattern| pattern.parse().unwrap()).collect(),
            person_traits,
            account_group: account_group.map(str::to_owned),
        };
        let expected = reference::message(&settings, &serde_json::from_str(&body).unwrap());
        let message = map(&settings, &body).ok();
        prop_assert_eq!(message.as_deref().map(parse), expected, "{}", body);
        prop_assert!(message.is_none_or(|message| no_key_comes_twice(&message)), "{}", body);
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

/// The table of what goes out, once more: slowly, over parsed JSON, a row at a time.
mod reference {
    use super::*;

    pub(super) fn message(settings: &Settings, body: &Value) -> Option<Value> {
        let (element, batch_sent_at) = match body {
            Value::Array(elements) => (&elements[0], None),
            Value::Object(fields) if fields.get("batch").is_some_and(Value::is_array) => {
                (&body["batch"][0], at(body, &["sent_at"]))
            }
            _ => (body, None),
        };
        let (event, outer) = match element["event"].is_object() {
            true => (&element["event"], Some(element)),
            false => (element, None),
        };
        let p = |name| at(event, &["properties", name]);
        let envelope_sent_at = either([outer.and_then(|outer| at(outer, &["sent_at"])), batch_sent_at]);
        let sent_at = either([at(event, &["sent_at"]), envelope_sent_at]);

        let name = event["event"].as_str().unwrap();
        let (call, type_name) = match name {
            "$pageview" => ("page", "page"),
            "$identify" | "$set" => ("identify", "identify"),
            "$create_alias" => ("alias", "alias"),
            "$groupidentify" => ("group", "group"),
            name if name.starts_with('$') => return None,
            _ => ("capture", "track"),
        };
        if !settings.calls.iter().any(|wanted| wanted.name() == call) {
            return None;
        }
        let is_excluded = |pattern: &NamePattern| match pattern {
            NamePattern::Exact(excluded) => name == excluded,
            NamePattern::Prefix(prefix) => name.starts_with(prefix),
        };
        if settings.exclude.iter().any(is_excluded) {
            return None;
        }

        let mut out = json!({});
        let mut put = |path: &[&str], value: Option<Value>| {
            if let Some(value) = value {
                let target = path.iter().fold(&mut out, |object, &key| &mut object[key]);
                *target = value;
            }
        };
        put(&["messageId"], at(event, &["uuid"]));
        put(&["timestamp"], either([at(event, &["timestamp"]), sent_at.clone(), Some(ARRIVED.into())]));
        put(&["type"], Some(type_name.into()));
        put(&["anonymousId"], get([p("$anon_distinct_id"), p("$device_id"), p("distinct_id")]));
        let user_id = get([at(event, &["$user_id"]), at(event, &["distinct_id"]), p("distinct_id")]);
        put(&["userId"], either([p("alias").filter(|_| call == "alias"), user_id]));
        put(&["sentAt"], either([sent_at, p("$sent_at")]));

        let library = json!({"name": "variance-connector", "version": env!("CARGO_PKG_VERSION")});
        put(&["libary"], Some(library.clone()));
        put(&["context", "library"], Some(library));
        put(&["context", "app", "version"], p("posthog_version"));
        put(&["context", "ip"], either([at(event, &["ip"]), p("$ip")]));
        put(&["context", "os", "name"], p("$os"));
        put(&["context", "page", "host"], p("$host"));
        put(&["context", "page", "path"], p("$pathname"));
        put(&["context", "page", "referrer"], p("$referrer"));
        put(&["context", "page", "url"], p("$current_url"));
        put(&["context", "page", "search"], search(p("$current_url")));
        put(&["context", "screen", "height"], p("$screen_height"));
        put(&["context", "screen", "width"], p("$screen_width"));
        if settings.person_traits {
            let person = outer.and_then(|outer| at(outer, &["person", "properties"]));
            put(&["context", "traits"], own(person));
        }
        if let Some(group_type) = &settings.account_group {
            put(&["context", "groupId"], at(event, &["properties", "$groups", group_type]));
        }

        match call {
            "capture" => {
                put(&["event"], Some(name.into()));
                put(&["properties"], own(at(event, &["properties"])));
            }
            "page" => {
                put(&["name"], p("name"));
                put(&["category"], p("category"));
                put(&["properties", "host"], p("$host"));
                put(&["properties", "path"], p("$pathname"));
                put(&["properties", "referrer"], p("$referrer"));
                put(&["properties", "url"], p("$current_url"));
                put(&["properties", "search"], search(p("$current_url")).filter(|search| search != ""));
            }
            "identify" => {
                let mut traits = p("$set").and_then(object).unwrap_or_default();
                traits.extend(at(event, &["$set"]).and_then(object).unwrap_or_default());
                put(&["traits"], own(Some(traits.into())));
            }
            "alias" => put(&["previousId"], either([p("distinct_id"), at(event, &["distinct_id"])])),
            _ => {
                put(&["groupId"], p("$group_key"));
                put(&["traits", "posthog_group_type"], p("$group_type"));
                for (key, value) in own(p("$groups")).and_then(object).unwrap_or_default() {
                    put(&["traits", &key], Some(value));
                }
            }
        }
        Some(out)
    }

    /// "Copied when present and not null."
    fn at(value: &Value, path: &[&str]) -> Option<Value> {
        path.iter().try_fold(value, |value, &key| value.get(key)).filter(|value| !value.is_null()).cloned()
    }

    fn either<const N: usize>(candidates: [Option<Value>; N]) -> Option<Value> {
        candidates.into_iter().flatten().next()
    }

    /// "The first of these that is present and neither null, `""`, `0` nor `false`."
    fn get<const N: usize>(candidates: [Option<Value>; N]) -> Option<Value> {
        let is_false = |value: &Value| *value == json!("") || *value == json!(false) || value.as_f64() == Some(0.0);
        candidates.into_iter().flatten().find(|value| !is_false(value))
    }

    fn object(value: Value) -> Option<Map<String, Value>> {
        match value {
            Value::Object(members) => Some(members),
            _ => None,
        }
    }

    /// "Without `$…` keys and nulls"; "an object that would be empty is left out".
    fn own(value: Option<Value>) -> Option<Value> {
        let mut members = object(value?)?;
        members.retain(|key, value| !key.starts_with('$') && !value.is_null());
        (!members.is_empty()).then_some(members.into())
    }

    fn search(url: Option<Value>) -> Option<Value> {
        let url = Url::parse(url?.as_str()?).ok()?;
        let search = &url[url::Position::AfterPath..url::Position::AfterQuery];
        Some(if search == "?" { "".into() } else { search.into() })
    }
}

/// Bodies of all shapes with one event, as text: keys come in any order, repeatedly and escaped.
fn body() -> impl Strategy<Value = String> {
    let person = object(select(vec!["properties", "id"]), prop_oneof![own_members(), odd_value()], 2);
    let nested =
        (event(), prop::option::of(person), prop::option::of(odd_value())).prop_map(|(event, person, sent_at)| {
            let mut members = vec![member("event", &event)];
            members.extend(person.map(|person| member("person", &person)));
            members.extend(sent_at.map(|sent_at| member("sent_at", &sent_at)));
            format!("{{{}}}", members.join(" ,"))
        });
    let element = prop_oneof![nested, event()];
    (element, 0..3, odd_value()).prop_map(|(element, shape, sent_at)| match shape {
        0 => element,
        1 => format!("[{element}]"),
        _ => format!(r#"{{"batch":[{element}],"sent_at":{sent_at}}}"#),
    })
}

fn event() -> impl Strategy<Value = String> {
    let name = select(vec![
        "up",
        "$pageview",
        "$identify",
        "$set",
        "$create_alias",
        "$groupidentify",
        "$autocapture",
        "\\u0024pageview",
        "a b é",
    ]);
    let key = select(vec!["distinct_id", "$user_id", "timestamp", "sent_at", "ip", "$set", "unknown", "properties"]);
    let value = prop_oneof![4 => odd_value(), 1 => own_members()];
    let rest = prop::collection::vec((key, value), 0..8);
    (name, properties(), rest, any::<prop::sample::Index>()).prop_map(|(name, properties, rest, at)| {
        let mut members: Vec<_> = rest.iter().map(|(key, value)| member(key, value)).collect();
        // Usually after a `properties` of an odd type, sometimes before it.
        members.insert(members.len() - at.index(members.len() + 1) / 2, member("properties", &properties));
        members.insert(at.index(members.len() + 1), member("event", &format!("\"{name}\"")));
        members.push(member("uuid", "\"an id\""));
        format!("{{{}}}", members.join(","))
    })
}

fn properties() -> impl Strategy<Value = String> {
    let key = select(vec![
        "$anon_distinct_id",
        "$device_id",
        "distinct_id",
        "alias",
        "$sent_at",
        "posthog_version",
        "$ip",
        "$os",
        "$host",
        "$pathname",
        "$referrer",
        "$screen_height",
        "$screen_width",
        "name",
        "category",
        "$group_key",
        "$group_type",
        "search",
        "url",
        "a.b",
        "$lib",
        "",
        "é",
        "e\\\"",
    ]);
    let usual = (key.clone(), odd_value());
    let url = (Just("$current_url"), prop_oneof![4 => url(), 1 => odd_value()]);
    let objects = (select(vec!["$set", "$groups"]), prop_oneof![4 => own_members(), 1 => odd_value()]);
    let members = prop::collection::vec(prop_oneof![8 => usual, 2 => url, 2 => objects], 0..24);
    members.prop_map(|members| {
        let members: Vec<_> = members.iter().map(|(key, value)| member(key, value)).collect();
        format!("{{{}}}", members.join(",\n"))
    })
}

/// An object as users make them, of group types or traits.
fn own_members() -> impl Strategy<Value = String> {
    let key = select(vec!["company", "posthog_group_type", "$internal", "e\\\"é", "plan", "$", "a.b"]);
    object(key, odd_value(), 8)
}

fn object(
    key: impl Strategy<Value = &'static str>,
    value: impl Strategy<Value = String>,
    most: usize,
) -> impl Strategy<Value = String> {
    prop::collection::vec((key, value), 0..=most).prop_map(|members| {
        let members: Vec<_> = members.iter().map(|(key, value)| member(key, value)).collect();
        format!("{{ {} }}", members.join(", "))
    })
}

/// A member whose key is escaped if the value happens to be of even length, so that keys repeat in both ways.
fn member(key: &str, value: &str) -> String {
    match key.chars().next() {
        Some(first) if first != '\\' && value.len().is_multiple_of(2) => {
            format!("\"\\u{:04x}{}\" : {value}", u32::from(first), &key[first.len_utf8()..])
        }
        _ => format!("\"{key}\":{value}"),
    }
}

fn odd_value() -> impl Strategy<Value = String> {
    let values = [
        "null",
        "false",
        "true",
        "0",
        "-0",
        "0.0",
        "0e5",
        "1",
        "-1.5e-9",
        "9007199254740993",
        "\"\"",
        "\" \"",
        "\"0\"",
        "\"user_42\"",
        "\"\\u0061\\n\\\"\"",
        "\"é🦔\"",
        "[]",
        "[0]",
        "{}",
        "{\"$in\":null}",
        "[{\"a\":1,\"a\":null}]",
        "\"https://a.example/?as=value\"",
    ];
    select(values.map(str::to_owned).to_vec())
}

fn url() -> impl Strategy<Value = String> {
    let known = [
        "https://app.example.com/billing?ref=nav#x",
        "https://a.example",
        "https://a.example/?",
        "https://a.example/?#",
        "$direct",
        "//a.example/?b",
        "about:blank?x",
        "mailto:a@b.example?subject=x y'",
        "http://é.example/ä?ö=ü",
        "http://[::1",
        "data:,?x",
        "  https://a.example/?x  ",
        "file:///C:/x?y",
        "https://u:p@a.example:8443/?q=%zz",
        "https://a.example:99999/?x",
        "",
    ];
    prop_oneof![
        select(known.map(|url| format!("\"{url}\"")).to_vec()),
        "https?:/{0,3}[a-z.:@\\[]{0,8}/?[a-zé %]{0,3}[?]{0,2}[a-zé=&%'# ]{0,6}".prop_map(|url| format!("\"{url}\"")),
    ]
}

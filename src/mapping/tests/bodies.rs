//! Bodies full of the keys that mean something, as text: in any order, repeated and escaped.

use proptest::{prelude::*, sample::select};

/// Bodies of all shapes with one event.
pub(super) fn body() -> impl Strategy<Value = String> {
    let nested =
        (event(), prop::option::of(person()), prop::option::of(odd_value())).prop_map(|(event, person, sent_at)| {
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

fn person() -> impl Strategy<Value = String> {
    object(select(vec!["properties", "id"]), prop_oneof![own_members(), odd_value()], 2)
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
    let key = select(vec![
        "distinct_id",
        "$user_id",
        "timestamp",
        "sent_at",
        "ip",
        "$set",
        "unknown",
        "properties",
        "person",
        "person_properties",
        "groups",
    ]);
    let value = prop_oneof![4 => odd_value(), 1 => own_members(), 1 => person(), 1 => groups(), 1 => time()];
    let rest = prop::collection::vec((key, value), 0..8);
    (name, properties(), rest, any::<prop::sample::Index>()).prop_map(|(name, properties, rest, at)| {
        let mut members: Vec<_> = rest.iter().map(|(key, value)| member(key, value)).collect();
        // Usually this is after a `properties` of an odd type, sometimes before it.
        members.insert(members.len() - at.index(members.len() + 1) / 2, member("properties", &properties));
        members.insert(at.index(members.len() + 1), member("event", &format!("\"{name}\"")));
        members.push(member("uuid", "\"an id\""));
        format!("{{{}}}", members.join(","))
    })
}

fn groups() -> impl Strategy<Value = String> {
    object(select(vec!["company", "project"]), prop_oneof![person(), odd_value()], 2)
}

fn time() -> impl Strategy<Value = String> {
    let times = [
        "\"2026-08-20T09:14:03.512Z\"",
        "\"2026-08-20 09:14:03.512000+00:00\"",
        "\"2026-08-20 09:14:03 UTC\"",
        "1787217243",
        "1787217243512",
    ];
    select(times.map(str::to_owned).to_vec())
}

fn properties() -> impl Strategy<Value = String> {
    prop_oneof![9 => properties_object(), 1 => properties_object().prop_map(as_text)]
}

/// Returns the JSON string that holds a JSON text.
fn as_text(json: String) -> String {
    serde_json::Value::String(json).to_string()
}

fn properties_object() -> impl Strategy<Value = String> {
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
        "$is_identified",
        "$process_person_profile",
        "$is_server",
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
    let objects = (select(vec!["$set", "$groups", "$group_set"]), prop_oneof![4 => own_members(), 1 => odd_value()]);
    let members = prop::collection::vec(prop_oneof![8 => usual, 2 => url, 2 => objects], 0..24);
    members.prop_map(|members| {
        let members: Vec<_> = members.iter().map(|(key, value)| member(key, value)).collect();
        format!("{{{}}}", members.join(",\n"))
    })
}

/// An object as users make it, of group types or traits.
fn own_members() -> impl Strategy<Value = String> {
    let key = select(vec!["company", "posthog_group_type", "$internal", "e\\\"é", "plan", "$", "a.b"]);
    let members = object(key, odd_value(), 8);
    (members, prop::bool::weighted(0.1)).prop_map(|(members, is_text)| if is_text { as_text(members) } else { members })
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
        "\"company\"",
        "\"$company_user_42\"",
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

//! The table of what goes out, once more: slowly, over parsed JSON, a row at a time. The fuzz target `forward` uses it too.

use serde_json::{Map, Value};

use super::*;

/// What must become of an element.
#[derive(Debug, PartialEq)]
pub(super) enum Expected {
    Invalid,
    Filtered,
    /// Without `messageId` if the event has no id of its own.
    Message(Value),
}

/// What must become of each element of a body.
pub(super) fn expected(settings: &MappingSettings, body: &Value) -> Vec<Expected> {
    let (elements, sent_at) = match body {
        Value::Array(elements) => (elements.as_slice(), None),
        Value::Object(fields) => match fields.get("batch") {
            Some(Value::Array(elements)) => (elements.as_slice(), at(body, &["sent_at"])),
            _ => (std::slice::from_ref(body), None),
        },
        _ => (&[][..], None),
    };
    elements.iter().map(|element| of_element(settings, element, sent_at.clone())).collect()
}

fn of_element(settings: &MappingSettings, element: &Value, batch_sent_at: Option<Value>) -> Expected {
    let (event, outer) = match element["event"].is_object() {
        true => (&element["event"], Some(element)),
        false => (element, None),
    };
    match event["event"].as_str() {
        None | Some("") => Expected::Invalid,
        Some(name) => {
            let message = message(settings, name, event, outer, batch_sent_at);
            message.map_or(Expected::Filtered, Expected::Message)
        }
    }
}

fn message(
    settings: &MappingSettings,
    name: &str,
    event: &Value,
    outer: Option<&Value>,
    batch_sent_at: Option<Value>,
) -> Option<Value> {
    let p = |name| at(event, &["properties", name]);
    let envelope_sent_at = either([outer.and_then(|outer| at(outer, &["sent_at"])), batch_sent_at]);
    let sent_at = either([at(event, &["sent_at"]), envelope_sent_at]);

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
    put(&["messageId"], id(event));
    put(&["timestamp"], either([at(event, &["timestamp"]), sent_at.clone(), Some(ARRIVED.into())]));
    put(&["type"], Some(type_name.into()));
    put(&["anonymousId"], get([p("$anon_distinct_id"), p("$device_id"), p("distinct_id")]));
    let user_id = get([at(event, &["$user_id"]), at(event, &["distinct_id"]), p("distinct_id")]);
    put(&["userId"], either([p("alias").filter(|_| call == "alias"), user_id]));
    put(&["sentAt"], either([sent_at, p("$sent_at")]));

    let (program, version) = USER_AGENT.split_once('/').unwrap();
    let library = json!({"name": program, "version": version});
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
        let person = either([outer.and_then(|outer| at(outer, &["person"])), at(event, &["person"])]);
        let of_person = person.and_then(|person| at(&person, &["properties"]));
        put(&["context", "traits"], own(either([of_person, at(event, &["person_properties"])])));
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

/// "`uuid` counts if it is a non-empty string of at most 200 bytes, else `id` if it parses as a UUID."
fn id(event: &Value) -> Option<Value> {
    let usable = |key| at(event, &[key]).filter(|id| id.as_str().is_some_and(|id| (1..=200).contains(&id.len())));
    let is_uuid = |id: &Value| id.as_str().is_some_and(|id| uuid::Uuid::try_parse(id).is_ok());
    either([usable("uuid"), usable("id").filter(is_uuid)])
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

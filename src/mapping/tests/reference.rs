//! The mapping written a second time: slowly, over parsed JSON, a row of the table at a time. The fuzz target `forward`
//! uses it too.

use serde_json::{Map, Value};

use super::*;

/// The expected result for an element.
#[derive(Debug, PartialEq)]
pub(super) enum Expected {
    Invalid,
    Filtered,
    /// Has no `messageId` if the event has no id of its own.
    Message(Value),
}

/// Returns the expected result for each element of a body.
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
        Some(name) if name.trim().starts_with('{') && name.trim().ends_with('}') => Expected::Invalid,
        Some(name) if name.trim() == "[object Object]" => Expected::Invalid,
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
    let properties = at(event, &["properties"]).and_then(object).map(Value::from);
    let p = |name| at(properties.as_ref()?, &[name]);
    let own = |value| own(settings, value);
    let person = either([outer.and_then(|outer| at(outer, &["person"])), at(event, &["person"])]);
    let of_person = either([person.and_then(|person| at(&person, &["properties"])), at(event, &["person_properties"])]);
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
    let is_in = |patterns: &[NamePattern]| patterns.iter().any(|pattern| is_meant(pattern, name));
    if is_in(&settings.exclude) || call == "capture" && !settings.include.is_empty() && !is_in(&settings.include) {
        return None;
    }
    let is_anonymous = [p("$process_person_profile"), p("$is_identified")].contains(&Some(false.into()));
    if !settings.anonymous && is_anonymous && ["capture", "page"].contains(&call) {
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
    let time = either([at(event, &["timestamp"]), sent_at.clone(), Some(ARRIVED.into())]);
    put(&["timestamp"], time.and_then(rfc3339));
    put(&["type"], Some(type_name.into()));
    if call != "group"
        || !is_groups_own_id(
            either([at(event, &["distinct_id"]), p("distinct_id")]),
            [p("$group_type"), p("$group_key")],
        )
    {
        put(&["anonymousId"], get([p("$anon_distinct_id"), p("$device_id"), p("distinct_id")]));
        let user_id = get([at(event, &["$user_id"]), at(event, &["distinct_id"]), p("distinct_id")]);
        put(&["userId"], either([p("alias").filter(|_| call == "alias"), user_id]));
    }
    put(&["sentAt"], either([sent_at, p("$sent_at")]));

    let (program, version) = USER_AGENT.split_once('/').unwrap();
    let library = json!({"name": program, "version": version});
    put(&["libary"], Some(library.clone()));
    put(&["context", "library"], Some(library));
    put(&["context", "app", "version"], p("posthog_version"));
    put(&["context", "ip"], either([at(event, &["ip"]), p("$ip")]));
    put(&["context", "os", "name"], p("$os").filter(|_| p("$is_server") != Some(true.into())));
    put(&["context", "page", "host"], p("$host"));
    put(&["context", "page", "path"], p("$pathname"));
    put(&["context", "page", "referrer"], p("$referrer"));
    put(&["context", "page", "url"], p("$current_url"));
    put(&["context", "page", "search"], search(p("$current_url")));
    put(&["context", "screen", "height"], p("$screen_height"));
    put(&["context", "screen", "width"], p("$screen_width"));
    if settings.person_traits {
        put(&["context", "traits"], own(of_person.clone()));
    }
    if let Some(group_type) = &settings.account_group {
        put(
            &["context", "groupId"],
            p("$groups").and_then(object).and_then(|groups| at(&groups.into(), &[group_type])),
        );
    }

    match call {
        "capture" => {
            put(&["event"], Some(name.into()));
            put(&["properties"], own(properties.clone()));
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
            let sets = [p("$set"), at(event, &["$set"])];
            let sets = if sets == [None, None] { [of_person, None] } else { sets };
            let traits: Map<_, _> = sets.into_iter().flatten().filter_map(object).flatten().collect();
            put(&["traits"], own(Some(traits.into())));
        }
        "alias" => put(&["previousId"], either([p("distinct_id"), at(event, &["distinct_id"])])),
        _ => {
            put(&["groupId"], p("$group_key"));
            put(&["traits", "posthog_group_type"], p("$group_type"));
            let groups = either([outer.and_then(|outer| at(outer, &["groups"])), at(event, &["groups"])]);
            let group_type = p("$group_type").and_then(|group_type| group_type.as_str().map(str::to_owned));
            let of_group =
                groups.zip(group_type).and_then(|(groups, group_type)| at(&groups, &[&group_type, "properties"]));
            let group_set = p("$group_set").and_then(object).or_else(|| of_group.and_then(object));
            for members in [p("$groups"), group_set.map(Value::from)].map(own).into_iter().flatten() {
                for (key, value) in object(members).unwrap_or_default() {
                    put(&["traits", &key], Some(value));
                }
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

/// An object may be JSON text in a string.
fn object(value: Value) -> Option<Map<String, Value>> {
    match value {
        Value::Object(members) => Some(members),
        Value::String(text) => serde_json::from_str(&text).ok(),
        _ => None,
    }
}

fn is_meant(pattern: &NamePattern, name: &str) -> bool {
    match pattern {
        NamePattern::Exact(exact) => name == exact,
        NamePattern::Prefix(prefix) => name.starts_with(prefix),
    }
}

/// "Left out when the `distinct_id` is `$<group type>_<group key>`, which is no person."
fn is_groups_own_id(id: Option<Value>, group: [Option<Value>; 2]) -> bool {
    let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let ([group_type, group_key], Some(id)) = (group.map(|value| value.map(text)), id.map(text)) else { return false };
    group_type.zip(group_key).is_some_and(|(group_type, group_key)| id == format!("${group_type}_{group_key}"))
}

/// "Verbatim; one that is not RFC 3339 is rewritten as RFC 3339, same instant." Returns nothing for a fraction, since
/// parsed JSON does not say how many digits it had.
fn rfc3339(time: Value) -> Option<Value> {
    let text = time.to_string();
    let raw = Raw::parse(&text).unwrap();
    match Time::of(raw).filter(|_| !posthog::is_rfc3339(raw)) {
        Some(_) if time.is_f64() => None,
        Some(rewritten) => Some(rewritten.to_string().into()),
        None => Some(time),
    }
}

/// "Without `$…` keys and nulls", but for those to be kept; "an object that would be empty is left out".
fn own(settings: &MappingSettings, value: Option<Value>) -> Option<Value> {
    let is_kept = |key: &str| settings.keep_properties.iter().any(|pattern| is_meant(pattern, key));
    let mut members = object(value?)?;
    members.retain(|key, value| (!key.starts_with('$') || is_kept(key)) && !value.is_null());
    (!members.is_empty()).then_some(members.into())
}

fn search(url: Option<Value>) -> Option<Value> {
    let url = Url::parse(url?.as_str()?).ok()?;
    let search = &url[url::Position::AfterPath..url::Position::AfterQuery];
    Some(if search == "?" { "".into() } else { search.into() })
}

//! From PostHog's event to Variance's message, or the reason why there is none.
//!
//! The shape is the one that PostHog's own Variance app put on the wire (posthog-variance-plugin 1.0.0, `src/index.ts`),
//! so that Variance accounts set up for it go on working. It differs where the app was in error (it built nested objects
//! from keys with a dot, and lost events whose URL did not parse), where a webhook has a value in another place (`$ip`,
//! `$sent_at`), and in what the user may add: the account (`context.groupId`) and the person (`context.traits`).

use std::{borrow::Cow, collections::HashMap, str::FromStr, time::SystemTime};

use url::Url;

use crate::{
    json::{Raw, Text},
    metrics::{CallLabel, FilteredLabel},
    posthog::{self, Event},
    variance::{Call, Message, Object},
};

/// Which events are forwarded, and in which shape.
#[derive(Clone, Debug)]
pub struct MappingSettings {
    /// The shape of the bodies.
    pub format: Format,
    /// The calls that are forwarded.
    pub calls: Vec<Call>,
    /// Names of events that are not forwarded all the same.
    pub exclude: Vec<NamePattern>,
    /// If there are any: the only capture events that are forwarded.
    pub include: Vec<NamePattern>,
    /// Whether capture and page events of people who are not identified are forwarded.
    pub anonymous: bool,
    /// Properties that are kept although their names start with `$`.
    pub keep_properties: Vec<NamePattern>,
    /// Whether the person's properties go along with every event.
    pub person_traits: bool,
    /// The group type that is an account at Variance.
    pub account_group: Option<String>,
}

impl Default for MappingSettings {
    /// What the app did, less groups.
    fn default() -> Self {
        Self {
            format: Format::Variance,
            calls: vec![Call::Capture, Call::Page, Call::Identify, Call::Alias],
            exclude: Vec::new(),
            include: Vec::new(),
            anonymous: true,
            keep_properties: Vec::new(),
            person_traits: false,
            account_group: None,
        }
    }
}

/// The shape of the bodies that are posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The calls of PostHog's own Variance app.
    Variance,
    /// PostHog's events as they were received.
    Posthog,
}

impl Format {
    /// Its name in the settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Variance => "variance",
            Self::Posthog => "posthog",
        }
    }
}

/// The name of an event, or how names start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamePattern {
    /// This name and no other.
    Exact(String),
    /// Every name that starts so; written with a `*` at its end.
    Prefix(String),
}

/// Why an event is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Filtered {
    /// PostHog made it up and Variance has no call for it.
    #[error("not one of the calls that Variance takes")]
    NoCall,
    /// It is a call that the settings leave out.
    #[error("the call `{0}` is not in filter.calls")]
    CallOff(Call),
    /// It is a call whose name the settings leave out.
    #[error("excluded by filter.exclude")]
    Excluded(Call),
}

impl Filtered {
    /// How it is counted.
    pub fn labels(self) -> (CallLabel, FilteredLabel) {
        match self {
            Self::NoCall => (CallLabel::None, FilteredLabel::NoCall),
            Self::CallOff(call) => (call.into(), FilteredLabel::CallOff),
            Self::Excluded(call) => (call.into(), FilteredLabel::Excluded),
        }
    }
}

/// `name` and `version` of this program, as the app sent its own.
const LIBRARY: &str = concat!(r#"{"name":"variance-connector","version":""#, env!("CARGO_PKG_VERSION"), r#""}"#);

impl MappingSettings {
    /// The message for an event, which arrived at `arrived` if it has no time of its own. `scratch` lends its memory.
    ///
    /// # Errors
    /// Why the event is not forwarded.
    pub fn message(&self, event: &Event<'_>, arrived: SystemTime, scratch: &mut Vec<u8>) -> Result<Message, Filtered> {
        let call = self.call(&event.name())?;
        Ok(Message::write(call, event.uuid.as_str(), scratch, |out| match self.format {
            Format::Posthog => out.extend_from_slice(event.raw.as_str().as_bytes()),
            Format::Variance => Object::write(out, |body| self.body(body, call, event, arrived)),
        }))
    }

    fn call(&self, name: &[u8]) -> Result<Call, Filtered> {
        let call = match name {
            b"$pageview" => Call::Page,
            b"$identify" | b"$set" => Call::Identify,
            b"$create_alias" => Call::Alias,
            b"$groupidentify" => Call::Group,
            [b'$', ..] => return Err(Filtered::NoCall),
            _ => Call::Capture,
        };
        if !self.calls.contains(&call) {
            return Err(Filtered::CallOff(call));
        }
        match self.exclude.iter().any(|pattern| pattern.matches(name)) {
            true => Err(Filtered::Excluded(call)),
            false => Ok(call),
        }
    }

    fn body(&self, body: &mut Object<'_>, call: Call, event: &Event<'_>, arrived: SystemTime) {
        let properties = &event.properties;
        body.json("messageId", event.uuid.as_json());
        match event.timestamp.or(event.sent_at) {
            Some(timestamp) => body.json("timestamp", timestamp.as_str()),
            None => body.string("timestamp", &humantime::format_rfc3339_millis(arrived).to_string()),
        }
        body.string("type", call.type_name());
        let anonymous_id = first([properties.anon_distinct_id, properties.device_id, properties.distinct_id]);
        body.raw("anonymousId", anonymous_id);
        let user_id = || first([event.user_id, event.distinct_id, properties.distinct_id]);
        match call {
            Call::Alias => body.raw("userId", properties.alias.or_else(user_id)),
            _ => body.raw("userId", user_id()),
        }
        body.raw("sentAt", event.sent_at.or(properties.sent_at));
        let search = properties.current_url.and_then(search);
        body.object("context", |context| self.context(context, event, search.as_deref()));
        body.json("libary", LIBRARY);
        match call {
            Call::Capture => {
                body.raw("event", Some(event.name));
                body.object("properties", |own| write_own(own, &properties.own));
            }
            Call::Page => {
                body.raw("name", properties.name);
                body.raw("category", properties.category);
                let search = search.as_deref().filter(|search| !search.is_empty());
                body.object("properties", |page| write_page(page, properties, search));
            }
            Call::Identify => {
                let mut traits = properties.set.map(Raw::members).unwrap_or_default();
                traits.extend(event.set.map(Raw::members).unwrap_or_default());
                body.object("traits", |own| write_own(own, &traits));
            }
            Call::Alias => body.raw("previousId", properties.distinct_id.or(event.distinct_id)),
            Call::Group => {
                body.raw("groupId", properties.group_key);
                body.object("traits", |traits| write_group(traits, properties));
            }
        }
    }

    fn context(&self, context: &mut Object<'_>, event: &Event<'_>, search: Option<&str>) {
        let properties = &event.properties;
        context.object("app", |app| app.raw("version", properties.posthog_version));
        context.raw("ip", event.ip.or(properties.ip));
        context.object("os", |os| os.raw("name", properties.os));
        context.object("page", |page| write_page(page, properties, search));
        context.object("screen", |screen| {
            screen.raw("height", properties.screen_height);
            screen.raw("width", properties.screen_width);
        });
        context.json("library", LIBRARY);
        if self.person_traits
            && let Some(person) = event.person_properties()
        {
            context.object("traits", |traits| write_own(traits, &person.members()));
        }
        if let Some(account) = &self.account_group {
            context.raw("groupId", properties.groups.and_then(|groups| posthog::member(groups, account)));
        }
    }
}

/// The app's `get(a | b)`: the first that JavaScript takes for true.
fn first<const N: usize>(candidates: [Option<Raw<'_>>; N]) -> Option<Raw<'_>> {
    candidates.into_iter().flatten().find_map(Raw::truthy)
}

/// `URL.search` of a WHATWG URL; nothing if the value is no string or does not parse.
fn search(url: Raw<'_>) -> Option<Cow<'_, str>> {
    let url = url.as_text()?;
    if let Some(search) = plain_search(url.as_written()) {
        return Some(Cow::Borrowed(search));
    }
    let url = Url::parse(&url.to_scalar_string()).ok()?;
    Some(match url.query() {
        None | Some("") => Cow::Borrowed(""),
        Some(query) => Cow::Owned(format!("?{query}")),
    })
}

/// The same for the URLs that most events have, where the standard changes nothing: it takes a twentieth of the time.
/// Nothing if there is anything in the URL that it might change or refuse.
fn plain_search(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    let host_len = rest.bytes().position(|byte| !matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))?;
    let (host, rest) = rest.split_at(host_len);
    // The last label of a name begins with a letter (that of an address does not), and none is in Punycode.
    let last_label = host.rsplit('.').next().unwrap_or_default();
    if !last_label.starts_with(|first: char| first.is_ascii_lowercase()) || host.contains("xn--") {
        return None;
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/?=&-._~%+:,;@!$*()#".contains(&byte);
    if !rest.starts_with(['/', '?', '#']) || !rest.bytes().all(is_plain) {
        return None;
    }
    let before_fragment = rest.split('#').next().unwrap_or_default();
    Some(match before_fragment.find('?') {
        Some(query) if query + 1 < before_fragment.len() => &before_fragment[query..],
        _ => "",
    })
}

fn write_page(page: &mut Object<'_>, properties: &posthog::Properties<'_>, search: Option<&str>) {
    page.raw("host", properties.host);
    page.raw("path", properties.pathname);
    page.raw("referrer", properties.referrer);
    page.raw("url", properties.current_url);
    if let Some(search) = search {
        page.string("search", search);
    }
}

/// The group's type and, over it, the groups of the user, as the app had it.
fn write_group(traits: &mut Object<'_>, properties: &posthog::Properties<'_>) {
    const TYPE: &str = "posthog_group_type";
    let groups = properties.groups.map(Raw::members).unwrap_or_default();
    if properties.groups.and_then(|groups| posthog::member(groups, TYPE)).is_none() {
        traits.raw(TYPE, properties.group_type);
    }
    write_own(traits, &groups);
}

/// Writes the members that PostHog did not make up: no key that starts with `$`, no null, of a repeated key the last.
fn write_own(object: &mut Object<'_>, members: &[(Text<'_>, Raw<'_>)]) {
    let mut write = |(key, value): &(Text<'_>, Raw<'_>)| {
        if !key.is_internal() {
            object.raw(key.as_written(), value.non_null());
        }
    };
    // A few keys are compared fastest with each other; with many, that would let a sender burn time.
    if members.len() <= 32 {
        for (index, member) in members.iter().enumerate() {
            if !members[index + 1..].iter().any(|later| later.0 == member.0) {
                write(member);
            }
        }
    } else {
        let last: HashMap<_, _> =
            members.iter().enumerate().map(|(index, (key, _))| (key.unescaped(), index)).collect();
        for (index, member) in members.iter().enumerate() {
            if last[&member.0.unescaped()] == index {
                write(member);
            }
        }
    }
}

impl NamePattern {
    fn matches(&self, name: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => name == exact.as_bytes(),
            Self::Prefix(prefix) => name.starts_with(prefix.as_bytes()),
        }
    }
}

impl FromStr for NamePattern {
    type Err = ();

    fn from_str(pattern: &str) -> Result<Self, ()> {
        Ok(match pattern.strip_suffix('*') {
            Some(prefix) => Self::Prefix(prefix.to_owned()),
            None => Self::Exact(pattern.to_owned()),
        })
    }
}

#[cfg(test)]
mod tests;

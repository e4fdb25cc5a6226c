//! The mapping of PostHog's events to Variance's messages.
//!
//! The shape is the one that PostHog's own Variance app put on the wire (posthog-variance-plugin 1.0.0,
//! `src/index.ts`), so that Variance accounts set up for it go on working. It differs where the app was wrong (it built
//! nested objects from keys with a dot, and lost events whose URL did not parse), where a webhook has a value in
//! another place (`$ip`, `$sent_at`), and in what the user may add: the account (`context.groupId`) and the person
//! (`context.traits`).

use std::{borrow::Cow, collections::HashSet, fmt, str::FromStr, time::SystemTime};

use url::Url;

use crate::{
    json::{ObjectText, Raw, Text},
    metrics::{CallLabel, FilteredLabel},
    posthog::{self, Event, Invalid, Time},
    variance::{Call, Message, Object},
};

/// The calls of the events whose names PostHog made up. No other name with `$` before it has a call, and every name
/// without is a capture's.
pub const CALLS: [(&str, Call); 5] = [
    ("$pageview", Call::Page),
    ("$identify", Call::Identify),
    ("$set", Call::Identify),
    ("$create_alias", Call::Alias),
    ("$groupidentify", Call::Group),
];

/// The settings that say which events are forwarded, and in which shape.
#[derive(Clone, Debug)]
pub struct MappingSettings {
    /// The shape of the bodies.
    pub format: Format,
    /// The calls that are forwarded.
    pub calls: Vec<Call>,
    /// Names of events that are not forwarded although their call is.
    pub exclude: Vec<NamePattern>,
    /// Names of the only capture events that are forwarded; empty for all.
    pub include: Vec<NamePattern>,
    /// True to forward capture and page events of people who are not identified.
    pub anonymous: bool,
    /// Names of properties and traits that are kept although they start with `$`.
    pub keep_properties: Vec<NamePattern>,
    /// True to send the person's properties along with every event.
    pub person_traits: bool,
    /// The group type that stands for an account at Variance.
    pub account_group: Option<String>,
}

impl Default for MappingSettings {
    /// Returns the behaviour of PostHog's app, but without groups.
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
    /// The format's name in the settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Variance => "variance",
            Self::Posthog => "posthog",
        }
    }
}

/// A pattern for names: a whole name, or the start of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamePattern {
    /// Matches this name and no other.
    Exact(String),
    /// Matches every name that starts with this; written with a `*` at its end.
    Prefix(String),
}

/// The reason why an event is left out on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Filtered {
    /// PostHog made the event up and Variance has no call for it.
    #[error("not one of the calls that Variance accepts")]
    NoCall,
    /// The settings leave out the event's call.
    #[error("the call `{0}` is not in filter.calls")]
    CallOff(Call),
    /// The settings leave out the event's name.
    #[error("excluded by filter.exclude")]
    Excluded(Call),
    /// The settings name the only capture events that are forwarded, and this is not one of them.
    #[error("not in filter.include")]
    NotIncluded,
    /// The event is a capture or page event of somebody who is not identified, and the settings leave those out.
    #[error("its person is not identified, and filter.anonymous is false")]
    Anonymous(Call),
}

/// The reason why there is no message for an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoMessage {
    /// The event is left out on purpose.
    #[error(transparent)]
    Filtered(#[from] Filtered),
    /// The event cannot be forwarded.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

impl Filtered {
    /// Returns the labels under which the event is counted.
    pub fn labels(self) -> (CallLabel, FilteredLabel) {
        match self {
            Self::NoCall => (CallLabel::None, FilteredLabel::NoCall),
            Self::CallOff(call) => (call.into(), FilteredLabel::CallOff),
            Self::Excluded(call) => (call.into(), FilteredLabel::Excluded),
            Self::NotIncluded => (CallLabel::Capture, FilteredLabel::NotIncluded),
            Self::Anonymous(call) => (call.into(), FilteredLabel::Anonymous),
        }
    }
}

/// The `name` and `version` of this program, in the place where the app sent its own.
const LIBRARY: &str = concat!(r#"{"name":"variance-connector","version":""#, env!("CARGO_PKG_VERSION"), r#""}"#);

impl MappingSettings {
    /// Makes the message for an event. An event without a time of its own gets `arrived`. The memory of `scratch` is
    /// used on the way.
    ///
    /// The message takes [`Event::max_message`] at most: the `search` of the page's URL, which can be three times as
    /// long as the URL, is left out where it would take more.
    ///
    /// # Errors
    /// The reason why the event is not forwarded.
    pub fn message(&self, event: &Event<'_>, arrived: SystemTime, scratch: &mut Vec<u8>) -> Result<Message, NoMessage> {
        let call = self.call(event)?;
        let mut write = |search: Option<&str>| {
            Message::write(event.max_message(), call, event.uuid.as_str(), scratch, |out| match self.format {
                Format::Posthog => out.push(event.raw.as_str().as_bytes()),
                Format::Variance => Object::write(out, |body| self.body(body, call, event, arrived, search)),
            })
        };
        let search = event.properties.current_url.filter(|_| self.format == Format::Variance).and_then(search);
        let message = write(search.as_deref()).or_else(|| search.and_then(|_| write(None)));
        Ok(message.ok_or(Invalid::MessageTooLarge)?)
    }

    fn call(&self, event: &Event<'_>) -> Result<Call, Filtered> {
        let name = &*event.name();
        let call = match CALLS.iter().find(|(made_up, _)| made_up.as_bytes() == name) {
            Some((_, call)) => *call,
            None if name.starts_with(b"$") => return Err(Filtered::NoCall),
            None => Call::Capture,
        };
        let is_in = |patterns: &[NamePattern]| patterns.iter().any(|pattern| pattern.matches(name));
        if !self.calls.contains(&call) {
            return Err(Filtered::CallOff(call));
        }
        if is_in(&self.exclude) {
            return Err(Filtered::Excluded(call));
        }
        if call == Call::Capture && !self.include.is_empty() && !is_in(&self.include) {
            return Err(Filtered::NotIncluded);
        }
        if !self.anonymous && matches!(call, Call::Capture | Call::Page) && is_anonymous(&event.properties) {
            return Err(Filtered::Anonymous(call));
        }
        Ok(call)
    }

    fn body(&self, body: &mut Object<'_>, call: Call, event: &Event<'_>, arrived: SystemTime, search: Option<&str>) {
        let properties = &event.properties;
        body.json("messageId", event.uuid.as_json());
        match event.time() {
            Some(time) if posthog::is_rfc3339(time) => body.json("timestamp", time.as_str()),
            Some(time) => match Time::of(time) {
                Some(rewritten) => body.string("timestamp", &rewritten.to_string()),
                None => body.json("timestamp", time.as_str()),
            },
            None => body.string("timestamp", &humantime::format_rfc3339_millis(arrived).to_string()),
        }
        body.string("type", call.type_name());
        let anonymous_id = || first([properties.anon_distinct_id, properties.device_id, properties.distinct_id]);
        let user_id = || first([event.user_id, event.distinct_id, properties.distinct_id]);
        let (anonymous_id, user_id) = match call {
            Call::Group if is_group_itself(event) => (None, None),
            Call::Alias => (anonymous_id(), properties.alias.or_else(user_id)),
            _ => (anonymous_id(), user_id()),
        };
        body.raw("anonymousId", anonymous_id);
        body.raw("userId", user_id);
        body.raw("sentAt", event.sent_at.or(properties.sent_at));
        body.object("context", |context| self.context(context, event, search));
        body.json("libary", LIBRARY);
        match call {
            Call::Capture => {
                body.raw("event", Some(event.name));
                let all = properties.received.filter(|_| !self.keep_properties.is_empty()).map(Raw::members);
                let members = all.as_ref().unwrap_or(&properties.own);
                body.object("properties", |own| write(own, self.own(members)));
            }
            Call::Page => {
                body.raw("name", properties.name);
                body.raw("category", properties.category);
                let search = search.filter(|search| !search.is_empty());
                body.object("properties", |page| write_page(page, properties, search));
            }
            Call::Identify => {
                let sets = match [properties.set, event.set] {
                    // Stored events lose their `$set` after a time, but not the person.
                    [None, None] => [event.person_properties(), None],
                    sets => sets.map(|set| set.and_then(Raw::object_text)),
                };
                let members = sets.iter().flatten().map(ObjectText::members).reduce(|mut first, second| {
                    first.extend(second);
                    first
                });
                body.object("traits", |traits| write(traits, self.own(members.as_deref().unwrap_or_default())));
            }
            Call::Alias => body.raw("previousId", properties.distinct_id.or(event.distinct_id)),
            Call::Group => {
                body.raw("groupId", properties.group_key);
                body.object("traits", |traits| self.group(traits, event));
            }
        }
    }

    fn context(&self, context: &mut Object<'_>, event: &Event<'_>, search: Option<&str>) {
        let properties = &event.properties;
        context.object("app", |app| app.raw("version", properties.posthog_version));
        context.raw("ip", event.ip.or(properties.ip));
        let is_server = properties.is_server.is_some_and(|is_server| is_server.as_str() == "true");
        context.object("os", |os| os.raw("name", properties.os.filter(|_| !is_server)));
        context.object("page", |page| write_page(page, properties, search));
        context.object("screen", |screen| {
            screen.raw("height", properties.screen_height);
            screen.raw("width", properties.screen_width);
        });
        context.json("library", LIBRARY);
        if self.person_traits
            && let Some(person) = event.person_properties()
        {
            context.object("traits", |traits| write(traits, self.own(&person.members())));
        }
        if let Some(account) = &self.account_group
            && let Some(groups) = properties.groups.and_then(Raw::object_text)
        {
            context.raw("groupId", groups.member(account));
        }
    }

    /// Writes the group's type, over it the groups that the event belongs to, as the app did, and over these the
    /// group's properties.
    fn group(&self, traits: &mut Object<'_>, event: &Event<'_>) {
        let properties = &event.properties;
        let groups = properties.groups.and_then(Raw::object_text);
        let of_group = properties.group_set.and_then(Raw::object_text).or_else(|| event.group_properties());
        let [groups, of_group] = [&groups, &of_group].map(|text| text.as_ref().map(ObjectText::members));
        let mut all: Vec<_> = properties
            .group_type
            .map(|group_type| (Text::plain("posthog_group_type"), group_type))
            .into_iter()
            .collect();
        for members in [groups, of_group].iter().flatten() {
            all.extend(self.own(members));
        }
        write(traits, self.own(&all));
    }

    /// Returns the members that PostHog did not make up: no key that starts with `$` unless the settings keep it, no
    /// null, and only the last of a repeated key.
    fn own<'m, 'a>(
        &self,
        members: &'m [(Text<'a>, Raw<'a>)],
    ) -> impl Iterator<Item = (Text<'a>, Raw<'a>)> + use<'_, 'm, 'a> {
        let repeats = may_repeat(members).then(|| {
            // Each key is unescaped once, from the last to the first. The set grows only with keys that differ, which
            // may be few.
            let mut seen = HashSet::new();
            members.iter().rev().map(|(key, _)| !seen.insert(key.unescaped())).collect::<Vec<_>>()
        });
        let is_repeated = move |index| repeats.as_ref().is_some_and(|repeats| repeats[members.len() - 1 - index]);
        let is_kept = |key: Text<'_>| self.keep_properties.iter().any(|pattern| pattern.matches(&key.unescaped()));
        let own = members.iter().enumerate().filter(move |(index, (key, value))| {
            value.non_null().is_some() && (!key.is_internal() || is_kept(*key)) && !is_repeated(*index)
        });
        own.map(|(_, member)| *member)
    }
}

/// True if PostHog keeps no profile of the person, because nobody has identified them.
fn is_anonymous(properties: &posthog::Properties<'_>) -> bool {
    let profile = [properties.process_person_profile, properties.is_identified];
    profile.into_iter().flatten().any(|is_known| is_known.as_str() == "false")
}

/// True if the `distinct_id` is one that SDKs make up from a group's type and key, since they must send one.
fn is_group_itself(event: &Event<'_>) -> bool {
    let properties = &event.properties;
    let id = event.distinct_id.or(properties.distinct_id).map(Raw::to_plain);
    let (group_type, group_key) = (properties.group_type.map(Raw::to_plain), properties.group_key.map(Raw::to_plain));
    let parts = id.zip(group_type).zip(group_key);
    parts.is_some_and(|((id, group_type), group_key)| *id == *format!("${group_type}_{group_key}"))
}

/// Returns the first candidate that JavaScript takes for true, as the app's `get(a | b)` did.
fn first<const N: usize>(candidates: [Option<Raw<'_>>; N]) -> Option<Raw<'_>> {
    candidates.into_iter().flatten().find_map(Raw::truthy)
}

/// Returns `URL.search` of a WHATWG URL, or `None` if the value is not a string or does not parse.
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

/// Does the same for the URLs that most events have, which the standard leaves as they are, in a twentieth of the time.
/// Returns `None` if there is anything in the URL that the standard might change or refuse.
fn plain_search(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    let host_len = rest.bytes().position(|byte| !matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))?;
    let (host, rest) = rest.split_at(host_len);
    // The last label of a name begins with a letter, unlike that of an address. A name in Punycode has to be checked.
    let last_label = host.rsplit('.').next().unwrap_or_default();
    if !last_label.starts_with(|first: char| first.is_ascii_lowercase())
        || host.as_bytes().windows(4).any(|part| part == b"xn--")
    {
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

fn write<'a>(object: &mut Object<'_>, members: impl Iterator<Item = (Text<'a>, Raw<'a>)>) {
    members.for_each(|(key, value)| object.raw(key.as_written(), Some(value)));
}

/// True if two of the keys may be the same, and always if they are. The work for each key does not grow with its
/// length.
fn may_repeat(members: &[(Text<'_>, Raw<'_>)]) -> bool {
    let mut seen = [0_u64; 16];
    members.iter().any(|(key, _)| {
        let sketch = sketch(key.as_written().as_bytes());
        let (word, bit) = (&mut seen[usize::from(sketch / 64)], 1 << (sketch % 64));
        let is_seen = *word & bit != 0;
        *word |= bit;
        is_seen || key.is_escaped()
    })
}

/// Returns a number below 1024 that is the same for equal keys, and seldom the same for others.
fn sketch(key: &[u8]) -> u16 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let (start, end) = match (key.first_chunk(), key.last_chunk()) {
        (Some(start), Some(end)) => (u64::from_le_bytes(*start), u64::from_le_bytes(*end)),
        _ => (key.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)), 0),
    };
    let mixed = (start.wrapping_mul(ODD) ^ end ^ (key.len() as u64) << 56).wrapping_mul(ODD);
    (mixed >> 54) as u16
}

impl NamePattern {
    /// True if this pattern matches every name that `other` matches.
    pub fn covers(&self, other: &Self) -> bool {
        match other {
            Self::Exact(name) => self.matches(name.as_bytes()),
            Self::Prefix(prefix) => matches!(self, Self::Prefix(shorter) if prefix.starts_with(shorter)),
        }
    }

    /// True if every name that the pattern matches starts with `$`.
    pub fn is_internal(&self) -> bool {
        let (Self::Exact(start) | Self::Prefix(start)) = self;
        start.starts_with('$')
    }

    fn matches(&self, name: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => name == exact.as_bytes(),
            Self::Prefix(prefix) => name.starts_with(prefix.as_bytes()),
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name:?}"),
            Self::Prefix(prefix) => write!(f, "\"{}*\"", prefix.escape_debug()),
        }
    }
}

impl FromStr for NamePattern {
    type Err = ();

    /// Parses a pattern, in which a `*` may stand only at the end, after something else.
    fn from_str(pattern: &str) -> Result<Self, ()> {
        let (start, is_prefix) = pattern.strip_suffix('*').map_or((pattern, false), |prefix| (prefix, true));
        match start {
            _ if start.is_empty() || start.contains('*') => Err(()),
            prefix if is_prefix => Ok(Self::Prefix(prefix.to_owned())),
            name => Ok(Self::Exact(name.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests;

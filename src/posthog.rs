//! The events that PostHog and its SDKs send: bodies of four shapes, whose elements are decoded into [`Event`]s.
//!
//! That takes one walk over the bytes if the batch is the last member of its body. Otherwise a walk before that looks
//! for the `sent_at` of the batch, which may stand behind it. A body that only looks as if it ended with its batch is
//! walked over again.
//!
//! Decoding is lenient where PostHog is (any field may be absent or of another type) and keeps every value as it was
//! written. An element that is no event is [`Invalid`], which does not affect its neighbours.

use std::{borrow::Cow, mem};

pub use self::{
    api_key::ApiKeyWalk,
    event_id::{EventId, MAX_UUID_BYTES},
    time::{Time, is_rfc3339},
};
use crate::json::{ObjectText, Raw, Scanner, SyntaxError, Text};

mod api_key;
mod event_id;
mod time;

/// The most elements in one body.
pub const MAX_ELEMENTS: usize = 10_000;

/// The most bytes of one element.
pub const MAX_ELEMENT_BYTES: usize = 4 << 20;

/// The bytes that a message may have beyond twice those of its event.
const MESSAGE_EXTRA: usize = 4 << 10;

/// The most properties that an element of [`MAX_ELEMENT_BYTES`] has room for, each at least `"":0,`.
const MAX_PROPERTIES: usize = MAX_ELEMENT_BYTES / 5;

/// A whole body: valid JSON, with a `T` made from each of its elements.
#[derive(Debug)]
pub struct Body<'a, T> {
    /// The values made from the elements, in their order.
    pub elements: Vec<T>,
    /// When the batch was sent, if the elements are those of a batch.
    pub sent_at: Option<Raw<'a>>,
}

/// One element of a body: a webhook destination's body, a bare event, or neither.
#[derive(Debug)]
pub struct Element<'a> {
    /// The element as it was received.
    pub raw: Raw<'a>,
    /// The event in it, or the reason why it is none.
    pub event: Result<Event<'a>, Invalid>,
}

/// The reason why a body as a whole cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The body is not JSON.
    #[error("the body is not JSON: {0}")]
    NotJson(#[from] SyntaxError),
    /// The body is a string, a number, a boolean or `null`.
    #[error("the body must be a JSON object or array")]
    NoContainer,
    /// The body has more than [`MAX_ELEMENTS`].
    #[error("the body has more than {MAX_ELEMENTS} events")]
    TooManyElements,
}

/// The reason why an element is not an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The element is over [`MAX_ELEMENT_BYTES`].
    #[error("the event is larger than {} MiB", MAX_ELEMENT_BYTES >> 20)]
    TooLarge,
    /// The message would be larger than [`Event::max_message`].
    #[error("the event's message to Variance would be larger than twice the event and {} KiB", MESSAGE_EXTRA >> 10)]
    MessageTooLarge,
    /// The element is not a JSON object.
    #[error("an event must be a JSON object")]
    NoObject,
    /// The element has no `event`.
    #[error("the event has no name: `event` is missing")]
    NoName,
    /// The element's `event` is not a string, or is empty.
    #[error("the event has no name: `event` must be a string that is not empty")]
    UnusableName,
    /// The element's `event` is the text of a template that was not filled in.
    #[error(
        "the event's name is a template that was not filled in: in PostHog, set the destination's field \"JSON Body\" \
         back to its default"
    )]
    UnfilledName,
    /// The event is an object, but as JSON text in a string.
    #[error(
        "the event is JSON text in a string, but must be an object: in PostHog, set the destination's field \
         \"JSON Body\" back to its default"
    )]
    EventIsText,
    /// The element has a `batch` that is not an array, or stands where no batch can be.
    #[error("`batch` must be an array of events in the outermost object of the body")]
    BatchIsNoArray,
    /// The element is PostHog's legacy action webhook, whose text is for people.
    #[error(
        "this is the text of a Slack-style action webhook, which carries no event: in PostHog, create a destination \
         of the type \"HTTP Webhook\" instead and leave its \"JSON Body\" at the default"
    )]
    ActionWebhook,
}

impl<'a, T> Body<'a, T> {
    /// Walks over `text` and makes something of each element. The text must be JSON from its first byte to its last,
    /// but for a byte order mark.
    ///
    /// # Errors
    /// When the body cannot be taken: see [`BodyError`].
    pub fn parse(text: &'a str, mut make: impl FnMut(Element<'_>) -> T) -> Result<Self, BodyError> {
        Self::walk(text, |element| element.complete(&mut make))
    }

    /// Does the same with elements whose properties may still be JSON text in a string.
    fn walk(text: &'a str, mut make: impl FnMut(Element<'a>) -> T) -> Result<Self, BodyError> {
        let mut scanner = scanner_of(text);
        let mut elements = Vec::new();
        let mut sent_at = None;
        let mut walk = |scanner: &mut Scanner<'a>, elements: &mut Vec<T>, sent_at| {
            elements.clear();
            scanner.array(|scanner| {
                if elements.len() == MAX_ELEMENTS {
                    return Err(BodyError::TooManyElements);
                }
                elements.push(make(Element::scan(scanner, sent_at)?));
                Ok(())
            })
        };
        match scanner.next_byte() {
            Some(b'[') => walk(&mut scanner, &mut elements, None)?,
            Some(b'{') => {
                // The time of sending is needed for each event of a batch, so it is read first, once, unless the batch comes
                // last in the body.
                let mut is_read = is_batch_last(text);
                let mut batch = |scanner: &mut Scanner<'a>, sent_before: Option<Raw<'a>>| {
                    if !mem::replace(&mut is_read, true) {
                        sent_at = sent_at_of(text)?;
                    }
                    sent_at = sent_at.or(sent_before);
                    walk(scanner, &mut elements, sent_at)
                };
                let outer = Fields::scan(&mut scanner, Place::Body(&mut batch))?;
                match outer.batch.filter(|batch| batch.is_array()) {
                    Some(batch) => {
                        // The guess was wrong: the time follows the batch, or the body has both twice.
                        if outer.event.sent_at != sent_at {
                            sent_at = outer.event.sent_at;
                            walk(&mut Scanner::new(batch.as_str()), &mut elements, sent_at)?;
                        }
                    }
                    None => {
                        sent_at = None;
                        elements.clear();
                        elements.push(make(outer.element(None)));
                    }
                }
            }
            _ => {
                scanner.value()?;
                scanner.end()?;
                return Err(BodyError::NoContainer);
            }
        }
        scanner.end()?;
        Ok(Self { elements, sent_at })
    }
}

impl<'a> Body<'a, Raw<'a>> {
    /// Cuts a body into its elements, for callers that decode each by itself.
    ///
    /// # Errors
    /// Those of [`Body::parse`].
    pub fn split(text: &'a str) -> Result<Self, BodyError> {
        Self::walk(text, |element| element.raw)
    }
}

/// Creates a scanner that starts after the byte order mark that a body may have.
fn scanner_of(body: &str) -> Scanner<'_> {
    Scanner::new(body.strip_prefix('\u{feff}').unwrap_or(body))
}

/// Reads the `sent_at` of a body that is an object, and makes nothing of its other members.
fn sent_at_of(body: &str) -> Result<Option<Raw<'_>>, SyntaxError> {
    let mut scanner = scanner_of(body);
    let mut sent_at = None;
    scanner.object(|scanner, key| {
        let value = scanner.value()?;
        if *key.unescaped() == *b"sent_at" {
            sent_at = value.non_null();
        }
        Ok::<_, SyntaxError>(())
    })?;
    scanner.end()?;
    Ok(sent_at)
}

/// True if a body ends as one does whose batch is its last member.
fn is_batch_last(body: &str) -> bool {
    let members = body.trim_ascii_end().strip_suffix('}');
    members.is_some_and(|members| members.trim_ascii_end().ends_with(']'))
}

impl<'a> Element<'a> {
    fn scan(scanner: &mut Scanner<'a>, sent_at: Option<Raw<'a>>) -> Result<Self, BodyError> {
        if scanner.next_byte() != Some(b'{') {
            let raw = scanner.value()?;
            let is_event = raw.object_text().is_some();
            return Ok(Self { raw, event: Err(if is_event { Invalid::EventIsText } else { Invalid::NoObject }) });
        }
        Ok(Fields::scan(scanner, Place::Element)?.element(sent_at))
    }

    /// Makes something of the element. Properties that are JSON text in a string are decoded first.
    fn complete<T>(self, make: impl FnOnce(Element<'_>) -> T) -> T {
        let received = self.event.as_ref().ok().and_then(|event| event.properties.received);
        let Some(text) = received.filter(|received| !received.is_object()).and_then(Raw::object_text) else {
            return make(self);
        };
        let mut element: Element<'_> = self;
        if let Ok(event) = &mut element.event {
            event.properties = Properties::scan(&mut Scanner::new(text.as_str())).expect("it has been checked");
        }
        make(element)
    }
}

/// One PostHog event. A field that is absent or `null` is `None`.
#[derive(Debug, Default)]
pub struct Event<'a> {
    /// The event object as it was received.
    pub raw: Raw<'a>,
    /// The bytes of the element in which it came, the person included.
    pub size: usize,
    /// The event's name as JSON: a string that is not empty.
    pub name: Raw<'a>,
    /// The event's identity.
    pub uuid: EventId<'a>,
    /// The id of its person.
    pub distinct_id: Option<Raw<'a>>,
    /// The id of a known user, which some senders add to `distinct_id`.
    pub user_id: Option<Raw<'a>>,
    /// The time at which it happened, if the event itself has one.
    pub timestamp: Option<Raw<'a>>,
    /// The time at which it was sent: the event's own, or else that of the element or the batch.
    pub sent_at: Option<Raw<'a>>,
    /// The address from which it came.
    pub ip: Option<Raw<'a>>,
    /// Properties of the person, in the place where SDKs put them.
    pub set: Option<Raw<'a>>,
    /// The event's properties.
    pub properties: Properties<'a>,
    person: Option<Raw<'a>>,
    person_properties: Option<Raw<'a>>,
    groups: Option<Raw<'a>>,
}

/// An event's `properties`: by name those that mean something here, and all that PostHog did not make up.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "each is the property of the same name, with `$` or without; none is null")]
pub struct Properties<'a> {
    /// All properties: an object, unless the event has none or they are of another type.
    pub received: Option<Raw<'a>>,
    pub alias: Option<Raw<'a>>,
    pub anon_distinct_id: Option<Raw<'a>>,
    pub category: Option<Raw<'a>>,
    pub current_url: Option<Raw<'a>>,
    pub device_id: Option<Raw<'a>>,
    pub distinct_id: Option<Raw<'a>>,
    pub group_key: Option<Raw<'a>>,
    pub group_set: Option<Raw<'a>>,
    pub group_type: Option<Raw<'a>>,
    pub groups: Option<Raw<'a>>,
    pub host: Option<Raw<'a>>,
    pub ip: Option<Raw<'a>>,
    pub is_identified: Option<Raw<'a>>,
    pub is_server: Option<Raw<'a>>,
    pub name: Option<Raw<'a>>,
    pub os: Option<Raw<'a>>,
    pub pathname: Option<Raw<'a>>,
    pub posthog_version: Option<Raw<'a>>,
    pub process_person_profile: Option<Raw<'a>>,
    pub referrer: Option<Raw<'a>>,
    pub screen_height: Option<Raw<'a>>,
    pub screen_width: Option<Raw<'a>>,
    pub sent_at: Option<Raw<'a>>,
    pub set: Option<Raw<'a>>,
    /// The members whose key does not start with `$`, in their order, repeated keys and nulls included.
    pub own: Vec<(Text<'a>, Raw<'a>)>,
}

impl<'a> Event<'a> {
    /// Decodes an element that stands by itself, `{"event": {…}, "person": {…}}` or `{"event": "name", …}`, and makes
    /// something of it. If it is one of a batch, `sent_at` is when that was sent.
    pub fn decode<T>(
        element: Raw<'_>,
        sent_at: Option<Raw<'_>>,
        make: impl FnOnce(Result<Event<'_>, Invalid>) -> T,
    ) -> T {
        let element = Element::scan(&mut Scanner::new(element.as_str()), sent_at);
        element.expect("a raw value has been checked").complete(|element| make(element.event))
    }

    /// Returns the most bytes that the event's message may have.
    pub fn max_message(&self) -> usize {
        2 * self.size + MESSAGE_EXTRA
    }

    /// Returns the time at which the event happened, as far as its sender says: its own time, or that of its sending.
    pub fn time(&self) -> Option<Raw<'a>> {
        self.timestamp.or(self.sent_at)
    }

    /// Returns the name with its escapes undone, in bytes: see [`Text::unescaped`].
    pub fn name(&self) -> Cow<'a, [u8]> {
        self.name.as_text().map(Text::unescaped).unwrap_or_default()
    }

    /// Returns the parts that make two events the same: uuid, name and `distinct_id`, which some senders put among the
    /// properties. An id that is not a UUID may be shared by many events, so the event's own bytes count instead.
    pub fn key(&self) -> [Cow<'_, [u8]>; 3] {
        if !self.uuid.is_uuid() {
            return [self.raw.as_str().as_bytes().into(), Cow::default(), Cow::default()];
        }
        let distinct_id = self.distinct_id.or(self.properties.distinct_id).map_or("", Raw::as_str);
        [self.uuid.as_str().as_bytes().into(), self.name(), distinct_id.as_bytes().into()]
    }

    /// Returns the properties of the event's person, if the body has them: the webhook destination puts them beside the
    /// event, older senders inside it, exported files under `person_properties`.
    pub fn person_properties(&self) -> Option<ObjectText<'a>> {
        let of_person = self.person.and_then(|person| person.member("properties"));
        of_person.or(self.person_properties).and_then(Raw::object_text)
    }

    /// Returns the properties of the event's group, if the webhook destination's body was extended by `groups`.
    pub fn group_properties(&self) -> Option<ObjectText<'a>> {
        let group_type = self.properties.group_type?.as_text()?.to_scalar_string();
        self.groups?.member(&group_type)?.member("properties")?.object_text()
    }
}

/// A function that walks over an array of elements, given the `sent_at` that stands before the array.
type WalkBatch<'a, 'w> = dyn FnMut(&mut Scanner<'a>, Option<Raw<'a>>) -> Result<(), BodyError> + 'w;

/// The place of an object, which decides what can be in it.
enum Place<'a, 'w> {
    /// The whole body, in which an array called `batch` holds elements.
    Body(&'w mut WalkBatch<'a, 'w>),
    /// One of several elements.
    Element,
    /// The `event` of an element.
    Event,
}

/// The members of an object that mean something. While they are read, the object may be an event, hold one, or be the
/// body.
#[derive(Default)]
struct Fields<'a> {
    /// The object as an event, without what depends on the other fields.
    event: Event<'a>,
    name: Option<Raw<'a>>,
    uuid: Option<Raw<'a>>,
    id: Option<Raw<'a>>,
    /// The members of `event`, if that is an object.
    inner: Option<Box<Self>>,
    text: Option<Raw<'a>>,
    batch: Option<Raw<'a>>,
}

impl<'a> Fields<'a> {
    /// Walks over an object once.
    fn scan(scanner: &mut Scanner<'a>, mut place: Place<'a, '_>) -> Result<Self, BodyError> {
        let mut fields = Self::default();
        let scanned = scanner.spanned(|scanner| scanner.object(|scanner, key| fields.member(scanner, key, &mut place)));
        (fields.event.raw, ()) = scanned?;
        Ok(fields)
    }

    /// Walks over the value of the member called `key`.
    #[inline]
    fn member(&mut self, scanner: &mut Scanner<'a>, key: Text<'a>, place: &mut Place<'a, '_>) -> Result<(), BodyError> {
        let event = &mut self.event;
        let field = match &*key.unescaped() {
            b"event" => {
                let is_element = scanner.next_byte() == Some(b'{') && !matches!(place, Place::Event);
                (self.name, self.inner) = match is_element {
                    true => (None, Some(Box::new(Self::scan(scanner, Place::Event)?))),
                    false => (Some(scanner.value()?), None),
                };
                return Ok(());
            }
            b"properties" => {
                event.properties = match scanner.next_byte() {
                    Some(b'{') => Properties::scan(scanner)?,
                    _ => Properties { received: scanner.value()?.non_null(), ..Properties::default() },
                };
                return Ok(());
            }
            b"batch" => {
                let batch = match place {
                    Place::Body(walk) if scanner.next_byte() == Some(b'[') => {
                        scanner.spanned(|scanner| walk(scanner, event.sent_at))?.0
                    }
                    _ => scanner.value()?,
                };
                self.batch = batch.non_null();
                return Ok(());
            }
            b"uuid" => &mut self.uuid,
            b"id" => &mut self.id,
            b"distinct_id" => &mut event.distinct_id,
            b"$user_id" => &mut event.user_id,
            b"timestamp" => &mut event.timestamp,
            b"sent_at" => &mut event.sent_at,
            b"ip" => &mut event.ip,
            b"$set" => &mut event.set,
            b"person" => &mut event.person,
            b"person_properties" => &mut event.person_properties,
            b"groups" => &mut event.groups,
            b"text" => &mut self.text,
            _ => return scanner.value().map(drop).map_err(BodyError::from),
        };
        *field = scanner.value()?.non_null();
        Ok(())
    }

    fn element(mut self, sent_at: Option<Raw<'a>>) -> Element<'a> {
        let raw = self.event.raw;
        let event = match self.inner.take() {
            _ if raw.as_str().len() > MAX_ELEMENT_BYTES => Err(Invalid::TooLarge),
            None => self.event(raw, sent_at),
            Some(mut inner) => {
                inner.event.person = self.event.person.or(inner.event.person);
                inner.event.groups = self.event.groups.or(inner.event.groups);
                inner.event(raw, self.event.sent_at.or(sent_at))
            }
        };
        Element { raw, event }
    }

    fn event(self, element: Raw<'a>, sent_at: Option<Raw<'a>>) -> Result<Event<'a>, Invalid> {
        let mut event = self.event;
        event.size = element.as_str().len();
        event.name = match self.name {
            Some(name) => match name.as_text() {
                Some(text) if !text.as_written().is_empty() => match is_template(text) {
                    true if name.object_text().is_some() => return Err(Invalid::EventIsText),
                    true => return Err(Invalid::UnfilledName),
                    false => name,
                },
                _ => return Err(Invalid::UnusableName),
            },
            None if self.batch.is_some() => return Err(Invalid::BatchIsNoArray),
            None if self.text.is_some() => return Err(Invalid::ActionWebhook),
            None => return Err(Invalid::NoName),
        };
        let own_uuid = self.uuid.and_then(EventId::of_uuid).or_else(|| self.id.and_then(EventId::of_id));
        event.uuid = own_uuid.unwrap_or_else(|| EventId::made_for(event.raw, event.timestamp));
        event.sent_at = event.sent_at.or(sent_at);
        Ok(event)
    }
}

/// True if a name is the text of a template, or what JavaScript makes of an object where it needs text.
fn is_template(name: Text<'_>) -> bool {
    if name.as_written().starts_with(|first: char| first.is_ascii_alphanumeric() || first == '$') {
        return false;
    }
    let name = name.to_scalar_string();
    let name = name.trim();
    name == "[object Object]" || name.starts_with('{') && name.ends_with('}')
}

impl<'a> Properties<'a> {
    fn scan(scanner: &mut Scanner<'a>) -> Result<Self, SyntaxError> {
        let mut of = Self { own: Vec::with_capacity(16), ..Self::default() };
        let scanned = scanner.spanned(|scanner| {
            scanner.object(|scanner, key| {
                let value = scanner.value()?;
                let field = match &*key.unescaped() {
                    [b'$', internal @ ..] => match internal {
                        b"anon_distinct_id" => &mut of.anon_distinct_id,
                        b"current_url" => &mut of.current_url,
                        b"device_id" => &mut of.device_id,
                        b"group_key" => &mut of.group_key,
                        b"group_set" => &mut of.group_set,
                        b"group_type" => &mut of.group_type,
                        b"groups" => &mut of.groups,
                        b"host" => &mut of.host,
                        b"ip" => &mut of.ip,
                        b"is_identified" => &mut of.is_identified,
                        b"is_server" => &mut of.is_server,
                        b"os" => &mut of.os,
                        b"pathname" => &mut of.pathname,
                        b"process_person_profile" => &mut of.process_person_profile,
                        b"referrer" => &mut of.referrer,
                        b"screen_height" => &mut of.screen_height,
                        b"screen_width" => &mut of.screen_width,
                        b"sent_at" => &mut of.sent_at,
                        b"set" => &mut of.set,
                        _ => return Ok(()),
                    },
                    name => {
                        // The size of the element is known only at its end; until then, properties beyond the most that
                        // can fit take no memory.
                        if of.own.len() < MAX_PROPERTIES {
                            of.own.push((key, value));
                        }
                        match name {
                            b"alias" => &mut of.alias,
                            b"category" => &mut of.category,
                            b"distinct_id" => &mut of.distinct_id,
                            b"name" => &mut of.name,
                            b"posthog_version" => &mut of.posthog_version,
                            _ => return Ok(()),
                        }
                    }
                };
                *field = value.non_null();
                Ok::<_, SyntaxError>(())
            })
        });
        of.received = Some(scanned?.0);
        Ok(of)
    }
}

#[cfg(test)]
mod tests;

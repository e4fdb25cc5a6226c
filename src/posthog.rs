//! What PostHog and its SDKs send: bodies of four shapes, whose elements are decoded into [`Event`]s in one walk.
//!
//! Decoding is lenient where PostHog is (any field may be absent or of another type) and keeps every value as it was
//! written. Only an element that names no event is [`Invalid`], and it costs its neighbours nothing.

use std::borrow::Cow;

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

/// What a message may have beyond twice the bytes of its event.
const MESSAGE_EXTRA: usize = 4 << 10;

/// The most properties that an element of [`MAX_ELEMENT_BYTES`] has room for, each at least `"":0,`.
const MAX_PROPERTIES: usize = MAX_ELEMENT_BYTES / 5;

/// A whole body: valid JSON, of whose elements a `T` each has been made.
#[derive(Debug)]
pub struct Body<'a, T> {
    /// What was made of the elements, in their order.
    pub elements: Vec<T>,
    /// What surrounds them.
    pub envelope: Envelope<'a>,
}

/// One element of a body: a webhook destination's body, a bare event, or neither.
#[derive(Debug)]
pub struct Element<'a> {
    /// The element as it was received.
    pub raw: Raw<'a>,
    /// What it means.
    pub event: Result<Event<'a>, Invalid>,
}

/// What a `{"batch": […]}` says beside its events.
#[derive(Clone, Copy, Debug, Default)]
pub struct Envelope<'a> {
    /// The sender's credential: the only one that PostHog's batch export and SDKs can send.
    pub api_key: Option<Raw<'a>>,
    /// When the batch was sent.
    pub sent_at: Option<Raw<'a>>,
}

/// Why a body as a whole cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// It is not JSON.
    #[error("the body is not JSON: {0}")]
    NotJson(#[from] SyntaxError),
    /// It is a string, a number, a boolean or `null`.
    #[error("the body must be a JSON object or array")]
    NoContainer,
    /// It has more than [`MAX_ELEMENTS`].
    #[error("the body has more than {MAX_ELEMENTS} events")]
    TooManyElements,
}

/// Why an element is no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// It is over [`MAX_ELEMENT_BYTES`].
    #[error("the event is larger than {} MiB", MAX_ELEMENT_BYTES >> 20)]
    TooLarge,
    /// Its message would be over what an event of its size may become.
    #[error("the event's message to Variance would be larger than twice the event and {} KiB", MESSAGE_EXTRA >> 10)]
    MessageTooLarge,
    /// It is not a JSON object.
    #[error("an event must be a JSON object")]
    NoObject,
    /// It has no `event`.
    #[error("the event has no name: `event` is missing")]
    NoName,
    /// Its `event` is something else than a string with something in it.
    #[error("the event has no name: `event` must be a string that is not empty")]
    UnusableName,
    /// Its `event` is a template's own text.
    #[error(
        "the event's name is a template that was not filled in: in PostHog, set the destination's field \"JSON Body\" \
         back to its default"
    )]
    UnfilledName,
    /// It is an object, but as JSON text in a string.
    #[error(
        "the event is JSON text in a string, and must be an object: in PostHog, set the destination's field \
         \"JSON Body\" back to its default"
    )]
    EventIsText,
    /// It has a `batch` that is no array, or not where a batch can be.
    #[error("`batch` must be an array of events, and stand in the outermost object of the body")]
    BatchIsNoArray,
    /// It is PostHog's legacy action webhook, whose text is for people.
    #[error(
        "this is the text of a Slack-style action webhook, which carries no event: in PostHog, create a destination \
         of the kind \"HTTP Webhook\" instead and leave its body at the default"
    )]
    ActionWebhook,
}

impl<'a> Envelope<'a> {
    /// Reads what surrounds the events of a body, and makes nothing of them. A body without a batch has an empty one.
    fn read(text: &'a str) -> Result<Self, SyntaxError> {
        let mut scanner = scanner_of(text);
        let (mut envelope, mut batch) = (Self::default(), None);
        if scanner.next_byte() == Some(b'{') {
            scanner.object(|scanner, key| {
                let value = scanner.value()?.non_null();
                match &*key.unescaped() {
                    b"api_key" => envelope.api_key = value,
                    b"sent_at" => envelope.sent_at = value,
                    b"batch" => batch = value,
                    _ => {}
                }
                Ok::<_, SyntaxError>(())
            })?;
        } else {
            scanner.value()?;
        }
        scanner.end()?;
        Ok(if batch.is_some_and(Raw::is_array) { envelope } else { Self::default() })
    }
}

impl<'a, T> Body<'a, T> {
    /// Walks over `text`, which must be JSON from its first byte to its last but for a byte order mark, and makes something
    /// of each element.
    ///
    /// # Errors
    /// When no element can be told apart: see [`BodyError`].
    pub fn parse(text: &'a str, mut make: impl FnMut(Element<'_>) -> T) -> Result<Self, BodyError> {
        Self::walk(text, |element| element.complete(&mut make))
    }

    /// The same with elements whose properties may still be JSON text in a string.
    fn walk(text: &'a str, mut make: impl FnMut(Element<'a>) -> T) -> Result<Self, BodyError> {
        let mut scanner = scanner_of(text);
        let mut elements = Vec::new();
        let mut envelope = Envelope::default();
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
                // The time of sending belongs to each event. It is looked for first, unless the batch ends the body.
                let mut sent_at = if is_batch_last(text) { None } else { Envelope::read(text)?.sent_at };
                let mut batch = |scanner: &mut Scanner<'a>, sent_before: Option<Raw<'a>>| {
                    sent_at = sent_at.or(sent_before);
                    walk(scanner, &mut elements, sent_at)
                };
                let outer = Fields::scan(&mut scanner, Place::Body(&mut batch))?;
                match outer.batch.filter(|batch| batch.is_array()) {
                    Some(batch) => {
                        envelope = Envelope { api_key: outer.api_key, sent_at: outer.event.sent_at };
                        // Only a body that ends with another array than its batch, and has it twice or its time last.
                        if envelope.sent_at != sent_at {
                            walk(&mut Scanner::new(batch.as_str()), &mut elements, envelope.sent_at)?;
                        }
                    }
                    None => {
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
        Ok(Self { elements, envelope })
    }
}

impl<'a> Body<'a, Raw<'a>> {
    /// Cuts a body into its elements, for those who decode each by itself.
    ///
    /// # Errors
    /// As [`Body::parse`].
    pub fn split(text: &'a str) -> Result<Self, BodyError> {
        Self::walk(text, |element| element.raw)
    }
}

/// Starts behind the byte order mark that a body may have.
fn scanner_of(body: &str) -> Scanner<'_> {
    Scanner::new(body.strip_prefix('\u{feff}').unwrap_or(body))
}

/// Whether a body ends as one whose batch is its last member.
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

    /// Makes something of it once its properties are an object, if they are JSON text that says so.
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

/// One PostHog event. A field that is absent or `null` is nothing.
#[derive(Debug, Default)]
pub struct Event<'a> {
    /// The event object as it was received.
    pub raw: Raw<'a>,
    /// The bytes of the element that it came in, the person included.
    pub size: usize,
    /// Its name as JSON: a string that is not empty.
    pub name: Raw<'a>,
    /// Its identity.
    pub uuid: EventId<'a>,
    /// Who it is about.
    pub distinct_id: Option<Raw<'a>>,
    /// The id of a known user, beside `distinct_id`.
    pub user_id: Option<Raw<'a>>,
    /// When it happened; only the event's own.
    pub timestamp: Option<Raw<'a>>,
    /// When it was sent: the event's own, or that of what it came in.
    pub sent_at: Option<Raw<'a>>,
    /// Where it came from.
    pub ip: Option<Raw<'a>>,
    /// Properties of the person, where SDKs put them.
    pub set: Option<Raw<'a>>,
    /// The event's properties.
    pub properties: Properties<'a>,
    person: Option<Raw<'a>>,
    person_properties: Option<Raw<'a>>,
    groups: Option<Raw<'a>>,
}

/// An event's `properties`: those with a meaning by name, and all that PostHog did not make up.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "each is the property of the same name, with `$` or without; none is null")]
pub struct Properties<'a> {
    /// All of them, an object unless the event has none or they are something else.
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
    /// something of it.
    pub fn decode<T>(
        element: Raw<'_>,
        envelope: &Envelope<'_>,
        make: impl FnOnce(Result<Event<'_>, Invalid>) -> T,
    ) -> T {
        let element = Element::scan(&mut Scanner::new(element.as_str()), envelope.sent_at);
        element.expect("a raw value has been checked").complete(|element| make(element.event))
    }

    /// The most bytes of a message made of it.
    pub fn max_message(&self) -> usize {
        2 * self.size + MESSAGE_EXTRA
    }

    /// When it happened, as far as its sender says: its own time, or that of its sending.
    pub fn time(&self) -> Option<Raw<'a>> {
        self.timestamp.or(self.sent_at)
    }

    /// Its name as it reads, in bytes: see [`Text::unescaped`].
    pub fn name(&self) -> Cow<'a, [u8]> {
        self.name.as_text().map(Text::unescaped).unwrap_or_default()
    }

    /// What makes it the same as another: its uuid, its name and its `distinct_id`, which some senders have among the
    /// properties. An id that is no UUID may be the same for many events: beside one, the event's own bytes count.
    pub fn key(&self) -> [Cow<'_, [u8]>; 3] {
        if !self.uuid.is_uuid() {
            return [self.raw.as_str().as_bytes().into(), Cow::default(), Cow::default()];
        }
        let distinct_id = self.distinct_id.or(self.properties.distinct_id).map_or("", Raw::as_str);
        [self.uuid.as_str().as_bytes().into(), self.name(), distinct_id.as_bytes().into()]
    }

    /// The properties of the person who did it, when the body carried them: the webhook destination beside the event,
    /// older senders inside it, exported files as `person_properties`.
    pub fn person_properties(&self) -> Option<ObjectText<'a>> {
        let of_person = self.person.and_then(|person| member(person, "properties"));
        of_person.or(self.person_properties).and_then(Raw::object_text)
    }

    /// The properties of the group that it is about, when a webhook destination's body was made to carry `groups`.
    pub fn group_properties(&self) -> Option<ObjectText<'a>> {
        let group_type = self.properties.group_type?.as_text()?.to_scalar_string();
        member(member(self.groups?, &group_type)?, "properties")?.object_text()
    }
}

/// The last member of that name, unless it is null.
pub fn member<'a>(object: Raw<'a>, name: &str) -> Option<Raw<'a>> {
    let members = object.members();
    let named = members.iter().rfind(|(key, _)| *key.unescaped() == *name.as_bytes());
    named.and_then(|(_, value)| value.non_null())
}

/// Walks over an array of elements; it is told the `sent_at` that stands before it.
type WalkBatch<'a, 'w> = dyn FnMut(&mut Scanner<'a>, Option<Raw<'a>>) -> Result<(), BodyError> + 'w;

/// Where an object stands: that says what can be in it.
enum Place<'a, 'w> {
    /// It is the whole body: an array called `batch` holds elements.
    Body(&'w mut WalkBatch<'a, 'w>),
    /// It is one of several elements.
    Element,
    /// It is the `event` of an element.
    Event,
}

/// The members of an object that mean something, before it is known whether the object is an event, holds one, or is the
/// body.
#[derive(Default)]
struct Fields<'a> {
    /// The event that the object is, but for what the other fields tell of it.
    event: Event<'a>,
    name: Option<Raw<'a>>,
    uuid: Option<Raw<'a>>,
    id: Option<Raw<'a>>,
    /// What `event` is, if that is an object.
    inner: Option<Box<Self>>,
    text: Option<Raw<'a>>,
    batch: Option<Raw<'a>>,
    api_key: Option<Raw<'a>>,
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
            b"api_key" => &mut self.api_key,
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

/// Whether a name is the text of a template, or what JavaScript makes of an object where it needs text.
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
                let name = key.unescaped();
                // How large the element is shows at its end; until then, what is over this takes no memory.
                if name.first() != Some(&b'$') && of.own.len() < MAX_PROPERTIES {
                    of.own.push((key, value));
                }
                let field = match &*name {
                    b"alias" => &mut of.alias,
                    b"category" => &mut of.category,
                    b"distinct_id" => &mut of.distinct_id,
                    b"name" => &mut of.name,
                    b"posthog_version" => &mut of.posthog_version,
                    b"$anon_distinct_id" => &mut of.anon_distinct_id,
                    b"$current_url" => &mut of.current_url,
                    b"$device_id" => &mut of.device_id,
                    b"$group_key" => &mut of.group_key,
                    b"$group_set" => &mut of.group_set,
                    b"$group_type" => &mut of.group_type,
                    b"$groups" => &mut of.groups,
                    b"$host" => &mut of.host,
                    b"$ip" => &mut of.ip,
                    b"$is_identified" => &mut of.is_identified,
                    b"$is_server" => &mut of.is_server,
                    b"$os" => &mut of.os,
                    b"$pathname" => &mut of.pathname,
                    b"$process_person_profile" => &mut of.process_person_profile,
                    b"$referrer" => &mut of.referrer,
                    b"$screen_height" => &mut of.screen_height,
                    b"$screen_width" => &mut of.screen_width,
                    b"$sent_at" => &mut of.sent_at,
                    b"$set" => &mut of.set,
                    _ => return Ok(()),
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

//! The calls that Variance takes, and the messages that carry them.

use std::{fmt, io, str::FromStr};

use bytes::Bytes;

use crate::{json::Raw, metrics::CallLabel};

/// A call that Variance understands, by PostHog's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Something that a user did: Variance's `track`.
    Capture,
    /// A page that a user saw.
    Page,
    /// The traits of a user.
    Identify,
    /// Two ids of one user.
    Alias,
    /// An account.
    Group,
}

impl Call {
    /// All calls, in the order of their documentation.
    pub const ALL: [Self; 5] = [Self::Capture, Self::Page, Self::Identify, Self::Alias, Self::Group];

    /// PostHog's name for the call, which is used in settings, metrics and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::Page => "page",
            Self::Identify => "identify",
            Self::Alias => "alias",
            Self::Group => "group",
        }
    }

    /// Variance's name for the call: the message's `type`.
    pub fn type_name(self) -> &'static str {
        match self {
            Self::Capture => "track",
            other => other.name(),
        }
    }
}

impl From<Call> for CallLabel {
    fn from(call: Call) -> Self {
        match call {
            Call::Capture => Self::Capture,
            Call::Page => Self::Page,
            Call::Identify => Self::Identify,
            Call::Alias => Self::Alias,
            Call::Group => Self::Group,
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Call {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|call| call.name() == name).ok_or(())
    }
}

/// One POST to Variance, ready to be sent as often as it takes.
///
/// The event's id and the body share one allocation, because there may be a great many of them in memory.
#[derive(Clone)]
pub struct Message {
    /// The call that the message makes.
    pub call: Call,
    bytes: Bytes,
    id_len: u8,
}

impl Message {
    /// Writes a message of at most `most` bytes, or returns `None` if it would take more. Its body is the JSON that the
    /// function `body` writes.
    ///
    /// `id` names the event in logs and replies, in at most 255 bytes. The memory of `scratch` is used on the way, so
    /// that the message takes exactly what it needs.
    pub fn write(
        most: usize,
        call: Call,
        id: &str,
        scratch: &mut Vec<u8>,
        body: impl FnOnce(&mut Buffer),
    ) -> Option<Self> {
        scratch.clear();
        scratch.extend_from_slice(id.as_bytes());
        let mut buffer = Buffer { bytes: std::mem::take(scratch), most, is_full: false };
        body(&mut buffer);
        let is_full = buffer.is_full || buffer.bytes.len() > most;
        *scratch = buffer.bytes;
        let id_len = u8::try_from(id.len()).expect("the id of an event is at most 200 bytes long");
        (!is_full).then(|| Self { call, bytes: Bytes::copy_from_slice(scratch), id_len })
    }

    /// The event's `uuid`.
    pub fn id(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.id_len)]).expect("it was copied from a string")
    }

    /// The body to post, sharing this message's memory.
    pub fn body(&self) -> Bytes {
        self.bytes.slice(usize::from(self.id_len)..)
    }

    /// The memory that the message takes.
    pub fn allocated(&self) -> usize {
        self.bytes.len()
    }
}

impl fmt::Debug for Message {
    /// Leaves the body out: it is personal data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message").field("call", &self.call).field("id", &self.id()).finish_non_exhaustive()
    }
}

/// A bounded buffer for a message. Once a piece did not fit, the message is void.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    most: usize,
    is_full: bool,
}

impl Buffer {
    /// Appends some bytes.
    #[inline]
    pub fn push(&mut self, bytes: &[u8]) {
        if bytes.len() <= self.bytes.capacity() - self.bytes.len() || self.may_grow_by(bytes.len()) {
            self.bytes.extend_from_slice(bytes);
        }
    }

    #[cold]
    fn may_grow_by(&mut self, more: usize) -> bool {
        self.is_full |= more > self.most.saturating_sub(self.bytes.len());
        !self.is_full
    }
}

impl io::Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A JSON object being written at the end of a buffer.
#[derive(Debug)]
pub struct Object<'b> {
    out: &'b mut Buffer,
    is_empty: bool,
}

impl<'b> Object<'b> {
    /// Writes an object with the members that `fill` adds, even if there are none.
    pub fn write(out: &'b mut Buffer, fill: impl FnOnce(&mut Object<'_>)) {
        out.push(b"{");
        fill(&mut Object { out, is_empty: true });
        out.push(b"}");
    }

    /// Adds a member whose value is JSON already. `key` is written between quotes as it is.
    pub fn json(&mut self, key: &str, value: &str) {
        self.key(key);
        self.out.push(value.as_bytes());
    }

    /// Adds a member whose value is a piece of the text that was received, if there is one.
    pub fn raw(&mut self, key: &str, value: Option<Raw<'_>>) {
        if let Some(value) = value {
            self.json(key, value.as_str());
        }
    }

    /// Adds a member whose value is a string.
    pub fn string(&mut self, key: &str, value: &str) {
        self.key(key);
        serde_json::to_writer(&mut *self.out, value).expect("a buffer takes what it is given, or leaves it out");
    }

    /// Adds a member whose value is an object with the members that `fill` adds, unless there are none.
    pub fn object(&mut self, key: &str, fill: impl FnOnce(&mut Object<'_>)) {
        let (start, was_empty) = (self.out.bytes.len(), self.is_empty);
        self.key(key);
        self.out.push(b"{");
        let mut object = Object { out: self.out, is_empty: true };
        fill(&mut object);
        if object.is_empty {
            self.out.bytes.truncate(start);
            self.is_empty = was_empty;
        } else {
            self.out.push(b"}");
        }
    }

    fn key(&mut self, key: &str) {
        self.out.push(if std::mem::take(&mut self.is_empty) { b"\"" } else { b",\"" });
        self.out.push(key.as_bytes());
        self.out.push(b"\":");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_without_members_is_left_out_but_for_the_outermost() {
        let written = |fill: fn(&mut Object<'_>)| {
            let message = Message::write(100, Call::Page, "", &mut Vec::new(), |out| Object::write(out, fill));
            String::from_utf8(message.unwrap().body().to_vec()).unwrap()
        };
        let some = written(|object| {
            object.object("empty", |_| {});
            object.string("a", "\"\n");
            object.object("b", |b| {
                b.object("empty", |empty| empty.object("too", |_| {}));
                b.json("c", "1");
            });
            object.object("empty", |_| {});
            object.json("d", "null");
        });
        assert_eq!(some, r#"{"a":"\"\n","b":{"c":1},"d":null}"#);
        assert_eq!(written(|_| {}), "{}");
    }

    #[test]
    fn a_message_keeps_id_and_body_apart_and_shows_no_body() {
        let mut scratch = b"rubbish".to_vec();
        let message = Message::write(12, Call::Capture, "an-id", &mut scratch, |out| out.push(b"{\"a\":1}")).unwrap();
        assert_eq!((message.id(), &*message.body()), ("an-id", &b"{\"a\":1}"[..]));
        assert_eq!(format!("{message:?}"), r#"Message { call: Capture, id: "an-id", .. }"#);
    }

    #[test]
    fn a_message_that_does_not_fit_takes_no_memory_beyond_its_bound() {
        let body = "{\"a\":{\"b\":\"\\n\"}}";
        for most in 0..30 {
            let mut scratch = Vec::new();
            let message = Message::write(most, Call::Page, "an-id", &mut scratch, |out| {
                Object::write(out, |object| object.object("a", |a| a.string("b", "\n")));
            });
            assert_eq!(message.is_some(), most >= "an-id".len() + body.len(), "{most}");
            // A vector may take twice what it was asked for.
            assert!(scratch.capacity() <= 2 * most.max(8), "{most}");
            assert!(message.is_none_or(|message| message.body() == body));
        }
    }
}

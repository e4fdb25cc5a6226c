//! The id of an event, from its sender or else made here.

use std::{borrow::Cow, fmt};

use uuid::Uuid;

use crate::json::Raw;

/// The most bytes of an event's `uuid`; a longer one counts as missing.
pub const MAX_UUID_BYTES: usize = 200;

/// The namespace of the ids that are made from an event's bytes.
const NAMESPACE: Uuid = Uuid::from_u128(0x6d0e_4c0a_9f5b_4b52_8f0c_76a1_0c1e_54c7);

/// The id of an event, as it was written and with its escapes undone.
#[derive(Clone, Debug, Default)]
pub struct EventId<'a> {
    json: Cow<'a, str>,
    plain: Cow<'a, str>,
    is_random: bool,
}

impl<'a> EventId<'a> {
    /// Takes the `uuid`, which any sender may set: every string counts, since it need only be the same on a re-send.
    pub(super) fn of_uuid(raw: Raw<'a>) -> Option<Self> {
        let plain = raw.as_text()?.to_scalar_string();
        let fits = (1..=MAX_UUID_BYTES).contains(&plain.len());
        fits.then_some(Self { json: Cow::Borrowed(raw.as_str()), plain, is_random: false })
    }

    /// Takes the `id` of older senders, if it is a UUID: others use the name for something else.
    pub(super) fn of_id(raw: Raw<'a>) -> Option<Self> {
        Self::of_uuid(raw).filter(Self::is_uuid)
    }

    /// Makes an id for an event that has none. If the event has its own timestamp, its bytes are unlike any other's,
    /// and the id is made from them, so that a re-send is recognised. Otherwise it is random, because a duplicate is
    /// better than a loss.
    pub(super) fn made_for(event: Raw<'a>, timestamp: Option<Raw<'a>>) -> Self {
        let (uuid, is_random) = match timestamp {
            Some(_) => (Uuid::new_v5(&NAMESPACE, event.as_str().as_bytes()), false),
            None => (Uuid::new_v4(), true),
        };
        Self { json: Cow::Owned(format!("\"{uuid}\"")), plain: Cow::Owned(uuid.to_string()), is_random }
    }

    /// True for a UUID, which no other event is meant to have.
    pub fn is_uuid(&self) -> bool {
        Uuid::try_parse(&self.plain).is_ok()
    }

    /// True for a random id, which changes on every decode.
    pub fn is_random(&self) -> bool {
        self.is_random
    }

    /// The id as JSON, byte for byte as the sender wrote it.
    pub fn as_json(&self) -> &str {
        &self.json
    }

    /// The id with its escapes undone, at most [`MAX_UUID_BYTES`] long.
    pub fn as_str(&self) -> &str {
        &self.plain
    }
}

impl fmt::Display for EventId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.plain)
    }
}

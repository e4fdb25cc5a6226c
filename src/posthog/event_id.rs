//! What an event is called, by its sender or else here.

use std::{borrow::Cow, fmt};

use uuid::Uuid;

use crate::json::Raw;

/// The most bytes of an event's `uuid`; a longer one counts as none.
pub const MAX_UUID_BYTES: usize = 200;

/// The namespace of the ids that are made from an event's bytes.
const NAMESPACE: Uuid = Uuid::from_u128(0x6d0e_4c0a_9f5b_4b52_8f0c_76a1_0c1e_54c7);

/// An event's `uuid`, as it was written and as it reads.
#[derive(Clone, Debug, Default)]
pub struct EventId<'a> {
    json: Cow<'a, str>,
    plain: Cow<'a, str>,
    is_random: bool,
}

impl<'a> EventId<'a> {
    /// The `uuid` that any sender sets: every string counts, since it need only be the same on a re-send.
    pub(super) fn of_uuid(raw: Raw<'a>) -> Option<Self> {
        let plain = raw.as_text()?.to_scalar_string();
        let fits = (1..=MAX_UUID_BYTES).contains(&plain.len());
        fits.then_some(Self { json: Cow::Borrowed(raw.as_str()), plain, is_random: false })
    }

    /// The `id` of older senders, which is another thing elsewhere: it counts only if it is a UUID.
    pub(super) fn of_id(raw: Raw<'a>) -> Option<Self> {
        Self::of_uuid(raw).filter(Self::is_uuid)
    }

    /// An id for an event that has none: from its bytes if its own timestamp makes them unlike any other's, so that
    /// a re-send is known again; else a random one, because a duplicate is better than a loss.
    pub(super) fn made_for(event: Raw<'a>, timestamp: Option<Raw<'a>>) -> Self {
        let (uuid, is_random) = match timestamp {
            Some(_) => (Uuid::new_v5(&NAMESPACE, event.as_str().as_bytes()), false),
            None => (Uuid::new_v4(), true),
        };
        Self { json: Cow::Owned(format!("\"{uuid}\"")), plain: Cow::Owned(uuid.to_string()), is_random }
    }

    /// Whether it is a UUID, and so meant to be no other event's.
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

    /// The id as it reads, at most [`MAX_UUID_BYTES`].
    pub fn as_str(&self) -> &str {
        &self.plain
    }
}

impl fmt::Display for EventId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.plain)
    }
}

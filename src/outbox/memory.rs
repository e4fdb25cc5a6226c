//! Which events are known: those under way, and for a while those that have ended.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    time::Duration,
};

use siphasher::sip128::{Hasher128, SipHasher13};
use tokio::time::Instant;

use super::{Outcome, Refusal};

/// How many final outcomes are remembered, and for how long.
const REMEMBERED: (usize, Duration) = (200_000, Duration::from_secs(60 * 60));

/// What makes two events the same: uuid, name and `distinct_id`, as a keyed hash of 128 bits.
///
/// That is PostHog's own rule, less the day. The key is this process's own, so that nobody can make two events collide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity(u64, u64);

/// The key of a process's identities.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdentityKey([u64; 2]);

impl IdentityKey {
    /// A key that nobody knows.
    pub(super) fn random() -> Self {
        let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
        let (more_high, more_low) = uuid::Uuid::new_v4().as_u64_pair();
        Self([high ^ more_low, low ^ more_high])
    }

    /// The identity that these parts make, each of them whole.
    pub(super) fn identity(&self, parts: [&[u8]; 3]) -> Identity {
        let mut hasher = SipHasher13::new_with_keys(self.0[0], self.0[1]);
        for part in parts {
            hasher.write_usize(part.len());
            hasher.write(part);
        }
        let hash = hasher.finish128();
        Identity(hash.h1, hash.h2)
    }
}

/// What is known of an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It is the entry with this key.
    UnderWay(u32),
    /// It ended so: 0 is delivered, 1 refused by failing always, else refused with that status.
    Final(u16),
}

/// All identities that are known.
///
/// An outcome takes about 25 bytes of a table at most half empty, and 24 of a queue: 200,000 of them 16 MiB at the most.
/// Both are reserved at once: growing would copy them while everybody waits, and what is not used takes no memory.
#[derive(Debug)]
pub(super) struct Memory {
    known: HashMap<Identity, Known, BuildHasherDefault<IdentityHasher>>,
    /// Final outcomes in the order of their end, in seconds since `start`.
    ended: VecDeque<(Identity, u32)>,
    start: Instant,
}

impl Memory {
    pub(super) fn new(start: Instant) -> Self {
        let known = HashMap::with_capacity_and_hasher(REMEMBERED.0, BuildHasherDefault::default());
        Self { known, ended: VecDeque::with_capacity(REMEMBERED.0), start }
    }

    pub(super) fn look_up(&mut self, identity: &Identity, now: Instant) -> Option<Known> {
        self.forget(now);
        self.known.get(identity).copied()
    }

    pub(super) fn begin(&mut self, identity: Identity, entry: u32) {
        self.known.insert(identity, Known::UnderWay(entry));
    }

    /// Remembers how an event ended, if that is final.
    pub(super) fn end(&mut self, identity: Identity, outcome: Outcome, now: Instant) {
        let code = match outcome {
            Outcome::Delivered => 0,
            Outcome::Refused(Refusal::KeptFailing) => 1,
            Outcome::Refused(Refusal::Status(status)) => status.as_u16(),
            Outcome::Abandoned => {
                self.known.remove(&identity);
                return;
            }
        };
        self.known.insert(identity, Known::Final(code));
        if self.ended.len() == REMEMBERED.0 {
            self.forget_first();
        }
        self.ended.push_back((identity, self.seconds(now)));
    }

    pub(super) fn remembered(&self) -> usize {
        self.ended.len()
    }

    fn forget(&mut self, now: Instant) {
        let kept = u32::try_from(REMEMBERED.1.as_secs()).expect("an hour");
        let now = self.seconds(now);
        while self.ended.front().is_some_and(|&(_, ended)| ended.saturating_add(kept) < now) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((identity, _)) = self.ended.pop_front() {
            self.known.remove(&identity);
        }
    }

    fn seconds(&self, now: Instant) -> u32 {
        u32::try_from(now.duration_since(self.start).as_secs()).unwrap_or(u32::MAX)
    }
}

impl Known {
    /// The outcome that is remembered.
    pub(super) fn outcome(code: u16) -> Outcome {
        match code {
            0 => Outcome::Delivered,
            1 => Outcome::Refused(Refusal::KeptFailing),
            status => Outcome::Refused(Refusal::Status(status.try_into().expect("it was one when it was remembered"))),
        }
    }
}

/// An identity is a hash already.
#[derive(Debug, Default)]
struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn write(&mut self, _: &[u8]) {
        unreachable!("an identity is two words");
    }

    fn write_u64(&mut self, word: u64) {
        self.0 ^= word;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

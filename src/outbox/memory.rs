//! Which events are known: those under way, and for a while those that have ended.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    time::Duration,
};

use hashbrown::HashTable;
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

impl Identity {
    /// It is a hash already.
    fn hash(&self) -> u64 {
        self.0
    }
}

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
    /// It has ended so.
    Final(Outcome),
}

/// All identities that are known.
///
/// Final outcomes take less than 8 MiB, reserved at once: growing would copy them while everybody waits, and what is not
/// used takes no memory. What those under way take is part of the cost of an entry.
#[derive(Debug)]
pub(super) struct Memory {
    under_way: HashMap<Identity, u32, BuildHasherDefault<IdentityHasher>>,
    /// Final outcomes in the order of their end.
    ended: VecDeque<Ended>,
    /// The places of `ended`, found by identity. They are counted from the first outcome that ever was.
    places: HashTable<u32>,
    /// How many have left `ended`; both counts go round in the end.
    forgotten: u32,
    start: Instant,
}

#[derive(Debug)]
struct Ended {
    identity: Identity,
    /// Seconds since the start.
    at: u32,
    /// 0 is delivered, 1 refused by failing always, else refused with that status.
    code: u16,
}

impl Memory {
    pub(super) fn new(start: Instant) -> Self {
        Self {
            under_way: HashMap::default(),
            ended: VecDeque::with_capacity(REMEMBERED.0),
            // Twice what is needed: a table that is over half full grows instead of clearing away what was removed.
            places: HashTable::with_capacity(2 * REMEMBERED.0),
            forgotten: 0,
            start,
        }
    }

    pub(super) fn look_up(&mut self, identity: &Identity, now: Instant) -> Option<Known> {
        if let Some(entry) = self.under_way.get(identity) {
            return Some(Known::UnderWay(*entry));
        }
        self.forget(now);
        let (ended, forgotten) = (&self.ended, self.forgotten);
        let outcome = |place: u32| &ended[place.wrapping_sub(forgotten) as usize];
        let place = self.places.find(identity.hash(), |place| outcome(*place).identity == *identity)?;
        Some(Known::Final(outcome_of(outcome(*place).code)))
    }

    pub(super) fn begin(&mut self, identity: Identity, entry: u32) {
        self.under_way.insert(identity, entry);
    }

    /// Remembers how an event ended, if that is final.
    pub(super) fn end(&mut self, identity: Identity, outcome: Outcome, now: Instant) {
        self.under_way.remove(&identity);
        let code = match outcome {
            Outcome::Delivered => 0,
            Outcome::Refused(Refusal::KeptFailing) => 1,
            Outcome::Refused(Refusal::Status(status)) => status.as_u16(),
            Outcome::Abandoned => return,
        };
        if self.ended.len() == REMEMBERED.0 {
            self.forget_first();
        }
        let place = self.forgotten.wrapping_add(u32::try_from(self.ended.len()).expect("it is bounded"));
        self.ended.push_back(Ended { identity, at: self.seconds(now), code });
        let (ended, forgotten) = (&self.ended, self.forgotten);
        self.places.insert_unique(identity.hash(), place, |place| {
            ended[place.wrapping_sub(forgotten) as usize].identity.hash()
        });
    }

    pub(super) fn remembered(&self) -> usize {
        self.ended.len()
    }

    fn forget(&mut self, now: Instant) {
        let kept = u32::try_from(REMEMBERED.1.as_secs()).expect("an hour");
        let now = self.seconds(now);
        while self.ended.front().is_some_and(|ended| ended.at.saturating_add(kept) < now) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let Some(Ended { identity, .. }) = self.ended.pop_front() else { return };
        let first = self.forgotten;
        if let Ok(place) = self.places.find_entry(identity.hash(), |place| *place == first) {
            place.remove();
        }
        self.forgotten = first.wrapping_add(1);
    }

    fn seconds(&self, now: Instant) -> u32 {
        u32::try_from(now.duration_since(self.start).as_secs()).unwrap_or(u32::MAX)
    }
}

fn outcome_of(code: u16) -> Outcome {
    match code {
        0 => Outcome::Delivered,
        1 => Outcome::Refused(Refusal::KeptFailing),
        status => Outcome::Refused(Refusal::Status(status.try_into().expect("it was one when it was remembered"))),
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

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    fn identity(rng: &mut Rng) -> Identity {
        Identity(rng.u64(..), rng.u64(..))
    }

    #[test]
    fn remembered_outcomes_take_less_than_8_mib_however_many_there_were() {
        let (now, mut rng) = (Instant::now(), Rng::with_seed(1));
        let mut memory = Memory::new(now);
        let bytes = |memory: &Memory| memory.ended.capacity() * size_of::<Ended>() + memory.places.allocation_size();
        let reserved = bytes(&memory);
        assert!(reserved < 8 << 20, "{reserved}");
        let mut under_way = VecDeque::new();
        for n in 0..1_000_000 {
            let identity = identity(&mut rng);
            memory.begin(identity, n);
            under_way.push_back(identity);
            if under_way.len() > 70_000 {
                memory.end(under_way.pop_front().unwrap(), Outcome::Delivered, now);
            }
        }
        assert_eq!(memory.remembered(), REMEMBERED.0);
        assert_eq!(bytes(&memory), reserved, "it has grown");
    }

    #[test]
    fn the_last_outcomes_are_known_and_those_before_them_and_those_of_an_hour_ago_are_not() {
        const MINUTE: Duration = Duration::from_secs(60);
        let (start, mut rng) = (Instant::now(), Rng::with_seed(1));
        let mut memory = Memory::new(start);
        // The counts go round on the way.
        memory.forgotten = u32::MAX - 1000;
        let outcomes = [
            Outcome::Delivered,
            Outcome::Refused(Refusal::KeptFailing),
            Outcome::Refused(Refusal::Status(http::StatusCode::CONFLICT)),
        ];
        let all: Vec<_> = (0..REMEMBERED.0 + 2000).map(|_| identity(&mut rng)).collect();
        let half = all.len() / 2;
        for (n, identity) in all.iter().enumerate() {
            let now = if n < half { start } else { start + 30 * MINUTE };
            memory.begin(*identity, 0);
            assert_eq!(memory.look_up(identity, now), Some(Known::UnderWay(0)));
            memory.end(*identity, outcomes[n % 3], now);
        }
        let known = |memory: &mut Memory, n: usize, now| memory.look_up(&all[n], now);
        for n in 0..all.len() {
            let expected = (n >= 2000).then(|| Known::Final(outcomes[n % 3]));
            assert_eq!(known(&mut memory, n, start + 60 * MINUTE), expected, "{n}");
        }
        for n in 0..all.len() {
            let expected = (n >= half).then(|| Known::Final(outcomes[n % 3]));
            assert_eq!(known(&mut memory, n, start + 60 * MINUTE + Duration::from_secs(1)), expected, "{n}");
        }
        assert_eq!(memory.remembered(), all.len() - half);
        assert_eq!(known(&mut memory, all.len() - 1, start + 91 * MINUTE), None);
        assert_eq!(memory.remembered(), 0);
    }

    #[test]
    fn what_was_abandoned_is_not_known() {
        let (now, mut rng) = (Instant::now(), Rng::with_seed(1));
        let mut memory = Memory::new(now);
        let identity = identity(&mut rng);
        memory.begin(identity, 7);
        memory.end(identity, Outcome::Abandoned, now);
        assert_eq!(memory.look_up(&identity, now), None);
        assert_eq!(memory.remembered(), 0);
    }
}

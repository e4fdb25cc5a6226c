//! The events that are known: those under way, and for a while those that have ended.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    mem,
    time::Duration,
};

use http::StatusCode;
use siphasher::sip128::{Hasher128, SipHasher13};
use tokio::time::Instant;

use super::{Outcome, Refusal};

/// The most final outcomes of a generation. Two generations are kept.
const MAX_GENERATION: usize = 100_000;

/// The length of a generation: an outcome is remembered for at least as long, unless [`MAX_GENERATION`] other events end
/// meanwhile.
const GENERATION: Duration = Duration::from_secs(60 * 60);

/// The unique number of an event, in the order of arrival.
pub(super) type Number = u64;

/// The identity of an event: a keyed hash of 128 bits over its uuid, name and `distinct_id`.
///
/// PostHog deduplicates by the same fields and the day. The key is random for each process, so that no sender can make two
/// events collide.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    hash: [u32; 4],
    /// A checksum of the event's bytes, which does not count for equality. It shows ids that are used for another event.
    checksum: u32,
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl Eq for Identity {}

impl std::hash::Hash for Identity {
    /// Half of the bits suffice, because they are a hash already.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64::from(self.hash[0]) << 32 | u64::from(self.hash[1]));
    }
}

/// The key of a process's identities.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdentityKey([u64; 2]);

impl IdentityKey {
    /// Draws a random key.
    pub(super) fn random() -> Self {
        let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
        let (more_high, more_low) = uuid::Uuid::new_v4().as_u64_pair();
        Self([high ^ more_low, low ^ more_high])
    }

    /// Returns the identity of an event of these parts and bytes. Each part counts by itself, wherever the others end.
    pub(super) fn identity(&self, parts: [&[u8]; 3], event: &[u8]) -> Identity {
        let mut hasher = SipHasher13::new_with_keys(self.0[0], self.0[1]);
        for part in parts {
            hasher.write_usize(part.len());
            hasher.write(part);
        }
        let hash = hasher.finish128();
        let [high, low] = [hash.h1, hash.h2].map(|half| [(half >> 32) as u32, half as u32]);
        Identity { hash: [high[0], high[1], low[0], low[1]], checksum: crc32fast::hash(event) }
    }
}

/// The state of an event that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// The event is under way with this number.
    UnderWay(Number),
    /// The event has ended with this outcome.
    Final(Outcome),
}

/// The identities of all events that are known.
///
/// An event that was abandoned is not known, because sending it again may help. Final outcomes take less than 8 MiB, which are
/// reserved at once: growing would copy them while everybody waits, and unused pages take no memory. The memory for events under
/// way is part of the cost of an entry.
#[derive(Debug)]
pub(super) struct Identities {
    under_way: Table<Number>,
    /// The events that have ended since `since`.
    recent: Table<Remembered>,
    /// The events that ended in the generation before.
    former: Table<Remembered>,
    since: Instant,
    start: Instant,
    refusals_known_for: Duration,
}

/// A final outcome.
#[derive(Clone, Copy, Debug)]
enum Remembered {
    Accepted,
    /// The status, and the seconds from the start to the refusal.
    Refused(StatusCode, u32),
}

type Table<V> = HashMap<Identity, V, BuildHasherDefault<IdentityHasher>>;

impl Identities {
    pub(super) fn new(refusals_known_for: Duration, now: Instant) -> Self {
        let generation = || Table::with_capacity_and_hasher(MAX_GENERATION, BuildHasherDefault::default());
        Self {
            under_way: Table::default(),
            recent: generation(),
            former: generation(),
            since: now,
            start: now,
            refusals_known_for,
        }
    }

    pub(super) fn look_up(&mut self, identity: &Identity, now: Instant) -> Option<Known> {
        if let Some(number) = self.under_way.get(identity) {
            return Some(Known::UnderWay(*number));
        }
        self.turn_over(now);
        match *self.recent.get(identity).or_else(|| self.former.get(identity))? {
            Remembered::Accepted => Some(Known::Final(Outcome::Delivered)),
            Remembered::Refused(status, at) => {
                let is_fresh = u64::from(self.seconds(now) - at) < self.refusals_known_for.as_secs();
                is_fresh.then_some(Known::Final(Outcome::Refused(Refusal::Status(status))))
            }
        }
    }

    /// True if the known event of an identity has the same bytes.
    pub(super) fn has_same_bytes(&self, identity: &Identity) -> bool {
        let under_way = self.under_way.get_key_value(identity).map(|(known, _)| known);
        let ended = || [&self.recent, &self.former].into_iter().find_map(|table| table.get_key_value(identity));
        let known = under_way.or_else(|| ended().map(|(known, _)| known));
        known.is_some_and(|known| known.checksum == identity.checksum)
    }

    pub(super) fn begin(&mut self, identity: Identity, number: Number) {
        self.under_way.insert(identity, number);
    }

    /// Ends an event, and remembers the outcome if it is final.
    pub(super) fn end(&mut self, identity: Identity, outcome: Outcome, now: Instant) {
        self.under_way.remove(&identity);
        let remembered = match outcome {
            Outcome::Delivered => Remembered::Accepted,
            Outcome::Refused(Refusal::Status(status)) => Remembered::Refused(status, self.seconds(now)),
            Outcome::Refused(Refusal::KeptFailing(_)) | Outcome::Abandoned(_) => return,
        };
        self.turn_over(now);
        self.recent.insert(identity, remembered);
    }

    /// Forgets all refusals.
    pub(super) fn forget_refusals(&mut self) {
        for table in [&mut self.recent, &mut self.former] {
            table.retain(|_, remembered| matches!(remembered, Remembered::Accepted));
        }
    }

    fn seconds(&self, now: Instant) -> u32 {
        u32::try_from(now.duration_since(self.start).as_secs()).unwrap_or(u32::MAX)
    }

    pub(super) fn remembered(&self) -> usize {
        self.recent.len() + self.former.len()
    }

    /// Begins a generation if the last is full or over, and forgets the one before it.
    fn turn_over(&mut self, now: Instant) {
        let age = now.duration_since(self.since);
        if self.recent.len() < MAX_GENERATION && age < GENERATION {
            return;
        }
        mem::swap(&mut self.recent, &mut self.former);
        self.recent.clear();
        if age >= 2 * GENERATION {
            self.former.clear();
        }
        self.since = now;
    }
}

/// A hasher that passes on an identity, which is a hash already.
#[derive(Debug, Default)]
struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn write(&mut self, _: &[u8]) {
        unreachable!("an identity writes one word");
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use fastrand::Rng;

    use super::*;
    use crate::destination::Fault;

    const REFUSED_FOR: Duration = Duration::from_secs(60);

    fn identity(rng: &mut Rng) -> Identity {
        Identity { hash: [(); 4].map(|()| rng.u32(..)), checksum: rng.u32(..) }
    }

    #[test]
    fn remembered_outcomes_take_less_than_8_mib_however_many_there_were() {
        let (now, mut rng) = (Instant::now(), Rng::with_seed(1));
        let mut identities = Identities::new(REFUSED_FOR, now);
        // What hashbrown allocates: as many slots as the next power of two over 8/7 of the capacity, each with a byte.
        let bytes = |table: &Table<Remembered>| {
            (table.capacity() * 8 / 7).next_power_of_two() * (size_of::<(Identity, Remembered)>() + 1)
        };
        let all = |identities: &Identities| bytes(&identities.recent) + bytes(&identities.former);
        let reserved = all(&identities);
        assert!((6 << 20..8 << 20).contains(&reserved), "{reserved}");
        let mut under_way = VecDeque::new();
        for n in 0..1_000_000 {
            let identity = identity(&mut rng);
            identities.begin(identity, n);
            under_way.push_back(identity);
            if under_way.len() > 70_000 {
                identities.end(under_way.pop_front().unwrap(), Outcome::Delivered, now);
            }
            assert!(identities.remembered() <= 2 * MAX_GENERATION, "{}", identities.remembered());
        }
        assert_eq!(all(&identities), reserved, "it has grown");
    }

    #[test]
    fn an_acceptance_is_known_for_an_hour_or_until_100_000_other_events_have_ended() {
        let (start, mut rng) = (Instant::now(), Rng::with_seed(1));
        let mut end = |identities: &mut Identities, now| {
            let identity = identity(&mut rng);
            identities.begin(identity, 1);
            assert_eq!(identities.look_up(&identity, now), Some(Known::UnderWay(1)));
            identities.end(identity, Outcome::Delivered, now);
            identity
        };
        // At any age of the generation that it ends in, by time and by number.
        for (minutes, before) in [(1, 99_999), (59, 50_000), (500, 7)] {
            for (others, time) in [(MAX_GENERATION - 1, Duration::ZERO), (0, GENERATION - Duration::from_nanos(1))] {
                let mut identities = Identities::new(REFUSED_FOR, start);
                for _ in 0..before {
                    end(&mut identities, start);
                }
                let then = start + Duration::from_secs(minutes * 60);
                let ended = end(&mut identities, then);
                for _ in 0..others {
                    end(&mut identities, then);
                }
                let known = identities.look_up(&ended, then + time);
                assert_eq!(
                    known,
                    Some(Known::Final(Outcome::Delivered)),
                    "{minutes} min, {before} before, {others} after"
                );
                // Not for ever: neither by number …
                for _ in 0..2 * MAX_GENERATION {
                    end(&mut identities, then + time);
                }
                assert_eq!(identities.look_up(&ended, then + time), None);
                // … nor by time.
                let last = end(&mut identities, then + time);
                assert_eq!(identities.look_up(&last, then + time + 2 * GENERATION), None);
                assert_eq!(identities.remembered(), 0);
            }
        }
    }

    #[test]
    fn a_refusal_is_known_for_a_minute_or_until_refusals_are_forgotten() {
        let (start, mut rng) = (Instant::now(), Rng::with_seed(1));
        let mut identities = Identities::new(REFUSED_FOR, start);
        let (identity, accepted) = (identity(&mut rng), identity(&mut rng));
        let refused = Outcome::Refused(Refusal::Status(StatusCode::CONFLICT));
        let then = start + Duration::from_millis(3_600_500);
        identities.end(identity, refused, then);
        identities.end(accepted, Outcome::Delivered, then);
        assert_eq!(identities.look_up(&identity, then + Duration::from_secs(59)), Some(Known::Final(refused)));
        assert_eq!(identities.look_up(&identity, then + REFUSED_FOR), None);
        identities.end(identity, refused, then + REFUSED_FOR);
        assert_eq!(identities.look_up(&identity, then + REFUSED_FOR), Some(Known::Final(refused)));
        identities.forget_refusals();
        assert_eq!(identities.look_up(&identity, then + REFUSED_FOR), None);
        assert_eq!(identities.look_up(&accepted, then + REFUSED_FOR), Some(Known::Final(Outcome::Delivered)));
    }

    #[test]
    fn what_ran_out_of_time_is_not_known() {
        let (now, mut rng) = (Instant::now(), Rng::with_seed(1));
        for outcome in [Outcome::Abandoned(None), Outcome::Refused(Refusal::KeptFailing(Fault::Timeout))] {
            let mut identities = Identities::new(REFUSED_FOR, now);
            let identity = identity(&mut rng);
            identities.begin(identity, 7);
            identities.end(identity, outcome, now);
            assert_eq!(identities.look_up(&identity, now), None);
            assert_eq!(identities.remembered(), 0);
        }
    }
}

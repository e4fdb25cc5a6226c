//! The outbox's state and its rules, without a clock, a task or a socket: every call says what time it is.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    sync::Arc,
    time::Duration,
};

use fastrand::Rng;
use slab::Slab;
use tokio::time::Instant;

use super::{
    OutboxSettings, Outcome, Refusal,
    health::Health,
    memory::{Identity, Known, Memory},
    ticket::{Progress, Turn, Waiter},
};
use crate::{
    breaker::{Breaker, Permit, Probe},
    destination::AttemptResult,
    variance::Message,
};

/// What an entry takes beside its message: itself, its places in the table of identities, the queues and the list of
/// arrivals, one waiter, and what allocators add. Held to the truth by a test that fills the outbox.
const ENTRY_COST: usize = 640;

#[derive(Debug)]
pub(super) struct State {
    settings: OutboxSettings,
    entries: Slab<Entry>,
    memory: Memory,
    /// Entries that can be attempted as soon as a worker is free.
    ready: VecDeque<Turn>,
    /// Entries that wait for their backoff to end.
    waiting: BinaryHeap<Reverse<(Instant, Turn)>>,
    /// Every entry in the order of its arrival, and some that have left since.
    arrivals: VecDeque<(Instant, Turn)>,
    held_bytes: usize,
    turns: u64,
    /// When the pacer will wake by itself.
    pacer_due: Option<Instant>,
    breaker: Breaker,
    /// The arrival turn of the entry that failed the last probe.
    failed_probe: Option<u64>,
    last_delivered: Option<Instant>,
    pub(super) health: Health,
    rng: Rng,
}

#[derive(Debug)]
struct Entry {
    identity: Identity,
    message: Message,
    arrived: Instant,
    /// The turn of its arrival: its name for as long as it is here.
    arrival: u64,
    /// The turn under which it stands in a queue; another turn's place in a queue is void.
    turn: u64,
    in_flight: bool,
    failures: u32,
    waiters: Vec<Waiter>,
}

/// What became of an event that was handed over.
#[derive(Debug)]
pub(super) enum Admission {
    /// It is in, under this arrival turn.
    New(Turn),
    /// It was in, under this arrival turn.
    Joined(Turn),
    /// It has ended before.
    Final(Outcome),
    /// There is no room.
    Full,
}

/// An attempt to be made.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) entry: u32,
    pub(super) message: Message,
    probe: Option<Probe>,
}

/// An event that has ended, with those who wait for it.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) message: Message,
    pub(super) outcome: Outcome,
    pub(super) waiters: Vec<Waiter>,
}

impl State {
    pub(super) fn new(settings: OutboxSettings, now: Instant, rng: Rng) -> Self {
        Self {
            breaker: Breaker::new(settings.pacing.open_for),
            settings,
            entries: Slab::new(),
            memory: Memory::new(now),
            ready: VecDeque::new(),
            waiting: BinaryHeap::new(),
            arrivals: VecDeque::new(),
            held_bytes: 0,
            turns: 0,
            pacer_due: None,
            failed_probe: None,
            last_delivered: None,
            health: Health::default(),
            rng,
        }
    }

    /// Takes an event in, or joins the one of the same identity.
    pub(super) fn hand_over(
        &mut self,
        identity: Identity,
        message: &Message,
        waiter: Waiter,
        now: Instant,
    ) -> Admission {
        match self.memory.look_up(&identity, now) {
            Some(Known::Final(outcome)) => return Admission::Final(outcome),
            Some(Known::UnderWay(key)) => {
                let entry = &mut self.entries[key as usize];
                entry.waiters.push(waiter);
                return Admission::Joined(Turn { number: entry.arrival, entry: key });
            }
            None => {}
        }
        let cost = cost(message);
        if self.held_bytes + cost > self.settings.max_held {
            return Admission::Full;
        }
        self.held_bytes += cost;
        self.turns += 1;
        let key = u32::try_from(self.entries.vacant_key()).expect("memory ends before four billion entries");
        let turn = Turn { number: self.turns, entry: key };
        self.entries.insert(Entry {
            identity,
            message: message.clone(),
            arrived: now,
            arrival: self.turns,
            turn: self.turns,
            in_flight: false,
            failures: 0,
            waiters: vec![waiter],
        });
        self.memory.begin(identity, key);
        self.clear_void_places();
        self.arrivals.push_back((now, turn));
        self.ready.push_back(turn);
        Admission::New(turn)
    }

    /// Forgets the places in queues of what has left, once they are more than the others. Nothing else does while the
    /// breaker is open.
    fn clear_void_places(&mut self) {
        let (entries, many) = (&self.entries, 2 * self.entries.len() + 64);
        if self.arrivals.len() > many {
            self.arrivals.retain(|(_, turn)| is_alive(entries, *turn));
        }
        if self.ready.len() > many {
            self.ready.retain(|turn| stands(entries, *turn));
        }
    }

    /// The next attempt that may be made now, if there is one.
    pub(super) fn next_job(&mut self, now: Instant) -> Option<Job> {
        let (key, probe) = match self.breaker.permit(now) {
            Permit::Nothing => return None,
            Permit::All => loop {
                let turn = self.ready.pop_front()?;
                if stands(&self.entries, turn) {
                    break (turn.entry, None);
                }
            },
            Permit::Probe => {
                let key = self.choose_probe()?;
                (key, Some(self.breaker.start_probe()))
            }
        };
        let entry = &mut self.entries[key as usize];
        entry.in_flight = true;
        Some(Job { entry: key, message: entry.message.clone(), probe })
    }

    /// Whether another attempt could be made at once.
    pub(super) fn has_job(&self, now: Instant) -> bool {
        match self.breaker.permit(now) {
            Permit::All => !self.ready.is_empty(),
            Permit::Probe => !self.entries.is_empty(),
            Permit::Nothing => false,
        }
    }

    /// The event that has failed least often, and not the one that has just failed a probe while there is another: one
    /// that Variance can never take must not keep the others waiting.
    fn choose_probe(&self) -> Option<u32> {
        let candidates = self.entries.iter().filter(|(_, entry)| !entry.in_flight);
        let (key, _) = candidates
            .min_by_key(|(_, entry)| (self.failed_probe == Some(entry.arrival), entry.failures, entry.arrival))?;
        Some(u32::try_from(key).expect("it came from one"))
    }

    /// Notes what came of an attempt. Returns the event if that ended it.
    pub(super) fn finish(&mut self, job: &Job, result: AttemptResult, now: Instant) -> Option<Ended> {
        let entry = &mut self.entries[job.entry as usize];
        entry.in_flight = false;
        let outcome = match result {
            AttemptResult::Accepted => {
                self.last_delivered = Some(now);
                Outcome::Delivered
            }
            AttemptResult::Refused(status) => Outcome::Refused(Refusal::Status(status)),
            AttemptResult::Failed { fault, retry_after } => {
                entry.failures = entry.failures.saturating_add(1);
                if job.probe.is_some() {
                    self.failed_probe = Some(entry.arrival);
                }
                let was_closed = self.breaker.is_closed();
                self.breaker.failed(job.probe, retry_after, now, &mut self.rng);
                self.health.failed(fault, !self.breaker.is_closed(), was_closed);
                if now.duration_since(entry.arrived) >= self.settings.retry_for {
                    return Some(self.give_up(job.entry, now));
                }
                self.turns += 1;
                entry.turn = self.turns;
                let delay = self.settings.pacing.backoff.full_jitter(entry.failures, &mut self.rng);
                self.waiting.push(Reverse((now + delay, Turn { number: entry.turn, entry: job.entry })));
                return None;
            }
        };
        if !self.breaker.is_closed() {
            // What is ready waits for nothing any more, and the worker that knows it reads the rest of a reply first.
            self.pacer_due = None;
        }
        self.breaker.answered();
        self.health.answered(outcome, now);
        self.failed_probe = None;
        Some(self.end(job.entry, outcome, now))
    }

    /// Moves on what time moves on: entries whose backoff has ended become ready, those whose time is over end.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<Ended> {
        while let Some(Reverse((due, turn))) = self.waiting.peek().copied() {
            if due > now {
                break;
            }
            self.waiting.pop();
            if stands(&self.entries, turn) {
                self.ready.push_back(turn);
            }
        }
        let mut ended = Vec::new();
        while let Some(&(arrived, turn)) = self.arrivals.front() {
            let alive = is_alive(&self.entries, turn);
            if alive && now.duration_since(arrived) < self.settings.retry_for {
                break;
            }
            self.arrivals.pop_front();
            // One that is in flight ends when its attempt does.
            if alive && !self.entries[turn.entry as usize].in_flight {
                ended.push(self.give_up(turn.entry, now));
            }
        }
        ended
    }

    /// When the pacer should wake next: [`State::tick`] or a probe will be due, or `also`.
    pub(super) fn sleep_until(&mut self, now: Instant, also: Option<Instant>) -> Option<Instant> {
        // What is due already waits for a worker, not for the clock.
        self.pacer_due = self.due().into_iter().chain([also]).flatten().filter(|due| *due > now).min();
        self.pacer_due
    }

    /// Whether something has become due before the pacer will wake.
    pub(super) fn is_due_earlier(&mut self) -> bool {
        match (self.due().into_iter().flatten().min(), self.pacer_due) {
            (Some(due), Some(pacer_due)) if pacer_due <= due => false,
            (Some(due), _) => {
                self.pacer_due = Some(due);
                true
            }
            (None, _) => false,
        }
    }

    /// When the first event's time is over, and when there is something to attempt again.
    fn due(&self) -> [Option<Instant>; 2] {
        let end = self.arrivals.front().map(|(arrived, _)| *arrived + self.settings.retry_for);
        // While the breaker is open, a backoff that ends changes nothing.
        let next = match self.breaker.is_closed() {
            true => self.waiting.peek().map(|Reverse((due, _))| *due),
            false => self.breaker.open_until().filter(|_| !self.entries.is_empty()),
        };
        [end, next]
    }

    /// Ends everything, because the process ends: nobody attempts anything any more.
    pub(super) fn abandon_all(&mut self, now: Instant) -> Vec<Ended> {
        let keys: Vec<_> = self.entries.iter().map(|(key, _)| u32::try_from(key).expect("it came from one")).collect();
        keys.into_iter().map(|key| self.end(key, Outcome::Abandoned, now)).collect()
    }

    /// Forgets that the request of `progress` waits for these.
    pub(super) fn detach(&mut self, attached: &[Turn], progress: &Arc<Progress>) {
        for turn in attached {
            if is_alive(&self.entries, *turn) {
                let waiters = &mut self.entries[turn.entry as usize].waiters;
                waiters.retain(|waiter| !Arc::ptr_eq(&waiter.progress, progress));
                // There may have been a great many, and the cost of an entry has room for one.
                waiters.shrink_to(2 * waiters.len());
            }
        }
    }

    /// Leaves those that have not ended.
    pub(super) fn forget_ended(&self, attached: &mut Vec<Turn>) {
        attached.retain(|turn| is_alive(&self.entries, *turn));
    }

    pub(super) fn held(&self) -> (usize, usize) {
        (self.entries.len(), self.held_bytes)
    }

    /// How many wait for what is held.
    #[cfg(test)]
    pub(super) fn waiters(&self) -> usize {
        self.entries.iter().map(|(_, entry)| entry.waiters.len()).sum()
    }

    pub(super) fn oldest(&self, now: Instant) -> Duration {
        let oldest = self.arrivals.iter().find(|(_, turn)| is_alive(&self.entries, *turn));
        oldest.map_or(Duration::ZERO, |(arrived, _)| now.duration_since(*arrived))
    }

    pub(super) fn remembered(&self) -> usize {
        self.memory.remembered()
    }

    /// Whether an event that comes now will have to wait for a probe that is not its own, and how long at least.
    pub(super) fn paused(&self, now: Instant) -> Option<Duration> {
        match (self.breaker.permit(now), self.breaker.open_until()) {
            (Permit::All, _) => None,
            (Permit::Probe, _) if self.entries.is_empty() => None,
            (_, until) => Some(until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))),
        }
    }

    /// Ends an event whose time is over. If Variance took others meanwhile, it is the event's fault.
    fn give_up(&mut self, key: u32, now: Instant) -> Ended {
        let arrived = self.entries[key as usize].arrived;
        let others_were_taken = self.last_delivered.is_some_and(|delivered| delivered >= arrived);
        let outcome = if others_were_taken { Outcome::Refused(Refusal::KeptFailing) } else { Outcome::Abandoned };
        self.end(key, outcome, now)
    }

    fn end(&mut self, key: u32, outcome: Outcome, now: Instant) -> Ended {
        let Entry { identity, message, waiters, .. } = self.entries.remove(key as usize);
        self.held_bytes -= cost(&message);
        self.memory.end(identity, outcome, now);
        Ended { message, outcome, waiters }
    }
}

/// The memory that an entry takes, the message's included.
pub(super) fn cost(message: &Message) -> usize {
    message.allocated() + ENTRY_COST
}

/// Whether a place in a queue is not void: the entry is there, waits, and stands under this turn.
fn stands(entries: &Slab<Entry>, turn: Turn) -> bool {
    entries.get(turn.entry as usize).is_some_and(|entry| entry.turn == turn.number && !entry.in_flight)
}

/// Whether the entry of an arrival turn is still there.
fn is_alive(entries: &Slab<Entry>, turn: Turn) -> bool {
    entries.get(turn.entry as usize).is_some_and(|entry| entry.arrival == turn.number)
}

#[cfg(test)]
mod tests;

//! The outbox's state and its rules, without a clock, a task or a socket: every call says what time it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use fastrand::Rng;
use http::StatusCode;
use tokio::{sync::SetOnce, time::Instant};

use super::{
    OutboxSettings, Outcome, Refusal,
    health::{Health, News},
    memory::{Identity, Known, Memory, Number},
};
use crate::{
    breaker::{Breaker, Permit, Probe},
    destination::{AttemptResult, Fault},
    limit::{Attempt, Limit, Reply},
    variance::Message,
};

/// What an entry takes beside its message: itself, its places in the tables of identities, of entries and of those that
/// wait, its outcome, who waits for it, and what allocators add. Held to the truth by a test that fills the outbox.
const ENTRY_COST: usize = 640;

#[derive(Debug)]
pub(super) struct State {
    settings: OutboxSettings,
    /// In the order of their arrival.
    entries: BTreeMap<Number, Entry>,
    /// When each entry that is not in flight may be attempted.
    waiting: BTreeSet<(Instant, Number)>,
    memory: Memory,
    held_bytes: usize,
    last_number: Number,
    limit: Limit,
    breaker: Breaker,
    /// The entry that failed the last probe.
    failed_probe: Option<Number>,
    last_delivered: Option<Instant>,
    pub(super) health: Health,
    rng: Rng,
}

#[derive(Debug)]
struct Entry {
    identity: Identity,
    message: Message,
    arrived: Instant,
    /// When it may be attempted, which is its place among those that wait. Nothing while it is in flight.
    due: Option<Instant>,
    failures: u32,
    outcome: Arc<SetOnce<Outcome>>,
}

/// What became of an event that was handed over.
#[derive(Debug)]
pub(super) enum Admission {
    /// It is in, and will end so.
    New(Arc<SetOnce<Outcome>>),
    /// It was in, and will end so.
    Joined(Arc<SetOnce<Outcome>>),
    /// It has ended before.
    Final(Outcome),
    /// There is no room.
    Full,
}

/// An attempt to be made.
#[derive(Debug)]
pub(super) struct Job {
    number: Number,
    pub(super) message: Message,
    probe: Option<Probe>,
    attempt: Attempt,
}

/// An event that has ended. Those who wait for it are told by [`Ended::tell`].
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) message: Message,
    pub(super) outcome: Outcome,
    told: Arc<SetOnce<Outcome>>,
}

impl Ended {
    pub(super) fn tell(self) {
        self.told.set(self.outcome).expect("an event ends once");
    }
}

impl State {
    pub(super) fn new(settings: OutboxSettings, now: Instant, rng: Rng) -> Self {
        Self {
            breaker: Breaker::new(settings.pacing.open_for),
            limit: Limit::new(settings.concurrency, now),
            settings,
            entries: BTreeMap::new(),
            waiting: BTreeSet::new(),
            memory: Memory::new(now),
            held_bytes: 0,
            last_number: 0,
            failed_probe: None,
            last_delivered: None,
            health: Health::default(),
            rng,
        }
    }

    /// Takes an event in, or joins the one of the same identity.
    pub(super) fn hand_over(&mut self, identity: Identity, message: &Message, now: Instant) -> Admission {
        match self.memory.look_up(&identity, now) {
            Some(Known::Final(outcome)) => return Admission::Final(outcome),
            Some(Known::UnderWay(number)) => return Admission::Joined(Arc::clone(&self.entries[&number].outcome)),
            None => {}
        }
        let cost = cost(message);
        if self.held_bytes + cost > self.settings.max_held {
            return Admission::Full;
        }
        self.held_bytes += cost;
        self.last_number += 1;
        let (number, outcome) = (self.last_number, Arc::new(SetOnce::new()));
        let (message, told) = (message.clone(), Arc::clone(&outcome));
        self.entries.insert(number, Entry { identity, message, arrived: now, due: Some(now), failures: 0, outcome });
        self.waiting.insert((now, number));
        self.memory.begin(identity, number);
        Admission::New(told)
    }

    /// The next attempt that may be made now, if there is one. It takes a slot, see [`State::free_slot`].
    pub(super) fn next_job(&mut self, now: Instant) -> Option<Job> {
        let (number, is_probe) = match self.breaker.permit(now) {
            Permit::Nothing => return None,
            Permit::All => (self.waiting.first().filter(|(due, _)| *due <= now)?.1, false),
            Permit::Probe => (self.choose_probe()?, true),
        };
        if !self.limit.permit(now) {
            return None;
        }
        let probe = is_probe.then(|| self.breaker.start_probe());
        let entry = self.entries.get_mut(&number).expect("what waits is held");
        let due = entry.due.take().expect("what waits is not in flight");
        self.waiting.remove(&(due, number));
        Some(Job { number, message: entry.message.clone(), probe, attempt: self.limit.start(now) })
    }

    /// The event that has failed least often, and not the one that has just failed a probe while there is another: one
    /// that Variance can never take must not keep the others waiting.
    fn choose_probe(&self) -> Option<Number> {
        let candidates = self.entries.iter().filter(|(_, entry)| entry.due.is_some());
        let best = candidates.min_by_key(|(number, entry)| (self.failed_probe == Some(**number), entry.failures));
        best.map(|(number, _)| *number)
    }

    /// Notes what came of an attempt. Returns the event if that ended it, and what operators want to know.
    pub(super) fn finish(&mut self, job: &Job, result: AttemptResult, now: Instant) -> (Option<Ended>, Vec<News>) {
        self.limit.reply(job.attempt, said(result), now);
        let outcome = match result {
            AttemptResult::Accepted => {
                self.last_delivered = Some(now);
                Outcome::Delivered
            }
            AttemptResult::Refused(status) => Outcome::Refused(Refusal::Status(status)),
            AttemptResult::Failed { fault, retry_after } => {
                if job.probe.is_some() {
                    self.failed_probe = Some(job.number);
                }
                let was_closed = self.breaker.is_closed();
                self.breaker.failed(job.probe, retry_after, now, &mut self.rng);
                let news = self.health.failed(fault, !self.breaker.is_closed(), was_closed);
                let entry = self.entries.get_mut(&job.number).expect("what is in flight is held");
                if now.duration_since(entry.arrived) >= self.settings.retry_for {
                    return (Some(self.give_up(job.number, now)), news);
                }
                entry.failures = entry.failures.saturating_add(1);
                let wait = self.settings.pacing.backoff.full_jitter(entry.failures, &mut self.rng);
                let due = now + wait.max(fault.least_wait());
                entry.due = Some(due);
                self.waiting.insert((due, job.number));
                return (None, news);
            }
        };
        self.breaker.answered();
        self.failed_probe = None;
        (Some(self.end(job.number, outcome, now)), self.health.answered(outcome, now))
    }

    /// Notes that the connection of a finished attempt can be used again.
    pub(super) fn free_slot(&mut self) {
        self.limit.free();
    }

    /// Ends what has been held for too long. What is in flight ends when its attempt does.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Ended> {
        let over = self.entries.iter().take_while(|(_, entry)| self.is_over(entry, now));
        let over: Vec<_> = over.filter(|(_, entry)| entry.due.is_some()).map(|(number, _)| *number).collect();
        over.into_iter().map(|number| self.give_up(number, now)).collect()
    }

    fn is_over(&self, entry: &Entry, now: Instant) -> bool {
        now.duration_since(entry.arrived) >= self.settings.retry_for
    }

    /// When to call [`State::expire`] and [`State::next_job`] next, if nothing else happens. Both have been called.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let next_over = self.entries.values().find(|entry| !self.is_over(entry, now));
        let expiry = next_over.map(|entry| entry.arrived + self.settings.retry_for);
        // While the breaker is open, a backoff that ends changes nothing.
        let attempt = match self.breaker.is_closed() {
            true => self.waiting.first().map(|(due, _)| *due),
            false => self.breaker.open_until().filter(|_| !self.waiting.is_empty()),
        };
        let attempt = attempt.and_then(|due| Some(due.max(self.limit.next()?)));
        expiry.into_iter().chain(attempt).min()
    }

    /// Ends everything, because the process ends: nobody attempts anything any more.
    pub(super) fn abandon_all(&mut self, now: Instant) -> Vec<Ended> {
        let numbers: Vec<_> = self.entries.keys().copied().collect();
        numbers.into_iter().map(|number| self.end(number, Outcome::Abandoned, now)).collect()
    }

    pub(super) fn held(&self) -> (usize, usize) {
        (self.entries.len(), self.held_bytes)
    }

    /// How many attempts are under way, and how many may be.
    pub(super) fn in_flight(&self) -> (usize, usize) {
        (self.limit.in_flight(), self.limit.value())
    }

    /// How long an event may be held.
    /// Goes by other settings from now on, but for `max_held`.
    pub(super) fn reload(&mut self, settings: &OutboxSettings) {
        self.settings = OutboxSettings { max_held: self.settings.max_held, ..settings.clone() };
        self.limit.set_most(settings.concurrency);
    }

    /// Forgets what only the former destination has said, because it is another one now.
    pub(super) fn destination_changed(&mut self) {
        self.memory.forget_refusals();
        self.breaker.answered();
    }

    pub(super) fn retry_for(&self) -> Duration {
        self.settings.retry_for
    }

    /// How many wait for what is held.
    #[cfg(test)]
    pub(super) fn waiters(&self) -> usize {
        self.entries.values().map(|entry| Arc::strong_count(&entry.outcome) - 1).sum()
    }

    pub(super) fn oldest(&self, now: Instant) -> Duration {
        self.entries.first_key_value().map_or(Duration::ZERO, |(_, entry)| now.duration_since(entry.arrived))
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
    fn give_up(&mut self, number: Number, now: Instant) -> Ended {
        let arrived = self.entries[&number].arrived;
        let others_were_taken = self.last_delivered.is_some_and(|delivered| delivered >= arrived);
        let outcome = if others_were_taken { Outcome::Refused(Refusal::KeptFailing) } else { Outcome::Abandoned };
        self.end(number, outcome, now)
    }

    fn end(&mut self, number: Number, outcome: Outcome, now: Instant) -> Ended {
        let Entry { identity, message, due, outcome: told, .. } = self.entries.remove(&number).expect("it is held");
        if let Some(due) = due {
            self.waiting.remove(&(due, number));
        }
        self.held_bytes -= cost(&message);
        self.memory.end(identity, outcome, now);
        Ended { message, outcome, told }
    }
}

/// What a result says of the limit.
fn said(result: AttemptResult) -> Reply {
    match result {
        AttemptResult::Accepted | AttemptResult::Refused(_) => Reply::Answered,
        AttemptResult::Failed { fault: Fault::Status(StatusCode::TOO_MANY_REQUESTS), retry_after } => {
            Reply::TooMany(retry_after)
        }
        AttemptResult::Failed { fault: Fault::Status(StatusCode::SERVICE_UNAVAILABLE) | Fault::Timeout, .. } => {
            Reply::Overloaded
        }
        AttemptResult::Failed { .. } => Reply::Other,
    }
}

/// The memory that an entry takes, the message's included.
pub(super) fn cost(message: &Message) -> usize {
    message.allocated() + ENTRY_COST
}

#[cfg(test)]
mod tests;

//! The outbox's state and its rules, without a clock, a task or a socket: every call passes in the time.
//!
//! One call changes the state. The caller then takes the attempts that it allows, with [`State::next_job`] until there are no
//! more, and the lines for the log, and reads from [`State::due`] when to call [`State::expire`] next. The rules:
//!
//! 1. Events that somebody waits for go first, requests take turns, and the backlog gets its share: [`Lanes`].
//! 2. No more attempts are under way than Variance keeps up with.
//! 3. An event that fails while others are accepted is a *suspect*: its faults say nothing about Variance. They count neither for
//!    the breaker nor for the limit, and a `Retry-After` delays the suspect alone. The same holds for any event whose 503 has a
//!    `Retry-After` while others were accepted lately. A 429 makes no suspect, and its `Retry-After` delays all events. A 429
//!    cuts the rate if the 429 before was for another event. Suspects go last, and while nothing is accepted they are attempted
//!    one after the other ([`State::suspects_from`]). Five suspects that fail while nothing was accepted for a minute change
//!    Variance's state, but pause nothing.
//! 4. No event is attempted in a pause: [`Breaker`]. The probe is a live event if there is one; else, in turn, the newest and
//!    the oldest of those that were never attempted; else the one that has waited longest since its last attempt; and a suspect
//!    only if nothing else is held. No event is tried twice between two pauses.
//! 5. An event whose time is over is refused if at least three of its failures were each followed by another event's acceptance
//!    before its own next attempt; else it is abandoned. Failures with a 429 do not count.
//! 6. A refusal is believed only from a destination that accepts other events: [`Health::believe`].
//! 7. On a stop, every event is attempted at once, at any rate, and again every second if it fails.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fastrand::Rng;
use http::StatusCode;
use tokio::{sync::SetOnce, time::Instant};

use super::{
    HandOver, OutboxSettings, Outcome, Pending, Refusal, RequestId, SuspectPacing,
    health::{Health, News},
    identities::{Identities, Identity, Known, Number},
    lanes::{Lanes, Place, Standing},
};
use crate::{
    backoff::Backoff,
    breaker::{AttemptId, Breaker, EVENTS_TO_OPEN, Permit},
    destination::{AttemptResult, Fault},
    limit::{Attempt, Limit, Signal},
    metrics,
    variance::Message,
};

/// The memory that an entry takes beside its message: the entry itself, its places in the tables of identities, entries and
/// lanes, its outcome and those who wait for it, with the allocator's overhead. A test that fills the outbox checks the figure.
const ENTRY_COST: usize = 640;

/// The number of failures, each followed by another event's acceptance, after which an event is refused.
const FAILURES_TO_REFUSE: u32 = 3;

/// The time without an acceptance after which the faults of suspects, too, show that Variance fails. They pause nothing even then.
const ALL_FAILS_AFTER: Duration = Duration::from_secs(60);

/// The wait between the attempts of an event once the outbox is to stop.
const STOPPING: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(1));

#[derive(Debug)]
pub(super) struct State {
    settings: OutboxSettings,
    /// The held events, in the order of arrival.
    entries: BTreeMap<Number, Entry>,
    /// The events that are not in flight.
    lanes: Lanes,
    identities: Identities,
    held_bytes: usize,
    last_number: Number,
    limit: Limit,
    /// The time at which an attempt may begin that only the rate holds back.
    paced_until: Option<Instant>,
    /// The event that had the last 429.
    last_limited: Option<Number>,
    suspects: usize,
    /// The time of the last attempt of a suspect.
    suspect_began: Instant,
    breaker: Breaker,
    /// True if the last probe that was not a live event was the newest event.
    was_newest: bool,
    is_draining: bool,
    /// No further event will be handed over.
    is_complete: bool,
    pub(super) health: Health,
    rng: Rng,
}

#[derive(Debug)]
struct Entry {
    identity: Identity,
    message: Message,
    arrived: Instant,
    /// The place in the lanes; `None` while the event is in flight.
    place: Option<Place>,
    outcome: Arc<SetOnce<Outcome>>,
    failures: u32,
    last_fault: Option<Fault>,
    /// The number of events accepted before the first failure of this one, other than with a 429.
    first_failed_at: Option<u64>,
    /// The same before the last such failure, until the next attempt.
    failed_at: Option<u64>,
    /// See [`Entry::followed_by`].
    followed: u32,
    is_suspect: bool,
    is_doubted: bool,
}

/// An attempt to be made.
#[derive(Debug)]
pub(super) struct Job {
    number: Number,
    in_breaker: AttemptId,
    pub(super) in_limit: Attempt,
    pub(super) message: Message,
}

/// The consequences of an attempt.
#[derive(Debug)]
pub(super) struct Finished {
    /// The event, if it has ended.
    pub(super) ended: Option<Ended>,
    /// The fault, if the attempt failed.
    pub(super) fault: Option<Fault>,
    /// True if this has opened the breaker.
    pub(super) has_opened: bool,
}

/// An event that has ended. [`Ended::tell`] wakes those who wait for it.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) message: Message,
    pub(super) outcome: Outcome,
    pub(super) arrived: Instant,
    pub(super) attempts: u32,
    told: Arc<SetOnce<Outcome>>,
}

impl Ended {
    pub(super) fn tell(self) {
        self.told.set(self.outcome).expect("an event ends once");
    }
}

impl Entry {
    /// True if a sender waits for the event.
    fn is_awaited(&self) -> bool {
        Arc::strong_count(&self.outcome) > 1
    }

    /// Moves a live event to the backlog if no sender waits for it any longer. Returns true if it was moved.
    fn leaves_live(&mut self, lanes: &mut Lanes, number: Number) -> bool {
        let Some(place @ Place::Live(..)) = self.place.filter(|_| !self.is_awaited()) else { return false };
        lanes.remove(number, place);
        self.place = Some(lanes.add_backlog(Standing::Unattempted, self.arrived, number));
        true
    }

    fn standing(&self) -> Standing {
        match (self.failures, self.is_suspect) {
            (0, _) => Standing::Unattempted,
            (_, false) => Standing::Failed,
            (_, true) => Standing::Suspect,
        }
    }

    /// Notes that an attempt begins, after `accepted` acceptances in all.
    fn begin(&mut self, accepted: u64) {
        self.place = None;
        self.followed = self.followed_by(accepted);
        self.failed_at = None;
    }

    /// Notes a fault, after `accepted` acceptances in all.
    fn fail(&mut self, fault: Fault, accepted: u64) {
        self.failures = self.failures.saturating_add(1);
        self.last_fault = Some(fault);
        if fault != RATE {
            self.is_suspect |= *self.first_failed_at.get_or_insert(accepted) < accepted;
            self.failed_at = Some(accepted);
        }
    }

    /// Returns the number of failures that were followed by another event's acceptance before the next attempt.
    fn followed_by(&self, accepted: u64) -> u32 {
        self.followed + u32::from(self.failed_at.is_some_and(|at| at < accepted))
    }
}

/// The fault that is about the rate and not about the event.
const RATE: Fault = Fault::Status(StatusCode::TOO_MANY_REQUESTS);

impl State {
    pub(super) fn new(settings: OutboxSettings, now: Instant, rng: Rng) -> Self {
        let concurrency = settings.concurrency;
        Self {
            breaker: Breaker::new(settings.pacing.open_for, settings.pacing.recent),
            identities: Identities::new(settings.pacing.refusals_known_for, now),
            settings,
            entries: BTreeMap::new(),
            lanes: Lanes::default(),
            held_bytes: 0,
            last_number: 0,
            limit: Limit::new(concurrency, now),
            paced_until: None,
            last_limited: None,
            suspects: 0,
            suspect_began: now,
            was_newest: false,
            is_draining: false,
            is_complete: false,
            health: Health::default(),
            rng,
        }
    }

    /// Takes in an event, or joins the event of the same identity.
    pub(super) fn hand_over(
        &mut self,
        request: RequestId,
        identity: Identity,
        message: &Message,
        now: Instant,
    ) -> HandOver {
        let cost = cost(message);
        if cost > self.settings.max_held {
            return HandOver::TooLarge;
        }
        match self.identities.look_up(&identity, now) {
            Some(Known::Final(outcome)) => return HandOver::Ended(outcome),
            Some(Known::UnderWay(number)) => return HandOver::Joined(self.join(request, number)),
            None => {}
        }
        if self.held_bytes + cost > self.settings.max_held {
            return HandOver::Full;
        }
        self.held_bytes += cost;
        self.last_number += 1;
        let (number, outcome) = (self.last_number, Arc::new(SetOnce::new()));
        let told = Arc::clone(&outcome);
        let entry = Entry {
            identity,
            message: message.clone(),
            arrived: now,
            place: Some(self.lanes.add_live(request, number)),
            outcome,
            failures: 0,
            last_fault: None,
            first_failed_at: None,
            failed_at: None,
            followed: 0,
            is_suspect: false,
            is_doubted: false,
        };
        self.entries.insert(number, entry);
        self.identities.begin(identity, number);
        HandOver::New(Pending(told))
    }

    /// Lets a request wait for a held event, which becomes live if it has not failed.
    fn join(&mut self, request: RequestId, number: Number) -> Pending {
        let entry = self.entries.get_mut(&number).expect("what is under way is held");
        if entry.failures == 0
            && let Some(place @ Place::Backlog(..)) = entry.place
        {
            self.lanes.remove(number, place);
            entry.place = Some(self.lanes.add_live(request, number));
        }
        Pending(Arc::clone(&entry.outcome))
    }

    /// Returns the next attempt that may be made now, if there is one. It takes a slot: see [`State::free_slot`].
    pub(super) fn next_job(&mut self, now: Instant) -> Option<Job> {
        self.paced_until = None;
        let permit = self.permit(now);
        let suspects_from = self.suspects_from(now);
        let mut number = match permit {
            Permit::Nothing => return None,
            Permit::All => self.lanes.next(now, suspects_from)?,
            Permit::Probe => {
                let probe = self.choose_probe(now, suspects_from);
                if probe.is_none() {
                    self.breaker.tried_all(now, &mut self.rng);
                }
                probe?
            }
        };
        if !self.limit.may_start(now) {
            self.paced_until = self.limit.next();
            return None;
        }
        let (entry, place) = loop {
            let entry = self.entries.get_mut(&number).expect("what has a place is held");
            let place = entry.place.expect("what was chosen is not in flight");
            if permit == Permit::Probe || !entry.leaves_live(&mut self.lanes, number) {
                break (entry, place);
            }
            number = self.lanes.next(now, suspects_from)?;
        };
        if permit == Permit::Probe && matches!(place, Place::Backlog(..)) && !entry.is_suspect {
            self.was_newest = !self.was_newest;
        }
        if entry.is_suspect {
            self.suspect_began = now;
        }
        self.lanes.remove(number, place);
        self.lanes.had_turn(place);
        entry.begin(self.health.accepted);
        let (in_breaker, in_limit) = (self.breaker.begin(), self.limit.start(now));
        Some(Job { number, in_breaker, in_limit, message: entry.message.clone() })
    }

    fn permit(&self, now: Instant) -> Permit {
        if self.is_draining { Permit::All } else { self.breaker.permit(now) }
    }

    /// Returns the time from which on the next suspect may be attempted: `now` if Variance has accepted an event lately. The longer
    /// it accepts nothing, the rarer are these attempts, but each suspect has a few within `retry_for`, since it failed for the
    /// first time before the last acceptance.
    fn suspects_from(&self, now: Instant) -> Instant {
        if self.is_draining || self.breaker.accepts(now) {
            return now;
        }
        let SuspectPacing { gap, round } = self.settings.pacing.suspects;
        let round = round.max(self.health.since_accepted(now) / 4);
        let suspects = u32::try_from(self.suspects).unwrap_or(u32::MAX).max(1);
        now.max(self.suspect_began + gap.min(round / suspects))
    }

    fn choose_probe(&mut self, now: Instant, suspects_from: Instant) -> Option<Number> {
        while let Some(number) = self.lanes.first_live() {
            let entry = self.entries.get_mut(&number).expect("what has a place is held");
            if !entry.leaves_live(&mut self.lanes, number) {
                return Some(number);
            }
        }
        if self.suspects == self.entries.len() {
            return self.lanes.next(now, suspects_from);
        }
        let mut unattempted = self.lanes.backlog(Standing::Unattempted);
        let probe = if self.was_newest { unattempted.next() } else { unattempted.next_back() };
        probe.or_else(|| self.lanes.backlog(Standing::Failed).find(|number| !self.breaker.has_tried(*number)))
    }

    /// Applies the result of an attempt.
    pub(super) fn finish(&mut self, job: &Job, result: AttemptResult, now: Instant) -> Finished {
        let outcome = match self.health.believe(result) {
            AttemptResult::Accepted => {
                self.breaker.accepted(job.in_breaker, now);
                self.health.accepted(now);
                Outcome::Delivered
            }
            AttemptResult::Refused(status) => {
                self.breaker.answered(job.in_breaker);
                Outcome::Refused(Refusal::Status(status))
            }
            AttemptResult::Failed { fault, retry_after } => return self.failed(job, fault, retry_after, now),
        };
        // An attempt that began before a pause was set does not end it.
        if self.breaker.is_closed() {
            self.health.answered(now);
        }
        self.limit.note(job.in_limit, Signal::Answered, now);
        Finished { ended: Some(self.end(job.number, outcome, now)), fault: None, has_opened: false }
    }

    fn failed(&mut self, job: &Job, fault: Fault, retry_after: Option<Duration>, now: Instant) -> Finished {
        let entry = self.entries.get_mut(&job.number).expect("what is in flight is held");
        let was_suspect = entry.is_suspect;
        entry.fail(fault, self.health.accepted);
        self.suspects += usize::from(entry.is_suspect && !was_suspect);
        let is_alone = match fault {
            _ if self.is_draining => true,
            RATE => self.last_limited.replace(job.number).is_none_or(|last| last == job.number),
            _ => entry.is_suspect,
        };
        self.limit.note(job.in_limit, signal_of(fault, retry_after, is_alone), now);
        let binds_all = fault == RATE || !(entry.is_suspect || self.breaker.accepts(now));
        let asked = retry_after.map(|wait| now + wait);
        let has_opened = match asked.filter(|_| binds_all) {
            _ if self.is_draining => false,
            Some(until) => self.breaker.asked(job.in_breaker, until),
            None if entry.is_suspect => {
                self.breaker.failed_alone(job.in_breaker);
                false
            }
            None => {
                let may_be_alone = fault.may_be_of_one_event();
                self.breaker.failed(job.in_breaker, job.number, may_be_alone, now, &mut self.rng)
            }
        };
        let all_fails = self.suspects >= EVENTS_TO_OPEN && self.health.since_accepted(now) >= ALL_FAILS_AFTER;
        if !entry.is_suspect || all_fails || (binds_all && asked.is_some()) {
            self.health.failed(fault, !self.breaker.is_closed(), now);
        }
        if matches!(fault, Fault::RefusesAll(_)) && !std::mem::replace(&mut entry.is_doubted, true) {
            self.health.doubted += 1;
        }
        let due = match self.is_draining {
            true => now + STOPPING.equal_jitter(1, &mut self.rng),
            false => {
                let wait = self.settings.pacing.backoff.full_jitter(entry.failures, &mut self.rng);
                let due = now + wait.max(fault.least_wait());
                asked.filter(|_| !binds_all).map_or(due, |asked| asked.max(due))
            }
        };
        entry.place = Some(self.lanes.add_backlog(entry.standing(), due, job.number));
        let ended = self.gives_up(job.number, now).map(|outcome| self.end(job.number, outcome, now));
        Finished { ended, fault: Some(fault), has_opened }
    }

    /// Notes that the connection of a finished attempt can be used again.
    fn free_slot(&mut self) {
        self.limit.free();
    }

    /// Notes the same, and returns the attempt that may be made on it now.
    pub(super) fn next_in_slot(&mut self, now: Instant) -> Option<Job> {
        self.free_slot();
        self.next_job(now)
    }

    /// Ends the events that have been held for too long. An event in flight ends with its attempt.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Ended> {
        let over = self.entries.iter().take_while(|(_, entry)| self.is_over(entry, now));
        let over = over.filter(|(_, entry)| entry.place.is_some());
        let outcomes: Vec<_> = over.filter_map(|(number, _)| Some((*number, self.gives_up(*number, now)?))).collect();
        outcomes.into_iter().map(|(number, outcome)| self.end(number, outcome, now)).collect()
    }

    fn is_over(&self, entry: &Entry, now: Instant) -> bool {
        now.duration_since(entry.arrived) >= self.settings.retry_for
    }

    /// Returns the outcome of an event that is not in flight, if its time is over.
    fn gives_up(&self, number: Number, now: Instant) -> Option<Outcome> {
        let entry = &self.entries[&number];
        if !self.is_over(entry, now) {
            return None;
        }
        match entry.last_fault {
            Some(fault) if entry.followed_by(self.health.accepted) >= FAILURES_TO_REFUSE => {
                Some(Outcome::Refused(Refusal::KeptFailing(fault)))
            }
            last => {
                let are_last = self.is_complete && self.suspects == self.entries.len();
                let has_failed_since = entry.failed_at == Some(self.health.accepted)
                    && self.health.since_accepted(now) >= self.settings.retry_for;
                let is_abandoned = self.settings.abandon || are_last && has_failed_since;
                is_abandoned.then_some(Outcome::Abandoned(last.or(self.health.reason)))
            }
        }
    }

    /// Returns the time at which to call [`State::expire`] next, if nothing else happens.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let next_over = self.entries.values().find(|entry| !self.is_over(entry, now));
        let expiry = next_over.map(|entry| entry.arrived + self.settings.retry_for);
        // While the breaker is open, a backoff that ends changes nothing.
        let attempt = match self.permit(now) {
            Permit::All => self.lanes.due(self.suspects_from(now)),
            Permit::Probe if self.suspects == self.entries.len() => self.lanes.due(self.suspects_from(now)),
            Permit::Probe => None,
            Permit::Nothing => self.breaker.open_until().filter(|_| !self.entries.is_empty()),
        };
        let attempt = attempt.and_then(|due| Some(due.max(self.limit.next()?)));
        let news = self.health.news_due(self.settings.pacing.log, now);
        expiry.into_iter().chain(attempt).chain(self.paced_until).chain(news).min()
    }

    /// Notes that no further event will be handed over.
    pub(super) fn complete(&mut self) {
        self.is_complete = true;
    }

    /// Ends the pause, the rate and all backoffs, because the process is to stop.
    pub(super) fn drain(&mut self, now: Instant) {
        self.is_draining = true;
        self.breaker.reset();
        self.limit.forget_rate(now);
        for (number, entry) in &mut self.entries {
            if let Some(place @ Place::Backlog(standing, _)) = entry.place {
                self.lanes.remove(*number, place);
                entry.place = Some(self.lanes.add_backlog(standing, now, *number));
            }
        }
    }

    /// Abandons all events, because the process ends.
    pub(super) fn abandon_all(&mut self, now: Instant) -> Vec<Ended> {
        let numbers: Vec<_> = self.entries.keys().copied().collect();
        numbers.into_iter().map(|number| self.end(number, Outcome::Abandoned(None), now)).collect()
    }

    /// Returns the next line for the log, if one is due.
    pub(super) fn news(&mut self, now: Instant) -> Option<News> {
        self.health.news(self.settings.pacing.log, now)
    }

    pub(super) fn held(&self) -> (usize, usize) {
        (self.entries.len(), self.held_bytes)
    }

    /// Returns the present figures for the metrics.
    pub(super) fn snapshot(&self, now: Instant) -> metrics::Snapshot {
        let oldest = self.entries.first_key_value();
        metrics::Snapshot {
            held_events: self.entries.len(),
            held_bytes: self.held_bytes,
            held_limit: self.settings.max_held,
            held_oldest: oldest.map_or(Duration::ZERO, |(_, entry)| now.duration_since(entry.arrived)),
            retry_for: self.settings.retry_for,
            remembered: self.identities.remembered(),
            attempts_in_flight: self.limit.in_flight(),
            attempts_limit: self.limit.value(),
            next_attempt: self.paused(now),
            last_success: self.health.last_success(),
            state: self.health.state,
        }
    }

    /// Applies other settings from now on, except for `max_held`.
    pub(super) fn reload(&mut self, settings: &OutboxSettings) {
        self.settings = OutboxSettings { max_held: self.settings.max_held, ..settings.clone() };
        self.limit.set_most(settings.concurrency);
    }

    /// Forgets the refusals and the pause of the former destination.
    pub(super) fn destination_changed(&mut self, now: Instant) {
        self.limit.forget_rate(now);
        self.identities.forget_refusals();
        self.breaker.reset();
    }

    /// Returns the number of waiters for held events.
    #[cfg(test)]
    pub(super) fn waiters(&self) -> usize {
        self.entries.values().map(|entry| Arc::strong_count(&entry.outcome) - 1).sum()
    }

    /// Whether a known event is one of the same bytes.
    pub(super) fn has_same_bytes(&self, identity: &Identity) -> bool {
        self.identities.has_same_bytes(identity)
    }

    /// Whether an event that comes now will have to wait for a probe that is not its own, and how long at least.
    pub(super) fn paused(&self, now: Instant) -> Option<Duration> {
        match (self.permit(now), self.breaker.open_until()) {
            (Permit::All, _) => None,
            (Permit::Probe, _) if self.entries.is_empty() => None,
            (_, until) => Some(until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))),
        }
    }

    fn end(&mut self, number: Number, outcome: Outcome, now: Instant) -> Ended {
        let entry = self.entries.remove(&number).expect("it is held");
        if let Some(place) = entry.place {
            self.lanes.remove(number, place);
        }
        self.held_bytes -= cost(&entry.message);
        self.suspects -= usize::from(entry.is_suspect);
        self.identities.end(entry.identity, outcome, now);
        let attempts =
            entry.failures + u32::from(matches!(outcome, Outcome::Delivered | Outcome::Refused(Refusal::Status(_))));
        Ended { message: entry.message, outcome, arrived: entry.arrived, attempts, told: entry.outcome }
    }
}

/// What a fault says of the limit, unless it may be about its event alone.
fn signal_of(fault: Fault, retry_after: Option<Duration>, is_alone: bool) -> Signal {
    match fault {
        _ if is_alone => Signal::Other,
        RATE => Signal::TooMany(retry_after),
        Fault::Status(StatusCode::SERVICE_UNAVAILABLE) | Fault::Timeout => Signal::Overloaded,
        _ => Signal::Other,
    }
}

/// The memory that an entry takes, the message's included.
fn cost(message: &Message) -> usize {
    message.allocated() + ENTRY_COST
}

#[cfg(test)]
mod tests;

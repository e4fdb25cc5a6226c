//! The rules as a whole, against a model that knows what was promised but not how it is kept.

use std::collections::BTreeMap;

use fastrand::Rng;
use http::StatusCode;
use proptest::prelude::{Just, ProptestConfig, Strategy, prop, prop_oneof, proptest};

use super::*;
use crate::{
    backoff::Backoff,
    destination::Fault,
    outbox::{Pacing, memory::IdentityKey},
    variance::Call,
};

const SECOND: Duration = Duration::from_secs(1);
const RETRY_FOR: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
const EVENTS: u8 = 12;
const CONCURRENCY: usize = 4;
const BYTES: usize = 1000;
/// Room for eight of them.
const MAX_HELD: usize = 8 * (BYTES + ENTRY_COST);

#[derive(Clone, Copy, Debug)]
enum Step {
    HandOver(u8),
    HangUp(u8),
    Finish(u8, AttemptResult),
    FreeSlot,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let failed = |fault, retry_after| AttemptResult::Failed { fault, retry_after };
    let result = prop_oneof![
        2 => Just(AttemptResult::Accepted),
        1 => Just(AttemptResult::Refused(StatusCode::CONFLICT)),
        6 => Just(failed(Fault::Timeout, None)),
        1 => (1..400_u32).prop_map(move |wait| failed(Fault::Broken, Some(wait * SECOND / 4))),
    ];
    prop_oneof![
        6 => (0..EVENTS).prop_map(Step::HandOver),
        1 => (0..EVENTS).prop_map(Step::HangUp),
        6 => (0..EVENTS, result).prop_map(|(which, result)| Step::Finish(which, result)),
        5 => Just(Step::FreeSlot),
        3 => (0..2000_u64).prop_map(Step::Wait),
        1 => (0..70_000_u64).prop_map(Step::Wait),
    ]
}

/// What the outside knows of an event.
#[derive(Debug, Default)]
struct Event {
    held: Option<Held>,
    ended: Option<(Outcome, Instant)>,
}

#[derive(Debug)]
struct Held {
    arrived: Instant,
    waiters: Vec<Arc<SetOnce<Outcome>>>,
    is_in_flight: bool,
    failures: u32,
    /// When it is to be ready at the latest.
    ready_by: Instant,
}

/// The state, with a clock and a timer that are never late. After each call the attempts that are allowed begin.
struct World {
    state: State,
    key: IdentityKey,
    now: Instant,
    timer: Option<Instant>,
    jobs: Vec<Job>,
    /// Attempts that are finished, but whose reply is still being read.
    being_read: usize,
    events: BTreeMap<u8, Event>,
    last_delivered: Option<Instant>,
    failed_last_probe: Option<u8>,
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let pacing =
            Pacing { backoff: Backoff::new(BACKOFF.0, BACKOFF.1), open_for: Backoff::new(SECOND, 60 * SECOND) };
        let settings = OutboxSettings { concurrency: CONCURRENCY, retry_for: RETRY_FOR, max_held: MAX_HELD, pacing };
        let mut world = Self {
            state: State::new(settings, now, Rng::with_seed(seed)),
            key: IdentityKey::random(),
            now,
            timer: None,
            jobs: Vec::new(),
            being_read: 0,
            events: (0..EVENTS).map(|id| (id, Event::default())).collect(),
            last_delivered: None,
            failed_last_probe: None,
        };
        world.settle();
        world
    }

    fn held(&self) -> impl Iterator<Item = (u8, &Held)> {
        self.events.iter().filter_map(|(id, event)| Some((*id, event.held.as_ref()?)))
    }

    fn held_mut(&mut self, id: u8) -> &mut Held {
        self.events.get_mut(&id).unwrap().held.as_mut().expect("it is held")
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::HandOver(id) => self.hand_over(id),
            Step::HangUp(id) => {
                if let Some(held) = &mut self.events.get_mut(&id).unwrap().held {
                    held.waiters.pop();
                }
            }
            Step::Finish(which, result) if !self.jobs.is_empty() => {
                let job = self.jobs.swap_remove(usize::from(which) % self.jobs.len());
                self.finish(&job, result);
            }
            Step::Finish(..) => {}
            Step::FreeSlot => self.free_slot(),
            Step::Wait(milliseconds) => {
                let end = self.now + Duration::from_millis(milliseconds);
                while let Some(due) = self.timer.filter(|due| *due <= end) {
                    self.now = due;
                    self.expire();
                }
                self.now = end;
            }
        }
        self.check();
    }

    fn hand_over(&mut self, id: u8) {
        let identity = self.key.identity([&[id], b"e", b"d"]);
        let message = Message::write(Call::Capture, &format!("{id:03}"), &mut Vec::new(), |out| {
            out.extend_from_slice(&[b'x'; BYTES - 3]);
        });
        let (held, bytes) = self.state.held();
        let known = self.events[&id].ended;
        let admission = self.state.hand_over(identity, &message, self.now);
        let event = self.events.get_mut(&id).unwrap();
        match (admission, &mut event.held) {
            (Admission::Joined(waiter), Some(held)) => held.waiters.push(waiter),
            (Admission::New(waiter), None) => {
                let has_expired = |ended: Instant| self.now - ended > HOUR;
                assert!(known.is_none_or(|(_, ended)| has_expired(ended)), "it had ended: {known:?}");
                assert!(bytes + BYTES + ENTRY_COST <= MAX_HELD, "there was no room");
                let (arrived, waiters) = (self.now, vec![waiter]);
                event.held = Some(Held { arrived, waiters, is_in_flight: false, failures: 0, ready_by: self.now });
                event.ended = None;
            }
            (Admission::Final(outcome), None) => assert_eq!(known.map(|(outcome, _)| outcome), Some(outcome)),
            (Admission::Full, None) => {
                assert!(known.is_none_or(|(_, ended)| self.now - ended > HOUR), "it had ended: {known:?}");
                assert!(bytes + BYTES + ENTRY_COST > MAX_HELD, "there was room beside {held}");
            }
            (admission, held) => panic!("{admission:?} of {held:?}"),
        }
        self.settle();
    }

    /// Begins the attempts that are allowed, and sets the timer.
    fn settle(&mut self) {
        while self.attempt() {}
        self.timer = self.state.due(self.now);
        assert!(self.timer.is_none_or(|due| due > self.now), "something is due that nothing was done about");
    }

    fn attempt(&mut self) -> bool {
        let permit = self.state.breaker.permit(self.now);
        let slots = CONCURRENCY - self.jobs.len() - self.being_read;
        let Some(job) = self.state.next_job(self.now) else {
            if permit == Permit::All && slots > 0 {
                let late = self.held().find(|(_, held)| !held.is_in_flight && held.ready_by <= self.now);
                assert!(late.is_none(), "{late:?} is late");
            }
            return false;
        };
        assert!(slots > 0, "{job:?} is one too many");
        let id: u8 = job.message.id().parse().unwrap();
        match permit {
            Permit::Nothing => panic!("{job:?} while the breaker is open"),
            Permit::All => assert_eq!(job.probe, None),
            Permit::Probe => {
                assert!(job.probe.is_some());
                assert_eq!(self.state.breaker.permit(self.now), Permit::Nothing, "a probe is under way");
                let others = self.held().filter(|(other, held)| *other != id && !held.is_in_flight);
                let others: Vec<_> = others.filter(|(other, _)| Some(*other) != self.failed_last_probe).collect();
                assert!(
                    Some(id) != self.failed_last_probe || others.is_empty(),
                    "it has just failed, unlike {others:?}"
                );
                let failures = self.events[&id].held.as_ref().unwrap().failures;
                assert!(others.iter().all(|(_, other)| other.failures >= failures), "{failures}: {others:?}");
            }
        }
        let held = self.held_mut(id);
        assert!(!std::mem::replace(&mut held.is_in_flight, true), "two attempts at once");
        self.jobs.push(job);
        true
    }

    fn finish(&mut self, job: &Job, result: AttemptResult) {
        let id: u8 = job.message.id().parse().unwrap();
        let now = self.now;
        let (ended, _) = self.state.finish(job, result, now);
        self.being_read += 1;
        let others_were_taken = self.last_delivered;
        let held = self.held_mut(id);
        held.is_in_flight = false;
        let (arrived, expected) = (
            held.arrived,
            match result {
                AttemptResult::Accepted => Some(Outcome::Delivered),
                AttemptResult::Refused(status) => Some(Outcome::Refused(Refusal::Status(status))),
                AttemptResult::Failed { .. } => {
                    held.failures += 1;
                    let doubled = BACKOFF.0 * 2_u32.pow((held.failures - 1).min(20));
                    held.ready_by = now + doubled.min(BACKOFF.1);
                    None
                }
            },
        );
        match expected {
            Some(outcome) => {
                assert!(self.state.breaker.is_closed(), "Variance has answered");
                self.failed_last_probe = None;
                if outcome == Outcome::Delivered {
                    self.last_delivered = Some(now);
                }
                self.ended(ended.expect("it was answered"), outcome);
            }
            None => {
                if job.probe.is_some() {
                    self.failed_last_probe = Some(id);
                }
                assert_eq!(ended.is_some(), now >= arrived + RETRY_FOR, "its time is over, or not: {ended:?}");
                if let Some(ended) = ended {
                    self.gave_up(ended, others_were_taken);
                }
            }
        }
        self.settle();
    }

    fn free_slot(&mut self) {
        if self.being_read > 0 {
            self.being_read -= 1;
            self.state.free_slot();
            self.settle();
        }
    }

    fn expire(&mut self) {
        for ended in self.state.expire(self.now) {
            self.gave_up(ended, self.last_delivered);
        }
        let late = self.held().find(|(_, held)| !held.is_in_flight && self.now >= held.arrived + RETRY_FOR);
        assert!(late.is_none(), "{late:?} has been held for too long");
        self.settle();
    }

    fn gave_up(&mut self, ended: Ended, last_delivered: Option<Instant>) {
        let held = self.events[&ended.message.id().parse().unwrap()].held.as_ref().expect("it was held");
        assert!(self.now >= held.arrived + RETRY_FOR, "too early");
        let outcome = match last_delivered.is_some_and(|last| last >= held.arrived) {
            true => Outcome::Refused(Refusal::KeptFailing),
            false => Outcome::Abandoned,
        };
        self.ended(ended, outcome);
    }

    fn ended(&mut self, ended: Ended, outcome: Outcome) {
        assert_eq!(ended.outcome, outcome);
        let id = ended.message.id().parse().unwrap();
        self.failed_last_probe.take_if(|failed| *failed == id);
        let event = self.events.get_mut(&id).unwrap();
        let held = event.held.take().expect("it ends once");
        ended.tell();
        let told: Vec<_> = held.waiters.iter().map(|waiter| waiter.get().copied()).collect();
        assert_eq!(told, vec![Some(outcome); held.waiters.len()], "all who wait are told");
        if outcome != Outcome::Abandoned {
            event.ended = Some((outcome, self.now));
        }
    }

    fn check(&self) {
        let State { entries, waiting, .. } = &self.state;
        let mut due: Vec<_> = entries.iter().filter_map(|(number, entry)| Some((entry.due?, *number))).collect();
        due.sort_unstable();
        assert!(waiting.iter().eq(&due), "an entry waits in one place: {waiting:?}, {due:?}");
        let count = self.held().count();
        assert_eq!(self.state.held(), (count, count * (BYTES + ENTRY_COST)));
        assert_eq!(self.state.waiters(), self.held().map(|(_, held)| held.waiters.len()).sum::<usize>());
        assert_eq!(self.held().filter(|(_, held)| held.is_in_flight).count(), self.jobs.len());
        let oldest = self.held().map(|(_, held)| held.arrived).min();
        assert_eq!(self.state.oldest(self.now), oldest.map_or(Duration::ZERO, |oldest| self.now - oldest));
    }

    /// Variance takes everything from now on.
    fn fair_weather(&mut self) {
        for _ in 0..1000 {
            while self.being_read > 0 || !self.jobs.is_empty() {
                self.free_slot();
                if let Some(job) = self.jobs.pop() {
                    self.finish(&job, AttemptResult::Accepted);
                }
                self.check();
            }
            if self.state.held().0 == 0 {
                return;
            }
            self.now = self.timer.expect("what is held will be looked at again");
            self.expire();
        }
        panic!("{} events never leave", self.state.held().0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_no_event_is_lost_doubled_late_or_in_anothers_way(
        steps in prop::collection::vec(step(), 0..200),
        seed: u64,
    ) {
        let mut world = World::new(seed);
        steps.into_iter().for_each(|step| world.take(step));
        world.fair_weather();
    }
}

#[test]
fn an_outage_without_end_leaves_nothing_of_the_events_that_it_outlasts() {
    let mut world = World::new(1);
    let fault = AttemptResult::Failed { fault: Fault::Timeout, retry_after: Some(HOUR * 1000) };
    world.take(Step::HandOver(0));
    world.take(Step::Finish(0, fault));
    for _ in 0..100 {
        (0..EVENTS).for_each(|id| world.take(Step::HandOver(id)));
        world.take(Step::Wait(RETRY_FOR.as_millis().try_into().unwrap()));
        assert_eq!(world.state.held(), (0, 0));
    }
    assert!(world.state.entries.is_empty() && world.state.waiting.is_empty());
}

#[test]
fn what_failed_is_not_attempted_again_before_its_backoff_is_over() {
    let mut world = World::new(1);
    world.state.settings.pacing.backoff = Backoff::new(HOUR, HOUR);
    world.state.settings.retry_for = 2 * HOUR;
    world.take(Step::HandOver(0));
    world.take(Step::Finish(0, AttemptResult::Failed { fault: Fault::Timeout, retry_after: None }));
    world.take(Step::FreeSlot);
    let due = world.state.waiting.first().expect("it waits").0;
    assert!(due > world.now);
    assert_eq!(world.timer, Some(due));
    assert!(world.state.next_job(due - Duration::from_nanos(1)).is_none());
    assert!(world.state.next_job(due).is_some());
}

#[test]
fn when_the_breaker_closes_those_that_are_ready_do_not_wait_for_the_reply_that_closed_it_to_be_read() {
    let mut world = World::new(1);
    world.take(Step::HandOver(0));
    world.take(Step::Finish(0, AttemptResult::Failed { fault: Fault::Timeout, retry_after: Some(SECOND) }));
    world.take(Step::Wait(1000));
    world.take(Step::HandOver(1));
    assert_eq!(world.jobs.len(), 1, "while one probes");
    world.take(Step::Finish(0, AttemptResult::Accepted));
    assert_eq!(world.jobs.len(), 1, "the other has begun");
}

#[test]
fn while_a_probe_is_under_way_events_end_in_time() {
    let mut world = World::new(1);
    world.take(Step::HandOver(0));
    world.take(Step::Finish(0, AttemptResult::Failed { fault: Fault::Timeout, retry_after: Some(SECOND) }));
    world.take(Step::HandOver(1));
    world.take(Step::Wait(1000));
    world.take(Step::Wait(RETRY_FOR.as_millis().try_into().unwrap()));
    assert_eq!(world.held().count(), 1, "only what is under way is still held");
}

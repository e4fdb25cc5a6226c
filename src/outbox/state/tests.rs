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
const BYTES: usize = 1000;
/// Room for eight of them.
const MAX_HELD: usize = 8 * (BYTES + ENTRY_COST);

#[derive(Clone, Copy, Debug)]
enum Step {
    HandOver(u8),
    HangUp(u8),
    Attempt,
    Finish(u8, AttemptResult),
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
        8 => Just(Step::Attempt),
        6 => (0..EVENTS, result).prop_map(|(which, result)| Step::Finish(which, result)),
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
    turn: Turn,
    waiters: Vec<Arc<Progress>>,
    is_in_flight: bool,
    failures: u32,
    /// When it is to be ready at the latest.
    ready_by: Instant,
}

/// The state, with a clock, workers and a pacer that are never late.
struct World {
    state: State,
    key: IdentityKey,
    start: Instant,
    now: Instant,
    pacer: Option<Instant>,
    jobs: Vec<Job>,
    events: BTreeMap<u8, Event>,
    last_delivered: Option<Instant>,
    failed_last_probe: Option<u8>,
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let pacing =
            Pacing { backoff: Backoff::new(BACKOFF.0, BACKOFF.1), open_for: Backoff::new(SECOND, 60 * SECOND) };
        let settings = OutboxSettings { concurrency: 4, retry_for: RETRY_FOR, max_held: MAX_HELD, pacing };
        let mut world = Self {
            state: State::new(settings, now, Rng::with_seed(seed)),
            key: IdentityKey::random(),
            start: now,
            now,
            pacer: None,
            jobs: Vec::new(),
            events: (0..EVENTS).map(|id| (id, Event::default())).collect(),
            last_delivered: None,
            failed_last_probe: None,
        };
        world.tick();
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
                let Some(held) = &mut self.events.get_mut(&id).unwrap().held else { return };
                let (turn, waiter) = (held.turn, held.waiters.pop());
                if let Some(waiter) = waiter {
                    self.state.detach(&[turn], &waiter);
                }
            }
            Step::Attempt => drop(self.attempt()),
            Step::Finish(which, result) if !self.jobs.is_empty() => {
                let job = self.jobs.swap_remove(usize::from(which) % self.jobs.len());
                self.finish(&job, result);
            }
            Step::Finish(..) => {}
            Step::Wait(milliseconds) => {
                let end = self.now + Duration::from_millis(milliseconds);
                while let Some(due) = self.pacer.filter(|due| *due <= end) {
                    self.now = due;
                    self.tick();
                }
                self.now = end;
            }
        }
        self.check();
    }

    fn hand_over(&mut self, id: u8) {
        let progress = Arc::<Progress>::default();
        let waiter = Waiter { progress: Arc::clone(&progress), index: id.into() };
        let identity = self.key.identity([&[id], b"e", b"d"]);
        let message = Message::write(Call::Capture, &format!("{id:03}"), &mut Vec::new(), |out| {
            out.extend_from_slice(&[b'x'; BYTES - 3]);
        });
        let (held, bytes) = self.state.held();
        let seconds = |time: Instant| time.duration_since(self.start).as_secs();
        let is_remembered = |ended: Instant| seconds(self.now) - seconds(ended) <= HOUR.as_secs();
        let known = self.events[&id].ended.filter(|(_, ended)| is_remembered(*ended));
        let admission = self.state.hand_over(identity, &message, waiter, self.now);
        let event = self.events.get_mut(&id).unwrap();
        match (admission, &mut event.held) {
            (Admission::Joined(turn), Some(held)) => {
                assert_eq!(turn, held.turn);
                held.waiters.push(progress);
            }
            (Admission::New(turn), None) => {
                assert_eq!(known, None, "it had ended");
                assert!(bytes + BYTES + ENTRY_COST <= MAX_HELD, "there was no room");
                let (arrived, waiters) = (self.now, vec![progress]);
                event.held =
                    Some(Held { arrived, turn, waiters, is_in_flight: false, failures: 0, ready_by: self.now });
                event.ended = None;
            }
            (Admission::Final(outcome), None) => assert_eq!(known.map(|(outcome, _)| outcome), Some(outcome)),
            (Admission::Full, None) => {
                assert_eq!(known, None);
                assert!(bytes + BYTES + ENTRY_COST > MAX_HELD, "there was room beside {held}");
            }
            (admission, held) => panic!("{admission:?} of {held:?}"),
        }
        self.wake_pacer();
    }

    /// A worker looks for something to do.
    fn attempt(&mut self) -> bool {
        let permit = self.state.breaker.permit(self.now);
        let promised = self.state.has_job(self.now);
        let Some(job) = self.state.next_job(self.now) else {
            if permit == Permit::All {
                let late = self.held().find(|(_, held)| !held.is_in_flight && held.ready_by <= self.now);
                assert!(late.is_none(), "{late:?} is late");
            }
            return false;
        };
        assert!(promised, "nobody was told of {job:?}");
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
        let ended = self.state.finish(job, result, now);
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
                self.ended(&ended.expect("it was answered"), outcome);
            }
            None => {
                if job.probe.is_some() {
                    self.failed_last_probe = Some(id);
                }
                assert_eq!(ended.is_some(), now >= arrived + RETRY_FOR, "its time is over, or not: {ended:?}");
                if let Some(ended) = ended {
                    self.gave_up(&ended, others_were_taken);
                }
            }
        }
        self.wake_pacer();
    }

    fn tick(&mut self) {
        for ended in self.state.tick(self.now) {
            self.gave_up(&ended, self.last_delivered);
        }
        let late = self.held().find(|(_, held)| !held.is_in_flight && self.now >= held.arrived + RETRY_FOR);
        assert!(late.is_none(), "{late:?} has been held for too long");
        self.pacer = self.state.sleep_until(self.now, None);
    }

    fn wake_pacer(&mut self) {
        if self.state.is_due_earlier() {
            self.tick();
        }
    }

    fn gave_up(&mut self, ended: &Ended, last_delivered: Option<Instant>) {
        let held = self.events[&ended.message.id().parse().unwrap()].held.as_ref().expect("it was held");
        assert!(self.now >= held.arrived + RETRY_FOR, "too early");
        let outcome = match last_delivered.is_some_and(|last| last >= held.arrived) {
            true => Outcome::Refused(Refusal::KeptFailing),
            false => Outcome::Abandoned,
        };
        self.ended(ended, outcome);
    }

    fn ended(&mut self, ended: &Ended, outcome: Outcome) {
        assert_eq!(ended.outcome, outcome);
        let id = ended.message.id().parse().unwrap();
        self.failed_last_probe.take_if(|failed| *failed == id);
        let event = self.events.get_mut(&id).unwrap();
        let held = event.held.take().expect("it ends once");
        let told: Vec<_> = ended.waiters.iter().map(|waiter| Arc::as_ptr(&waiter.progress)).collect();
        assert_eq!(told, held.waiters.iter().map(Arc::as_ptr).collect::<Vec<_>>(), "all who wait are told");
        if ended.outcome != Outcome::Abandoned {
            event.ended = Some((ended.outcome, self.now));
        }
    }

    fn check(&self) {
        let State { entries, ready, waiting, .. } = &self.state;
        let places = ready.iter().chain(waiting.iter().map(|Reverse((_, turn))| turn));
        let mut standing: Vec<_> = places.filter(|turn| stands(entries, **turn)).map(|turn| turn.entry).collect();
        standing.sort_unstable();
        assert!(standing.is_sorted_by(|one, next| one < next), "an entry stands in two places: {standing:?}");
        let count = self.held().count();
        assert_eq!(self.state.held(), (count, count * (BYTES + ENTRY_COST)));
        assert_eq!(self.held().filter(|(_, held)| held.is_in_flight).count(), self.jobs.len());
        let oldest = self.held().map(|(_, held)| held.arrived).min();
        if self.jobs.is_empty() {
            assert_eq!(self.state.oldest(self.now), oldest.map_or(Duration::ZERO, |oldest| self.now - oldest));
        }
    }

    /// Variance takes everything from now on.
    fn fair_weather(&mut self) {
        for _ in 0..1000 {
            while self.attempt() {}
            while let Some(job) = self.jobs.pop() {
                self.finish(&job, AttemptResult::Accepted);
                while self.attempt() {}
            }
            self.check();
            if self.state.held().0 == 0 {
                return;
            }
            self.now = self.pacer.expect("what is held will be looked at again");
            self.tick();
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
    world.take(Step::Attempt);
    world.take(Step::Finish(0, fault));
    for _ in 0..100 {
        (0..EVENTS).for_each(|id| world.take(Step::HandOver(id)));
        world.take(Step::Wait(RETRY_FOR.as_millis().try_into().unwrap()));
        assert_eq!(world.state.held(), (0, 0));
    }
    let State { ready, waiting, arrivals, .. } = &world.state;
    let places = ready.len() + waiting.len() + arrivals.len();
    assert!(places < 300, "{places}");
}

#[test]
fn what_failed_is_not_attempted_again_before_its_backoff_is_over() {
    let mut world = World::new(1);
    world.state.settings.pacing.backoff = Backoff::new(HOUR, HOUR);
    world.state.settings.retry_for = 2 * HOUR;
    world.take(Step::HandOver(0));
    world.take(Step::Attempt);
    world.take(Step::Finish(0, AttemptResult::Failed { fault: Fault::Timeout, retry_after: None }));
    let due = world.state.waiting.peek().expect("it waits").0.0;
    assert!(due > world.now);
    for (now, is_ready) in [(world.now, false), (due - Duration::from_nanos(1), false), (due, true)] {
        assert!(world.state.tick(now).is_empty());
        assert_eq!(world.state.has_job(now), is_ready);
    }
}

#[test]
fn when_the_breaker_closes_those_that_are_ready_do_not_wait_for_the_worker_that_closed_it() {
    let mut world = World::new(1);
    world.take(Step::HandOver(0));
    world.take(Step::Attempt);
    world.take(Step::Finish(0, AttemptResult::Failed { fault: Fault::Timeout, retry_after: Some(SECOND) }));
    world.take(Step::Wait(1000));
    let probe = world.state.next_job(world.now).expect("the pause is over");
    world.take(Step::HandOver(1));
    assert!(!world.state.has_job(world.now), "while one probes");
    world.state.finish(&probe, AttemptResult::Accepted, world.now);
    assert!(world.state.has_job(world.now));
    assert!(world.state.is_due_earlier(), "the pacer wakes a worker");
}

#[test]
fn while_a_probe_is_under_way_events_end_in_time() {
    let mut world = World::new(1);
    world.take(Step::HandOver(0));
    world.take(Step::Attempt);
    world.take(Step::Finish(0, AttemptResult::Failed { fault: Fault::Timeout, retry_after: Some(SECOND) }));
    world.take(Step::HandOver(1));
    world.take(Step::Wait(1000));
    world.take(Step::Attempt);
    world.take(Step::Wait(RETRY_FOR.as_millis().try_into().unwrap()));
    assert_eq!(world.held().count(), 1, "only what is under way is still held");
}

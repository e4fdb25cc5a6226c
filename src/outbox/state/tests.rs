//! The rules as a whole, against a second implementation that knows what was promised and remembers everything, and that
//! decides nothing by itself: after each step it checks what the state has decided.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use fastrand::Rng;
use http::StatusCode;
use proptest::prelude::{Just, ProptestConfig, Strategy, prop, prop_oneof, proptest};

use super::*;
use crate::{
    metrics::StateLabel,
    outbox::{LogPacing, Pacing, identities::IdentityKey},
    variance::Call,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const RETRY_FOR: Duration = Duration::from_secs(60);
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
const RECENT: Duration = Duration::from_secs(2);
const SUSPECTS: SuspectPacing = SuspectPacing { gap: Duration::from_secs(2), round: Duration::from_secs(6) };
const LOG: LogPacing = LogPacing { change: Duration::from_secs(10), lasting: Duration::from_secs(300) };
const EVENTS: u8 = 12;
const REQUESTS: u64 = 4;
const CONCURRENCY: usize = 4;
const BYTES: usize = 1000;
/// Room for eight of them.
const MAX_HELD: usize = 8 * (BYTES + ENTRY_COST);
const TIMEOUT: AttemptResult = AttemptResult::Failed { fault: Fault::Timeout, retry_after: None };

#[derive(Clone, Copy, Debug)]
enum Step {
    HandOver(u8, u64),
    HangUp(u8),
    Finish(u8, AttemptResult),
    FreeSlot,
    Wait(u64),
    Change,
    Stop,
}

fn status(code: u16, retry_after: Option<Duration>) -> AttemptResult {
    let fault = Fault::Status(StatusCode::from_u16(code).unwrap());
    AttemptResult::Failed { fault, retry_after }
}

fn step() -> impl Strategy<Value = Step> {
    let asks = |code| (1..400_u32).prop_map(move |wait| status(code, Some(wait * SECOND / 8)));
    let result = prop_oneof![
        6 => Just(AttemptResult::Accepted),
        3 => Just(AttemptResult::Refused(StatusCode::CONFLICT)),
        4 => Just(TIMEOUT),
        4 => Just(status(500, None)),
        2 => Just(status(429, None)),
        1 => asks(429),
        1 => asks(503),
    ];
    prop_oneof![
        12 => (0..EVENTS, 0..REQUESTS).prop_map(|(id, request)| Step::HandOver(id, request)),
        2 => (0..EVENTS).prop_map(Step::HangUp),
        16 => (0..EVENTS, result).prop_map(|(which, result)| Step::Finish(which, result)),
        14 => Just(Step::FreeSlot),
        6 => (0..2000_u64).prop_map(Step::Wait),
        2 => (0..70_000_u64).prop_map(Step::Wait),
        1 => Just(Step::Change),
    ]
}

/// What the outside knows of an event.
#[derive(Debug, Default)]
struct Event {
    held: Option<Held>,
    ended: Option<(Outcome, Instant)>,
    /// Makes it another event.
    name: u8,
}

#[derive(Debug)]
struct Held {
    arrival: u64,
    arrived: Instant,
    waiters: Vec<Pending>,
    is_in_flight: bool,
    failures: u32,
    last_fault: Option<Fault>,
    /// Each failure but those with a 429: how many others had been accepted then, and when the next attempt began.
    blamed: Vec<(usize, Option<usize>)>,
    /// When it may be attempted again.
    ready: (Instant, Instant),
    is_doubted: bool,
}

impl Held {
    fn is_live(&self) -> bool {
        !self.is_in_flight && self.failures == 0 && !self.waiters.is_empty()
    }

    fn is_suspect(&self) -> bool {
        let (first, last) = (self.blamed.first(), self.blamed.last());
        first.zip(last).is_some_and(|((first, _), (last, _))| first < last)
    }

    fn has_failed_by_itself(&self, accepted: usize) -> bool {
        let followed = self.blamed.iter().filter(|(then, next)| next.unwrap_or(accepted) > *then);
        followed.count() >= 3
    }
}

/// A pause, as it was promised.
#[derive(Debug)]
struct Expected {
    until: Instant,
    /// The attempts that began before it.
    before: usize,
    probe: Option<usize>,
    /// The events that have been tried since it was over, and failed.
    failed: BTreeSet<u64>,
}

/// The state, with a clock and a timer that are never late. After each call the attempts that are allowed begin.
struct World {
    state: State,
    key: IdentityKey,
    now: Instant,
    timer: Option<Instant>,
    /// With the number of the attempt.
    jobs: Vec<(usize, Job)>,
    /// Attempts that are finished, but whose reply is still being read.
    being_read: usize,
    events: BTreeMap<u8, Event>,
    arrivals: u64,
    attempts: usize,
    accepted: usize,
    last_accepted: Option<Instant>,
    refused_in_a_row: usize,
    last_suspect: Instant,
    pause: Option<Expected>,
    openings: u32,
    failed_in_a_row: BTreeSet<u64>,
    /// The end of the queue that the last probe came from, if it was no live event.
    last_end: Option<bool>,
    live_in_a_row: usize,
    /// The requests whose live events were attempted, and since when in this list others wait.
    turns: Vec<RequestId>,
    waiting: BTreeMap<RequestId, usize>,
    /// The request that each live event stands for, and how many of a request's have left without their turn.
    standing: BTreeMap<u8, RequestId>,
    skipped: BTreeMap<RequestId, usize>,
    is_draining: bool,
    lines: Vec<(Instant, News)>,
    outcomes: Vec<Outcome>,
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let pacing = Pacing {
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            suspects: SUSPECTS,
            open_for: Backoff::new(SECOND, LONGEST_PAUSE),
            recent: RECENT,
            refusals_known_for: MINUTE,
            log: LOG,
        };
        let settings = OutboxSettings {
            concurrency: CONCURRENCY,
            retry_for: RETRY_FOR,
            abandon: true,
            max_held: MAX_HELD,
            pacing,
        };
        let mut world = Self {
            state: State::new(settings, now, Rng::with_seed(seed)),
            key: IdentityKey::random(),
            now,
            timer: None,
            jobs: Vec::new(),
            being_read: 0,
            events: (0..EVENTS).map(|id| (id, Event::default())).collect(),
            arrivals: 0,
            attempts: 0,
            accepted: 0,
            last_accepted: None,
            refused_in_a_row: 0,
            last_suspect: now,
            pause: None,
            openings: 0,
            failed_in_a_row: BTreeSet::new(),
            last_end: None,
            live_in_a_row: 0,
            turns: Vec::new(),
            waiting: BTreeMap::new(),
            standing: BTreeMap::new(),
            skipped: BTreeMap::new(),
            is_draining: false,
            lines: Vec::new(),
            outcomes: Vec::new(),
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
            Step::HandOver(id, request) => self.hand_over(id, RequestId(request)),
            Step::HangUp(id) => {
                if let Some(held) = &mut self.events.get_mut(&id).unwrap().held {
                    held.waiters.pop();
                }
            }
            Step::Finish(which, result) if !self.jobs.is_empty() => {
                let (attempt, job) = self.jobs.swap_remove(usize::from(which) % self.jobs.len());
                self.finish(attempt, &job, result);
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
            Step::Change => {
                self.state.destination_changed(self.now);
                (self.pause, self.openings) = (None, 0);
                self.failed_in_a_row.clear();
                for event in self.events.values_mut() {
                    event.ended.take_if(|(outcome, _)| *outcome != Outcome::Delivered);
                }
                self.settle();
            }
            Step::Stop => {
                self.state.drain(self.now);
                (self.is_draining, self.pause) = (true, None);
                let now = self.now;
                self.events.values_mut().flat_map(|event| &mut event.held).for_each(|held| held.ready = (now, now));
                self.settle();
            }
        }
        self.check();
    }

    fn hand_over(&mut self, id: u8, request: RequestId) {
        let identity = self.key.identity([&[id], &[self.events[&id].name], b"d"], &[id]);
        let message = Message::write(BYTES, Call::Capture, &format!("{id:03}"), &mut Vec::new(), |out| {
            out.push(&[b'x'; BYTES - 3]);
        });
        let message = message.expect("it is no larger");
        let (held, bytes) = self.state.held();
        let known = self.events[&id].ended;
        let age = known.map(|(_, ended)| self.now - ended);
        let is_known = match known {
            Some((Outcome::Delivered, _)) => age < Some(HOUR),
            Some(_) => age < Some(MINUTE - SECOND),
            None => false,
        };
        let handed_over = self.state.hand_over(request, identity, &message, self.now);
        let event = self.events.get_mut(&id).unwrap();
        match (handed_over, &mut event.held) {
            (HandOver::Joined(waiter), Some(held)) => held.waiters.push(waiter),
            (HandOver::New(waiter), None) => {
                assert!(!is_known, "it had ended: {known:?}");
                assert!(bytes + BYTES + ENTRY_COST <= MAX_HELD, "there was no room");
                self.arrivals += 1;
                event.held = Some(Held {
                    arrival: self.arrivals,
                    arrived: self.now,
                    waiters: vec![waiter],
                    is_in_flight: false,
                    failures: 0,
                    last_fault: None,
                    blamed: Vec::new(),
                    ready: (self.now, self.now),
                    is_doubted: false,
                });
                event.ended = None;
            }
            (HandOver::Ended(outcome), None) => {
                assert_eq!(known.map(|(outcome, _)| outcome), Some(outcome));
                assert!(outcome == Outcome::Delivered || age <= Some(MINUTE), "a refusal of {age:?} ago");
            }
            (HandOver::Full, None) => {
                assert!(!is_known, "it had ended: {known:?}");
                assert!(bytes + BYTES + ENTRY_COST > MAX_HELD, "there was room beside {held}");
            }
            (handed_over, held) => panic!("{handed_over:?} of {held:?}"),
        }
        self.settle();
    }

    /// Begins the attempts that are allowed, takes the news, and sets the timer.
    fn settle(&mut self) {
        self.note_waiting();
        while self.attempt() {}
        while let Some(news) = self.state.news(self.now) {
            self.lines.push((self.now, news));
        }
        self.timer = self.state.due(self.now);
        assert!(self.timer.is_none_or(|due| due > self.now), "something is due that nothing was done about");
        let next = self.state.limit.next().filter(|_| self.pause.is_none());
        let live_waits = self.held().any(|(_, held)| held.is_live() && !held.is_in_flight);
        assert!(
            next.is_none_or(|next| !live_waits || self.timer.is_some_and(|timer| timer <= next)),
            "one waits longer than the rate wants"
        );
    }

    /// Notes since when requests wait for a turn.
    fn note_waiting(&mut self) {
        let live = self.held().filter(|(_, held)| held.is_live()).map(|(id, _)| (id, self.request_of(id)));
        let live: BTreeMap<_, _> = live.collect();
        for (id, request) in mem::replace(&mut self.standing, live) {
            if !self.standing.contains_key(&id) {
                *self.skipped.entry(request).or_default() += 1;
            }
        }
        self.waiting.retain(|request, _| self.standing.values().any(|live| live == request));
        for request in self.standing.values() {
            self.waiting.entry(*request).or_insert(self.turns.len());
        }
    }

    fn entry(&self, id: u8) -> &Entry {
        let entry = self.state.entries.values().find(|entry| entry.message.id() == format!("{id:03}"));
        entry.expect("it is held")
    }

    fn request_of(&self, id: u8) -> RequestId {
        match self.entry(id).place {
            Some(Place::Live(request, _)) => request,
            place => panic!("{id} is live, but stands in {place:?}"),
        }
    }

    /// Since when an event may be attempted that is not in flight.
    fn due(&self, id: u8) -> Instant {
        let entry = self.entry(id);
        match entry.place {
            Some(Place::Backlog(_, due)) => due,
            _ => entry.arrived,
        }
    }

    /// Whether it is the turn of the next suspect.
    fn suspects_turn(&self) -> bool {
        let quiet = self.last_accepted.map_or(HOUR, |last| self.now - last);
        let count = self.held().filter(|(_, held)| held.is_suspect()).count();
        let round = (quiet / 4).max(SUSPECTS.round) / count.max(1).try_into().unwrap();
        self.is_draining || quiet <= RECENT || self.now - self.last_suspect >= round.min(SUSPECTS.gap)
    }

    /// How long the next pause is without jitter.
    fn full_pause(&self) -> Duration {
        (SECOND * 2_u32.pow(self.openings.min(10))).min(LONGEST_PAUSE)
    }

    fn begin_pause(&mut self, until: Instant, least: Instant, most: Instant) {
        assert!(least <= until && until <= most, "{:?} of {:?}", until - self.now, most - self.now);
        self.openings += 1;
        self.pause = Some(Expected { until, before: self.attempts, probe: None, failed: BTreeSet::new() });
    }

    /// Begins the attempt that is allowed next. Returns false if there is none.
    fn attempt(&mut self) -> bool {
        self.note_waiting();
        let has_slot = self.state.limit.next().is_some_and(|next| next <= self.now);
        let live: BTreeMap<_, _> =
            self.held().filter(|(_, held)| held.is_live()).map(|(id, _)| (id, self.request_of(id))).collect();
        let waiting: Vec<_> = self.held().filter(|(_, held)| !held.is_in_flight).collect();
        let is_turn = self.suspects_turn();
        let is_ready = |held: &Held, by: Instant| held.is_live() || (by <= self.now && (!held.is_suspect() || is_turn));
        let may_be = |(_, held): &&(u8, &Held)| is_ready(held, held.ready.0);
        let must_be = |(_, held): &&(u8, &Held)| is_ready(held, held.ready.1);
        let (late, early): (Vec<_>, Vec<_>) = (
            waiting.iter().filter(must_be).map(|(id, _)| *id).collect(),
            waiting.iter().filter(may_be).map(|(id, _)| *id).collect(),
        );
        // One for which nobody waits any more keeps its place among the live ones until its turn comes.
        let in_backlog = |id: &u8| late.contains(id) && matches!(self.entry(*id).place, Some(Place::Backlog(..)));
        let backlog_due = late.iter().any(in_backlog);
        let has_tried = |held: &Held| self.pause.as_ref().is_some_and(|pause| pause.failed.contains(&held.arrival));
        let mut blameless: Vec<_> = waiting.iter().filter(|(_, held)| !held.is_suspect() && !has_tried(held)).collect();
        let blameless_due = blameless.iter().map(|(id, _)| *id).find(in_backlog);
        blameless.sort_by_key(|(_, held)| held.arrival);
        let unattempted: Vec<_> = blameless.iter().filter(|(_, held)| held.failures == 0).map(|(id, _)| *id).collect();
        blameless.sort_by_key(|(id, held)| (self.due(*id), held.arrival));
        let longest_waiting = blameless.first().map(|(id, _)| *id);
        let ends = match unattempted[..] {
            [] => [longest_waiting, longest_waiting],
            [only] => [Some(only), Some(only)],
            [oldest, .., newest] => [Some(oldest), Some(newest)],
        };
        let all_are_suspects = self.held().all(|(_, held)| held.is_suspect());
        let is_probe = self.pause.is_some();
        let may_probe = self.pause.as_ref().is_some_and(|pause| pause.probe.is_none() && pause.until <= self.now);

        let job = self.state.next_job(self.now);
        let until = self.state.breaker.open_until().filter(|until| may_probe && *until > self.now);
        if let Some(until) = until {
            let nobody = live.is_empty() && ends[0].is_none() && (!all_are_suspects || late.is_empty());
            assert!(job.is_none() && nobody, "another could probe");
            assert!(!self.pause.as_ref().unwrap().failed.is_empty(), "nobody has probed");
            let full = self.full_pause();
            self.begin_pause(until, self.now + full / 2, self.now + full);
            return false;
        }
        let Some(job) = job else {
            if has_slot && !is_probe {
                assert!(late.is_empty(), "{late:?} wait for nothing");
            } else if has_slot && may_probe {
                assert!(live.is_empty() && ends[0].is_none(), "nobody probes");
                assert!(!all_are_suspects || late.is_empty(), "{late:?} could probe");
                assert!(self.pause.as_ref().unwrap().failed.is_empty(), "the next pause does not begin");
            }
            return false;
        };
        let id: u8 = job.message.id().parse().unwrap();
        assert!(has_slot && self.jobs.len() + self.being_read < CONCURRENCY, "{job:?} is one too many");
        assert!(!is_probe || may_probe, "{job:?} in a pause");
        let is_live = live.contains_key(&id);
        if is_probe {
            if !live.is_empty() {
                assert!(is_live, "{id} probes, and not one of {live:?}");
            } else if all_are_suspects {
                assert!(early.contains(&id), "{id} is too early");
            } else {
                let end = ends
                    .iter()
                    .position(|end| *end == Some(id))
                    .expect("an event that was never attempted, or waits longest, probes");
                if ends[0] != ends[1] {
                    assert_ne!(self.last_end, Some(end == 1), "in turn");
                }
                self.last_end = Some(match ends[0] == ends[1] {
                    true => !self.last_end.unwrap_or(false),
                    false => end == 1,
                });
            }
        } else if is_live {
            assert!(self.live_in_a_row < 3 || !backlog_due, "the backlog has not had its share");
        } else {
            assert!(early.contains(&id), "{id} is too early");
            assert!(live.is_empty() || self.live_in_a_row >= 3, "{id} goes before {live:?}");
            let is_suspect = self.events[&id].held.as_ref().unwrap().is_suspect();
            assert!(!is_suspect || blameless_due.is_none(), "{id} goes before {blameless_due:?}");
        }
        if is_live {
            let request = live[&id];
            self.turns.push(request);
            for (other, since) in &self.waiting {
                let turns = self.turns[*since..].iter().filter(|turn| **turn == request).count();
                let skipped = self.skipped.get(other).copied().unwrap_or_default();
                assert!(
                    *other == request || turns <= 2 + skipped,
                    "{request:?} has {turns} turns while {other:?} waits"
                );
            }
            self.waiting.insert(request, self.turns.len());
            self.standing.remove(&id);
            // Those for which nobody waits any more keep their places, but will not take their turns either.
            let stands_in_vain = |entry: &&Entry| match entry.place {
                Some(Place::Live(of, _)) => of == request && !entry.is_awaited(),
                _ => false,
            };
            self.skipped.insert(request, self.state.entries.values().filter(stands_in_vain).count());
        }
        self.live_in_a_row = if is_live { self.live_in_a_row + 1 } else { 0 };
        self.attempts += 1;
        let (attempt, accepted) = (self.attempts, self.accepted);
        if let Some(pause) = &mut self.pause {
            pause.probe = Some(attempt);
        }
        let now = self.now;
        let held = self.held_mut(id);
        assert!(!mem::replace(&mut held.is_in_flight, true), "two attempts at once");
        if let Some((_, next @ None)) = held.blamed.last_mut() {
            *next = Some(accepted);
        }
        let is_suspect = held.is_suspect();
        if is_suspect {
            self.last_suspect = now;
        }
        self.jobs.push((attempt, job));
        true
    }

    fn finish(&mut self, attempt: usize, job: &Job, result: AttemptResult) {
        let id: u8 = job.message.id().parse().unwrap();
        let now = self.now;
        let finished = self.state.finish(job, result, now);
        self.being_read += 1;
        self.held_mut(id).is_in_flight = false;
        let result = match result {
            AttemptResult::Refused(status) => {
                self.refused_in_a_row += 1;
                match self.accepted > 0 && self.refused_in_a_row <= 20 {
                    true => result,
                    false => AttemptResult::Failed { fault: Fault::RefusesAll(status), retry_after: None },
                }
            }
            result => result,
        };
        match result {
            AttemptResult::Failed { fault, retry_after } => self.failed(id, attempt, fault, retry_after, finished),
            AttemptResult::Accepted | AttemptResult::Refused(_) => {
                self.failed_in_a_row.clear();
                if self.pause.take_if(|pause| attempt > pause.before).is_some() {
                    self.openings = 0;
                }
                let outcome = match result {
                    AttemptResult::Refused(status) => Outcome::Refused(Refusal::Status(status)),
                    _ => Outcome::Delivered,
                };
                if outcome == Outcome::Delivered {
                    self.accepted += 1;
                    (self.refused_in_a_row, self.last_accepted) = (0, Some(now));
                }
                self.ended(finished.ended.expect("it was answered"), outcome);
            }
        }
        assert_eq!(self.state.breaker.is_closed(), self.pause.is_none());
        self.settle();
    }

    fn failed(&mut self, id: u8, attempt: usize, fault: Fault, retry_after: Option<Duration>, finished: Finished) {
        let (now, accepted, is_stopping) = (self.now, self.accepted, self.is_draining);
        let takes_events = self.last_accepted.is_some_and(|last| now - last <= RECENT);
        let is_rate = fault == Fault::Status(StatusCode::TOO_MANY_REQUESTS);
        let held = self.held_mut(id);
        held.failures += 1;
        held.last_fault = Some(fault);
        if !is_rate {
            held.blamed.push((accepted, None));
        }
        held.is_doubted |= matches!(fault, Fault::RefusesAll(_));
        let (arrival, is_suspect) = (held.arrival, held.is_suspect());
        let binds_all = is_rate || !(is_suspect || takes_events);
        let longest = (BACKOFF.0 * 2_u32.pow((held.failures - 1).min(20))).min(BACKOFF.1);
        held.ready = match (is_stopping, retry_after) {
            (true, _) => (now + SECOND / 2, now + SECOND),
            (false, Some(wait)) if !binds_all => (now + wait, now + wait.max(longest)),
            (false, _) => (now, now + longest),
        };
        let is_probe = self.pause.as_ref().is_some_and(|pause| pause.probe == Some(attempt));
        let may_shorten = self.pause.as_ref().is_none_or(|pause| attempt > pause.before);
        let was_open = self.pause.is_some();
        // How long the next pause is, if one begins.
        let mut pause = None;
        if self.is_draining {
        } else if let Some(wait) = retry_after.filter(|_| binds_all) {
            let until = now + wait;
            if may_shorten || self.pause.as_ref().is_some_and(|pause| until > pause.until) {
                pause = Some((until, until));
            }
        } else if is_suspect {
            if is_probe {
                self.pause.as_mut().unwrap().probe = None;
            }
        } else {
            self.failed_in_a_row.insert(arrival);
            let may_be_alone = match fault {
                Fault::Status(status) => ![401, 407, 429, 503].contains(&status.as_u16()),
                Fault::RefusesAll(_) | Fault::Broken => true,
                _ => false,
            };
            if is_probe && may_be_alone {
                let pause = self.pause.as_mut().unwrap();
                pause.probe = None;
                pause.failed.insert(arrival);
            } else if is_probe || (!was_open && self.failed_in_a_row.len() >= 5 && !takes_events) {
                let full = self.full_pause();
                pause = Some((now + full / 2, now + full));
            }
        }
        if let Some((least, most)) = pause {
            let until = self.state.breaker.open_until().expect("it is open");
            self.begin_pause(until, least, most);
        }
        assert_eq!(finished.has_opened, !was_open && self.pause.is_some());
        let held = self.events[&id].held.as_ref().unwrap();
        assert_eq!(finished.ended.is_some(), now >= held.arrived + RETRY_FOR, "its time is over, or not");
        if let Some(ended) = finished.ended {
            self.gave_up(ended);
        }
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
            self.gave_up(ended);
        }
        let late = self.held().find(|(_, held)| !held.is_in_flight && self.now >= held.arrived + RETRY_FOR);
        assert!(late.is_none(), "{late:?} has been held for too long");
        self.settle();
    }

    fn gave_up(&mut self, ended: Ended) {
        let held = self.events[&ended.message.id().parse().unwrap()].held.as_ref().expect("it was held");
        assert!(self.now >= held.arrived + RETRY_FOR, "too early");
        let outcome = match held.last_fault {
            Some(fault) if held.has_failed_by_itself(self.accepted) => Outcome::Refused(Refusal::KeptFailing(fault)),
            last => Outcome::Abandoned(last.or(self.state.health.reason)),
        };
        self.ended(ended, outcome);
    }

    fn ended(&mut self, ended: Ended, outcome: Outcome) {
        assert_eq!(ended.outcome, outcome);
        self.outcomes.push(outcome);
        let id = ended.message.id().parse().unwrap();
        let event = self.events.get_mut(&id).unwrap();
        let held = event.held.take().expect("it ends once");
        ended.tell();
        let told: Vec<_> = held.waiters.iter().map(Pending::get).collect();
        assert_eq!(told, vec![Some(outcome); held.waiters.len()], "all who wait are told");
        if matches!(outcome, Outcome::Delivered | Outcome::Refused(Refusal::Status(_))) {
            event.ended = Some((outcome, self.now));
        }
    }

    fn check(&self) {
        let count = self.held().count();
        assert_eq!(self.state.held(), (count, count * (BYTES + ENTRY_COST)));
        assert_eq!(self.state.waiters(), self.held().map(|(_, held)| held.waiters.len()).sum::<usize>());
        assert_eq!(self.held().filter(|(_, held)| held.is_in_flight).count(), self.jobs.len());
        assert_eq!(self.state.limit.in_flight(), self.jobs.len() + self.being_read);
        let suspects: Vec<_> = self.held().filter(|(_, held)| held.is_suspect()).collect();
        assert_eq!(self.state.suspects, suspects.len(), "{suspects:?}");
        let places = self.state.entries.values().filter(|entry| entry.place.is_some()).count();
        assert_eq!(self.state.lanes.len(), places, "what is not in flight stands in one place");
        let oldest = self.held().map(|(_, held)| held.arrived).min();
        assert_eq!(
            self.state.snapshot(self.now).held_oldest,
            oldest.map_or(Duration::ZERO, |oldest| self.now - oldest)
        );
        let changes: Vec<_> = self.lines.iter().filter(|(_, news)| !matches!(news, News::RefusesAll(_))).collect();
        for pair in changes.windows(2) {
            assert!(pair[1].0 - pair[0].0 >= LOG.change, "{pair:?}");
        }
    }

    /// Variance takes everything from now on.
    fn fair_weather(&mut self) {
        for _ in 0..1000 {
            while self.being_read > 0 || !self.jobs.is_empty() {
                self.free_slot();
                if let Some((attempt, job)) = self.jobs.pop() {
                    self.finish(attempt, &job, AttemptResult::Accepted);
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

    /// Hands an event over for which nobody waits, and lets it fail so.
    fn fail(&mut self, id: u8, result: AttemptResult) {
        self.take(Step::HandOver(id, 0));
        self.take(Step::HangUp(id));
        self.end(id, result);
    }

    /// Ends the attempt of an event that is under way.
    fn end(&mut self, id: u8, result: AttemptResult) {
        let place = self.jobs.iter().position(|(_, job)| job.message.id() == format!("{id:03}"));
        let (attempt, job) = self.jobs.swap_remove(place.expect("it is under way"));
        self.finish(attempt, &job, result);
        self.free_slot();
        self.check();
    }

    fn accept(&mut self, id: u8) {
        self.take(Step::HandOver(id, 0));
        self.end(id, AttemptResult::Accepted);
        self.rename(id);
    }

    /// Lets the next event of this id be another one.
    fn rename(&mut self, id: u8) {
        let event = self.events.get_mut(&id).unwrap();
        (event.ended, event.name) = (None, event.name + 1);
    }

    fn under_way(&self) -> Vec<u8> {
        let mut ids: Vec<_> = self.jobs.iter().map(|(_, job)| job.message.id().parse().unwrap()).collect();
        ids.sort_unstable();
        ids
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_no_event_is_lost_doubled_late_or_in_anothers_way(
        steps in prop::collection::vec(step(), 0..300),
        seed: u64,
        stops: bool,
    ) {
        let mut world = World::new(seed);
        steps.into_iter().for_each(|step| world.take(step));
        if stops {
            world.take(Step::Stop);
        }
        world.fair_weather();
    }
}

#[test]
fn an_outage_without_end_leaves_nothing_of_the_events_that_it_outlasts() {
    let mut world = World::new(1);
    world.fail(0, status(503, Some(HOUR * 1000)));
    for _ in 0..100 {
        (0..EVENTS).for_each(|id| world.take(Step::HandOver(id, id.into())));
        world.take(Step::Wait(RETRY_FOR.as_millis().try_into().unwrap()));
        assert_eq!(world.state.held(), (0, 0));
    }
    assert!(world.state.entries.is_empty() && world.state.lanes.len() == 0);
}

#[test]
fn what_failed_is_not_attempted_again_before_its_backoff_is_over() {
    let mut world = World::new(1);
    world.state.settings.pacing.backoff = Backoff::new(HOUR, HOUR);
    world.state.settings.retry_for = 2 * HOUR;
    world.take(Step::HandOver(0, 0));
    let (_, job) = world.jobs.pop().unwrap();
    world.state.finish(&job, TIMEOUT, world.now);
    world.state.free_slot();
    // The log learns of the fault before that.
    world.state.settings.pacing.log.change = 24 * HOUR;
    let due = world.state.due(world.now).expect("it waits");
    assert!(due > world.now);
    assert!(world.state.next_job(due - Duration::from_nanos(1)).is_none());
    assert!(world.state.next_job(due).is_some());
}

#[test]
fn an_event_that_the_rate_alone_holds_back_is_attempted_when_it_allows() {
    let mut world = World::new(0);
    (0..2).for_each(|id| {
        world.take(Step::HandOver(id, 0));
        world.end(id, status(429, None));
    });
    world.take(Step::HandOver(2, 1));
    assert!(world.jobs.is_empty(), "429s pause all for a moment");
    world.take(Step::Wait(500));
    assert!(world.jobs.iter().any(|(_, job)| job.message.id() == "002"));
}

#[test]
fn an_event_that_alone_is_answered_429_does_not_cut_the_rate_of_others() {
    let mut world = World::new(1);
    world.take(Step::HandOver(0, 0));
    for _ in 0..60 {
        if world.under_way() == [0] {
            world.end(0, status(429, None));
        }
        world.take(Step::HandOver(1, 1));
        assert!(world.under_way().contains(&1), "it need not wait");
        world.end(1, AttemptResult::Accepted);
        world.rename(1);
        world.take(Step::Wait(1000));
    }
}

#[test]
fn when_the_breaker_closes_those_that_are_ready_do_not_wait_for_the_reply_that_closed_it_to_be_read() {
    let mut world = World::new(1);
    world.fail(0, status(503, Some(SECOND)));
    world.take(Step::Wait(1000));
    world.take(Step::HandOver(1, 1));
    assert_eq!(world.under_way(), [0], "while one probes");
    world.take(Step::Finish(0, AttemptResult::Accepted));
    assert_eq!(world.under_way(), [1]);
}

#[test]
fn while_a_probe_is_under_way_events_end_in_time() {
    let mut world = World::new(1);
    world.fail(0, status(503, Some(SECOND)));
    world.take(Step::HandOver(1, 1));
    world.take(Step::Wait(1000));
    world.take(Step::Wait(RETRY_FOR.as_millis().try_into().unwrap()));
    assert_eq!(world.held().count(), 1, "only what is under way is still held");
}

#[test]
fn an_event_that_was_never_attempted_is_not_refused_however_many_others_are_accepted() {
    let mut world = World::new(1);
    // All slots are taken by others until its time is over.
    (0..4).for_each(|id| world.take(Step::HandOver(id, 0)));
    world.take(Step::HandOver(9, 1));
    world.take(Step::Finish(0, AttemptResult::Accepted));
    world.take(Step::Wait(RETRY_FOR.as_millis().try_into().unwrap()));
    assert!(world.events[&9].held.is_none());
    assert_eq!(world.outcomes.last(), Some(&Outcome::Abandoned(None)));
}

#[test]
fn an_event_that_fails_while_others_are_accepted_pauses_nothing_and_is_refused_in_the_end() {
    let mut world = World::new(1);
    world.accept(1);
    world.fail(0, status(503, Some(SECOND)));
    for _ in 0..19 {
        world.take(Step::Wait(2_900));
        world.accept(1);
        assert!(world.state.breaker.is_closed());
        if world.under_way() == [0] {
            world.end(0, status(503, Some(SECOND)));
        }
    }
    world.take(Step::Wait(6_000));
    if world.under_way() == [0] {
        world.end(0, status(503, Some(SECOND)));
    }
    let fault = Fault::Status(StatusCode::SERVICE_UNAVAILABLE);
    assert!(world.outcomes.contains(&Outcome::Refused(Refusal::KeptFailing(fault))), "{:?}", world.outcomes);
}

#[test]
fn five_events_that_only_ever_fail_do_not_stop_others_that_are_accepted_every_second() {
    let mut world = World::new(1);
    world.accept(11);
    (0..5).for_each(|id| world.fail(id, status(403, None)));
    for _ in 0..60 {
        assert!(world.state.breaker.is_closed());
        world.take(Step::Wait(1000));
        while let Some(id) = world.under_way().first().copied() {
            world.end(id, status(403, None));
        }
        world.accept(11);
    }
}

#[test]
fn an_attempt_that_began_before_a_pause_neither_ends_nor_shortens_it() {
    let mut world = World::new(1);
    (0..3).for_each(|id| world.take(Step::HandOver(id, 0)));
    world.end(0, status(429, Some(5 * SECOND)));
    let until = world.state.breaker.open_until();
    world.end(1, AttemptResult::Accepted);
    world.end(2, status(429, Some(SECOND)));
    assert_eq!(world.state.breaker.open_until(), until);
    world.take(Step::Wait(4_999));
    assert!(world.jobs.is_empty());
    world.take(Step::Wait(1));
    assert_eq!(world.jobs.len(), 1);
}

#[test]
fn refusals_are_believed_only_while_others_are_accepted() {
    let refused = AttemptResult::Refused(StatusCode::BAD_REQUEST);
    let mut world = World::new(1);
    world.fail(0, refused);
    assert_eq!(world.state.health.reason, Some(Fault::RefusesAll(StatusCode::BAD_REQUEST)));
    assert_eq!((world.held().count(), world.state.health.doubted), (1, 1));
    assert_eq!(world.lines[0].1, News::RefusesAll(StatusCode::BAD_REQUEST));
    world.accept(1);
    assert_eq!(world.state.health.doubted, 0);
    world.take(Step::Wait(1000));
    for n in 0..20 {
        let id = if n == 0 { 0 } else { 2 };
        if n > 0 {
            world.take(Step::HandOver(id, 0));
        }
        world.end(id, refused);
        assert!(world.events[&id].held.is_none(), "{n}");
        world.rename(id);
    }
    world.fail(3, refused);
    assert_eq!(world.held().count(), 1, "the twenty-first in a row");
}

#[test]
fn a_stop_voids_the_pause_and_all_backoffs() {
    let mut world = World::new(1);
    (0..4).for_each(|id| world.fail(id, TIMEOUT));
    world.fail(4, status(503, Some(MINUTE)));
    world.take(Step::HandOver(5, 0));
    assert!(world.jobs.is_empty() && world.held().count() == 6);
    world.take(Step::Stop);
    assert_eq!(world.jobs.len(), CONCURRENCY);
    world.end(world.under_way()[0], status(503, Some(MINUTE)));
    world.fair_weather();
}

#[test]
fn a_stop_ends_the_rate_too() {
    let mut world = World::new(1);
    world.accept(9);
    // Two 429s a second after that cut the rate to about one a second.
    world.take(Step::Wait(900));
    for id in 0..2 {
        world.fail(id, status(429, None));
        world.take(Step::Wait(20));
    }
    (2..6).for_each(|id| world.take(Step::HandOver(id, 0)));
    assert!(world.jobs.len() < CONCURRENCY, "the rate holds them back");
    world.take(Step::Stop);
    assert_eq!(world.jobs.len(), CONCURRENCY);
    for _ in 0..2 {
        world.end(world.under_way()[0], status(429, None));
        assert_eq!(world.jobs.len(), CONCURRENCY, "429s do not bring it back");
    }
}

#[test]
fn an_answer_from_before_a_pause_does_not_end_the_outage() {
    let mut world = World::new(1);
    (0..2).for_each(|id| world.take(Step::HandOver(id, 0)));
    world.end(0, status(429, Some(20 * SECOND)));
    assert_eq!(world.state.health.state, StateLabel::Paused);
    world.end(1, AttemptResult::Accepted);
    assert_eq!(world.state.health.state, StateLabel::Paused);
    world.take(Step::Wait(20_000));
    assert!(matches!(world.lines[..], [(_, News::Paused(_))]), "{:?}", world.lines);
    world.end(0, AttemptResult::Accepted);
    assert_eq!(world.state.health.state, StateLabel::Up);
}

#[test]
fn outages_that_come_and_go_are_a_line_in_ten_seconds_and_one_that_lasts_in_five_minutes() {
    let mut world = World::new(1);
    world.state.settings.retry_for = 24 * HOUR;
    for _ in 0..20 {
        world.take(Step::HandOver(0, 0));
        world.end(0, status(503, Some(SECOND)));
        world.take(Step::Wait(1000));
        world.end(0, AttemptResult::Accepted);
        world.rename(0);
        world.take(Step::Wait(2500));
    }
    assert!((4..=8).contains(&world.lines.len()), "in 70 s: {:?}", world.lines);
    world.take(Step::Wait(10_000));
    assert!(matches!(world.lines.last(), Some((_, News::Resumed(_)))), "{:?}", world.lines);
    world.lines.clear();
    world.take(Step::HandOver(0, 0));
    let (_, job) = world.jobs.pop().unwrap();
    world.state.finish(&job, status(429, Some(HOUR)), world.now);
    for minutes in 0..22 {
        world.now += if minutes == 0 { Duration::ZERO } else { MINUTE };
        world.lines.extend(world.state.news(world.now).map(|news| (world.now, news)));
    }
    let lasting = world.lines.iter().filter(|(_, news)| matches!(news, News::StillPaused(..))).count();
    assert_eq!((world.lines.len(), lasting), (5, 4), "{:?}", world.lines);
}

#[test]
fn one_event_that_fails_for_ten_seconds_is_an_outage_for_the_log_and_one_that_recovers_before_is_none() {
    let mut world = World::new(1);
    world.fail(0, status(500, None));
    world.take(Step::Wait(9_000));
    world.under_way().iter().for_each(|id| world.end(*id, AttemptResult::Accepted));
    world.take(Step::Wait(9_000));
    assert_eq!(world.lines, []);
    world.fail(1, status(500, None));
    for _ in 0..11 {
        world.under_way().iter().for_each(|id| world.end(*id, status(500, None)));
        world.take(Step::Wait(1000));
    }
    assert!(matches!(world.lines[..], [(_, News::Paused(_))]), "{:?}", world.lines);
    assert!(world.state.breaker.is_closed());
}

/// Hands an event over for which nobody waits.
fn hold(state: &mut State, key: &IdentityKey, n: u16, id: &str, now: Instant) {
    let identity = key.identity([&n.to_be_bytes(), b"e", b"d"], b"");
    let message = Message::write(BYTES, Call::Capture, id, &mut Vec::new(), |out| out.push(b"x")).unwrap();
    drop(state.hand_over(RequestId(0), identity, &message, now));
}

/// Lets time pass, with a result for each attempt by its number and its event's id. Returns the number of attempts, and the time.
fn pass(
    state: &mut State,
    mut now: Instant,
    time: Duration,
    lines: &mut Vec<News>,
    result: fn(u32, &str) -> AttemptResult,
) -> (u32, Instant) {
    let (end, mut attempts) = (now + time, 0);
    while now < end {
        assert!(state.expire(now).is_empty(), "nothing is given up");
        while let Some(job) = state.next_job(now) {
            attempts += 1;
            state.finish(&job, result(attempts, job.message.id()), now);
            state.free_slot();
        }
        lines.extend(state.news(now));
        now = state.due(now).unwrap_or(end).min(end);
    }
    (attempts, now)
}

#[test]
fn events_that_all_fail_again_after_a_short_recovery_are_attempted_more_and_more_rarely_and_shown_after_a_minute() {
    let (mut now, key, mut lines) = (Instant::now(), IdentityKey::random(), Vec::new());
    let mut state = State::new(OutboxSettings::default(), now, Rng::with_seed(1));
    (0..1000).for_each(|n| hold(&mut state, &key, n, "id", now));
    let mut pass = |state: &mut State, seconds: u32, result| {
        let attempts;
        (attempts, now) = pass(state, now, seconds * SECOND, &mut lines, result);
        attempts
    };
    let fault = |_, _: &str| status(500, None);
    pass(&mut state, 1, |n, _| if n % 10 == 0 { AttemptResult::Accepted } else { status(500, None) });
    let suspects = state.suspects as u32;
    assert!(suspects > 500 && suspects as usize == state.entries.len(), "{suspects}");

    pass(&mut state, 3, fault);
    let attempts = pass(&mut state, 55, fault);
    assert!((suspects * 54 / 15..=suspects * 56 / 15).contains(&attempts), "{attempts} of {suspects}");
    assert_eq!(state.health.state, StateLabel::Up);
    pass(&mut state, 600, fault);
    assert_eq!(state.health.state, StateLabel::Failing);
    let attempts = pass(&mut state, 60, fault);
    assert!((suspects * 60 / 180..=suspects * 60 / 160).contains(&attempts), "{attempts} of {suspects}");
    assert!(state.breaker.is_closed(), "a live event would be attempted at once");

    pass(&mut state, 31, |_, _| AttemptResult::Accepted);
    assert_eq!((state.health.accepted, state.held()), (1000, (0, 0)));
    let ends: Vec<_> = lines.iter().filter(|news| !matches!(news, News::StillPaused(..))).collect();
    let is_told = matches!(ends[..], [News::Paused(_), News::Resumed(_), News::Paused(_), News::Resumed(_)]);
    assert!(is_told, "of the outage before the recovery, and of this one: {lines:?}");
}

#[test]
fn it_takes_five_suspects_to_show_that_variance_fails() {
    for (poisons, expected) in [(4, StateLabel::Up), (5, StateLabel::Failing)] {
        let (mut now, key, mut lines) = (Instant::now(), IdentityKey::random(), Vec::new());
        let mut state = State::new(OutboxSettings::default(), now, Rng::with_seed(1));
        let result = |_, id: &str| if id == "healthy" { AttemptResult::Accepted } else { status(500, None) };
        let mut pass = |state: &mut State, time| (_, now) = pass(state, now, time, &mut lines, result);
        let start = Instant::now();
        hold(&mut state, &key, 100, "healthy", start);
        (0..poisons).for_each(|n| hold(&mut state, &key, n, "poison", start));
        pass(&mut state, SECOND / 1000);
        hold(&mut state, &key, 101, "healthy", start);
        pass(&mut state, 10 * SECOND);
        assert_eq!((state.suspects, state.entries.len()), (poisons.into(), poisons.into()));
        pass(&mut state, 90 * SECOND);
        assert_eq!(state.health.state, expected, "{poisons}");
    }
}

//! The circuit breaker, which pauses attempts while Variance cannot take events.
//!
//! Faults of several different events in a row open it, unless Variance has accepted an event lately, and so does a
//! `Retry-After`. When the pause is over, one event is tried: a reply that accepts or refuses it ends the pause, a
//! fault begins a longer one. After a fault that may be the event's own, another event is tried first, since events that
//! always fail may be many and would keep the pauses going. The rule of pauses in `docs/delivery.md` has the numbers.
//!
//! Only an attempt that began after the pause was set may end or shorten it: the results of earlier attempts say how
//! Variance was before.

use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

use crate::backoff::Backoff;

/// The number of different events that have to fail in a row to open the breaker.
pub(crate) const EVENTS_TO_OPEN: usize = 5;

/// The most events that are tried between two pauses.
const PROBES: usize = 64;

/// A circuit breaker without a clock: every call passes in the time.
#[derive(Debug)]
pub struct Breaker {
    open_for: Backoff,
    /// The age up to which an acceptance shows that Variance takes events.
    recent: Duration,
    pause: Option<Pause>,
    /// The first few events that have failed since the last answer or the last pause.
    failed: Vec<u64>,
    /// Openings since the last answer that closed the breaker.
    openings: u32,
    last_accepted: Option<Instant>,
    attempts: u64,
}

#[derive(Debug)]
struct Pause {
    until: Instant,
    /// The last attempt that had begun when the pause was set.
    set_after: AttemptId,
    probe: Option<AttemptId>,
}

/// The number of an attempt, in the order in which attempts begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AttemptId(u64);

/// The attempts that may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// Any number of attempts.
    All,
    /// One attempt.
    Probe,
    /// No attempt.
    Nothing,
}

impl Breaker {
    /// Creates a closed breaker. It stays open for `open_for`, longer each time, and faults do not open it within
    /// `recent` of an acceptance.
    pub fn new(open_for: Backoff, recent: Duration) -> Self {
        Self { open_for, recent, pause: None, failed: Vec::new(), openings: 0, last_accepted: None, attempts: 0 }
    }

    /// Returns the attempts that may begin at `now`.
    pub fn permit(&self, now: Instant) -> Permit {
        match &self.pause {
            None => Permit::All,
            Some(Pause { until, probe: None, .. }) if *until <= now => Permit::Probe,
            Some(_) => Permit::Nothing,
        }
    }

    /// Returns the time at which the next probe may begin, if the breaker is open and no probe is under way.
    pub fn open_until(&self) -> Option<Instant> {
        self.pause.as_ref().filter(|pause| pause.probe.is_none()).map(|pause| pause.until)
    }

    /// True if attempts are not paused.
    pub fn is_closed(&self) -> bool {
        self.pause.is_none()
    }

    /// True if Variance has accepted an event lately.
    pub fn accepts(&self, now: Instant) -> bool {
        self.last_accepted.is_some_and(|last| now.duration_since(last) <= self.recent)
    }

    /// Notes that an attempt begins, which is the probe if the breaker is open.
    pub fn begin(&mut self) -> AttemptId {
        self.attempts += 1;
        let attempt = AttemptId(self.attempts);
        if let Some(pause) = &mut self.pause {
            pause.probe = Some(attempt);
        }
        attempt
    }

    /// Notes that Variance has accepted the event of an attempt.
    pub fn accepted(&mut self, attempt: AttemptId, now: Instant) {
        self.last_accepted = Some(now);
        self.answered(attempt);
    }

    /// Notes that Variance has answered an attempt by accepting or refusing its event.
    pub fn answered(&mut self, attempt: AttemptId) {
        if self.pause.as_ref().is_none_or(|pause| attempt > pause.set_after) {
            self.reset();
        }
    }

    /// Notes that an attempt of `event` failed, which says something about Variance unless it `may_be_alone` in this.
    /// Returns true if that opens the breaker.
    pub fn failed(&mut self, attempt: AttemptId, event: u64, may_be_alone: bool, now: Instant, rng: &mut Rng) -> bool {
        let was_closed = self.is_closed();
        if !was_closed && !self.is_probe(attempt) {
            return false;
        }
        if self.failed.len() < PROBES && !self.failed.contains(&event) {
            self.failed.push(event);
        }
        let opens = match was_closed {
            true => self.failed.len() >= EVENTS_TO_OPEN && !self.accepts(now),
            false => !may_be_alone || self.failed.len() == PROBES,
        };
        match opens {
            true => self.open_longer(now, rng),
            false => self.failed_alone(attempt),
        }
        opens && was_closed
    }

    /// True if the event has been tried since the pause was over, and failed.
    pub fn has_tried(&self, event: u64) -> bool {
        self.failed.contains(&event)
    }

    /// Notes that there is no further event to try. If any has been tried, the next pause begins.
    pub fn tried_all(&mut self, now: Instant, rng: &mut Rng) {
        if !self.failed.is_empty() {
            self.open_longer(now, rng);
        }
    }

    /// Notes that Variance's answer to an attempt asked for no attempts before `until`. Returns true if that opens the
    /// breaker.
    pub fn asked(&mut self, attempt: AttemptId, until: Instant) -> bool {
        let opens = self.is_closed();
        if self.pause.as_ref().is_none_or(|pause| attempt > pause.set_after || until > pause.until) {
            self.open(until);
        }
        opens
    }

    /// Notes that an attempt failed in a way that says nothing about Variance. If it was the probe, another may begin.
    pub fn failed_alone(&mut self, attempt: AttemptId) {
        if let Some(pause) = &mut self.pause {
            pause.probe.take_if(|probe| *probe == attempt);
        }
    }

    /// Closes the breaker, as if nothing had failed.
    pub fn reset(&mut self) {
        (self.pause, self.openings) = (None, 0);
        self.failed.clear();
    }

    fn is_probe(&self, attempt: AttemptId) -> bool {
        self.pause.as_ref().is_some_and(|pause| pause.probe == Some(attempt))
    }

    fn open_longer(&mut self, now: Instant, rng: &mut Rng) {
        let pause = self.open_for.equal_jitter(self.openings.saturating_add(1), rng);
        self.open(now + pause);
    }

    fn open(&mut self, until: Instant) {
        self.failed.clear();
        self.openings = self.openings.saturating_add(1);
        self.pause = Some(Pause { until, set_after: AttemptId(self.attempts), probe: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A breaker that the faults of five events have opened.
    fn opened(now: Instant, rng: &mut Rng) -> Breaker {
        let mut breaker = Breaker::new(Backoff::new(SECOND, 15 * SECOND), 2 * SECOND);
        for event in 0..5 {
            assert_eq!(breaker.permit(now), Permit::All);
            let attempt = breaker.begin();
            assert_eq!(breaker.failed(attempt, event, true, now, rng), event == 4);
        }
        breaker
    }

    #[test]
    fn one_event_that_fails_again_and_again_does_not_open_it() {
        let (now, mut rng) = (Instant::now(), Rng::with_seed(1));
        let mut breaker = Breaker::new(Backoff::new(SECOND, 15 * SECOND), 2 * SECOND);
        for n in 0..100 {
            let attempt = breaker.begin();
            assert!(!breaker.failed(attempt, n % 4, true, now, &mut rng));
        }
        assert_eq!(breaker.permit(now), Permit::All);
    }

    #[test]
    fn one_probe_at_a_time_and_each_failed_one_doubles_the_pause_up_to_its_cap() {
        let (mut now, mut rng) = (Instant::now(), Rng::with_seed(1));
        let mut breaker = opened(now, &mut rng);
        for full in [1, 2, 4, 8, 15, 15, 15] {
            let until = breaker.open_until().unwrap();
            let pause = (until - now).as_secs_f64();
            assert!((f64::from(full) / 2.0..=f64::from(full)).contains(&pause), "{pause} of {full} s");
            assert_eq!(breaker.permit(until - Duration::from_nanos(1)), Permit::Nothing);
            now = until;
            assert_eq!(breaker.permit(now), Permit::Probe);
            let probe = breaker.begin();
            assert_eq!(breaker.permit(now), Permit::Nothing, "while the probe is under way");
            assert!(!breaker.failed(probe, 0, false, now, &mut rng), "it was open");
        }
        now += 15 * SECOND;
        let probe = breaker.begin();
        breaker.answered(probe);
        assert_eq!(breaker.permit(now), Permit::All);
    }

    #[test]
    fn after_a_fault_that_may_be_of_one_event_others_are_tried_before_the_next_pause() {
        let (mut now, mut rng) = (Instant::now(), Rng::with_seed(1));
        let mut breaker = opened(now, &mut rng);
        for full in [2, 4] {
            now = breaker.open_until().unwrap();
            for event in 0..64 {
                assert_eq!(breaker.permit(now), Permit::Probe, "{event} have failed");
                assert!(!breaker.has_tried(event));
                let probe = breaker.begin();
                assert_eq!(breaker.permit(now), Permit::Nothing, "while the probe is under way");
                breaker.failed(probe, event, true, now, &mut rng);
                assert_eq!(breaker.has_tried(event), event < 63);
            }
            let pause = breaker.open_until().unwrap() - now;
            assert!(pause >= full * SECOND / 2, "{pause:?} of {full} s");
        }
        now = breaker.open_until().unwrap();
        breaker.tried_all(now, &mut rng);
        assert_eq!(breaker.permit(now), Permit::Probe, "none was tried");
        let probe = breaker.begin();
        breaker.failed(probe, 0, true, now, &mut rng);
        breaker.tried_all(now, &mut rng);
        assert!(breaker.open_until().unwrap() >= now + 4 * SECOND, "there is no other");
    }

    #[test]
    fn the_pause_is_jittered_over_its_upper_half() {
        let now = Instant::now();
        let pauses =
            (0..1000).map(|seed| (opened(now, &mut Rng::with_seed(seed)).open_until().unwrap() - now).as_millis());
        let (least, most) = pauses.fold((u128::MAX, 0), |(least, most), pause| (least.min(pause), most.max(pause)));
        assert!((500..510).contains(&least) && (990..=1000).contains(&most), "{least} to {most} ms");
    }
}

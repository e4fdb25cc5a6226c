//! The circuit breaker: whether Variance may be asked at all.
//!
//! Five faults in a row open it, whatever their kind; so does one answer that says when to come back. While it is open
//! there are no attempts. Then one probe decides: an answer closes it, a fault opens it again for longer.

use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

use crate::backoff::Backoff;

/// How many faults in a row open the breaker.
const FAULTS_TO_OPEN: u32 = 5;

/// A circuit breaker. It has no clock: every call says what time it is.
#[derive(Debug)]
pub struct Breaker {
    open_for: Backoff,
    state: State,
    /// Faults since the last answer.
    faults: u32,
    /// Openings since the last answer.
    openings: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant },
    Probing,
}

/// What may be attempted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// Everything.
    All,
    /// One attempt, see [`Breaker::start_probe`].
    Probe,
    /// Nothing.
    Nothing,
}

impl Breaker {
    /// A closed breaker that stays open for `open_for`, longer each time.
    pub fn new(open_for: Backoff) -> Self {
        Self { open_for, state: State::Closed, faults: 0, openings: 0 }
    }

    /// What may be attempted at `now`.
    pub fn permit(&self, now: Instant) -> Permit {
        match self.state {
            State::Closed => Permit::All,
            State::Open { until } if until <= now => Permit::Probe,
            State::Open { .. } | State::Probing => Permit::Nothing,
        }
    }

    /// When the next probe may start, if the breaker is open.
    pub fn opens_until(&self) -> Option<Instant> {
        match self.state {
            State::Open { until } => Some(until),
            State::Closed | State::Probing => None,
        }
    }

    /// Whether everything may be attempted.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Notes that the attempt that [`Permit::Probe`] allows has begun.
    pub fn start_probe(&mut self) {
        self.state = State::Probing;
    }

    /// Notes that Variance has answered an attempt, with success or with a refusal of that one event.
    pub fn answered(&mut self) {
        (self.state, self.faults, self.openings) = (State::Closed, 0, 0);
    }

    /// Notes an attempt that failed through no fault of its event. `retry_after` is what Variance asked for.
    pub fn failed(&mut self, was_probe: bool, retry_after: Option<Duration>, now: Instant, rng: &mut Rng) {
        self.faults = self.faults.saturating_add(1);
        let asked = retry_after.map(|wait| now + wait);
        match self.state {
            State::Closed if asked.is_none() && self.faults < FAULTS_TO_OPEN => {}
            // An attempt from before the opening: it may only make the pause longer.
            State::Open { until } => self.state = State::Open { until: asked.map_or(until, |asked| asked.max(until)) },
            State::Probing if !was_probe => {}
            State::Closed | State::Probing => {
                self.openings = self.openings.saturating_add(1);
                let until = asked.unwrap_or_else(|| now + self.open_for.equal_jitter(self.openings, rng));
                self.state = State::Open { until };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use proptest::prelude::*;

    use super::*;

    const OPEN_FOR: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));

    fn opened(now: Instant, rng: &mut Rng) -> Breaker {
        let mut breaker = Breaker::new(OPEN_FOR);
        for _ in 0..FAULTS_TO_OPEN {
            assert_eq!(breaker.permit(now), Permit::All);
            breaker.failed(false, None, now, rng);
        }
        breaker
    }

    #[test]
    fn five_faults_in_a_row_open_it_and_an_answer_starts_the_count_again() {
        let (now, mut rng) = (Instant::now(), Rng::with_seed(1));
        let mut breaker = Breaker::new(OPEN_FOR);
        for _ in 0..4 {
            breaker.failed(false, None, now, &mut rng);
        }
        breaker.answered();
        for _ in 0..4 {
            breaker.failed(false, None, now, &mut rng);
        }
        assert_eq!(breaker.permit(now), Permit::All);
        breaker.failed(false, None, now, &mut rng);
        assert_eq!(breaker.permit(now), Permit::Nothing);
    }

    #[test]
    fn retry_after_opens_it_at_once_for_that_long() {
        let (now, mut rng) = (Instant::now(), Rng::with_seed(1));
        let mut breaker = Breaker::new(OPEN_FOR);
        breaker.failed(false, Some(Duration::from_secs(7)), now, &mut rng);
        assert_eq!(breaker.opens_until(), Some(now + Duration::from_secs(7)));
        breaker.failed(false, Some(Duration::from_secs(5)), now, &mut rng);
        assert_eq!(breaker.opens_until(), Some(now + Duration::from_secs(7)), "a shorter wait does not shorten it");
    }

    #[test]
    fn one_probe_at_a_time_and_each_failed_one_doubles_the_pause_up_to_its_cap() {
        let (mut now, mut rng) = (Instant::now(), Rng::with_seed(1));
        let mut breaker = opened(now, &mut rng);
        for full in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            let until = breaker.opens_until().unwrap();
            let pause = (until - now).as_secs_f64();
            assert!((f64::from(full) / 2.0..=f64::from(full)).contains(&pause), "{pause} of {full} s");
            now = until;
            assert_eq!(breaker.permit(now), Permit::Probe);
            breaker.start_probe();
            assert_eq!(breaker.permit(now), Permit::Nothing, "while the probe is under way");
            breaker.failed(true, None, now, &mut rng);
        }
        breaker.answered();
        assert_eq!(breaker.permit(now), Permit::All);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn nothing_is_permitted_before_an_opening_ends(steps in prop::collection::vec((0..4u8, 0..5000u64), 0..200)) {
            let (start, mut rng) = (Instant::now(), Rng::with_seed(1));
            let mut breaker = Breaker::new(OPEN_FOR);
            let (mut now, mut probing) = (start, false);
            for (step, wait) in steps {
                now += Duration::from_millis(wait);
                match breaker.permit(now) {
                    Permit::All => prop_assert!(breaker.is_closed()),
                    Permit::Probe => prop_assert!(breaker.opens_until().is_some_and(|until| until <= now)),
                    Permit::Nothing => prop_assert!(probing || breaker.opens_until().is_some_and(|until| until > now)),
                }
                match step {
                    0 => {
                        breaker.answered();
                        probing = false;
                        prop_assert_eq!(breaker.permit(now), Permit::All);
                    }
                    1 if breaker.permit(now) == Permit::Probe => {
                        breaker.start_probe();
                        probing = true;
                    }
                    2 => {
                        breaker.failed(probing, None, now, &mut rng);
                        probing = false;
                    }
                    _ => {
                        breaker.failed(false, Some(Duration::from_millis(wait + 1)), now, &mut rng);
                        prop_assert!(probing || breaker.permit(now) == Permit::Nothing);
                    }
                }
            }
        }
    }
}

//! The circuit breaker: whether Variance may be asked at all.
//!
//! * **Variance is left alone when it fails.** Five of its faults in a row, or one 429 or 503 that says when to come
//!   back (`Retry-After`, at most five minutes), pause all attempts. New requests are then told 503 at once, and up to
//!   256 events of each are held all the same. When the pause is over one event tries: an answer ends it, a fault
//!   begins a longer one, of up to a minute.
//!
//! An answer is one that takes or refuses the event; what comes of attempts that were under way when the pause began counts
//! as well.

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
    /// Probes that ever were.
    probes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant },
    Probing(Probe),
}

/// The attempt that [`Permit::Probe`] allows. An answer to another may close the breaker while it is under way; what comes
/// of it then is one fault among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe(u64);

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
        Self { open_for, state: State::Closed, faults: 0, openings: 0, probes: 0 }
    }

    /// What may be attempted at `now`.
    pub fn permit(&self, now: Instant) -> Permit {
        match self.state {
            State::Closed => Permit::All,
            State::Open { until } if until <= now => Permit::Probe,
            State::Open { .. } | State::Probing(_) => Permit::Nothing,
        }
    }

    /// When the next probe may start, if the breaker is open.
    pub fn open_until(&self) -> Option<Instant> {
        match self.state {
            State::Open { until } => Some(until),
            State::Closed | State::Probing(_) => None,
        }
    }

    /// Whether everything may be attempted.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Notes that the attempt that [`Permit::Probe`] allows has begun.
    pub fn start_probe(&mut self) -> Probe {
        self.probes += 1;
        let probe = Probe(self.probes);
        self.state = State::Probing(probe);
        probe
    }

    /// Notes that Variance has answered an attempt, with success or with a refusal of that one event.
    pub fn answered(&mut self) {
        (self.state, self.faults, self.openings) = (State::Closed, 0, 0);
    }

    /// Notes an attempt that failed through no fault of its event, and the probe that it was if it was one. `retry_after` is
    /// what Variance asked for.
    pub fn failed(&mut self, probe: Option<Probe>, retry_after: Option<Duration>, now: Instant, rng: &mut Rng) {
        self.faults = self.faults.saturating_add(1);
        let asked = retry_after.map(|wait| now + wait);
        match self.state {
            State::Closed if asked.is_none() && self.faults < FAULTS_TO_OPEN => {}
            // An attempt from before the opening: it may only make the pause longer.
            State::Open { until } => self.state = State::Open { until: asked.map_or(until, |asked| asked.max(until)) },
            State::Probing(under_way) if probe != Some(under_way) => {}
            State::Closed | State::Probing(_) => {
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
            breaker.failed(None, None, now, rng);
        }
        breaker
    }

    #[test]
    fn five_faults_in_a_row_open_it_and_an_answer_starts_the_count_again() {
        let (now, mut rng) = (Instant::now(), Rng::with_seed(1));
        let mut breaker = Breaker::new(OPEN_FOR);
        for _ in 0..4 {
            breaker.failed(None, None, now, &mut rng);
        }
        breaker.answered();
        for _ in 0..4 {
            breaker.failed(None, None, now, &mut rng);
        }
        assert_eq!(breaker.permit(now), Permit::All);
        breaker.failed(None, None, now, &mut rng);
        assert_eq!(breaker.permit(now), Permit::Nothing);
    }

    #[test]
    fn retry_after_opens_it_at_once_for_that_long() {
        let (now, mut rng) = (Instant::now(), Rng::with_seed(1));
        let mut breaker = Breaker::new(OPEN_FOR);
        breaker.failed(None, Some(Duration::from_secs(7)), now, &mut rng);
        assert_eq!(breaker.open_until(), Some(now + Duration::from_secs(7)));
        breaker.failed(None, Some(Duration::from_secs(5)), now, &mut rng);
        assert_eq!(breaker.open_until(), Some(now + Duration::from_secs(7)), "a shorter wait does not shorten it");
    }

    #[test]
    fn one_probe_at_a_time_and_each_failed_one_doubles_the_pause_up_to_its_cap() {
        let (mut now, mut rng) = (Instant::now(), Rng::with_seed(1));
        let mut breaker = opened(now, &mut rng);
        for full in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            let until = breaker.open_until().unwrap();
            let pause = (until - now).as_secs_f64();
            assert!((f64::from(full) / 2.0..=f64::from(full)).contains(&pause), "{pause} of {full} s");
            now = until;
            assert_eq!(breaker.permit(now), Permit::Probe);
            let probe = breaker.start_probe();
            assert_eq!(breaker.permit(now), Permit::Nothing, "while the probe is under way");
            breaker.failed(Some(probe), None, now, &mut rng);
        }
        breaker.answered();
        assert_eq!(breaker.permit(now), Permit::All);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Against what the documentation says, over any order of answers, faults, probes and waits.
        #[test]
        fn it_does_what_it_says_whatever_comes(steps in prop::collection::vec(step(), 0..300), seed: u64) {
            let (mut now, mut rng) = (Instant::now(), Rng::with_seed(seed));
            let mut breaker = Breaker::new(OPEN_FOR);
            let (mut faults, mut openings, mut until, mut probe) = (0, 0, None::<Instant>, None);
            // Probes that were under way when another attempt closed the breaker.
            let mut left_behind = Vec::new();
            for step in steps {
                match step {
                    Step::Wait(milliseconds) => now += Duration::from_millis(milliseconds),
                    Step::Answer => {
                        breaker.answered();
                        (faults, openings, until) = (0, 0, None);
                        left_behind.extend(probe.take());
                    }
                    Step::Probe => {
                        if breaker.permit(now) == Permit::Probe {
                            probe = Some(breaker.start_probe());
                            until = None;
                        }
                    }
                    Step::Fault { of, retry_after } => {
                        let attempt = match of {
                            Of::Probe => probe,
                            Of::FormerProbe => left_behind.pop(),
                            Of::Other => None,
                        };
                        let was_open = until;
                        breaker.failed(attempt, retry_after, now, &mut rng);
                        faults += 1;
                        let asked = retry_after.map(|wait| now + wait);
                        let opens = match probe {
                            Some(_) => of == Of::Probe,
                            None => faults >= 5 || asked.is_some(),
                        };
                        if let Some(until) = &mut until {
                            *until = asked.unwrap_or(*until).max(*until);
                        } else if opens {
                            openings += 1;
                            probe = None;
                            let full = Duration::from_secs(1 << (openings.min(7) - 1)).min(Duration::from_secs(60));
                            let (least, most) = asked.map_or((now + full / 2, now + full), |asked| (asked, asked));
                            until = breaker.open_until();
                            prop_assert!(until.is_some_and(|until| least <= until && until <= most), "{:?}", until);
                        }
                        prop_assert!(was_open <= until);
                    }
                }
                let expected = match until {
                    _ if probe.is_some() => Permit::Nothing,
                    None => Permit::All,
                    Some(until) if until <= now => Permit::Probe,
                    Some(_) => Permit::Nothing,
                };
                prop_assert_eq!((breaker.permit(now), breaker.open_until()), (expected, until));
                prop_assert_eq!(breaker.is_closed(), expected == Permit::All);
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        Answer,
        Probe,
        Fault { of: Of, retry_after: Option<Duration> },
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Of {
        Probe,
        FormerProbe,
        Other,
    }

    fn step() -> impl Strategy<Value = Step> {
        let of = prop_oneof![2 => Just(Of::Other), 3 => Just(Of::Probe), 1 => Just(Of::FormerProbe)];
        let retry_after = prop::option::weighted(0.1, (1..100_000_u64).prop_map(Duration::from_millis));
        prop_oneof![
            4 => (0..70_000_u64).prop_map(Step::Wait),
            1 => Just(Step::Answer),
            4 => Just(Step::Probe),
            8 => (of, retry_after).prop_map(|(of, retry_after)| Step::Fault { of, retry_after }),
        ]
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

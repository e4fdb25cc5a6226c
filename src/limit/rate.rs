//! The rate at which attempts may begin, once Variance has said that there is a limit.

use std::time::Duration;

use tokio::time::Instant;

use super::bound::Bound;

/// The longest time to return to a rate that was too high, in seconds: a few rejected attempts in that time are few enough.
const LONGEST_BACK: f64 = 16.0;

/// The shortest pause after a 429. Each further 429 without an answer in between doubles the pause.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// The most that a timer may be late without lowering the rate.
const LATE: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Rate {
    /// Attempts a second; infinite until Variance has said that there were too many.
    bound: Bound,
    /// The time at which the next attempt may begin.
    next: Instant,
    /// The beginning of the last pause, and the length of the next.
    paused: Instant,
    pause: Duration,
    /// The answers in each tenth of the last second, the present tenth first, and the seconds of it that are over.
    taken: [f64; 10],
    tenth: f64,
    /// Seconds since the last cut, or since the start.
    since: f64,
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        let bound = Bound::new(f64::INFINITY, LONGEST_BACK);
        Self { bound, next: now, paused: now, pause: SHORTEST_PAUSE, taken: [0.0; 10], tenth: 0.0, since: 0.0 }
    }

    pub(super) fn next(&self) -> Instant {
        self.next
    }

    pub(super) fn start(&mut self, now: Instant) {
        if self.bound.is_known() {
            let late = now.checked_sub(LATE).unwrap_or(now);
            self.next = self.next.max(late) + Duration::from_secs_f64(self.interval());
        }
    }

    /// The time between two attempts, in seconds.
    pub(super) fn interval(&self) -> f64 {
        1.0 / self.bound.value()
    }

    /// Lets time pass in which there were attempts.
    pub(super) fn pass(&mut self, seconds: f64) {
        self.bound.grow(seconds);
        self.elapse(seconds);
    }

    fn elapse(&mut self, seconds: f64) {
        self.since += seconds;
        self.tenth += seconds.min(1.0);
        while self.tenth >= 0.1 {
            self.tenth -= 0.1;
            self.taken.rotate_right(1);
            self.taken[0] = 0.0;
        }
    }

    pub(super) fn answered(&mut self) {
        self.taken[0] += 1.0;
        self.pause = SHORTEST_PAUSE;
    }

    /// Notes a 429 to an attempt that `began` then. The time of a pause that Variance `asked` for counts as one without answers.
    pub(super) fn too_many(&mut self, began: Instant, asked: Option<Duration>, now: Instant) {
        if began < self.paused {
            return;
        }
        self.paused = now;
        self.next = self.next.max(now + self.pause);
        self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        // If it takes nothing at all, that says nothing of a rate. What it counts in a second may be of before the last cut.
        let takes_some = self.taken.iter().any(|taken| *taken > 0.0);
        if takes_some && (!self.bound.is_known() || self.since >= 1.0) {
            self.cut(1.0);
        }
        self.elapse(asked.unwrap_or_default().as_secs_f64());
    }

    /// Cuts the rate to less than the answers of the last second, but not below `least`.
    pub(super) fn cut(&mut self, least: f64) {
        let taken: f64 = self.taken.iter().sum();
        self.bound.cut(self.bound.value().min(taken / self.since.clamp(0.001, 0.9 + self.tenth)).max(least));
        self.since = 0.0;
    }

    #[cfg(test)]
    pub(super) fn value(&self) -> f64 {
        self.bound.value()
    }
}

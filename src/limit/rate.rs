//! How many attempts may begin in a second, once Variance has said that there is a limit.

use std::time::Duration;

use tokio::time::Instant;

use super::bound::Bound;

/// How long it may take to come back to a rate that was too much: a few rejected attempts in that time are few enough.
const LONGEST_BACK: f64 = 16.0;

/// A 429 asks for a pause of the first length, and each further one without an answer in between for twice as long.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// How much a timer may be late without loss.
const LATE: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Rate {
    /// Attempts a second; infinite for as long as none was too much.
    bound: Bound,
    /// When the next attempt may begin.
    next: Instant,
    /// When the last pause began, and how long the next will be.
    paused: Instant,
    pause: Duration,
    /// Answers in each tenth of the last second, the present tenth first, and how much of that is over.
    taken: [f64; 10],
    tenth: f64,
    /// Seconds since the last cut, or since the start.
    since: f64,
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        let bound = Bound::new(f64::INFINITY, LONGEST_BACK);
        Self { bound, next: now, paused: now, pause: PAUSES.0, taken: [0.0; 10], tenth: 0.0, since: 0.0 }
    }

    pub(super) fn next(&self) -> Instant {
        self.next
    }

    pub(super) fn start(&mut self, now: Instant) {
        if self.bound.is_known() {
            let late = now.checked_sub(LATE).unwrap_or(now);
            self.next = self.next.max(late) + Duration::from_secs_f64(1.0 / self.bound.value());
        }
    }

    /// Lets time pass in which Variance was asked.
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
        self.pause = PAUSES.0;
    }

    /// Notes a 429 to an attempt that `began` then. A pause that Variance asks for is time in which it takes nothing.
    pub(super) fn too_many(&mut self, began: Instant, asked: Option<Duration>, now: Instant) {
        if began < self.paused {
            return;
        }
        self.paused = now;
        self.next = self.next.max(now + self.pause);
        self.pause = (2 * self.pause).min(PAUSES.1);
        // If it takes nothing at all, that says nothing of a rate. What it counts in a second may be of before the last cut.
        let takes_some = self.taken.iter().any(|taken| *taken > 0.0);
        if takes_some && (!self.bound.is_known() || self.since >= 1.0) {
            self.cut(1.0);
        }
        self.elapse(asked.unwrap_or_default().as_secs_f64());
    }

    /// Cuts it to less than what was taken in the last second, but not below `least`.
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

//! How many attempts may begin in a second, once Variance has said that there is a limit.

use std::time::Duration;

use tokio::time::Instant;

use super::bound::Bound;

/// How long it may take to come back to a rate that was too much: a few rejected attempts in that time are few enough.
const LONGEST_BACK: f64 = 16.0;

/// A 429 that does not say for how long asks for a pause of this length.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers between two cuts, at least.
const ANSWERS: u32 = 20;

/// How much a timer may be late without loss.
const LATE: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct Rate {
    /// Attempts a second; infinite for as long as none was too much.
    bound: Bound,
    /// When the next attempt may begin.
    next: Instant,
    /// When Variance was last left alone because of a 429, and answers since the last cut.
    paused: Instant,
    answers: u32,
    /// Answers in this second and in the one before, if there was one, and how much of this one is over.
    taken: f64,
    taken_before: Option<f64>,
    second: f64,
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        let bound = Bound::new(f64::INFINITY, LONGEST_BACK);
        Self { bound, next: now, paused: now, answers: 0, taken: 0.0, taken_before: None, second: 0.0 }
    }

    pub(super) fn next(&self) -> Instant {
        self.next
    }

    pub(super) fn start(&mut self, now: Instant) {
        if self.bound.is_known() {
            self.next =
                self.next.max(now.checked_sub(LATE).unwrap_or(now)) + Duration::from_secs_f64(1.0 / self.bound.value());
        }
    }

    /// Lets time pass in which Variance was asked.
    pub(super) fn pass(&mut self, seconds: f64) {
        self.bound.grow(seconds);
        self.elapse(seconds);
    }

    fn elapse(&mut self, seconds: f64) {
        self.second += seconds;
        if self.second >= 1.0 {
            self.taken_before = Some(if self.second < 2.0 { self.taken } else { 0.0 });
            (self.taken, self.second) = (0.0, self.second.fract());
        }
    }

    pub(super) fn answered(&mut self) {
        self.taken += 1.0;
        self.answers += 1;
    }

    /// Notes a 429 to an attempt that `began` then. A pause that Variance asks for is time in which it takes nothing.
    pub(super) fn too_many(&mut self, began: Instant, pause: Option<Duration>, now: Instant) {
        if began < self.paused {
            return;
        }
        self.paused = now;
        self.next = self.next.max(now + PAUSE);
        if self.answers >= ANSWERS || (self.answers > 0 && !self.bound.is_known()) {
            self.cut(1.0);
            self.elapse(pause.unwrap_or_default().as_secs_f64());
        }
    }

    /// Cuts it to less than what was taken in the last second, but not below `least`.
    pub(super) fn cut(&mut self, least: f64) {
        let taken = match self.taken_before {
            Some(before) => self.taken + before * (1.0 - self.second),
            None => self.taken / self.second.max(0.001),
        };
        self.bound.cut(self.bound.value().min(taken).max(least));
        self.answers = 0;
    }

    #[cfg(test)]
    pub(super) fn value(&self) -> f64 {
        self.bound.value()
    }
}

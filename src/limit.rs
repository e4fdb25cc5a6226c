//! The limits on POSTs to Variance: how many may be in flight, and how many may begin in a second.
//!
//! Nobody knows these limits, so both are measured: between one and `delivery.concurrency` in flight, and any number in a
//! second until Variance says that there is a limit.
//!
//! * **In flight.** The limit starts at 64 and grows while it holds events back: by one for each reply, so that it doubles in
//!   the time of one reply, until it was too high once.
//! * **Replies within 10 ms** measure this machine rather than Variance. If nearly all are, the limit is what 8,000 replies a second
//!   need, but at least 32: more attempts in flight do the same work with more memory, which the processor's caches do not hold.
//!   Of an attempt that had to connect, a third of the time counts here.
//! * **Too many in flight.** When reply times have grown by half, when there is a 503 or a time-out for every tenth answer,
//!   and after every 30 seconds at the limit, half as many are in flight for a moment: a trial. If the others only waited
//!   their turn, reply times fall in proportion; the half is kept, and half of it is tried next. If they do not fall at all,
//!   Variance is slow rather than full, and the limit is as before. A result in between says how many are just enough, and the
//!   limit becomes a quarter more. 503s and time-outs that do not become fewer with the number have another cause, such as one
//!   bad server of several, and are ignored for a while.
//! * **Scattered reply times** change nothing: means of the logarithms of 128 times are compared. Times below 10 ms count as
//!   10 ms there, and the times of attempts that had to connect do not count.
//! * **Too many in a second.** A 429 is about the rate: with replies after a millisecond, one in flight is a thousand a
//!   second. A 429 pauses all attempts for 10 ms, or for longer each time if no reply comes in between, and sets the rate to
//!   four fifths of the replies in the last second. 503s that remain with one in flight do the same.
//! * **Growing again.** After a cut both limits grow as CUBIC does (RFC 9438): fast at first, slowly near the value that was
//!   too high, and faster again beyond. A rate that was too high several times is tried less and less often.
//! * **One cut for one mistake.** Replies to attempts that began under an earlier limit say nothing about the present one, and
//!   the rate is cut at most once in a second. An outage is the breaker's matter.
//!
//! Vector's adaptive concurrency and Netflix's `concurrency-limits` compare reply times with those of the past, and take each
//! change for one of the load. A trial compares them with those of the same minute. Neither of the two limits the rate, which a
//! destination with a limit on the rate needs: if it replies at once, even one attempt in flight is too many.
//!
//! These are the results of a simulation (`cargo test --lib limit -- --nocapture` prints them), of two runs the worse. The
//! figures are from the fifth second on or later, when the limit is known:
//!
//! | destination | answered | rejected | median reply | longest |
//! |---|---|---|---|---|
//! | 200 ms | 1280/s | 0.0 % | 200 ms | 200 ms |
//! | 200 ms, 600 ms more to connect | 1280/s | 0.0 % | 200 ms | 200 ms |
//! | 50 ms | 5120/s | 0.0 % | 50 ms | 50 ms |
//! | at once | 50000/s | 0.0 % | 1 ms | 1 ms |
//! | log-normal, median 50 ms, sigma 1 | 3096/s | 0.0 % | 50 ms | 2918 ms |
//! | 50 ms, but 200 ms for five seconds: after them | 5120/s | 0.0 % | 50 ms | 200 ms |
//! | 1 ms, but every tenth 500 ms | 1439/s | 0.0 % | 1 ms | 501 ms |
//! | 500 in each second, 429 | 466/s | 0.0 % | 1 ms | 1 ms |
//! | 500 in any second, 429 | 472/s | 0.0 % | 1 ms | 1 ms |
//! | 500/s, five at once, 429 | 470/s | 0.0 % | 0 ms | 1 ms |
//! | 500 in each second, 429, `Retry-After: 2` | 419/s | 0.0 % | 0 ms | 1 ms |
//! | 500 in any second, 429, `Retry-After: 2` | 430/s | 0.0 % | 0 ms | 1 ms |
//! | 500/s, 50 at once, 429, `Retry-After: 2` | 355/s | 0.0 % | 0 ms | 1 ms |
//! | 16 slots of 20 ms | 790/s | 0.0 % | 26 ms | 38 ms |
//! | 2 slots of 20 ms | 87/s | 0.0 % | 20 ms | 82 ms |
//! | 16 slots of 20 ms, 503 | 744/s | 2.1 % | 20 ms | 20 ms |
//! | 200 slots of 20 ms | 9999/s | 0.0 % | 26 ms | 29 ms |
//! | 20 of them: from the sixth second on | 950/s | 0.0 % | 24 ms | 35 ms |
//! | 200 again: from the tenth second on | 9998/s | 0.0 % | 26 ms | 28 ms |
//! | 200 and 20 slots of 20 ms, 5 s each | 1726/s | 0.0 % | 20 ms | 262 ms |
//! | 50 ms, and every fourth at once 503 | 3852/s | 25.4 % | 50 ms | 50 ms |

use std::time::Duration;

use tokio::time::Instant;

use self::{bound::Bound, rate::Rate};

mod bound;
mod rate;

/// The limit of attempts in flight at the start.
const START: usize = 64;

/// The longest time to return to a number that was too high, in seconds.
const LONGEST_BACK: f64 = 5.0;

/// The most that the time between two replies counts for, in seconds, so that a silence does not raise the limits.
/// A silence that a low rate makes counts whole.
const LONGEST_GAP: f64 = 0.2;

/// The most answers for each complaint (a 503 or time-out) at which complaints cause a trial.
const ANSWERS: u32 = 10;

/// The number of answers from which a limit is judged.
const SAMPLES: u32 = 128;

/// The least rate, in attempts a second, to which 503s alone can cut it: they may be about their events.
const LEAST_RATE: f64 = 50.0;

/// The shortest reply time that counts. Shorter ones measure this machine.
const SHORTEST: Duration = Duration::from_millis(10);

/// The replies in a second for which a limit is high enough if nearly all reply times are shorter than that.
const ENOUGH_A_SECOND: f64 = 8_000.0;

/// The least such limit.
const LEAST_ENOUGH: f64 = 32.0;

/// The factor by which reply times must have grown for a trial.
const GROWN: f64 = 1.5;

/// The factor above just enough attempts in flight, so that Variance always has another event at hand.
const HEADROOM: f64 = 1.25;

/// The part to which reply times must fall to count as halved.
const NEARLY_HALF: f64 = 0.6;

/// The round trips of an attempt that has to connect: one for TCP, one for TLS 1.3 and its own.
const ROUND_TRIPS: u32 = 3;

/// The least time for which an unused connection stays open.
const OPEN_FOR: Duration = Duration::from_secs(2);

/// The seconds at the limit after which there is a trial even if reply times have not grown, and the seconds for which complaints
/// are ignored once a trial has shown that they do not depend on the number in flight.
const TRIAL_AFTER: f64 = 30.0;

/// The meaning of an attempt's result for the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Variance accepted or refused the event.
    Answered,
    /// There were too many attempts in a short time (429). Variance may have asked for a pause.
    TooMany(Option<Duration>),
    /// There were too many attempts at once (a 503 or a time-out), unless the cause is the event.
    Overloaded,
    /// The result says nothing about the limits.
    Other,
}

/// An attempt in flight.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// The time of its start.
    pub(crate) began: Instant,
    /// The number of attempts in flight at its start, this one included.
    in_flight: usize,
    /// True if the attempt had to connect first, because fewer were in flight lately: its time does not count.
    connects: bool,
}

/// The limits on attempts in flight and on their rate, without a clock: every call passes in the time.
#[derive(Debug)]
pub struct Limit {
    most: usize,
    in_flight: usize,
    bound: Bound,
    rate: Rate,
    last_reply: Option<Instant>,
    /// The most attempts in flight, in this period of [`OPEN_FOR`] and in the one before, and the start of this one.
    peaks: [usize; 2],
    peaks_since: Instant,
    /// The time at which the limit last held an event back.
    held_back: Option<Instant>,
    /// The number of replies to leave out, because their attempts began under another limit.
    unsettled: usize,
    /// The replies under the present limit.
    seen: Seen,
    /// The logarithm of the reply time after the last trial, for comparison with later ones.
    reference: Option<f64>,
    trial: Option<Trial>,
    /// Seconds at the limit since the last trial.
    untried: f64,
    /// Seconds for which complaints are still ignored.
    deaf: f64,
}

/// The sums of the replies under one limit.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    answers: u32,
    complaints: u32,
    /// The sum of the logarithms of the reply times of answers.
    sum: f64,
    /// Seconds that all attempts took together.
    spent: f64,
    /// The most that were in flight.
    peak: usize,
}

impl Seen {
    /// Returns the mean of the logarithms of reply times.
    fn time(self) -> f64 {
        self.sum / f64::from(self.answers)
    }

    /// Returns the seconds of attempts for each answer, including the attempts that ended with a complaint.
    fn cost(self) -> f64 {
        self.spent / f64::from(self.answers)
    }

    /// Returns the number of complaints for each answer.
    fn complaints(self) -> f64 {
        f64::from(self.complaints) / f64::from(self.answers)
    }
}

/// A trial, during which half as many attempts are in flight.
#[derive(Clone, Copy, Debug)]
struct Trial {
    /// The limit before the trial, the number of attempts in flight, and the replies to them.
    limit: usize,
    number: usize,
    seen: Seen,
    is_for_complaints: bool,
}

impl Limit {
    /// Creates limits of which the one in flight never exceeds `most`.
    pub fn new(most: usize, now: Instant) -> Self {
        Self {
            most,
            in_flight: 0,
            bound: Bound::new(START.min(most) as f64, LONGEST_BACK),
            rate: Rate::new(now),
            last_reply: None,
            peaks: [0; 2],
            peaks_since: now,
            held_back: None,
            unsettled: 0,
            seen: Seen::default(),
            reference: None,
            trial: None,
            untried: TRIAL_AFTER - 2.0,
            deaf: 0.0,
        }
    }

    /// Changes the most attempts that may ever be in flight.
    pub fn set_most(&mut self, most: usize) {
        self.most = most;
    }

    /// Lets attempts begin at any rate again.
    pub fn forget_rate(&mut self, now: Instant) {
        self.rate = Rate::new(now);
    }

    /// Returns the present limit of attempts in flight.
    pub fn value(&self) -> usize {
        (self.bound.value() as usize).clamp(1, self.most)
    }

    /// Returns the number of attempts in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Returns the time at which the next attempt may begin, which may be past, or `None` if one has to [end](Self::free)
    /// first.
    pub fn next(&self) -> Option<Instant> {
        (self.in_flight < self.value()).then_some(self.rate.next())
    }

    /// Returns true if an attempt may begin now. Call this only if there is one to make: if it may not begin, the limit counts
    /// as holding an event back.
    pub fn may_start(&mut self, now: Instant) -> bool {
        let next = self.next();
        if next.is_none() {
            self.held_back = Some(now);
        }
        next.is_some_and(|next| next <= now)
    }

    /// Notes that an attempt begins.
    pub fn start(&mut self, now: Instant) -> Attempt {
        self.in_flight += 1;
        self.last_reply.get_or_insert(now);
        self.rate.start(now);
        if now - self.peaks_since >= OPEN_FOR {
            self.peaks = [0, if now - self.peaks_since < 2 * OPEN_FOR { self.peaks[0] } else { 0 }];
            self.peaks_since = now;
        }
        let connects = self.in_flight > self.peaks[0].max(self.peaks[1]);
        self.peaks[0] = self.peaks[0].max(self.in_flight);
        Attempt { began: now, in_flight: self.in_flight, connects }
    }

    /// Notes that the connection of an attempt is free again, after [`Limit::note`].
    pub fn free(&mut self) {
        self.in_flight -= 1;
    }

    /// Notes the result of an attempt.
    pub fn note(&mut self, attempt: Attempt, signal: Signal, now: Instant) {
        let last = self.last_reply.replace(now).unwrap_or(now);
        let silence = (now - last).as_secs_f64();
        let gap = silence.min(LONGEST_GAP);
        self.rate.pass(silence.min(LONGEST_GAP.max(self.rate.interval())));
        self.deaf -= gap;
        let is_held_back = self.held_back >= Some(attempt.began);
        match signal {
            Signal::Answered => {
                self.rate.answered();
                let time = (now - attempt.began) / if attempt.connects { ROUND_TRIPS } else { 1 };
                let is_low = self.bound.value() < time.as_secs_f64() * ENOUGH_A_SECOND;
                if is_held_back && (time > SHORTEST || is_low) {
                    self.grow(gap);
                }
            }
            Signal::TooMany(pause) => return self.rate.too_many(attempt.began, pause, now),
            Signal::Overloaded => {}
            Signal::Other => return,
        }
        if !is_held_back && let Some(trial) = self.trial.take() {
            // Nothing waits any more, so the number is not the limit's.
            self.bound.set(trial.limit as f64);
            self.set_aside(trial.number);
        }
        if self.unsettled > 0 {
            self.unsettled -= 1;
            return;
        }
        let time = now - attempt.began;
        self.seen.peak = self.seen.peak.max(attempt.in_flight);
        if signal == Signal::Answered && attempt.connects {
            return;
        }
        self.seen.spent += time.as_secs_f64();
        if signal == Signal::Answered {
            self.seen.answers += 1;
            self.seen.sum += time.max(SHORTEST).as_secs_f64().ln();
        } else {
            self.seen.complaints += 1;
        }
        self.judge(is_held_back);
    }

    /// Raises a limit that has held events back for `seconds`.
    fn grow(&mut self, seconds: f64) {
        self.untried += seconds;
        if self.trial.is_some() || self.value() == self.most {
            return;
        }
        if self.bound.is_known() {
            self.bound.grow(seconds);
        } else {
            self.bound.set(self.bound.value() + 1.0);
        }
    }

    /// Begins or ends a trial once there are enough replies.
    fn judge(&mut self, is_held_back: bool) {
        let seen = self.seen;
        if seen.answers >= SAMPLES {
            self.seen = Seen::default();
            if let Some(trial) = self.trial.take() {
                self.end_trial(trial, seen);
                return;
            }
            let time = seen.time();
            // Nearly all replies were within the shortest time. What they need follows from the plain mean.
            let are_short = time < (1.05 * SHORTEST.as_secs_f64()).ln();
            let enough = (seen.cost() * ENOUGH_A_SECOND).max(LEAST_ENOUGH);
            if are_short && self.bound.value() > enough {
                self.bound.set(enough);
                self.set_aside(self.in_flight);
                return;
            }
            let has_grown = time > *self.reference.get_or_insert(time) + GROWN.ln();
            if is_held_back && (has_grown || self.untried > TRIAL_AFTER) {
                self.try_half(seen, false);
                return;
            }
        }
        let are_many = seen.answers >= SAMPLES / 4 && seen.complaints * ANSWERS >= seen.answers;
        if are_many && self.trial.is_none() && self.deaf <= 0.0 {
            if self.value() == 1 {
                self.rate.cut(LEAST_RATE);
            }
            self.try_half(seen, true);
        }
    }

    fn try_half(&mut self, seen: Seen, is_for_complaints: bool) {
        let (limit, number) = (self.value(), self.value().min(seen.peak));
        self.untried = 0.0;
        self.set_aside(number);
        if number > 1 {
            self.trial = Some(Trial { limit, number, seen, is_for_complaints });
            self.bound.set((number / 2) as f64);
        }
    }

    /// Changes the limit, and leaves out the replies to attempts that began before.
    fn set_aside(&mut self, limit: usize) {
        (self.unsettled, self.seen) = (limit, Seen::default());
    }

    /// Keeps the half, returns to the whole, or settles between the two.
    fn end_trial(&mut self, trial: Trial, seen: Seen) {
        let ratio = match trial.is_for_complaints {
            true => seen.cost() / trial.seen.cost(),
            false => (seen.time() - trial.seen.time()).exp(),
        };
        let enough = ratio * HEADROOM;
        self.reference = Some(seen.time());
        if ratio < NEARLY_HALF {
            self.bound.settle(self.bound.value());
            self.try_half(seen, trial.is_for_complaints);
            return;
        }
        if enough < 1.0 {
            self.bound.settle(enough * trial.number as f64);
        } else if seen.complaints() < trial.seen.complaints() / 4.0 {
            self.bound.cut(trial.number as f64);
        } else {
            self.bound.set(trial.limit as f64);
            self.reference = Some(trial.seen.time());
            self.deaf = if seen.complaints > 0 { TRIAL_AFTER } else { 0.0 };
        }
        self.set_aside(trial.number);
    }
}

#[cfg(test)]
mod tests;

//! How many POSTs may be in flight to Variance, and how many may begin in a second.
//!
//! Both are found out, because nobody knows them: between one and `delivery.concurrency` in flight, and any number in a
//! second until Variance says that there is a limit.
//!
//! * **In flight.** The limit starts at 64 and grows while it is what holds events back: by one for each reply, so that it
//!   doubles in the time of one, until it was once too high. With replies within 10 ms it stays or falls
//!   back to 64, because this machine is the limit then, and each connection costs it more.
//! * **Too many in flight.** When reply times have grown by half, when there is a 503 or a time-out for every tenth answer,
//!   and after every 30 seconds at the limit, half as many are in flight for a moment: a trial. If the others only waited
//!   their turn, reply times fall in proportion; the half is kept, and half of it is tried next. If they do not fall at all,
//!   Variance is slow rather than full, and the limit is as before. What lies between says how many are just enough, and a
//!   quarter more than these are kept. 503s and time-outs that do not become fewer with the number are about something else,
//!   such as one bad server of several, and are let pass for a while.
//! * **Scattered reply times** change nothing: means of the logarithms of 128 times are compared. Times below 10 ms count as
//!   10 ms, because they measure this machine rather than Variance, and those of attempts that had to connect do not count.
//! * **Too many in a second.** A 429 is about the rate: with replies after a millisecond, one in flight is a thousand a
//!   second. It pauses everything for 10 ms, or for longer each time if nothing is answered meanwhile, and sets the rate to
//!   four fifths of what was answered in the last second. 503s that remain with one in flight do so too.
//! * **Growing again.** After a cut both grow as CUBIC does (RFC 9438): fast at first, slowly near what was too much, and
//!   faster the farther beyond. A rate that was too much several times is tried less and less often.
//! * **One answer to one mistake.** Replies to attempts that began under an earlier limit say nothing of the present one, and
//!   the rate is cut once in a second. What fails altogether is the breaker's matter.
//!
//! Vector's adaptive concurrency and Netflix's `concurrency-limits` compare reply times with those of the past, and take each
//! change for one of the load. A trial compares them with those of the same minute. Neither of the two has a rate, and with
//! replies at once one in flight is too many for a destination that has one.
//!
//! What a simulation comes to, the worse of two runs each (`cargo test --lib limit -- --nocapture` prints it). The times are
//! counted from the fifth second on or later, when the limit is known:
//!
//! | destination | answered | rejected | median reply | longest |
//! |---|---|---|---|---|
//! | 200 ms | 1280/s | 0.0 % | 200 ms | 200 ms |
//! | 200 ms, 600 ms more to connect | 1280/s | 0.0 % | 200 ms | 200 ms |
//! | 50 ms | 5120/s | 0.0 % | 50 ms | 50 ms |
//! | at once | 50000/s | 0.0 % | 1 ms | 1 ms |
//! | log-normal, median 50 ms, sigma 1 | 3097/s | 0.0 % | 50 ms | 2918 ms |
//! | 50 ms, but 200 ms for five seconds: after them | 5120/s | 0.0 % | 50 ms | 200 ms |
//! | 500 in each second, 429 | 465/s | 0.0 % | 1 ms | 1 ms |
//! | 500 in any second, 429 | 473/s | 0.0 % | 1 ms | 1 ms |
//! | 500/s, five at once, 429 | 470/s | 0.0 % | 0 ms | 1 ms |
//! | 500 in each second, 429, `Retry-After: 2` | 418/s | 0.0 % | 0 ms | 1 ms |
//! | 500 in any second, 429, `Retry-After: 2` | 430/s | 0.0 % | 0 ms | 1 ms |
//! | 500/s, 50 at once, 429, `Retry-After: 2` | 355/s | 0.0 % | 0 ms | 1 ms |
//! | 16 slots of 20 ms | 790/s | 0.0 % | 26 ms | 38 ms |
//! | 2 slots of 20 ms | 87/s | 0.0 % | 20 ms | 82 ms |
//! | 16 slots of 20 ms, 503 | 744/s | 2.1 % | 20 ms | 20 ms |
//! | 200 slots of 20 ms | 10002/s | 0.0 % | 25 ms | 29 ms |
//! | 20 of them: from the sixth second on | 960/s | 0.0 % | 24 ms | 35 ms |
//! | 200 again: from the tenth second on | 10001/s | 0.0 % | 26 ms | 28 ms |
//! | 200 and 20 slots of 20 ms, 5 s each | 1827/s | 0.0 % | 20 ms | 261 ms |
//! | 50 ms, and every fourth at once 503 | 3852/s | 25.4 % | 50 ms | 50 ms |

use std::time::Duration;

use tokio::time::Instant;

use self::{bound::Bound, rate::Rate};

mod bound;
mod rate;

/// How many may be in flight at the start.
const START: usize = 64;

/// How long it may take to come back to a number that was too much, in seconds.
const LONGEST_BACK: f64 = 5.0;

/// The most that the time between two replies counts for, in seconds: what traffic taught is not forgotten in a silence.
const LONGEST_GAP: f64 = 0.2;

/// Complaints are looked into if there is one for so many answers.
const ANSWERS: u32 = 10;

/// Answers from which a limit is judged.
const SAMPLES: u32 = 128;

/// A rate that 503s alone cut is not cut below this one, in attempts a second: they may be about their events.
const LEAST_RATE: f64 = 50.0;

/// Shorter reply times count as this one, and make the limit grow no further: they are this machine's.
const SHORTEST: Duration = Duration::from_millis(10);

/// By how much a reply time must have grown.
const GROWN: f64 = 1.5;

/// How much more than just enough may be in flight, so that Variance always has another event at hand.
const HEADROOM: f64 = 1.25;

/// Reply times that fall to this part are as good as halved.
const NEARLY_HALF: f64 = 0.6;

/// For how long a connection that is not used stays open at least.
const OPEN_FOR: Duration = Duration::from_secs(2);

/// Seconds at the limit after which there is a trial even if reply times have not grown, and seconds for which complaints
/// are let pass once a trial has shown that they do not come of the number.
const TRIAL_AFTER: f64 = 30.0;

/// What a reply says of the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Variance took or refused the event.
    Answered,
    /// Too many in a short time (429), and for how long Variance asked to be left alone.
    TooMany(Option<Duration>),
    /// Too many at once (503, a time-out), unless it is about the event.
    Overloaded,
    /// Nothing.
    Other,
}

/// An attempt in flight.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    began: Instant,
    /// How many were in flight then, this one included.
    in_flight: usize,
    /// So many were not in flight lately, so it had to connect first: its time is another one.
    connects: bool,
}

/// The limit. It has no clock: every call says what time it is.
#[derive(Debug)]
pub struct Limit {
    most: usize,
    in_flight: usize,
    bound: Bound,
    rate: Rate,
    last_reply: Option<Instant>,
    /// The most that were in flight, in this stretch of [`OPEN_FOR`] and in the one before, and when this one began.
    peaks: [usize; 2],
    peaks_since: Instant,
    /// When the limit last held an event back.
    held_back: Option<Instant>,
    /// How many replies are to be left out, because they are of another limit.
    unsettled: usize,
    /// What has been seen of the present limit.
    seen: Seen,
    /// The logarithm of the reply time after the last trial, with which later ones are compared.
    reference: Option<f64>,
    trial: Option<Trial>,
    /// Seconds at the limit since the last trial.
    untried: f64,
    /// Seconds for which complaints are let pass.
    deaf: f64,
}

/// Replies under one limit.
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
    /// The mean of the logarithms of reply times.
    fn time(self) -> f64 {
        self.sum / f64::from(self.answers)
    }

    /// What an answer costs, in seconds of attempts, those that complained included.
    fn cost(self) -> f64 {
        self.spent / f64::from(self.answers)
    }

    /// Complaints for each answer.
    fn complaints(self) -> f64 {
        f64::from(self.complaints) / f64::from(self.answers)
    }
}

/// Half as many are in flight for a moment.
#[derive(Clone, Copy, Debug)]
struct Trial {
    /// The limit before, how many were in flight, and what was seen of them.
    limit: usize,
    number: usize,
    seen: Seen,
    is_for_complaints: bool,
}

impl Limit {
    /// A limit that is never more than `most`.
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

    /// Changes the most that it can be.
    pub fn set_most(&mut self, most: usize) {
        self.most = most;
    }

    /// How many may be in flight at present.
    pub fn value(&self) -> usize {
        (self.bound.value() as usize).clamp(1, self.most)
    }

    /// How many are in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// When the next attempt may begin, which may be past. `None` if one has to [end](Self::free) first.
    pub fn next(&self) -> Option<Instant> {
        (self.in_flight < self.value()).then_some(self.rate.next())
    }

    /// Whether an attempt may begin now. Ask only if there is one to make: if it may not, the limit holds it back.
    pub fn permit(&mut self, now: Instant) -> bool {
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

    /// Notes that its connection is free again, after its [reply](Self::reply).
    pub fn free(&mut self) {
        self.in_flight -= 1;
    }

    /// Notes what came of it.
    pub fn reply(&mut self, attempt: Attempt, reply: Reply, now: Instant) {
        let last = self.last_reply.replace(now).unwrap_or(now);
        let gap = (now - last).as_secs_f64().min(LONGEST_GAP);
        self.rate.pass(gap);
        self.deaf -= gap;
        let is_held_back = self.held_back >= Some(attempt.began);
        match reply {
            Reply::Answered => {
                self.rate.answered();
                if is_held_back && now - attempt.began > SHORTEST {
                    self.grow(gap);
                }
            }
            Reply::TooMany(pause) => return self.rate.too_many(attempt.began, pause, now),
            Reply::Overloaded => {}
            Reply::Other => return,
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
        if reply == Reply::Answered && attempt.connects {
            return;
        }
        self.seen.spent += time.as_secs_f64();
        if reply == Reply::Answered {
            self.seen.answers += 1;
            self.seen.sum += time.max(SHORTEST).as_secs_f64().ln();
        } else {
            self.seen.complaints += 1;
        }
        self.judge(is_held_back);
    }

    /// Lets the limit grow that held events back for so many seconds.
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

    /// Begins or ends a trial once enough has been seen.
    fn judge(&mut self, is_held_back: bool) {
        let seen = self.seen;
        if seen.answers >= SAMPLES {
            self.seen = Seen::default();
            if let Some(trial) = self.trial.take() {
                self.end_trial(trial, seen);
                return;
            }
            let time = seen.time();
            if time < (1.05 * SHORTEST.as_secs_f64()).ln() && self.value() > START {
                // It has grown in a moment at which this machine was slow.
                self.bound.set(START as f64);
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

    /// Leaves out the replies that are of the limit so far.
    fn set_aside(&mut self, limit: usize) {
        (self.unsettled, self.seen) = (limit, Seen::default());
    }

    /// Keeps the half, goes back to the whole, or settles between them.
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

//! The sender, which hands events to the outbox and waits for their outcomes.

use std::{collections::BTreeMap, fmt::Display, num::NonZeroU32, sync::Mutex, time::Duration};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    select,
    sync::mpsc::UnboundedReceiver,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    counts::{Counts, End},
    failures::Failures,
    progress::{Progress, TICK},
    reader::{Next, Work},
    resume::Resume,
};
use crate::{
    destination::Fault,
    metrics::StateLabel,
    outbox::{HandOver, Health, Outbox, Outcome, RequestId},
};

/// The number of different events that Variance has to refuse, before it accepts any, for the run to stop.
const REFUSALS_TO_STOP: usize = 20;

/// The most that a rate may lag behind and then catch up: timers are exact only to milliseconds.
const CATCH_UP: Duration = Duration::from_millis(100);

/// The way in which sending ended.
#[derive(Clone, Debug)]
pub(super) enum Stopped {
    /// Every event has ended.
    AtTheEnd,
    /// It was interrupted; every event before this place has ended.
    Early(Resume),
}

pub(super) struct Sender<'s> {
    pub(super) outbox: &'s Outbox,
    pub(super) request: RequestId,
    pub(super) queue: UnboundedReceiver<Work>,
    /// The events in the outbox, by number.
    pub(super) under_way: BTreeMap<u64, Work>,
    pub(super) outcomes: FuturesUnordered<BoxFuture<'static, (u64, Outcome)>>,
    /// The most events that may be in the outbox at once.
    pub(super) window: usize,
    pub(super) pace: Option<Pace>,
    pub(super) counts: &'s Counts,
    pub(super) failures: &'s mut Failures,
    pub(super) progress: &'s Progress,
    /// The position of the reader.
    pub(super) next: &'s Mutex<Next>,
    /// The longest that events in flight may take after a stop.
    pub(super) grace: Duration,
    /// The time at which it ends, once it has to stop.
    pub(super) stop_by: Option<Instant>,
    /// Returns advice on a fault of Variance.
    pub(super) advice: &'s dyn Fn(Fault) -> String,
    /// Positions of failures that could not be written.
    pub(super) not_kept: Vec<Next>,
}

/// The time at which the next event may go.
#[derive(Debug)]
pub(super) struct Pace {
    period: Duration,
    next: Instant,
}

impl Pace {
    pub(super) fn new(rate: NonZeroU32) -> Self {
        Self { period: Duration::from_secs(1) / rate.get(), next: Instant::now() }
    }
}

impl Sender<'_> {
    /// Sends until every event has ended, or until `shutdown`, and then finishes the events in flight.
    pub(super) async fn send(mut self, shutdown: &CancellationToken) -> Stopped {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut has_more = true;
        loop {
            self.look_at_variance(has_more);
            let is_idle = self.under_way.is_empty();
            match self.stop_by {
                _ if is_idle && !has_more && self.not_kept.is_empty() => return Stopped::AtTheEnd,
                // Events in flight may end, but those that wait for Variance to come back will not.
                Some(_) if is_idle || self.outbox.paused().is_some() => break,
                _ => {}
            }
            let may_take = has_more && self.stop_by.is_none() && self.under_way.len() < self.window;
            let paced = self.pace.as_ref().map(|pace| pace.next).filter(|next| *next > Instant::now());
            select! {
                biased;
                () = shutdown.cancelled(), if self.stop_by.is_none() => {
                    self.progress.say("Stopping: finishing the events in flight. Press Ctrl-C again to end at once.");
                    self.stop_by = Some(Instant::now() + self.grace);
                }
                () = sleep_until(self.stop_by.unwrap_or_else(Instant::now)), if self.stop_by.is_some() => break,
                Some((number, outcome)) = self.outcomes.next() => {
                    // An event that was given up may end after all.
                    if let Some(work) = self.under_way.remove(&number) {
                        self.ended(work, outcome);
                    }
                }
                work = self.queue.recv(), if may_take && paced.is_none() => match work {
                    Some(work) => self.take(work),
                    None => {
                        has_more = false;
                        self.outbox.complete();
                    }
                },
                () = sleep_until(paced.unwrap_or_else(Instant::now)), if may_take && paced.is_some() => {}
                _ = tick.tick() => self.progress.update(self.outbox),
            }
        }
        self.stop()
    }

    /// Hands an event over to the outbox.
    fn take(&mut self, work: Work) {
        let (identity, message) = match &work.message {
            Ok(message) => message,
            Err(reason) => {
                let reason = format!("invalid: {reason}");
                return self.fail(work, End::Invalid, &reason);
            }
        };
        if let Some(pace) = &mut self.pace {
            let now = Instant::now();
            pace.next = pace.next.max(now.checked_sub(CATCH_UP).unwrap_or(now)) + pace.period;
        }
        match self.outbox.hand_over(self.request, *identity, message) {
            HandOver::New(pending) | HandOver::Joined(pending) => {
                let number = work.next.number;
                self.under_way.insert(number, work);
                self.outcomes.push(Box::pin(async move { (number, pending.wait().await) }));
            }
            HandOver::Ended(outcome) => self.ended(work, outcome),
            HandOver::TooLarge => {
                self.fail(work, End::Invalid, &"invalid: the event is larger than delivery.max_held");
            }
            HandOver::Full => unreachable!("all that is under way takes less than delivery.max_held can be"),
        }
    }

    fn ended(&mut self, work: Work, outcome: Outcome) {
        match outcome {
            Outcome::Delivered => self.counts.add(End::Delivered),
            Outcome::Refused(_) | Outcome::Abandoned(_) => {
                self.fail(work, End::Refused, &format_args!("refused: {outcome}"));
            }
        }
    }

    /// Stops if Variance has accepted nothing yet, and either refuses all events (those under way are then refused) or
    /// does not accept the credential: going on would mean waiting forever.
    fn look_at_variance(&mut self, has_more: bool) {
        let health = self.outbox.health();
        let Health { state, reason: Some(fault), doubted, .. } = health else { return };
        if self.stop_by.is_some() || health.last_success().is_some() {
            return;
        }
        let all = if has_more { REFUSALS_TO_STOP } else { REFUSALS_TO_STOP.min(self.under_way.len()) };
        if all > 0 && doubted >= all {
            for work in std::mem::take(&mut self.under_way).into_values() {
                self.fail(work, End::Refused, &format_args!("refused: {fault}"));
            }
        } else if !(fault.is_credential() && state == StateLabel::Paused) {
            return;
        }
        self.progress.say(&format!("error: {}", (self.advice)(fault)));
        self.stop_by = Some(Instant::now());
    }

    /// Records a failure. If it cannot be written, the next run has to begin with it.
    fn fail(&mut self, work: Work, end: End, reason: &dyn Display) {
        let next = work.next.clone();
        match self.failures.add(work, reason) {
            Ok(()) => self.counts.add(end),
            Err(error) => {
                self.progress.say(&format!("error: {error:#}"));
                self.not_kept.push(next);
                self.stop_by.get_or_insert_with(|| Instant::now() + self.grace);
            }
        }
    }

    /// Counts the events that have not ended.
    fn stop(mut self) -> Stopped {
        self.queue.close();
        let queued: Vec<_> = std::iter::from_fn(|| self.queue.try_recv().ok()).map(|work| work.next).collect();
        let held = self.under_way.into_values().map(|work| work.next);
        let left = held.chain(queued).chain(self.not_kept).inspect(|_| self.counts.add(End::Undelivered));
        let first = left.min_by_key(|next| next.number);
        let next = self.next.lock().expect("no panic while it is held").clone();
        Stopped::Early(first.unwrap_or(next).resume)
    }
}

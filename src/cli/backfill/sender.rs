//! What hands events to the outbox, and waits for what becomes of them.

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

/// How many different events Variance has to refuse before any is accepted for the run to stop.
const REFUSALS_TO_STOP: usize = 20;

/// How far a rate may lag behind and catch up: timers are no more exact than milliseconds.
const CATCH_UP: Duration = Duration::from_millis(100);

/// How sending ended.
#[derive(Clone, Debug)]
pub(super) enum Stopped {
    /// Everything has ended.
    AtTheEnd,
    /// It was interrupted: everything before this has ended.
    Early(Resume),
}

pub(super) struct Sender<'s> {
    pub(super) outbox: &'s Outbox,
    pub(super) request: RequestId,
    pub(super) queue: UnboundedReceiver<Work>,
    /// What is in the outbox, by its number, and the waiting for it.
    pub(super) under_way: BTreeMap<u64, Work>,
    pub(super) outcomes: FuturesUnordered<BoxFuture<'static, (u64, Outcome)>>,
    /// How many events may be in the outbox at once.
    pub(super) window: usize,
    pub(super) pace: Option<Pace>,
    pub(super) counts: &'s Counts,
    pub(super) failures: &'s mut Failures,
    pub(super) progress: &'s Progress,
    /// What is read next.
    pub(super) next: &'s Mutex<Next>,
    /// How long what is in flight may take when it is to stop.
    pub(super) grace: Duration,
    /// When it ends, if it is to stop.
    pub(super) stop_by: Option<Instant>,
    /// What to do about a fault of Variance's.
    pub(super) advice: &'s dyn Fn(Fault) -> String,
    /// Failures that could not be written.
    pub(super) not_kept: Vec<Next>,
}

/// When the next event may go.
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
    /// Sends until everything has ended, or until `shutdown` and then what is in flight.
    pub(super) async fn send(mut self, shutdown: &CancellationToken) -> Stopped {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut has_more = true;
        loop {
            self.look_at_variance(has_more);
            let is_idle = self.under_way.is_empty();
            match self.stop_by {
                _ if is_idle && !has_more && self.not_kept.is_empty() => return Stopped::AtTheEnd,
                // What is in flight ends; what waits for Variance to come back does not.
                Some(_) if is_idle || self.outbox.paused().is_some() => break,
                _ => {}
            }
            let may_take = has_more && self.stop_by.is_none() && self.under_way.len() < self.window;
            let paced = self.pace.as_ref().map(|pace| pace.next).filter(|next| *next > Instant::now());
            select! {
                biased;
                () = shutdown.cancelled(), if self.stop_by.is_none() => {
                    self.progress.say("Stopping: what is in flight is finished first. Ctrl-C again ends at once.");
                    self.stop_by = Some(Instant::now() + self.grace);
                }
                () = sleep_until(self.stop_by.unwrap_or_else(Instant::now)), if self.stop_by.is_some() => break,
                Some((number, outcome)) = self.outcomes.next() => self.ended(number, outcome),
                work = self.queue.recv(), if may_take && paced.is_none() => match work {
                    Some(work) => self.take(work),
                    None => has_more = false,
                },
                () = sleep_until(paced.unwrap_or_else(Instant::now)), if may_take && paced.is_some() => {}
                _ = tick.tick() => self.progress.update(self.outbox),
            }
        }
        self.stop()
    }

    fn take(&mut self, work: Work) {
        if let Err(reason) = &work.message {
            let reason = format!("invalid: {reason}");
            return self.fail(work, End::Invalid, &reason);
        }
        if let Some(pace) = &mut self.pace {
            let now = Instant::now();
            pace.next = pace.next.max(now.checked_sub(CATCH_UP).unwrap_or(now)) + pace.period;
        }
        self.hand_over(work);
    }

    fn hand_over(&mut self, work: Work) {
        let number = work.next.number;
        let (identity, message) = work.message.as_ref().expect("what is invalid is not handed over");
        let handed_over = self.outbox.hand_over(self.request, *identity, message);
        self.under_way.insert(number, work);
        match handed_over {
            HandOver::UnderWay(pending) => {
                self.outcomes.push(Box::pin(async move { (number, pending.wait().await) }));
            }
            HandOver::Ended(outcome) => self.ended(number, outcome),
            HandOver::TooLarge => {
                let work = self.take_back(number);
                self.fail(work, End::Invalid, &"invalid: the event is larger than delivery.max_held");
            }
            HandOver::Full => unreachable!("all that is under way takes less than delivery.max_held can be"),
        }
    }

    fn ended(&mut self, number: u64, outcome: Outcome) {
        // One that was given up may end all the same.
        let Some(work) = self.under_way.remove(&number) else { return };
        match outcome {
            Outcome::Delivered => self.counts.add(End::Delivered),
            Outcome::Refused(_) | Outcome::Abandoned(_) => {
                self.fail(work, End::Refused, &format_args!("refused: {outcome}"));
            }
        }
    }

    fn take_back(&mut self, number: u64) -> Work {
        self.under_way.remove(&number).expect("it was handed over, and has ended just now")
    }

    /// Stops if Variance has accepted nothing yet, and either refuses all (then what is under way is refused) or does not
    /// accept the credential: to go on would be to wait for ever.
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

    /// Notes a failure. If it cannot be kept, the next run has to begin with it.
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

    /// Counts what has not ended.
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

//! What hands events to the outbox, and waits for what becomes of them.

use std::{
    num::NonZeroU32,
    pin::Pin,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use slab::Slab;
use tokio::{
    select,
    sync::mpsc::{UnboundedReceiver, error::TryRecvError},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    counts::{Counts, End},
    failures::Failures,
    progress::{Progress, TICK},
    reader::Work,
};
use crate::outbox::{HandOver, Outbox, Outcome, Refusal};

/// How many events are in the outbox at once, at least.
pub(super) const WINDOW: usize = 256;

/// How far a rate may lag behind and catch up: timers are no more exact than milliseconds.
const CATCH_UP: Duration = Duration::from_millis(100);

/// How sending ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stopped {
    /// Everything has ended.
    AtTheEnd,
    /// It was interrupted: everything before this number has ended.
    Early { resume_at: u64 },
}

pub(super) struct Sender<'s> {
    pub(super) outbox: &'s Outbox,
    pub(super) outcomes: FuturesUnordered<Ending>,
    pub(super) queue: UnboundedReceiver<Work>,
    /// What is in the outbox, by its place.
    pub(super) under_way: Slab<UnderWay>,
    /// How many events may be in the outbox at once.
    pub(super) window: usize,
    pub(super) pace: Option<Pace>,
    pub(super) counts: &'s Counts,
    pub(super) failures: &'s Mutex<Failures>,
    pub(super) progress: &'s Progress,
    /// How many events have come back from the outbox.
    pub(super) returned: u64,
    /// When Variance was last seen to be away.
    pub(super) last_pause: Option<Instant>,
    /// The number of what is read next.
    pub(super) next: &'s AtomicU64,
}

/// What tells how an event has ended, by its place.
pub(super) type Ending = Pin<Box<dyn Future<Output = (usize, Outcome)>>>;

/// An event in the outbox.
#[derive(Debug)]
pub(super) struct UnderWay {
    work: Work,
    since: Instant,
    /// It has come back from there as one that keeps failing.
    is_suspect: bool,
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
    pub(super) async fn send(mut self, shutdown: &CancellationToken, grace: Duration) -> anyhow::Result<Stopped> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut give_up: Option<Instant> = None;
        let mut has_more = true;
        loop {
            if self.outbox.paused().is_some() {
                self.last_pause = Some(Instant::now());
            }
            self.note_ended()?;
            while has_more && give_up.is_none() && self.may_send() {
                match self.queue.try_recv() {
                    Ok(work) => self.hand_over(work)?,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => has_more = false,
                }
            }
            let is_idle = self.under_way.is_empty();
            if is_idle && !has_more && give_up.is_none() {
                return Ok(Stopped::AtTheEnd);
            }
            // What is in flight ends; what waits for Variance to come back does not.
            if give_up.is_some() && (is_idle || self.outbox.paused().is_some()) {
                break;
            }
            let paced = self.pace.as_ref().map(|pace| pace.next).filter(|next| *next > Instant::now());
            let has_room = has_more && give_up.is_none() && self.under_way.len() < self.window;
            select! {
                biased;
                () = shutdown.cancelled(), if give_up.is_none() => {
                    give_up = Some(Instant::now() + grace);
                    self.progress.say("Stopping: what is in flight is finished first. Ctrl-C again ends at once.");
                }
                () = sleep_until(give_up.unwrap_or_else(Instant::now)), if give_up.is_some() => break,
                Some((place, outcome)) = self.outcomes.next() => self.ended(place, outcome)?,
                work = self.queue.recv(), if has_room && paced.is_none() => match work {
                    Some(work) => self.hand_over(work)?,
                    None => has_more = false,
                },
                () = sleep_until(paced.unwrap_or_else(Instant::now)), if has_room && paced.is_some() => {}
                _ = tick.tick() => self.progress.update(self.outbox),
            }
        }
        self.note_ended()?;
        Ok(self.stop())
    }

    fn may_send(&self) -> bool {
        self.under_way.len() < self.window && self.pace.as_ref().is_none_or(|pace| pace.next <= Instant::now())
    }

    fn hand_over(&mut self, work: Work) -> anyhow::Result<()> {
        if let Some(pace) = &mut self.pace {
            let now = Instant::now();
            pace.next = pace.next.max(now.checked_sub(CATCH_UP).unwrap_or(now)) + pace.period;
        }
        let place = self.under_way.insert(UnderWay { work, since: Instant::now(), is_suspect: false });
        self.try_hand_over(place)
    }

    /// Hands over what has come back: Variance was away, and a file can wait for longer than the service.
    fn hand_over_again(&mut self, place: usize) -> anyhow::Result<()> {
        let UnderWay { work, since, is_suspect: _ } = &mut self.under_way[place];
        *since = Instant::now();
        // The outbox remembers how it has ended under the former identity.
        self.returned += 1;
        work.identity = self.outbox.identity(&[work.message.id().as_bytes(), b"again", &self.returned.to_le_bytes()]);
        self.try_hand_over(place)
    }

    fn try_hand_over(&mut self, place: usize) -> anyhow::Result<()> {
        let UnderWay { work, .. } = &self.under_way[place];
        match self.outbox.hand_over(work.identity, &work.message) {
            HandOver::UnderWay(pending) => {
                self.outcomes.push(Box::pin(async move { (place, pending.wait().await) }));
                Ok(())
            }
            HandOver::Ended(outcome) => self.ended(place, outcome),
            HandOver::TooLarge => {
                self.counts.add(End::Invalid);
                let UnderWay { work: Work { place: origin, original, .. }, .. } = &self.under_way[place];
                self.failures().failed(origin, &"invalid: the event is larger than delivery.max_held", original)?;
                self.under_way.remove(place);
                Ok(())
            }
            HandOver::Full => unreachable!("all that is under way takes less than delivery.max_held can be"),
        }
    }

    fn note_ended(&mut self) -> anyhow::Result<()> {
        while let Some(Some((place, outcome))) = self.outcomes.next().now_or_never() {
            self.ended(place, outcome)?;
        }
        Ok(())
    }

    fn ended(&mut self, place: usize, outcome: Outcome) -> anyhow::Result<()> {
        match outcome {
            Outcome::Delivered => self.counts.add(End::Delivered),
            Outcome::Abandoned if !self.under_way[place].is_suspect => return self.hand_over_again(place),
            Outcome::Abandoned => return self.ended(place, Outcome::Refused(Refusal::KeptFailing)),
            Outcome::Refused(Refusal::KeptFailing) if self.may_return(place) => return self.hand_over_again(place),
            Outcome::Refused(refusal) => {
                self.counts.add(End::Refused);
                let UnderWay { work: Work { place, original, .. }, .. } = &self.under_way[place];
                self.failures().failed(place, &format_args!("refused: {refusal}"), original)?;
            }
        }
        self.under_way.remove(place);
        Ok(())
    }

    /// Whether that an event kept failing may be because Variance was away. It is believed once.
    fn may_return(&mut self, place: usize) -> bool {
        let UnderWay { since, is_suspect, .. } = &mut self.under_way[place];
        !std::mem::replace(is_suspect, true) && self.last_pause.is_some_and(|pause| pause >= *since)
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().expect("no panic while it is held")
    }

    /// Counts what has not ended.
    fn stop(mut self) -> Stopped {
        self.queue.close();
        let mut resume_at = u64::MAX;
        let queued = std::iter::from_fn(|| self.queue.try_recv().ok());
        for work in queued.chain(self.under_way.drain().map(|under_way| under_way.work)) {
            self.counts.add(End::Undelivered);
            resume_at = resume_at.min(work.number);
        }
        Stopped::Early { resume_at: resume_at.min(self.next.load(Ordering::Relaxed)) }
    }
}

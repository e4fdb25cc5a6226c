//! One attempt per identity; what could not be delivered is held and tried again.
//!
//! > An event is acknowledged only when Variance has it. Nothing is written to disk.
//!
//! * **At least once, while anybody still asks.** A 2xx reply means that every event of the request was accepted by
//!   Variance, filtered out on purpose, or refused for good: by Variance, or as no event. The reply names the first
//!   twenty that were refused, the log every one that Variance refused, and the metrics count all.
//! * **An outage does not lose what PostHog gives up on.** PostHog tries a webhook three times in about six seconds and
//!   then drops the event. The connector answers 503 when Variance does not have an event in time, which is the truth,
//!   but keeps the event in memory and goes on trying for `delivery.retry_for` (an hour). A re-send of the same event
//!   joins the attempt under way instead of starting a second one.
//! * **Effectively once, for as long as the process lives.** A final outcome (accepted or refused) is remembered for an
//!   hour, for up to 200,000 events (8 MiB); a re-send is answered from memory without a second POST. Two events are
//!   the same when their `uuid`, name and `distinct_id` are.
//! * **No hostage.** An event that Variance always fails on delays nobody else. When its hour is over it is *refused*
//!   if others were accepted meanwhile, and *abandoned* if none was.
//! * **Bounded.** Memory, sockets, time and the volume of the log have limits that hold under hostile load. Memory is
//!   the sum of `delivery.max_held`, four times `server.max_body` for bodies being read (16 MiB at least), and 80 MiB
//!   for connections, remembered outcomes and the program itself, and a quarter of that sum for what the allocator
//!   keeps: 512 MiB at the defaults.
//!
//! Its limits:
//!
//! * What only the connector's memory holds is lost when the process is killed: events that PostHog has given up on and
//!   that Variance did not have yet.
//! * Variance may get an event more than once when it took one but its answer was lost on the way, or came later than
//!   `delivery.attempt_timeout`. Replicas share no memory, nor does a process with the one before it, so a re-send that
//!   reaches another is posted again too. Both carry the same `messageId`.
//! * What Variance does not take within `delivery.retry_for` is given up, and named in the log.
//! * When `delivery.max_held` is full during an outage, further events are told 429 or 503 and stay PostHog's.
//!
//! An event that was handed over leaves in one of three ways: Variance has it, Variance will not have it, or its time is
//! over. Nobody who waits for it can change that: a request that ends early only stops waiting.
//!
//! It is not a task or a timer for each event, but `concurrency` workers, which take what is ready, and one pacer, which
//! sleeps until something is due.

use std::{
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use fastrand::Rng;
use http::StatusCode;
use tokio::{
    sync::{Notify, futures::Notified},
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{health::Health, memory::Identity, ticket::Ticket};
use self::{
    health::News,
    losses::Losses,
    memory::IdentityKey,
    state::{Admission, Ended, State},
    ticket::{Progress, Turn},
};
use crate::{
    backoff::Backoff,
    destination::Destination,
    metrics::{self, Metrics, OutcomeLabel},
    variance::Message,
};

mod health;
mod losses;
mod memory;
mod state;
mod ticket;

/// How much is in flight, and how much and how long is held.
#[derive(Clone, Debug)]
pub struct OutboxSettings {
    /// POSTs in flight to Variance.
    pub concurrency: usize,
    /// How long an undelivered event is held.
    pub retry_for: Duration,
    /// Bytes of memory for undelivered events, bookkeeping included.
    pub max_held: usize,
    /// The waits between attempts.
    pub pacing: Pacing,
}

impl Default for OutboxSettings {
    fn default() -> Self {
        Self { concurrency: 64, retry_for: Duration::from_secs(60 * 60), max_held: 64 << 20, pacing: Pacing::default() }
    }
}

/// The waits between attempts. Not a setting of users: tests make them shorter.
#[derive(Clone, Copy, Debug)]
pub struct Pacing {
    /// Between the attempts of one event.
    pub backoff: Backoff,
    /// Between the probes of a destination that is down.
    pub open_for: Backoff,
}

impl Default for Pacing {
    fn default() -> Self {
        Self {
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(30)),
            open_for: Backoff::new(Duration::from_secs(1), Duration::from_secs(60)),
        }
    }
}

/// How an event that was handed over can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Outcome {
    /// Variance has it.
    #[error("delivered")]
    Delivered,
    /// Variance will not have it.
    #[error(transparent)]
    Refused(Refusal),
    /// It was not delivered in its time, and no other event was.
    #[error("Variance could not be reached for as long as events are held")]
    Abandoned,
}

/// Why Variance will not have an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It said so.
    #[error("Variance refused the event: {0}")]
    Status(StatusCode),
    /// It failed each attempt, and took others meanwhile.
    #[error("Variance failed each attempt to deliver the event, and took others meanwhile")]
    KeptFailing,
}

/// What became of an event that was handed over.
#[derive(Debug)]
pub enum HandOver {
    /// It is under way, and the ticket waits for it.
    UnderWay,
    /// It has ended before: this is a re-send.
    Ended(Outcome),
    /// There is no room for it now.
    Full,
    /// There will never be room for it: it alone is over `max_held`.
    TooLarge,
}

/// A handle to the outbox.
#[derive(Clone)]
pub struct Outbox(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    losses: Mutex<Losses>,
    identity_key: IdentityKey,
    max_held: usize,
    destination: Destination,
    metrics: Metrics,
    /// There may be something for a worker to do.
    work: Notify,
    /// There may be room again.
    room: Notify,
    /// Something is due earlier than the pacer thinks.
    pacer: Notify,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Outbox {
    /// Starts the workers and the pacer. They end with [`Outbox::close`].
    pub fn start(settings: OutboxSettings, destination: Destination, metrics: Metrics) -> Self {
        let concurrency = settings.concurrency;
        let outbox = Self(Arc::new(Shared {
            max_held: settings.max_held,
            state: Mutex::new(State::new(settings, Instant::now(), Rng::new())),
            losses: Mutex::default(),
            identity_key: IdentityKey::random(),
            destination,
            metrics,
            work: Notify::new(),
            room: Notify::new(),
            pacer: Notify::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }));
        for _ in 0..concurrency {
            outbox.spawn(|shared| async move { shared.work().await });
        }
        outbox.spawn(|shared| async move { shared.pace().await });
        outbox
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: impl FnOnce(Arc<Shared>) -> F) {
        let (stop, task) = (self.0.stop.clone(), task(Arc::clone(&self.0)));
        self.0.tasks.spawn(async move { stop.run_until_cancelled(task).await });
    }

    /// A ticket for one request.
    pub fn ticket(&self) -> Ticket {
        Ticket::new(self.clone())
    }

    /// The identity of what has this key: its uuid, its name and its `distinct_id`.
    pub fn identity(&self, key: &[impl AsRef<[u8]>; 3]) -> Identity {
        self.0.identity_key.identity(key.each_ref().map(AsRef::as_ref))
    }

    /// Takes an event in, or joins the one of the same identity, and puts it on `ticket` under `index`.
    pub fn hand_over(&self, ticket: &mut Ticket, index: u32, identity: Identity, message: &Message) -> HandOver {
        if state::cost(message) > self.0.max_held {
            return HandOver::TooLarge;
        }
        if ticket.is_mostly_ended() {
            self.0.state().forget_ended(ticket.attached());
        }
        let waiter = ticket.waiter(index);
        let now = Instant::now();
        let (admission, is_due_earlier) = {
            let mut state = self.0.state();
            (state.hand_over(identity, message, waiter, now), state.is_due_earlier())
        };
        match admission {
            Admission::New(turn) => {
                ticket.attach(turn);
                self.0.work.notify_one();
                self.0.wake_pacer_if(is_due_earlier);
                HandOver::UnderWay
            }
            Admission::Joined(turn) => {
                self.0.metrics.joined();
                ticket.attach(turn);
                HandOver::UnderWay
            }
            Admission::Final(outcome) => {
                self.0.metrics.joined();
                HandOver::Ended(outcome)
            }
            Admission::Full => HandOver::Full,
        }
    }

    /// A notice that there may be room for more.
    pub fn room(&self) -> Notified<'_> {
        self.0.room.notified()
    }

    /// Whether an event that comes now would only be held, and for how long at least.
    pub fn paused(&self) -> Option<Duration> {
        self.0.state().paused(Instant::now())
    }

    /// What is known of Variance.
    pub fn health(&self) -> Health {
        self.0.state().health.clone()
    }

    /// The moment's figures.
    pub fn snapshot(&self) -> metrics::Snapshot {
        let state = self.0.state();
        let (held_events, held_bytes) = state.held();
        metrics::Snapshot {
            held_events,
            held_bytes,
            held_limit: self.0.max_held,
            held_oldest: state.oldest(Instant::now()),
            remembered: state.remembered(),
            state: state.health.state,
        }
    }

    /// Waits until nothing is held.
    pub async fn emptied(&self) {
        loop {
            let mut room = std::pin::pin!(self.0.room.notified());
            room.as_mut().enable();
            if self.0.state().held().0 == 0 {
                return;
            }
            room.await;
        }
    }

    /// Stops all attempts and abandons what is still held. Returns how many events that were.
    pub async fn close(&self) -> usize {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        let abandoned = self.0.state().abandon_all(Instant::now());
        let count = abandoned.len();
        abandoned.into_iter().for_each(|ended| self.0.announce(ended));
        self.0.losses().flush();
        count
    }

    pub(self) fn detach(&self, attached: &[Turn], progress: &Arc<Progress>) {
        self.0.state().detach(attached, progress);
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").finish_non_exhaustive()
    }
}

impl Shared {
    /// A worker: attempts what is ready, one after the other.
    async fn work(&self) {
        loop {
            let job = self.next_job().await;
            let start = Instant::now();
            let (result, reply) = self.destination.post(job.message.body()).await;
            let now = Instant::now();
            self.metrics.attempted(result.into(), now - start);
            let (ended, is_due_earlier, news) = {
                let mut state = self.state();
                (state.finish(&job, result, now), state.is_due_earlier(), mem::take(&mut state.health.news))
            };
            news.into_iter().for_each(|news| self.log(news));
            if let Some(ended) = ended {
                self.announce(ended);
            }
            self.wake_pacer_if(is_due_earlier);
            reply.discard().await;
        }
    }

    async fn next_job(&self) -> state::Job {
        loop {
            let mut work = std::pin::pin!(self.work.notified());
            if let Some(job) = self.try_next_job() {
                return job;
            }
            // From here on no notice is missed; before, one may have been.
            work.as_mut().enable();
            if let Some(job) = self.try_next_job() {
                return job;
            }
            work.await;
        }
    }

    fn try_next_job(&self) -> Option<state::Job> {
        let now = Instant::now();
        let (job, more) = {
            let mut state = self.state();
            (state.next_job(now)?, state.has_job(now))
        };
        if more {
            self.work.notify_one();
        }
        Some(job)
    }

    /// The pacer: sleeps until something is due.
    async fn pace(&self) {
        loop {
            let mut earlier = std::pin::pin!(self.pacer.notified());
            earlier.as_mut().enable();
            let now = Instant::now();
            let losses_due = self.losses().flush_if_due(now);
            let (ended, has_job, due) = {
                let mut state = self.state();
                (state.tick(now), state.has_job(now), state.sleep_until(now, losses_due))
            };
            ended.into_iter().for_each(|ended| self.announce(ended));
            if has_job {
                self.work.notify_one();
            }
            match due {
                Some(due) => tokio::select! {
                    () = sleep_until(due) => {}
                    () = earlier => {}
                },
                None => earlier.await,
            }
        }
    }

    fn wake_pacer_if(&self, is_due_earlier: bool) {
        if is_due_earlier {
            self.pacer.notify_one();
        }
    }

    /// Tells everybody concerned how an event has ended.
    fn announce(&self, ended: Ended) {
        let Ended { message, outcome, waiters } = ended;
        let counted = match outcome {
            Outcome::Delivered => OutcomeLabel::Delivered,
            Outcome::Refused(_) => OutcomeLabel::Refused,
            Outcome::Abandoned => OutcomeLabel::Abandoned,
        };
        self.metrics.ended(message.call.into(), counted, 1);
        if outcome != Outcome::Delivered {
            let reason: &dyn fmt::Display = match outcome {
                Outcome::Abandoned if self.stop.is_cancelled() => &"the connector stopped before Variance had it",
                Outcome::Delivered | Outcome::Refused(_) | Outcome::Abandoned => &outcome,
            };
            let is_first = self.losses().note(message.id(), reason, Instant::now());
            self.wake_pacer_if(is_first);
        }
        for waiter in waiters {
            waiter.tell(outcome);
        }
        self.room.notify_waiters();
    }

    fn log(&self, news: News) {
        let (held, bytes) = self.state().held();
        match news {
            News::Paused(reason) => {
                self.metrics.breaker_opened();
                tracing::warn!(%reason, held, "Variance cannot take events: they are held and tried again");
            }
            News::RefusesAll(reason, count) => {
                tracing::error!(%reason, "Variance has refused the last {count} events: is variance.webhook_url right?");
            }
            News::Resumed(since) => {
                let seconds = since.elapsed().unwrap_or_default().as_secs();
                tracing::info!(paused_seconds = seconds, held, bytes, "Variance takes events again");
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while it is held")
    }

    fn losses(&self) -> MutexGuard<'_, Losses> {
        self.losses.lock().expect("no panic while it is held")
    }
}

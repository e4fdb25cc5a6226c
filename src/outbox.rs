//! The outbox, which holds events until Variance has them, and makes at most one attempt per event at a time.
//!
//! > An event is acknowledged only when Variance has it. Nothing is written to disk.
//!
//! `docs/delivery.md` describes this guarantee, its limits and the rules that keep it. The module `state` lists the rules beside
//! the code that keeps them.
//!
//! An event that was handed over leaves in one of three ways: Variance accepts it, Variance refuses it, or its time is over.
//! Those who wait for the event have no influence on that: a request that ends early only stops waiting.
//!
//! The state has all rules and no clock: one call changes the state, then the attempts that it allows are started, and the
//! time of the next call is read. There is one timer for all events, and one task for each attempt in flight, at most
//! `concurrency`. An event that waits has no task.

use std::{
    fmt,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use futures_util::FutureExt;
use http::StatusCode;
use tokio::{
    sync::{Notify, SetOnce, futures::Notified},
    time::{Instant, timeout_at},
};

use self::{
    health::News,
    identities::IdentityKey,
    loss_log::LossLog,
    state::{Ended, Job, State},
};
pub use self::{
    health::{Health, LogPacing},
    identities::Identity,
    lanes::RequestId,
};
use crate::{
    backoff::Backoff,
    destination::{Destination, Fault},
    metrics::{self, Metrics, OutcomeLabel},
    repeated::Repeated,
    variance::Message,
};

mod health;
mod identities;
mod lanes;
mod loss_log;
mod state;

/// The limits on attempts in flight and on held events.
#[derive(Clone, Debug)]
pub struct OutboxSettings {
    /// The most POSTs in flight to Variance, at least one.
    pub concurrency: usize,
    /// The longest that an undelivered event is held.
    pub retry_for: Duration,
    /// True to abandon an event whose time is over and that cannot be called refused (rule 5 of the module `state`).
    /// Otherwise it is held for as long as Variance is away. Only after [`Outbox::complete`], if nothing but suspects is held
    /// and no event was accepted for `retry_for`, is one that fails abandoned: nothing else would show whether Variance is
    /// away.
    pub abandon: bool,
    /// The most bytes of memory for undelivered events, bookkeeping included.
    pub max_held: usize,
    /// The waits between attempts.
    pub pacing: Pacing,
}

impl Default for OutboxSettings {
    fn default() -> Self {
        Self {
            concurrency: 256,
            retry_for: Duration::from_secs(60 * 60),
            abandon: true,
            max_held: 64 << 20,
            pacing: Pacing::default(),
        }
    }
}

/// The waits between attempts, which are constants for users. Tests make them shorter.
#[derive(Clone, Copy, Debug)]
pub struct Pacing {
    /// The wait between the attempts of one event.
    pub backoff: Backoff,
    /// The waits between the attempts of different suspects (rule 3 of the module `state`) while nothing is accepted.
    pub suspects: SuspectPacing,
    /// The wait between the probes of a destination that is down.
    pub open_for: Backoff,
    /// The time for which an acceptance shows that Variance accepts events.
    pub recent: Duration,
    /// The time for which refusals are remembered: longer than senders send again by themselves, and shorter than it takes to
    /// repair Variance and send again by hand.
    pub refusals_known_for: Duration,
    /// The time between lines of the log about outages.
    pub log: LogPacing,
}

impl Default for Pacing {
    fn default() -> Self {
        Self {
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(30)),
            suspects: SuspectPacing { gap: Duration::from_millis(250), round: Duration::from_secs(15) },
            open_for: Backoff::new(Duration::from_secs(1), Duration::from_secs(15)),
            recent: Duration::from_secs(2),
            refusals_known_for: Duration::from_secs(60),
            log: LogPacing { change: Duration::from_secs(10), lasting: Duration::from_secs(5 * 60) },
        }
    }
}

/// The pace at which suspects are attempted while Variance accepts nothing.
#[derive(Clone, Copy, Debug)]
pub struct SuspectPacing {
    /// The longest wait after an attempt of one suspect before that of another.
    pub gap: Duration,
    /// The time in which each suspect has an attempt, but at least a quarter of the time since the last acceptance.
    pub round: Duration,
}

/// The way in which an event that was handed over ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Outcome {
    /// Variance accepted the event.
    #[error("delivered")]
    Delivered,
    /// Variance refused the event.
    #[error(transparent)]
    Refused(Refusal),
    /// The event was given up before Variance accepted it. The fault is the event's last, or Variance's if it was never
    /// attempted.
    #[error("Variance did not accept the event in time{}", last_reason(.0.as_ref()))]
    Abandoned(Option<Fault>),
}

/// The reason for a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Variance replied with this status.
    #[error("Variance refused the event: {0}")]
    Status(StatusCode),
    /// The event kept failing with this fault while others were accepted.
    #[error("the event kept failing while Variance accepted others{}", last_reason(Some(.0)))]
    KeptFailing(Fault),
}

fn last_reason(fault: Option<&Fault>) -> String {
    fault.map_or_else(String::new, |fault| format!("; the last reason: {fault}"))
}

/// The result of handing an event over.
#[derive(Debug)]
pub enum HandOver {
    /// The event is under way from now on.
    New(Pending),
    /// The event was under way already: this is a re-send.
    Joined(Pending),
    /// The event has ended before: this is a re-send.
    Ended(Outcome),
    /// There is no room for the event at present.
    Full,
    /// There will never be room for the event: it alone is larger than `max_held`.
    TooLarge,
}

/// A handle to wait for an event that is under way. Dropping it does not stop the delivery.
#[derive(Clone, Debug)]
pub struct Pending(Arc<SetOnce<Outcome>>);

impl Pending {
    /// Waits until the event ends, and returns how.
    pub async fn wait(&self) -> Outcome {
        *self.0.wait().await
    }

    /// Returns how the event ended, or `None` if it is still under way.
    pub fn get(&self) -> Option<Outcome> {
        self.0.get().copied()
    }
}

/// The outbox, shared by its clones.
#[derive(Clone)]
pub struct Outbox(Arc<Shared>);

struct Shared {
    driven: Mutex<Driven>,
    loss_log: Mutex<LossLog>,
    identity_key: IdentityKey,
    requests: AtomicU64,
    /// Paces the log lines about a full outbox.
    full: Repeated,
    max_held: usize,
    destination: RwLock<Arc<Destination>>,
    /// Notified when the webhook URL may be wrong.
    url_doubted: Notify,
    metrics: Metrics,
    /// Notified when the timer is set too late.
    timer: Notify,
    /// Notified when there may be room again.
    room: Notify,
    /// Set while the state is locked.
    is_closed: AtomicBool,
}

struct Driven {
    state: State,
    /// The time at which the timer wakes by itself.
    timer: Option<Instant>,
}

impl Outbox {
    /// Starts an outbox, which attempts the events that are handed over until [`Outbox::close`].
    pub fn start(settings: OutboxSettings, destination: Destination, metrics: Metrics) -> Self {
        let shared = Arc::new(Shared {
            max_held: settings.max_held,
            driven: Mutex::new(Driven { state: State::new(settings, Instant::now(), Rng::new()), timer: None }),
            loss_log: Mutex::default(),
            identity_key: IdentityKey::random(),
            destination: RwLock::new(Arc::new(destination)),
            url_doubted: Notify::new(),
            requests: AtomicU64::new(0),
            full: Repeated::default(),
            metrics,
            timer: Notify::new(),
            room: Notify::new(),
            is_closed: AtomicBool::new(false),
        });
        tokio::spawn(Arc::clone(&shared).keep_time());
        Self(shared)
    }

    /// Returns the identity of an event by its key (uuid, name and `distinct_id`), with a checksum of its bytes.
    pub fn identity(&self, key: &[impl AsRef<[u8]>; 3], event: &[u8]) -> Identity {
        self.0.identity_key.identity(key.each_ref().map(AsRef::as_ref), event)
    }

    /// Returns an id for a new request. Requests take turns, whatever the number of their events.
    pub fn request(&self) -> RequestId {
        RequestId(self.0.requests.fetch_add(1, Ordering::Relaxed))
    }

    /// Takes in an event of a request, or joins the event of the same identity.
    pub fn hand_over(&self, request: RequestId, identity: Identity, message: &Message) -> HandOver {
        let handed_over = self.0.change(|state, now| state.hand_over(request, identity, message, now));
        match handed_over {
            HandOver::New(_) | HandOver::TooLarge => {}
            // A re-send, and of other bytes if the id is that of another event.
            HandOver::Joined(_) | HandOver::Ended(_) => {
                self.0.metrics.joined(self.0.driven().state.has_same_bytes(&identity));
            }
            HandOver::Full => self.0.tell_that_full(),
        }
        handed_over
    }

    /// Returns a future that completes when there may be room for more, counted from this call on.
    pub fn room(&self) -> Notified<'_> {
        self.0.room.notified()
    }

    /// Returns the time until the next attempt while attempts are paused, or `None` if they are not.
    pub fn paused(&self) -> Option<Duration> {
        self.0.driven().state.paused(Instant::now())
    }

    /// Returns Variance's state.
    pub fn health(&self) -> Health {
        self.0.driven().state.health.clone()
    }

    /// Returns the present figures for the metrics.
    pub fn snapshot(&self) -> metrics::Snapshot {
        self.0.driven().state.snapshot(Instant::now())
    }

    /// Applies other settings from now on, except for `max_held`. Attempts in flight keep the settings they began with.
    pub fn reload(&self, settings: &OutboxSettings, destination: Destination) {
        *self.0.destination.write().expect("no panic while it is locked") = Arc::new(destination);
        self.0.change(|state, _| state.reload(settings));
    }

    /// Ends a pause and forgets refusals, which were about another webhook URL, credential or format.
    pub fn destination_changed(&self) {
        self.0.change(State::destination_changed);
    }

    /// Waits until a reply, or a refusal in doubt, suggests that the webhook URL is wrong.
    pub async fn url_doubted(&self) {
        self.0.url_doubted.notified().await;
    }

    /// Waits until no event is held.
    pub async fn emptied(&self) {
        loop {
            let room = self.room();
            if self.0.driven().state.held().0 == 0 {
                return;
            }
            room.await;
        }
    }

    /// Notes that no further event will be handed over.
    pub fn complete(&self) {
        self.0.driven().state.complete();
    }

    /// Ends all pauses and backoffs and attempts every held event at once, because the process is to stop.
    pub fn drain(&self) {
        self.0.change(State::drain);
    }

    /// Abandons the events that are still held, and returns their number. Whatever attempts in flight come to is ignored.
    pub fn close(&self) -> usize {
        let abandoned = {
            let mut driven = self.0.driven();
            self.0.is_closed.store(true, Ordering::Relaxed);
            driven.state.abandon_all(Instant::now())
        };
        self.0.timer.notify_one();
        let count = abandoned.len();
        abandoned.into_iter().for_each(|ended| self.0.announce(ended));
        self.0.loss_log().flush();
        count
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").finish_non_exhaustive()
    }
}

impl Shared {
    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    /// Changes the state, starts the attempts that it then allows, and sets the timer earlier if needed.
    fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut State, Instant) -> T) -> T {
        let now = Instant::now();
        let mut driven = self.driven();
        let Driven { state, timer } = &mut *driven;
        let outcome = change(state, now);
        while let Some(job) = state.next_job(now) {
            tokio::spawn(Arc::clone(self).attempt(job));
        }
        let news = state.news(now).map(|news| (news, state.held()));
        if let Some(due) = state.due(now).filter(|due| timer.is_none_or(|timer| *due < timer)) {
            *timer = Some(due);
            self.timer.notify_one();
        }
        drop(driven);
        if let Some((news, held)) = news {
            self.log(news, held);
        }
        outcome
    }

    /// Runs the timer: ends events that were held for too long, and starts attempts whose backoff or pause is over.
    async fn keep_time(self: Arc<Self>) {
        while !self.is_closed() {
            self.change(|state, now| state.expire(now)).into_iter().for_each(|ended| self.announce(ended));
            let now = Instant::now();
            let losses_due = self.loss_log().flush_if_due(now);
            let due = {
                let Driven { state, timer } = &mut *self.driven();
                *timer = state.due(now).into_iter().chain(losses_due).min();
                *timer
            };
            match due {
                Some(due) => drop(timeout_at(due, self.timer.notified()).await),
                None => self.timer.notified().await,
            }
        }
    }

    /// Makes an attempt, and then further ones while there are any to make.
    async fn attempt(self: Arc<Self>, mut job: Job) {
        loop {
            let destination = Arc::clone(&self.destination.read().expect("no panic while it is locked"));
            let (result, reply) = destination.post(job.message.body()).await;
            // Most often the whole reply is here, and the connection is free again at once.
            let mut rest = pin!(reply.discard());
            let is_free = rest.as_mut().now_or_never().is_some();
            let changed = self.change(|state, now| {
                if self.is_closed() {
                    return None;
                }
                self.metrics.attempted(result.into(), now - job.in_limit.began);
                let finished = state.finish(&job, result, now);
                Some((finished, if is_free { state.next_in_slot(now) } else { None }))
            });
            let Some((finished, mut next)) = changed else { return };
            if finished.fault.is_some_and(Fault::is_url) {
                self.url_doubted.notify_one();
            }
            if finished.has_opened {
                self.metrics.breaker_opened();
            }
            if let Some(ended) = finished.ended {
                self.announce(ended);
            }
            if !is_free {
                rest.await;
                next = self.change(State::next_in_slot);
            }
            match next {
                Some(next) => job = next,
                None => return,
            }
        }
    }

    /// Counts and logs how an event ended, and wakes those who wait for it.
    fn announce(&self, ended: Ended) {
        let (message, outcome) = (&ended.message, ended.outcome);
        let counted = match outcome {
            Outcome::Delivered => OutcomeLabel::Delivered,
            Outcome::Refused(_) => OutcomeLabel::Refused,
            Outcome::Abandoned(_) => OutcomeLabel::Abandoned,
        };
        self.metrics.ended(message.call.into(), counted, 1);
        if outcome != Outcome::Delivered {
            let reason: &dyn fmt::Display = match outcome {
                Outcome::Abandoned(_) if self.is_closed() => {
                    &"the connector stopped before Variance accepted the event"
                }
                Outcome::Delivered | Outcome::Refused(_) | Outcome::Abandoned(_) => &outcome,
            };
            if self.loss_log().note(message.id(), reason, Instant::now()) {
                self.timer.notify_one();
            }
        }
        tracing::debug!(
            uuid = message.id(),
            call = message.call.name(),
            outcome = counted.as_ref(),
            attempts = ended.attempts,
            seconds = ended.arrived.elapsed().as_secs_f64(),
            "an event has ended"
        );
        ended.tell();
        self.room.notify_waiters();
    }

    fn log(&self, news: News, (held, bytes): (usize, usize)) {
        match news {
            News::Paused(reason) => {
                tracing::warn!(%reason, held, "Variance cannot take events: they are held and retried");
            }
            News::StillPaused(reason, time) => {
                let next_attempt_seconds = self.driven().state.paused(Instant::now()).map_or(0, |wait| wait.as_secs());
                let (seconds, held_percent) = (time.as_secs(), 100 * bytes / self.max_held);
                tracing::warn!(%reason, seconds, held, bytes, held_percent, next_attempt_seconds, "Variance still cannot take events");
            }
            News::RefusesAll(status) => tracing::error!(
                %status,
                held,
                "Variance refuses every event, so they are held: are variance.webhook_url and variance.format right?"
            ),
            News::Resumed(time) => {
                tracing::info!(paused_seconds = time.as_secs(), held, bytes, "Variance takes events again");
            }
        }
    }

    fn tell_that_full(&self) {
        if let Some(times) = self.full.note(Instant::now()) {
            let (held, bytes) = self.driven().state.held();
            let limit = self.max_held;
            tracing::warn!(held, bytes, limit, times, "the connector is full: senders must send again later");
        }
    }

    fn driven(&self) -> MutexGuard<'_, Driven> {
        self.driven.lock().expect("no panic while it is locked")
    }

    fn loss_log(&self) -> MutexGuard<'_, LossLog> {
        self.loss_log.lock().expect("no panic while it is locked")
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use tokio::{io::AsyncWriteExt, net::TcpListener, task::yield_now};

    use super::*;
    use crate::{
        destination::{Authorization, DestinationSettings, Network},
        variance::Call,
    };

    /// Starts an outbox for the destination at `url`.
    fn outbox(url: &str) -> Outbox {
        // Another test may have been faster.
        drop(rustls::crypto::ring::default_provider().install_default());
        let url = url.parse().unwrap();
        let settings = DestinationSettings {
            authorization: Authorization { value: HeaderValue::from_static("credential"), file: None },
            attempt_timeout: Duration::from_secs(60),
            network: Network::direct(&url).unwrap(),
            webhook_url: url,
            connections_kept_for: Duration::from_secs(60),
        };
        Outbox::start(OutboxSettings::default(), Destination::new(settings), Metrics::new())
    }

    fn message() -> Message {
        Message::write(3, Call::Capture, "a", &mut Vec::new(), |out| out.push(b"{}")).unwrap()
    }

    #[tokio::test]
    async fn what_an_attempt_comes_to_after_the_close_is_ignored() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let outbox = outbox(&format!("http://{}/", listener.local_addr().unwrap()));
        let identity = outbox.identity(&["a", "e", "d"], b"");
        let HandOver::New(pending) = outbox.hand_over(outbox.request(), identity, &message()) else { panic!() };
        let (mut connection, _) = listener.accept().await.unwrap();
        assert_eq!(outbox.close(), 1);
        assert_eq!(pending.get(), Some(Outcome::Abandoned(None)));
        connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        while Arc::strong_count(&outbox.0) > 1 {
            yield_now().await;
        }
        assert_eq!(outbox.snapshot().held_events, 0);
    }

    #[tokio::test]
    async fn a_request_that_ends_leaves_nothing_at_the_events_that_it_waited_for() {
        // Nothing is posted: no attempt has its turn.
        let outbox = outbox("http://127.0.0.1:1/");
        let message = message();
        let held_and_waiters = || {
            let state = &outbox.0.driven().state;
            (state.held().0, state.waiters())
        };
        for _ in 0..3 {
            // A request may hold the same event many times.
            let pending: Vec<_> = (0..10)
                .map(|_| match outbox.hand_over(outbox.request(), outbox.identity(&["a", "e", "d"], b""), &message) {
                    HandOver::New(pending) | HandOver::Joined(pending) => pending,
                    handed => panic!("{handed:?}"),
                })
                .collect();
            assert_eq!(held_and_waiters(), (1, 10));
            drop(pending);
            assert_eq!(held_and_waiters(), (1, 0));
        }
    }
}

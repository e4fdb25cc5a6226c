//! From the elements of a body to the account of what became of its events.

use std::{fmt::Display, pin::Pin, time::SystemTime};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use http::StatusCode;
use tokio::{
    select,
    task::coop::consume_budget,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::reply::{Reply, Report};
use crate::{
    mapping::{self, Filtered},
    metrics::{CallLabel, Metrics, OutcomeLabel},
    outbox::{HandOver, Identity, Outbox, Outcome, Pending},
    posthog::{Element, Invalid},
    variance::Message,
};

/// How many events of one request are in the outbox at once: a batch can neither fill the memory nor keep webhooks
/// waiting.
const WINDOW: usize = 256;

/// Forwards the events of one request.
#[derive(Clone, Debug)]
pub(super) struct Intake {
    /// What is forwarded, and how.
    pub mapping: mapping::MappingSettings,
    /// Where it goes.
    pub outbox: Outbox,
    /// Who counts it.
    pub metrics: Metrics,
    /// Nothing more is taken in.
    pub draining: CancellationToken,
    /// Nobody waits any longer.
    pub hurry: CancellationToken,
}

/// When a request came, and when it stops waiting for its events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// When the request arrived: the time of events without one.
    pub arrived: SystemTime,
    /// When its reply is due.
    pub deadline: Instant,
}

/// What is to be done about one element. It no longer needs the body, which takes more memory.
#[derive(Debug)]
pub(super) enum Prepared {
    /// It is to be delivered.
    Message { message: Message, identity: Identity, has_own_id: bool },
    /// It is not forwarded.
    Filtered(Filtered),
    /// It is no event.
    Invalid(Invalid),
}

impl Prepared {
    /// The memory that these take.
    pub(super) fn allocated(elements: &Vec<Self>) -> usize {
        let messages = elements.iter().map(|element| match element {
            Self::Message { message, .. } => message.allocated(),
            Self::Filtered(_) | Self::Invalid(_) => 0,
        });
        elements.capacity() * size_of::<Self>() + messages.sum::<usize>()
    }
}

impl Intake {
    /// Decides what is to be done about an element. Nothing is taken in by that. `scratch` lends its memory.
    pub(super) fn prepare(&self, element: Element<'_>, arrived: SystemTime, scratch: &mut Vec<u8>) -> Prepared {
        let event = match element.event {
            Ok(event) => event,
            Err(invalid) => return Prepared::Invalid(invalid),
        };
        let message = match self.mapping.message(&event, arrived, scratch) {
            Ok(message) => message,
            Err(filtered) => return Prepared::Filtered(filtered),
        };
        let identity = self.outbox.identity(&event.key());
        Prepared::Message { message, identity, has_own_id: !event.uuid.is_random() }
    }

    /// Hands the events over in their order and waits for what becomes of them.
    pub(super) async fn forward(&self, elements: &[Prepared], patience: Patience) -> Reply {
        let mut request = Request {
            intake: self,
            elements,
            patience,
            report: Report { received: elements.len(), ..Report::default() },
            under_way: FuturesUnordered::new(),
            is_unused: true,
            is_done: vec![false; elements.len()],
            unaccounted: elements.len(),
        };
        let was_paused = self.outbox.paused().is_some();
        let taken = request.hand_over_all(!was_paused).await;
        if !was_paused {
            while !request.under_way.is_empty() && request.wait_for_one().await {}
        }
        request.note_ended();
        request.finish(taken)
    }
}

impl Patience {
    /// Waits for something. Nothing if it is time to reply.
    async fn wait<T>(&self, intake: &Intake, news: impl Future<Output = T>) -> Option<T> {
        select! {
            biased;
            news = news => Some(news),
            () = sleep_until(self.deadline) => None,
            () = intake.hurry.cancelled() => None,
        }
    }
}

/// Why not all events of a request were handed over.
#[derive(Clone, Copy)]
enum Stopped {
    /// All were.
    Not,
    /// It was time to reply.
    Time,
    /// There was no room for the first one.
    Full,
}

/// An event of a request, by its index, that the outbox has.
type UnderWay = Pin<Box<dyn Future<Output = (usize, Outcome)> + Send>>;

/// One request on its way. Dropping it early counts what was not taken in as returned to the sender.
struct Request<'r> {
    intake: &'r Intake,
    elements: &'r [Prepared],
    patience: Patience,
    report: Report,
    under_way: FuturesUnordered<UnderWay>,
    /// No event of it has been in the outbox yet.
    is_unused: bool,
    is_done: Vec<bool>,
    unaccounted: usize,
}

impl Request<'_> {
    async fn hand_over_all(&mut self, may_wait: bool) -> Stopped {
        for (index, element) in self.elements.iter().enumerate() {
            consume_budget().await;
            if self.under_way.len() >= WINDOW {
                self.note_ended();
            }
            while self.under_way.len() >= WINDOW {
                if !may_wait || !self.wait_for_one().await {
                    return Stopped::Time;
                }
            }
            if self.intake.draining.is_cancelled() {
                return Stopped::Time;
            }
            let (message, identity) = match element {
                Prepared::Message { message, identity, .. } => (message, *identity),
                Prepared::Filtered(filtered) => {
                    let (call, reason) = filtered.labels();
                    self.intake.metrics.filtered(call, reason);
                    self.report.filtered += 1;
                    self.account(index);
                    continue;
                }
                Prepared::Invalid(invalid) => {
                    self.intake.metrics.ended(CallLabel::None, OutcomeLabel::Invalid, 1);
                    self.invalid(index, invalid);
                    continue;
                }
            };
            match self.hand_over(identity, message, may_wait).await {
                HandOver::UnderWay(pending) => self.wait_later(index, pending),
                HandOver::Ended(outcome) => {
                    self.unaccounted -= 1;
                    self.ended(index, outcome);
                }
                HandOver::TooLarge => {
                    self.intake.metrics.ended(message.call.into(), OutcomeLabel::Invalid, 1);
                    self.invalid(index, &"the event is larger than delivery.max_held");
                }
                HandOver::Full if self.is_unused => return Stopped::Full,
                HandOver::Full => return Stopped::Time,
            }
        }
        Stopped::Not
    }

    fn wait_later(&mut self, index: usize, pending: Pending) {
        self.unaccounted -= 1;
        self.is_unused = false;
        self.under_way.push(Box::pin(async move { (index, pending.wait().await) }));
    }

    /// Hands one event over. Waits for room, unless this is the first event of the request.
    async fn hand_over(&mut self, identity: Identity, message: &Message, may_wait: bool) -> HandOver {
        let outbox = &self.intake.outbox;
        loop {
            let room = outbox.room();
            match outbox.hand_over(identity, message) {
                HandOver::Full if may_wait && !self.is_unused => {}
                handed => return handed,
            }
            if self.patience.wait(self.intake, room).await.is_none() {
                return HandOver::Full;
            }
        }
    }

    /// Waits for an event to end. False if it is time to reply.
    async fn wait_for_one(&mut self) -> bool {
        let ended = self.patience.wait(self.intake, self.under_way.next()).await;
        let Some(Some((index, outcome))) = ended else { return false };
        self.ended(index, outcome);
        true
    }

    fn note_ended(&mut self) {
        while let Some(Some((index, outcome))) = self.under_way.next().now_or_never() {
            self.ended(index, outcome);
        }
    }

    /// Notes how an event ended that is accounted for already.
    fn ended(&mut self, index: usize, outcome: Outcome) {
        match outcome {
            Outcome::Delivered => self.report.delivered += 1,
            Outcome::Refused(refusal) => {
                self.report.refused += 1;
                self.problem(index, &refusal);
            }
            // As far as the sender goes, it is as before it was sent.
            Outcome::Abandoned => return,
        }
        self.is_done[index] = true;
    }

    fn invalid(&mut self, index: usize, reason: &dyn Display) {
        self.report.invalid += 1;
        self.problem(index, reason);
        self.account(index);
    }

    fn account(&mut self, index: usize) {
        self.is_done[index] = true;
        self.unaccounted -= 1;
    }

    fn problem(&mut self, index: usize, reason: &dyn Display) {
        if self.report.has_room() {
            // A random one cannot be told again.
            let uuid = match &self.elements[index] {
                Prepared::Message { message, has_own_id: true, .. } => Some(message.id().to_owned()),
                _ => None,
            };
            self.report.problem(index, uuid, reason.to_string());
        }
    }

    fn finish(mut self, stopped: Stopped) -> Reply {
        let is_draining = self.intake.draining.is_cancelled();
        let held: Vec<_> =
            self.is_done.iter().enumerate().filter(|(_, done)| !**done).map(|(index, _)| index).collect();
        self.report.held = held.len();
        if !held.is_empty() {
            let fault = self.intake.outbox.health().reason;
            let reason = match (&stopped, fault) {
                (Stopped::Full, _) => "the connector holds as many events as it can: send it again later".to_owned(),
                (_, Some(fault)) => format!("Variance does not have it yet ({fault}): send it again"),
                (_, None) => "Variance does not have it yet: send it again".to_owned(),
            };
            held.into_iter().take_while(|_| self.report.has_room()).collect::<Vec<_>>().into_iter().for_each(|index| {
                self.problem(index, &reason);
            });
        }
        let report = std::mem::take(&mut self.report);
        let status = match stopped {
            Stopped::Full => StatusCode::TOO_MANY_REQUESTS,
            Stopped::Not | Stopped::Time => report.status(),
        };
        let retry_after =
            matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS).then(|| {
                let paused = self.intake.outbox.paused().unwrap_or_default();
                paused.as_secs_f64().ceil().max(1.0) as u64
            });
        Reply { status, report, retry_after, close: is_draining }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.intake.metrics.ended(CallLabel::None, OutcomeLabel::Returned, self.unaccounted);
    }
}

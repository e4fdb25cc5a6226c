//! The handling of a request with events, from its head to its reply: its sender is authenticated, its body is read,
//! unpacked and decoded, its events are handed over, and the reply says what became of them.
//!
//! The order is headers, bytes, proof, work. At most, a sender without a credential can cost:
//!
//! * Where the headers decide ([`Proof`] or an early reply): the headers, and the rest of the body, which is read and
//!   thrown away for [`DISCARD_FOR`].
//! * Where the body may decide: its bytes as they arrive, charged to the route and to [`Strangers`], within
//!   `server.max_body` and [`BODY_TIMEOUT`]; for a signature an HMAC for each secret, compared with 16 signatures at
//!   most; for an `api_key` one walk. Up to [`LARGE`] this is done at once. For larger bodies, and for an `api_key` in
//!   a compressed one, it is done one body at a time in a thread that known senders never wait for; unpacked bytes pass
//!   in small pieces.
//! * Each ten seconds, one reading of the files that credentials come from, for a credential that is not known.
//! * Its connection, with the buffers that [`connections`](super::connections) states, until there are too many and it
//!   is the one that has been idle longest; and the replies of the routes without events, which need no credential.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::maybe_done;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::{
    select,
    sync::Semaphore,
    task::{coop::consume_budget, spawn_blocking},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Server,
    account::{Account, Delivery, Fate, Item},
    connections::Seat,
    memory::{Charge, Memory, Strangers},
    reply::Reply,
};
use crate::{
    auth::{Denied, Proof},
    inflate::{Encoding, InflateError, NoRoom, Unsupported, inflate, inflate_in_pieces},
    mapping::NoMessage,
    metrics::{OutcomeLabel, RouteLabel},
    outbox::HandOver,
    posthog::{self, ApiKeyWalk},
    repeated::Repeated,
};

/// The most events of one request that are in the outbox at once: a batch can neither fill the memory nor keep webhooks
/// waiting.
const WINDOW: usize = 256;

/// The longest that a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// The time for which the rest of a body is read after an early reply, so that the sender gets to read the reply.
const DISCARD_FOR: Duration = Duration::from_secs(5);

/// The initial size of the buffer for the mapping: most messages find room in it.
const SCRATCH: usize = 4 << 10;

/// The largest body that is decoded while all others wait, which takes a fraction of a millisecond.
const LARGE: usize = 256 << 10;

/// The same for a compressed body, which can become a thousand times as large.
const LARGE_PACKED: usize = 1 << 10;

/// The parts that every request with events needs.
#[derive(Debug)]
pub(super) struct Requests {
    server: Arc<Server>,
    pub(super) webhook: Route,
    pub(super) batch: Route,
    strangers: Strangers,
    /// Held by the one large body whose sender is being authenticated.
    large_bodies_of_strangers: Arc<Semaphore>,
    /// Held by the one large body of a known sender that is being decoded.
    large_bodies: Arc<Semaphore>,
    refusals: Repeated,
    /// Cancelled when nothing more is to be taken in.
    pub(super) draining: CancellationToken,
    /// Cancelled when every request is to be answered with what has become of its events by then.
    pub(super) reply_now: CancellationToken,
    in_flight: TaskTracker,
}

/// One of the two routes that take events.
#[derive(Debug)]
pub(super) struct Route {
    label: RouteLabel,
    bodies: Memory,
}

/// A body as it came in.
struct Received {
    bytes: Vec<u8>,
    encoding: Option<Encoding>,
    /// The memory for the bytes, and for what is made from them.
    charge: Charge,
}

impl Requests {
    pub(super) fn new(server: Arc<Server>) -> Self {
        let max_body = server.settings.borrow().max_body;
        let route = |label| Route { label, bodies: Memory::of_route(max_body) };
        Self {
            webhook: route(RouteLabel::Webhook),
            batch: route(RouteLabel::Batch),
            strangers: Strangers::new(max_body),
            server,
            large_bodies_of_strangers: Arc::new(Semaphore::new(1)),
            large_bodies: Arc::new(Semaphore::new(1)),
            refusals: Repeated::default(),
            draining: CancellationToken::new(),
            reply_now: CancellationToken::new(),
            in_flight: TaskTracker::new(),
        }
    }

    /// Returns the longest that a request may take.
    fn deadline(&self, route: &Route) -> Duration {
        let settings = self.server.settings.borrow();
        if route.label == RouteLabel::Batch { settings.batch_deadline } else { settings.webhook_deadline }
    }

    /// Waits until no request is in flight. Requests that come later are not waited for.
    pub(super) async fn answered(&self) {
        self.in_flight.close();
        self.in_flight.wait().await;
    }

    /// Answers a request, and counts the reply.
    pub(super) async fn answer(self: &Arc<Self>, route: &Route, request: Request<Incoming>, seat: &Arc<Seat>) -> Reply {
        let _in_flight = self.in_flight.token();
        let start = Instant::now();
        let (head, mut body) = request.into_parts();
        let deadline = start + self.deadline(route);
        let reply = match self.take(route, &head.headers, &mut body, seat, deadline).await {
            Ok((elements, _charge)) => self.forward(elements, deadline).await,
            Err(reply) => reply,
        };
        self.discard(body);
        self.server.metrics.replied(route.label, reply.status, start.elapsed());
        let (status, received) = (reply.status.as_u16(), reply.report.received);
        tracing::debug!(route = route.label.as_ref(), status, received, "replied");
        reply
    }

    /// Decides what to do about each element of a request, if its sender may send. Also returns the memory for them.
    async fn take(
        self: &Arc<Self>,
        route: &Route,
        headers: &HeaderMap,
        body: &mut Incoming,
        seat: &Arc<Seat>,
        deadline: Instant,
    ) -> Result<(Vec<Item>, Charge), Reply> {
        if self.draining.is_cancelled() {
            return Err(Reply::draining());
        }
        let arrived = SystemTime::now();
        // PostHog's batch export and SDKs can present a token nowhere else than in the body.
        let takes_api_key = route.label == RouteLabel::Batch;
        let deny = |denied| self.deny(denied, route, headers, seat.peer);
        let proof = self.server.auth.judge_head(headers, arrived, takes_api_key).map_err(deny)?;
        if !is_json(headers) {
            let reason = "the content type must be application/json (or text/plain, or none)";
            return Err(Reply::error(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason));
        }
        let unsupported = |error: Unsupported| Reply::error(StatusCode::UNSUPPORTED_MEDIA_TYPE, error.to_string());
        let encoding = Encoding::of(headers).map_err(unsupported)?;

        let mut charge = match proof {
            Proof::Proven => Charge::of_known(&route.bodies, seat.keep().ok_or_else(Reply::too_many)?),
            Proof::Unproven { .. } => Charge::of_stranger(&route.bodies, &self.strangers),
        };
        let bytes = self.read(body, &mut charge, deadline.min(Instant::now() + BODY_TIMEOUT)).await?;
        seat.owe_reply();
        let encoding = encoding.or_else(|| Encoding::of_content(&bytes));
        let mut received = Received { bytes, encoding, charge };
        if let Proof::Unproven { signature, api_key, otherwise } = proof {
            let is_proven;
            (received, is_proven) = self.authenticate_body(received, headers, signature, api_key, deadline).await?;
            if !is_proven {
                return Err(deny(otherwise));
            }
            received.charge.prove(seat.keep().ok_or_else(Reply::too_many)?);
        }

        let size = received.bytes.len();
        let is_large = size > if received.encoding.is_some() { LARGE_PACKED } else { LARGE };
        let decoded = match is_large {
            true => {
                self.aside(&self.large_bodies, received, deadline, move |requests, received| {
                    requests.decode(received, arrived)
                })
                .await??
            }
            false => self.decode(received, arrived)?,
        };
        self.server.metrics.received(decoded.0.len(), size);
        Ok(decoded)
    }

    /// Reads a whole body until `deadline`. Whatever has not been read stays in `body`. The buffer grows with what has
    /// arrived, not with what was announced, and is charged as it grows.
    async fn read(&self, body: &mut Incoming, charge: &mut Charge, deadline: Instant) -> Result<Vec<u8>, Reply> {
        let max_body = self.server.settings.borrow().max_body;
        let announced = body.size_hint().upper().and_then(|announced| usize::try_from(announced).ok());
        let limit = announced.unwrap_or(max_body);
        if limit > max_body {
            return Err(Reply::too_large(max_body));
        }
        let mut whole = Vec::new();
        let read = async {
            loop {
                let frame = select! {
                    biased;
                    () = charge.given_way() => return Err(NoRoom.into()),
                    frame = body.frame() => frame,
                };
                let Some(frame) = frame else { return Ok(()) };
                let Ok(frame) = frame else {
                    return Err(Reply::error(StatusCode::BAD_REQUEST, "the body ended early"));
                };
                let Ok(piece) = frame.into_data() else { continue };
                let len = whole.len() + piece.len();
                if len > max_body {
                    return Err(Reply::too_large(max_body));
                }
                if len > whole.capacity() {
                    let capacity = (4 * whole.len()).min(limit).max(len);
                    charge.grow(capacity - whole.capacity())?;
                    whole.reserve_exact(capacity - whole.len());
                }
                whole.extend_from_slice(&piece);
            }
        };
        select! {
            biased;
            read = read => read?,
            () = self.draining.cancelled() => return Err(Reply::draining()),
            () = sleep_until(deadline) => {
                let reason = "the body did not arrive in time: send the request again";
                return Err(Reply::error(StatusCode::SERVICE_UNAVAILABLE, reason));
            }
        }
        Ok(whole)
    }

    /// Decides whether a body proves its sender, by a signature or by the `api_key` of its envelope.
    async fn authenticate_body(
        self: &Arc<Self>,
        received: Received,
        headers: &HeaderMap,
        signature: bool,
        api_key: bool,
        deadline: Instant,
    ) -> Result<(Received, bool), Reply> {
        let proves = move |requests: &Self, headers: &HeaderMap, received: &Received| {
            signature && requests.server.auth.signature_is_valid(headers, &received.bytes)
                || api_key && requests.has_api_key(received)
        };
        if received.bytes.len() <= LARGE && (received.encoding.is_none() || !api_key) {
            let is_proven = proves(self, headers, &received);
            return Ok((received, is_proven));
        }
        let headers = headers.clone();
        self.aside(&self.large_bodies_of_strangers, received, deadline, move |requests, received| {
            let is_proven = proves(requests, &headers, &received);
            (received, is_proven)
        })
        .await
    }

    /// True if the envelope of a body has a valid token. To find it, nothing of the body is kept or decoded.
    fn has_api_key(&self, received: &Received) -> bool {
        let mut walk = ApiKeyWalk::default();
        match received.encoding {
            None => walk.walk(&received.bytes),
            Some(encoding) => {
                let max_body = self.server.settings.borrow().max_body;
                if inflate_in_pieces(encoding, &received.bytes, max_body, |piece| walk.walk(piece)).is_err() {
                    return false;
                }
            }
        }
        walk.api_key().is_some_and(|api_key| self.server.auth.api_key_is_valid(api_key))
    }

    /// Runs `work` on a body in a thread of its own, once the slot for that is free.
    async fn aside<T: Send + 'static>(
        self: &Arc<Self>,
        slot: &Arc<Semaphore>,
        received: Received,
        deadline: Instant,
        work: impl FnOnce(&Self, Received) -> T + Send + 'static,
    ) -> Result<T, Reply> {
        let thread = select! {
            biased;
            () = received.charge.given_way() => return Err(NoRoom.into()),
            thread = Arc::clone(slot).acquire_owned() => thread.expect("it is never closed"),
            () = sleep_until(deadline) => {
                let reason = "the connector is busy with other bodies of this size: send the request again";
                return Err(Reply::error(StatusCode::SERVICE_UNAVAILABLE, reason));
            }
            () = self.draining.cancelled() => return Err(Reply::draining()),
        };
        received.charge.stay();
        let requests = Arc::clone(self);
        // The work may go on when nobody waits for it any longer, which is harmless: it takes no event in.
        let done = spawn_blocking(move || (work(&requests, received), thread));
        Ok(done.await.expect("it does not panic, and nobody ends it").0)
    }

    /// Unpacks and decodes a body, and drops it, since its elements take less memory.
    fn decode(&self, received: Received, arrived: SystemTime) -> Result<(Vec<Item>, Charge), Reply> {
        let Received { mut bytes, encoding, mut charge } = received;
        let max_body = self.server.settings.borrow().max_body;
        if let Some(encoding) = encoding {
            bytes = inflate(encoding, &bytes, max_body, |more| charge.grow(more)).map_err(|error| match error {
                InflateError::Corrupt(_) => Reply::error(StatusCode::BAD_REQUEST, error.to_string()),
                InflateError::TooLarge => Reply::too_large(max_body),
                InflateError::NoRoom(no_room) => no_room.into(),
            })?;
            charge.shrink_to(bytes.capacity());
        }
        let text = simdutf8::basic::from_utf8(&bytes)
            .map_err(|_| Reply::error(StatusCode::BAD_REQUEST, "the body is not JSON: it is not UTF-8"))?;
        let mut scratch = Vec::with_capacity(bytes.len().min(SCRATCH));
        let mut refused = None;
        let body = posthog::Body::parse(text, |element| {
            let mut made = Item { delivery: None, fate: Fate::Returned };
            if refused.is_none() {
                made = self.element(element, arrived, &mut scratch);
                refused = charge.grow(made.allocated()).err().map(|no_room| {
                    let reason =
                        "the events of the body would take more memory than one body may have: send fewer at once";
                    match charge.bytes() + made.allocated() > Memory::bytes_of_route(max_body) {
                        true => Reply::error(StatusCode::PAYLOAD_TOO_LARGE, reason),
                        false => no_room.into(),
                    }
                });
            }
            made
        });
        if let Some(reply) = refused {
            return Err(reply);
        }
        let body = body.map_err(|error| match error {
            posthog::BodyError::TooManyElements => Reply::error(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
            posthog::BodyError::NotJson(_) | posthog::BodyError::NoContainer => {
                Reply::error(StatusCode::BAD_REQUEST, error.to_string())
            }
        })?;
        charge.shrink_to(body.elements.iter().map(Item::allocated).sum());
        Ok((body.elements, charge))
    }

    /// Decides what to do about an element, without taking it in. The memory of `scratch` is used on the way.
    fn element(&self, element: posthog::Element<'_>, arrived: SystemTime, scratch: &mut Vec<u8>) -> Item {
        let event = match element.event {
            Ok(event) => event,
            Err(invalid) => return Item { delivery: None, fate: Fate::Invalid(invalid) },
        };
        let message = match self.server.mapping.borrow().message(&event, arrived, scratch) {
            Ok(message) => message,
            Err(NoMessage::Filtered(filtered)) => {
                let (uuid, call) = (event.uuid.as_str(), filtered.labels().0);
                tracing::debug!(uuid, call = call.as_ref(), outcome = "filtered", reason = %filtered, "an event has ended");
                return Item { delivery: None, fate: Fate::Filtered(filtered) };
            }
            Err(NoMessage::Invalid(invalid)) => return Item { delivery: None, fate: Fate::Invalid(invalid) },
        };
        let identity = self.server.outbox.identity(&event.key(), event.raw.as_str().as_bytes());
        let delivery = Delivery { message, identity, has_own_id: !event.uuid.is_random() };
        Item { delivery: Some(delivery), fate: Fate::Returned }
    }

    /// Hands the events over, and replies with what has become of them by `deadline`.
    async fn forward(&self, elements: Vec<Item>, deadline: Instant) -> Reply {
        let Server { outbox, metrics, .. } = &*self.server;
        let mut account = Account::open(elements, metrics);
        // While attempts are paused, waiting would be in vain.
        let deadline = outbox.paused().is_none().then_some(deadline);
        let handed_over = self.hand_over(&mut account, deadline).await;
        let report = account.report(|| match (handed_over, outbox.health().reason) {
            (Err(OutboxFull), _) => {
                "the connector holds as many events as it can: send the request again later".to_owned()
            }
            (Ok(()), Some(fault)) => format!("Variance does not have the event yet ({fault}): send the request again"),
            (Ok(()), None) => "Variance does not have the event yet: send the request again".to_owned(),
        });
        let status = match handed_over {
            Ok(()) => report.status(),
            Err(OutboxFull) => StatusCode::TOO_MANY_REQUESTS,
        };
        let paused = || outbox.paused().unwrap_or_default().as_secs_f64().ceil().max(1.0) as u64;
        let retry_after = (report.held > 0).then(paused);
        Reply { status, report, retry_after, close: self.draining.is_cancelled() }
    }

    /// Hands the events over in their order, a window at a time, and waits for their outcomes until the deadline;
    /// without one, it does not wait.
    ///
    /// # Errors
    /// When there is no room for the first event. Room for a later one is waited for.
    async fn hand_over(&self, account: &mut Account<'_>, deadline: Option<Instant>) -> Result<(), OutboxFull> {
        let Server { outbox, metrics, .. } = &*self.server;
        let (request, mut under_way) = (outbox.request(), Vec::new());
        let mut time_to_reply = pin!(maybe_done(self.time_to_reply(deadline)));
        'events: for index in 0..account.items.len() {
            consume_budget().await;
            while under_way.len() >= WINDOW {
                let room = outbox.room();
                under_way.retain(|(index, pending)| !account.settle_if_ended(*index, pending));
                if under_way.len() >= WINDOW && until(time_to_reply.as_mut(), room).await.is_none() {
                    break 'events;
                }
            }
            if self.draining.is_cancelled() {
                break;
            }
            let Some(Delivery { message, identity, .. }) = &account.items[index].delivery else { continue };
            let fate = loop {
                let room = outbox.room();
                match outbox.hand_over(request, *identity, message) {
                    HandOver::New(pending) | HandOver::Joined(pending) => {
                        under_way.push((index, pending));
                        break Fate::UnderWay;
                    }
                    HandOver::Ended(outcome) => break Fate::Ended(outcome),
                    HandOver::TooLarge => {
                        metrics.ended(message.call.into(), OutcomeLabel::Invalid, 1);
                        break Fate::TooLarge;
                    }
                    HandOver::Full if !account.has_begun() => return Err(OutboxFull),
                    HandOver::Full => match until(time_to_reply.as_mut(), room).await {
                        Some(()) => {}
                        None => break 'events,
                    },
                }
            };
            account.settle(index, fate);
        }
        for (index, pending) in under_way {
            until(time_to_reply.as_mut(), pending.wait()).await;
            account.settle_if_ended(index, &pending);
        }
        Ok(())
    }

    /// Waits until a request is to be answered, which is at once if it has no deadline.
    async fn time_to_reply(&self, deadline: Option<Instant>) {
        if let Some(deadline) = deadline {
            drop(timeout_at(deadline, self.reply_now.cancelled()).await);
        }
    }

    /// Replies to a sender without a valid credential, and logs that.
    fn deny(&self, denied: Denied, route: &Route, headers: &HeaderMap, peer: SocketAddr) -> Reply {
        self.server.metrics.auth_failed(denied.into());
        if let Some(requests) = self.refusals.note(Instant::now()) {
            let (route, address, claimed) = (route.label.as_ref(), peer.ip(), claimed_addresses(headers));
            tracing::warn!(requests, reason = %denied, route, %address, claimed, "senders were refused");
        }
        Reply::error(StatusCode::UNAUTHORIZED, denied.to_string())
    }

    /// Reads the rest of a body for a while and throws it away, so that a sender with an early reply is not cut off
    /// before it has read the reply. Ends at once when the server stops.
    pub(super) fn discard(&self, mut body: impl Body<Data: Send> + Send + Unpin + 'static) {
        if body.is_end_stream() {
            return;
        }
        let reply_now = self.reply_now.clone();
        tokio::spawn(async move {
            let read = async { while let Some(Ok(_)) = body.frame().await {} };
            // If it takes longer, dropping the body closes the connection.
            reply_now.run_until_cancelled(timeout(DISCARD_FOR, read)).await
        });
    }
}

/// The error of a request for whose first event there is no room in the outbox.
#[derive(Clone, Copy)]
struct OutboxFull;

/// Waits for `news`, or returns `None` once `end` is over.
async fn until<T>(end: impl Future<Output = ()>, news: impl Future<Output = T>) -> Option<T> {
    select! {
        biased;
        news = news => Some(news),
        () = end => None,
    }
}

/// Returns the addresses that `X-Forwarded-For` claims, if it looks like a list of them: a sender can write anything
/// there.
fn claimed_addresses(headers: &HeaderMap) -> Option<&str> {
    const LONGEST: usize = 200;
    let claimed = headers.get("x-forwarded-for")?.to_str().ok()?;
    let is_address = |byte: u8| byte.is_ascii_hexdigit() || b".:, []".contains(&byte);
    (claimed.len() <= LONGEST && claimed.bytes().all(is_address)).then_some(claimed)
}

/// True if the content type allows for JSON: senders often leave it out, some send it twice, and browsers say
/// `text/plain`.
fn is_json(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONTENT_TYPE).into_iter().all(|value| {
        let mut types = value.to_str().unwrap_or("unreadable").split(',');
        types.all(|media_type| {
            let essence = media_type.split(';').next().unwrap_or_default().trim();
            ["", "application/json", "text/plain"].iter().any(|known| essence.eq_ignore_ascii_case(known))
                || essence.to_ascii_lowercase().ends_with("+json")
        })
    })
}

//! The routes, and how a request is judged, read and answered.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, sleep_until},
};
use tokio_util::task::TaskTracker;

use super::{
    Settings,
    body::{self, Budget, Charge, ReadError},
    intake::{Intake, Patience, Prepared},
    reply::Reply,
};
use crate::{
    auth::{Auth, Denied, Verdict},
    inflate::{self, Encoding, InflateError},
    metrics, posthog,
    repeated::Repeated,
};

/// The longest that a batch's body may take to arrive.
const BATCH_BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// What is lent to the mapping at first: most messages find room there, and it need not grow.
const SCRATCH: usize = 4 << 10;

/// The least memory for the bodies of a route. What is made of a body can take more than the body, and if that had no
/// room even by itself, it never would.
const MIN_BODIES: usize = 8 << 20;

/// How large a body is prepared while all others wait: a fraction of a millisecond.
const LARGE: usize = 256 << 10;

/// The same for one that is packed, which can become a thousand times as large.
const LARGE_PACKED: usize = 4 << 10;

/// What every request can use.
#[derive(Clone, Debug)]
pub(super) struct App {
    webhook: Route,
    batch: Route,
    max_body: usize,
    auth: Arc<Auth>,
    /// For all bodies together that are read to find out who sent them.
    unproven: Budget,
    /// For the one large body that is being prepared: what is made of it is charged only when it is whole.
    aside: Arc<Semaphore>,
    refusals: Repeated,
    intake: Intake,
    /// Requests in flight.
    requests: TaskTracker,
    started: Instant,
}

/// One of the two routes that take events.
#[derive(Clone, Debug)]
struct Route {
    label: metrics::Route,
    deadline: Duration,
    body_timeout: Duration,
    budget: Budget,
    /// Whether a sender may present its token in the body: PostHog's batch export and SDKs can do no other.
    takes_api_key: bool,
}

/// A body as it came in.
struct Received {
    bytes: Bytes,
    encoding: Option<Encoding>,
    /// What to answer if the body does not prove its sender either.
    denied: Option<Denied>,
    /// What the bytes are charged to.
    charge: Charge,
}

impl Received {
    /// Whether others would notice that they wait until it is prepared.
    fn is_large(&self) -> bool {
        let limit = if self.encoding.is_some() { LARGE_PACKED } else { LARGE };
        self.bytes.len() > limit
    }
}

impl App {
    /// The application with its routes, whose bodies have their budgets.
    pub(super) fn new(settings: &Settings, auth: Auth, intake: Intake) -> Self {
        let Settings { listen: _, webhook_deadline, batch_deadline, max_body, shutdown_grace: _, head_timeout: _ } =
            *settings;
        let bodies = (2 * max_body).max(MIN_BODIES);
        Self {
            webhook: Route {
                label: metrics::Route::Webhook,
                deadline: webhook_deadline,
                body_timeout: webhook_deadline,
                budget: Budget::new(bodies),
                takes_api_key: false,
            },
            batch: Route {
                label: metrics::Route::Batch,
                deadline: batch_deadline,
                body_timeout: batch_deadline.min(BATCH_BODY_TIMEOUT),
                budget: Budget::new(bodies),
                takes_api_key: true,
            },
            max_body,
            auth: Arc::new(auth),
            unproven: Budget::new(max_body),
            aside: Arc::new(Semaphore::new(1)),
            refusals: Repeated::default(),
            intake,
            requests: TaskTracker::new(),
            started: Instant::now(),
        }
    }

    /// Waits until no request is in flight. None that comes later is waited for.
    pub(super) async fn answered(&self) {
        self.requests.close();
        self.requests.wait().await;
    }

    pub(super) fn router(&self) -> Router {
        let webhook =
            post(|State(app): State<Arc<Self>>, request| async move { app.receive(&app.webhook, request).await });
        let batch = post(|State(app): State<Arc<Self>>, request| async move { app.receive(&app.batch, request).await });
        let healthz = get(|State(app): State<Arc<Self>>| async move { app.health(metrics::Route::Healthz) });
        let readyz = get(|State(app): State<Arc<Self>>| async move { app.health(metrics::Route::Readyz) });
        let metrics = get(|State(app): State<Arc<Self>>| async move { app.metrics() });
        let mut router = Router::new();
        for (path, route) in [
            ("/webhook", webhook),
            ("/batch", batch),
            ("/healthz", healthz),
            ("/readyz", readyz),
            ("/metrics", metrics),
        ] {
            router = router.route(path, route.clone()).route(&format!("{path}/"), route);
        }
        router
            .fallback(|State(app): State<Arc<Self>>, request: Request| async move {
                app.early(Reply::error(StatusCode::NOT_FOUND, "no such path: events go to /webhook or /batch"), request)
            })
            .method_not_allowed_fallback(|State(app): State<Arc<Self>>, request: Request| async move {
                app.early(Reply::error(StatusCode::METHOD_NOT_ALLOWED, "no such method on this path"), request)
            })
            .with_state(Arc::new(self.clone()))
    }

    async fn receive(&self, route: &Route, request: Request) -> Response {
        let _in_flight = self.requests.token();
        let start = Instant::now();
        let reply = self.answer(route, request, start).await;
        self.intake.metrics.replied(route.label, reply.status, start.elapsed());
        tracing::debug!(
            route = route.label.name(),
            status = reply.status.as_u16(),
            received = reply.report.received,
            "replied"
        );
        reply.into_response()
    }

    async fn answer(&self, route: &Route, request: Request, start: Instant) -> Reply {
        let patience = Patience { arrived: SystemTime::now(), deadline: start + route.deadline };
        let (head, mut body) = request.into_parts();
        let judged = self.judge(route, &head.headers, patience.arrived);
        let received = match judged {
            Ok(verdict) => self.read(route, &head.headers, verdict, &mut body, start).await,
            Err(reply) => Err(reply),
        };
        let received = match received {
            Ok(received) => received,
            Err(reply) => {
                self.discard(body);
                return reply;
            }
        };
        let size = received.bytes.len();
        let prepared = match received.is_large() {
            true => self.prepare_aside(received, patience).await,
            false => self.prepare(received, patience.arrived),
        };
        match prepared {
            Ok((elements, _charge)) => {
                // Not where it was prepared: that may go on when nobody waits any longer, and then nothing is taken in.
                self.intake.metrics.received(elements.len(), size);
                self.intake.forward(&elements, patience).await
            }
            Err(reply) => reply,
        }
    }

    /// Prepares a body in a thread of its own, one at a time.
    async fn prepare_aside(&self, received: Received, patience: Patience) -> Result<(Vec<Prepared>, Charge), Reply> {
        let thread = tokio::select! {
            thread = Arc::clone(&self.aside).acquire_owned() => thread.expect("it is never closed"),
            () = sleep_until(patience.deadline) => {
                let reason = "the connector is busy with other bodies of this size: send it again";
                return Err(Reply::error(StatusCode::SERVICE_UNAVAILABLE, reason));
            }
            () = self.intake.draining.cancelled() => return Err(Reply::draining()),
        };
        let app = self.clone();
        let prepared = spawn_blocking(move || {
            let prepared = app.prepare(received, patience.arrived);
            drop(thread);
            prepared
        });
        prepared.await.expect("it does not panic, and nobody ends it")
    }

    /// Unpacks and decodes a body, finds out who sent it if that is not known, and lets it go: what is kept of it is less.
    fn prepare(&self, received: Received, arrived: SystemTime) -> Result<(Vec<Prepared>, Charge), Reply> {
        let Received { mut bytes, encoding, denied, mut charge } = received;
        if let Some(encoding) = encoding {
            let grow = |more| charge.grow(more).map_err(|body::Full| inflate::Full);
            let unpacked = inflate::inflate(encoding, &bytes, self.max_body, grow);
            bytes = unpacked.map_err(|error| self.inflate_error(error))?.into();
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| "the body is not JSON: it is not UTF-8".to_owned());
        let mut scratch = Vec::with_capacity(bytes.len().min(SCRATCH));
        let body =
            text.map(|text| posthog::Body::parse(text, |element| self.intake.prepare(element, arrived, &mut scratch)));
        let body = match body {
            Ok(Ok(body)) => body,
            // Who may not send is told no more than that.
            _ if let Some(denied) = denied => return Err(self.deny(denied)),
            Ok(Err(error @ posthog::BodyError::TooManyElements)) => {
                return Err(Reply::error(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()));
            }
            Ok(Err(error)) => return Err(Reply::error(StatusCode::BAD_REQUEST, error.to_string())),
            Err(reason) => return Err(Reply::error(StatusCode::BAD_REQUEST, reason)),
        };
        if let Some(denied) = denied {
            if !body.envelope.api_key.is_some_and(|api_key| self.auth.api_key_is_valid(api_key)) {
                return Err(self.deny(denied));
            }
            charge.leave_last();
        }
        charge.change_to(Prepared::allocated(&body.elements)).map_err(|body::Full| self.read_error(ReadError::Full))?;
        Ok((body.elements, charge))
    }

    /// What can be said of a request before its body is read.
    fn judge(&self, route: &Route, headers: &HeaderMap, now: SystemTime) -> Result<Verdict, Reply> {
        if self.intake.draining.is_cancelled() {
            return Err(Reply::draining());
        }
        let verdict = self.auth.judge_head(headers, now, route.takes_api_key);
        let verdict = verdict.map_err(|denied| self.deny(denied))?;
        if !is_json(headers) {
            let reason = "the content type must be application/json (or text/plain, or none)";
            return Err(Reply::error(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason));
        }
        Ok(verdict)
    }

    /// Reads a body within the budgets for one of its sender.
    async fn read(
        &self,
        route: &Route,
        headers: &HeaderMap,
        verdict: Verdict,
        body: &mut Body,
        start: Instant,
    ) -> Result<Received, Reply> {
        let encoding = Encoding::of(headers)
            .map_err(|unsupported| Reply::error(StatusCode::UNSUPPORTED_MEDIA_TYPE, unsupported.to_string()))?;
        let mut charge = Charge::new(match verdict {
            Verdict::Unproven { .. } => vec![route.budget.clone(), self.unproven.clone()],
            Verdict::Proven => vec![route.budget.clone()],
        });
        let read = body::read(body, self.max_body, &mut charge, start + route.body_timeout);
        let bytes = tokio::select! {
            read = read => read.map_err(|error| self.read_error(error))?,
            () = self.intake.draining.cancelled() => return Err(Reply::draining()),
        };
        let denied = match verdict {
            Verdict::Unproven { signature, api_key, otherwise } => {
                if signature && self.auth.signature_is_valid(headers, &bytes) {
                    charge.leave_last();
                    None
                } else if api_key {
                    Some(otherwise)
                } else {
                    return Err(self.deny(otherwise));
                }
            }
            Verdict::Proven => None,
        };
        Ok(Received { bytes, encoding, denied, charge })
    }

    /// The reply to a sender without a right credential.
    fn deny(&self, denied: Denied) -> Reply {
        self.intake.metrics.auth_failed(denied);
        if let Some(requests) = self.refusals.note(Instant::now()) {
            tracing::warn!(requests, reason = %denied, "senders were refused");
        }
        Reply::error(StatusCode::UNAUTHORIZED, denied.to_string())
    }

    fn inflate_error(&self, error: InflateError) -> Reply {
        match error {
            InflateError::Corrupt(_) => Reply::error(StatusCode::BAD_REQUEST, error.to_string()),
            InflateError::TooLarge => self.read_error(ReadError::TooLarge),
            InflateError::Full => self.read_error(ReadError::Full),
        }
    }

    fn read_error(&self, error: ReadError) -> Reply {
        match error {
            ReadError::TooLarge => {
                let limit = bytesize::ByteSize(self.max_body as u64).display().iec();
                Reply::error(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the body is larger than server.max_body ({limit})"),
                )
            }
            ReadError::Full => Reply::error(StatusCode::TOO_MANY_REQUESTS, body::Full.to_string()),
            ReadError::TooLate => Reply::error(StatusCode::SERVICE_UNAVAILABLE, "the body did not arrive in time"),
            ReadError::BrokenOff => Reply::error(StatusCode::BAD_REQUEST, "the body broke off"),
        }
    }

    /// A reply to a request whose body nobody wants.
    fn early(&self, reply: Reply, request: Request) -> Response {
        self.discard(request.into_body());
        self.intake.metrics.replied(metrics::Route::Other, reply.status, Duration::ZERO);
        reply.into_response()
    }

    /// Lets the sender finish, so that it reads its reply. Not for long, and not when the server stops.
    fn discard(&self, body: Body) {
        if !hyper::body::Body::is_end_stream(&body) {
            let ending = self.intake.hurry.clone();
            tokio::spawn(async move { ending.run_until_cancelled(body::discard(body)).await });
        }
    }

    fn health(&self, route: metrics::Route) -> Response {
        let is_draining = self.intake.draining.is_cancelled();
        let status = match is_draining && route == metrics::Route::Readyz {
            true => StatusCode::SERVICE_UNAVAILABLE,
            false => StatusCode::OK,
        };
        self.intake.metrics.replied(route, status, Duration::ZERO);
        let (health, snapshot) = (self.intake.outbox.health(), self.intake.outbox.snapshot());
        let time = |time: SystemTime| humantime::format_rfc3339_millis(time).to_string();
        let body = serde_json::json!({
            "status": if is_draining { "draining" } else { "ok" },
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "destination": {
                "state": health.state.name(),
                "since": time(health.since),
                "reason": health.reason.map(|fault| fault.to_string()),
                "last_success": health.last_success().map(time),
            },
            "held": {
                "events": snapshot.held_events,
                "bytes": snapshot.held_bytes,
                "oldest_seconds": snapshot.held_oldest.as_secs(),
            },
        });
        (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
    }

    fn metrics(&self) -> Response {
        self.intake.metrics.replied(metrics::Route::Metrics, StatusCode::OK, Duration::ZERO);
        let text = self.intake.metrics.encode(self.intake.outbox.snapshot());
        ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
    }
}

/// Whether the body may be JSON by its type: senders often leave it out, and browsers say `text/plain`.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(content_type) = headers.get(header::CONTENT_TYPE) else { return true };
    let Ok(content_type) = content_type.to_str() else { return false };
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    matches!(essence.as_str(), "" | "application/json" | "text/plain") || essence.ends_with("+json")
}

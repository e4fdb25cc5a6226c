//! The HTTP face: connections, routes, and how they end.
//!
//! The caller owns the listener and the reason to stop. `axum::serve` is not used because it has neither a timeout for
//! the head of a request nor a cap on connections.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
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
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    body::{Budget, Charge, ReadError},
    intake::{Intake, Patience},
    repeated::Repeated,
    reply::Reply,
};
use crate::{
    auth::{Auth, Denied, Verdict},
    inflate::{self, Encoding, InflateError},
    mapping,
    metrics::{self, Metrics},
    outbox::Outbox,
    posthog,
};

mod body;
mod intake;
mod repeated;
mod reply;

/// How long a sender may take for the head of a request; also how long a connection may be idle, which must be more than
/// the 10 s for which PostHog keeps one (`EXTERNAL_REQUEST_KEEP_ALIVE_TIMEOUT_MS`).
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// The most connections at once. PostHog opens up to 500 (`EXTERNAL_REQUEST_CONNECTIONS`) from each of its workers.
pub const MAX_CONNECTIONS: usize = 2048;

/// The longest head of a request, and the most of a body that a connection reads ahead: with it a connection takes some
/// 24 KiB at most, where hyper's own limit is over 400.
const MAX_BUFFER: usize = 16 << 10;

/// How long a sender may leave a reply unread before its connection is closed: nothing else bounds that.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How many connections wait to be accepted: PostHog's bursts must not be lost to the kernel's queue.
const BACKLOG: u32 = 2048;

/// The longest that a batch's body may take to arrive.
const BATCH_BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Before the end of the grace: when requests in flight are answered, whatever became of their events.
const HURRY_BEFORE_END: Duration = Duration::from_millis(500);

/// How long replies that have been made may take to leave.
const FLUSH_FOR: Duration = Duration::from_millis(200);

/// The address, and the limits of a request.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// How long a webhook request may take.
    pub webhook_deadline: Duration,
    /// How long a batch request may take.
    pub batch_deadline: Duration,
    /// Bytes of a body, before and after decompression.
    pub max_body: usize,
    /// How long a stopping server may take to finish what it has.
    pub shutdown_grace: Duration,
}

impl Default for Settings {
    /// Deadlines below PostHog's own, on an address that only this machine reaches.
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 8080).into(),
            webhook_deadline: Duration::from_millis(2500),
            batch_deadline: Duration::from_secs(240),
            max_body: 64 << 20,
            shutdown_grace: Duration::from_secs(8),
        }
    }
}

/// Binds a listener with a queue long enough for PostHog's bursts.
///
/// # Errors
/// When the address cannot be had.
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until `shutdown`, then finishes what it has within the grace. Returns how many events were abandoned.
pub async fn serve(
    listener: TcpListener,
    settings: Settings,
    auth: Auth,
    mapping: mapping::Settings,
    outbox: Outbox,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> usize {
    let Settings { listen: _, webhook_deadline, batch_deadline, max_body, shutdown_grace } = settings;
    let draining = CancellationToken::new();
    let hurry = CancellationToken::new();
    let intake = Intake {
        mapping,
        outbox: outbox.clone(),
        metrics: metrics.clone(),
        draining: draining.clone(),
        hurry: hurry.clone(),
    };
    let app = App {
        webhook: Route {
            name: "webhook",
            deadline: webhook_deadline,
            body_timeout: webhook_deadline,
            budget: Budget::new(2 * max_body),
            takes_api_key: false,
        },
        batch: Route {
            name: "batch",
            deadline: batch_deadline,
            body_timeout: batch_deadline.min(BATCH_BODY_TIMEOUT),
            budget: Budget::new(2 * max_body),
            takes_api_key: true,
        },
        max_body,
        auth: Arc::new(auth),
        unproven: Budget::new(max_body),
        refusals: Repeated::default(),
        intake,
        requests: TaskTracker::new(),
        started: Instant::now(),
    };
    let connections = Connections { tracker: TaskTracker::new(), ending: CancellationToken::new(), app: app.clone() };
    let accepting = connections.accept(listener);
    let ending = async {
        shutdown.cancelled().await;
        let end = Instant::now() + shutdown_grace;
        tracing::info!(grace = %humantime::format_duration(shutdown_grace), "stopping: no more events are taken in");
        draining.cancel();
        app.requests.close();
        let finished = async {
            outbox.emptied().await;
            app.requests.wait().await;
        };
        if timeout_at(end - HURRY_BEFORE_END.min(shutdown_grace / 2), finished).await.is_err() {
            hurry.cancel();
            drop(timeout_at(end, app.requests.wait()).await);
        }
        connections.ending.cancel();
        connections.tracker.close();
        drop(timeout(FLUSH_FOR, connections.tracker.wait()).await);
    };
    tokio::select! {
        never = accepting => match never {},
        () = ending => {}
    }
    let abandoned = outbox.close().await;
    tracing::info!(abandoned, "stopped");
    abandoned
}

struct Connections {
    tracker: TaskTracker,
    ending: CancellationToken,
    app: App,
}

impl Connections {
    async fn accept(&self, listener: TcpListener) -> Infallible {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let router = self.app.router();
        let failures = Repeated::default();
        loop {
            let permit = Arc::clone(&permits).acquire_owned().await.expect("it is never closed");
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Most often there are no descriptors left: only time can help.
                    if let Some(times) = failures.note(Instant::now()) {
                        tracing::warn!(times, %error, "connections could not be accepted");
                    }
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (router, ending, metrics) = (router.clone(), self.ending.clone(), self.app.intake.metrics.clone());
            self.tracker.spawn(async move {
                metrics.connections().inc();
                connection(stream, router, ending).await;
                metrics.connections().dec();
                drop(permit);
            });
        }
    }
}

async fn connection(stream: TcpStream, router: Router, ending: CancellationToken) {
    let socket = socket2::SockRef::from(&stream);
    let options = socket.set_tcp_nodelay(true).and_then(|()| socket.set_tcp_user_timeout(Some(UNREAD_TIMEOUT)));
    if let Err(error) = options {
        tracing::debug!(%error, "a connection ended at once");
        return;
    }
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_BUFFER);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = ending.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection broke");
    }
}

/// What every request can use.
#[derive(Clone, Debug)]
struct App {
    webhook: Route,
    batch: Route,
    max_body: usize,
    auth: Arc<Auth>,
    /// For all bodies together that are read to find out who sent them.
    unproven: Budget,
    refusals: Repeated,
    intake: Intake,
    /// Requests in flight.
    requests: TaskTracker,
    started: Instant,
}

/// One of the two routes that take events.
#[derive(Clone, Debug)]
struct Route {
    name: &'static str,
    deadline: Duration,
    body_timeout: Duration,
    budget: Budget,
    /// Whether a sender may present its token in the body: PostHog's batch export and SDKs can do no other.
    takes_api_key: bool,
}

/// A body, unpacked.
struct Received {
    bytes: Bytes,
    /// How many bytes came in.
    size: usize,
    /// What to answer if the body does not prove its sender either.
    denied: Option<Denied>,
    /// The bytes stay charged for as long as they are here.
    _charge: Charge,
}

impl App {
    fn router(&self) -> Router {
        let webhook = post(|State(app): State<Self>, request| async move { app.receive(&app.webhook, request).await });
        let batch = post(|State(app): State<Self>, request| async move { app.receive(&app.batch, request).await });
        let healthz = get(|State(app): State<Self>| async move { app.health("healthz") });
        let readyz = get(|State(app): State<Self>| async move { app.health("readyz") });
        let metrics = get(|State(app): State<Self>| async move { app.metrics() });
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
            .fallback(|State(app): State<Self>, request: Request| async move {
                app.early(Reply::error(StatusCode::NOT_FOUND, "no such path: events go to /webhook or /batch"), request)
            })
            .method_not_allowed_fallback(|State(app): State<Self>, request: Request| async move {
                app.early(Reply::error(StatusCode::METHOD_NOT_ALLOWED, "no such method on this path"), request)
            })
            .with_state(self.clone())
    }

    async fn receive(&self, route: &Route, request: Request) -> Response {
        let _in_flight = self.requests.token();
        let start = Instant::now();
        let reply = self.answer(route, request, start).await;
        self.intake.metrics.replied(route.name, reply.status, start.elapsed());
        tracing::debug!(
            route = route.name,
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
        let body = std::str::from_utf8(&received.bytes).map_err(|_| "the body is not JSON: it is not UTF-8".to_owned());
        let body = match body.map(posthog::Body::parse) {
            Ok(Ok(body)) => body,
            // Who may not send is told no more than that.
            _ if let Some(denied) = received.denied => return self.deny(denied),
            Ok(Err(error @ posthog::BodyError::TooManyElements)) => {
                return Reply::error(StatusCode::PAYLOAD_TOO_LARGE, error.to_string());
            }
            Ok(Err(error)) => return Reply::error(StatusCode::BAD_REQUEST, error.to_string()),
            Err(reason) => return Reply::error(StatusCode::BAD_REQUEST, reason),
        };
        if let Some(denied) = received.denied
            && !body.envelope.api_key.is_some_and(|api_key| self.auth.api_key_is_valid(api_key))
        {
            return self.deny(denied);
        }
        self.intake.metrics.received(body.elements.len(), received.size);
        self.intake.forward(&body, patience).await
    }

    /// What can be said of a request before its body is read.
    fn judge(&self, route: &Route, headers: &HeaderMap, now: SystemTime) -> Result<Verdict, Reply> {
        if self.intake.draining.is_cancelled() {
            return Err(Reply::draining());
        }
        let verdict = self.auth.judge_head(headers, now, route.takes_api_key);
        if let Verdict::Denied(denied) = verdict {
            return Err(self.deny(denied));
        }
        if !is_json(headers) {
            let reason = "the content type must be application/json (or text/plain, or none)";
            return Err(Reply::error(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason));
        }
        Ok(verdict)
    }

    /// Reads and unpacks a body within the budgets for one of its sender.
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
            Verdict::Proven | Verdict::Denied(_) => vec![route.budget.clone()],
        });
        let read = body::read(body, self.max_body, &mut charge, start + route.body_timeout);
        let mut bytes = tokio::select! {
            read = read => read.map_err(|error| self.read_error(error))?,
            () = self.intake.draining.cancelled() => return Err(Reply::draining()),
        };
        let size = bytes.len();
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
            Verdict::Proven | Verdict::Denied(_) => None,
        };
        if let Some(encoding) = encoding {
            let grow = |more| charge.grow(more).map_err(|body::Full| inflate::Full);
            let unpacked = inflate::inflate(encoding, &bytes, self.max_body, grow);
            bytes = unpacked.map_err(|error| self.inflate_error(error))?.into();
        }
        Ok(Received { bytes, size, denied, _charge: charge })
    }

    /// The reply to a sender without a right credential.
    fn deny(&self, denied: Denied) -> Reply {
        let is_missing = matches!(denied, Denied::NoToken | Denied::NoApiKey | Denied::NoSignature);
        self.intake.metrics.auth_failed(if is_missing { "missing" } else { "wrong" });
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
        self.intake.metrics.replied("other", reply.status, Duration::ZERO);
        reply.into_response()
    }

    /// Lets the sender finish, so that it reads its reply. Not for long, and not when the server stops.
    fn discard(&self, body: Body) {
        if !hyper::body::Body::is_end_stream(&body) {
            let ending = self.intake.hurry.clone();
            tokio::spawn(async move { ending.run_until_cancelled(body::discard(body)).await });
        }
    }

    fn health(&self, route: &'static str) -> Response {
        let is_draining = self.intake.draining.is_cancelled();
        let status = match is_draining && route == "readyz" {
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
                "state": health.state,
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
        self.intake.metrics.replied("metrics", StatusCode::OK, Duration::ZERO);
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

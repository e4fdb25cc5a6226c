//! The paths, and the handlers of those that do not take events: health and metrics.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response},
    routing::{any, get},
};
use http::{
    Method, Request, StatusCode, Uri,
    header::ALLOW,
    uri::{Parts, PathAndQuery},
};
use hyper::{body::Incoming, service::Service as _};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::time::Instant;

use super::{
    Server,
    connections::Seat,
    reply::{self, Reply},
    requests::Requests,
};
use crate::metrics::{self, RouteLabel};

/// The handlers of all paths.
#[derive(Clone, Debug)]
pub(super) struct Routes {
    shared: Arc<Shared>,
    /// Answers all but requests with events.
    router: TowerToHyperService<Router>,
}

/// The state that all handlers share.
#[derive(Debug)]
struct Shared {
    server: Arc<Server>,
    requests: Arc<Requests>,
    started: Instant,
}

impl Routes {
    pub(super) fn new(server: Arc<Server>, requests: Arc<Requests>) -> Self {
        type Handler = State<Arc<Shared>>;
        let shared = Arc::new(Shared { server, requests, started: Instant::now() });
        let post_only = any(async |State(shared): Handler, request| {
            ([(ALLOW, "POST")], shared.early(Reply::no_such_method(), request))
        });
        let router = Router::new()
            .route("/webhook", post_only.clone())
            .route("/batch", post_only)
            .route("/healthz", get(async |State(shared): Handler| shared.health(RouteLabel::Healthz)))
            .route("/readyz", get(async |State(shared): Handler| shared.health(RouteLabel::Readyz)))
            .route("/metrics", get(async |State(shared): Handler| shared.metrics()))
            .fallback(async |State(shared): Handler, request| shared.early(Reply::no_such_path(), request))
            .method_not_allowed_fallback(async |State(shared): Handler, request| {
                shared.early(Reply::no_such_method(), request)
            })
            .with_state(Arc::clone(&shared));
        Self { shared, router: TowerToHyperService::new(router) }
    }

    /// Answers a request that came in on the connection with this seat. Requests with events pass by the router, which would
    /// cost each of them some ten allocations.
    pub(super) async fn answer(&self, mut request: Request<Incoming>, seat: &Arc<Seat>) -> Response {
        let requests = &self.shared.requests;
        let route = match name(request.uri().path()) {
            "webhook" => Some(&requests.webhook),
            "batch" => Some(&requests.batch),
            _ => None,
        };
        match route.filter(|_| request.method() == Method::POST) {
            // Boxed, because an idle connection would have to keep room for a future of this size.
            Some(route) => Box::pin(requests.answer(route, request, seat)).await.into_response(),
            None => {
                one_slash(request.uri_mut());
                let Ok(response) = self.router.call(request).await;
                response
            }
        }
    }
}

impl Shared {
    /// Replies to a request whose body is not needed.
    fn early(&self, reply: Reply, request: Request<Body>) -> Reply {
        self.requests.discard(request.into_body());
        self.server.metrics.replied(RouteLabel::Other, reply.status, Duration::ZERO);
        reply
    }

    fn metrics(&self) -> Response {
        self.server.metrics.replied(RouteLabel::Metrics, StatusCode::OK, Duration::ZERO);
        let text = self.server.metrics.encode(self.server.outbox.snapshot());
        reply::response(StatusCode::OK, metrics::CONTENT_TYPE, text)
    }

    fn health(&self, route: RouteLabel) -> Response {
        let is_draining = self.requests.draining.is_cancelled();
        let status = match is_draining && route == RouteLabel::Readyz {
            true => StatusCode::SERVICE_UNAVAILABLE,
            false => StatusCode::OK,
        };
        self.server.metrics.replied(route, status, Duration::ZERO);
        let (health, snapshot) = (self.server.outbox.health(), self.server.outbox.snapshot());
        let time = |time: SystemTime| humantime::format_rfc3339_millis(time).to_string();
        let health = Health {
            status: if is_draining { "draining" } else { "ok" },
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs(),
            destination: Destination {
                state: health.state.into(),
                since: time(health.since),
                reason: health.reason.map(|fault| fault.to_string()),
                last_success: health.last_success().map(time),
            },
            held: Held {
                events: snapshot.held_events,
                bytes: snapshot.held_bytes,
                oldest_seconds: snapshot.held_oldest.as_secs(),
            },
        };
        reply::json(status, &health)
    }
}

/// Returns a path without the slash at its end and those at its beginning, however many: neither changes the meaning.
fn name(path: &str) -> &str {
    let path = path.trim_start_matches('/');
    path.strip_suffix('/').unwrap_or(path)
}

/// Removes the slash at the end of a path, and all but one at its beginning.
fn one_slash(uri: &mut Uri) {
    let name = name(uri.path());
    if name.len() + 1 == uri.path().len() {
        return;
    }
    let query = uri.query().map_or_else(String::new, |query| format!("?{query}"));
    let mut parts = Parts::default();
    parts.path_and_query = PathAndQuery::try_from(format!("/{name}{query}")).ok();
    *uri = Uri::from_parts(parts).expect("a path alone is an address");
}

/// The body of `/healthz` and `/readyz`, in the order in which people read it.
#[derive(Serialize)]
struct Health {
    status: &'static str,
    version: &'static str,
    uptime_seconds: u64,
    destination: Destination,
    held: Held,
}

/// The state of Variance.
#[derive(Serialize)]
struct Destination {
    state: &'static str,
    since: String,
    reason: Option<String>,
    last_success: Option<String>,
}

/// The events that Variance does not have yet.
#[derive(Serialize)]
struct Held {
    events: usize,
    bytes: usize,
    oldest_seconds: u64,
}

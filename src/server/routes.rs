//! The paths, and the handlers of those that do not take events: health and metrics.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Extension, Router,
    body::Body,
    extract::State,
    response::Response,
    routing::{get, post},
};
use http::{
    Request, StatusCode, Uri,
    uri::{Parts, PathAndQuery},
};
use serde::Serialize;
use tokio::time::Instant;

use super::{
    Server,
    connections::Seat,
    reply::{self, Reply},
    requests::Requests,
};
use crate::metrics::{self, RouteLabel};

/// The state that all handlers share.
#[derive(Debug)]
pub(super) struct Routes {
    pub server: Arc<Server>,
    pub requests: Arc<Requests>,
    pub started: Instant,
}

impl Routes {
    /// Builds the router of all paths. A connection first passes the path through [`one_slash`], and adds its [`Seat`]
    /// to the request as an extension.
    pub(super) fn router(self) -> Router {
        let webhook = async |State(routes): State<Arc<Self>>, Extension(seat): Extension<Arc<Seat>>, request| {
            routes.requests.answer(&routes.requests.webhook, request, &seat).await
        };
        let batch = async |State(routes): State<Arc<Self>>, Extension(seat): Extension<Arc<Seat>>, request| {
            routes.requests.answer(&routes.requests.batch, request, &seat).await
        };
        Router::new()
            .route("/webhook", post(webhook))
            .route("/batch", post(batch))
            .route("/healthz", get(async |State(routes): State<Arc<Self>>| routes.health(RouteLabel::Healthz)))
            .route("/readyz", get(async |State(routes): State<Arc<Self>>| routes.health(RouteLabel::Readyz)))
            .route("/metrics", get(async |State(routes): State<Arc<Self>>| routes.metrics()))
            .fallback(async |State(routes): State<Arc<Self>>, request| routes.early(Reply::no_such_path(), request))
            .method_not_allowed_fallback(async |State(routes): State<Arc<Self>>, request| {
                routes.early(Reply::no_such_method(), request)
            })
            .with_state(Arc::new(self))
    }

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

/// Removes the slash at the end of a path, and all but one at its beginning: neither changes the meaning.
pub(super) fn one_slash(uri: &mut Uri) {
    let path = uri.path();
    let trimmed = path.trim_start_matches('/');
    let trimmed = trimmed.strip_suffix('/').unwrap_or(trimmed);
    if trimmed.len() + 1 == path.len() {
        return;
    }
    let query = uri.query().map_or_else(String::new, |query| format!("?{query}"));
    let mut parts = Parts::default();
    parts.path_and_query = PathAndQuery::try_from(format!("/{trimmed}{query}")).ok();
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

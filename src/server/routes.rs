//! The paths, and what does not take events: health and metrics.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Serialize;
use tokio::time::Instant;

use super::{
    Server,
    connections::Seat,
    reply::{self, Reply},
    requests::Requests,
};
use crate::metrics::{self, RouteLabel};

/// What answers every request.
#[derive(Debug)]
pub(super) struct Routes {
    pub server: Arc<Server>,
    pub requests: Arc<Requests>,
    pub started: Instant,
}

impl Routes {
    /// Answers a request. A slash at the end of a path changes nothing, nor do several at its beginning.
    pub(super) async fn answer(&self, request: Request<Incoming>, seat: &Arc<Seat>) -> Response<Full<Bytes>> {
        let Self { server, requests, .. } = self;
        let path = request.uri().path();
        let path = &path[path.find(|letter| letter != '/').unwrap_or(1).saturating_sub(1)..];
        match (path.strip_suffix('/').unwrap_or(path), request.method()) {
            ("/webhook", &Method::POST) => requests.answer(&requests.webhook, request, seat).await.into(),
            ("/batch", &Method::POST) => requests.answer(&requests.batch, request, seat).await.into(),
            ("/healthz", &Method::GET | &Method::HEAD) => self.health(RouteLabel::Healthz),
            ("/readyz", &Method::GET | &Method::HEAD) => self.health(RouteLabel::Readyz),
            ("/metrics", &Method::GET | &Method::HEAD) => {
                server.metrics.replied(RouteLabel::Metrics, StatusCode::OK, Duration::ZERO);
                let text = server.metrics.encode(server.outbox.snapshot());
                reply::response(StatusCode::OK, metrics::CONTENT_TYPE, text)
            }
            ("/webhook" | "/batch", _) => self.early(Reply::no_such_method("POST"), request),
            ("/healthz" | "/readyz" | "/metrics", _) => self.early(Reply::no_such_method("GET,HEAD"), request),
            _ => self.early(Reply::no_such_path(), request),
        }
    }

    /// A reply to a request whose body nobody wants.
    fn early(&self, reply: Reply, request: Request<Incoming>) -> Response<Full<Bytes>> {
        self.requests.discard(request.into_body());
        self.server.metrics.replied(RouteLabel::Other, reply.status, Duration::ZERO);
        reply.into()
    }

    fn health(&self, route: RouteLabel) -> Response<Full<Bytes>> {
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

/// What `/healthz` and `/readyz` say, in the order in which people read it.
#[derive(Serialize)]
struct Health {
    status: &'static str,
    version: &'static str,
    uptime_seconds: u64,
    destination: Destination,
    held: Held,
}

/// What is known of Variance.
#[derive(Serialize)]
struct Destination {
    state: &'static str,
    since: String,
    reason: Option<String>,
    last_success: Option<String>,
}

/// What Variance does not have yet.
#[derive(Serialize)]
struct Held {
    events: usize,
    bytes: usize,
    oldest_seconds: u64,
}

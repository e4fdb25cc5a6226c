//! The routes, and what does not take events: health and metrics.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::task::TaskTracker;

use self::health::Health;
use super::{
    ServerSettings,
    body::{self, Budget},
    intake::Intake,
    reply::Reply,
};
use crate::{
    auth::Auth,
    metrics::{self, RouteLabel},
    repeated::Repeated,
};

mod health;
mod receive;

/// The longest that a batch's body may take to arrive.
const BATCH_BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// The least memory for the bodies of a route. What is made of a body can take more than the body, and if that had no
/// room even by itself, it never would.
const MIN_BODIES: usize = 8 << 20;

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
    label: RouteLabel,
    deadline: Duration,
    body_timeout: Duration,
    budget: Budget,
    /// Whether a sender may present its token in the body: PostHog's batch export and SDKs can do no other.
    takes_api_key: bool,
}

impl App {
    /// The application with its routes, whose bodies have their budgets.
    pub(super) fn new(settings: &ServerSettings, auth: Auth, intake: Intake) -> Self {
        let ServerSettings {
            listen: _,
            webhook_deadline,
            batch_deadline,
            max_body,
            shutdown_grace: _,
            head_timeout: _,
        } = *settings;
        let bodies = (2 * max_body).max(MIN_BODIES);
        Self {
            webhook: Route {
                label: RouteLabel::Webhook,
                deadline: webhook_deadline,
                body_timeout: webhook_deadline,
                budget: Budget::new(bodies),
                takes_api_key: false,
            },
            batch: Route {
                label: RouteLabel::Batch,
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
        let healthz = get(|State(app): State<Arc<Self>>| async move { app.health(RouteLabel::Healthz) });
        let readyz = get(|State(app): State<Arc<Self>>| async move { app.health(RouteLabel::Readyz) });
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

    /// A reply to a request whose body nobody wants.
    fn early(&self, reply: Reply, request: Request) -> Response {
        self.discard(request.into_body());
        self.intake.metrics.replied(RouteLabel::Other, reply.status, Duration::ZERO);
        reply.into_response()
    }

    /// Lets the sender finish, so that it reads its reply. Not for long, and not when the server stops.
    fn discard(&self, body: Body) {
        if !hyper::body::Body::is_end_stream(&body) {
            let ending = self.intake.hurry.clone();
            tokio::spawn(async move { ending.run_until_cancelled(body::discard(body)).await });
        }
    }

    fn health(&self, route: RouteLabel) -> Response {
        let is_draining = self.intake.draining.is_cancelled();
        let status = match is_draining && route == RouteLabel::Readyz {
            true => StatusCode::SERVICE_UNAVAILABLE,
            false => StatusCode::OK,
        };
        self.intake.metrics.replied(route, status, Duration::ZERO);
        let outbox = &self.intake.outbox;
        let health = Health::new(is_draining, self.started.elapsed(), &outbox.health(), &outbox.snapshot());
        let text = serde_json::to_string(&health).expect("its keys are strings");
        (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
    }

    fn metrics(&self) -> Response {
        self.intake.metrics.replied(RouteLabel::Metrics, StatusCode::OK, Duration::ZERO);
        let text = self.intake.metrics.encode(self.intake.outbox.snapshot());
        ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
    }
}

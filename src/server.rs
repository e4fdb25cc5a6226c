//! The HTTP server: its settings, its start and its stop. The caller owns the listener and decides when to stop.
//!
//! `connections` accepts, `routes` dispatches by path, and `requests` handles a request with events; its `account`
//! records the fate of each event, `reply` is the answer, and `memory` bounds what bodies take.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

pub use self::connections::MAX_CONNECTIONS;
use self::{connections::Connections, memory::Memory, requests::Requests, routes::Routes};
use crate::{auth::Auth, mapping::MappingSettings, metrics::Metrics, outbox::Outbox};

mod account;
mod connections;
mod memory;
mod reply;
mod requests;
mod routes;

/// The length of the queue of connections to accept: PostHog's bursts must not overflow it.
const BACKLOG: u32 = 2048;

/// The time before the end of the grace at which requests in flight are answered, whatever became of their events.
const REPLY_BEFORE_END: Duration = Duration::from_millis(500);

/// The longest that finished replies may take to leave.
const FLUSH_FOR: Duration = Duration::from_millis(200);

/// The address to listen on, and the limits of a request.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// The longest that a webhook request may take.
    pub webhook_deadline: Duration,
    /// The longest that a batch request may take.
    pub batch_deadline: Duration,
    /// The most bytes of a body, before and after decompression.
    pub max_body: usize,
    /// The longest that a stopping server may take to finish its work.
    pub shutdown_grace: Duration,
    /// The longest that a sender may take for the head of a request, or leave a connection idle. Users cannot set it;
    /// tests make it shorter.
    pub head_timeout: Duration,
}

/// The [`ServerSettings::head_timeout`] of every real service: longer than the 10 s for which PostHog keeps an idle
/// connection (`EXTERNAL_REQUEST_KEEP_ALIVE_TIMEOUT_MS`).
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

impl Default for ServerSettings {
    /// Deadlines below PostHog's own, on an address that only this machine reaches.
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 8080).into(),
            webhook_deadline: Duration::from_millis(2500),
            batch_deadline: Duration::from_secs(240),
            max_body: 64 << 20,
            shutdown_grace: Duration::from_secs(8),
            head_timeout: HEAD_TIMEOUT,
        }
    }
}

/// Returns the most memory that the bodies of all requests take together, in bytes, if each may have `max_body`.
pub fn memory_of_bodies(max_body: usize) -> usize {
    2 * Memory::bytes_of_route(max_body)
}

/// Binds a listener with a queue long enough for PostHog's bursts.
///
/// # Errors
/// When the address cannot be bound.
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The HTTP server, with the parts to which it hands requests.
#[derive(Debug)]
pub struct Server {
    /// The limits of a request, which may change. The address to listen on is not used here.
    pub settings: watch::Receiver<ServerSettings>,
    /// The judge of who may send.
    pub auth: Auth,
    /// The rules by which events are mapped.
    pub mapping: watch::Receiver<MappingSettings>,
    /// The outbox that takes the messages.
    pub outbox: Outbox,
    /// The metrics that count what happens.
    pub metrics: Metrics,
}

impl Server {
    /// Serves until `shutdown`, then finishes its work within the grace. Returns how many events were abandoned.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) -> usize {
        let server = Arc::new(self);
        let head_timeout = server.settings.borrow().head_timeout;
        let requests = Arc::new(Requests::new(Arc::clone(&server)));
        let routes = Routes::new(Arc::clone(&server), Arc::clone(&requests));
        let connections = Connections::new(head_timeout);
        let accepting = connections.accept(listener, &routes, &server.metrics);
        let ending = async {
            shutdown.cancelled().await;
            let shutdown_grace = server.settings.borrow().shutdown_grace;
            let end = Instant::now() + shutdown_grace;
            tracing::info!(grace = %humantime::format_duration(shutdown_grace), "stopping: no more events are taken in");
            requests.draining.cancel();
            server.outbox.drain();
            let finished = async {
                server.outbox.emptied().await;
                requests.answered().await;
            };
            if timeout_at(end - REPLY_BEFORE_END.min(shutdown_grace / 2), finished).await.is_err() {
                requests.reply_now.cancel();
                drop(timeout_at(end, requests.answered()).await);
            }
            drop(timeout(FLUSH_FOR, connections.end()).await);
        };
        tokio::select! {
            never = accepting => match never {},
            () = ending => {}
        }
        let abandoned = server.outbox.close();
        tracing::info!(abandoned, "stopped");
        abandoned
    }
}

//! The whole service, put together from its parts: what `serve` runs, and `demo`, and the tests.

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{self, Auth},
    destination::{Destination, DestinationSettings},
    mapping,
    metrics::Metrics,
    outbox::{self, Outbox},
    server,
};

/// Everything that the parts want to know.
#[derive(Clone, Debug)]
pub struct ServiceSettings {
    /// The HTTP face.
    pub server: server::ServerSettings,
    /// Who may send.
    pub auth: auth::Settings,
    /// What is forwarded, and how.
    pub mapping: mapping::MappingSettings,
    /// Where it goes.
    pub destination: DestinationSettings,
    /// How it is delivered.
    pub outbox: outbox::Settings,
}

/// Serves on `listener` until `shutdown`, and then until all is done or the grace is over. Returns how many events were
/// abandoned.
///
/// # Errors
/// When there can be no client for the destination, see [`Destination::new`].
pub async fn run(
    listener: TcpListener,
    settings: ServiceSettings,
    shutdown: CancellationToken,
) -> reqwest::Result<usize> {
    let ServiceSettings { server, auth, mapping, destination, outbox } = settings;
    let metrics = Metrics::new();
    let destination = Destination::new(destination, outbox.concurrency)?;
    let outbox = Outbox::start(outbox, destination, metrics.clone());
    Ok(server::serve(listener, server, Auth::new(auth), mapping, outbox, metrics, shutdown).await)
}

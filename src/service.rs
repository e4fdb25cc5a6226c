//! The whole service, put together from its parts: what `serve` runs, and `demo`, and the tests.

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{Auth, AuthSettings},
    destination::{Destination, DestinationSettings},
    mapping,
    metrics::Metrics,
    outbox::{self, Outbox},
    server::{self, Server},
};

/// Everything that the parts want to know.
#[derive(Clone, Debug)]
pub struct ServiceSettings {
    /// The HTTP face.
    pub server: server::ServerSettings,
    /// Who may send.
    pub auth: AuthSettings,
    /// What is forwarded, and how.
    pub mapping: mapping::MappingSettings,
    /// Where it goes.
    pub destination: DestinationSettings,
    /// How it is delivered.
    pub outbox: outbox::OutboxSettings,
}

impl ServiceSettings {
    /// The most memory that the process takes, in bytes. [`outbox`] says what the sum is made of.
    fn memory_limit(&self) -> usize {
        let bodies = (4 * self.server.max_body).max(16 << 20);
        let sum = self.outbox.max_held + bodies + (80 << 20);
        sum + sum / 4
    }
}

/// A service that is ready to serve: its outbox is at work already.
#[derive(Debug)]
pub struct Service(Server);

impl Service {
    /// Puts the parts together, which count in `metrics`.
    ///
    /// # Errors
    /// When there can be no client for the destination, see [`Destination::new`].
    pub fn new(settings: ServiceSettings, metrics: Metrics) -> reqwest::Result<Self> {
        let memory_limit = settings.memory_limit();
        let ServiceSettings { server: settings, auth, mapping, destination, outbox } = settings;
        metrics.set_memory_limit(memory_limit);
        let destination = Destination::new(destination, outbox.concurrency)?;
        let outbox = Outbox::start(outbox, destination, metrics.clone());
        Ok(Self(Server { settings, auth: Auth::new(auth), mapping, outbox, metrics }))
    }

    /// What holds the events.
    pub fn outbox(&self) -> &Outbox {
        &self.0.outbox
    }

    /// Serves on `listener` until `shutdown`, and then until all is done or the grace is over. Returns how many events
    /// were abandoned.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) -> usize {
        self.0.serve(listener, shutdown).await
    }
}

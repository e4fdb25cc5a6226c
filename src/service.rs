//! The whole service, put together from its parts: what `serve` runs, and `demo`, and the tests.

use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{Auth, AuthSettings},
    destination::{Destination, DestinationSettings},
    mapping::MappingSettings,
    metrics::Metrics,
    outbox::{self, Outbox},
    server::{Server, ServerSettings},
};

/// Everything that the parts want to know.
#[derive(Clone, Debug)]
pub struct ServiceSettings {
    /// The HTTP face.
    pub server: ServerSettings,
    /// Who may send.
    pub auth: AuthSettings,
    /// What is forwarded, and how.
    pub mapping: MappingSettings,
    /// Where it goes.
    pub destination: DestinationSettings,
    /// How it is delivered.
    pub outbox: outbox::OutboxSettings,
}

impl ServiceSettings {
    /// The most memory that the process takes, in bytes. `docs/delivery.md` says what the sum is made of.
    fn memory_limit(&self) -> usize {
        let bodies = (4 * self.server.max_body + (8 << 20)).max(16 << 20);
        let sum = self.outbox.max_held + bodies + (104 << 20);
        sum + sum / 4
    }
}

/// A service that is ready to serve: its outbox is at work already.
#[derive(Debug)]
pub struct Service {
    server: Server,
    reload: Reload,
}

/// Changes the settings of a service while it runs.
#[derive(Clone, Debug)]
pub struct Reload {
    settings: ServiceSettings,
    server: watch::Sender<ServerSettings>,
    auth: Auth,
    mapping: watch::Sender<MappingSettings>,
    outbox: Outbox,
}

impl Service {
    /// Puts the parts together, which count in `metrics`.
    pub fn new(settings: ServiceSettings, metrics: Metrics) -> Self {
        metrics.set_memory_limit(settings.memory_limit());
        let now = settings.clone();
        let destination = Destination::new(now.destination);
        let outbox = Outbox::start(now.outbox, destination, metrics.clone());
        let auth = Auth::new(now.auth);
        let (server, mapping) = (watch::Sender::new(now.server), watch::Sender::new(now.mapping));
        let (settings_now, mapping_now) = (server.subscribe(), mapping.subscribe());
        let reload = Reload { settings, server, auth: auth.clone(), mapping, outbox: outbox.clone() };
        Self { server: Server { settings: settings_now, auth, mapping: mapping_now, outbox, metrics }, reload }
    }

    /// What changes its settings while it serves.
    pub fn reload(&self) -> Reload {
        self.reload.clone()
    }

    /// What holds the events.
    pub fn outbox(&self) -> &Outbox {
        &self.server.outbox
    }

    /// Serves on `listener` until `shutdown`, and then until all is done or the grace is over. Returns how many events
    /// were abandoned.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) -> usize {
        self.server.serve(listener, shutdown).await
    }
}

impl Reload {
    /// The settings as they are now.
    pub fn settings(&self) -> &ServiceSettings {
        &self.settings
    }

    /// Goes by other settings from now on. Returns the names of those that have changed and that only a restart changes.
    pub fn reload(&mut self, mut settings: ServiceSettings) -> Vec<&'static str> {
        let old = &self.settings;
        let destination = Destination::new(settings.destination.clone());
        let fixed = [
            ("server.listen", settings.server.listen != old.server.listen),
            ("server.max_body", settings.server.max_body != old.server.max_body),
            ("delivery.max_held", settings.outbox.max_held != old.outbox.max_held),
        ];
        settings.server.listen = old.server.listen;
        settings.server.max_body = old.server.max_body;
        settings.outbox.max_held = old.outbox.max_held;
        // Refusals and pauses were about the old ones.
        let is_elsewhere = settings.destination.webhook_url != old.destination.webhook_url
            || settings.destination.authorization.value != old.destination.authorization.value
            || settings.mapping.format != old.mapping.format;
        self.server.send_replace(settings.server.clone());
        self.auth.reload(settings.auth.clone());
        self.mapping.send_replace(settings.mapping.clone());
        self.outbox.reload(&settings.outbox, destination);
        if is_elsewhere {
            self.outbox.destination_changed();
        }
        self.settings = settings;
        fixed.into_iter().filter_map(|(name, has_changed)| has_changed.then_some(name)).collect()
    }

    /// Waits until Variance answers as if the webhook URL were wrong.
    pub async fn url_doubted(&self) {
        self.outbox.url_doubted().await;
    }
}

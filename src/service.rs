//! The whole service, put together from its parts, for `serve`, `demo` and the tests.

use std::mem;

use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{Auth, AuthSettings},
    destination::{Destination, DestinationSettings},
    mapping::MappingSettings,
    metrics::Metrics,
    outbox::{self, Outbox},
    server::{self, Server, ServerSettings},
};

/// The settings of the service's parts.
#[derive(Clone, Debug)]
pub struct ServiceSettings {
    /// The HTTP server.
    pub server: ServerSettings,
    /// The credentials of senders.
    pub auth: AuthSettings,
    /// The rules by which events are mapped.
    pub mapping: MappingSettings,
    /// The place to which events are posted.
    pub destination: DestinationSettings,
    /// The rules of delivery.
    pub outbox: outbox::OutboxSettings,
}

/// The memory of connections, remembered outcomes, waiting log lines and the program itself.
const BESIDE: usize = 104 << 20;

impl ServiceSettings {
    /// Returns the most memory that the process takes, in bytes. `docs/delivery.md` lists the parts of the sum.
    fn memory_limit(&self) -> usize {
        let sum = self.outbox.max_held + server::memory_of_bodies(self.server.max_body) + BESIDE;
        sum + sum / 4
    }
}

/// A service that is ready to serve, with its outbox at work already.
#[derive(Debug)]
pub struct Service {
    server: Server,
    reload: Reload,
}

/// A handle that changes the settings of a service while it runs.
#[derive(Clone, Debug)]
pub struct Reload {
    settings: ServiceSettings,
    server: watch::Sender<ServerSettings>,
    auth: Auth,
    mapping: watch::Sender<MappingSettings>,
    outbox: Outbox,
}

impl Service {
    /// Puts the parts together. They count in `metrics`.
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

    /// Returns a handle that changes the settings while the service runs.
    pub fn reload(&self) -> Reload {
        self.reload.clone()
    }

    /// Returns the outbox, which holds the events.
    pub fn outbox(&self) -> &Outbox {
        &self.server.outbox
    }

    /// Serves on `listener` until `shutdown`, and then until its work is finished or the grace is over. Returns how
    /// many events were abandoned.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) -> usize {
        self.server.serve(listener, shutdown).await
    }
}

impl Reload {
    /// Returns the current settings.
    pub fn settings(&self) -> &ServiceSettings {
        &self.settings
    }

    /// Applies other settings. Returns the names of those that have changed but take a restart.
    pub fn reload(&mut self, mut settings: ServiceSettings) -> Vec<&'static str> {
        let old = &self.settings;
        let destination = Destination::new(settings.destination.clone());
        // The fields are named one by one, so that a new setting does not compile until it is considered here.
        let ServerSettings {
            listen,
            max_body,
            webhook_deadline: _,
            batch_deadline: _,
            shutdown_grace: _,
            head_timeout: _,
        } = &mut settings.server;
        let outbox::OutboxSettings { max_held, concurrency: _, retry_for: _, abandon: _, pacing: _ } =
            &mut settings.outbox;
        let fixed = [
            keep("server.listen", listen, old.server.listen),
            keep("server.max_body", max_body, old.server.max_body),
            keep("delivery.max_held", max_held, old.outbox.max_held),
        ];
        // Earlier refusals and pauses concern the old destination.
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
        fixed.into_iter().flatten().collect()
    }

    /// Waits until Variance answers as if the webhook URL were wrong.
    pub async fn url_doubted(&self) {
        self.outbox.url_doubted().await;
    }
}

/// Keeps the old value of a setting that takes a restart. Returns its name if the new value is another.
fn keep<T: Copy + PartialEq>(name: &'static str, value: &mut T, old: T) -> Option<&'static str> {
    (mem::replace(value, old) != old).then_some(name)
}

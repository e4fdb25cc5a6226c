//! The real service, as `serve` runs it, on a free port.

use std::{fmt::Display, io::Write, net::SocketAddr, time::Duration};

use flate2::{Compression, write::GzEncoder};
use http::HeaderValue;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use variance_connector::{
    auth::AuthSettings,
    backoff::Backoff,
    destination::{Authorization, CONNECTIONS_KEPT_FOR, DestinationSettings, Network},
    mapping,
    metrics::Metrics,
    outbox::{self, LogPacing, Outbox, Pacing, SuspectPacing},
    server,
    service::{self, ServiceSettings},
};

use crate::variance::Variance;

/// The time for which a test waits for something before it fails instead of hanging forever: longer than any wait that
/// can succeed.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub const AUTHORIZATION: &str = "Bearer variance-credential";

/// A running service, which ends when it is dropped.
pub struct Service {
    pub address: SocketAddr,
    pub outbox: Outbox,
    pub client: Client,
    shutdown: CancellationToken,
    task: JoinHandle<usize>,
}

/// A reply of the service.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Service {
    /// Starts the service in front of `variance`, with the usual settings as altered by `change`.
    pub async fn start(variance: &Variance, change: impl FnOnce(&mut ServiceSettings)) -> Self {
        install_provider();
        let mut authorization = HeaderValue::from_static(AUTHORIZATION);
        authorization.set_sensitive(true);
        // Durations are a hundredth of the real ones where tests would have to wait for them.
        let mut settings = ServiceSettings {
            server: server::ServerSettings {
                listen: "127.0.0.1:0".parse().unwrap(),
                webhook_deadline: Duration::from_secs(20),
                batch_deadline: Duration::from_secs(60),
                max_body: 64 << 20,
                shutdown_grace: Duration::from_secs(8),
                head_timeout: server::HEAD_TIMEOUT,
            },
            auth: AuthSettings::default(),
            mapping: mapping::MappingSettings::default(),
            destination: DestinationSettings {
                webhook_url: variance.url().parse().unwrap(),
                authorization: Authorization { value: authorization, file: None },
                attempt_timeout: Duration::from_secs(10),
                network: Network::direct(&variance.url().parse().unwrap()).unwrap(),
                connections_kept_for: CONNECTIONS_KEPT_FOR,
            },
            outbox: outbox::OutboxSettings {
                abandon: true,
                concurrency: 64,
                retry_for: Duration::from_secs(3600),
                max_held: 64 << 20,
                pacing: Pacing {
                    backoff: Backoff::new(Duration::from_millis(1), Duration::from_millis(300)),
                    suspects: SuspectPacing { gap: Duration::from_millis(1), round: Duration::from_millis(150) },
                    open_for: Backoff::new(Duration::from_millis(10), Duration::from_millis(600)),
                    recent: Duration::from_millis(20),
                    refusals_known_for: Duration::from_secs(3600),
                    log: LogPacing { change: Duration::from_millis(100), lasting: Duration::from_secs(3) },
                },
            },
        };
        change(&mut settings);
        settings.destination.network = Network::direct(&settings.destination.webhook_url).unwrap();
        let listener = server::bind(settings.server.listen).unwrap();
        let address = listener.local_addr().unwrap();
        let service = service::Service::new(settings, Metrics::new());
        let (outbox, shutdown) = (service.outbox().clone(), CancellationToken::new());
        let task = tokio::spawn(service.serve(listener, shutdown.clone()));
        Self { address, outbox, client: client(), shutdown, task }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Reply {
        Reply::of(self.client.post(self.url(path)).body(body)).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        Reply::of(self.client.get(self.url(path))).await
    }

    /// The value of a metric, with its labels if it has any; zero if it is not there.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.text;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until nothing is held.
    pub async fn emptied(&self) {
        timeout(PATIENCE, self.outbox.emptied()).await.expect("what is held leaves");
    }

    /// Asks the service to stop, as SIGTERM does.
    pub fn shut_down(&self) {
        self.shutdown.cancel();
    }

    /// Stops the service and returns how many events it abandoned.
    pub async fn stopped(mut self) -> usize {
        self.shut_down();
        (&mut self.task).await.unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Reply {
    pub async fn of(request: RequestBuilder) -> Self {
        let response = request.send().await.expect("the service replies");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self { status, headers, text: response.text().await.expect("the service ends its reply") }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("a reply is JSON, not {:?}", self.text))
    }

    /// The counts of a reply, in the order of its fields, without the problems.
    pub fn counts(&self) -> [u64; 6] {
        let json = self.json();
        ["received", "delivered", "filtered", "refused", "invalid", "held"]
            .map(|field| json[field].as_u64().unwrap_or_else(|| panic!("no {field} in {json}")))
    }

    /// The reasons of all problems.
    pub fn reasons(&self) -> Vec<String> {
        let json = self.json();
        let problems = json["problems"].as_array().expect("every reply has problems, if only none");
        problems.iter().map(|problem| problem["reason"].as_str().unwrap().to_owned()).collect()
    }
}

/// Returns an event with this id.
pub fn event(id: impl Display) -> String {
    json!({"event": "e", "uuid": id.to_string(), "distinct_id": "d"}).to_string()
}

pub fn gzip(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::best());
    packer.write_all(bytes.as_ref()).unwrap();
    packer.finish().unwrap()
}

/// Creates a client that fails rather than wait forever.
pub fn client() -> Client {
    install_provider();
    Client::builder().no_proxy().timeout(PATIENCE).build().unwrap()
}

/// Installs the TLS provider that `main` installs.
pub fn install_provider() {
    // Another test may have been faster.
    drop(rustls::crypto::ring::default_provider().install_default());
}

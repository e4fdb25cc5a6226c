//! `demo`: the whole way on one machine, with nothing to configure.
//!
//! A stand-in for Variance listens on a free port, the real service runs in front of it, and sample traffic goes through
//! over HTTP, just as PostHog would send it.

use std::{
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::{Context, ensure};
use axum::{
    Router,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    routing::post,
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::pretty::indent;
use crate::{
    auth::AuthSettings,
    destination::{Authorization, DestinationSettings},
    mapping, outbox,
    posthog::Body,
    server, service,
};

/// The credential of the stand-in, and the token that a sender must present. Both are worth nothing elsewhere.
const AUTHORIZATION: &str = "Bearer demo-variance-credential";
const TOKEN: &str = "demo-sender-token";

/// When the sender is told that Variance does not have an event: sooner than usual, for those who watch.
const WEBHOOK_DEADLINE: Duration = Duration::from_secs(1);

/// The longest that the next probe takes to come, with much room.
const HELD_ARRIVES_WITHIN: Duration = Duration::from_secs(10);

/// One request of the sample traffic.
#[derive(Deserialize)]
struct Sample {
    what: String,
    path: String,
    /// Type and id of the calls that must arrive.
    arrives: Vec<String>,
    /// Whether Variance is down until the sender has its reply.
    #[serde(default)]
    outage: bool,
    body: Box<RawValue>,
}

/// What the stand-in got.
struct Call {
    authorization: String,
    body: Bytes,
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Go on running afterwards, for requests of your own
    #[arg(long)]
    keep_running: bool,
}

/// Runs the demonstration. Fails if anything else arrives than should.
pub(super) fn run(Args { keep_running }: Args) -> anyhow::Result<()> {
    super::runtime()?.block_on(demonstrate(keep_running))
}

async fn demonstrate(keep_running: bool) -> anyhow::Result<()> {
    let samples: Vec<Sample> = serde_json::from_str(include_str!("demo/traffic.json")).expect("the samples are JSON");
    let is_down = Arc::new(AtomicBool::new(false));
    let (calls, mut arrived) = mpsc::unbounded_channel();
    let variance = stand_in(calls, Arc::clone(&is_down)).await?;
    let mapping = mapping::MappingSettings::default();
    let service = Service::start(variance, mapping.clone()).await?;
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "A stand-in for Variance listens on http://{variance}, the connector on http://{}.",
        service.address
    )?;

    let client = reqwest::Client::builder().no_proxy().build().context("the sender's HTTP client")?;
    let mut total = Total::default();
    for sample in &samples {
        let text = sample.body.get();
        is_down.store(sample.outage, Ordering::Relaxed);
        writeln!(out, "\n● {} (POST {}, {} bytes)", sample.what, sample.path, text.len())?;
        let request = client.post(format!("http://{}{}", service.address, sample.path));
        let reply =
            request.bearer_auth(TOKEN).body(text.to_owned()).send().await.context("the connector must reply")?;
        let status = reply.status();
        let reply: Value = serde_json::from_slice(&reply.bytes().await?).context("a reply must be JSON")?;

        let mut ids = Vec::new();
        while let Ok(call) = arrived.try_recv() {
            ids.push(show_call(&mut out, &call)?);
        }
        show_rest(&mut out, text, &mapping, &reply)?;
        writeln!(out, "  ← {status}: {}", counts(&reply))?;
        if sample.outage {
            ensure!(ids.is_empty(), "{ids:?} arrived although Variance was down");
            writeln!(out, "  … Variance is back, and nobody sends anything again")?;
            is_down.store(false, Ordering::Relaxed);
            let call = timeout(HELD_ARRIVES_WITHIN, arrived.recv()).await.context("what was held did not arrive")?;
            ids.push(show_call(&mut out, &call.context("the stand-in must be there")?)?);
        }
        ids.sort();
        ensure!(ids == sample.arrives, "{:?} should have arrived, but {ids:?} did", sample.arrives);
        let expected = if sample.outage { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        ensure!(status == expected, "the reply should have been {expected}");
        total.add(&reply, ids.len())?;
    }
    total.show(&mut out)?;
    if keep_running {
        let address = service.address;
        writeln!(out, "\nStill running, until Ctrl-C. Try it yourself:\n  curl -i http://{address}/webhook \\")?;
        writeln!(
            out,
            "    -H 'Authorization: Bearer {TOKEN}' -H 'Content-Type: application/json' \\\n    -d '{{\"event\":\"hello\",\"distinct_id\":\"me\"}}'"
        )?;
        loop {
            tokio::select! {
                Some(call) = arrived.recv() => drop(show_call(&mut out, &call)?),
                result = tokio::signal::ctrl_c() => break result.context("waiting for Ctrl-C")?,
            }
        }
    }
    service.stop().await
}

/// A server that takes everything, as Variance does, unless it is down. It ends with the runtime.
async fn stand_in(calls: mpsc::UnboundedSender<Call>, is_down: Arc<AtomicBool>) -> anyhow::Result<SocketAddr> {
    let take = post(async move |headers: HeaderMap, body: Bytes| {
        if is_down.load(Ordering::Relaxed) {
            return StatusCode::BAD_GATEWAY;
        }
        let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let call = Call { authorization: authorization.unwrap_or_default().to_owned(), body };
        // When nobody looks any more, there is nothing to tell.
        drop(calls.send(call));
        StatusCode::OK
    });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("a free port for the stand-in")?;
    let address = listener.local_addr()?;
    let serve = axum::serve(listener, Router::new().route("/webhooks/posthog", take));
    tokio::spawn(async move { serve.await });
    Ok(address)
}

/// The service, as `serve` runs it.
struct Service {
    address: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<usize>,
}

impl Service {
    async fn start(variance: SocketAddr, mapping: mapping::MappingSettings) -> anyhow::Result<Self> {
        let mut authorization = HeaderValue::from_static(AUTHORIZATION);
        authorization.set_sensitive(true);
        let destination = DestinationSettings {
            webhook_url: format!("http://{variance}/webhooks/posthog").parse().expect("an address makes a URL"),
            authorization: Authorization { value: authorization, file: None },
            attempt_timeout: Duration::from_secs(10),
            use_proxy: false,
        };
        let server = server::ServerSettings {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            webhook_deadline: WEBHOOK_DEADLINE,
            shutdown_grace: Duration::from_secs(2),
            ..server::ServerSettings::default()
        };
        let tokens = vec![TOKEN.parse().expect("long enough")];
        let settings = service::ServiceSettings {
            server,
            auth: AuthSettings { tokens, signing_secrets: Vec::new() },
            mapping,
            destination,
            outbox: outbox::Settings::default(),
        };
        let listener = server::bind(settings.server.listen).context("a free port for the connector")?;
        let address = listener.local_addr()?;
        let shutdown = CancellationToken::new();
        let service = service::Service::new(settings).context("a client for the stand-in")?;
        Ok(Self { address, task: tokio::spawn(service.serve(listener, shutdown.clone())), shutdown })
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        let abandoned = self.task.await.context("the service must end well")?;
        ensure!(abandoned == 0, "{abandoned} events were still held");
        Ok(())
    }
}

/// Prints a call as it arrived, and returns its type and id.
fn show_call(out: &mut impl Write, call: &Call) -> anyhow::Result<String> {
    let body: Value = serde_json::from_slice(&call.body).context("what arrives must be JSON")?;
    let text = |key: &str| body[key].as_str().unwrap_or("-").to_owned();
    ensure!(call.authorization == AUTHORIZATION, "the call came without its credential");
    let masked = format!("Bearer …{}", &call.authorization[call.authorization.len() - 2..]);
    let name = body["event"].as_str().map(|name| format!(" \"{name}\"")).unwrap_or_default();
    writeln!(out, "  → {}{name} arrived at Variance (Authorization: {masked})", text("type"))?;
    let mut lines = Vec::new();
    indent(&call.body, &mut lines)?;
    for line in String::from_utf8_lossy(&lines).lines() {
        writeln!(out, "      {line}")?;
    }
    Ok(format!("{} {}", text("type"), text("messageId")))
}

/// Prints why the other events of a body did not arrive: filtered by the very rule that the service goes by, or named as a
/// problem in its reply.
fn show_rest(
    out: &mut impl Write,
    text: &str,
    mapping: &mapping::MappingSettings,
    reply: &Value,
) -> anyhow::Result<()> {
    let body = Body::parse(text, |element| element.event).context("the samples are bodies")?;
    for event in body.elements.into_iter().flatten() {
        if let Err(reason) = mapping.message(&event, SystemTime::now(), &mut Vec::new()) {
            writeln!(out, "  ✕ {} was filtered: {reason}", event.name.as_str())?;
        }
    }
    for problem in reply["problems"].as_array().into_iter().flatten() {
        let reason = problem["reason"].as_str().unwrap_or("-");
        writeln!(out, "  ✕ the event at index {}: {reason}", problem["index"])?;
    }
    Ok(())
}

/// The counts of a reply that are not zero, in the reply's order.
fn counts(reply: &Value) -> String {
    let count = |field| reply[field].as_u64().filter(|count| *count > 0).map(|count| format!("{count} {field}"));
    let counts = ["received", "delivered", "filtered", "refused", "invalid", "held"].into_iter().filter_map(count);
    counts.collect::<Vec<_>>().join(", ")
}

/// What the replies say in all, and what arrived.
#[derive(Default)]
struct Total {
    received: u64,
    delivered: u64,
    filtered: u64,
    invalid: u64,
    held: u64,
    arrived: u64,
}

impl Total {
    fn add(&mut self, reply: &Value, arrived: usize) -> anyhow::Result<()> {
        let count = |key: &str| reply[key].as_u64().with_context(|| format!("a reply must have {key}"));
        self.received += count("received")?;
        self.delivered += count("delivered")?;
        self.filtered += count("filtered")?;
        self.invalid += count("invalid")?;
        self.held += count("held")?;
        self.arrived += arrived as u64;
        Ok(())
    }

    fn show(&self, out: &mut impl Write) -> anyhow::Result<()> {
        let Self { received, delivered, filtered, invalid, held, arrived } = *self;
        writeln!(
            out,
            "\n{received} events received = {delivered} delivered + {filtered} filtered + {invalid} invalid + {held} held, \
             which was delivered without being sent again.\n{arrived} calls arrived at Variance, each once."
        )?;
        // The event that was held is among the delivered too: its re-send was told so.
        ensure!(received == delivered + filtered + invalid + held, "the counts do not add up");
        ensure!(arrived == delivered, "{arrived} calls arrived, but {delivered} were said to be delivered");
        Ok(())
    }
}

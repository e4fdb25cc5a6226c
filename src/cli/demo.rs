//! `demo`: the whole way of an event on one machine, with nothing to configure.
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
    http::{HeaderMap, StatusCode, header},
    routing::post,
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use super::pretty::indent;
use crate::{
    config::{self, Flags},
    mapping::MappingSettings,
    metrics::Metrics,
    posthog::Body,
    server,
    service::{Service, ServiceSettings},
};

/// The credential of the stand-in, and the token that a sender must present. Both are worthless elsewhere.
const AUTHORIZATION: &str = "Bearer demo-variance-credential";
const TOKEN: &str = "demo-sender-token";

/// The time after which the sender learns that Variance does not have an event: sooner than usual, for those who watch.
const WEBHOOK_DEADLINE: &str = "1s";

/// The longest that the next probe takes to come, with plenty of room.
const HELD_ARRIVES_WITHIN: Duration = Duration::from_secs(10);

/// The counts of a reply, in their order there.
const COUNTS: [&str; 6] = ["received", "delivered", "filtered", "refused", "invalid", "held"];
type Counts = [u64; COUNTS.len()];

/// One request of the sample traffic.
#[derive(Deserialize)]
struct Sample {
    what: String,
    path: String,
    /// The type and id of each call that must arrive.
    arrives: Vec<String>,
    /// True if Variance is down until the sender has its reply.
    #[serde(default)]
    outage: bool,
    body: Box<RawValue>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Go on running afterwards, for requests of your own
    #[arg(long)]
    keep_running: bool,
}

/// Runs the demonstration. Fails if anything arrives that should not, or does not that should.
pub(super) fn run(Args { keep_running }: Args) -> anyhow::Result<()> {
    super::runtime()?.block_on(demonstrate(keep_running))
}

async fn demonstrate(keep_running: bool) -> anyhow::Result<()> {
    let samples: Vec<Sample> = serde_json::from_str(include_str!("demo/traffic.json")).expect("the samples are JSON");
    let is_down = Arc::new(AtomicBool::new(false));
    let (calls, mut arrived) = mpsc::unbounded_channel();
    let variance = stand_in(calls, Arc::clone(&is_down)).await?;
    let settings = settings(variance);
    let mapping = settings.mapping.clone();
    let listener = server::bind(settings.server.listen).context("there is no free port for the connector")?;
    let address = listener.local_addr()?;
    let shutdown = CancellationToken::new();
    let service = Service::new(settings, Metrics::new());
    let service = tokio::spawn(service.serve(listener, shutdown.clone()));
    let mut out = io::stdout().lock();
    writeln!(out, "A stand-in for Variance listens on http://{variance}, the connector on http://{address}.")?;

    let client =
        reqwest::Client::builder().no_proxy().build().context("the HTTP client of the sender cannot be set up")?;
    let (mut total, mut arrived_in_all) = (Counts::default(), 0);
    for sample in &samples {
        let text = sample.body.get();
        is_down.store(sample.outage, Ordering::Relaxed);
        writeln!(out, "\n● {} (POST {}, {} bytes)", sample.what, sample.path, text.len())?;
        let request = client.post(format!("http://{address}{}", sample.path)).bearer_auth(TOKEN);
        let reply = request.body(text.to_owned()).send().await.context("the connector did not reply")?;
        let status = reply.status();
        let reply: Value = serde_json::from_slice(&reply.bytes().await?).context("the reply is not JSON")?;

        let mut ids = Vec::new();
        while let Ok(call) = arrived.try_recv() {
            ids.push(show_call(&mut out, &call)?);
        }
        show_rest(&mut out, text, &mapping, &reply)?;
        let counts = COUNTS.map(|name| reply[name].as_u64().unwrap_or_default());
        let shown = COUNTS.iter().zip(counts).filter(|(_, count)| *count > 0);
        let shown: Vec<_> = shown.map(|(name, count)| format!("{count} {name}")).collect();
        writeln!(out, "  ← {status}: {}", shown.join(", "))?;
        if sample.outage {
            ensure!(ids.is_empty(), "{ids:?} arrived although Variance was down");
            writeln!(out, "  … Variance is back, and nobody sends anything again")?;
            is_down.store(false, Ordering::Relaxed);
            let call = timeout(HELD_ARRIVES_WITHIN, arrived.recv()).await.context("the held event did not arrive")?;
            ids.push(show_call(&mut out, &call.context("the stand-in for Variance has ended")?)?);
        }
        ids.sort();
        ensure!(ids == sample.arrives, "{:?} should have arrived, but {ids:?} did", sample.arrives);
        let expected = if sample.outage { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        ensure!(status == expected, "the reply is {status}, but should be {expected}");
        total.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
        arrived_in_all += ids.len() as u64;
    }
    show_total(&mut out, total, arrived_in_all)?;
    if keep_running {
        writeln!(out, "\nStill running, until Ctrl-C. Try it yourself:\n  curl -i http://{address}/webhook \\")?;
        writeln!(
            out,
            "    -H 'Authorization: Bearer {TOKEN}' -H 'Content-Type: application/json' \\\n    -d '{{\"event\":\"hello\",\"distinct_id\":\"me\"}}'"
        )?;
        loop {
            tokio::select! {
                Some(call) = arrived.recv() => drop(show_call(&mut out, &call)?),
                result = tokio::signal::ctrl_c() => break result.context("Ctrl-C cannot be waited for")?,
            }
        }
    }
    shutdown.cancel();
    let abandoned = service.await.context("the service has failed")?;
    ensure!(abandoned == 0, "{abandoned} events were still held");
    Ok(())
}

/// Starts a server that takes every call with the right credential, as Variance does, unless it is down. It ends with
/// the runtime.
async fn stand_in(calls: mpsc::UnboundedSender<Bytes>, is_down: Arc<AtomicBool>) -> anyhow::Result<SocketAddr> {
    let take = post(async move |headers: HeaderMap, body: Bytes| {
        if is_down.load(Ordering::Relaxed) {
            return StatusCode::BAD_GATEWAY;
        }
        if headers.get(header::AUTHORIZATION).is_none_or(|value| value != AUTHORIZATION) {
            return StatusCode::UNAUTHORIZED;
        }
        // Once nobody looks any longer, the call need not be shown.
        drop(calls.send(body));
        StatusCode::OK
    });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .context("there is no free port for the stand-in for Variance")?;
    let address = listener.local_addr()?;
    let serve = axum::serve(listener, Router::new().route("/webhooks/posthog", take));
    tokio::spawn(async move { serve.await });
    Ok(address)
}

/// Returns the settings that `serve` would read from these variables.
fn settings(variance: SocketAddr) -> ServiceSettings {
    let webhook_url = format!("http://{variance}/webhooks/posthog");
    let variables = [
        ("VARIANCE_WEBHOOK_URL", webhook_url.as_str()),
        ("VARIANCE_AUTHORIZATION", AUTHORIZATION),
        ("CONNECTOR_LISTEN", "127.0.0.1:0"),
        ("CONNECTOR_TOKEN", TOKEN),
        ("CONNECTOR_WEBHOOK_DEADLINE", WEBHOOK_DEADLINE),
        ("CONNECTOR_SHUTDOWN_GRACE", "2s"),
    ];
    let variables = variables.map(|(name, value)| (name.into(), value.into()));
    config::load(&Flags::default(), &variables.into())
        .expect("the settings of the demonstration are right")
        .config
        .service
}

/// Prints a call as it arrived, and returns its type and id.
fn show_call(out: &mut impl Write, call: &[u8]) -> anyhow::Result<String> {
    let body: Value = serde_json::from_slice(call).context("the call that arrived is not JSON")?;
    let text = |key: &str| body[key].as_str().unwrap_or("-");
    let masked = format!("Bearer …{}", &AUTHORIZATION[AUTHORIZATION.len() - 2..]);
    let name = body["event"].as_str().map(|name| format!(" \"{name}\"")).unwrap_or_default();
    writeln!(out, "  → {}{name} arrived at Variance (Authorization: {masked})", text("type"))?;
    let mut lines = Vec::new();
    indent(call, &mut lines)?;
    for line in String::from_utf8_lossy(&lines).lines() {
        writeln!(out, "      {line}")?;
    }
    Ok(format!("{} {}", text("type"), text("messageId")))
}

/// Prints why the other events of a body did not arrive: filtered by the same rules as in the service, or named as a
/// problem in its reply.
fn show_rest(out: &mut impl Write, text: &str, mapping: &MappingSettings, reply: &Value) -> anyhow::Result<()> {
    let filtered = Body::parse(text, |element| {
        let event = element.event.ok()?;
        let reason = mapping.message(&event, SystemTime::now(), &mut Vec::new()).err()?;
        Some(format!("{} was filtered: {reason}", event.name.as_str()))
    });
    for filtered in filtered.context("a sample is not a body")?.elements.into_iter().flatten() {
        writeln!(out, "  ✕ {filtered}")?;
    }
    for problem in reply["problems"].as_array().into_iter().flatten() {
        let reason = problem["reason"].as_str().unwrap_or("-");
        writeln!(out, "  ✕ the event at index {}: {reason}", problem["index"])?;
    }
    Ok(())
}

/// Prints the sum of the replies, and how many calls arrived. Fails if they do not add up.
fn show_total(out: &mut impl Write, total: Counts, arrived: u64) -> anyhow::Result<()> {
    let [received, delivered, filtered, _, invalid, held] = total;
    writeln!(
        out,
        "\n{received} events received = {delivered} delivered + {filtered} filtered + {invalid} invalid + {held} held, \
         which was delivered without being sent again.\n{arrived} calls arrived at Variance, each once."
    )?;
    // The held event is counted as delivered too, since its re-send was answered that way.
    ensure!(received == delivered + filtered + invalid + held, "the counts do not add up");
    ensure!(arrived == delivered, "{arrived} calls arrived, but {delivered} were said to be delivered");
    Ok(())
}

//! `serve`: runs the service.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use self::reload::Reloader;
use super::Failed;
use crate::{
    config::{self, Flags, Loaded, Variables},
    metrics::Metrics,
    server,
    service::{self, Service},
    shutdown, telemetry,
};

mod reload;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file; overrides `CONNECTOR_CONFIG`
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The address and port to listen on
    #[arg(long, value_name = "ADDRESS")]
    pub(super) listen: Option<String>,
    /// What is logged: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    pub(super) log_level: Option<String>,
    /// What a line of the log looks like
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"])]
    pub(super) log_format: Option<String>,
}

/// Runs the service until it is asked to stop.
pub(super) fn run(args: Args, variables: &Variables) -> anyhow::Result<()> {
    let flags = Flags::from(args);
    let loaded = config::load(&flags, variables)?;
    let url_file = loaded.webhook_url_file();
    let Loaded { config, settings: _, warnings } = loaded;
    let metrics = Metrics::new();
    let log = telemetry::init(&config.log, metrics.clone()).context("the log did not start")?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    super::runtime()?.block_on(async {
        let service = config.service;
        let signals = shutdown::on_signal().and_then(|stop| Ok((stop, signal(SignalKind::hangup())?)));
        let (stop, hang_up) = signals.context("signals cannot be handled")?;
        let address = service.server.listen;
        let listener = server::bind(address).with_context(|| format!("cannot listen on {address} (server.listen)"))?;
        raise_descriptor_limit(service.outbox.concurrency);
        announce(&service, listener.local_addr()?);
        let service = Service::new(service, metrics);
        let outbox = service.outbox().clone();
        let reloader = Reloader { flags, variables, url_file, service: service.reload(), log: &log };
        tokio::select! {
            _ = service.serve(listener, stop.asked) => Ok(()),
            () = stop.at_once.cancelled() => {
                tracing::error!("another signal: ending at once");
                let abandoned = outbox.close();
                tracing::info!(abandoned, "stopped");
                Err(Failed.into())
            }
            never = reloader.run(hang_up) => match never {},
        }
    })
}

/// Raises the limit of open files. Containers often start with one below what the server and the outbox may need
/// together.
fn raise_descriptor_limit(concurrency: usize) {
    const OTHERS: usize = 64;
    let wanted = (server::MAX_CONNECTIONS + concurrency + OTHERS) as u64;
    match rlimit::increase_nofile_limit(wanted) {
        Ok(limit) if limit < wanted => tracing::warn!(limit, wanted, "the limit of open files is low"),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit of open files could not be raised"),
    }
}

/// Logs the first line, which says what runs here.
fn announce(service: &service::ServiceSettings, address: SocketAddr) {
    let service::ServiceSettings { server: _, auth, mapping, destination, outbox: _ } = service;
    let calls: Vec<_> = mapping.calls.iter().map(|call| call.name()).collect();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        %address,
        variance = destination.webhook_url.host_str().unwrap_or_default(),
        format = mapping.format.name(),
        calls = calls.join(","),
        excluded = mapping.exclude.len(),
        auth = auth.mode(),
        "ready"
    );
}

impl From<Args> for Flags {
    fn from(Args { config, listen, log_level, log_format }: Args) -> Self {
        Self { config, listen, log_level, log_format }
    }
}

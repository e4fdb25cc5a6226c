//! `serve`: the service itself.

use std::{ffi::OsString, path::PathBuf};

use anyhow::Context as _;

use crate::{
    config::{self, Config, Flags, Loaded},
    telemetry,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file; else that in `CONNECTOR_CONFIG`
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The address and port to listen on, before all other settings
    #[arg(long, value_name = "ADDRESS")]
    pub(super) listen: Option<String>,
    /// What is logged, before all other settings
    #[arg(long, value_name = "LEVEL")]
    pub(super) log_level: Option<String>,
    /// What a line of the log looks like, before all other settings
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"])]
    pub(super) log_format: Option<String>,
}

/// Runs the service until it is told to stop.
pub(super) fn run(args: Args, variables: impl IntoIterator<Item = (OsString, OsString)>) -> anyhow::Result<()> {
    let Loaded { config, settings: _, warnings } = config::load(&args.into(), variables)?;
    telemetry::init(&config.log)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Runtime::new().context("the runtime did not start")?;
    runtime.block_on(serve(config))
}

/// Binds, serves until a signal, and finishes what it has.
async fn serve(config: Config) -> anyhow::Result<()> {
    let Config { server: _, auth: _, mapping: _, destination: _, outbox: _, log: _ } = config;
    anyhow::bail!("the service is not part of this build yet")
}

impl From<Args> for Flags {
    fn from(Args { config, listen, log_level, log_format }: Args) -> Self {
        Self { config, listen, log_level, log_format }
    }
}

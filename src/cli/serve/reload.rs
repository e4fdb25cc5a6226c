//! The settings that change while the service runs: all by SIGHUP, and the webhook URL when it seems to be wrong.

use std::{convert::Infallible, ffi::OsStr, path::PathBuf, time::Duration};

use tokio::{select, signal::unix::Signal, time::sleep};

use crate::{
    config::{self, FILE_VARIABLE, Flags, Loaded, Variables},
    repeated::Repeated,
    service::{Reload, ServiceSettings},
    telemetry::Log,
};

/// The least time between two reads of the file of a URL that seems to be wrong.
const URL_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The sources of the settings, and the service that uses them.
pub(super) struct Reloader<'a> {
    pub(super) flags: Flags,
    pub(super) variables: &'a Variables,
    /// The file that the webhook URL was read from.
    pub(super) url_file: Option<PathBuf>,
    pub(super) service: Reload,
    pub(super) log: &'a Log,
}

impl Reloader<'_> {
    /// Reads the settings again on SIGHUP, and the webhook URL when Variance answers as if it were wrong.
    pub(super) async fn run(mut self, mut hang_up: Signal) -> Infallible {
        let failures = Repeated::default();
        loop {
            select! {
                _ = hang_up.recv() => self.read_all(),
                () = self.service.url_doubted(), if self.url_file.is_some() => {
                    self.read_url(&failures);
                    sleep(URL_AGAIN_AFTER).await;
                }
            }
        }
    }

    fn read_all(&mut self) {
        let loaded = match config::load(&self.flags, self.variables) {
            Ok(loaded) => loaded,
            Err(config::Error { problems }) => {
                for problem in problems {
                    tracing::error!("{problem}");
                }
                tracing::error!("the configuration was read again and has problems: the service keeps the old one");
                return;
            }
        };
        self.url_file = loaded.webhook_url_file();
        for warning in loaded.warnings {
            tracing::warn!("{warning}");
        }
        super::raise_descriptor_limit(loaded.config.service.outbox.concurrency);
        let mut fixed = self.service.reload(loaded.config.service);
        fixed.extend(self.log.reload(&loaded.config.log).then_some("log.format"));
        for name in fixed {
            tracing::warn!("{name} has changed, which needs a restart: the service keeps the old value");
        }
        match self.has_file() {
            true => tracing::info!("the configuration was read again"),
            false => tracing::info!(
                "the files of secrets were read again; there is no configuration file, and other settings need a restart"
            ),
        }
    }

    /// True if there is a configuration file. Flags and environment variables stay as they were at the start.
    fn has_file(&self) -> bool {
        let named = self.variables.get(OsStr::new(FILE_VARIABLE));
        self.flags.config.is_some() || named.is_some_and(|path| !path.is_empty())
    }

    fn read_url(&mut self, failures: &Repeated) {
        let current = self.service.settings();
        let problem = match config::destination_alone(&self.flags, self.variables) {
            Ok(Loaded { config, .. }) if config.webhook_url == current.destination.webhook_url => return,
            Ok(Loaded { config, .. }) => {
                let settings = ServiceSettings { destination: config, ..current.clone() };
                self.service.reload(settings);
                return tracing::info!("the webhook URL was read again: it has changed");
            }
            Err(error) => error.to_string(),
        };
        if let Some(times) = failures.note(tokio::time::Instant::now()) {
            tracing::warn!(times, problem, "the webhook URL could not be read again");
        }
    }
}

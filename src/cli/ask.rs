//! Requests of commands to the running service, and its address.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{anyhow, ensure};
use reqwest::{Client, StatusCode, redirect::Policy};

use crate::config::{self, Flags, Variables};

/// The longest that the service may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The name that stands for the service's addresses in a URL.
const NAME: &str = "localhost";

/// Where the service is. No other setting need be there, or be right.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file; else that in `CONNECTOR_CONFIG`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the service listens, before all other settings
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
}

/// The running service, without a proxy.
#[derive(Debug)]
pub(super) struct Service {
    pub address: SocketAddr,
    client: Client,
}

impl Service {
    /// Finds the service that listens where the configuration says.
    pub(super) fn find(args: Args, variables: &Variables) -> anyhow::Result<Self> {
        let Args { config, listen } = args;
        let flags = Flags { config, listen, ..Flags::default() };
        Self::at(config::listen(&flags, variables)?)
    }

    pub(super) fn at(listen: SocketAddr) -> anyhow::Result<Self> {
        let addresses = within_reach(listen);
        // Nothing here speaks TLS, and an image may have no root certificates.
        let client = Client::builder().no_proxy().tls_certs_only([]).redirect(Policy::none()).timeout(TIMEOUT);
        let client = client.resolve_to_addrs(NAME, &addresses).build()?;
        Ok(Self { address: addresses[0], client })
    }

    /// Returns the service's answer on a path, which must have one of these statuses.
    pub(super) async fn get(&self, path: &str, expected: &[StatusCode]) -> anyhow::Result<String> {
        let reply = async {
            let reply = self.client.get(format!("http://{NAME}:{}{path}", self.address.port())).send().await?;
            Ok((reply.status(), reply.text().await?))
        };
        let (status, text) = reply.await.map_err(|error: reqwest::Error| {
            // The last cause alone says what a person needs.
            anyhow!(
                "no reply from {} ({}): is variance-connector running, and is server.listen right?",
                self.address,
                anyhow::Error::new(error.without_url()).root_cause()
            )
        })?;
        ensure!(
            expected.contains(&status),
            "{} answered {path} with {status}: is it variance-connector?",
            self.address
        );
        Ok(text)
    }
}

/// Returns the addresses to try: an unspecified one means all of this machine's. Where IPv6 is switched off, a service
/// that listens on `[::]` is reached by IPv4 alone.
fn within_reach(listen: SocketAddr) -> Vec<SocketAddr> {
    let by = |ip| SocketAddr::new(ip, listen.port());
    let (v4, v6) = (by(Ipv4Addr::LOCALHOST.into()), by(Ipv6Addr::LOCALHOST.into()));
    match listen {
        SocketAddr::V4(address) if address.ip().is_unspecified() => vec![v4],
        SocketAddr::V6(address) if address.ip().is_unspecified() => vec![v6, v4],
        _ => vec![listen],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unspecified_address_is_reached_by_loopback() {
        for (listen, reached) in [
            ("0.0.0.0:8080", &["127.0.0.1:8080"][..]),
            ("[::]:8080", &["[::1]:8080", "127.0.0.1:8080"]),
            ("10.1.2.3:80", &["10.1.2.3:80"]),
        ] {
            let reached: Vec<SocketAddr> = reached.iter().map(|address| address.parse().unwrap()).collect();
            assert_eq!(within_reach(listen.parse().unwrap()), reached);
        }
    }
}

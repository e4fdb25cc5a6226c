//! How commands ask the running service: its address, and one request.

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context as _;
use reqwest::{Client, StatusCode};

use crate::config::{self, Flags};

/// How long the service may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);

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
    /// The service that listens where the configuration says.
    pub(super) fn find(args: Args, variables: impl IntoIterator<Item = (OsString, OsString)>) -> anyhow::Result<Self> {
        let Args { config, listen } = args;
        let flags = Flags { config, listen, ..Flags::default() };
        Self::at(within_reach(config::listen(&flags, variables)?))
    }

    pub(super) fn at(address: SocketAddr) -> anyhow::Result<Self> {
        // Nothing here speaks TLS, and an image may have no root certificates.
        let client = Client::builder().no_proxy().tls_certs_only([]).timeout(TIMEOUT).build()?;
        Ok(Self { address, client })
    }

    /// What it answers on a path.
    pub(super) async fn get(&self, path: &str) -> anyhow::Result<(StatusCode, String)> {
        let reply = async {
            let reply = self.client.get(format!("http://{}{path}", self.address)).send().await?;
            Ok((reply.status(), reply.text().await?))
        };
        reply.await.map_err(reqwest::Error::without_url).with_context(|| format!("no answer from {}", self.address))
    }
}

/// Where to reach what listens there: an unspecified address means all of this machine's.
fn within_reach(mut listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        listen.set_ip(match listen {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    listen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unspecified_address_is_reached_by_loopback() {
        for (listen, reached) in
            [("0.0.0.0:8080", "127.0.0.1:8080"), ("[::]:8080", "[::1]:8080"), ("10.1.2.3:80", "10.1.2.3:80")]
        {
            assert_eq!(within_reach(listen.parse().unwrap()), reached.parse().unwrap());
        }
    }
}

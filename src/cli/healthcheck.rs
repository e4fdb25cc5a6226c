//! `healthcheck`: asks the running service, for images without a tool that could.

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, bail};
use reqwest::{Client, StatusCode};

use crate::config::{self, Flags};

/// How long the service may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file; else that in `CONNECTOR_CONFIG`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the service listens, before all other settings
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
}

/// Succeeds if the service is alive.
pub(super) fn run(args: Args, variables: impl IntoIterator<Item = (OsString, OsString)>) -> anyhow::Result<()> {
    let Args { config, listen } = args;
    let flags = Flags { config, listen, ..Flags::default() };
    let listen = config::listen(&flags, variables)?;
    super::runtime()?.block_on(ask(within_reach(listen)))
}

async fn ask(address: SocketAddr) -> anyhow::Result<()> {
    // Nothing here speaks TLS, and an image may have no root certificates.
    let client = Client::builder().no_proxy().tls_certs_only([]).timeout(TIMEOUT).build()?;
    let reply = client.get(format!("http://{address}/healthz")).send().await;
    let reply = reply.map_err(reqwest::Error::without_url).with_context(|| format!("no answer from {address}"))?;
    match reply.status() {
        StatusCode::OK => Ok(()),
        status => bail!("{address} answered {status}"),
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
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn an_unspecified_address_is_reached_by_loopback() {
        for (listen, reached) in
            [("0.0.0.0:8080", "127.0.0.1:8080"), ("[::]:8080", "[::1]:8080"), ("10.1.2.3:80", "10.1.2.3:80")]
        {
            assert_eq!(within_reach(listen.parse().unwrap()), reached.parse().unwrap());
        }
    }

    #[tokio::test]
    async fn only_200_is_healthy() {
        drop(rustls::crypto::ring::default_provider().install_default());
        for (status, expected) in
            [("200 OK", None), ("503 Service Unavailable", Some("503")), ("302 Found", Some("302"))]
        {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let answer = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 1024];
                let length = stream.read(&mut head).await.unwrap();
                assert!(head[..length].starts_with(b"GET /healthz HTTP/1.1\r\n"));
                let reply = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(reply.as_bytes()).await.unwrap();
            };
            let (result, ()) = tokio::join!(ask(address), answer);
            match (result, expected) {
                (Ok(()), None) => {}
                (Err(error), Some(text)) => assert!(error.to_string().contains(text), "{error:#}"),
                (result, _) => panic!("{status}: {result:?}"),
            }
        }
    }

    #[tokio::test]
    async fn where_nothing_listens_nothing_is_healthy() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = ask(address).await.unwrap_err();
        assert!(format!("{error:#}").starts_with(&format!("no answer from {address}: ")), "{error:#}");
    }
}

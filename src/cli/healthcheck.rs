//! `healthcheck`: asks the running service whether it is alive, for images without another tool that could.

use reqwest::StatusCode;

use super::ask::{self, Service};
use crate::config::Variables;

/// Succeeds if the service is alive.
pub(super) fn run(args: ask::Args, variables: &Variables) -> anyhow::Result<()> {
    let service = Service::find(args, variables)?;
    super::runtime()?.block_on(ask(&service))
}

async fn ask(service: &Service) -> anyhow::Result<()> {
    service.get("/healthz", &[StatusCode::OK]).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn only_200_is_healthy() {
        drop(rustls::crypto::ring::default_provider().install_default());
        for (status, expected) in
            [("200 OK", None), ("503 Service Unavailable", Some("503")), ("302 Found", Some("302"))]
        {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let service = Service::at(address).unwrap();
            let answer = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 1024];
                let length = stream.read(&mut head).await.unwrap();
                assert!(head[..length].starts_with(b"GET /healthz HTTP/1.1\r\n"));
                let reply = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(reply.as_bytes()).await.unwrap();
            };
            let (result, ()) = tokio::join!(ask(&service), answer);
            match (result, expected) {
                (Ok(()), None) => {}
                (Err(error), Some(text)) => assert!(error.to_string().contains(text), "{error:#}"),
                (result, _) => panic!("{status}: {result:?}"),
            }
        }
    }

    #[tokio::test]
    async fn what_listens_on_all_addresses_is_found_where_ipv6_is_switched_off() {
        drop(rustls::crypto::ring::default_provider().install_default());
        // Nothing listens on `[::1]`, as if it did not exist.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let service = Service::at((Ipv6Addr::UNSPECIFIED, listener.local_addr().unwrap().port()).into()).unwrap();
        let answer = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        };
        let (result, ()) = tokio::join!(ask(&service), answer);
        result.unwrap();
    }

    #[tokio::test]
    async fn where_nothing_listens_nothing_is_healthy() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = ask(&Service::at(address).unwrap()).await.unwrap_err();
        assert!(format!("{error:#}").starts_with(&format!("no reply from {address} (Connection refused")), "{error:#}");
    }
}

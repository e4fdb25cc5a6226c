//! The connection to Variance goes through the proxy that the environment names, and no other connection does.

use std::{
    io::{self, BufReader, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use crate::{
    harness::{AUTHORIZATION, Reply, client},
    program::Program,
    tls,
    variance::Variance,
};

const EVENT: &str = r#"{"event":"e","uuid":"u","distinct_id":"d"}"#;

/// Starts a proxy that leads every tunnel to one port of this machine and refuses everything else. Returns its URL, and
/// the heads of the requests that it gets.
fn proxy(target: u16) -> (String, Receiver<String>) {
    slow_proxy(target, Duration::ZERO)
}

/// Does the same, but each tunnel takes this long to make.
fn slow_proxy(target: u16, pause: Duration) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (heads, received) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let Some(head) = tls::head(&mut reader) else { continue };
            let is_tunnel = head.starts_with("CONNECT ");
            // The test may have seen enough.
            drop(heads.send(head));
            let mut near = reader.into_inner();
            if !is_tunnel {
                drop(near.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
                continue;
            }
            thread::sleep(pause);
            let far = TcpStream::connect(("127.0.0.1", target)).unwrap();
            near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let (near_again, far_again) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            thread::spawn(move || pass_on(near, far));
            thread::spawn(move || pass_on(far_again, near_again));
        }
    });
    (url, received)
}

fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    // However it ends, the other side should learn of it.
    drop(io::copy(&mut from, &mut to));
    drop(to.shutdown(Shutdown::Write));
}

async fn post(address: &str) -> u16 {
    Reply::of(client().post(format!("http://{address}/webhook")).body(EVENT)).await.status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_through_the_proxy_has_the_credential_in_it_and_not_before_it() {
    let variance = Variance::start().await;
    let (port, requests) = tls::server();
    let (url, tunnels) = proxy(port);
    let program = Program::serve(&variance).env("VARIANCE_WEBHOOK_URL", "https://other.example/hooks?team=secret");
    let program = program.env("HTTPS_PROXY", &url).env("SSL_CERT_FILE", tls::AUTHORITY);
    let (_running, address) = program.ready().await;
    assert_eq!(post(&address).await, 200);
    let tunnel = tunnels.recv().unwrap();
    assert!(tunnel.starts_with("CONNECT other.example:443 HTTP/1.1\r\n"), "{tunnel}");
    assert!(!tunnel.contains(AUTHORIZATION) && !tunnel.contains("secret"), "{tunnel}");
    let request = requests.recv().unwrap();
    assert!(request.starts_with("POST /hooks?team=secret HTTP/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("authorization: {AUTHORIZATION}\r\n")), "{request}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whom_no_proxy_names_is_asked_straight() {
    let variance = Variance::start().await;
    let (url, requests) = proxy(0);
    let deadline = ("CONNECTOR_WEBHOOK_DEADLINE", "300ms");
    let through = Program::serve(&variance).env("HTTP_PROXY", &url).env(deadline.0, deadline.1);
    let (_running, address) = through.ready().await;
    assert_eq!(post(&address).await, 503);
    let request = requests.recv().unwrap();
    assert!(request.starts_with(&format!("POST {} HTTP/1.1\r\n", variance.url())), "{request}");
    assert_eq!(variance.received().len(), 0);

    let (url, requests) = proxy(0);
    let past = Program::serve(&variance).env("HTTP_PROXY", &url).env("NO_PROXY", "example.com,127.0.0.1");
    let (_running, address) = past.ready().await;
    assert_eq!(post(&address).await, 200);
    assert_eq!(variance.received().len(), 1);
    assert!(requests.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stays_on_this_machine_uses_no_proxy() {
    let variance = Variance::start().await;
    let (url, requests) = proxy(0);
    let proxied = |program: Program| {
        ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"]
            .iter()
            .fold(program, |program, name| program.env(name, &url))
    };
    let (_running, address) = Program::serve(&variance).ready().await;
    let healthcheck = proxied(Program::new(["healthcheck"])).env("CONNECTOR_LISTEN", address).run().await;
    assert_eq!(healthcheck.code, 0, "{healthcheck:?}");
    let demo = proxied(Program::new(["demo"])).run().await;
    assert_eq!(demo.code, 0, "{demo:?}");
    assert!(requests.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_may_take_as_long_for_a_tunnel_as_an_attempt_may() {
    let variance = Variance::start().await;
    let (port, _requests) = tls::server();
    let (url, _tunnels) = slow_proxy(port, Duration::from_secs(4));
    let program = Program::serve(&variance).env("VARIANCE_WEBHOOK_URL", "https://other.example/hooks");
    let program = program.env("https_proxy", &url).env("SSL_CERT_FILE", tls::AUTHORITY);
    let (_running, address) = program.env("CONNECTOR_WEBHOOK_DEADLINE", "60s").ready().await;
    assert_eq!(post(&address).await, 200);
}

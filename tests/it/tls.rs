//! A server that speaks TLS, for `localhost` or for a name that is not this machine's: `other.example`.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    sync::{Arc, mpsc},
    thread,
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::harness::install_provider;

/// The authority that signed the server's certificate.
pub const AUTHORITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/fixtures/tls/authority.pem");
/// The certificate itself, which signed nothing.
pub const NO_AUTHORITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/fixtures/tls/certificate.pem");

/// Starts the server for `other.example`, which takes everything. Returns its port, and the heads of the requests that it
/// gets.
pub fn server() -> (u16, mpsc::Receiver<String>) {
    start(include_bytes!("fixtures/tls/certificate.pem"), include_bytes!("fixtures/tls/key.pem"), String::new())
}

/// Does the same for `localhost`, with this answer to everything.
pub fn server_for_localhost(answer: String) -> (u16, mpsc::Receiver<String>) {
    start(include_bytes!("fixtures/tls/localhost.pem"), include_bytes!("fixtures/tls/localhost-key.pem"), answer)
}

fn start(certificate: &[u8], key: &[u8], answer: String) -> (u16, mpsc::Receiver<String>) {
    install_provider();
    let certificate = CertificateDer::from_pem_slice(certificate).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    let (config, listener) = (Arc::new(config), TcpListener::bind("127.0.0.1:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    let (heads, received) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = BufReader::new(StreamOwned::new(connection, stream.unwrap()));
            // A client that breaks the handshake off sends no head.
            if let Some(head) = head(&mut stream) {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                stream.read_exact(&mut vec![0; length.unwrap_or(0)]).unwrap();
                heads.send(head).unwrap();
                let length = answer.len();
                let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{answer}");
                stream.get_mut().write_all(reply.as_bytes()).unwrap();
            }
        }
    });
    (port, received)
}

/// Reads the head of a request.
pub fn head(stream: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

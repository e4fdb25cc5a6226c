//! Servers to which no TLS connection can be made, each for a different reason.

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::Arc,
    thread,
};

use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use crate::{harness::install_provider, program::Program, variance::Variance};

/// The authority that signed the certificate of `localhost`; it is marked as an authority, and is valid for `localhost`
/// too.
pub const AUTHORITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/fixtures/tls/localhost-authority.pem");

/// The fault of the server.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    AuthorityAsLeaf,
    Tls11,
    ClientCertificate,
    /// The server asks for a client certificate, and then only says that the handshake failed.
    HandshakeFailure,
    Http2,
    /// The server speaks HTTP/2 without having agreed on it.
    Http2Anyway,
}

/// Starts the server. Returns its port.
fn server(trouble: Trouble) -> u16 {
    install_provider();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let authority = CertificateDer::from_pem_slice(include_bytes!("fixtures/tls/localhost-authority.pem")).unwrap();
    let (certificate, key) = match trouble {
        Trouble::AuthorityAsLeaf => {
            (authority.clone(), &include_bytes!("fixtures/tls/localhost-authority-key.pem")[..])
        }
        _ => (
            CertificateDer::from_pem_slice(include_bytes!("fixtures/tls/localhost.pem")).unwrap(),
            &include_bytes!("fixtures/tls/localhost-key.pem")[..],
        ),
    };
    let key = PrivateKeyDer::from_pem_slice(key).unwrap();
    let versions = if let Trouble::HandshakeFailure = trouble { 1 } else { 2 };
    let builder = match trouble {
        Trouble::ClientCertificate | Trouble::HandshakeFailure => {
            let mut roots = RootCertStore::empty();
            roots.add(authority).unwrap();
            // In TLS 1.2 an alert in the middle of the handshake is not encrypted.
            ServerConfig::builder_with_protocol_versions(
                &[&rustls::version::TLS12, &rustls::version::TLS13][..versions],
            )
            .with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap())
        }
        _ => ServerConfig::builder().with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(vec![certificate], key).unwrap();
    if let Trouble::Http2 = trouble {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    let config = Arc::new(config);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            if let Trouble::Tls11 = trouble {
                assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
                // The alert of a server that knows no newer version.
                stream.write_all(&[0x15, 3, 2, 0, 2, 2, 70]).unwrap();
                continue;
            }
            let mut tls = ServerConnection::new(Arc::clone(&config)).unwrap();
            if let Trouble::HandshakeFailure = trouble {
                while !tls.wants_write() {
                    tls.read_tls(&mut stream).unwrap();
                    tls.process_new_packets().unwrap();
                }
                while tls.wants_write() {
                    tls.write_tls(&mut stream).unwrap();
                }
                assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
                stream.write_all(&[0x15, 3, 3, 0, 2, 2, 40]).unwrap();
                continue;
            }
            let mut stream = StreamOwned::new(tls, stream);
            if let Trouble::Http2Anyway = trouble {
                assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
                // The empty SETTINGS with which each HTTP/2 connection begins.
                stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
                stream.flush().unwrap();
            }
            // Whatever comes of it, the other side should get to read it.
            while matches!(stream.read(&mut [0; 4096]), Ok(1..)) {}
            let socket = &mut stream.sock;
            while matches!(socket.read(&mut [0; 4096]), Ok(1..)) {}
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_server_that_speaks_no_tls_with_us_has_its_own_reason() {
    let variance = Variance::start().await;
    for (trouble, reason) in [
        (Trouble::AuthorityAsLeaf, "an authority's certificate: localhost presents a certificate that is marked"),
        (Trouble::Tls11, "TLS too old: localhost speaks neither TLS 1.2 nor 1.3"),
        (Trouble::ClientCertificate, "client certificate: localhost asks for one"),
        (Trouble::HandshakeFailure, "client certificate: localhost asks for one"),
        (Trouble::Http2, "only HTTP/2: localhost does not speak HTTP/1.1"),
        (Trouble::Http2Anyway, "unreadable: the reply of localhost is not HTTP/1.1. Does it speak only HTTP/2"),
    ] {
        let url = format!("https://localhost:{}/hook", server(trouble));
        let check = Program::new(["check", "--send", "--quiet"]).to(&variance).env("VARIANCE_WEBHOOK_URL", url);
        let check = check.env("SSL_CERT_FILE", AUTHORITY).run().await;
        assert_eq!(check.code, 1, "{trouble:?}: {check:?}");
        assert!(check.out.starts_with(reason), "{trouble:?}: {check:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_used_of_the_environment_is_an_error_at_the_start() {
    let variance = Variance::start().await;
    let https = "https://variance.example/hook";
    for (url, name, value) in [
        (https, "HTTPS_PROXY", "\"http://proxy.example:3128\""),
        (https, "https_proxy", "socks5://proxy.example:1080"),
        (https, "SSL_CERT_FILE", "/nowhere"),
        (https, "SSL_CERT_DIR", "/nowhere"),
        (&variance.url(), "HTTP_PROXY", "http://proxy.example:3128 "),
        (&variance.url(), "ALL_PROXY", "socks://proxy.example"),
    ] {
        for command in ["serve", "check"] {
            let program = Program::new([command]).to(&variance).env("VARIANCE_WEBHOOK_URL", url).env(name, value);
            let ended = program.env("CONNECTOR_LISTEN", "127.0.0.1:0").run().await;
            assert_eq!(ended.code, 64, "{command} {name}: {ended:?}");
            assert!(ended.err.contains(&format!("error: {name}")), "{command} {name}: {ended:?}");
        }
    }
    assert_eq!(variance.count(), 0);
}

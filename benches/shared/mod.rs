//! Parts that the benchmarks of the whole program share.

use std::io::Write;

use tokio::net::{TcpListener, TcpStream};

pub mod events;
pub mod process;
pub mod sender;

/// The token that a sender must present to the connector.
pub const TOKEN: &str = "a-token-for-the-benchmark";

/// Listens on a port of the system's choice, prints the address, and serves each connection.
pub fn accept<F>(serve: impl Fn(TcpStream) -> F) -> anyhow::Result<()>
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut out = std::io::stdout();
        writeln!(out, "{}", listener.local_addr()?)?;
        out.flush()?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(serve(stream));
        }
    })
}

/// Returns the end of the request at the start of `bytes`, and the start of its body, if the request is whole.
pub fn request_end(bytes: &[u8]) -> Option<(usize, usize)> {
    const NAME: &[u8] = b"content-length: ";
    let mut at = 0;
    let mut length = 0;
    loop {
        let end = at + bytes[at..].iter().position(|&byte| byte == b'\n')?;
        let line = &bytes[at..end];
        if line == b"\r" {
            return Some((end + 1 + length, end + 1)).filter(|(end, _)| *end <= bytes.len());
        }
        if line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME) {
            length = std::str::from_utf8(&line[NAME.len()..]).ok()?.trim().parse().ok()?;
        }
        at = end + 1;
    }
}

//! The cheapest receiver that speaks HTTP: reads requests by their `Content-Length` and answers 200 at once.

use std::io::Write;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

pub fn run() -> anyhow::Result<()> {
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

async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let mut buffer = Vec::with_capacity(64 << 10);
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let mut at = 0;
        while let Some(length) = request_length(&buffer[at..]).filter(|length| at + length <= buffer.len()) {
            stream.write_all(REPLY).await?;
            at += length;
        }
        buffer.drain(..at);
    }
}

/// Length of the request at the start, head and body, if its head is whole.
fn request_length(bytes: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length: ";
    let mut at = 0;
    let mut length = 0;
    loop {
        let end = at + bytes[at..].iter().position(|&byte| byte == b'\n')?;
        let line = &bytes[at..end];
        if line == b"\r" {
            return Some(end + 1 + length);
        }
        if line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME) {
            length = std::str::from_utf8(&line[NAME.len()..]).ok()?.trim().parse().ok()?;
        }
        at = end + 1;
    }
}

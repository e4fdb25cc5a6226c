//! A sender that costs little: prepared requests over plain connections.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::sleep,
};

use super::{TOKEN, events};

/// The number of the next event, so that no two events of a run are the same.
static NUMBER: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Copy)]
pub struct Sender {
    address: SocketAddr,
    path: &'static str,
    per_request: usize,
}

impl Sender {
    pub fn new(address: SocketAddr, path: &'static str, per_request: usize) -> Self {
        Self { address, path, per_request }
    }

    /// Sends `events` over this many connections. Returns how many of them were forwarded.
    pub async fn send(self, events: usize, connections: usize) -> anyhow::Result<usize> {
        let requests = events.div_ceil(self.per_request);
        let mut tasks = JoinSet::new();
        for task in 0..connections {
            let share = requests / connections + usize::from(task < requests % connections);
            tasks.spawn(async move {
                let mut stream = self.connect().await?;
                let mut request = Vec::new();
                for _ in 0..share {
                    self.write_request(&mut request);
                    deliver(&mut stream, &request).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(result) = tasks.join_next().await {
            result??;
        }
        Ok(requests * self.per_request * 4 / 5)
    }

    /// Returns the sorted times in milliseconds of this many requests on one connection, with a pause between them.
    pub async fn latencies(self, requests: usize, pause: Duration) -> anyhow::Result<Vec<f64>> {
        let mut stream = self.connect().await?;
        let mut request = Vec::new();
        let mut latencies = Vec::new();
        for _ in 0..requests {
            self.write_request(&mut request);
            let start = Instant::now();
            deliver(&mut stream, &request).await?;
            latencies.push(start.elapsed().as_secs_f64() * 1000.0);
            sleep(pause).await;
        }
        latencies.sort_by(f64::total_cmp);
        Ok(latencies)
    }

    /// Opens a connection to the address.
    pub async fn connect(self) -> anyhow::Result<TcpStream> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Writes the next request.
    pub fn write_request(self, request: &mut Vec<u8>) {
        let first = NUMBER.fetch_add(self.per_request as u64, Ordering::Relaxed);
        let mut body = String::with_capacity(self.per_request * 2200);
        let is_batch = self.per_request > 1;
        body.push_str(if is_batch { "{\"batch\":[" } else { "{\"event\":" });
        for number in first..first + self.per_request as u64 {
            if number > first {
                body.push(',');
            }
            events::write_event(&mut body, number);
        }
        body.push_str(if is_batch { "]}" } else { "}" });
        request.clear();
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.path,
            body.len()
        );
        request.extend_from_slice(head.as_bytes());
        request.extend_from_slice(body.as_bytes());
    }
}

/// Sends a request, which must be answered with 200.
async fn deliver(stream: &mut TcpStream, request: &[u8]) -> anyhow::Result<()> {
    let (status, body) = exchange(stream, request).await?;
    ensure!(status == 200, "{status}: {body}");
    Ok(())
}

/// Sends a request and returns the status and the body of its reply.
pub async fn exchange(stream: &mut TcpStream, request: &[u8]) -> anyhow::Result<(u16, String)> {
    stream.write_all(request).await?;
    let mut reply = Vec::with_capacity(1024);
    loop {
        ensure!(stream.read_buf(&mut reply).await? > 0, "the connection ended");
        let text = std::str::from_utf8(&reply)?;
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.context("a reply has a length")? {
            let status = head.split(' ').nth(1).context("a status line")?.parse()?;
            return Ok((status, body.to_owned()));
        }
    }
}

//! A stand-in for Variance, at the level of TCP: it records what it gets and answers by a script.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::harness::PATIENCE;

/// A request as the stand-in has read it.
#[derive(Clone, Debug)]
pub struct Received {
    /// The number of its connection, counted from 0.
    pub connection: usize,
    pub line: String,
    /// Headers, with their names in lower case.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Received {
    pub fn path(&self) -> &str {
        self.line.split(' ').nth(1).expect("a request line has a path")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("what the service posts is JSON")
    }

    pub fn id(&self) -> String {
        self.json()["messageId"].as_str().expect("every message has an id").to_owned()
    }
}

/// The stand-in's treatment of a request that it has read, or of a connection.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// Answers with this status and nothing else.
    Status(u16),
    /// Answers with this status and these header lines.
    StatusWith(u16, String),
    /// Writes these bytes and goes on with the connection.
    Bytes(Vec<u8>),
    /// Writes these bytes one at a time, with a pause after each.
    SlowBytes(Vec<u8>, Duration),
    /// Writes these bytes and closes the connection.
    BytesThenClose(Vec<u8>),
    /// Writes these bytes and then nothing, forever.
    BytesThenSilence(Vec<u8>),
    /// Writes a head and then a body without an end.
    EndlessBody,
    /// Resets the connection after it has read the request.
    Reset,
    /// Answers after a while.
    After(Duration, Box<Self>),
    /// Answers, and closes the connection when it has been idle for this long.
    ThenCloseIdle(Box<Self>, Duration),
    /// Answers, and closes the connection when the next request comes, before it reads any of it.
    ThenCloseUnread(Box<Self>),
}

/// The stand-in's treatment of a connection before it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepting {
    Normally,
    /// Resets each new connection.
    Resetting,
    /// Accepts and never reads.
    Silently,
    /// Writes these bytes to each new connection, whatever the other side sends.
    Saying(&'static [u8]),
}

type Script = dyn Fn(&Received) -> Behaviour + Send + Sync;

/// The stand-in, which ends when it is dropped.
pub struct Variance {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinSet<()>>,
    /// Bound but never listening, to keep the port from others while the stand-in is away.
    _reservation: TcpSocket,
}

struct Shared {
    script: Mutex<Arc<Script>>,
    accepting: Mutex<Accepting>,
    received: Mutex<Vec<Received>>,
    count: watch::Sender<usize>,
    in_flight: AtomicUsize,
    max_in_flight: AtomicUsize,
    connections: AtomicUsize,
}

impl Variance {
    /// Starts a stand-in that takes everything.
    pub async fn start() -> Self {
        let shared = Arc::new(Shared {
            script: Mutex::new(Arc::new(|_: &Received| Behaviour::Status(200))),
            accepting: Mutex::new(Accepting::Normally),
            received: Mutex::default(),
            count: watch::Sender::new(0),
            in_flight: AtomicUsize::new(0),
            max_in_flight: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
        });
        let reservation = bound_to(([127, 0, 0, 1], 0).into());
        let address = reservation.local_addr().unwrap();
        let mut variance = Self { address, shared, accepting: None, _reservation: reservation };
        variance.come_back();
        variance
    }

    pub fn url(&self) -> String {
        format!("http://{}/hooks/posthog?team=secret-team", self.address)
    }

    /// Sets what to do with each request from now on.
    pub fn script(&self, script: impl Fn(&Received) -> Behaviour + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap() = Arc::new(script);
    }

    /// Does the same with each request from now on.
    pub fn always(&self, behaviour: Behaviour) {
        self.script(move |_| behaviour.clone());
    }

    pub fn accepting(&self, accepting: Accepting) {
        *self.shared.accepting.lock().unwrap() = accepting;
    }

    /// Stops listening and breaks all connections, as if nothing were there any longer.
    pub fn vanish(&mut self) {
        self.accepting = None;
    }

    /// Listens again, at the same address.
    pub fn come_back(&mut self) {
        self.accept(bound_to(self.address).listen(1024).unwrap());
    }

    /// Returns every request that was read so far.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    pub fn bodies(&self) -> Vec<Value> {
        self.received().iter().map(Received::json).collect()
    }

    pub fn ids(&self) -> Vec<String> {
        self.received().iter().map(Received::id).collect()
    }

    /// Returns how many requests were read so far.
    pub fn count(&self) -> usize {
        *self.shared.count.borrow()
    }

    /// Waits until this many requests have been read in all.
    pub async fn received_at_least(&self, count: usize) {
        let mut received = self.shared.count.subscribe();
        let enough = timeout(PATIENCE, received.wait_for(|received| *received >= count)).await;
        enough.unwrap_or_else(|_| panic!("{} of {count} requests came", self.received().len())).unwrap();
    }

    pub fn max_in_flight(&self) -> usize {
        self.shared.max_in_flight.load(Ordering::SeqCst)
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    fn accept(&mut self, listener: TcpListener) {
        let shared = Arc::clone(&self.shared);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let number = shared.connections.fetch_add(1, Ordering::SeqCst);
                let shared = Arc::clone(&shared);
                connections.spawn(async move { serve(stream, number, &shared).await });
                while connections.try_join_next().is_some() {}
            }
        });
        self.accepting = Some(tasks);
    }
}

/// Creates a socket at an address that others may have too.
fn bound_to(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

async fn serve(mut stream: TcpStream, number: usize, shared: &Shared) {
    stream.set_nodelay(true).unwrap();
    let accepting = *shared.accepting.lock().unwrap();
    match accepting {
        Accepting::Normally => {}
        Accepting::Resetting => return reset(&stream),
        Accepting::Silently => std::future::pending().await,
        Accepting::Saying(bytes) => {
            drop(stream.write_all(bytes).await);
            // Unread bytes would turn the close into a reset, which may overtake the reply.
            while matches!(stream.read(&mut [0; 1024]).await, Ok(1..)) {}
            return;
        }
    }
    let mut buffer = Vec::new();
    while let Some(mut received) = read_request(&mut stream, &mut buffer).await {
        received.connection = number;
        let in_flight = InFlight::begin(shared);
        let script = Arc::clone(&shared.script.lock().unwrap());
        let behaviour = script(&received);
        shared.received.lock().unwrap().push(received);
        shared.count.send_modify(|count| *count += 1);
        let goes_on = answer(&mut stream, behaviour).await;
        drop(in_flight);
        match goes_on {
            Next::GoOn => {}
            Next::Close => return,
            Next::CloseIdle(after) => {
                tokio::select! {
                    _ = stream.readable() => {}
                    () = sleep(after) => return,
                }
            }
            Next::CloseUnread => return drop(stream.readable().await),
        }
    }
}

/// Counts a request as not answered yet, for as long as its connection lives.
struct InFlight<'s>(&'s Shared);

impl<'s> InFlight<'s> {
    fn begin(shared: &'s Shared) -> Self {
        let in_flight = shared.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        shared.max_in_flight.fetch_max(in_flight, Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

enum Next {
    GoOn,
    Close,
    CloseIdle(Duration),
    CloseUnread,
}

async fn answer(stream: &mut TcpStream, behaviour: Behaviour) -> Next {
    let written = match behaviour {
        // These have no body by definition.
        Behaviour::Status(status @ (204 | 304)) => {
            stream.write_all(format!("HTTP/1.1 {status} X\r\n\r\n").as_bytes()).await
        }
        Behaviour::Status(status) => {
            stream.write_all(format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nok").as_bytes()).await
        }
        Behaviour::StatusWith(status, headers) => {
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n{headers}\r\n\r\nok");
            stream.write_all(head.as_bytes()).await
        }
        Behaviour::Bytes(bytes) => stream.write_all(&bytes).await,
        Behaviour::SlowBytes(bytes, pause) => {
            for byte in bytes {
                if stream.write_all(&[byte]).await.is_err() {
                    return Next::Close;
                }
                sleep(pause).await;
            }
            Ok(())
        }
        Behaviour::BytesThenClose(bytes) => {
            // Whether the reply was read makes no difference: this connection ends here.
            drop(stream.write_all(&bytes).await);
            return Next::Close;
        }
        Behaviour::BytesThenSilence(bytes) => {
            drop(stream.write_all(&bytes).await);
            // Waits until the other side has had enough.
            drop(stream.read(&mut [0]).await);
            return Next::Close;
        }
        Behaviour::EndlessBody => {
            let mut result = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            while result.is_ok() {
                result = stream.write_all(b"400\r\n").await;
                result = result.and(stream.write_all(&[b'x'; 1024]).await);
                result = result.and(stream.write_all(b"\r\n").await);
            }
            return Next::Close;
        }
        Behaviour::Reset => {
            reset(stream);
            return Next::Close;
        }
        Behaviour::After(pause, behaviour) => {
            sleep(pause).await;
            return Box::pin(answer(stream, *behaviour)).await;
        }
        Behaviour::ThenCloseIdle(behaviour, after) => {
            return match Box::pin(answer(stream, *behaviour)).await {
                Next::GoOn => Next::CloseIdle(after),
                other => other,
            };
        }
        Behaviour::ThenCloseUnread(behaviour) => {
            return match Box::pin(answer(stream, *behaviour)).await {
                Next::GoOn => Next::CloseUnread,
                other => other,
            };
        }
    };
    if written.is_ok() { Next::GoOn } else { Next::Close }
}

fn reset(stream: &TcpStream) {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Received> {
    let head_end = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer[..head_end].to_vec()).expect("the service sends ASCII heads");
    let mut lines = head.lines();
    let line = lines.next()?.to_owned();
    let headers: HashMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers.get("content-length")?.parse().ok()?;
    while buffer.len() < head_end + length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = buffer[head_end..head_end + length].to_vec();
    buffer.drain(..head_end + length);
    Some(Received { connection: 0, line, headers, body })
}

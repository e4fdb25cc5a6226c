//! Connections, and limits on how many there are, how long they may be silent, and how much they read ahead.
//!
//! When no more are allowed, the one that has been idle longest is closed for a new one. A connection is idle unless it
//! has a request of a known sender, so neither strangers nor connections that known senders keep open can keep anybody
//! out.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::SocketAddr,
    num::NonZeroU64,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::response::Response;
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, ReadBuf, join},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::routes::Routes;
use crate::{metrics::Metrics, repeated::Repeated};

/// The most connections at once. PostHog opens up to 500 (`EXTERNAL_REQUEST_CONNECTIONS`) from each of its workers.
pub const MAX_CONNECTIONS: usize = 2048;

/// The most connections with a request of a known sender. The others can be closed for a new one at any time, so health
/// checks get through.
const MAX_BUSY: usize = MAX_CONNECTIONS - 64;

/// The longest head of a request, and the most of a body that a connection reads ahead. With this limit a connection
/// takes some 24 KiB at most; with hyper's own it would take over 400.
const MAX_BUFFER: usize = 16 << 10;

/// The longest that a sender may leave a reply unread before its connection is closed: nothing else bounds that.
#[cfg(target_os = "linux")]
const UNREAD_TIMEOUT: Duration = Duration::from_secs(30);

/// The time in which a sender that has closed its side still gets a reply. A sender that is gone looks the same, so its
/// request is kept for that long as well.
const HALF_CLOSED_FOR: Duration = Duration::from_secs(5);

/// The time after the sender's end in which its body may still be read here.
const END_OF_BODY_FOR: Duration = Duration::from_secs(1);

/// All connections of a server.
pub(super) struct Connections {
    head_timeout: Duration,
    tracker: TaskTracker,
    seats: Arc<Seats>,
}

/// The seats of all connections, of which the idle ones may be closed for a new one.
#[derive(Debug, Default)]
pub(super) struct Seats {
    places: Mutex<HashMap<u64, Arc<Place>>>,
    /// Counts how often a connection has become idle.
    clock: AtomicU64,
    /// The number of connections that are not idle.
    busy: AtomicUsize,
    /// Notified when one more is idle.
    more: Notify,
    /// Notified when one that was to be closed turns out to be busy.
    escaped: Notify,
    /// Cancelled to let each connection finish its current request and end.
    ending: CancellationToken,
}

#[derive(Debug)]
struct Place {
    /// When the connection became idle, by [`Seats::clock`]; zero while it is not idle.
    idle_since: AtomicU64,
    /// Cancelled to end the connection, for another or because all end.
    close: CancellationToken,
}

/// The seat of one connection.
#[derive(Debug)]
pub(super) struct Seat {
    /// The sender's address: a proxy's, where there is one.
    pub(super) peer: SocketAddr,
    seats: Arc<Seats>,
    /// The key of its place.
    number: u64,
    place: Arc<Place>,
    /// True while a request has come in whole and is not answered yet.
    is_owed_reply: AtomicBool,
}

/// A guard: its connection is not closed for another while it exists.
#[derive(Debug)]
pub(super) struct Busy(Arc<Seat>);

impl Connections {
    /// Creates an empty set of connections.
    pub(super) fn new(head_timeout: Duration) -> Self {
        Self { head_timeout, tracker: TaskTracker::new(), seats: Arc::default() }
    }

    /// Accepts connections and serves each in a task of its own, forever.
    pub(super) async fn accept(&self, listener: TcpListener, routes: &Routes, metrics: &Metrics) -> Infallible {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let failures = Repeated::default();
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Usually there are no descriptors left, and only time can help.
                    if let Some(times) = failures.note(Instant::now()) {
                        tracing::warn!(times, %error, "connections could not be accepted");
                    }
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let permit = self.make_room(&permits).await;
            let (routes, metrics) = (routes.clone(), metrics.clone());
            let (head_timeout, seat) = (self.head_timeout, Seat::new(peer, &self.seats));
            self.tracker.spawn(async move {
                metrics.connections().inc();
                connection(stream, head_timeout, &seat, |request| routes.answer(request, &seat)).await;
                metrics.connections().dec();
                drop(permit);
            });
        }
    }

    /// Waits until there are fewer connections than the limit, and closes an idle one if need be.
    async fn make_room(&self, permits: &Arc<Semaphore>) -> OwnedSemaphorePermit {
        let mut permit = pin!(Arc::clone(permits).acquire_owned());
        loop {
            let is_closing = permits.available_permits() == 0 && self.seats.close_longest();
            tokio::select! {
                permit = &mut permit => return permit.expect("it is never closed"),
                () = self.seats.more.notified(), if !is_closing => {}
                () = self.seats.escaped.notified(), if is_closing => {}
            }
        }
    }

    /// Lets each connection finish its current request, and waits until there are none.
    pub(super) async fn end(&self) {
        self.seats.ending.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl Seats {
    /// Closes the connection that has been idle longest. Returns false if there is none.
    fn close_longest(&self) -> bool {
        let mut places = self.places();
        let idle = places.iter().filter_map(|(number, place)| Some((place.idle_since()?, *number)));
        let longest = idle.min().and_then(|(_, number)| places.remove(&number));
        longest.inspect(|place| place.close.cancel()).is_some()
    }

    /// Returns a number that is greater than all before it.
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn places(&self) -> MutexGuard<'_, HashMap<u64, Arc<Place>>> {
        self.places.lock().expect("no panic while it is held")
    }
}

impl Place {
    fn idle_since(&self) -> Option<NonZeroU64> {
        NonZeroU64::new(self.idle_since.load(Ordering::Relaxed))
    }
}

impl Seat {
    pub(super) fn new(peer: SocketAddr, seats: &Arc<Seats>) -> Arc<Self> {
        let place = Arc::new(Place { idle_since: AtomicU64::default(), close: seats.ending.child_token() });
        let number = seats.now();
        seats.places().insert(number, Arc::clone(&place));
        let seat = Self { peer, seats: Arc::clone(seats), number, place, is_owed_reply: AtomicBool::new(false) };
        seat.rest();
        Arc::new(seat)
    }

    /// Notes that the request has come in whole. Even if its sender closes its side now, it is owed a reply.
    pub(super) fn owe_reply(&self) {
        self.is_owed_reply.store(true, Ordering::Relaxed);
    }

    /// Keeps the connection from being closed for another: its sender is known and waits for a reply. Returns `None` if
    /// too many are kept already.
    pub(super) fn keep(self: &Arc<Self>) -> Option<Busy> {
        if self.seats.busy.load(Ordering::Relaxed) >= MAX_BUSY {
            return None;
        }
        self.seats.busy.fetch_add(1, Ordering::Relaxed);
        self.place.idle_since.store(0, Ordering::Relaxed);
        Some(Busy(Arc::clone(self)))
    }

    fn rest(&self) {
        self.place.idle_since.store(self.seats.now(), Ordering::Relaxed);
        self.seats.more.notify_one();
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.seats.busy.fetch_sub(1, Ordering::Relaxed);
        self.0.rest();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.places().remove(&self.number);
    }
}

/// Serves one connection, whose requests `answer` answers.
async fn connection<F: Future<Output = Response>>(
    stream: TcpStream,
    head_timeout: Duration,
    seat: &Arc<Seat>,
    answer: impl Fn(Request<Incoming>) -> F,
) {
    if let Err(error) = set_options(&stream) {
        tracing::debug!(%error, "a connection ended at once");
        return;
    }
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(head_timeout).max_buf_size(MAX_BUFFER);
    let answer = service_fn(async |request| {
        let reply = answer(request).await;
        seat.is_owed_reply.store(false, Ordering::Relaxed);
        Ok::<_, Infallible>(reply)
    });
    let (reading, writing) = stream.into_split();
    let reading = Reading { stream: reading, seat: Arc::clone(seat), end: None };
    let mut connection = pin!(http.serve_connection(TokioIo::new(join(reading, writing)), answer));
    let result = tokio::select! {
        // Writing goes first: a connection is closed for another only when nothing is left to write.
        biased;
        result = connection.as_mut() => result,
        () = seat.place.close.cancelled() => match seat.place.idle_since() {
            Some(_) if !seat.seats.ending.is_cancelled() => Ok(()),
            // A request has come in since, or all end.
            _ => {
                seat.seats.escaped.notify_one();
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        },
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection broke");
    }
}

/// The side of a connection that reads. The sender's end is passed on only after a while, because the sender may have
/// closed just its own side and be waiting for the reply.
struct Reading {
    stream: OwnedReadHalf,
    seat: Arc<Seat>,
    end: Option<End>,
}

/// An end of the stream that has come and is yet to be passed on.
struct End {
    due: Pin<Box<Sleep>>,
    /// True if the body was whole.
    was_owed_reply: bool,
}

impl AsyncRead for Reading {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end.is_none() {
            let before = buffer.remaining();
            ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
            if buffer.remaining() < before {
                return Poll::Ready(Ok(()));
            }
        }
        let is_owed_reply = self.seat.is_owed_reply.load(Ordering::Relaxed);
        let end = self.end.get_or_insert_with(|| End { due: Box::pin(sleep(END_OF_BODY_FOR)), was_owed_reply: false });
        if is_owed_reply && !end.was_owed_reply {
            end.was_owed_reply = true;
            end.due.as_mut().reset(Instant::now() + HALF_CLOSED_FOR);
        }
        if is_owed_reply || !end.was_owed_reply {
            ready!(end.due.as_mut().poll(context));
        }
        Poll::Ready(Ok(()))
    }
}

/// Lets replies leave at once, and bounds how long they may wait for their reader. The bound is set on Linux alone,
/// where the service is meant to run: other systems have no such option.
fn set_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(UNREAD_TIMEOUT))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Serves one connection that is to be closed when its request has just come in, for another or because all end.
    /// Returns the reply.
    async fn reply_to_last_minute_request(is_known: bool, all_end: bool) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        sender.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let seats = Arc::<Seats>::default();
        let seat = Seat::new(peer, &seats);
        let answer = async |_| {
            let _busy = if is_known { seat.keep() } else { None };
            sleep(Duration::from_millis(1)).await;
            Response::new("done".into())
        };
        stream.readable().await.unwrap();
        match all_end {
            true => seats.ending.cancel(),
            false => assert!(seats.close_longest()),
        }
        connection(stream, Duration::from_secs(60), &seat, answer).await;
        drop(seat);
        let mut reply = String::new();
        drop(sender.read_to_string(&mut reply).await);
        reply
    }

    #[tokio::test]
    async fn a_request_of_a_known_sender_that_has_just_come_in_is_answered_before_its_connection_is_closed() {
        assert!(reply_to_last_minute_request(true, false).await.ends_with("done"));
        assert_eq!(reply_to_last_minute_request(false, false).await, "");
    }

    #[tokio::test]
    async fn when_all_connections_end_each_request_that_has_come_in_is_answered() {
        assert!(reply_to_last_minute_request(true, true).await.ends_with("done"));
        assert!(reply_to_last_minute_request(false, true).await.ends_with("done"));
    }
}

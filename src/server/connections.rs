//! Connections, and what one may cost: how many there are, how long they may be silent, and what they read ahead.

use std::{convert::Infallible, io, pin::pin, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::routes::Routes;
use crate::{metrics::Metrics, repeated::Repeated};

/// The most connections at once. PostHog opens up to 500 (`EXTERNAL_REQUEST_CONNECTIONS`) from each of its workers.
pub const MAX_CONNECTIONS: usize = 2048;

/// The longest head of a request, and the most of a body that a connection reads ahead: with it a connection takes some
/// 24 KiB at most, where hyper's own limit is over 400.
const MAX_BUFFER: usize = 16 << 10;

/// How long a sender may leave a reply unread before its connection is closed: nothing else bounds that.
#[cfg(target_os = "linux")]
const UNREAD_TIMEOUT: Duration = Duration::from_secs(30);

/// All connections of a server.
pub(super) struct Connections {
    head_timeout: Duration,
    tracker: TaskTracker,
    ending: CancellationToken,
}

impl Connections {
    /// None yet.
    pub(super) fn new(head_timeout: Duration) -> Self {
        Self { head_timeout, tracker: TaskTracker::new(), ending: CancellationToken::new() }
    }

    /// Accepts connections and serves each in a task of its own, for ever.
    pub(super) async fn accept(&self, listener: TcpListener, routes: Arc<Routes>, metrics: &Metrics) -> Infallible {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let failures = Repeated::default();
        loop {
            let permit = Arc::clone(&permits).acquire_owned().await.expect("it is never closed");
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Most often there are no descriptors left: only time can help.
                    if let Some(times) = failures.note(Instant::now()) {
                        tracing::warn!(times, %error, "connections could not be accepted");
                    }
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (routes, ending, metrics) = (Arc::clone(&routes), self.ending.clone(), metrics.clone());
            let head_timeout = self.head_timeout;
            self.tracker.spawn(async move {
                metrics.connections().inc();
                connection(stream, routes, head_timeout, ending).await;
                metrics.connections().dec();
                drop(permit);
            });
        }
    }

    /// Lets each finish the request that it is in, and waits until there are none.
    pub(super) async fn end(&self) {
        self.ending.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

async fn connection(stream: TcpStream, routes: Arc<Routes>, head_timeout: Duration, ending: CancellationToken) {
    if let Err(error) = set_options(&stream) {
        tracing::debug!(%error, "a connection ended at once");
        return;
    }
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(head_timeout).max_buf_size(MAX_BUFFER);
    let answer = service_fn(|request| async { Ok::<_, Infallible>(routes.answer(request).await) });
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), answer));
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = ending.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Lets replies leave at once, and bounds how long they may wait for their reader; the latter on Linux alone, where the
/// service is meant to run: others have no such option.
fn set_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(UNREAD_TIMEOUT))?;
    Ok(())
}

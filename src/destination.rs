//! Variance's webhook: one attempt at a time, and what its result means for the event.
//!
//! * **Refused or retried.** 400, 409, 413, 422 and the other 4xx that are not named next are the event's fault: it is
//!   refused, and the rest goes on. 401, 403, 404, 405, 407, 408, 410, 425, 429, every 3xx and 5xx, time-outs and
//!   broken connections are Variance's: the event is kept and tried again, with growing pauses. A 2xx is success once
//!   its head is complete.

use std::{
    error::Error as _,
    fmt, io,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderMap, StatusCode,
    header::{LOCATION, RETRY_AFTER},
};
use reqwest::{Client, Method, Request, Response, redirect};
use rustls::CertificateError;
use tokio::time::timeout;
use url::Url;

pub use self::credential::Authorization;
use self::credential::Credential;
use crate::{backoff, metrics::AttemptLabel};

mod credential;

/// The `User-Agent` of every request.
pub const USER_AGENT: &str = concat!("variance-connector/", env!("CARGO_PKG_VERSION"));

/// The longest that connecting may take, TLS included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an idle connection is kept: less than servers usually do (Node 5 s), so that we are the first to close it.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// How much of a reply's body is read, and for how long, only to use the connection again.
const REPLY_LIMIT: (usize, Duration) = (16 << 10, Duration::from_secs(1));

/// The webhook, and how long one attempt may take.
#[derive(Clone)]
pub struct DestinationSettings {
    /// The webhook URL, without user and password.
    pub webhook_url: Url,
    /// The credential that Variance asks for.
    pub authorization: Authorization,
    /// From the start of an attempt to the end of the reply's head.
    pub attempt_timeout: Duration,
    /// True if `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` apply.
    pub use_proxy: bool,
}

impl fmt::Debug for DestinationSettings {
    /// Shows the URL's host alone: its path and query may be as good as a credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { webhook_url, authorization, attempt_timeout, use_proxy } = self;
        f.debug_struct("DestinationSettings")
            .field("host", &webhook_url.host_str())
            .field("authorization", authorization)
            .field("attempt_timeout", attempt_timeout)
            .field("use_proxy", use_proxy)
            .finish_non_exhaustive()
    }
}

/// The result of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptResult {
    /// Variance has the event.
    Accepted,
    /// Variance refuses this event.
    Refused(StatusCode),
    /// Anything else: the event is to be tried again.
    Failed {
        /// What went wrong.
        fault: Fault,
        /// How long Variance asked to be left alone.
        retry_after: Option<Duration>,
    },
}

/// Why an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Variance answered with a status that neither accepts nor refuses the event.
    #[error("Variance answered {0}")]
    Status(StatusCode),
    /// Variance did not answer in time.
    #[error("Variance did not answer in time")]
    Timeout,
    /// There is no address for the name of its host.
    #[error("the name of Variance's host could not be resolved")]
    Dns,
    /// Its certificate is for other names.
    #[error("the certificate of Variance's host is for another name")]
    TlsName,
    /// Its certificate cannot be trusted, or it speaks no TLS.
    #[error("no trusted TLS connection to Variance's host")]
    Tls,
    /// Its host takes no connections.
    #[error("no connection to Variance's host")]
    Connect,
    /// The connection broke before the reply was complete.
    #[error("the connection to Variance broke before its answer")]
    Broken,
}

impl From<AttemptResult> for AttemptLabel {
    fn from(result: AttemptResult) -> Self {
        match result {
            AttemptResult::Accepted => Self::Accepted,
            AttemptResult::Refused(_) => Self::Refused,
            AttemptResult::Failed { fault, .. } => match fault {
                Fault::Status(_) => Self::Status,
                Fault::Timeout => Self::Timeout,
                Fault::Dns | Fault::TlsName | Fault::Tls | Fault::Connect => Self::Connect,
                Fault::Broken => Self::Broken,
            },
        }
    }
}

impl Fault {
    /// True if there may be no webhook at the URL.
    pub fn is_url(self) -> bool {
        match self {
            Self::Status(status) => matches!(status.as_u16(), 300..=399 | 404 | 405 | 410),
            Self::Dns => true,
            _ => false,
        }
    }

    /// True if Variance did not accept the credential.
    pub fn is_credential(self) -> bool {
        matches!(self, Self::Status(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN))
    }
}

impl AttemptResult {
    /// What a reply with this status means.
    pub fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            200..=299 => Self::Accepted,
            401 | 403 | 404 | 405 | 407 | 408 | 410 | 425 | 429 => Self::failed(Fault::Status(status)),
            400..=499 => Self::Refused(status),
            _ => Self::failed(Fault::Status(status)),
        }
    }

    fn failed(fault: Fault) -> Self {
        Self::Failed { fault, retry_after: None }
    }
}

/// A client of one webhook URL.
pub struct Destination {
    client: Client,
    url: Url,
    credential: Credential,
    attempt_timeout: Duration,
}

impl Destination {
    /// A client that may have `connections` open.
    ///
    /// # Errors
    /// When TLS cannot be set up: there are no root certificates.
    pub fn new(settings: DestinationSettings, connections: usize) -> reqwest::Result<Self> {
        let DestinationSettings { webhook_url, authorization, attempt_timeout, use_proxy } = settings;
        let mut client = Client::builder()
            .user_agent(USER_AGENT)
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT.min(attempt_timeout))
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .pool_max_idle_per_host(connections);
        if !use_proxy {
            client = client.no_proxy();
        }
        Ok(Self {
            client: client.build()?,
            url: webhook_url,
            credential: Credential::new(authorization),
            attempt_timeout,
        })
    }

    /// Makes one attempt. The reply should be [discarded](Reply::discard), so that the connection can be used again.
    pub async fn post(&self, body: Bytes) -> (AttemptResult, Reply) {
        let (headers, reading) = self.credential.headers();
        let reply = match timeout(self.attempt_timeout, self.send(headers, body)).await {
            Err(_elapsed) => return (AttemptResult::failed(Fault::Timeout), Reply(None)),
            Ok(Err(error)) => return (AttemptResult::failed(fault_of(&error)), Reply(None)),
            Ok(Ok(reply)) => reply,
        };
        let mut result = AttemptResult::of_status(reply.status());
        if let AttemptResult::Failed { fault, retry_after } = &mut result {
            if fault.is_credential() {
                self.credential.doubt(reading);
            }
            if matches!(reply.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
                let asked = reply.headers().get(RETRY_AFTER);
                *retry_after = asked.and_then(|value| backoff::retry_after(value.as_bytes(), SystemTime::now()));
            }
        }
        (result, Reply(Some(reply)))
    }

    /// Sends the request, and at once a second time if the connection breaks: most often it had been idle and Variance
    /// closed it just then.
    async fn send(&self, headers: HeaderMap, body: Bytes) -> reqwest::Result<Response> {
        match self.client.execute(self.request(headers, body.clone())).await {
            Err(error) if fault_of(&error) == Fault::Broken => {
                let (headers, _) = self.credential.headers();
                self.client.execute(self.request(headers, body)).await
            }
            result => result,
        }
    }

    fn request(&self, headers: HeaderMap, body: Bytes) -> Request {
        let mut request = Request::new(Method::POST, self.url.clone());
        *request.headers_mut() = headers;
        *request.body_mut() = Some(body.into());
        request
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Destination").field("host", &self.url.host_str()).finish_non_exhaustive()
    }
}

/// A reply whose status has been judged and whose body is unread.
pub struct Reply(Option<Response>);

impl fmt::Debug for Reply {
    /// Shows neither the URL that was asked nor the headers, which may name another.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("status", &self.0.as_ref().map(Response::status)).finish_non_exhaustive()
    }
}

impl Reply {
    /// Where the reply says that the webhook has moved.
    pub fn location(&self) -> Option<&str> {
        self.0.as_ref()?.headers().get(LOCATION)?.to_str().ok()
    }

    /// Reads the body within limits, so that the connection can be used again; beyond them it is closed.
    pub async fn discard(self) {
        let Some(mut reply) = self.0.filter(|reply| reply.content_length() != Some(0)) else { return };
        let (bytes, time) = REPLY_LIMIT;
        let read = async {
            let mut left = bytes;
            while let Ok(Some(chunk)) = reply.chunk().await {
                match left.checked_sub(chunk.len()) {
                    Some(less) => left = less,
                    None => break,
                }
            }
        };
        // Whether it ended or not makes no difference: dropping a reply that is not read to its end closes the connection.
        drop(timeout(time, read).await);
    }
}

/// What an error of the client means. Its own text names the URL, so it is not shown.
fn fault_of(error: &reqwest::Error) -> Fault {
    let mut connecting = error.is_connect();
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref() {
            return fault_of_tls(error);
        }
        // The resolver's error type is private to the client's connector; its text is what tells it.
        if connecting && error.to_string().starts_with("dns error") {
            return Fault::Dns;
        }
        cause = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
        connecting &= cause.is_some();
    }
    match error {
        error if error.is_timeout() => Fault::Timeout,
        error if error.is_connect() => Fault::Connect,
        _ => Fault::Broken,
    }
}

fn fault_of_tls(error: &rustls::Error) -> Fault {
    match error {
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => Fault::TlsName,
        _ => Fault::Tls,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The others are in `tests/it/faults.rs`, where they go over the wire.
    #[test]
    fn a_status_of_no_known_class_is_the_destinations_fault() {
        for code in (100..200).chain(600..1000) {
            let status = StatusCode::from_u16(code).unwrap();
            assert_eq!(AttemptResult::of_status(status), AttemptResult::failed(Fault::Status(status)), "{code}");
        }
    }
}

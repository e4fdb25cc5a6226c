//! Variance's webhook: an attempt to post an event, and the meaning of its result for the event.
//!
//! * **Accepted, refused or retried.** The table in `docs/delivery.md` says which statuses are which;
//!   [`AttemptResult::of_status`] decides. A 2xx is success once its head is complete, with up to 256 headers, whatever is
//!   wrong with them.
//! * **Connections.** One is closed after a 5xx, a 421 or a broken attempt, so that a bad server behind a balancer does not
//!   keep it, and after four minutes at most.
//! * **Unreadable replies.** The client reports nothing of a reply with more than 256 headers, or whose head is not HTTP, not even
//!   its status. Variance may have the event, so the event is retried after 10 s, and not at once.

use std::{
    error::Error,
    fmt, io,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderName, LOCATION, RETRY_AFTER},
};
use reqwest::{Request, Response};
use rustls::{AlertDescription, CertificateError};
use tokio::time::timeout;
use url::{Position, Url};

pub use self::{credential::Authorization, network::Network};
use self::{
    credential::Credential,
    resolver::LookUpFailed,
    slots::{Slot, Slots},
};
use crate::{backoff, metrics::AttemptLabel};

mod credential;
mod network;
mod resolver;
mod slots;

/// The `User-Agent` of every request.
pub const USER_AGENT: &str = concat!("variance-connector/", env!("CARGO_PKG_VERSION"));

/// The most bytes of a reply's body that are read, only to use the connection again.
const MAX_REPLY: usize = 16 << 10;

/// The longest that this may take.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// The settings of the destination.
#[derive(Clone)]
pub struct DestinationSettings {
    /// The webhook URL, without user and password.
    pub webhook_url: Url,
    /// The credential that Variance asks for.
    pub authorization: Authorization,
    /// The longest time from the start of an attempt to the end of the reply's head.
    pub attempt_timeout: Duration,
    /// The way to its host.
    pub network: Network,
    /// The longest that a connection is used. Not a setting of users: tests make it shorter.
    pub connections_kept_for: Duration,
}

impl fmt::Debug for DestinationSettings {
    /// Shows only the URL's host: the path and query may be as good as a credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { webhook_url, authorization, attempt_timeout, network, connections_kept_for } = self;
        f.debug_struct("DestinationSettings")
            .field("host", &webhook_url.host_str())
            .field("authorization", authorization)
            .field("attempt_timeout", attempt_timeout)
            .field("network", network)
            .field("connections_kept_for", connections_kept_for)
            .finish_non_exhaustive()
    }
}

/// The longest that a connection is used by default, after which a changed address or certificate is noticed.
pub const CONNECTIONS_KEPT_FOR: Duration = Duration::from_secs(4 * 60);

/// The result of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptResult {
    /// Variance has the event.
    Accepted,
    /// Variance refuses this event.
    Refused(StatusCode),
    /// The attempt failed in another way, and the event is to be retried.
    Failed {
        /// The reason.
        fault: Fault,
        /// The pause that Variance asked for.
        retry_after: Option<Duration>,
    },
}

/// The reason why an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Variance answered with a status that neither accepts nor refuses the event.
    #[error("Variance answered {0}")]
    Status(StatusCode),
    /// Variance refused the event, but nothing shows that it accepts any.
    #[error("Variance refuses every event: {0}")]
    RefusesAll(StatusCode),
    /// Variance did not answer in time.
    #[error("Variance did not answer in time")]
    Timeout,
    /// The look-up of the host's name took most of the attempt's time.
    #[error("looking up the name of Variance's host took too long")]
    SlowDns,
    /// There is no address for the host's name.
    #[error("the name of Variance's host could not be resolved")]
    Dns,
    /// The host's certificate is for other names.
    #[error("the certificate of Variance's host is for another name")]
    TlsName,
    /// The host's certificate is marked as that of an authority, and not of a server.
    #[error("the certificate of Variance's host is an authority's, and may not be used by a server")]
    TlsAuthority,
    /// The host speaks no version of TLS that is safe.
    #[error("Variance's host speaks neither TLS 1.2 nor 1.3")]
    TlsVersion,
    /// The host asks for a client certificate.
    #[error("Variance's host asks for a client certificate, which the connector does not have")]
    TlsClientCertificate,
    /// The host does not speak HTTP/1.1.
    #[error("Variance's host speaks only HTTP/2, and the connector only HTTP/1.1")]
    Http2,
    /// The host ended the TLS handshake without a reason.
    #[error("Variance's host refused the TLS connection")]
    TlsAlert,
    /// The host's certificate cannot be trusted, or the host does not speak TLS.
    #[error("no trusted TLS connection to Variance's host")]
    Tls,
    /// The proxy makes no connection to the host.
    #[error("the proxy makes no connection to Variance's host")]
    Proxy,
    /// The host accepts no connections.
    #[error("no connection to Variance's host")]
    Connect,
    /// The connection broke before the reply was complete.
    #[error("the connection to Variance broke before its reply")]
    Broken,
    /// There is a reply, but not even its status is readable.
    #[error("the reply of Variance's host could not be read as HTTP/1.1")]
    Unreadable,
}

impl From<AttemptResult> for AttemptLabel {
    fn from(result: AttemptResult) -> Self {
        match result {
            AttemptResult::Accepted => Self::Accepted,
            AttemptResult::Refused(_) => Self::Refused,
            AttemptResult::Failed { fault, .. } => match fault {
                Fault::Status(_) | Fault::RefusesAll(_) => Self::Status,
                Fault::Timeout | Fault::SlowDns => Self::Timeout,
                Fault::Dns
                | Fault::TlsName
                | Fault::TlsAuthority
                | Fault::TlsVersion
                | Fault::TlsClientCertificate
                | Fault::Http2
                | Fault::TlsAlert
                | Fault::Tls
                | Fault::Proxy
                | Fault::Connect => Self::Connect,
                Fault::Broken | Fault::Unreadable => Self::Broken,
            },
        }
    }
}

impl Fault {
    /// True for a fault that a wrong webhook URL may cause.
    pub fn is_url(self) -> bool {
        match self {
            Self::Status(status) => matches!(status.as_u16(), 300..=399 | 404 | 405 | 410),
            Self::Dns | Self::RefusesAll(_) => true,
            _ => false,
        }
    }

    /// True if Variance did not accept the credential.
    pub fn is_credential(self) -> bool {
        matches!(self, Self::Status(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN))
    }

    /// True if the fault may be that of the event alone: Variance, or a firewall before it, read the event and did not like
    /// it. That is no matter of the credential (401, 407), of the rate (429) or of the load (503, a time-out).
    pub fn may_be_of_one_event(self) -> bool {
        match self {
            Self::Status(status) => !matches!(status.as_u16(), 401 | 407 | 429 | 503),
            fault => matches!(fault, Self::RefusesAll(_) | Self::Broken),
        }
    }

    /// Returns the least time before the event is retried. Variance may have an event whose reply could not be read.
    pub fn least_wait(self) -> Duration {
        if self == Self::Unreadable { Duration::from_secs(10) } else { Duration::ZERO }
    }
}

impl AttemptResult {
    /// Returns the meaning of a reply with this status.
    pub fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            200..=299 => Self::Accepted,
            401..=408 | 410 | 417 | 421 | 425 | 426 | 429 | 431 | 499 => Self::failed(Fault::Status(status)),
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
    slots: Slots,
    url: Url,
    credential: Credential,
    attempt_timeout: Duration,
    has_warned_of_web_page: AtomicBool,
}

impl Destination {
    /// Creates a client, which has as many connections as there are attempts in flight.
    pub fn new(settings: DestinationSettings) -> Self {
        let DestinationSettings { webhook_url, authorization, attempt_timeout, network, connections_kept_for } =
            settings;
        Self {
            slots: Slots::new(network, attempt_timeout, connections_kept_for),
            credential: Credential::new(authorization, host(&webhook_url)),
            url: webhook_url,
            attempt_timeout,
            has_warned_of_web_page: AtomicBool::new(false),
        }
    }

    /// Makes one attempt. [Discard](Reply::discard) the reply, so that the connection can be used again.
    pub async fn post(&self, body: Bytes) -> (AttemptResult, Reply) {
        let (headers, reading) = self.credential.headers();
        // Boxed, because a future of this size would be copied whenever it is passed on.
        let attempt = timeout(self.attempt_timeout, Box::pin(self.send(headers, body)));
        let mut answered = match resolver::timed(attempt).await {
            (Ok(Ok(answered)), _) => answered,
            (Ok(Err(error)), look_up) => {
                let fault = self.named(fault_of(&error), look_up);
                tracing::debug!(error = format!("{:#}", anyhow::Error::new(error.without_url())), "{fault}");
                return (AttemptResult::failed(fault), Reply(None));
            }
            (Err(_elapsed), look_up) => {
                return (AttemptResult::failed(self.named(Fault::Timeout, look_up)), Reply(None));
            }
        };
        let status = answered.reply.status();
        let mut result = AttemptResult::of_status(status);
        if let AttemptResult::Failed { fault, retry_after } = &mut result {
            if fault.is_credential() {
                self.credential.doubt(reading);
            }
            if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
                *retry_after = asked_for(answered.reply.headers());
            }
        }
        if status.is_server_error() || status == StatusCode::MISDIRECTED_REQUEST {
            answered.slot = None;
        }
        let reply = Reply(Some(answered));
        if result == AttemptResult::Accepted
            && reply.is_web_page()
            && !self.has_warned_of_web_page.swap(true, Ordering::Relaxed)
        {
            tracing::warn!("Variance answered {} with a web page: is variance.webhook_url right?", status.as_u16());
        }
        (result, reply)
    }

    /// Sends the request, and at once a second time if a connection breaks that may have been idle: most often, Variance has
    /// just closed it.
    async fn send(&self, headers: HeaderMap, body: Bytes) -> reqwest::Result<Box<Unread>> {
        let mut slot = self.slots.take();
        let reply = match slot.client.execute(self.request(headers, body.clone())).await {
            Err(error) if slot.may_have_been_idle() && fault_of(&error) == Fault::Broken => {
                let (headers, _) = self.credential.headers();
                slot = self.slots.new_slot();
                slot.client.execute(self.request(headers, body)).await?
            }
            result => result?,
        };
        Ok(Box::new(Unread { reply, slot: Some((self.slots.clone(), slot)) }))
    }

    fn request(&self, headers: HeaderMap, body: Bytes) -> Request {
        let mut request = Request::new(Method::POST, self.url.clone());
        *request.headers_mut() = headers;
        request.headers_mut().insert(CONTENT_LENGTH, body.len().into());
        *request.body_mut() = Some(body.into());
        request
    }

    /// Returns a more exact fault, given the time that the attempt waited for the look-up of a name.
    fn named(&self, fault: Fault, look_up: Duration) -> Fault {
        match fault {
            Fault::Timeout if look_up * 2 > self.attempt_timeout => Fault::SlowDns,
            Fault::TlsAlert if self.slots.network().was_asked_for_certificate() => Fault::TlsClientCertificate,
            fault => fault,
        }
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Destination").field("host", &self.url.host_str()).finish_non_exhaustive()
    }
}

/// Returns the `Host` of a request to this URL, which has the port unless that is the default.
fn host(url: &Url) -> HeaderValue {
    HeaderValue::from_str(&url[Position::BeforeHost..Position::AfterPort]).expect("a URL's host is plain ASCII")
}

/// Returns the pause that a reply asks for, counted from its own `Date` if it has one.
fn asked_for(headers: &HeaderMap) -> Option<Duration> {
    let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    backoff::retry_after(headers.get(RETRY_AFTER)?.as_bytes(), date.unwrap_or_else(SystemTime::now))
}

/// A reply whose status has been judged and whose body is unread.
///
/// Boxed, because it is large and passed on many times.
pub struct Reply(Option<Box<Unread>>);

struct Unread {
    reply: Response,
    /// The client that received the reply, and the slots to return it to, unless its connection is to be closed.
    slot: Option<(Slots, Slot)>,
}

impl fmt::Debug for Reply {
    /// Shows neither the URL that was asked nor the headers, which may name another.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.0.as_ref().map(|unread| unread.reply.status());
        f.debug_struct("Reply").field("status", &status).finish_non_exhaustive()
    }
}

impl Reply {
    fn header(&self, name: HeaderName) -> Option<&HeaderValue> {
        self.0.as_ref()?.reply.headers().get(name)
    }

    /// Returns the `Location` to which the reply redirects.
    pub fn location(&self) -> Option<&str> {
        self.header(LOCATION)?.to_str().ok()
    }

    /// True if the reply is a page for people, such as the login page of a proxy.
    pub fn is_web_page(&self) -> bool {
        let start = self.header(CONTENT_TYPE).and_then(|value| value.as_bytes().get(..9));
        start.is_some_and(|start| start.eq_ignore_ascii_case(b"text/html"))
    }

    /// Reads the body within limits, so that the connection can be used again. A longer body closes it.
    pub async fn discard(self) {
        let Some(mut unread) = self.0 else { return };
        let Some((slots, slot)) = unread.slot.take() else { return };
        if unread.reply.content_length() != Some(0) {
            let read = async {
                let mut left = MAX_REPLY;
                while let Ok(Some(chunk)) = unread.reply.chunk().await {
                    match left.checked_sub(chunk.len()) {
                        Some(less) => left = less,
                        None => break,
                    }
                }
            };
            // Whether it ended or not makes no difference: dropping a reply that is not read to its end closes the connection.
            drop(timeout(REPLY_TIMEOUT, read).await);
        }
        drop(unread);
        slots.give_back(slot);
    }
}

fn fault_of(error: &reqwest::Error) -> Fault {
    let mut fault = match error {
        error if error.is_timeout() => Fault::Timeout,
        error if error.is_connect() => Fault::Connect,
        _ => Fault::Broken,
    };
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref() {
            return fault_of_tls(error);
        } else if error.is::<LookUpFailed>() {
            return Fault::Dns;
        } else if error.downcast_ref().is_some_and(hyper::Error::is_parse) {
            fault = Fault::Unreadable;
        } else if error.to_string().starts_with("tunnel error") {
            // The error's type is private to the client's connector; its text is what tells it.
            fault = Fault::Proxy;
        }
        cause = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    fault
}

fn fault_of_tls(error: &rustls::Error) -> Fault {
    match error {
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => Fault::TlsName,
        // The error of the library that judges certificates has no name of its own here.
        rustls::Error::InvalidCertificate(CertificateError::Other(other))
            if format!("{other:?}").contains("CaUsedAsEndEntity") =>
        {
            Fault::TlsAuthority
        }
        rustls::Error::PeerIncompatible(_) | rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) => {
            Fault::TlsVersion
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => Fault::TlsClientCertificate,
        rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => Fault::Http2,
        rustls::Error::AlertReceived(_) => Fault::TlsAlert,
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

    #[test]
    fn the_host_has_its_port_unless_that_is_the_default() {
        for (url, expected) in [
            ("https://variance.example/hook?a=b#c", "variance.example"),
            ("https://variance.example:443/", "variance.example"),
            ("http://user:password@variance.example:80", "variance.example"),
            ("http://variance.example:443/", "variance.example:443"),
            ("http://[2001:db8::1]:8080/", "[2001:db8::1]:8080"),
            ("https://bücher.example/", "xn--bcher-kva.example"),
        ] {
            assert_eq!(host(&url.parse().unwrap()), expected, "{url}");
        }
    }

    #[test]
    fn a_date_to_come_back_at_counts_from_the_replys_own_date() {
        let headers = |pairs: &[(HeaderName, &str)]| {
            HeaderMap::from_iter(pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())))
        };
        // Variance's clock is an hour ahead.
        let in_an_hour =
            |seconds: u64| httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3600 + seconds));
        let (date, later) = (&*in_an_hour(0), &*in_an_hour(3));
        let three = Some(Duration::from_secs(3));
        let by_its_clock = asked_for(&headers(&[(DATE, date), (RETRY_AFTER, later)])).unwrap();
        assert!((3..=4).contains(&by_its_clock.as_secs()), "{by_its_clock:?}");
        assert_eq!(asked_for(&headers(&[(DATE, later), (RETRY_AFTER, date)])), None, "it is over");
        assert_eq!(asked_for(&headers(&[(DATE, date), (RETRY_AFTER, "3")])), three);
        assert_eq!(asked_for(&headers(&[(DATE, "now"), (RETRY_AFTER, "3")])), three);
        let by_our_clock = asked_for(&headers(&[(RETRY_AFTER, date)])).unwrap();
        assert!(by_our_clock > Duration::from_secs(100), "{by_our_clock:?}");
    }
}

//! What Variance's answer to one event means, and what to do about it.

use std::{fmt, time::Duration};

use http::StatusCode;
use serde::Serialize;
use url::Url;

use crate::destination::{AttemptResult, CONNECT_TIMEOUT, Fault};

/// What came of the test event.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    pub(super) result: Outcome,
    /// The status of the answer, if there was one that is not a success.
    status: Option<u16>,
    /// The same in words.
    text: String,
}

/// The kinds of answers, and of their absence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    Accepted,
    EventRefused,
    CredentialRefused,
    WrongPath,
    Redirect,
    Busy,
    ServerError,
    ProxyRefused,
    TimedOut,
    CannotResolve,
    TlsNameMismatch,
    TlsUntrusted,
    CannotConnect,
    ConnectionBroken,
}

impl Answer {
    pub(super) fn of(result: AttemptResult, url: &Url, location: Option<&str>, timeout: Duration) -> Self {
        let host = url.host_str().unwrap_or_default();
        let status = match result {
            AttemptResult::Refused(status) | AttemptResult::Failed { fault: Fault::Status(status), .. } => Some(status),
            AttemptResult::Accepted | AttemptResult::Failed { .. } => None,
        };
        let (result, text) = match result {
            AttemptResult::Accepted => (Outcome::Accepted, "accepted: Variance has the test event".to_owned()),
            AttemptResult::Refused(status) => (
                Outcome::EventRefused,
                format!(
                    "event refused: Variance answered {status}. The credential was taken, but not the event: is \
                     variance.webhook_url the one from Variance > Integrations > PostHog?"
                ),
            ),
            AttemptResult::Failed { fault: Fault::Status(status), .. } => of_status(status, url, location),
            AttemptResult::Failed { fault: Fault::Timeout, .. } => (
                Outcome::TimedOut,
                format!(
                    "timed out: {host} did not answer within {} (delivery.attempt_timeout, of which connecting may take {})",
                    humantime::format_duration(timeout),
                    humantime::format_duration(CONNECT_TIMEOUT.min(timeout))
                ),
            ),
            AttemptResult::Failed { fault: Fault::Dns, .. } => (
                Outcome::CannotResolve,
                format!(
                    "cannot resolve: there is no address for {host}. Is it spelt right, and is DNS reachable from here?"
                ),
            ),
            AttemptResult::Failed { fault: Fault::TlsName, .. } => (
                Outcome::TlsNameMismatch,
                format!(
                    "TLS name mismatch: the certificate is not for {host}. Is it the right host, or does a proxy stand \
                     in between?"
                ),
            ),
            AttemptResult::Failed { fault: Fault::Tls, .. } => (
                Outcome::TlsUntrusted,
                format!(
                    "no trusted TLS: {host} speaks no TLS on port {}, or its certificate has expired or comes from an \
                     authority that this machine does not know (SSL_CERT_FILE can name a bundle with it)",
                    url.port_or_known_default().unwrap_or_default()
                ),
            ),
            AttemptResult::Failed { fault: Fault::Connect, .. } => (
                Outcome::CannotConnect,
                format!(
                    "cannot connect: nothing takes connections at {host}, port {}. Does a firewall or a proxy stand in \
                     between (HTTPS_PROXY)?",
                    url.port_or_known_default().unwrap_or_default()
                ),
            ),
            AttemptResult::Failed { fault: Fault::Broken, .. } => (
                Outcome::ConnectionBroken,
                format!(
                    "connection broken: {host} closed it before it answered; it may or may not have the test event"
                ),
            ),
        };
        Self { result, status: status.map(|status| status.as_u16()), text }
    }

    pub(super) fn is_accepted(&self) -> bool {
        self.result == Outcome::Accepted
    }
}

fn of_status(status: StatusCode, url: &Url, location: Option<&str>) -> (Outcome, String) {
    match status.as_u16() {
        401 | 403 => (
            Outcome::CredentialRefused,
            format!(
                "credential refused: Variance answered {status}. variance.authorization must be the whole value of the \
                 header, as Variance > Integrations > PostHog shows it"
            ),
        ),
        404 | 405 | 410 => (
            Outcome::WrongPath,
            format!(
                "wrong path: Variance answered {status}. There is no webhook at the path of variance.webhook_url: copy it \
                 again"
            ),
        ),
        300..=399 => {
            let text = format!(
                "redirect: Variance answered {status}{}. Redirects are not followed: set variance.webhook_url to \
                 where it should go",
                direction(url, location)
            );
            (Outcome::Redirect, text)
        }
        407 => (Outcome::ProxyRefused, format!("proxy refused: the proxy answered {status}, it wants a credential")),
        408 | 425 | 429 | 503 => (
            Outcome::Busy,
            format!("busy: Variance answered {status}, which is no fault of the configuration: try again"),
        ),
        _ => (
            Outcome::ServerError,
            format!(
                "server error: Variance answered {status}, which is no fault of the configuration: try again later"
            ),
        ),
    }
}

/// Where a redirect leads, but for the path: it is as good as that of the webhook's URL, which is not shown either.
fn direction(url: &Url, location: Option<&str>) -> String {
    match location.and_then(|location| url.join(location).ok()) {
        Some(target) if target.origin() == url.origin() => " to another path of the same host".to_owned(),
        Some(target) if target.origin().is_tuple() => format!(" to {}", target.origin().ascii_serialization()),
        _ => String::new(),
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

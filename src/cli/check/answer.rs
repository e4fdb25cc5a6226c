//! The meaning of Variance's answer to one event, and advice on it.

use std::{fmt, time::Duration};

use http::StatusCode;
use serde::Serialize;
use url::Url;

use crate::destination::{AttemptResult, Fault, Reply};

/// The result of the test event.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    /// The kind of answer, as a word for programs.
    result: &'static str,
    /// The status of the answer, if there was one that is not a success.
    status: Option<u16>,
    /// The result in words.
    text: String,
}

const ACCEPTED: &str = "accepted";

impl Answer {
    pub(super) fn of(result: AttemptResult, url: &Url, reply: &Reply, timeout: Duration) -> Self {
        let (result, status, text) = match result {
            AttemptResult::Accepted if reply.is_web_page() => {
                let text = "accepted, but with a web page: is variance.webhook_url right, or does a proxy answer with its \
                            login page?";
                (ACCEPTED, None, text.to_owned())
            }
            AttemptResult::Accepted => (ACCEPTED, None, "accepted: Variance has the test event".to_owned()),
            AttemptResult::Refused(status) => ("event_refused", Some(status), refused(status)),
            AttemptResult::Failed { fault, .. } => of_fault(fault, url, reply.location(), timeout),
        };
        Self { result, status: status.map(|status| status.as_u16()), text }
    }

    pub(super) fn is_accepted(&self) -> bool {
        self.result == ACCEPTED
    }
}

fn of_status(status: StatusCode, url: &Url, location: Option<&str>) -> (&'static str, String) {
    let (result, start, advice) = match status.as_u16() {
        401 | 403 => (
            "credential_refused",
            "credential refused: Variance",
            ". variance.authorization must be the whole value of the header, as Variance > Integrations > PostHog shows it",
        ),
        404 | 405 | 410 => (
            "wrong_path",
            "wrong path: Variance",
            ". There is no webhook at the path of variance.webhook_url: copy it again",
        ),
        300..=399 => {
            let direction = direction(url, location);
            let text = format!(
                "redirect: Variance answered {status}{direction}. Redirects are not followed: set variance.webhook_url to \
                 where it should go"
            );
            return ("redirect", text);
        }
        407 => ("proxy_refused", "proxy refused: the proxy", ", it wants a credential"),
        408 | 425 | 429 | 503 => ("busy", "busy: Variance", ", which is not a configuration problem: try again"),
        _ => ("server_error", "server error: Variance", ", which is not a configuration problem: try again later"),
    };
    (result, format!("{start} answered {status}{advice}"))
}

fn refused(status: StatusCode) -> String {
    format!(
        "event refused: Variance answered {status}. The credential was taken, but not the event: is \
         variance.webhook_url the one from Variance > Integrations > PostHog?"
    )
}

/// Says what a fault means that Variance has with every event, and what to do about it.
pub(in crate::cli) fn advice(fault: Fault, url: &Url, timeout: Duration) -> String {
    match fault {
        Fault::RefusesAll(status) => refused(status),
        fault => of_fault(fault, url, None, timeout).2,
    }
}

/// Says what it means that Variance did not take the event.
fn of_fault(
    fault: Fault,
    url: &Url,
    location: Option<&str>,
    timeout: Duration,
) -> (&'static str, Option<StatusCode>, String) {
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or_default();
    let (result, text) = match fault {
        Fault::Status(status) | Fault::RefusesAll(status) => {
            let (result, text) = of_status(status, url, location);
            return (result, Some(status), text);
        }
        Fault::Timeout => (
            "timed_out",
            format!(
                "timed out: {host} did not answer within {} (delivery.attempt_timeout)",
                humantime::format_duration(timeout)
            ),
        ),
        Fault::SlowDns => (
            "cannot_resolve",
            format!(
                "cannot resolve in time: looking up {host} took most of {} (delivery.attempt_timeout). Does the first name \
                 server in /etc/resolv.conf answer?",
                humantime::format_duration(timeout)
            ),
        ),
        Fault::Dns => (
            "cannot_resolve",
            format!(
                "cannot resolve: there is no address for {host}. Is it spelt right, and is DNS reachable from here?"
            ),
        ),
        Fault::TlsName => (
            "tls_name_mismatch",
            format!(
                "TLS name mismatch: the certificate is not for {host}. Is it the right host, or does a proxy stand in \
                 between?"
            ),
        ),
        Fault::TlsAuthority => (
            "tls_untrusted",
            format!(
                "an authority's certificate: {host} presents one that is marked as an authority's. Make one for the server \
                 that the authority has signed"
            ),
        ),
        Fault::TlsVersion => ("tls_untrusted", format!("TLS too old: {host} speaks neither TLS 1.2 nor 1.3")),
        Fault::TlsClientCertificate => {
            ("tls_untrusted", format!("client certificate: {host} asks for one, which this program cannot present"))
        }
        Fault::TlsAlert => (
            "tls_untrusted",
            format!("TLS refused: {host} ended the handshake without saying why. Its log may say more"),
        ),
        Fault::Http2 => (
            "cannot_connect",
            format!("HTTP/2 alone: {host} speaks no HTTP/1.1 on port {port}. Is there another address that does?"),
        ),
        Fault::Proxy => (
            "proxy_refused",
            format!(
                "proxy refused: the proxy (HTTPS_PROXY or ALL_PROXY) makes no connection to {host}. Does it allow that host, \
                 and does it want a credential?"
            ),
        ),
        Fault::Unreadable => (
            "connection_broken",
            format!(
                "unreadable: the answer of {host} is not HTTP/1.1 (does it speak HTTP/2 alone, or another protocol, on port \
                 {port}?). Variance may have the test event, or not"
            ),
        ),
        Fault::Tls => (
            "tls_untrusted",
            format!(
                "no trusted TLS: {host} speaks no TLS on port {port}, or its certificate has expired or comes from an \
                 authority that this machine does not know (SSL_CERT_FILE can name a bundle with it)"
            ),
        ),
        Fault::Connect => (
            "cannot_connect",
            format!(
                "cannot connect: nothing takes connections at {host}, port {port}. Does a firewall or a proxy stand in \
                 between (HTTPS_PROXY)?"
            ),
        ),
        Fault::Broken => (
            "connection_broken",
            format!("connection broken: {host} closed it before it answered; it may or may not have the test event"),
        ),
    };
    (result, None, text)
}

/// Describes where a redirect leads, without the path: it is as secret as that of the webhook URL, which is not shown
/// either.
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

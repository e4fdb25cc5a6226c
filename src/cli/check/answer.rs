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
    /// True if an acceptance is in doubt, because it came with a web page.
    #[serde(skip)]
    is_web_page: bool,
}

const ACCEPTED: &str = "accepted";

impl Answer {
    pub(super) fn of(result: AttemptResult, url: &Url, reply: &Reply, timeout: Duration) -> Self {
        let is_web_page = reply.is_web_page();
        let (result, status, text) = match result {
            AttemptResult::Accepted if is_web_page => {
                let text = "accepted, but the reply is a web page: is variance.webhook_url right, or is this the login page of \
                            a proxy?";
                (ACCEPTED, None, text.to_owned())
            }
            AttemptResult::Accepted => (ACCEPTED, None, "accepted: Variance has the test event".to_owned()),
            AttemptResult::Refused(status) => ("event_refused", Some(status), refused(status)),
            AttemptResult::Failed { fault, .. } => {
                let status = match fault {
                    Fault::Status(status) | Fault::RefusesAll(status) => Some(status),
                    _ => None,
                };
                (word(fault), status, text(fault, url, reply.location(), timeout))
            }
        };
        Self { result, status: status.map(|status| status.as_u16()), text, is_web_page }
    }

    pub(super) fn is_accepted(&self) -> bool {
        self.result == ACCEPTED
    }

    /// True if there is nothing to warn of.
    pub(super) fn is_fine(&self) -> bool {
        self.is_accepted() && !self.is_web_page
    }
}

/// Returns the kind of a fault, as a word for programs.
fn word(fault: Fault) -> &'static str {
    match fault {
        Fault::Status(status) | Fault::RefusesAll(status) => match status.as_u16() {
            401 | 403 => "credential_refused",
            404 | 405 | 410 => "wrong_path",
            300..=399 => "redirect",
            407 => "proxy_refused",
            408 | 425 | 429 | 503 => "busy",
            _ => "server_error",
        },
        Fault::Timeout => "timed_out",
        Fault::SlowDns | Fault::Dns => "cannot_resolve",
        Fault::TlsName => "tls_name_mismatch",
        Fault::TlsAuthority | Fault::TlsVersion | Fault::TlsClientCertificate | Fault::TlsAlert | Fault::Tls => {
            "tls_untrusted"
        }
        Fault::Http2 | Fault::Connect => "cannot_connect",
        Fault::Proxy => "proxy_refused",
        Fault::Unreadable | Fault::Broken => "connection_broken",
    }
}

fn text_of_status(status: StatusCode, url: &Url, location: Option<&str>) -> String {
    let (start, advice) = match status.as_u16() {
        401 | 403 => (
            "credential refused: Variance",
            ". variance.authorization must be the whole value of the header, as Variance > Integrations > PostHog shows it",
        ),
        404 | 405 | 410 => (
            "wrong path: Variance",
            ". There is no webhook at the path of variance.webhook_url: copy the URL again from Variance > Integrations > PostHog",
        ),
        300..=399 => {
            let direction = direction(url, location);
            return format!(
                "redirect: Variance answered {status}{direction}. Redirects are not followed: set variance.webhook_url to \
                 the URL that it leads to"
            );
        }
        407 => {
            ("proxy refused: the proxy", ". It needs a credential: write the proxy as http://user:password@host:port")
        }
        408 | 425 | 429 | 503 => ("busy: Variance", ". This is not a configuration problem: try again"),
        _ => ("server error: Variance", ". This is not a configuration problem: try again later"),
    };
    format!("{start} answered {status}{advice}")
}

fn refused(status: StatusCode) -> String {
    format!(
        "event refused: Variance answered {status}. It accepted the credential, but not the event: are variance.webhook_url \
         (from Variance > Integrations > PostHog) and variance.format right?"
    )
}

/// Says what a fault means that Variance has with every event, and what to do about it.
pub(in crate::cli) fn advice(fault: Fault, url: &Url, timeout: Duration) -> String {
    match fault {
        Fault::RefusesAll(status) => refused(status),
        fault => text(fault, url, None, timeout),
    }
}

/// Says what it means that Variance did not take the event.
fn text(fault: Fault, url: &Url, location: Option<&str>, timeout: Duration) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or_default();
    let timeout = humantime::format_duration(timeout);
    match fault {
        Fault::Status(status) | Fault::RefusesAll(status) => text_of_status(status, url, location),
        Fault::Timeout => format!("timed out: {host} did not answer within {timeout} (delivery.attempt_timeout)"),
        Fault::SlowDns => format!(
            "cannot resolve in time: looking up {host} took most of {timeout} (delivery.attempt_timeout). Does the first name \
             server in /etc/resolv.conf reply?"
        ),
        Fault::Dns => format!(
            "cannot resolve: there is no address for {host}. Is it spelt right, and is DNS reachable from here?"
        ),
        Fault::TlsName => format!(
            "TLS name mismatch: the certificate is not for {host}. Is the host right, or does a proxy in between reply \
             in its place?"
        ),
        Fault::TlsAuthority => format!(
            "an authority's certificate: {host} presents a certificate that is marked as an authority's. Issue a server \
             certificate that the authority has signed"
        ),
        Fault::TlsVersion => {
            format!("TLS too old: {host} speaks neither TLS 1.2 nor 1.3. Put a proxy that does in front of it")
        }
        Fault::TlsClientCertificate => format!(
            "client certificate: {host} asks for one, which the connector does not have. Put a proxy that has one in front of it"
        ),
        Fault::TlsAlert => format!("TLS refused: {host} ended the handshake without saying why. Its log may say more"),
        Fault::Http2 => format!(
            "only HTTP/2: {host} does not speak HTTP/1.1 on port {port}. Is there another address, or a proxy, that does?"
        ),
        Fault::Proxy => format!(
            "proxy refused: the proxy (HTTPS_PROXY or ALL_PROXY) makes no connection to {host}. Does it allow that host, \
             or does it need a credential?"
        ),
        Fault::Unreadable => format!(
            "unreadable: the reply of {host} is not HTTP/1.1. Does it speak only HTTP/2, or another protocol, on port \
             {port}? Variance may or may not have the test event"
        ),
        Fault::Tls => format!(
            "no trusted TLS: {host} speaks no TLS on port {port}, or its certificate has expired or comes from an \
             authority that this machine does not know (SSL_CERT_FILE can name a bundle with it)"
        ),
        Fault::Connect => format!(
            "cannot connect: nothing accepts connections at {host}, port {port}, or at the proxy if HTTPS_PROXY, HTTP_PROXY \
             or ALL_PROXY names one. Is it running, and does a firewall let the connection pass?"
        ),
        Fault::Broken => format!(
            "connection broken: {host} closed the connection before it replied. Variance may or may not have the test \
             event"
        ),
    }
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

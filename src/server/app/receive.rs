//! How a request with events is judged, read, prepared and answered.

use std::{sync::Arc, time::SystemTime};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep_until},
};

use super::{App, Route};
use crate::{
    auth::{Denied, Proof},
    inflate::{self, Encoding, InflateError},
    posthog,
    server::{
        body::{self, Charge, ReadError},
        intake::{Patience, Prepared},
        reply::Reply,
    },
};

/// What is lent to the mapping at first: most messages find room there, and it need not grow.
const SCRATCH: usize = 4 << 10;

/// How large a body is prepared while all others wait: a fraction of a millisecond.
const LARGE: usize = 256 << 10;

/// The same for one that is packed, which can become a thousand times as large.
const LARGE_PACKED: usize = 4 << 10;

/// A body as it came in.
struct Received {
    bytes: Bytes,
    encoding: Option<Encoding>,
    /// What to answer if the body does not prove its sender either.
    denied: Option<Denied>,
    /// What the bytes are charged to.
    charge: Charge,
}

impl Received {
    /// Whether others would notice that they wait until it is prepared.
    fn is_large(&self) -> bool {
        let limit = if self.encoding.is_some() { LARGE_PACKED } else { LARGE };
        self.bytes.len() > limit
    }
}

impl App {
    /// Answers a request on a route that takes events, and counts that.
    pub(super) async fn receive(&self, route: &Route, request: Request) -> Response {
        let _in_flight = self.requests.token();
        let start = Instant::now();
        let reply = self.answer(route, request, start).await;
        self.intake.metrics.replied(route.label, reply.status, start.elapsed());
        tracing::debug!(
            route = route.label.as_ref(),
            status = reply.status.as_u16(),
            received = reply.report.received,
            "replied"
        );
        reply.into_response()
    }

    async fn answer(&self, route: &Route, request: Request, start: Instant) -> Reply {
        let patience = Patience { arrived: SystemTime::now(), deadline: start + route.deadline };
        let (head, mut body) = request.into_parts();
        let judged = self.judge(route, &head.headers, patience.arrived);
        let received = match judged {
            Ok(proof) => self.read(route, &head.headers, proof, &mut body, start).await,
            Err(reply) => Err(reply),
        };
        let received = match received {
            Ok(received) => received,
            Err(reply) => {
                self.discard(body);
                return reply;
            }
        };
        let size = received.bytes.len();
        let prepared = match received.is_large() {
            true => self.prepare_aside(received, patience).await,
            false => self.prepare(received, patience.arrived),
        };
        match prepared {
            Ok((elements, _charge)) => {
                // Not where it was prepared: that may go on when nobody waits any longer, and then nothing is taken in.
                self.intake.metrics.received(elements.len(), size);
                self.intake.forward(&elements, patience).await
            }
            Err(reply) => reply,
        }
    }

    /// Prepares a body in a thread of its own, one at a time.
    async fn prepare_aside(&self, received: Received, patience: Patience) -> Result<(Vec<Prepared>, Charge), Reply> {
        let thread = tokio::select! {
            thread = Arc::clone(&self.aside).acquire_owned() => thread.expect("it is never closed"),
            () = sleep_until(patience.deadline) => {
                let reason = "the connector is busy with other bodies of this size: send it again";
                return Err(Reply::error(StatusCode::SERVICE_UNAVAILABLE, reason));
            }
            () = self.intake.draining.cancelled() => return Err(Reply::draining()),
        };
        let app = self.clone();
        let prepared = spawn_blocking(move || {
            let prepared = app.prepare(received, patience.arrived);
            drop(thread);
            prepared
        });
        prepared.await.expect("it does not panic, and nobody ends it")
    }

    /// Unpacks and decodes a body, finds out who sent it if that is not known, and lets it go: what is kept of it is less.
    fn prepare(&self, received: Received, arrived: SystemTime) -> Result<(Vec<Prepared>, Charge), Reply> {
        let Received { mut bytes, encoding, denied, mut charge } = received;
        if let Some(encoding) = encoding {
            let grow = |more| charge.grow(more).map_err(|body::Full| inflate::Full);
            let unpacked = inflate::inflate(encoding, &bytes, self.max_body, grow);
            bytes = unpacked.map_err(|error| self.inflate_error(error))?.into();
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| "the body is not JSON: it is not UTF-8".to_owned());
        let mut scratch = Vec::with_capacity(bytes.len().min(SCRATCH));
        let body =
            text.map(|text| posthog::Body::parse(text, |element| self.intake.prepare(element, arrived, &mut scratch)));
        let body = match body {
            Ok(Ok(body)) => body,
            // Who may not send is told no more than that.
            _ if let Some(denied) = denied => return Err(self.deny(denied)),
            Ok(Err(error @ posthog::BodyError::TooManyElements)) => {
                return Err(Reply::error(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()));
            }
            Ok(Err(error)) => return Err(Reply::error(StatusCode::BAD_REQUEST, error.to_string())),
            Err(reason) => return Err(Reply::error(StatusCode::BAD_REQUEST, reason)),
        };
        if let Some(denied) = denied {
            if !body.envelope.api_key.is_some_and(|api_key| self.auth.api_key_is_valid(api_key)) {
                return Err(self.deny(denied));
            }
            charge.leave_last();
        }
        charge.change_to(Prepared::allocated(&body.elements)).map_err(|body::Full| self.read_error(ReadError::Full))?;
        Ok((body.elements, charge))
    }

    /// What can be said of a request before its body is read.
    fn judge(&self, route: &Route, headers: &HeaderMap, now: SystemTime) -> Result<Proof, Reply> {
        if self.intake.draining.is_cancelled() {
            return Err(Reply::draining());
        }
        let proof = self.auth.judge_head(headers, now, route.takes_api_key);
        let proof = proof.map_err(|denied| self.deny(denied))?;
        if !is_json(headers) {
            let reason = "the content type must be application/json (or text/plain, or none)";
            return Err(Reply::error(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason));
        }
        Ok(proof)
    }

    /// Reads a body within the budgets for one of its sender.
    async fn read(
        &self,
        route: &Route,
        headers: &HeaderMap,
        proof: Proof,
        body: &mut Body,
        start: Instant,
    ) -> Result<Received, Reply> {
        let encoding = Encoding::of(headers)
            .map_err(|unsupported| Reply::error(StatusCode::UNSUPPORTED_MEDIA_TYPE, unsupported.to_string()))?;
        let mut charge = Charge::new(match proof {
            Proof::Unproven { .. } => vec![route.budget.clone(), self.unproven.clone()],
            Proof::Proven => vec![route.budget.clone()],
        });
        let read = body::read(body, self.max_body, &mut charge, start + route.body_timeout);
        let bytes = tokio::select! {
            read = read => read.map_err(|error| self.read_error(error))?,
            () = self.intake.draining.cancelled() => return Err(Reply::draining()),
        };
        let denied = match proof {
            Proof::Unproven { signature, api_key, otherwise } => {
                if signature && self.auth.signature_is_valid(headers, &bytes) {
                    charge.leave_last();
                    None
                } else if api_key {
                    Some(otherwise)
                } else {
                    return Err(self.deny(otherwise));
                }
            }
            Proof::Proven => None,
        };
        Ok(Received { bytes, encoding, denied, charge })
    }

    /// The reply to a sender without a right credential.
    fn deny(&self, denied: Denied) -> Reply {
        self.intake.metrics.auth_failed(denied.into());
        if let Some(requests) = self.refusals.note(Instant::now()) {
            tracing::warn!(requests, reason = %denied, "senders were refused");
        }
        Reply::error(StatusCode::UNAUTHORIZED, denied.to_string())
    }

    fn inflate_error(&self, error: InflateError) -> Reply {
        match error {
            InflateError::Corrupt(_) => Reply::error(StatusCode::BAD_REQUEST, error.to_string()),
            InflateError::TooLarge => self.read_error(ReadError::TooLarge),
            InflateError::Full => self.read_error(ReadError::Full),
        }
    }

    fn read_error(&self, error: ReadError) -> Reply {
        match error {
            ReadError::TooLarge => {
                let limit = bytesize::ByteSize(self.max_body as u64).display().iec();
                Reply::error(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the body is larger than server.max_body ({limit})"),
                )
            }
            ReadError::Full => Reply::error(StatusCode::TOO_MANY_REQUESTS, body::Full.to_string()),
            ReadError::TooLate => Reply::error(StatusCode::SERVICE_UNAVAILABLE, "the body did not arrive in time"),
            ReadError::BrokenOff => Reply::error(StatusCode::BAD_REQUEST, "the body broke off"),
        }
    }
}

/// Whether the body may be JSON by its type: senders often leave it out, and browsers say `text/plain`.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(content_type) = headers.get(header::CONTENT_TYPE) else { return true };
    let Ok(content_type) = content_type.to_str() else { return false };
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    matches!(essence.as_str(), "" | "application/json" | "text/plain") || essence.ends_with("+json")
}

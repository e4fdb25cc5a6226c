//! The reply to a sender.

use std::fmt::Display;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::inflate::NoRoom;

/// The most problems that a reply names.
const MAX_PROBLEMS: usize = 20;

/// The report on one request: the number of its events by what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Report {
    /// Events in the body.
    pub received: usize,
    /// Events that Variance has.
    pub delivered: usize,
    /// Events that were left out on purpose.
    pub filtered: usize,
    /// Events that Variance refused.
    pub refused: usize,
    /// Elements that are not events.
    pub invalid: usize,
    /// Events that Variance does not have yet.
    pub held: usize,
    /// The first of those that are refused, invalid or held.
    pub problems: Vec<Problem>,
}

/// One event that Variance does not have, or the whole request where no event can be named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Problem {
    /// Its place in the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    /// Its uuid, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The reason, in words for the user of PostHog.
    pub reason: String,
}

impl Report {
    /// Adds a problem, if there is room for it.
    pub(super) fn problem(&mut self, index: usize, uuid: Option<&str>, reason: impl Display) {
        if self.problems.len() < MAX_PROBLEMS {
            let uuid = uuid.map(str::to_owned);
            self.problems.push(Problem { index: Some(index), uuid, reason: reason.to_string() });
        }
    }

    /// Returns the status that says whether to send the request again.
    pub(super) fn status(&self) -> StatusCode {
        if self.held > 0 {
            StatusCode::SERVICE_UNAVAILABLE
        } else if self.received > 0 && self.refused + self.invalid == self.received {
            StatusCode::UNPROCESSABLE_ENTITY
        } else {
            StatusCode::OK
        }
    }
}

/// A reply of this service: always small, always JSON.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The body.
    pub report: Report,
    /// The seconds after which to send again.
    pub retry_after: Option<u64>,
    /// True to close the connection after this reply.
    pub close: bool,
}

impl Reply {
    /// Creates a reply to a request as a whole.
    pub(super) fn error(status: StatusCode, reason: impl Into<String>) -> Self {
        let problem = Problem { index: None, uuid: None, reason: reason.into() };
        let report = Report { problems: vec![problem], ..Report::default() };
        let retry = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        Self { status, report, retry_after: retry.then_some(1), close: false }
    }

    /// The reply to a body that is over the limit, packed or not.
    pub(super) fn too_large(max_body: usize) -> Self {
        let limit = bytesize::ByteSize(max_body as u64).display().iec();
        Self::error(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than server.max_body ({limit})"))
    }

    /// The reply to a request beyond those that may be in flight.
    pub(super) fn too_many() -> Self {
        let reason = "the connector has as many requests in flight as it can take: send the request again";
        Self::error(StatusCode::TOO_MANY_REQUESTS, reason)
    }

    /// The reply to an unknown path.
    pub(super) fn no_such_path() -> Self {
        Self::error(StatusCode::NOT_FOUND, "no such path: events go to /webhook or /batch")
    }

    /// The reply to a method that the path does not have. The router adds the list of those that it has.
    pub(super) fn no_such_method() -> Self {
        Self::error(
            StatusCode::METHOD_NOT_ALLOWED,
            "no such method on this path: events are posted to /webhook or /batch",
        )
    }

    /// The reply of a service that is stopping.
    pub(super) fn draining() -> Self {
        let reply = Self::error(StatusCode::SERVICE_UNAVAILABLE, "the connector is stopping: send the request again");
        Self { close: true, ..reply }
    }
}

impl From<NoRoom> for Reply {
    fn from(no_room: NoRoom) -> Self {
        Self::error(StatusCode::TOO_MANY_REQUESTS, no_room.to_string())
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let mut response = json(self.status, &self.report);
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 9110, section 15.5.2: a 401 names a way to authenticate.
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// A response with `body` as JSON.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    response(status, "application/json", serde_json::to_vec(body).expect("numbers and strings are always JSON"))
}

/// A response with `body` as it is.
pub(super) fn response(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_tells_whether_a_re_send_could_help() {
        let report = |received, delivered, filtered, refused, invalid, held| Report {
            received,
            delivered,
            filtered,
            refused,
            invalid,
            held,
            problems: Vec::new(),
        };
        for (report, status) in [
            (report(0, 0, 0, 0, 0, 0), 200),
            (report(4, 1, 1, 1, 1, 0), 200),
            (report(2, 0, 1, 0, 1, 0), 200),
            (report(1, 0, 1, 0, 0, 0), 200),
            (report(2, 0, 0, 1, 1, 0), 422),
            (report(1, 0, 0, 0, 1, 0), 422),
            (report(2, 0, 0, 0, 1, 1), 503),
            (report(9, 8, 0, 0, 0, 1), 503),
        ] {
            assert_eq!(report.status().as_u16(), status, "{report:?}");
        }
    }

    #[test]
    fn a_reply_names_twenty_problems_at_most() {
        let mut report = Report::default();
        (0..30).for_each(|index| report.problem(index, None, "bad"));
        assert_eq!(report.problems.len(), 20);
    }
}

//! Variance's webhook: one attempt at a time, and whose fault it is when it fails.

use std::{path::PathBuf, time::Duration};

use axum::http::HeaderValue;
use url::Url;

/// Where messages go, and how long one attempt may take.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The webhook URL, without user and password.
    pub webhook_url: Url,
    /// What Variance knows this customer by.
    pub authorization: Authorization,
    /// From the start of an attempt to the end of the reply's head.
    pub attempt_timeout: Duration,
}

/// The value of the `Authorization` header, and where to look for a newer one.
#[derive(Clone, Debug)]
pub struct Authorization {
    /// The whole header value, marked sensitive.
    pub value: HeaderValue,
    /// The file that it was read from.
    pub file: Option<PathBuf>,
}

//! The closed sets that labels come from.

/// How an event can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Variance has it.
    Delivered,
    /// It is not one to forward.
    Filtered,
    /// Variance will not have it.
    Refused,
    /// It is no event.
    Invalid,
    /// It was held until the end of its time, or of the process's.
    Abandoned,
    /// The sender keeps it: told 503 or 429, and not taken in.
    Returned,
}

impl Outcome {
    pub(super) const ALL: [Self; 6] =
        [Self::Delivered, Self::Filtered, Self::Refused, Self::Invalid, Self::Abandoned, Self::Returned];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Filtered => "filtered",
            Self::Refused => "refused",
            Self::Invalid => "invalid",
            Self::Abandoned => "abandoned",
            Self::Returned => "returned",
        }
    }
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the path of the same name, with or without a slash at its end")]
pub enum Route {
    Webhook,
    Batch,
    Healthz,
    Readyz,
    Metrics,
    /// Nowhere: there is no such path, or no such method on it.
    Other,
}

impl Route {
    pub(super) const ALL: [Self; 6] =
        [Self::Webhook, Self::Batch, Self::Healthz, Self::Readyz, Self::Metrics, Self::Other];

    /// Its name in metrics and the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Batch => "batch",
            Self::Healthz => "healthz",
            Self::Readyz => "readyz",
            Self::Metrics => "metrics",
            Self::Other => "other",
        }
    }

    /// What it answers with.
    pub(super) fn statuses(self) -> &'static [u16] {
        match self {
            Self::Webhook | Self::Batch => &[200, 400, 401, 413, 415, 422, 429, 503],
            Self::Healthz | Self::Metrics => &[200],
            Self::Readyz => &[200, 503],
            Self::Other => &[404, 405],
        }
    }
}

/// What is known of Variance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestinationState {
    /// Nothing was posted yet.
    Unknown,
    /// The last attempt was answered.
    Up,
    /// The last attempts failed.
    Failing,
    /// So many failed that there are none for a while.
    Paused,
}

impl DestinationState {
    pub(super) const ALL: [Self; 4] = [Self::Unknown, Self::Up, Self::Failing, Self::Paused];

    /// Its name in metrics and in what `/healthz` answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Failing => "failing",
            Self::Paused => "paused",
        }
    }
}

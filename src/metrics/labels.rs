//! The closed sets that labels come from. Each part turns its own values into these. A `…Table` has a field for each
//! value, so what is looked up once cannot stand in another's place.

use strum::{AsRefStr, EnumTable, IntoStaticStr, VariantArray};

/// The call that an event becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, AsRefStr, EnumTable, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[expect(missing_docs, reason = "each is the call of the same name")]
pub enum CallLabel {
    Capture,
    Page,
    Identify,
    Alias,
    Group,
    /// None, or none that is known.
    None,
}

/// How an event ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, AsRefStr, EnumTable, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum OutcomeLabel {
    /// Variance has it.
    Delivered,
    /// The settings leave it out, or Variance has no call for it.
    Filtered,
    /// Variance refused it for good.
    Refused,
    /// It is not an event, or one that is too large.
    Invalid,
    /// It was held until its time or the process ended.
    Abandoned,
    /// The sender keeps it: told 503 or 429, and not taken in.
    Returned,
}

/// Whether a re-send has the same bytes as the event that it joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, AsRefStr, EnumTable)]
#[strum(serialize_all = "snake_case")]
pub(super) enum JoinedLabel {
    True,
    False,
}

/// Why an event is filtered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, AsRefStr, EnumTable)]
#[strum(serialize_all = "snake_case")]
pub enum FilteredLabel {
    /// Variance has no call for it.
    NoCall,
    /// `filter.calls` leaves its call out.
    CallOff,
    /// `filter.exclude` names it.
    Excluded,
    /// `filter.include` does not name it.
    NotIncluded,
    /// `filter.anonymous` leaves out whoever is not identified.
    Anonymous,
}

/// What came of an attempt to post.
#[derive(Clone, Copy, Debug, PartialEq, Eq, AsRefStr, EnumTable)]
#[strum(serialize_all = "snake_case")]
pub enum AttemptLabel {
    /// Variance took the event.
    Accepted,
    /// Variance refused the event.
    Refused,
    /// Variance answered with another status.
    Status,
    /// Variance did not answer in time.
    Timeout,
    /// There was no connection: no such name, nobody there, or no TLS.
    Connect,
    /// The connection broke before the answer.
    Broken,
}

/// What is wrong with a sender's credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, AsRefStr, EnumTable)]
#[strum(serialize_all = "snake_case")]
pub enum AuthFailureLabel {
    /// There is none.
    Missing,
    /// There is one, but not a right one.
    Wrong,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, AsRefStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[expect(missing_docs, reason = "each is the path of the same name, with or without a slash at its end")]
pub enum RouteLabel {
    Webhook,
    Batch,
    Healthz,
    Readyz,
    Metrics,
    /// There is no such path, or no such method on it.
    Other,
}

impl RouteLabel {
    /// The statuses of its replies.
    pub(super) fn statuses(self) -> &'static [u16] {
        match self {
            Self::Webhook | Self::Batch => &[200, 400, 401, 413, 415, 422, 429, 503],
            Self::Healthz | Self::Metrics => &[200],
            Self::Readyz => &[200, 503],
            Self::Other => &[404, 405],
        }
    }
}

/// Variance's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, AsRefStr, EnumTable, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum StateLabel {
    /// Nothing was posted yet.
    Unknown,
    /// The last attempt was answered.
    Up,
    /// The last attempts failed.
    Failing,
    /// So many failed that there are none for a while.
    Paused,
}

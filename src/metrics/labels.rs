//! The closed sets of label values. Each part converts its own values into these. A `…Table` has a field for each
//! value, so that a counter that was looked up cannot stand in another's place.

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
    /// There is no call, or it is not known.
    None,
}

/// The outcome of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, AsRefStr, EnumTable, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum OutcomeLabel {
    /// Variance has the event.
    Delivered,
    /// The settings leave the event out, or Variance has no call for it.
    Filtered,
    /// Variance refused the event for good.
    Refused,
    /// The element is not an event, or is too large.
    Invalid,
    /// The event was held until its time was up or the process ended.
    Abandoned,
    /// The sender keeps the event, which was answered with 503 or 429 and not taken in.
    Returned,
}

/// Whether a re-send has the same bytes as the event that it joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, AsRefStr, EnumTable)]
#[strum(serialize_all = "snake_case")]
pub(super) enum JoinedLabel {
    True,
    False,
}

/// The reason why an event is filtered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, AsRefStr, EnumTable)]
#[strum(serialize_all = "snake_case")]
pub enum FilteredLabel {
    /// Variance has no call for the event.
    NoCall,
    /// `filter.calls` leaves out the event's call.
    CallOff,
    /// `filter.exclude` names the event.
    Excluded,
    /// `filter.include` does not name the event.
    NotIncluded,
    /// `filter.anonymous` leaves out people who are not identified.
    Anonymous,
}

/// The result of an attempt to post.
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
    /// There was no connection: the name is unknown, nobody listens, or TLS failed.
    Connect,
    /// The connection broke before the answer.
    Broken,
}

/// The fault of a sender's credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, AsRefStr, EnumTable)]
#[strum(serialize_all = "snake_case")]
pub enum AuthFailureLabel {
    /// There is no credential.
    Missing,
    /// There is a credential, but not a valid one.
    Wrong,
}

/// The route of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, AsRefStr, EnumTable)]
#[strum(serialize_all = "snake_case")]
#[expect(missing_docs, reason = "each is the path of the same name, with or without a slash at its end")]
pub enum RouteLabel {
    Webhook,
    Batch,
    Healthz,
    Readyz,
    Metrics,
    /// There is no such path, or it does not have the method.
    Other,
}

impl RouteLabel {
    /// Returns the statuses of the route's replies.
    pub(super) fn statuses(self) -> &'static [u16] {
        match self {
            Self::Webhook | Self::Batch => &[200, 400, 401, 413, 415, 422, 429, 503],
            Self::Healthz | Self::Metrics => &[200],
            Self::Readyz => &[200, 503],
            Self::Other => &[404, 405],
        }
    }
}

/// The state of Variance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, AsRefStr, EnumTable, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum StateLabel {
    /// Nothing has been posted yet.
    Unknown,
    /// The last attempt was answered.
    Up,
    /// The last attempt failed.
    Failing,
    /// Attempts are paused, since too many failed or Variance asked for it.
    Paused,
}

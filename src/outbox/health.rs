//! Variance's state, and the pacing of the log lines about it.

use std::{
    mem,
    time::{Duration, SystemTime},
};

use http::StatusCode;
use tokio::time::Instant;

use crate::{
    destination::{AttemptResult, Fault},
    metrics::StateLabel,
};

/// The most refusals in a row that are believed.
const REFUSALS_BELIEVED: u32 = 20;

/// The most reasons of one outage that get a line as soon as they appear. Any others wait for the next regular line.
const MAX_REASONS: usize = 16;

/// Variance's state, as the results of attempts show it.
#[derive(Clone, Debug)]
pub struct Health {
    /// The state.
    pub state: StateLabel,
    /// The time at which the state began.
    pub since: SystemTime,
    /// The fault of the last attempt that failed, in the states `failing` and `paused`.
    pub reason: Option<Fault>,
    /// The number of different events that were refused while refusals were in doubt, since the last acceptance.
    pub doubted: usize,
    last_success: Option<Instant>,
    /// The number of events that were accepted.
    pub(super) accepted: u64,
    refused_in_a_row: u32,
    /// The last refusal that was not believed, until the next acceptance.
    doubt: Option<StatusCode>,
    /// The time at which the present outage began.
    outage: Option<Instant>,
    outage_ended: Option<Instant>,
    told: Told,
}

/// The lines about Variance that the log has, and their times.
#[derive(Clone, Debug, Default)]
struct Told {
    /// The beginning of the outage that the log has a line about, until it has one about the end.
    outage: Option<Instant>,
    /// The different reasons that the lines about this outage gave.
    reasons: Vec<Fault>,
    at: Option<Instant>,
    doubt: bool,
    doubt_at: Option<Instant>,
}

/// The least time between log lines about outages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPacing {
    /// The least time before a line about the beginning, the end or a new reason of an outage.
    pub change: Duration,
    /// The time between two lines while an outage lasts with the same reason.
    pub lasting: Duration,
}

/// Something that the log is to say about Variance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Variance cannot take events.
    Paused(Fault),
    /// Variance still cannot take events after this time, or for another reason than before.
    StillPaused(Fault, Duration),
    /// Variance takes events again after an outage of this length.
    Resumed(Duration),
    /// Refusals with this status are not believed.
    RefusesAll(StatusCode),
}

impl Default for Health {
    fn default() -> Self {
        Self {
            state: StateLabel::Unknown,
            since: SystemTime::now(),
            reason: None,
            doubted: 0,
            last_success: None,
            accepted: 0,
            refused_in_a_row: 0,
            doubt: None,
            outage: None,
            outage_ended: None,
            told: Told::default(),
        }
    }
}

impl Health {
    /// Returns the time at which Variance last accepted an event.
    pub fn last_success(&self) -> Option<SystemTime> {
        self.last_success.and_then(|last| SystemTime::now().checked_sub(last.elapsed()))
    }

    /// Returns the result to act on: a refusal is a fault unless the destination accepts other events.
    pub(super) fn believe(&mut self, result: AttemptResult) -> AttemptResult {
        let AttemptResult::Refused(status) = result else { return result };
        self.refused_in_a_row = self.refused_in_a_row.saturating_add(1);
        if self.accepted > 0 && self.refused_in_a_row <= REFUSALS_BELIEVED {
            return result;
        }
        self.doubt = Some(status);
        AttemptResult::Failed { fault: Fault::RefusesAll(status), retry_after: None }
    }

    /// Returns the time since Variance last accepted an event: the longest there is if it never has.
    pub(super) fn since_accepted(&self, now: Instant) -> Duration {
        self.last_success.map_or(Duration::MAX, |last| now.duration_since(last))
    }

    pub(super) fn accepted(&mut self, now: Instant) {
        self.accepted += 1;
        self.last_success = Some(now);
        (self.refused_in_a_row, self.doubt, self.doubted, self.told.doubt) = (0, None, 0, false);
    }

    /// Notes that Variance has accepted or refused an event, and that attempts are not paused.
    pub(super) fn answered(&mut self, now: Instant) {
        if self.outage.take().is_some() {
            self.outage_ended = Some(now);
        }
        if self.state != StateLabel::Up {
            self.enter(StateLabel::Up, None);
        }
    }

    /// Notes a fault of Variance.
    pub(super) fn failed(&mut self, fault: Fault, is_paused: bool, now: Instant) {
        let state = if is_paused { StateLabel::Paused } else { StateLabel::Failing };
        self.outage.get_or_insert(now);
        if state != self.state {
            self.enter(state, Some(fault));
        }
        self.reason = Some(fault);
    }

    fn enter(&mut self, state: StateLabel, reason: Option<Fault>) {
        (self.state, self.since, self.reason) = (state, SystemTime::now(), reason);
    }

    /// Returns the next line for the log, if one is due.
    pub(super) fn news(&mut self, pacing: LogPacing, now: Instant) -> Option<News> {
        if self.news_due(pacing, now).is_none_or(|due| due > now) {
            return None;
        }
        if let Some(status) = self.doubt.filter(|_| !self.told.doubt) {
            (self.told.doubt, self.told.doubt_at) = (true, Some(now));
            return Some(News::RefusesAll(status));
        }
        self.told.at = Some(now);
        match (self.outage, self.told.outage, self.reason) {
            (Some(since), Some(_), Some(reason)) => {
                if self.is_new(reason) {
                    self.told.reasons.push(reason);
                }
                Some(News::StillPaused(reason, now.duration_since(since)))
            }
            (Some(since), None, Some(reason)) => {
                (self.told.outage, self.told.reasons) = (Some(since), vec![reason]);
                Some(News::Paused(reason))
            }
            (None, Some(since), _) => {
                self.told.outage = None;
                let end = mem::take(&mut self.outage_ended).unwrap_or(now);
                Some(News::Resumed(end.duration_since(since)))
            }
            (_, None, _) | (Some(_), Some(_), None) => None,
        }
    }

    /// Returns the time at which the next line for the log is due, if nothing else happens.
    pub(super) fn news_due(&self, pacing: LogPacing, now: Instant) -> Option<Instant> {
        let told = &self.told;
        if self.outage.is_none() && told.outage.is_none() && self.doubt.is_none() {
            return None;
        }
        let after = |last: Option<Instant>, wait| last.map_or(now, |last| last + wait);
        let doubt = (self.doubt.is_some() && !told.doubt).then(|| after(told.doubt_at, pacing.change));
        // A few faults are no outage yet, unless they go on.
        let begins = self.outage.filter(|_| self.state != StateLabel::Paused).map(|since| since + pacing.change);
        let has_changed = self.outage.is_some() != told.outage.is_some();
        let change = has_changed.then(|| begins.into_iter().chain([after(told.at, pacing.change)]).max()).flatten();
        let is_new = self.reason.is_some_and(|reason| self.is_new(reason));
        let lasting = told.outage.map(|_| after(told.at, if is_new { pacing.change } else { pacing.lasting }));
        doubt.into_iter().chain(change.or(lasting)).min()
    }

    /// True if no line about the present outage gave this reason yet.
    fn is_new(&self, reason: Fault) -> bool {
        let reasons = &self.told.reasons;
        reasons.len() < MAX_REASONS && !reasons.contains(&reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACING: LogPacing = LogPacing { change: Duration::from_secs(10), lasting: Duration::from_secs(300) };

    #[test]
    fn each_reason_of_an_outage_is_news_once_and_ten_seconds_after_the_line_before() {
        let (mut health, start) = (Health::default(), Instant::now());
        let [unauthorized, not_found] = [StatusCode::UNAUTHORIZED, StatusCode::NOT_FOUND].map(Fault::Status);
        let mut news = |seconds, fault| {
            let now = start + Duration::from_secs(seconds);
            health.failed(fault, true, now);
            health.news(PACING, now)
        };
        let still = |fault, seconds| Some(News::StillPaused(fault, Duration::from_secs(seconds)));
        assert_eq!(news(0, unauthorized), Some(News::Paused(unauthorized)));
        assert_eq!(news(9, not_found), None);
        assert_eq!(news(10, not_found), still(not_found, 10));
        assert_eq!(news(20, unauthorized), None, "the first line gave this reason");
        assert_eq!(news(30, not_found), None);
        assert_eq!(news(310, unauthorized), still(unauthorized, 310), "the regular line");
        for (at, status) in (320..).step_by(10).zip(500..500 + MAX_REASONS as u16 - 2) {
            assert!(news(at, Fault::Status(StatusCode::from_u16(status).unwrap())).is_some(), "{status}");
        }
        assert_eq!(news(500, Fault::Timeout), None, "this is one reason too many");

        let end = start + Duration::from_secs(510);
        health.accepted(end);
        health.answered(end);
        assert_eq!(health.news(PACING, end), Some(News::Resumed(Duration::from_secs(510))));
        let again = end + PACING.change;
        health.failed(not_found, true, again);
        assert_eq!(health.news(PACING, again), Some(News::Paused(not_found)));
    }
}

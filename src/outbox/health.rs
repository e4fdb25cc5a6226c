//! What is known of Variance's state.

use std::time::SystemTime;

use tokio::time::Instant;

use super::{Outcome, Refusal};
use crate::{destination::Fault, metrics::StateLabel};

/// How many refusals without a delivery between them mean that something is wrong for all.
const REFUSALS_IN_A_ROW: u32 = 100;

/// Variance's state, and since when.
#[derive(Clone, Debug)]
pub struct Health {
    /// How it is.
    pub state: StateLabel,
    /// When that began.
    pub since: SystemTime,
    /// What is wrong, while something is.
    pub reason: Option<Fault>,
    last_success: Option<Instant>,
    refused_in_a_row: u32,
}

/// A change that operators want to know.
#[derive(Clone, Copy, Debug)]
pub(super) enum News {
    /// Posting is paused.
    Paused(Fault),
    /// It goes on after a pause that began then.
    Resumed(SystemTime),
    /// So many events in a row were refused.
    RefusesAll(Refusal, u32),
}

impl Default for Health {
    fn default() -> Self {
        Self {
            state: StateLabel::Unknown,
            since: SystemTime::now(),
            reason: None,
            last_success: None,
            refused_in_a_row: 0,
        }
    }
}

impl Health {
    /// When Variance took an event last.
    pub fn last_success(&self) -> Option<SystemTime> {
        self.last_success.and_then(|last| SystemTime::now().checked_sub(last.elapsed()))
    }

    /// Notes an answer, and returns what there is to log of it.
    pub(super) fn answered(&mut self, outcome: Outcome, now: Instant) -> Vec<News> {
        let mut news = Vec::new();
        if self.state != StateLabel::Up {
            if self.state == StateLabel::Paused {
                news.push(News::Resumed(self.since));
            }
            self.enter(StateLabel::Up, None);
        }
        if let Outcome::Refused(refusal) = outcome {
            self.refused_in_a_row = self.refused_in_a_row.saturating_add(1);
            if self.refused_in_a_row == REFUSALS_IN_A_ROW {
                news.push(News::RefusesAll(refusal, REFUSALS_IN_A_ROW));
            }
        } else {
            self.last_success = Some(now);
            self.refused_in_a_row = 0;
        }
        news
    }

    /// Notes a fault, and returns what there is to log of it.
    pub(super) fn failed(&mut self, fault: Fault, is_paused: bool, was_closed: bool) -> Vec<News> {
        let state = if is_paused { StateLabel::Paused } else { StateLabel::Failing };
        if state != self.state {
            self.enter(state, Some(fault));
        }
        self.reason = Some(fault);
        if is_paused && was_closed { vec![News::Paused(fault)] } else { Vec::new() }
    }

    fn enter(&mut self, state: StateLabel, reason: Option<Fault>) {
        (self.state, self.since, self.reason) = (state, SystemTime::now(), reason);
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn the_refusal_that_ends_a_pause_can_be_the_one_too_many() {
        let (mut health, now) = (Health::default(), Instant::now());
        let refused = Outcome::Refused(Refusal::Status(StatusCode::CONFLICT));
        (1..REFUSALS_IN_A_ROW).for_each(|_| assert!(health.answered(refused, now).is_empty()));
        assert!(matches!(*health.failed(Fault::Timeout, true, true), [News::Paused(Fault::Timeout)]));
        let news = health.answered(refused, now);
        assert!(matches!(*news, [News::Resumed(_), News::RefusesAll(_, REFUSALS_IN_A_ROW)]), "{news:?}");
    }
}

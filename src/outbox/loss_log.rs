//! The log lines about lost events, which name every event without flooding the log.

use std::{collections::BTreeMap, fmt::Display, time::Duration};

use tokio::time::Instant;

/// The most events that a line names.
const PER_LINE: usize = 100;

/// The longest that a line waits for further events.
const LINE_DELAY: Duration = Duration::from_secs(1);

/// Lost events whose line is not written yet, by reason.
#[derive(Debug, Default)]
pub(super) struct LossLog {
    by_reason: BTreeMap<String, Vec<String>>,
    since: Option<Instant>,
}

impl LossLog {
    /// Adds an event. Returns true if it is the first since the last line.
    pub(super) fn note(&mut self, id: &str, reason: &dyn Display, now: Instant) -> bool {
        let is_first = self.since.is_none();
        self.since.get_or_insert(now);
        let reason = reason.to_string();
        let ids = self.by_reason.entry(reason.clone()).or_default();
        ids.push(id.to_owned());
        if ids.len() == PER_LINE {
            log(&reason, &std::mem::take(ids));
        }
        is_first
    }

    /// Writes the lines if they are due. Otherwise returns the time at which they will be, if there are any.
    pub(super) fn flush_if_due(&mut self, now: Instant) -> Option<Instant> {
        let due = self.since? + LINE_DELAY;
        if due > now {
            return Some(due);
        }
        self.flush();
        None
    }

    /// Writes all lines now.
    pub(super) fn flush(&mut self) {
        self.since = None;
        for (reason, ids) in std::mem::take(&mut self.by_reason) {
            if !ids.is_empty() {
                log(&reason, &ids);
            }
        }
    }
}

fn log(reason: &str, ids: &[String]) {
    tracing::error!(count = ids.len(), reason, uuids = ids.join(" "), "events are lost");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_waits_a_second_for_more_to_share_its_line() {
        let (mut losses, start) = (LossLog::default(), Instant::now());
        assert_eq!(losses.flush_if_due(start), None);
        let (due, just_before) = (start + LINE_DELAY, start + LINE_DELAY - Duration::from_nanos(1));
        assert!(losses.note("a", &"one reason", start), "the pacer has to be told");
        assert!(!losses.note("b", &"another", just_before));
        assert_eq!(losses.flush_if_due(just_before), Some(due));
        assert_eq!(losses.by_reason.len(), 2);
        assert_eq!(losses.flush_if_due(due), None);
        assert!(losses.by_reason.is_empty());
        assert!(losses.note("c", &"one reason", due));
        (1..PER_LINE).for_each(|_| assert!(!losses.note("d", &"one reason", due)));
        assert!(losses.by_reason["one reason"].is_empty(), "a full line does not wait");
    }
}

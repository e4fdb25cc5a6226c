//! The order of events: two lanes, and turns among requests.
//!
//! *Live* events are those that a sender waits for and that have not failed; the *backlog* has all others. Live events go first,
//! so that a webhook does not wait behind held events, but of four attempts in a row the backlog gets one, so that it drains
//! too. In the live lane the requests take turns, so that a request of 10,000 events does not delay a request of one. In the
//! backlog, suspects go last.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use super::identities::Number;

/// The most attempts in a row that the live lane gets while an event of the backlog is due.
const LIVE_IN_A_ROW: u32 = 3;

/// The id of a sender's request, from [`Outbox::request`](super::Outbox::request).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub(super) u64);

/// The place of one event in the lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Live(RequestId, Turn),
    /// The event may be attempted from this time on.
    Backlog(Standing, Instant),
}

/// What is known of an event in the backlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Unattempted,
    Failed,
    Suspect,
}

/// The number of a round among the requests, in which each has one event.
type Turn = u64;

/// The events that are not in flight.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    live: BTreeSet<(Turn, Number)>,
    /// The number of live events of each request, and the turn of its last one.
    requests: BTreeMap<RequestId, (usize, Turn)>,
    turn: Turn,
    live_in_a_row: u32,
    /// A queue for each [`Standing`].
    backlog: [BTreeSet<(Instant, Number)>; 3],
}

impl Lanes {
    /// Adds an event after the others of its request.
    pub(super) fn add_live(&mut self, request: RequestId, number: Number) -> Place {
        let (count, last) = self.requests.entry(request).or_default();
        *count += 1;
        *last = self.turn.max(*last) + 1;
        self.live.insert((*last, number));
        Place::Live(request, *last)
    }

    /// Adds an event to the backlog, to be attempted from `due` on.
    pub(super) fn add_backlog(&mut self, standing: Standing, due: Instant, number: Number) -> Place {
        self.backlog[standing as usize].insert((due, number));
        Place::Backlog(standing, due)
    }

    pub(super) fn remove(&mut self, number: Number, place: Place) {
        match place {
            Place::Live(request, turn) => {
                self.live.remove(&(turn, number));
                let (count, _) = self.requests.get_mut(&request).expect("it has this event");
                *count -= 1;
                if *count == 0 {
                    self.requests.remove(&request);
                }
            }
            Place::Backlog(standing, due) => drop(self.backlog[standing as usize].remove(&(due, number))),
        }
    }

    /// Returns the next event, which stays until it is removed. From `suspects_from` on it may be a suspect.
    pub(super) fn next(&self, now: Instant, suspects_from: Instant) -> Option<Number> {
        let due = |standing| self.first(standing).filter(|(due, _)| *due <= now);
        let others = due(Standing::Unattempted).into_iter().chain(due(Standing::Failed)).min();
        let suspect = || due(Standing::Suspect).filter(|_| suspects_from <= now);
        let backlog = others.or_else(suspect).map(|(_, number)| number);
        let live = self.first_live();
        if self.live_in_a_row < LIVE_IN_A_ROW { live.or(backlog) } else { backlog.or(live) }
    }

    pub(super) fn first_live(&self) -> Option<Number> {
        self.live.first().map(|(_, number)| *number)
    }

    fn first(&self, standing: Standing) -> Option<(Instant, Number)> {
        self.backlog[standing as usize].first().copied()
    }

    /// Returns the events of this standing in the backlog, from the one that has waited longest.
    pub(super) fn backlog(&self, standing: Standing) -> impl DoubleEndedIterator<Item = Number> {
        self.backlog[standing as usize].iter().map(|(_, number)| *number)
    }

    /// Notes that the event at this place had its turn.
    pub(super) fn had_turn(&mut self, place: Place) {
        match place {
            Place::Live(_, turn) => {
                self.turn = self.turn.max(turn);
                self.live_in_a_row = self.live_in_a_row.saturating_add(1);
            }
            Place::Backlog(..) => self.live_in_a_row = 0,
        }
    }

    /// Returns the number of events in both lanes.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.live.len() + self.backlog.iter().map(BTreeSet::len).sum::<usize>()
    }

    /// Returns the time at which the first event of the backlog may be attempted, if suspects may be from `suspects_from`
    /// on. Live events may be at once.
    pub(super) fn due(&self, suspects_from: Instant) -> Option<Instant> {
        let first = |standing| self.first(standing).map(|(due, _)| due);
        let suspect = first(Standing::Suspect).map(|due| due.max(suspects_from));
        [first(Standing::Unattempted), first(Standing::Failed), suspect].into_iter().flatten().min()
    }
}

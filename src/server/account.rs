//! The account of a request: one fate for each of its events.

use std::fmt::Display;

use super::reply::Report;
use crate::{
    mapping::Filtered,
    metrics::{CallLabel, Metrics, OutcomeLabel},
    outbox::{Identity, Outcome, Pending},
    posthog::Invalid,
    variance::Message,
};

/// An event that is to be delivered. It no longer needs the body, which takes more memory.
#[derive(Debug)]
pub(super) struct Delivery {
    pub message: Message,
    pub identity: Identity,
    /// False if its uuid is random, which is of no use to the sender.
    pub has_own_id: bool,
}

/// One element of a body.
#[derive(Debug)]
pub(super) struct Item {
    /// The event to deliver; `None` if the element's fate was known at once.
    pub delivery: Option<Delivery>,
    pub fate: Fate,
}

/// The fate of an element.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    /// The event was not taken in: the sender keeps it.
    Returned,
    /// The event is in the outbox.
    UnderWay,
    /// The event has left the outbox.
    Ended(Outcome),
    /// The event is not forwarded.
    Filtered(Filtered),
    /// The element is not an event.
    Invalid(Invalid),
    /// The event is larger than all the memory for held events.
    TooLarge,
}

/// All elements of one request. Dropping the account counts those that were not taken in as returned to the sender.
#[derive(Debug)]
pub(super) struct Account<'m> {
    pub items: Vec<Item>,
    metrics: &'m Metrics,
}

impl Item {
    /// The memory that the element takes, with its share of a list that grows by doubling.
    pub(super) fn allocated(&self) -> usize {
        2 * size_of::<Self>() + self.delivery.as_ref().map_or(0, |delivery| delivery.message.allocated())
    }

    fn uuid(&self) -> Option<&str> {
        self.delivery.as_ref().filter(|delivery| delivery.has_own_id).map(|delivery| delivery.message.id())
    }
}

impl<'m> Account<'m> {
    /// Opens the account, and counts the elements whose fate is settled already.
    pub(super) fn open(items: Vec<Item>, metrics: &'m Metrics) -> Self {
        for item in &items {
            match item.fate {
                Fate::Filtered(reason) => {
                    let (call, reason) = reason.labels();
                    metrics.filtered(call, reason)
                }
                Fate::Invalid(_) => metrics.ended(CallLabel::None, OutcomeLabel::Invalid, 1),
                Fate::Returned | Fate::UnderWay | Fate::Ended(_) | Fate::TooLarge => {}
            }
        }
        Self { items, metrics }
    }

    /// True if any event has been handed over.
    pub(super) fn has_begun(&self) -> bool {
        self.items.iter().any(|item| matches!(item.fate, Fate::UnderWay | Fate::Ended(_)))
    }

    pub(super) fn settle(&mut self, index: usize, fate: Fate) {
        self.items[index].fate = fate;
    }

    /// Settles the fate of an event if it has left the outbox. Returns whether it has.
    pub(super) fn settle_if_ended(&mut self, index: usize, pending: &Pending) -> bool {
        let outcome = pending.get();
        if let Some(outcome) = outcome {
            self.settle(index, Fate::Ended(outcome));
        }
        outcome.is_some()
    }

    /// Reports what became of all elements. `why_held` gives the reason why Variance does not have some yet.
    pub(super) fn report(&self, why_held: impl FnOnce() -> String) -> Report {
        let mut report = Report { received: self.items.len(), ..Report::default() };
        let mut held = Vec::new();
        for (index, item) in self.items.iter().enumerate() {
            let (count, reason): (_, &dyn Display) = match &item.fate {
                // For the sender, an abandoned event is like one that was never taken in.
                Fate::Returned | Fate::UnderWay | Fate::Ended(Outcome::Abandoned(_)) => {
                    held.push(index);
                    continue;
                }
                Fate::Ended(Outcome::Delivered) => {
                    report.delivered += 1;
                    continue;
                }
                Fate::Filtered(_) => {
                    report.filtered += 1;
                    continue;
                }
                Fate::Ended(Outcome::Refused(refusal)) => (&mut report.refused, refusal),
                Fate::Invalid(invalid) => (&mut report.invalid, invalid),
                Fate::TooLarge => (&mut report.invalid, &"the event is larger than delivery.max_held"),
            };
            *count += 1;
            report.problem(index, item.uuid(), reason);
        }
        report.held = held.len();
        if !held.is_empty() {
            let reason = why_held();
            held.into_iter().for_each(|index| report.problem(index, self.items[index].uuid(), &reason));
        }
        report
    }
}

impl Drop for Account<'_> {
    fn drop(&mut self) {
        let returned = self.items.iter().filter(|item| matches!(item.fate, Fate::Returned));
        self.metrics.ended(CallLabel::None, OutcomeLabel::Returned, returned.count());
    }
}

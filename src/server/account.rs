//! The account of a request: one fate for each of its events.

use std::fmt::Display;

use super::reply::Report;
use crate::{
    mapping::Filtered,
    metrics::{CallLabel, Metrics, OutcomeLabel},
    outbox::{Identity, Outcome},
    posthog::Invalid,
    variance::Message,
};

/// An event that is to be delivered. It no longer needs the body, which takes more memory.
#[derive(Debug)]
pub(super) struct Event {
    pub message: Message,
    pub identity: Identity,
    /// False if its uuid is random, which is of no use to the sender.
    pub has_own_id: bool,
}

/// One element of a body.
#[derive(Debug)]
pub(super) struct Element {
    /// The event to deliver; `None` if the element's fate was known at once.
    pub event: Option<Event>,
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
    pub elements: Vec<Element>,
    metrics: &'m Metrics,
}

impl Element {
    /// The memory that the element takes, with its share of a list that grows by doubling.
    pub(super) fn allocated(&self) -> usize {
        2 * size_of::<Self>() + self.event.as_ref().map_or(0, |event| event.message.allocated())
    }

    fn uuid(&self) -> Option<&str> {
        self.event.as_ref().filter(|event| event.has_own_id).map(|event| event.message.id())
    }
}

impl<'m> Account<'m> {
    /// Opens the account, and counts the elements whose fate is settled already.
    pub(super) fn open(elements: Vec<Element>, metrics: &'m Metrics) -> Self {
        for element in &elements {
            match element.fate {
                Fate::Filtered(reason) => {
                    let (call, reason) = reason.labels();
                    metrics.filtered(call, reason)
                }
                Fate::Invalid(_) => metrics.ended(CallLabel::None, OutcomeLabel::Invalid, 1),
                Fate::Returned | Fate::UnderWay | Fate::Ended(_) | Fate::TooLarge => {}
            }
        }
        Self { elements, metrics }
    }

    /// True if any event has been handed over.
    pub(super) fn has_begun(&self) -> bool {
        self.elements.iter().any(|element| matches!(element.fate, Fate::UnderWay | Fate::Ended(_)))
    }

    pub(super) fn settle(&mut self, index: usize, fate: Fate) {
        self.elements[index].fate = fate;
    }

    /// Reports what became of all elements. `why_held` gives the reason why Variance does not have some yet.
    pub(super) fn report(&self, why_held: impl FnOnce() -> String) -> Report {
        let mut report = Report { received: self.elements.len(), ..Report::default() };
        let mut held = Vec::new();
        for (index, element) in self.elements.iter().enumerate() {
            let (count, reason): (_, &dyn Display) = match &element.fate {
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
            report.problem(index, element.uuid(), reason);
        }
        report.held = held.len();
        if !held.is_empty() {
            let reason = why_held();
            held.into_iter().for_each(|index| report.problem(index, self.elements[index].uuid(), &reason));
        }
        report
    }
}

impl Drop for Account<'_> {
    fn drop(&mut self) {
        let returned = self.elements.iter().filter(|element| matches!(element.fate, Fate::Returned));
        self.metrics.ended(CallLabel::None, OutcomeLabel::Returned, returned.count());
    }
}

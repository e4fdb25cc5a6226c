//! The reader, which maps events and passes them on to be sent, on a thread of its own.

use std::{
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard},
    time::SystemTime,
};

use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc::UnboundedSender},
};

use super::{
    counts::{Counts, End},
    progress::Progress,
    resume::Resume,
    times::Times,
};
use crate::{
    cli::input::{Item, Original, Position, Source},
    mapping::{MappingSettings, NoMessage},
    outbox::{Identity, Outbox},
    posthog::Event,
    variance::Message,
};

/// The memory that events may take between being read and their end.
pub(super) const BUDGET: usize = 8 << 20;

/// The memory that an event takes beside its texts.
const COST: usize = 1 << 10;

/// An item that was read and has not ended.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) next: Next,
    pub(super) place: String,
    /// The text in the source, if failures are kept.
    pub(super) original: Vec<u8>,
    /// The message to post, or the reason why the event is invalid.
    pub(super) message: Result<(Identity, Message), String>,
    pub(super) _budget: OwnedSemaphorePermit,
}

/// The position of the reader.
#[derive(Clone, Debug)]
pub(super) struct Next {
    /// The number of events and other items before it.
    pub(super) number: u64,
    /// The way to go on from it.
    pub(super) resume: Resume,
}

/// The error when nobody takes what is read any longer.
#[derive(Debug, thiserror::Error)]
#[error("reading was stopped")]
pub(super) struct Stop;

pub(super) struct Reader {
    pub(super) mapping: MappingSettings,
    pub(super) times: Times,
    pub(super) keeps_originals: bool,
    pub(super) outbox: Outbox,
    pub(super) counts: Arc<Counts>,
    pub(super) progress: Progress,
    pub(super) budget: Arc<Semaphore>,
    pub(super) works: UnboundedSender<Work>,
    pub(super) next: Arc<Mutex<Next>>,
    pub(super) runtime: Handle,
    pub(super) scratch: Vec<u8>,
}

impl Reader {
    /// Reads these files without their first events, until their end or until nobody takes what is read.
    pub(super) fn files(mut self, sources: &[Source], position: &Position, skip: u64) {
        for source in sources {
            if source.read(position, &mut |item| self.item(item, skip)).is_err() {
                // Nobody takes what is read any longer.
                return;
            }
        }
    }

    fn item(&mut self, item: Item<'_>, skip: u64) -> anyhow::Result<()> {
        if self.works.is_closed() {
            return Err(Stop.into());
        }
        match item {
            Item::Event(..) | Item::Invalid(..) | Item::Note(_) if self.next().number < skip => {}
            Item::Event(place, event, original) => self.event(&place, event, original)?,
            Item::Invalid(place, reason, original) => self.send(&place, Err(reason.to_string()), original)?,
            Item::Unreadable(problem) => {
                self.counts.add_unreadable();
                self.progress.say(&format!("error: {problem}"));
                return Ok(());
            }
            Item::Note(note) => self.progress.note(&format!("note: {note}")),
        }
        let mut next = self.next();
        next.number += 1;
        next.resume = Resume::Skip(next.number);
        Ok(())
    }

    /// Maps an event and passes it on.
    pub(super) fn event(&mut self, place: &dyn Display, event: &Event<'_>, original: Original<'_>) -> Result<(), Stop> {
        match self.times.include(event) {
            Ok(true) => match self.mapping.message(event, SystemTime::now(), &mut self.scratch) {
                Ok(message) => {
                    let identity = self.outbox.identity(&event.key(), event.raw.as_str().as_bytes());
                    self.send(place, Ok((identity, message)), original)?;
                }
                Err(NoMessage::Filtered(_)) => self.counts.add(End::Filtered),
                Err(NoMessage::Invalid(reason)) => self.send(place, Err(reason.to_string()), original)?,
            },
            Ok(false) => self.counts.add(End::OutsideOfTimes),
            Err(reason) => self.send(place, Err(reason.to_string()), original)?,
        }
        Ok(())
    }

    /// Passes on a message, or the reason why there is none, once there is memory for it.
    pub(super) fn send(
        &self,
        place: &dyn Display,
        message: Result<(Identity, Message), String>,
        original: Original<'_>,
    ) -> Result<(), Stop> {
        let original = if self.keeps_originals { original.to_line() } else { Vec::new() };
        let allocated = message.as_ref().map_or(0, |(_, message)| message.allocated());
        let cost = u32::try_from((allocated + original.len() + COST).min(BUDGET)).expect("a few MiB");
        let budget = Arc::clone(&self.budget).acquire_many_owned(cost);
        let budget = self.runtime.block_on(budget).expect("it is never closed");
        let work = Work { next: self.next().clone(), place: place.to_string(), original, message, _budget: budget };
        self.counts.add_queued();
        self.works.send(work).map_err(|_| Stop)
    }

    /// Reports events that should be in PostHog and were not found there.
    pub(super) fn missing(&self, count: u64, problem: &dyn Display) {
        self.counts.add_missing(count);
        self.progress.say(&format!("error: {problem}"));
    }

    pub(super) fn next(&self) -> MutexGuard<'_, Next> {
        self.next.lock().expect("no panic while it is held")
    }
}

//! The thread that reads, and maps what it reads.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc::UnboundedSender},
};

use super::{
    counts::{Counts, End},
    progress::Progress,
    times::Times,
};
use crate::{
    cli::input::{Item, Original, Place, Position, Source},
    mapping::{MappingSettings, NoMessage},
    outbox::{Identity, Outbox},
    posthog::Event,
    variance::Message,
};

/// The memory that events may take from when they are read until they have ended.
pub(super) const BUDGET: usize = 8 << 20;

/// What an event takes beside its texts.
const COST: usize = 1 << 10;

/// Something that was read and has not ended.
#[derive(Debug)]
pub(super) struct Work {
    /// How many events and others come before it.
    pub(super) number: u64,
    pub(super) place: String,
    /// How it stood in the source, if anybody wants to know.
    pub(super) original: Vec<u8>,
    /// What is to be posted, or why it is invalid.
    pub(super) message: Result<(Identity, Message), String>,
    pub(super) _budget: OwnedSemaphorePermit,
}

/// Nobody takes any more.
#[derive(Debug, thiserror::Error)]
#[error("reading was stopped")]
struct Stop;

pub(super) struct Reader {
    pub(super) mapping: MappingSettings,
    pub(super) times: Times,
    pub(super) skip: u64,
    pub(super) keeps_originals: bool,
    pub(super) outbox: Outbox,
    pub(super) counts: Arc<Counts>,
    pub(super) progress: Progress,
    pub(super) budget: Arc<Semaphore>,
    pub(super) works: UnboundedSender<Work>,
    pub(super) next: Arc<AtomicU64>,
    pub(super) runtime: Handle,
}

impl Reader {
    /// Reads all sources, or until nobody takes what is read.
    pub(super) fn read(self, sources: &[Source], position: &Position) {
        let mut scratch = Vec::new();
        for source in sources {
            let read = source.read(position, &mut |item| self.take(item, &mut scratch));
            if read.is_err() {
                // Nobody takes any more.
                return;
            }
        }
    }

    fn take(&self, item: Item<'_>, scratch: &mut Vec<u8>) -> anyhow::Result<()> {
        if self.works.is_closed() {
            return Err(Stop.into());
        }
        match item {
            Item::Event(..) | Item::Invalid(..) | Item::Note(_) if self.next.load(Ordering::Relaxed) < self.skip => {}
            Item::Event(place, event, original) => self.event(place, event, original, scratch)?,
            Item::Invalid(place, reason, original) => self.send(place, Err(reason.to_string()), original)?,
            Item::Unreadable(problem) => {
                self.counts.add_unreadable();
                self.progress.say(&format!("error: {problem}"));
                return Ok(());
            }
            Item::Note(note) => self.progress.note(&format!("note: {note}")),
        }
        self.next.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn event(
        &self,
        place: Place<'_>,
        event: &Event<'_>,
        original: Original<'_>,
        scratch: &mut Vec<u8>,
    ) -> anyhow::Result<()> {
        match self.times.include(event) {
            Ok(true) => match self.mapping.message(event, SystemTime::now(), scratch) {
                Ok(message) => self.send(place, Ok((self.outbox.identity(&event.key()), message)), original)?,
                Err(NoMessage::Filtered(_)) => self.counts.add(End::Filtered),
                Err(NoMessage::Invalid(reason)) => self.send(place, Err(reason.to_string()), original)?,
            },
            Ok(false) => self.counts.add(End::OutsideOfTimes),
            Err(reason) => self.send(place, Err(reason.to_string()), original)?,
        }
        Ok(())
    }

    /// Passes it on once there is memory for it.
    fn send(
        &self,
        place: Place<'_>,
        message: Result<(Identity, Message), String>,
        original: Original<'_>,
    ) -> anyhow::Result<()> {
        let original = if self.keeps_originals { original.to_line() } else { Vec::new() };
        let allocated = message.as_ref().map_or(0, |(_, message)| message.allocated());
        let cost = u32::try_from((allocated + original.len() + COST).min(BUDGET)).expect("a few MiB");
        let budget = Arc::clone(&self.budget).acquire_many_owned(cost);
        let budget = self.runtime.block_on(budget).expect("it is never closed");
        let number = self.next.load(Ordering::Relaxed);
        let work = Work { number, place: place.to_string(), original, message, _budget: budget };
        self.works.send(work).map_err(|_| Stop.into())
    }
}

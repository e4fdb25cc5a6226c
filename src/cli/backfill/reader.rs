//! The thread that reads, and maps what it reads.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
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
    failures::Failures,
    progress::Progress,
    times::Times,
};
use crate::{
    cli::input::{Item, Original, Place, Position, Source},
    mapping,
    outbox::{Identity, Outbox},
    posthog::Event,
    variance::Message,
};

/// The memory that events may take from when they are read until they have ended.
pub(super) const BUDGET: usize = 8 << 20;

/// What an event takes beside its texts.
const COST: usize = 1 << 10;

/// An event that is to be posted.
#[derive(Debug)]
pub(super) struct Work {
    /// How many events and others come before it.
    pub(super) number: u64,
    pub(super) place: String,
    pub(super) identity: Identity,
    pub(super) message: Message,
    /// How it stood in the source, if anybody wants to know.
    pub(super) original: Vec<u8>,
    pub(super) _budget: OwnedSemaphorePermit,
}

/// Nobody takes any more.
#[derive(Debug, thiserror::Error)]
#[error("reading was stopped")]
struct Stop;

pub(super) struct Reader {
    pub(super) mapping: mapping::MappingSettings,
    pub(super) times: Times,
    pub(super) skip: u64,
    pub(super) keeps_originals: bool,
    pub(super) outbox: Outbox,
    pub(super) counts: Arc<Counts>,
    pub(super) failures: Arc<Mutex<Failures>>,
    pub(super) progress: Progress,
    pub(super) budget: Arc<Semaphore>,
    pub(super) works: UnboundedSender<Work>,
    pub(super) next: Arc<AtomicU64>,
}

impl Reader {
    /// Reads all sources, or until nobody takes what is read.
    pub(super) fn read(self, sources: &[Source], position: &Position, runtime: &Handle) -> anyhow::Result<()> {
        let (mut skip, mut scratch) = (self.skip, Vec::new());
        for source in sources {
            let read = source.read(position, &mut skip, &mut |item| self.take(item, &mut scratch, runtime));
            match read {
                Err(error) if error.is::<Stop>() => return Ok(()),
                read => read?,
            }
        }
        Ok(self.failures().close()?)
    }

    fn take(&self, item: Item<'_>, scratch: &mut Vec<u8>, runtime: &Handle) -> anyhow::Result<()> {
        if self.works.is_closed() {
            return Err(Stop.into());
        }
        match item {
            Item::Rest(bytes) => return Ok(self.failures().rest(bytes)?),
            Item::Event(place, event, original) => self.event(place, event, original, scratch, runtime)?,
            Item::Invalid(place, reason, original) => {
                self.counts.add(End::Invalid);
                let mut failures = self.failures();
                failures.close()?;
                failures.invalid(&place, &reason, original)?;
            }
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
        runtime: &Handle,
    ) -> anyhow::Result<()> {
        self.failures().close()?;
        match self.times.include(event) {
            Ok(true) => {}
            Ok(false) => {
                self.counts.add(End::OutsideOfTimes);
                return Ok(());
            }
            Err(reason) => {
                self.counts.add(End::Invalid);
                return Ok(self.failures().invalid(&place, &reason, original)?);
            }
        }
        let Ok(message) = self.mapping.message(event, SystemTime::now(), scratch) else {
            self.counts.add(End::Filtered);
            return Ok(());
        };
        let identity = self.outbox.identity(&event.key());
        let mut kept = Vec::new();
        if self.keeps_originals {
            kept.reserve_exact(original.len());
            original.write(&mut kept)?;
        }
        let cost = (message.allocated() + kept.len() + COST).min(BUDGET);
        let cost = u32::try_from(cost).expect("a few MiB");
        let budget = runtime.block_on(Arc::clone(&self.budget).acquire_many_owned(cost)).expect("it is never closed");
        let number = self.next.load(Ordering::Relaxed);
        let work = Work { number, place: place.to_string(), identity, message, original: kept, _budget: budget };
        self.works.send(work).map_err(|_| Stop.into())
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().expect("no panic while it is held")
    }
}

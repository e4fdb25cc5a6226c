//! A sender's request while its events are in the outbox.

use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::{Outbox, Outcome};

/// What one request waits for. Dropping it stops the waiting, not the delivery.
#[derive(Debug)]
pub struct Ticket {
    outbox: Outbox,
    progress: Arc<Progress>,
    /// Entries that may still have this request among their waiters.
    attached: Vec<Turn>,
    outstanding: usize,
    is_unused: bool,
}

/// An entry of the outbox at one time of its life: the key alone may meanwhile be another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    pub(super) number: u64,
    pub(super) entry: u32,
}

/// Where the outbox leaves what has ended.
#[derive(Debug, Default)]
pub(super) struct Progress {
    ended: Mutex<Vec<(u32, Outcome)>>,
    wake: Notify,
}

/// One that waits for an entry: a request, and the event's index in it.
#[derive(Clone, Debug)]
pub(super) struct Waiter {
    pub(super) progress: Arc<Progress>,
    pub(super) index: u32,
}

impl Waiter {
    pub(super) fn tell(&self, outcome: Outcome) {
        self.progress.ended.lock().expect("no panic while it is held").push((self.index, outcome));
        self.progress.wake.notify_one();
    }
}

impl Ticket {
    pub(super) fn new(outbox: Outbox) -> Self {
        Self { outbox, progress: Arc::default(), attached: Vec::new(), outstanding: 0, is_unused: true }
    }

    pub(super) fn waiter(&self, index: u32) -> Waiter {
        Waiter { progress: Arc::clone(&self.progress), index }
    }

    pub(super) fn attach(&mut self, entry: Turn) {
        self.is_unused = false;
        self.attached.push(entry);
        self.outstanding += 1;
    }

    pub(super) fn attached(&mut self) -> &mut Vec<Turn> {
        &mut self.attached
    }

    /// Whether so many of those attached have ended that it is time to forget them.
    pub(super) fn is_mostly_ended(&self) -> bool {
        self.attached.len() > 2 * self.outstanding + 1024
    }

    /// How many of the request's events are in the outbox, those that [`Ticket::ended`] has not returned included.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Whether no event of the request has been in the outbox yet.
    pub fn is_unused(&self) -> bool {
        self.is_unused
    }

    /// The events that have ended since the last call, by their index in the request.
    pub fn ended(&mut self) -> Vec<(u32, Outcome)> {
        let ended = std::mem::take(&mut *self.progress.ended.lock().expect("no panic while it is held"));
        self.outstanding -= ended.len();
        if self.outstanding == 0 {
            self.attached.clear();
        }
        ended
    }

    /// Waits until [`Ticket::ended`] may have something new.
    pub async fn progress(&self) {
        self.progress.wake.notified().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.outstanding > 0 {
            // A request may hold the same event many times, and so may others: each entry is looked through once.
            self.attached.sort_unstable();
            self.attached.dedup();
            self.outbox.detach(&self.attached, &self.progress);
        }
    }
}

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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;

    use super::super::{HandOver, OutboxSettings};
    use super::*;
    use crate::{
        destination::{Authorization, Destination, DestinationSettings},
        metrics::Metrics,
        variance::{Call, Message},
    };

    #[tokio::test]
    async fn a_request_that_ends_leaves_nothing_at_the_events_that_it_waited_for() {
        // Another test may have been faster.
        drop(rustls::crypto::ring::default_provider().install_default());
        // Nothing is posted: no worker has its turn.
        let nowhere = DestinationSettings {
            webhook_url: "http://127.0.0.1:1/".parse().unwrap(),
            authorization: Authorization { value: HeaderValue::from_static("credential"), file: None },
            attempt_timeout: Duration::from_secs(1),
            use_proxy: false,
        };
        let outbox = Outbox::start(OutboxSettings::default(), Destination::new(nowhere, 1).unwrap(), Metrics::new());
        let message = Message::write(Call::Capture, "a", &mut Vec::new(), |out| out.extend_from_slice(b"{}"));
        let held_and_waiters = || {
            let state = outbox.0.state();
            (state.held().0, state.waiters())
        };
        for _ in 0..3 {
            let mut ticket = outbox.ticket();
            // A request may hold the same event many times.
            for index in 0..10 {
                let handed = outbox.hand_over(&mut ticket, index, outbox.identity(&["a", "e", "d"]), &message);
                assert!(matches!(handed, HandOver::UnderWay), "{handed:?}");
            }
            assert_eq!(held_and_waiters(), (1, 10));
            drop(ticket);
            assert_eq!(held_and_waiters(), (1, 0));
        }
    }
}

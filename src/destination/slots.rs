//! One client for each connection. A client of reqwest says nothing about its connections and closes none, so to close one, its
//! client is dropped.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use reqwest::{Client, redirect};
use tokio::time::Instant;

use super::{USER_AGENT, network::Network, resolver::Resolver};

/// The longest that an idle connection is kept. Servers usually keep one for longer (Node 5 s), so they rarely close it first.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// The most headers of a reply that are read.
const MAX_HEADERS: usize = 256;

/// The clients that no attempt is using. The one that was used last is used next, so that few connections are kept.
#[derive(Clone)]
pub(super) struct Slots(Arc<Shared>);

struct Shared {
    free: Mutex<Vec<Slot>>,
    network: Network,
    resolver: Arc<Resolver>,
    connect_timeout: Duration,
    kept_for: Duration,
}

/// A client with at most one connection, which is closed on drop.
pub(super) struct Slot {
    pub(super) client: Client,
    ends: Instant,
    last_used: Option<Instant>,
}

impl Slots {
    /// Creates slots whose clients connect through `network` within `connect_timeout`, and use a connection for between half of
    /// `kept_for` and all of it.
    pub(super) fn new(network: Network, connect_timeout: Duration, kept_for: Duration) -> Self {
        let resolver = Arc::default();
        Self(Arc::new(Shared { free: Mutex::default(), network, resolver, connect_timeout, kept_for }))
    }

    /// Returns the network through which the clients connect.
    pub(super) fn network(&self) -> &Network {
        &self.0.network
    }

    /// Returns a client that was used before, or else a new one.
    pub(super) fn take(&self) -> Slot {
        let now = Instant::now();
        let mut free = self.0.free.lock().expect("no panic while it is held");
        while let Some(slot) = free.pop() {
            if now < slot.ends {
                return slot;
            }
        }
        drop(free);
        self.new_slot()
    }

    /// Returns a client without a connection.
    pub(super) fn new_slot(&self) -> Slot {
        let Shared { free: _, network, resolver, connect_timeout, kept_for } = &*self.0;
        // Without the maximum, each request would be copied for a second try that never comes.
        let never = reqwest::retry::never().max_retries_per_request(0);
        let client = network
            .client(Client::builder())
            .user_agent(USER_AGENT)
            .redirect(redirect::Policy::none())
            .retry(never)
            .referer(false)
            .connect_timeout(*connect_timeout)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(1)
            .http1_max_headers(MAX_HEADERS)
            .http1_ignore_invalid_headers_in_responses(true)
            .http1_allow_obsolete_multiline_headers_in_responses(true)
            .http1_allow_spaces_after_header_name_in_responses(true)
            .dns_resolver(Arc::clone(resolver));
        // Those that are made together should not all be made anew together.
        let age = kept_for.mul_f64(0.5 + fastrand::f64() / 2.0);
        Slot {
            client: client.build().expect("its TLS is configured already"),
            ends: Instant::now() + age,
            last_used: None,
        }
    }

    /// Returns a client to the slots, whose connection can be used again.
    pub(super) fn give_back(&self, mut slot: Slot) {
        slot.last_used = Some(Instant::now());
        self.0.free.lock().expect("no panic while it is held").push(slot);
    }
}

impl Slot {
    /// True if the connection may have been idle, so that the peer may just have closed it.
    pub(super) fn may_have_been_idle(&self) -> bool {
        self.last_used.is_some_and(|last| last.elapsed() <= IDLE_TIMEOUT)
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots").finish_non_exhaustive()
    }
}

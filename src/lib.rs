//! Forwards PostHog's events to Variance, one webhook call for each, and acknowledges an event only when Variance has it.
//!
//! ```text
//! PostHog ──POST /webhook, /batch──▶ server ─▶ auth        who may send
//!                                      │
//!                                      ├────▶ posthog     bytes → events        (json)
//!                                      ├────▶ mapping     event → message       (variance)
//!                                      └────▶ outbox      one attempt per event, held until Variance has it
//!                                               │
//!                                               └──▶ destination ──POST──▶ Variance   (backoff, breaker, limit)
//! ```
//!
//! The modules, in the order in which they are best read:
//!
//! * [`posthog`] decodes what PostHog and its SDKs send; [`json`] walks over its text and cuts values out of it without
//!   copying.
//! * [`variance`] has the calls and messages that Variance takes; [`mapping`] turns an event into a message, or says
//!   why there is none.
//! * [`outbox`] keeps the promise: every message that it takes in is delivered, refused, or held until its time is
//!   over. The rules are in `outbox/state.rs`, which is pure: one call changes the state, then the caller drains the
//!   consequences and reads the next due time. How many attempts there are, and when, is for [`breaker`], [`backoff`]
//!   and [`limit`], which have no clock either. [`destination`] makes one attempt, and says what its result means.
//! * [`server`] is the HTTP server: it asks [`auth`] who may send, [`inflate`]s bodies, and replies with what became of
//!   the events. `server/requests.rs` goes with a request from its head to its reply, from top to bottom;
//!   `server/memory.rs` and `server/connections.rs` bound what a sender can cost.
//! * [`metrics`] counts, and imports nothing of the other modules; [`service`] puts the parts together; [`shutdown`]
//!   listens for the signals to stop.
//! * [`query_api`] asks PostHog for the events that it still has.
//! * [`cli`] is the command line, with a file for each command; [`config`] reads the settings of all parts, [`secret`]s
//!   among them, by the table in `config/keys.rs`; [`telemetry`] logs, and [`repeated`] keeps a repeating fault from
//!   flooding the log.
//!
//! Arrows point one way: nothing below `cli` sees the whole configuration, and `posthog` and `variance` do not know each
//! other, except that an event says how large its message may be ([`posthog::Event::max_message`]).

pub mod auth;
pub mod backoff;
pub mod breaker;
pub mod cli;
pub mod config;
pub mod destination;
pub mod inflate;
pub mod json;
pub mod limit;
pub mod mapping;
pub mod metrics;
pub mod outbox;
pub mod posthog;
pub mod query_api;
pub mod repeated;
pub mod secret;
pub mod server;
pub mod service;
pub mod shutdown;
pub mod telemetry;
pub mod variance;

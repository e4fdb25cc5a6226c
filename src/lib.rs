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
//! * [`posthog`] decodes what PostHog and its SDKs send; [`json`] walks over the text for it without copying.
//! * [`variance`] is what Variance takes: a call and its message; [`mapping`] makes one of an event, or says why not.
//! * [`outbox`] is the promise: what was handed over leaves delivered, refused, or not before its time is over. It goes
//!   by [`backoff`], [`breaker`] and [`limit`], which are rules without a clock, and posts through [`destination`].
//! * [`server`] is the HTTP face: it asks [`auth`] who may send, [`inflate`]s bodies, and tells what became of events.
//! * [`metrics`] counts; [`service`] puts the parts together; [`shutdown`] says when to stop.
//! * [`query_api`] asks PostHog for the events that it still has.
//! * [`cli`] is the command line; [`config`] reads the settings of all parts, [`secret`]s among them; [`telemetry`] logs,
//!   and [`repeated`] keeps a fault that repeats from flooding the log.
//!
//! Arrows point one way: nothing below `cli` sees the whole configuration, and `posthog` and `variance` do not know each
//! other.

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

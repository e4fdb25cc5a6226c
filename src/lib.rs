//! Forwards PostHog events to Variance.

pub mod auth;
pub mod backoff;
pub mod breaker;
pub mod cli;
pub mod config;
pub mod destination;
pub mod inflate;
pub mod json;
pub mod mapping;
pub mod metrics;
pub mod outbox;
pub mod posthog;
pub mod secret;
pub mod server;
pub mod telemetry;
pub mod variance;

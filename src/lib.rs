//! Forwards PostHog events to Variance.

pub mod auth;
pub mod destination;
pub mod json;
pub mod mapping;
pub mod outbox;
pub mod posthog;
pub mod secret;
pub mod server;
pub mod variance;

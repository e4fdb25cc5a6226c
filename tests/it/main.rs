//! The real service on a free port, in front of a stand-in for Variance that can be made to misbehave.

#![expect(unreachable_pub, reason = "nothing can be reached from outside of a test")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod access;
mod accounts;
mod backfill;
mod bad_input;
#[cfg(target_os = "linux")] // it reads `/proc`
mod bounds;
mod certificates;
mod check;
mod commands;
mod conservation;
mod documentation;
mod faults;
mod forwarding;
mod from_posthog;
mod harness;
mod health;
mod holding;
mod hostages;
mod leaks;
mod limits;
mod logs;
mod metrics;
mod parity;
mod pool;
mod pressure;
mod preview;
mod program;
mod proxy;
mod reload;
mod replies;
mod retry_after;
mod rotation;
#[cfg(target_os = "linux")] // other systems name the other end of a terminal otherwise
mod status;
mod stopping;
#[cfg(target_os = "linux")] // it reads `/proc`
mod strangers;
mod tls;
mod unread_log;
mod variance;

//! The real service on a free port, in front of a stand-in for Variance that can be told to misbehave.

#![expect(dead_code, reason = "the stand-in can misbehave in more ways than tests ask of it yet")]
#![expect(unreachable_pub, reason = "nothing can be reached from outside of a test")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod backfill;
mod bad_input;
mod check;
mod forwarding;
mod harness;
mod health;
mod logs;
mod metrics;
mod parity;
mod preview;
mod program;
mod variance;

//! The real service on a free port, in front of a stand-in for Variance that can be told to misbehave.

mod bad_input;
mod forwarding;
mod harness;
mod parity;
mod variance;

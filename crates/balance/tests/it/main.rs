//! The decider as its callers use it.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod check;
mod drains;
mod plans;
mod properties;
mod settles;
mod world;

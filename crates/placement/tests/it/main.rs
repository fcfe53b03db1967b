//! Placement against a naive model, and what its answers look like.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic and talk")]

mod apart;
mod edges;
mod golden;
mod index;
mod naive;
mod outlook;
mod properties;
mod scenario;
mod time;

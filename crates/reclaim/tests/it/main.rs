//! What plans promise, on random hosts and in closed loops, and what they look like.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic and talk")]

mod edges;
mod golden;
mod properties;
mod scene;
mod settles;

//! The command line from outside, without a manager: help, completion, and what is refused.

#![expect(clippy::unwrap_used, reason = "what fails in a test's own hands fails the test")]

mod bad_input;
mod bench;
mod help;
mod program;
mod simulate;

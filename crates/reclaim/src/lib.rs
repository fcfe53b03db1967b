//! Decides how much of its resources each VM has now, and how much a host can take.
//!
//! The crate is pure: no clock, no I/O, no randomness, no logging. What was observed comes in as
//! arguments, decisions and their reasons go out as values; the same facts and the same question
//! give the same answer on every machine.

pub mod predict;

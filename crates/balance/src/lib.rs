//! Decides which VM moves where and when, and says why.
//!
//! The crate is pure: no clock, no I/O, no randomness of its own, no logging. Time, seeds and what is
//! seen come in as arguments; plans and their reasons go out as values, so that the manager, the
//! simulator, the property tests and the benchmarks run the same code.

pub mod consolidate;
pub mod defragment;
pub mod reassign;

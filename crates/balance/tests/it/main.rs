//! The decider as its callers use it.

mod check;
mod drains;
mod plans;
mod properties;
mod settles;
mod world;

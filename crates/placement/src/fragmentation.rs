//! What is left of a host after a placement, judged by what is usually asked for.
//!
//! Two policies look ahead in this way, both with a value of a host's state that depends on nothing
//! but that state and a [`Workload`]; a host's score is how the value changes when the request is
//! placed, on the device where it changes for the best:
//!
//! - [`Policy::Fgd`]: the *fragment* of Weng et al. 2023, the accelerators that a typical request
//!   could not use;
//! - [`Policy::LeastStranding`]: the *room*, in which every typical request counts by how much of
//!   the free accelerators (or of the free cores, where nobody asks for accelerators) it could
//!   fill on its own.
//!
//! The formulas are in `docs/algorithms.md`. All arithmetic is IEEE 754 addition, multiplication,
//! division and square root in a fixed order, the exponential included.
//!
//! [`Policy::Fgd`]: plimsoll_model::Policy::Fgd
//! [`Policy::LeastStranding`]: plimsoll_model::Policy::LeastStranding

mod measure;
mod state;
mod workload;

pub(crate) use measure::{Judge, Measure};
pub(crate) use workload::Expected;
pub use workload::{MAX_TYPICAL, TypicalRequest, Workload};

//! Whole-cluster rebalancing: every process is put on the machine where the cluster as a whole costs
//! least, as the machine reassignment problem of the ROADEF/EURO challenge 2012 defines it.
//!
//! ```text
//!   Problem::new (checks all that was said)
//!        |
//!      solve: search over assignments, each of which keeps every hard constraint
//!        |
//!   Problem::cost: the same figures once more, reckoned anew by other code
//!        |
//!      order: the moves one after the other, each of which may be taken when its turn comes
//! ```
//!
//! A solution says where everything is in the end. That there is a way to it is another matter: VMs
//! that change places need room to do so. [`order()`] finds one, or leaves moves out.

mod anneal;
mod cost;
mod order;
mod problem;
mod state;
#[cfg(test)]
mod tests;

pub use anneal::{Progress, Solution, solve};
pub use cost::{Cost, Violation};
pub use order::{Ordered, Step, order};
pub use problem::{
    Balance, InvalidProblem, Machine, MachineId, Parts, Problem, Process, ProcessId, Resource,
    Service, Weights,
};

//! Decides who gives back how much of a host's memory and CPU, and how much a host can take; and says
//! why.
//!
//! [`plan`] takes what is seen of one host and its VMs ([`HostView`], [`VmView`]) and what the plan
//! before left to remember ([`Memory`]); it gives a [`Plan`]: a [`Target`] for each VM, with typed
//! [`Reason`]s. The host's agent calls it once a second, also while the manager is away, and carries
//! the targets out. [`WorkingSet`] estimates how much of its memory a VM uses.
//!
//! [`predict`] tells what VMs will ask for together at a stated risk, for admission and for moves.
//!
//! The crate is pure: no clock, no I/O, no randomness, no logging. The same views and the same memory
//! give the same plan on every machine. What is compared is kept in whole bytes, thousandths of a
//! core and shares of a million. The formulas and their sources are in `docs/algorithms.md`.
//!
//! Invariants, of the property tests: nobody gets a target below its minimum or above its promise;
//! what is taken and what is lacking sum to what is needed, to the byte; what lies unused is taken
//! from all alike before any used page is taken from anybody; more shares never mean less; under a
//! constant load targets settle and stay; a guest that does not answer is asked for nothing.

mod account;
mod cpu;
pub mod dedup;
mod fill;
mod plan;
pub mod predict;
mod price;
mod reason;
mod state;
mod view;
mod working_set;

pub use plan::{Memory, Plan, Target, plan};
pub use reason::Reason;
pub use state::State;
pub use view::{DEFAULT_IDLE_TAX, GuestView, HostView, MAX_IDLE_TAX, Pressure, VmView};
pub use working_set::{Accessed, WorkingSet};

//! Decides which VM moves where and when, and says why.
//!
//! [`Balancer`] is told what is seen of hosts and VMs, and asked for a [`Plan`] against hotspots
//! ([`Balancer::plan`]) or for one that empties a host ([`Balancer::spread`]). It remembers a few
//! numbers of each; where VMs are, and what rules bind them, is `placement`'s, whose own filters say
//! where each may go. The formulas and their sources are in `docs/algorithms.md`, what is measured
//! and what can be set in `docs/balance.md`.
//!
//! The crate is pure: no clock, no I/O, no randomness of its own, no logging. Time, seeds and what is
//! seen come in as arguments; plans and their reasons go out as values, so that the manager, the
//! simulator, the property tests and the benchmarks run the same code.
//!
//! Invariants, checked by the property tests against a naive model: every move of a plan is feasible
//! when it is taken, in every order that [`Step::after`] allows, with the VM counted on both hosts
//! while it moves; no plan makes the sum of predicted overloads larger; no target is above its
//! threshold less the margin afterwards, save a host on which the VM is alone; under a load that does
//! not change, no VM moves twice.

mod balancer;
pub mod consolidate;
pub mod defragment;
mod hotspot;
mod ledger;
mod observe;
mod past;
mod plan;
pub mod reassign;
mod relieve;
mod resource;
mod series;
mod settings;
mod spread;

pub use balancer::{Balancer, Situation, VmState};
pub use observe::{GuestWord, Latency, Pressure, Usage, VmSample};
pub use plan::{
    Action, Cost, Fixed, Forecast, Hotspot, Need, NoBeneficialMove, Plan, Reason, RefusedMove,
    Shortage, Spread, SpreadStep, Step, Stuck, StuckBecause, Subject, Symptom, Tried, Unmet,
};
pub use resource::{Permille, Resource, Utilisation};
pub use settings::{InvalidSettings, Settings};

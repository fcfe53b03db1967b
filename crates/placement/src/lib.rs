//! Decides where a VM goes, and says why.
//!
//! [`Cluster`] holds what is known: hosts, and which VM is promised what on which of them. It is
//! told facts ([`Cluster::upsert_host`], [`Cluster::occupy`], [`Cluster::release`],
//! [`Cluster::set_workload`]) and asked questions ([`Cluster::decide`], [`Cluster::explain`],
//! [`Cluster::decide_group`], [`Cluster::split_total`], [`Cluster::book`]); a question never changes
//! an answer. The caller commits a [`Choice`] to its store and then states it as a fact with
//! [`Cluster::occupy_devices`].
//!
//! The crate is pure: no clock, no I/O, no randomness, no logging. The same facts and the same
//! question give the same bytes on every machine, so that a decision can be replayed, and the
//! manager, the simulator and the tests run the same code. How hosts are searched is hidden behind
//! [`Cluster`]: an index over their availability, of which `docs/placement.md` has the design and
//! what it is worth. The formulas, their sources and the tie-breaks are in `docs/algorithms.md`.
//!
//! Invariants, checked against an independent naive model by the property tests: a choice never
//! takes a host over its capacity; every required rule holds, of the new VM and of those already
//! placed; the index finds what a look at every host finds; `explain` agrees with `decide`;
//! `release` is the exact inverse of `occupy`; with VMs that have a begin or an end
//! ([`Request::interval`]) all of this holds at every instant, and `book` finds the first start.

mod avoided;
mod booking;
mod cluster;
mod decide;
mod devices;
mod explanation;
mod filter;
mod fragmentation;
mod glance;
mod group;
mod index;
mod interval;
pub mod packing;
mod profile;
mod request;
mod row;
mod score;
mod split;
mod topology;

pub use booking::{BookRefusal, Booking, Earliest};
pub use cluster::{Cluster, Footprint, Occupied, OccupyError, Over, Placed, RemoveHostError};
pub use devices::{DeviceShare, Devices, MAX_DEVICES};
pub use explanation::{
    Choice, Explanation, HostVerdict, Refusal, RefusalCount, Refusals, RefusedHost, Verdict,
};
pub use fragmentation::{MAX_TYPICAL, TypicalRequest, Workload};
pub use group::GroupRefusal;
pub use interval::Interval;
pub use request::{AnyModel, HostState, Request, Unschedulable};
pub use split::{MAX_SPLIT, SplitLimits, SplitRefusal};

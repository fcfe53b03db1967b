//! Tries policies on recorded and invented workloads, with the very code that decides in a real
//! cluster: [`plimsoll_placement::Cluster`], [`plimsoll_reclaim::predict`] and [`plimsoll_balance`].
//!
//! ```text
//!   readers (trace files -> typed records)        scenario (TOML -> cluster, workload)
//!        |                                              |
//!   openb, azure, pack (one experiment each) --- engine (events in time) --- report
//!   overcommit, consolidation (slots in time), defragmentation (one plan)
//! ```
//!
//! A run is decided by its inputs and its seed alone: the same give the same result on every
//! machine, but for how long it took.

pub mod azure;
pub mod churn;
mod cluster;
pub mod consolidation;
#[cfg(test)]
mod data;
pub mod defragmentation;
pub mod engine;
pub mod openb;
pub mod overcommit;
pub mod pack;
pub mod readers;
pub mod reassignment;
pub mod report;
pub mod scenario;

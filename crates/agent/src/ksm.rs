//! Page deduplication with the kernel's KSM: equal pages of VMs are stored once, copy-on-write.
//!
//! ```text
//!   runner --may it be merged?--> Deduplication --elect--> reclaim::dedup
//!   drive (every second, or two) --counters--> reclaim::dedup::Scan --pace--> /sys/kernel/mm/ksm
//! ```
//!
//! - **One project at a time.** The kernel has one tree for all that may be merged, so of one host's
//!   projects at most one has mergeable VMs; who, is decided when a VM starts, and what a VM was
//!   started with stands in its record. VMs that were found at the agent's start count as mergeable
//!   until they have been looked at.
//! - **One agent per machine** sets the scanner ([`hold`]): several, as in a lab, share the kernel.
//! - **Nobody else's memory.** While a process of somebody else is mergeable nobody is elected and the
//!   scanner stands still: VMs must not be merged with what is not of their project, whoever it
//!   belongs to.
//! - **Left as found.** What was set before is written down before it is changed, and set again when
//!   the agent ends; after a SIGKILL the next agent finds it. What is merged stays merged then: only
//!   the scanner stops.

mod deduplication;
mod hold;
mod kernel;

pub use deduplication::Deduplication;
pub use hold::require_free;
pub use kernel::{KsmError, Place};

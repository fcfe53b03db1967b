//! Discrete events on a cluster: VMs arrive, are placed or rejected, and leave.
//!
//! Events are ordered by time and then by the order in which they became known; at the same
//! instant those who leave go before those who arrive, so that what is given back can be used.
//! Arrivals are drawn from an iterator, one ahead of the clock, so a trace is never in memory as a
//! whole; only the departures of running VMs are kept.

mod queue;
mod run;
#[cfg(test)]
mod tests;

pub use queue::EventQueue;
pub use run::{Arrival, Newcomer, Observer, RunError, Totals, run};

/// A point in simulated time, in milliseconds since the start of the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SimTime(pub u64);

impl SimTime {
    /// So many seconds after the start.
    #[must_use]
    pub const fn seconds(count: u64) -> Self {
        Self(count.saturating_mul(1000))
    }

    /// So many milliseconds later, at the latest at the end of time.
    #[must_use]
    pub const fn after(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }
}

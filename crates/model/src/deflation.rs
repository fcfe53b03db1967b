//! What is taken from a running VM for a time, of what it is promised.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    amount::Amount,
    resources::Resources,
    units::{Bytes, MilliCores},
};

/// The most that can be taken of a resource, in percent.
pub const MAX_DEFLATION_PERCENT: u8 = 90;
/// Memory is taken in pages of this size.
const PAGE: u64 = 4096;
/// The longest time that a deflation may be given, in milliseconds.
pub const MAX_DEFLATION_MS: u64 = 600_000;

/// What is taken from a running VM until it is inflated again. The promise stays: its room is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Deflation {
    /// The VM's generation at which it was asked for.
    pub generation: u64,
    /// How much of its memory, in percent; 0 to 90.
    pub memory_percent: u8,
    /// How much of its CPU, in percent; 0 to 90.
    pub cpu_percent: u8,
    /// By when each level must have given what it can, in milliseconds from its beginning.
    pub within_ms: u64,
    /// The highest level that is asked: with `host` the guest hears nothing of it.
    #[serde(default)]
    pub from: Level,
}

/// A level that can give back what a VM has: the higher it is, the better it knows what is of use.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Level {
    /// The applications in the guest, by their hooks. What they free the guest's kernel then gives.
    #[default]
    Application,
    /// The guest's kernel: its balloon, elastic memory, vCPUs that it no longer runs on.
    Guest,
    /// The host, without the guest's help: pages written to swap, less CPU time.
    Host,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Application => "application",
            Self::Guest => "guest",
            Self::Host => "host",
        })
    }
}

/// A deflation that cannot be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidDeflation {
    /// More than can be taken.
    #[error("{percent} % of {what} is more than {MAX_DEFLATION_PERCENT} %")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How much.
        percent: u8,
    },
    /// Nothing is to be taken.
    #[error("nothing is to be taken: neither memory nor CPU")]
    Nothing,
    /// The time is out of range.
    #[error("{within_ms} ms is not from 100 ms to {MAX_DEFLATION_MS} ms")]
    Time {
        /// The time.
        within_ms: u64,
    },
}

impl Deflation {
    /// Checks the bounds.
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn check(&self) -> Result<(), InvalidDeflation> {
        for (what, percent) in [("memory", self.memory_percent), ("CPU", self.cpu_percent)] {
            if percent > MAX_DEFLATION_PERCENT {
                return Err(InvalidDeflation::TooMuch { what, percent });
            }
        }
        if self.memory_percent == 0 && self.cpu_percent == 0 {
            return Err(InvalidDeflation::Nothing);
        }
        if !(100..=MAX_DEFLATION_MS).contains(&self.within_ms) {
            return Err(InvalidDeflation::Time { within_ms: self.within_ms });
        }
        Ok(())
    }

    /// How much that is of what a VM is promised.
    #[must_use]
    pub fn of(&self, promised: &Resources) -> Amount {
        let part = |amount: u64, percent: u8| {
            let part = u128::from(amount) * u128::from(percent.min(MAX_DEFLATION_PERCENT)) / 100;
            u64::try_from(part).unwrap_or(amount)
        };
        let memory = part(promised.memory.get(), self.memory_percent);
        Amount {
            // Whole pages: no guest gives less than one.
            memory: Bytes(memory - memory % PAGE),
            cpu: MilliCores(part(promised.cpu.get(), self.cpu_percent)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Deflation = Deflation {
        generation: 1,
        memory_percent: 40,
        cpu_percent: 50,
        within_ms: 5000,
        from: Level::Application,
    };

    #[test]
    fn a_part_is_taken_of_what_is_promised() {
        let promised = Resources {
            memory: Bytes(1001 * 4096),
            cpu: MilliCores(u64::MAX),
            ..Resources::default()
        };
        let taken = ASKED.of(&promised);
        assert_eq!(taken, Amount { memory: Bytes(400 * 4096), cpu: MilliCores(u64::MAX / 2) });
        let left = Amount { memory: Bytes(401 * 4096), cpu: MilliCores(7) }.saturating_sub(taken);
        assert_eq!(left, Amount { memory: Bytes(4096), cpu: MilliCores(0) });
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!(ASKED.check(), Ok(()));
        for bad in [
            Deflation { memory_percent: 91, ..ASKED },
            Deflation { cpu_percent: 255, ..ASKED },
            Deflation { memory_percent: 0, cpu_percent: 0, ..ASKED },
            Deflation { within_ms: 0, ..ASKED },
            Deflation { within_ms: MAX_DEFLATION_MS + 1, ..ASKED },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}

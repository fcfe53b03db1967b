//! What is taken from a running VM for a time, of what it is promised.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    resources::Resources,
    units::{Bytes, MilliCores},
};

/// The most that can be taken of a resource, in percent.
pub const MAX_DEFLATION_PERCENT: u8 = 90;
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
}

/// Amounts of what a running VM can give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Elastic {
    /// Memory.
    pub memory: Bytes,
    /// CPU.
    pub cpu: MilliCores,
}

impl Elastic {
    /// What of these is left when `other` is taken away; nothing becomes negative.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self {
            memory: Bytes(self.memory.0.saturating_sub(other.memory.0)),
            cpu: MilliCores(self.cpu.0.saturating_sub(other.cpu.0)),
        }
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
    pub fn of(&self, promised: &Resources) -> Elastic {
        let part = |amount: u64, percent: u8| {
            let part = u128::from(amount) * u128::from(percent.min(MAX_DEFLATION_PERCENT)) / 100;
            u64::try_from(part).unwrap_or(amount)
        };
        Elastic {
            memory: Bytes(part(promised.memory.get(), self.memory_percent)),
            cpu: MilliCores(part(promised.cpu.get(), self.cpu_percent)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Deflation =
        Deflation { generation: 1, memory_percent: 40, cpu_percent: 50, within_ms: 5000 };

    #[test]
    fn a_part_is_taken_of_what_is_promised() {
        let promised =
            Resources { memory: Bytes(1000), cpu: MilliCores(u64::MAX), ..Resources::default() };
        let taken = ASKED.of(&promised);
        assert_eq!(taken, Elastic { memory: Bytes(400), cpu: MilliCores(u64::MAX / 2) });
        let left = Elastic { memory: Bytes(500), cpu: MilliCores(7) }.without(taken);
        assert_eq!(left, Elastic { memory: Bytes(100), cpu: MilliCores(0) });
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

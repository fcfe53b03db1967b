//! An amount of what a running VM can give back and get again.

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, MilliCores};

/// Memory and CPU: what a VM has, uses, is promised or gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Amount {
    /// Memory.
    pub memory: Bytes,
    /// CPU.
    pub cpu: MilliCores,
}

impl Amount {
    /// The sum, or the largest values where it does not fit.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self {
            memory: self.memory.saturating_add(other.memory),
            cpu: self.cpu.saturating_add(other.cpu),
        }
    }

    /// The difference, never below zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self {
            memory: self.memory.saturating_sub(other.memory),
            cpu: self.cpu.saturating_sub(other.cpu),
        }
    }
}

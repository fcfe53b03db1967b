//! What a host can be short of, and shares of it.

use std::fmt;

use plimsoll_model::Resources;
use serde::{Deserialize, Serialize};

/// How many resources there are.
pub(crate) const RESOURCES: usize = 5;

/// Of each resource an amount in its base unit; none where it is not measured.
pub(crate) type Amounts = [Option<f64>; RESOURCES];

pub(crate) const NOTHING: Amounts = [None; RESOURCES];

/// What a host can be short of while it runs. Disk space is not among them: no VM wants more of it
/// than it was promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Cores.
    Cpu,
    /// Memory.
    Memory,
    /// Disk bandwidth.
    Disk,
    /// Disk operations.
    DiskOperations,
    /// Network bandwidth.
    Network,
}

impl Resource {
    /// All of them, in the order in which they are printed.
    pub const ALL: [Self; RESOURCES] =
        [Self::Cpu, Self::Memory, Self::Disk, Self::DiskOperations, Self::Network];

    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Disk => "disk bandwidth",
            Self::DiskOperations => "disk operations",
            Self::Network => "network",
        })
    }
}

/// What a vector has of each resource, in base units; none where it has nothing, which is to say
/// that it does not account for it.
pub(crate) fn capacities(resources: &Resources) -> Amounts {
    let has = [
        resources.cpu.0,
        resources.memory.0,
        resources.disk_bandwidth.0,
        resources.disk_iops.0,
        resources.network.0,
    ];
    has.map(|amount| (amount > 0).then_some(amount as f64))
}

/// A share in thousandths: 750 is three quarters. More than 1000 is more than there is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Permille(pub u32);

impl Permille {
    /// The nearest share; 0 of what is no number.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bounded just before; what is no number becomes 0"
    )]
    pub fn of(share: f64) -> Self {
        Self((share * 1000.0).round().clamp(0.0, 1e9) as u32)
    }

    /// The share as a number: 0.75 of 750.
    #[must_use]
    pub fn share(self) -> f64 {
        f64::from(self.0) / 1000.0
    }
}

impl fmt::Display for Permille {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{} %", self.0 / 10, self.0 % 10))
    }
}

/// How much of a host is used, by resource; none where it is not measured or not accounted for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Utilisation {
    /// Of its cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Permille>,
    /// Of its memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Permille>,
    /// Of its disk bandwidth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Permille>,
    /// Of its disk operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_operations: Option<Permille>,
    /// Of its network bandwidth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Permille>,
}

impl Utilisation {
    pub(crate) fn of(shares: &Amounts) -> Self {
        let [cpu, memory, disk, disk_operations, network] =
            shares.map(|share| share.map(Permille::of));
        Self { cpu, memory, disk, disk_operations, network }
    }

    /// One of them.
    #[must_use]
    pub const fn get(&self, resource: Resource) -> Option<Permille> {
        match resource {
            Resource::Cpu => self.cpu,
            Resource::Memory => self.memory,
            Resource::Disk => self.disk,
            Resource::DiskOperations => self.disk_operations,
            Resource::Network => self.network,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_and_bounded() {
        assert_eq!(Permille::of(0.7496), Permille(750));
        assert_eq!(Permille::of(-1.0), Permille(0));
        assert_eq!(Permille::of(f64::NAN), Permille(0));
        assert_eq!(Permille::of(f64::INFINITY), Permille(1_000_000_000));
        assert_eq!(Permille(875).to_string(), "87.5 %");
    }

    #[test]
    fn indices_follow_the_order_of_all() {
        for (at, resource) in Resource::ALL.into_iter().enumerate() {
            assert_eq!(resource.index(), at);
        }
    }
}

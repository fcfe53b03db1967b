//! Projects (tenants): quota, credits and roles.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    Timestamp,
    id::ProjectId,
    name::Name,
    resources::Resources,
    units::{BitsPerSecond, Bytes, BytesPerSecond, IoPerSecond, MilliCores},
};

/// The most that a project may hold of each element; what is absent is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Quota {
    /// VMs, running or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vms: Option<u32>,
    /// Cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<MilliCores>,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Disk space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,
    /// Disk bandwidth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bandwidth: Option<BytesPerSecond>,
    /// Disk operations per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_iops: Option<IoPerSecond>,
    /// Network bandwidth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<BitsPerSecond>,
    /// Devices of all accelerator models together (`2`, `500m`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerators: Option<MilliCores>,
}

/// Credits in millionths, so that charging by the second stays exact enough and sums stay exact.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Credits(pub i64);

impl Credits {
    /// How many of these make one credit.
    pub const ONE: i64 = 1_000_000;
}

impl fmt::Display for Credits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let (whole, part) =
            (self.0.unsigned_abs() / 1_000_000, self.0.unsigned_abs() % 1_000_000 / 10_000);
        f.pad(&format!("{sign}{whole}.{part:02}"))
    }
}

/// Millionths of a credit for holding a resource for an hour. All zero: nothing is charged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Prices {
    /// For one core.
    pub core_hour: u64,
    /// For one GiB of memory.
    pub memory_gib_hour: u64,
    /// For one GiB of disk.
    pub disk_gib_hour: u64,
    /// For one Gbit/s of network bandwidth.
    pub network_gbit_hour: u64,
    /// For one accelerator.
    pub accelerator_hour: u64,
}

impl Prices {
    /// What holding `held` for `milliseconds` costs, rounded up.
    #[must_use]
    pub fn charge(&self, held: &Resources, milliseconds: u64) -> Credits {
        const HOUR_MS: u128 = 3_600_000;
        let accelerators: u64 = held.accelerators.0.values().sum();
        let terms: [(u64, u64, u128); 5] = [
            (held.cpu.0, self.core_hour, 1000),
            (held.memory.0, self.memory_gib_hour, 1 << 30),
            (held.disk.0, self.disk_gib_hour, 1 << 30),
            (held.network.0, self.network_gbit_hour, 1_000_000_000),
            (accelerators, self.accelerator_hour, 1000),
        ];
        let sum = terms
            .iter()
            .map(|(amount, price, unit)| {
                u128::from(*amount)
                    .saturating_mul(u128::from(*price))
                    .saturating_mul(u128::from(milliseconds))
                    .div_ceil(unit * HOUR_MS)
            })
            .fold(0, u128::saturating_add);
        Credits(i64::try_from(sum).unwrap_or(i64::MAX))
    }
}

/// What a token's holder may do. In a project, or (without one) in the whole cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Role {
    /// May look.
    Viewer,
    /// May also create, change and delete VMs, networks and images.
    Operator,
    /// May also manage tokens, and of the cluster: projects, hosts and settings.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Project {
    /// Its id.
    pub id: ProjectId,
    /// Its name, unique in the cluster.
    pub name: Name,
    /// The most that it may hold.
    pub quota: Quota,
    /// What it has left; without, it is not charged.
    pub credits: Option<Credits>,
    /// When it was created.
    pub created_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_of_a_core_costs_its_price() {
        let prices = Prices { core_hour: 2 * 1_000_000, ..Prices::default() };
        let held = Resources { cpu: MilliCores(500), ..Resources::default() };
        assert_eq!(prices.charge(&held, 3_600_000), Credits(1_000_000));
        assert_eq!(prices.charge(&held, 1), Credits(1));
        assert_eq!(prices.charge(&Resources::default(), 3_600_000), Credits(0));
        assert_eq!(Credits(-1_500_000).to_string(), "-1.50");
    }
}

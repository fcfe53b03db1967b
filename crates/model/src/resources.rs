//! The resource vector: what a host has and what a VM is promised.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    name::Label,
    units::{BitsPerSecond, Bytes, BytesPerSecond, IoPerSecond, MilliCores},
};

/// An amount of every resource. As a host's capacity: what it has. As a VM's: what it was promised,
/// and at the same time the limit that it feels.
///
/// A zero bandwidth or I/O rate in a VM's vector means "no promise and no limit"; a host that
/// declares none of it (zero capacity) does not account for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Resources {
    /// Cores, in thousandths.
    #[serde(default)]
    pub cpu: MilliCores,
    /// Memory.
    #[serde(default)]
    pub memory: Bytes,
    /// Disk space.
    #[serde(default)]
    pub disk: Bytes,
    /// Disk bandwidth, reads and writes together.
    #[serde(default)]
    pub disk_bandwidth: BytesPerSecond,
    /// Disk operations per second, reads and writes together.
    #[serde(default)]
    pub disk_iops: IoPerSecond,
    /// Network bandwidth, in each direction.
    #[serde(default)]
    pub network: BitsPerSecond,
    /// Accelerators by model.
    #[serde(default, skip_serializing_if = "Accelerators::is_empty")]
    pub accelerators: Accelerators,
}

/// One element of the vector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Element {
    /// Cores.
    Cpu,
    /// Memory.
    Memory,
    /// Disk space.
    Disk,
    /// Disk bandwidth.
    DiskBandwidth,
    /// Disk operations.
    DiskIops,
    /// Network bandwidth.
    Network,
    /// Accelerators of one model.
    Accelerator(Label),
}

impl Element {
    /// The elements that every vector has, in the order in which vectors are printed.
    pub const SCALARS: [Self; 6] =
        [Self::Cpu, Self::Memory, Self::Disk, Self::DiskBandwidth, Self::DiskIops, Self::Network];

    /// An amount of this element as people write it.
    #[must_use]
    pub fn print(&self, amount: u64) -> String {
        match self {
            Self::Cpu => format!("{} cores", MilliCores(amount)),
            Self::Memory | Self::Disk => Bytes(amount).to_string(),
            Self::DiskBandwidth => BytesPerSecond(amount).to_string(),
            Self::DiskIops => format!("{} IOPS", IoPerSecond(amount)),
            Self::Network => BitsPerSecond(amount).to_string(),
            Self::Accelerator(_) => MilliCores(amount).to_string(),
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.pad("cpu"),
            Self::Memory => f.pad("memory"),
            Self::Disk => f.pad("disk"),
            Self::DiskBandwidth => f.pad("disk bandwidth"),
            Self::DiskIops => f.pad("disk operations"),
            Self::Network => f.pad("network"),
            Self::Accelerator(model) => write!(f, "accelerator {model}"),
        }
    }
}

impl Resources {
    /// The amount of one element in its base unit (accelerators: thousandths of a device).
    #[must_use]
    pub fn get(&self, element: &Element) -> u64 {
        match element {
            Element::Cpu => self.cpu.0,
            Element::Memory => self.memory.0,
            Element::Disk => self.disk.0,
            Element::DiskBandwidth => self.disk_bandwidth.0,
            Element::DiskIops => self.disk_iops.0,
            Element::Network => self.network.0,
            Element::Accelerator(model) => self.accelerators.get(model),
        }
    }

    /// The scalar elements in the order of [`Element::SCALARS`], in base units.
    #[must_use]
    pub const fn scalars(&self) -> [u64; 6] {
        [
            self.cpu.0,
            self.memory.0,
            self.disk.0,
            self.disk_bandwidth.0,
            self.disk_iops.0,
            self.network.0,
        ]
    }

    /// The vector of these scalars (in the order of [`Element::SCALARS`]) without accelerators.
    #[must_use]
    pub const fn from_scalars(scalars: [u64; 6]) -> Self {
        let [cpu, memory, disk, disk_bandwidth, disk_iops, network] = scalars;
        Self {
            cpu: MilliCores(cpu),
            memory: Bytes(memory),
            disk: Bytes(disk),
            disk_bandwidth: BytesPerSecond(disk_bandwidth),
            disk_iops: IoPerSecond(disk_iops),
            network: BitsPerSecond(network),
            accelerators: Accelerators(BTreeMap::new()),
        }
    }

    /// The elements that have an amount here, in printing order.
    pub fn elements(&self) -> impl Iterator<Item = (Element, u64)> + '_ {
        Element::SCALARS.into_iter().zip(self.scalars()).filter(|(_, amount)| *amount > 0).chain(
            self.accelerators
                .0
                .iter()
                .map(|(model, amount)| (Element::Accelerator(model.clone()), *amount)),
        )
    }

    /// The element-wise sum, saturating.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.combine(other, u64::saturating_add)
    }

    /// The element-wise difference, never below zero.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        self.combine(other, u64::saturating_sub)
    }

    /// `count` times this, saturating.
    #[must_use]
    pub fn times(&self, count: u64) -> Self {
        let mut product = Self::from_scalars(self.scalars().map(|x| x.saturating_mul(count)));
        for (model, amount) in &self.accelerators.0 {
            product.accelerators.0.insert(model.clone(), amount.saturating_mul(count));
        }
        product
    }

    /// The first element of which `self` has more than `other`.
    #[must_use]
    pub fn first_above(&self, other: &Self) -> Option<Element> {
        self.elements().find(|(element, amount)| *amount > other.get(element)).map(|(e, _)| e)
    }

    fn combine(&self, other: &Self, f: impl Fn(u64, u64) -> u64) -> Self {
        let (a, b) = (self.scalars(), other.scalars());
        let mut scalars = [0; 6];
        for (i, slot) in scalars.iter_mut().enumerate() {
            *slot = f(a[i], b[i]);
        }
        let mut result = Self::from_scalars(scalars);
        for model in self.accelerators.0.keys().chain(other.accelerators.0.keys()) {
            let amount = f(self.accelerators.get(model), other.accelerators.get(model));
            if amount > 0 {
                result.accelerators.0.insert(model.clone(), amount);
            }
        }
        result
    }
}

/// Accelerators by model, in thousandths of a device. A request below 1000 is a share of *one*
/// device; from 1000 on it is whole devices. In text `2` is two devices and `0.5` half of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accelerators(pub BTreeMap<Label, u64>);

/// An amount of accelerators that no VM can have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{amount}` of accelerator {model}: ask for a share of one device or for whole devices")]
pub struct InvalidAccelerator {
    model: Label,
    amount: MilliCores,
}

impl Accelerators {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Thousandths of devices of this model.
    #[must_use]
    pub fn get(&self, model: &Label) -> u64 {
        self.0.get(model).copied().unwrap_or(0)
    }

    /// Checks that every amount is a share of one device or whole devices.
    ///
    /// # Errors
    /// The first model whose amount is neither.
    pub fn check_request(&self) -> Result<(), InvalidAccelerator> {
        self.0
            .iter()
            .find(|(_, amount)| **amount == 0 || (**amount > 1000 && !amount.is_multiple_of(1000)))
            .map_or(Ok(()), |(model, amount)| {
                Err(InvalidAccelerator { model: model.clone(), amount: MilliCores(*amount) })
            })
    }
}

impl Serialize for Accelerators {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(model, amount)| (model, MilliCores(*amount))))
    }
}

impl<'de> Deserialize<'de> for Accelerators {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = BTreeMap::<Label, MilliCores>::deserialize(deserializer)?;
        Ok(Self(map.into_iter().map(|(model, amount)| (model, amount.0)).collect()))
    }
}

#[cfg(feature = "openapi")]
mod schema {
    use utoipa::openapi::{ObjectBuilder, RefOr, schema};

    impl utoipa::PartialSchema for super::Accelerators {
        fn schema() -> RefOr<schema::Schema> {
            ObjectBuilder::new()
                .schema_type(schema::Type::Object)
                .additional_properties(Some(RefOr::T(schema::Schema::Object(
                    ObjectBuilder::new().schema_type(schema::Type::String).build(),
                ))))
                .description(Some("Devices by model: `2` is two, `500m` half of one"))
                .into()
        }
    }
    impl utoipa::ToSchema for super::Accelerators {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_add_subtract_and_compare_element_by_element() {
        let one: Resources = serde_json::from_str(
            r#"{"cpu": 1, "memory": "1GiB", "accelerators": {"a100": "0.5"}}"#,
        )
        .unwrap();
        let two = one.plus(&one);
        assert_eq!(two, one.times(2));
        assert_eq!(two.minus(&one), one);
        assert_eq!(one.first_above(&two), None);
        assert_eq!(two.first_above(&one), Some(Element::Cpu));
        assert!(one.minus(&two).accelerators.is_empty());
    }

    #[test]
    fn accelerators_are_a_share_of_one_or_whole() {
        let parse = |text: &str| serde_json::from_str::<Accelerators>(text).unwrap();
        assert!(parse(r#"{"a100": "0.5", "t4": 2}"#).check_request().is_ok());
        assert!(parse(r#"{"a100": "1.5"}"#).check_request().is_err());
        assert!(parse(r#"{"a100": 0}"#).check_request().is_err());
    }
}

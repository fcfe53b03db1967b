//! The file as it is written: TOML, every key checked. What it may mean is decided in
//! [`super::check`].

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_model::{
    Accelerators, BitsPerSecond, Bytes, BytesPerSecond, ExclusiveAgainst, IoPerSecond, Label,
    MilliCores, Name, Policy, Resources, Scope, Strength,
};
use serde::Deserialize;
use toml::Spanned;

use super::values::{Amount, Domains, Period, Rate};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileEntry {
    pub(super) name: Spanned<String>,
    pub(super) description: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) seed: u64,
    pub(super) duration: Spanned<Period>,
    pub(super) warm_up: Option<Spanned<Period>>,
    pub(super) sample_every: Option<Spanned<Period>>,
    pub(super) policies: Spanned<Vec<Spanned<Policy>>>,
    pub(super) cluster: Spanned<ClusterEntry>,
    #[serde(rename = "workload", default)]
    pub(super) workloads: Vec<Spanned<WorkloadEntry>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClusterEntry {
    #[serde(rename = "host", default)]
    pub(super) hosts: Vec<Spanned<HostEntry>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HostEntry {
    pub(super) name: Name,
    pub(super) count: Spanned<u64>,
    pub(super) capacity: Spanned<Resources>,
    pub(super) racks: Option<Spanned<Domains>>,
    pub(super) zones: Option<Spanned<Domains>>,
    #[serde(default)]
    pub(super) labels: BTreeMap<Label, Label>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WorkloadEntry {
    pub(super) name: Name,
    pub(super) project: Option<Name>,
    pub(super) application: Option<Name>,
    pub(super) arrivals: Spanned<ArrivalsEntry>,
    pub(super) start: Option<Period>,
    pub(super) end: Option<Spanned<Period>>,
    pub(super) batch: Option<Spanned<Amount<u64>>>,
    #[serde(default)]
    pub(super) all_or_nothing: bool,
    pub(super) lifetime: Spanned<LifetimeEntry>,
    #[serde(rename = "flavor", default)]
    pub(super) flavors: Vec<Spanned<FlavorEntry>>,
    #[serde(default)]
    pub(super) groups: BTreeSet<Name>,
    #[serde(default)]
    pub(super) group_per: GroupPer,
    #[serde(default)]
    pub(super) constraints: Vec<Spanned<ConstraintEntry>>,
}

/// How often batches come.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ArrivalsEntry {
    /// Independent of each other, so many in the mean.
    Poisson(Rate),
    /// At equal distances.
    Constant(Rate),
    /// Now and then, many at once.
    Bursts(BurstsEntry),
    /// With the hours of the day.
    Diurnal(DiurnalEntry),
    /// So many at the start.
    Once(u64),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BurstsEntry {
    pub(super) rate: Rate,
    pub(super) size: Amount<u64>,
    #[serde(default)]
    pub(super) over: Period,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiurnalEntry {
    pub(super) rate: Rate,
    pub(super) swing: f64,
    #[serde(default = "afternoon")]
    pub(super) peak: Period,
    #[serde(default = "day")]
    pub(super) period: Period,
}

const fn afternoon() -> Period {
    Period(14 * 3_600_000)
}

const fn day() -> Period {
    Period(86_400_000)
}

/// How long VMs run.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LifetimeEntry {
    Forever,
    Fixed(Period),
    Exponential(Period),
    Lognormal(LognormalEntry),
    Uniform(UniformEntry),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LognormalEntry {
    pub(super) median: Period,
    pub(super) sigma: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UniformEntry {
    pub(super) from: Period,
    pub(super) to: Period,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FlavorEntry {
    pub(super) name: Label,
    pub(super) weight: Option<f64>,
    pub(super) resources: DrawnEntry,
}

/// A resource vector whose elements may be ranges.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DrawnEntry {
    pub(super) cpu: Amount<MilliCores>,
    pub(super) memory: Amount<Bytes>,
    #[serde(default)]
    pub(super) disk: Amount<Bytes>,
    #[serde(default)]
    pub(super) disk_bandwidth: Amount<BytesPerSecond>,
    #[serde(default)]
    pub(super) disk_iops: Amount<IoPerSecond>,
    #[serde(default)]
    pub(super) network: Amount<BitsPerSecond>,
    #[serde(default)]
    pub(super) accelerators: Accelerators,
}

/// Of whom a placement group of a workload consists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupPer {
    /// Of all its VMs.
    #[default]
    Workload,
    /// Of the VMs of one batch: each batch has groups of its own.
    Batch,
}

/// A constraint, as in the files of `plimsoll apply`. Fields in place of a flattened enum, so that
/// unknown keys are found and errors keep their line.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConstraintEntry {
    #[serde(default)]
    pub(super) strength: Strength,
    pub(super) affinity: Option<GroupScopeEntry>,
    pub(super) anti_affinity: Option<GroupScopeEntry>,
    pub(super) exclusive: Option<ExclusiveEntry>,
    pub(super) host_label: Option<HostLabelEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GroupScopeEntry {
    pub(super) group: Name,
    #[serde(default)]
    pub(super) scope: Scope,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExclusiveEntry {
    pub(super) against: ExclusiveAgainst,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HostLabelEntry {
    pub(super) key: Label,
    pub(super) values: Vec<Label>,
}

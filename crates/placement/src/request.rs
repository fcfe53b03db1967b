//! What a decision starts from: the hosts and what is asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use plimsoll_model::{Constraint, HostId, Label, Name, ProjectId, Resources, VmId};
use serde::{Deserialize, Serialize};

use crate::interval::Interval;

/// A host as placement sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostState {
    /// Its number; the lowest wins ties.
    pub id: HostId,
    /// Its name, for people.
    pub name: Name,
    /// Its rack within its zone; hosts that name none are each a rack of their own.
    #[serde(default)]
    pub rack: Option<Label>,
    /// Its zone; hosts that name none are all in one zone.
    #[serde(default)]
    pub zone: Option<Label>,
    /// Its labels, for [`plimsoll_model::Rule::HostLabel`].
    #[serde(default)]
    pub labels: BTreeMap<Label, Label>,
    /// What VMs can use of it in all.
    pub capacity: Resources,
    /// The shared storage pool that it has mounted; none when disks are its own.
    #[serde(default)]
    pub pool: Option<Name>,
    /// Why nothing new may come here; none when it takes VMs.
    #[serde(default)]
    pub unschedulable: Option<Unschedulable>,
}

/// Why a host takes no new VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unschedulable {
    /// An operator empties it.
    Draining,
    /// It has not reported for a while.
    Unreachable,
    /// It has not reported for so long that it is given up.
    Dead,
    /// It is known to run nothing, and has not come back.
    Fenced,
}

impl fmt::Display for Unschedulable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Draining => "draining",
            Self::Unreachable => "unreachable",
            Self::Dead => "dead",
            Self::Fenced => "fenced",
        })
    }
}

/// So much of the accelerators of one model, when several models will do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AnyModel {
    /// The models that will do; empty when every model will.
    #[serde(default)]
    pub models: BTreeSet<Label>,
    /// Below 1000 a share of one device, from 1000 on whole devices, all of the same model.
    pub thousandths: u64,
}

impl AnyModel {
    /// Whether a model will do.
    #[must_use]
    pub fn accepts(&self, model: &Label) -> bool {
        self.models.is_empty() || self.models.contains(model)
    }

    /// The model under which it is missed where there is none that would do.
    pub(crate) fn missing(&self) -> Label {
        let first = self.models.first().cloned();
        first.unwrap_or_else(|| "any".parse().expect("three letters are a label"))
    }
}

/// A VM that needs a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The VM. One that is already placed is decided about as if it had left its place.
    pub vm: VmId,
    /// Its project; groups and applications are those of this project.
    pub project: ProjectId,
    /// The application of which it is a part.
    #[serde(default)]
    pub application: Option<Name>,
    /// The placement groups to which it belongs.
    #[serde(default)]
    pub groups: BTreeSet<Name>,
    /// What it is to be promised.
    pub demand: Resources,
    /// What it is to be promised beside, of the accelerators of one model, whichever its host has;
    /// of several the first by name that has room.
    #[serde(default)]
    pub accelerator: Option<AnyModel>,
    /// What it asks of its place.
    #[serde(default)]
    pub constraints: Vec<Constraint>,
    /// The only host that will do, such as the one that has its disk.
    #[serde(default)]
    pub pinned_host: Option<HostId>,
    /// The only host that will not do, such as the one that a running VM is to leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excluded_host: Option<HostId>,
    /// The shared storage pool that its host must have mounted.
    #[serde(default)]
    pub pool: Option<Name>,
    /// When it holds what it is promised; by default always, which is from now until it is
    /// released.
    #[serde(default, skip_serializing_if = "Interval::is_always")]
    pub interval: Interval,
    /// Whether its disk space stays taken when the interval is over, until it is released.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps_disk: bool,
}

impl Request {
    /// A request for so much, with no constraints.
    #[must_use]
    pub const fn new(vm: VmId, project: ProjectId, demand: Resources) -> Self {
        Self {
            vm,
            project,
            application: None,
            groups: BTreeSet::new(),
            demand,
            accelerator: None,
            constraints: Vec::new(),
            pinned_host: None,
            excluded_host: None,
            pool: None,
            interval: Interval::ALWAYS,
            keeps_disk: false,
        }
    }

    /// What it asks for on a host that gives it this model: all in one vector.
    pub(crate) fn demand_with(&self, model: Option<&Label>) -> Resources {
        let mut demand = self.demand.clone();
        if let (Some(any), Some(model)) = (&self.accelerator, model) {
            let amount = demand.accelerators.0.entry(model.clone()).or_insert(0);
            *amount = amount.saturating_add(any.thousandths);
        }
        demand
    }
}

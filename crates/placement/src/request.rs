//! What a decision starts from: the hosts and what is asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use plimsoll_model::{Constraint, HostId, Label, Name, ProjectId, Resources, VmId};
use serde::{Deserialize, Serialize};

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
    /// What it asks of its place.
    #[serde(default)]
    pub constraints: Vec<Constraint>,
    /// The only host that will do, such as the one that has its disk.
    #[serde(default)]
    pub pinned_host: Option<HostId>,
    /// The shared storage pool that its host must have mounted.
    #[serde(default)]
    pub pool: Option<Name>,
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
            constraints: Vec::new(),
            pinned_host: None,
            pool: None,
        }
    }
}

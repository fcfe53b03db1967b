//! What a plan says: what is hot, what is done about it in which order, and why nothing is done about
//! the rest. All of it can be sent and stored.

use plimsoll_model::{Amount, Bytes, HostId, VmId};
use plimsoll_placement::{Refusal, Refusals};
use serde::{Deserialize, Serialize};

use crate::resource::{Permille, Resource, Utilisation};

/// What is to be done, in order.
///
/// Moves may run in any order and at the same time, save that one waits for those in its
/// [`Step::after`]: a VM that leaves still counts where it was, for all that comes after it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The hosts that are overloaded, the worst first.
    pub hotspots: Vec<Hotspot>,
    /// The VMs that are short of something although their hosts may be idle, by id.
    pub needs: Vec<Need>,
    /// What is to be done.
    pub steps: Vec<Step>,
    /// What nothing, or not enough, is done about.
    pub unmet: Vec<Unmet>,
    /// The sum of what hosts are overloaded by, now.
    pub overload_before: Permille,
    /// The same when all steps are done.
    pub overload_after: Permille,
    /// Whether the limit of looks was reached: another plan may find more.
    pub cut_short: bool,
}

/// A host that is overloaded: k of its last n samples are above the threshold, and the next is
/// expected to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hotspot {
    /// The host.
    pub host: HostId,
    /// What it is short of; never empty.
    pub short: Vec<Shortage>,
    /// Sandpiper's volume: the product of 1 / (1 - utilisation) over all that is measured, by which
    /// hotspots are ordered.
    pub volume: f64,
    /// Whether it is so overloaded that VMs are moved again that have just moved.
    pub emergency: bool,
    /// How long it has lasted, in seconds.
    pub lasts_s: u64,
    /// How much longer it is expected to last, in seconds, if it is expected to be short.
    pub short_for_s: Option<u64>,
}

/// A resource of which a host is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortage {
    /// Which one.
    pub resource: Resource,
    /// How much of it was asked for last.
    pub now: Permille,
    /// How much of it is expected to be asked for next.
    pub predicted: Permille,
    /// The threshold.
    pub threshold: Permille,
    /// How many of the last samples were above it.
    pub high_samples: u32,
}

/// A VM that is short of something, whatever its host looks like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// The VM.
    pub vm: VmId,
    /// Where it is.
    pub host: HostId,
    /// How that is known.
    pub symptom: Symptom,
    /// What it is short of; none when nothing tells.
    pub short: Option<Resource>,
}

/// How it is known that a VM is short of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Symptom {
    /// Its application answers more slowly than it should.
    Latency {
        /// What it took, in microseconds.
        seen_us: u64,
        /// What it should take at most, in microseconds.
        objective_us: u64,
    },
    /// Its guest stands still for want of memory, or has next to none available.
    MemoryPressure,
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What is done.
    pub action: Action,
    /// Why.
    pub reason: Reason,
    /// The steps (from 0) that must be over before this one begins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<usize>,
    /// How the hosts are expected to do, before and after it, in the order of the plan.
    pub hosts: Vec<Forecast>,
    /// What it costs.
    pub cost: Cost,
    /// What it takes from the sum of overloads. Of a swap its last step has all.
    pub gain: Permille,
}

/// What can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Action {
    /// A VM goes to another host.
    Move {
        /// The VM.
        vm: VmId,
        /// Where it is.
        from: HostId,
        /// Where it goes.
        to: HostId,
    },
    /// What a VM can use is changed where it is.
    Resize {
        /// The VM.
        vm: VmId,
        /// Where it is.
        host: HostId,
        /// What it has.
        from: Amount,
        /// What it gets.
        to: Amount,
    },
}

impl Action {
    /// The VM with which something is done.
    #[must_use]
    pub const fn vm(&self) -> VmId {
        match self {
            Self::Move { vm, .. } | Self::Resize { vm, .. } => *vm,
        }
    }
}

/// Why a step is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reason {
    /// A host is short of something, and this relieves it.
    Hotspot {
        /// The host.
        host: HostId,
        /// Of what the VM takes the most that is short there.
        resource: Resource,
    },
    /// A VM comes from a hotspot, and this one makes room for it: together they are a swap.
    Swap {
        /// The VM that comes.
        with: VmId,
        /// The hotspot.
        hotspot: HostId,
    },
    /// The overload is expected to be short: elastic VMs do with less until it is over.
    ShortOverload {
        /// The host.
        host: HostId,
        /// What is short.
        resource: Resource,
        /// How much longer it is expected to last, in seconds.
        for_s: u64,
    },
    /// The overload for which it did with less is over.
    Restore,
    /// The VM is short of something.
    Need {
        /// How that is known.
        symptom: Symptom,
        /// Of what; none when nothing tells.
        short: Option<Resource>,
    },
}

/// How a host is expected to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// The host.
    pub host: HostId,
    /// What is expected without the step.
    pub before: Utilisation,
    /// What is expected after it.
    pub after: Utilisation,
}

/// What a step costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// What is sent: the memory, and again what is written meanwhile.
    pub bytes: Bytes,
    /// How long it is expected to take, in milliseconds.
    pub expected_ms: u64,
}

/// Something about which nothing, or not enough, is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmet {
    /// What it is.
    pub subject: Subject,
    /// Why.
    pub why: NoBeneficialMove,
}

/// What is left as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A hotspot.
    Host(HostId),
    /// A VM in need.
    Vm(VmId),
}

/// Why there is no step, or no further one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum NoBeneficialMove {
    /// Elastic VMs do with less already, and it is expected to be over soon.
    EndsSoon {
        /// In so many seconds.
        in_s: u64,
    },
    /// So many moves run or are planned already as may run at once.
    MovesAtOnce {
        /// How many may.
        limit: u32,
    },
    /// The plan took as many looks as it may.
    Looks {
        /// How many it may.
        limit: u32,
    },
    /// Everything was tried.
    Tried(Box<Tried>),
}

/// What was tried in vain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// The VMs that run there.
    pub vms: u32,
    /// Those that cannot be moved at all, or are busy.
    pub fixed: u32,
    /// Those that have moved lately.
    pub cooling: u32,
    /// Those of which it is not measured that they use what is short, or that use next to none of it.
    pub no_help: u32,
    /// Those for which hosts were looked for.
    pub looked_for: u32,
    /// Hosts that would be too full after the move, over all those VMs.
    pub too_full: u32,
    /// Hosts on which something is not measured that the VM uses.
    pub unmeasured: u32,
    /// Hosts that would hold the VM, but not enough would be gained.
    pub no_gain: u32,
    /// Hosts that placement refused.
    pub refused: u32,
    /// The first of those refusals.
    pub example: Option<RefusedMove>,
    /// Swaps that were tried.
    pub swaps: u32,
}

/// A move that placement refuses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedMove {
    /// The VM.
    pub vm: VmId,
    /// Where it would have gone.
    pub to: HostId,
    /// Why it cannot.
    pub refusal: Refusal,
}

/// Why a VM cannot leave its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fixed {
    /// It does not run, so that nothing would be gained, or it is being changed.
    Busy,
    /// It moves already.
    Moving,
    /// It has a device of its host.
    Devices,
    /// An operator, or what it is made of, forbids it.
    Forbidden,
    /// Nothing is known of it.
    Unknown,
}

/// Where the VMs of a host go that is to be emptied; see [`crate::Balancer::spread`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The moves, which may run in any order and at the same time.
    pub steps: Vec<SpreadStep>,
    /// The VMs that stay, by id.
    pub stuck: Vec<Stuck>,
}

/// One move of a [`Spread`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpreadStep {
    /// The VM.
    pub vm: VmId,
    /// Where it goes.
    pub to: HostId,
    /// How many of its preferred rules it breaks there.
    pub broken: u32,
    /// How the target is expected to do, before and after it; none where nothing is measured.
    pub target: Option<Forecast>,
    /// What it costs.
    pub cost: Cost,
}

/// A VM that cannot leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stuck {
    /// The VM.
    pub vm: VmId,
    /// Why.
    pub why: StuckBecause,
}

/// Why a VM cannot leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum StuckBecause {
    /// It cannot be moved at all.
    Fixed {
        /// Why.
        fixed: Fixed,
    },
    /// Placement refuses every host.
    Refused(Refusals),
    /// Hosts would hold it, and each would be overloaded by it.
    Overload {
        /// The one that would be the least.
        best: HostId,
        /// How it would do.
        after: Utilisation,
    },
}

//! What the manager keeps of each thing in the store: the model's noun with the manager's own notes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use plimsoll_api::{migration::MigrationLimits, v1::Settings};
use plimsoll_model::{
    Amount, Bytes, Host, HostId, Image, ImageFileKind, ImageId, Policy, Power, Project, ProjectId,
    Resources, Role, Timestamp, TokenId, Vm, VmPhase, VmSpec,
};
use plimsoll_placement::{Devices, Interval, Request};
use serde::{Deserialize, Serialize};

use crate::core::migration::{Migration, PastMigration};

/// How much of its host a placed VM holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Claim {
    /// All of its resources and its overhead: it runs, or may run at any moment.
    #[default]
    Full,
    /// Only its disk: its host has said that it does not run.
    Disk,
}

/// How long a guest may take to shut down when nobody says otherwise.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(60);

/// When a VM that is to end then is reckoned to have left its host: the guest may take its time to
/// shut down. Everything that is said to users is without it.
#[must_use]
pub fn gone_by(end: Timestamp) -> Timestamp {
    end.checked_add(SHUTDOWN_GRACE).unwrap_or(Timestamp::MAX)
}

/// A host for a VM, for an interval to come. It is in placement's books like a running VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Booking {
    /// The host.
    pub host: HostId,
    /// When the VM is to start.
    pub from: Timestamp,
    /// When it is to be stopped; none when it has no end.
    #[serde(default)]
    pub until: Option<Timestamp>,
    /// The policy that chose the host.
    pub policy: Policy,
    /// The reason in a few words, such as `most-free 0.812`.
    pub reason: String,
    /// When it was booked, or moved last.
    pub since: Timestamp,
}

impl Booking {
    /// When the host holds room for it.
    #[must_use]
    pub fn interval(&self) -> Interval {
        Interval { from: Some(self.from), until: self.until.map(gone_by) }
    }
}

/// A host that must confirm that it holds nothing of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleanup {
    /// The incarnation that it had.
    pub incarnation: u64,
    /// Whether the disk goes too.
    pub delete_disk: bool,
}

/// A VM with what the manager notes about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// The VM.
    #[serde(flatten)]
    pub vm: Vm,
    /// The image from which it is made: names may come to mean another.
    pub image: ImageId,
    /// How much of its host it holds.
    #[serde(default)]
    pub claim: Claim,
    /// Memory that it costs its host beside its own, as of its placement.
    #[serde(default)]
    pub overhead: Bytes,
    /// The accelerator devices that it has there.
    #[serde(default, skip_serializing_if = "Devices::is_empty")]
    pub devices: Devices,
    /// The generation at which it was last wanted to run, or not to.
    #[serde(default)]
    pub power_generation: u64,
    /// The revision at which its power, place or incarnation was last changed: what a host reports
    /// while it works on an older desired state says nothing about it.
    #[serde(default)]
    pub wanted_since: u64,
    /// The memory with which the running QEMU booted.
    #[serde(default)]
    pub booted_memory: Bytes,
    /// How long the guest may take to shut down.
    #[serde(default)]
    pub shutdown_grace_ms: u64,
    /// Whether its guard ends it when its host's lease has run out.
    #[serde(default)]
    pub fenced_by_lease: bool,
    /// The generation at which `fenced_by_lease` became true after its host had it: until the host
    /// has carried it out, an expired lease proves nothing. 0: it was true from the start.
    #[serde(default)]
    pub lease_generation: u64,
    /// Whether its guest's end was announced.
    #[serde(default)]
    pub end_announced: bool,
    /// Where and when it is to start; only while it is pending and was never placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booking: Option<Booking>,
    /// What is taken from it for now is taken by balancing, and not by a user.
    #[serde(default)]
    pub balanced_deflation: bool,
    /// Hosts that must confirm that they hold nothing of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cleanups: BTreeMap<HostId, Cleanup>,
    /// Its move to another host, while that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<Migration>,
    /// Its last move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_migration: Option<PastMigration>,
}

impl VmRecord {
    /// Its host.
    #[must_use]
    pub fn host(&self) -> Option<HostId> {
        self.vm.placement.as_ref().map(|placement| placement.host)
    }

    /// What its project is charged with, against quota: all but for a VM that does not run, or whose
    /// host has said so.
    #[must_use]
    pub fn used(&self) -> Resources {
        let spec = &self.vm.spec.resources;
        let idle = match self.vm.placement {
            Some(_) => self.claim == Claim::Disk,
            None => matches!(self.vm.phase, VmPhase::Stopped | VmPhase::Failed),
        };
        if idle { only_disk(spec) } else { spec.clone() }
    }

    /// What it holds of its host without overhead; nothing while it has none.
    #[must_use]
    pub fn held(&self) -> Resources {
        let spec = &self.vm.spec.resources;
        match (&self.vm.placement, self.claim) {
            (None, _) => Resources::default(),
            (Some(_), Claim::Full) => spec.clone(),
            (Some(_), Claim::Disk) => only_disk(spec),
        }
    }

    /// What it may have to do without of what it is promised: all above its minimum.
    #[must_use]
    pub fn yielding(&self) -> Amount {
        let spec = &self.vm.spec;
        let (memory, cpu) = (spec.resources.memory, spec.resources.cpu);
        let (memory_min, cpu_min) = spec.elasticity.minimum(memory, cpu);
        Amount { memory: memory.saturating_sub(memory_min), cpu: cpu.saturating_sub(cpu_min) }
    }

    /// What it takes of a host to hold it, running, with this overhead.
    #[must_use]
    pub fn demand(&self, overhead: Bytes) -> Resources {
        let spec = &self.vm.spec.resources;
        Resources { memory: spec.memory.saturating_add(overhead), ..spec.clone() }
    }

    /// What placement is asked for, or told, about it: from now until its end, if it has one. Its
    /// disk stays when it has ended.
    #[must_use]
    pub fn request(&self, demand: Resources) -> Request {
        let until = self.vm.spec.end_at.map(gone_by);
        self.request_for(demand, Interval { from: None, until })
    }

    /// [`Self::request`] for another time.
    #[must_use]
    pub fn request_for(&self, demand: Resources, interval: Interval) -> Request {
        let vm = &self.vm;
        Request {
            application: vm.spec.application.clone(),
            groups: vm.spec.groups.clone(),
            constraints: vm.spec.constraints.clone(),
            interval,
            keeps_disk: interval.until.is_some(),
            ..Request::new(vm.id, vm.project, demand)
        }
    }

    /// Its entry in placement's books: where, holding what and when.
    #[must_use]
    pub fn entry(&self) -> Option<(HostId, Request)> {
        if let Some(booking) = &self.booking {
            let demand = self.demand(self.overhead);
            return Some((booking.host, self.request_for(demand, booking.interval())));
        }
        let host = self.host()?;
        let request = match self.claim {
            Claim::Full => self.request(self.demand(self.overhead)),
            Claim::Disk => self.request_for(only_disk(&self.vm.spec.resources), Interval::ALWAYS),
        };
        Some((host, request))
    }

    /// For how long it is to run once it starts, while its end is not known yet.
    #[must_use]
    pub fn duration(&self) -> Option<Duration> {
        duration(&self.vm.spec)
    }

    /// Whether it may be booked: it was never placed, and may not start yet or has a duration.
    #[must_use]
    pub fn may_be_booked(&self, now: Timestamp) -> bool {
        let later = self.vm.spec.start_after.is_some_and(|start| start > now);
        self.vm.power == Power::Running
            && self.vm.incarnation == 0
            && self.vm.phase == VmPhase::Pending
            && (later || self.duration().is_some())
    }
}

/// For how long a VM is to run once it starts, while its end is not known yet.
#[must_use]
pub fn duration(spec: &VmSpec) -> Option<Duration> {
    spec.duration_ms.filter(|_| spec.end_at.is_none()).map(Duration::from_millis)
}

/// The disk space of a vector, alone.
#[must_use]
pub fn only_disk(resources: &Resources) -> Resources {
    Resources { disk: resources.disk, ..Resources::default() }
}

/// A host with what the manager notes about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// The host.
    #[serde(flatten)]
    pub host: Host,
    /// Whether it is known that the host holds a lease, so that its guards act when it runs out.
    #[serde(default)]
    pub lease_armed: bool,
    /// The longest lease that it may hold, in milliseconds.
    #[serde(default)]
    pub longest_lease_ms: u64,
    /// What may be promised beyond its capacity: what its elastic VMs are promised and will not use
    /// at the risk that the settings state.
    #[serde(default)]
    pub loan: Amount,
    /// Its VMs are to be moved away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<Drain>,
}

/// The wish to empty a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// How many VMs move at once.
    pub parallel: u32,
    /// What each move may cost.
    pub limits: MigrationLimits,
    /// Since when.
    pub since: Timestamp,
}

impl HostRecord {
    /// What may be promised on it in all.
    #[must_use]
    pub fn capacity_with_loan(&self) -> Resources {
        let mut capacity = self.host.spec.capacity.clone();
        capacity.cpu = capacity.cpu.saturating_add(self.loan.cpu);
        capacity.memory = capacity.memory.saturating_add(self.loan.memory);
        capacity
    }
}

/// A project with what the manager notes about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectRecord {
    /// The project.
    #[serde(flatten)]
    pub project: Project,
    /// Up to when what it holds has been charged.
    pub charged_until: Timestamp,
}

/// An image with what the manager notes about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The image.
    #[serde(flatten)]
    pub image: Image,
    /// The files that are there.
    #[serde(default)]
    pub present: BTreeSet<ImageFileKind>,
}

/// A user's token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Its id.
    pub id: TokenId,
    /// SHA-256 of its secret, in hexadecimal digits.
    pub hash: String,
    /// What its holder may do.
    pub role: Role,
    /// In which project; without, in the whole cluster.
    #[serde(default)]
    pub project: Option<ProjectId>,
    /// What it is for.
    #[serde(default)]
    pub note: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
}

/// A token with which a host joins, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenRecord {
    /// Its id.
    pub id: TokenId,
    /// SHA-256 of its secret, in hexadecimal digits.
    pub hash: String,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// The cluster's settings and counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsRecord {
    /// The settings.
    pub settings: Settings,
    /// The last host number given out: never used again.
    pub last_host: u32,
    /// The last VXLAN identifier given out: the search for the next begins behind it, so that one is
    /// reused as late as possible.
    pub last_vni: u32,
    /// The last event's place in the log.
    #[serde(skip)]
    pub last_event: u64,
}

//! CPU limits of running VMs, by cgroups of version 1 or 2. Limits of memory are in [`memory`].
//!
//! Only the vCPU threads of a VM are limited, never the whole QEMU process: with all of QEMU under
//! a quota its monitor answers up to 190 ms late, and disk and network threads stall with it.
//!
//! ```text
//! version 1                              version 2
//! <cpu mount>/<parent>/   shares          <mount>/<parent>/          domain, +cpu, weight
//!   <vm-id>/              quota, shares     <vm-id>/                 domain threaded, weight
//!     tasks = vCPU threads                    cgroup.procs = QEMU
//!                                             vcpus/                 threaded, cpu.max
//!                                               cgroup.threads = vCPU threads
//! ```
//!
//! Version 2 lets single threads into a group only inside a *threaded domain*, which the whole
//! process must join first: `<vm-id>` becomes one the moment its child `vcpus` turns threaded.
//! The weight stands on `<vm-id>`, because weights compare siblings: on `vcpus` it would only weigh
//! a VM's vCPUs against its own QEMU threads. The thread moves of version 2 are tested on real
//! kernels; its quota and weight files only on a tree of plain files so far (the machines that
//! Plimsoll was built on have the cpu controller on version 1).
//!
//! Everything is level-triggered: [`CpuGroups::apply`] may be called again at any time with the
//! whole wish, and what it returns was read back from the kernel. Calls take microseconds and do
//! not wait for anything, so they are not async.

pub mod memory;
mod mounts;
mod v1;
mod v2;

#[cfg(test)]
mod tests;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use plimsoll_model::{Bytes, MilliCores, VmId};
use serde::{Deserialize, Serialize};
use std::fs;
use thiserror::Error;

pub use mounts::{CgroupMounts, V1Mount};

/// The group that holds the groups of all VMs, where the configuration names none.
pub const DEFAULT_PARENT: &str = "plimsoll";

/// Length of one accounting period. A throttled vCPU stands still for at most this long, and the
/// rate stays within 1 % at a quarter of a core (measured with 250 timer ticks a second).
const PERIOD_US: u64 = 10_000;
/// The kernel takes no smaller quota, so smaller limits get a longer period.
const SHORTEST_QUOTA_US: u64 = 1_000;
const LONGEST_PERIOD_US: u64 = 1_000_000;

/// Which generation of cgroups holds the cpu controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CgroupVersion {
    /// One hierarchy per controller.
    V1,
    /// The unified hierarchy.
    V2,
}

/// How much a VM counts against the others when the host's CPUs do not suffice: 1 to 10,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct CpuWeight(u32);

impl CpuWeight {
    /// The weight of a VM for which none is said.
    pub const DEFAULT: Self = Self(100);

    /// A weight from 1 to 10,000, or `None`.
    #[must_use]
    pub const fn new(weight: u32) -> Option<Self> {
        if weight >= 1 && weight <= 10_000 { Some(Self(weight)) } else { None }
    }

    /// The weight as version 2 counts it.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The weight of a VM that was promised this much CPU: 100 for each core, so that VMs of
    /// different size get the same share *per promised core* when the host is full.
    #[must_use]
    pub fn for_cpu(cpu: MilliCores) -> Self {
        Self(u32::try_from((cpu.get() / 10).clamp(1, 10_000)).unwrap_or(10_000))
    }
}

impl Default for CpuWeight {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl From<CpuWeight> for u32 {
    fn from(weight: CpuWeight) -> Self {
        weight.0
    }
}

impl TryFrom<u32> for CpuWeight {
    type Error = WeightOutOfRange;

    fn try_from(weight: u32) -> Result<Self, Self::Error> {
        Self::new(weight).ok_or(WeightOutOfRange { weight })
    }
}

/// A weight that is not from 1 to 10,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("CPU weight {weight} is not from 1 to 10000")]
pub struct WeightOutOfRange {
    weight: u32,
}

/// What a VM's vCPUs may use, all of them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuLimits {
    /// At most this much CPU time; `None`: as much as there is.
    pub quota: Option<MilliCores>,
    /// Against other VMs, when there is not enough for all.
    pub weight: CpuWeight,
}

/// What the kernel says is in force, read back after a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuInForce {
    /// CPU time per period in microseconds; `None`: no limit.
    pub quota_us: Option<u64>,
    /// Length of a period in microseconds.
    pub period_us: u64,
    /// In version 2's measure (100 is normal), whichever version is in force.
    pub weight: u32,
    /// The threads that are held to it, in ascending order.
    pub threads: Vec<u32>,
}

impl CpuInForce {
    /// The limit in thousandths of a core; `None`: no limit.
    #[must_use]
    pub fn quota(&self) -> Option<MilliCores> {
        self.quota_us.map(|quota| MilliCores(quota * 1000 / self.period_us.max(1)))
    }

    /// Whether this is what was asked for, within the kernel's rounding (1 % of the quota and of
    /// the weight; version 1 counts weights in steps of about a tenth).
    #[must_use]
    pub fn agrees_with(&self, wanted: &CpuLimits) -> bool {
        let quota = match (self.quota(), wanted.quota) {
            (None, None) => true,
            (Some(is), Some(wanted)) => {
                is.get().abs_diff(wanted.get().max(1)) <= wanted.get() / 100 + 1
            }
            _ => false,
        };
        quota && self.weight.abs_diff(wanted.weight.get()) <= wanted.weight.get() / 100 + 1
    }
}

/// How often the kernel held a VM's vCPUs back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttling {
    /// Periods in which the vCPUs wanted to run.
    pub periods: u64,
    /// Of them, in how many the quota was used up.
    pub throttled_periods: u64,
    /// How long vCPUs waited for the next period, summed over CPUs, in microseconds.
    pub throttled_us: u64,
}

/// Why limits could not be found, set or read.
#[derive(Debug, Error)]
pub enum LimitsError {
    /// The parent's name is not one plain directory name.
    #[error("`{name}` cannot name a cgroup: use 1 to 64 of a-z, A-Z, 0-9, `-` and `_`")]
    ParentName { name: String },
    /// The list of mounts is not readable.
    #[error("cannot read the mounted file systems from {}", path.display())]
    Mounts {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Neither version offers the cpu controller.
    #[error("no mounted cgroup hierarchy offers the cpu controller")]
    NoCpuController,
    /// Neither version offers the memory controller.
    #[error("no mounted cgroup hierarchy offers the memory controller")]
    NoMemoryController,
    /// The kernel cannot write out so much of a VM's memory.
    #[error("{vm} still has {usage} in memory, and cannot be held to {limit}")]
    StillInUse { vm: VmId, usage: Bytes, limit: Bytes },
    /// A group could not be made.
    #[error("cannot create cgroup {}", path.display())]
    Create {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A group could not be removed.
    #[error("cannot remove cgroup {}", path.display())]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A value was refused by the kernel.
    #[error("cannot write `{value}` to {}", path.display())]
    Write {
        path: PathBuf,
        value: String,
        #[source]
        source: io::Error,
    },
    /// A value could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A value was read that has another form than the kernel documents.
    #[error("{} holds `{text}`, which is not understood", path.display())]
    Unreadable { path: PathBuf, text: String },
    /// A thread to limit belongs to another process than the VM's.
    #[error("thread {thread} does not belong to process {process}")]
    ForeignThread { thread: u32, process: u32 },
    /// The kernel took the values, but reads back others.
    #[error("{vm} should be limited to {wanted:?}, but the kernel has {in_force:?}")]
    NotInForce { vm: VmId, wanted: CpuLimits, in_force: CpuInForce },
}

impl LimitsError {
    /// Whether the VM has no group at all (never limited, or removed).
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } => {
                source.kind() == io::ErrorKind::NotFound
            }
            _ => false,
        }
    }
}

#[derive(Clone, Debug)]
enum Hierarchy {
    V1(v1::Hierarchy),
    V2(v2::Hierarchy),
}

/// The CPU groups of one agent's VMs.
#[derive(Clone, Debug)]
pub struct CpuGroups {
    hierarchy: Hierarchy,
}

impl CpuGroups {
    /// Finds the hierarchy with the cpu controller among the mounted ones.
    ///
    /// `parent` names the group that holds all VMs of *this agent*; agents that share a machine
    /// need different names, or they take each other's VMs for left-overs. An agent started with
    /// `ip netns exec` sees no cgroups at all, because that mounts `/sys` anew; `nsenter --net`
    /// leaves them.
    ///
    /// # Errors
    /// [`LimitsError::ParentName`], [`LimitsError::Mounts`], [`LimitsError::NoCpuController`].
    pub fn detect(parent: &str) -> Result<Self, LimitsError> {
        Self::from_mounts(&CgroupMounts::of_this_process()?, parent)
    }

    /// The same on a given list of mounts.
    ///
    /// # Errors
    /// [`LimitsError::ParentName`], [`LimitsError::NoCpuController`].
    pub fn from_mounts(mounts: &CgroupMounts, parent: &str) -> Result<Self, LimitsError> {
        check_parent(parent)?;
        // A controller sits in exactly one hierarchy, so the order of asking does not matter.
        let hierarchy = if let Some(root) = mounts.v1_with("cpu") {
            Hierarchy::V1(v1::Hierarchy::new(root.join(parent)))
        } else if let Some(root) = mounts.v2_with("cpu") {
            Hierarchy::V2(v2::Hierarchy::new(root.to_owned(), root.join(parent)))
        } else {
            return Err(LimitsError::NoCpuController);
        };
        Ok(Self { hierarchy })
    }

    /// The version in use.
    #[must_use]
    pub fn version(&self) -> CgroupVersion {
        match self.hierarchy {
            Hierarchy::V1(_) => CgroupVersion::V1,
            Hierarchy::V2(_) => CgroupVersion::V2,
        }
    }

    /// Puts the vCPU threads of a VM under limits and returns what is in force afterwards. Called
    /// again it moves new threads in (after vCPU hotplug) and changes the limits of all.
    ///
    /// `qemu` is the process id of QEMU, `vcpus` the thread ids from `query-cpus-fast`; each must be
    /// a thread of that process.
    ///
    /// # Errors
    /// [`LimitsError`] with the file that refused; [`LimitsError::NotInForce`] when the kernel
    /// accepted something else than asked. The VM keeps running either way.
    pub fn apply(
        &self,
        vm: VmId,
        qemu: u32,
        vcpus: &[u32],
        limits: CpuLimits,
    ) -> Result<CpuInForce, LimitsError> {
        for &thread in vcpus {
            // A thread id that was reused since QEMU named it must not drag a stranger in.
            if !Path::new("/proc").join(format!("{qemu}/task/{thread}")).exists() {
                return Err(LimitsError::ForeignThread { thread, process: qemu });
            }
        }
        match &self.hierarchy {
            Hierarchy::V1(groups) => groups.enter(vm, vcpus)?,
            Hierarchy::V2(groups) => groups.enter(vm, qemu, vcpus)?,
        }
        self.change(vm, limits)
    }

    /// Changes the limits of a VM whose threads are under limits already.
    ///
    /// # Errors
    /// As [`Self::apply`]; [`LimitsError::is_not_found`] where the VM has no group.
    pub fn change(&self, vm: VmId, limits: CpuLimits) -> Result<CpuInForce, LimitsError> {
        match &self.hierarchy {
            Hierarchy::V1(groups) => groups.set(vm, limits)?,
            Hierarchy::V2(groups) => groups.set(vm, limits)?,
        }
        let in_force = self.in_force(vm)?;
        if in_force.agrees_with(&limits) {
            Ok(in_force)
        } else {
            Err(LimitsError::NotInForce { vm, wanted: limits, in_force })
        }
    }

    /// What is in force for a VM.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub fn in_force(&self, vm: VmId) -> Result<CpuInForce, LimitsError> {
        match &self.hierarchy {
            Hierarchy::V1(groups) => groups.in_force(vm),
            Hierarchy::V2(groups) => groups.in_force(vm),
        }
    }

    /// How often the VM was held back, since its group was made.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub fn throttling(&self, vm: VmId) -> Result<Throttling, LimitsError> {
        match &self.hierarchy {
            Hierarchy::V1(groups) => groups.throttling(vm),
            Hierarchy::V2(groups) => groups.throttling(vm),
        }
    }

    /// Removes a VM's group. Threads still in it go back to the parent first and run unlimited.
    /// Without a group nothing happens.
    ///
    /// # Errors
    /// [`LimitsError::Remove`], [`LimitsError::Write`].
    pub fn remove(&self, vm: VmId) -> Result<(), LimitsError> {
        match &self.hierarchy {
            Hierarchy::V1(groups) => groups.remove(vm),
            Hierarchy::V2(groups) => groups.remove(vm),
        }
    }

    /// Tries whether groups can be made at all, under a parent that holds no VMs. Version 1: a quota
    /// is set and read back; version 2: a group is made, because more would change the root.
    ///
    /// # Errors
    /// [`LimitsError`] names the step. Nothing is left behind but, at worst, the parent.
    pub fn probe(&self) -> Result<(), LimitsError> {
        let vm = VmId(uuid::Uuid::nil());
        let tried = match &self.hierarchy {
            Hierarchy::V1(groups) => {
                let limits = CpuLimits { quota: Some(MilliCores(250)), ..CpuLimits::default() };
                groups.enter(vm, &[]).and_then(|()| self.change(vm, limits)).map(drop)
            }
            Hierarchy::V2(groups) => create_group(groups.parent()),
        };
        tried.and(self.remove(vm)).and(self.remove_parent())
    }

    /// Removes the group that holds the VMs, once none is left: for the orderly end of a lab host.
    ///
    /// # Errors
    /// [`LimitsError::Remove`] while VMs are in it.
    pub fn remove_parent(&self) -> Result<(), LimitsError> {
        remove_group(self.parent())
    }

    /// The VMs that have a group, in ascending order: to find left-overs.
    ///
    /// # Errors
    /// [`LimitsError::Read`].
    pub fn vms(&self) -> Result<Vec<VmId>, LimitsError> {
        vms_below(self.parent())
    }

    fn parent(&self) -> &Path {
        match &self.hierarchy {
            Hierarchy::V1(groups) => groups.parent(),
            Hierarchy::V2(groups) => groups.parent(),
        }
    }
}

/// A parent is one plain directory name.
fn check_parent(parent: &str) -> Result<(), LimitsError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if parent.is_empty() || parent.len() > 64 || !parent.chars().all(plain) {
        return Err(LimitsError::ParentName { name: parent.to_owned() });
    }
    Ok(())
}

/// The VMs that have a group below a parent, in ascending order.
fn vms_below(path: &Path) -> Result<Vec<VmId>, LimitsError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(LimitsError::Read { path: path.to_owned(), source }),
    };
    let mut vms: Vec<VmId> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    vms.sort_unstable();
    Ok(vms)
}

/// Quota and period in microseconds that come closest to a limit.
fn quota_and_period(quota: MilliCores) -> (u64, u64) {
    let millicores = quota.get().max(1);
    let period =
        (SHORTEST_QUOTA_US * 1000).div_ceil(millicores).clamp(PERIOD_US, LONGEST_PERIOD_US);
    ((period.saturating_mul(millicores) / 1000).max(SHORTEST_QUOTA_US), period)
}

/// The weight of all VMs together against the rest of the host, in version 2's measure: each of
/// the host's CPUs counts as one thread of normal weight, or many VMs would share what one process
/// of the host gets.
fn parent_weight() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(cpus).unwrap_or(u32::MAX).saturating_mul(CpuWeight::DEFAULT.0).min(10_000)
}

fn create_group(path: &Path) -> Result<(), LimitsError> {
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(LimitsError::Create { path: path.to_owned(), source }),
    }
}

fn remove_group(path: &Path) -> Result<(), LimitsError> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(LimitsError::Remove { path: path.to_owned(), source }),
    }
}

/// Writes one value in one system call, as control files want it. Never creates the file: on a
/// control file that is missing this must fail, not leave a plain file behind.
fn write_value(path: &Path, value: &str) -> Result<(), LimitsError> {
    fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| LimitsError::Write {
            path: path.to_owned(),
            value: value.to_owned(),
            source,
        })
}

/// Adds one thread or process id; these files take one per write and move it.
fn append_id(path: &Path, id: u32) -> Result<(), LimitsError> {
    let value = format!("{id}\n");
    fs::OpenOptions::new()
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| LimitsError::Write {
            path: path.to_owned(),
            value: id.to_string(),
            source,
        })
}

fn read_text(path: &Path) -> Result<String, LimitsError> {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|source| LimitsError::Read { path: path.to_owned(), source })
}

fn read_number<T: std::str::FromStr>(path: &Path) -> Result<T, LimitsError> {
    let text = read_text(path)?;
    text.parse().map_err(|_| LimitsError::Unreadable { path: path.to_owned(), text })
}

fn read_ids(path: &Path) -> Result<Vec<u32>, LimitsError> {
    let text = read_text(path)?;
    let mut ids = text
        .lines()
        .map(|line| {
            line.trim().parse().map_err(|_| LimitsError::Unreadable {
                path: path.to_owned(),
                text: line.to_owned(),
            })
        })
        .collect::<Result<Vec<u32>, _>>()?;
    ids.sort_unstable();
    Ok(ids)
}

/// Moves ids into a group. One that ended in the meantime is no error: a VM may die at any time.
fn move_ids(path: &Path, ids: &[u32]) -> Result<(), LimitsError> {
    for &id in ids {
        match append_id(path, id) {
            Err(LimitsError::Write { source, .. })
                if source.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32) => {}
            other => other?,
        }
    }
    Ok(())
}

/// One number of a `key value` file such as `cpu.stat`; 0 where the key is missing.
fn stat_field(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

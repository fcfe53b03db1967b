//! What a VM may have of the host's memory, by cgroups of version 1 or 2.
//!
//! Paging out ([`crate::pageout`]) takes memory once; what the guest touches comes back. A group with
//! a limit makes it hold: the kernel keeps the VM below it, and chooses itself what was not used for
//! longest.
//!
//! ```text
//! version 1: <memory mount>/<parent>/<vm-id>/    version 2: <mount>/<parent>/<vm-id>/
//!   cgroup.procs = QEMU                            cgroup.procs = QEMU
//!   memory.limit_in_bytes                          memory.high
//!   memory.oom_control = 1                         (the same group as for CPU)
//! ```
//!
//! - QEMU must *begin* in its group: memory that it took elsewhere is never counted here. The VM's
//!   guard puts it there before its program begins.
//! - The limit never kills. In version 2 `memory.high` only slows; in version 1 the group's killer is
//!   switched off, and a VM for which the kernel finds nothing to write out stands still until its
//!   limit rises: whoever set it has to look ([`MemoryGroups::relieve`]).
//! - Whoever sets a limit sees to swap space for what the VM may yet want ([`least_limit`]).
//!
//! Files of version 2 are tested on a tree of plain files only: the machines that Plimsoll was
//! built on have the memory controller on version 1.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use plimsoll_model::{Bytes, VmId};
use serde::{Deserialize, Serialize};

use super::{
    CgroupMounts, CgroupVersion, LimitsError, check_parent, create_group, move_ids, read_ids,
    read_text, remove_group, stat_field, vms_below, write_value,
};

/// What a VM costs its host beside the guest's own memory: QEMU, and the translator's code. As the
/// cluster's settings count it.
pub const OVERHEAD: Bytes = Bytes::mib(96);
/// Version 1 reads a group without a limit as the largest number of pages.
const UNLIMITED: u64 = 1 << 62;
/// In version 1 the kernel gives up lowering a limit while pages are in use. It is asked again for so
/// long as anything goes, at most this long without.
const STANDSTILL: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(5);
/// By how much the limit of a VM that stands still rises, at least; and by which part of it.
const RELIEF: Bytes = Bytes::mib(32);
const RELIEF_PART: u64 = 8;
/// Limits are read back in pages.
const PAGE: u64 = 4096;

/// What a VM has of its host, as the kernel counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryInForce {
    /// The most that it may have in memory; `None`: no limit.
    pub limit: Option<Bytes>,
    /// What it has there: QEMU's own and the guest's memory, and its files in the page cache.
    pub usage: Bytes,
    /// What of it lies in swap space.
    pub swapped: Bytes,
    /// How often something had to be read from a disk because it was not in memory.
    pub major_faults: u64,
}

/// The memory groups of one agent's VMs.
#[derive(Clone, Debug)]
pub struct MemoryGroups {
    version: CgroupVersion,
    root: PathBuf,
    parent: PathBuf,
}

impl MemoryGroups {
    /// Finds the hierarchy with the memory controller among the mounted ones. As with
    /// [`super::CpuGroups::detect`], agents that share a machine need different parents.
    ///
    /// # Errors
    /// [`LimitsError::ParentName`], [`LimitsError::Mounts`], [`LimitsError::NoMemoryController`].
    pub fn detect(parent: &str) -> Result<Self, LimitsError> {
        Self::from_mounts(&CgroupMounts::of_this_process()?, parent)
    }

    /// The same on a given list of mounts.
    ///
    /// # Errors
    /// [`LimitsError::ParentName`], [`LimitsError::NoMemoryController`].
    pub fn from_mounts(mounts: &CgroupMounts, parent: &str) -> Result<Self, LimitsError> {
        check_parent(parent)?;
        let (version, root) = if let Some(root) = mounts.v1_with("memory") {
            (CgroupVersion::V1, root)
        } else if let Some(root) = mounts.v2_with("memory") {
            (CgroupVersion::V2, root)
        } else {
            return Err(LimitsError::NoMemoryController);
        };
        Ok(Self { version, root: root.to_owned(), parent: root.join(parent) })
    }

    /// The version in use.
    #[must_use]
    pub const fn version(&self) -> CgroupVersion {
        self.version
    }

    fn group(&self, vm: VmId) -> PathBuf {
        self.parent.join(vm.to_string())
    }

    /// Makes a VM's group, without a limit, and gives the file into which the process id of its QEMU
    /// is to be written before its program begins.
    ///
    /// # Errors
    /// [`LimitsError::Create`], [`LimitsError::Read`], [`LimitsError::Write`].
    pub fn create(&self, vm: VmId) -> Result<PathBuf, LimitsError> {
        create_group(&self.parent)?;
        if self.version == CgroupVersion::V2 {
            enable_memory(&self.root)?;
            enable_memory(&self.parent)?;
        }
        let group = self.group(vm);
        create_group(&group)?;
        self.lift(&group)?;
        Ok(group.join("cgroup.procs"))
    }

    /// Whether this process began in its VM's group, so that a limit holds it.
    #[must_use]
    pub fn holds(&self, vm: VmId, qemu: u32) -> bool {
        read_ids(&self.group(vm).join("cgroup.procs")).is_ok_and(|ids| ids.contains(&qemu))
    }

    /// Sets the most that a VM may have in memory, or lifts that, and returns what is in force.
    /// Blocks until the rest is written out. Where that is so already nothing is written.
    ///
    /// # Errors
    /// [`LimitsError::StillInUse`] if the kernel could not write out enough: the old limit stands.
    /// Otherwise the file that refused; [`LimitsError::is_not_found`] where the VM has no group.
    pub fn limit(&self, vm: VmId, limit: Option<Bytes>) -> Result<MemoryInForce, LimitsError> {
        let group = self.group(vm);
        let now = self.in_force(vm)?;
        let limit = limit.map(|limit| Bytes(limit.get() / PAGE * PAGE));
        if now.limit == limit {
            return Ok(now);
        }
        match limit {
            None => self.lift(&group)?,
            Some(limit) => self.set(vm, &group, limit)?,
        }
        self.in_force(vm)
    }

    fn lift(&self, group: &Path) -> Result<(), LimitsError> {
        match self.version {
            CgroupVersion::V1 => {
                write_value(&group.join("memory.limit_in_bytes"), "-1")?;
                write_value(&group.join("memory.oom_control"), "0")
            }
            CgroupVersion::V2 => write_value(&group.join("memory.high"), "max"),
        }
    }

    fn set(&self, vm: VmId, group: &Path, limit: Bytes) -> Result<(), LimitsError> {
        let value = limit.get().to_string();
        if self.version == CgroupVersion::V2 {
            return write_value(&group.join("memory.high"), &value);
        }
        // Before there is a limit: nothing may be killed for it.
        write_value(&group.join("memory.oom_control"), "1")?;
        let file = group.join("memory.limit_in_bytes");
        let mut least = u64::MAX;
        let mut moved = Instant::now();
        loop {
            match write_value(&file, &value) {
                Err(LimitsError::Write { source, .. })
                    if source.raw_os_error() == Some(nix::errno::Errno::EBUSY as i32) => {}
                other => return other,
            }
            let usage = self.in_force(vm)?.usage;
            if usage.get() < least {
                (least, moved) = (usage.get(), Instant::now());
            } else if moved.elapsed() > STANDSTILL {
                return Err(LimitsError::StillInUse { vm, usage, limit });
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Raises the limit of a VM that stands still because of it, and tells to what; `None` if it does
    /// not. Call it every so often while there is a limit.
    ///
    /// # Errors
    /// As [`Self::in_force`]; [`LimitsError::Write`].
    pub fn relieve(&self, vm: VmId) -> Result<Option<Bytes>, LimitsError> {
        let group = self.group(vm);
        if self.version == CgroupVersion::V2
            || stat_field(&read_text(&group.join("memory.oom_control"))?, "under_oom") == 0
        {
            return Ok(None);
        }
        let Some(limit) = self.in_force(vm)?.limit else { return Ok(None) };
        let raised = limit.saturating_add(RELIEF.max(Bytes(limit.get() / RELIEF_PART)));
        write_value(&group.join("memory.limit_in_bytes"), &raised.get().to_string())?;
        Ok(Some(raised))
    }

    /// What is in force for a VM, and what it has.
    ///
    /// # Errors
    /// [`LimitsError::Read`], [`LimitsError::Unreadable`]; [`LimitsError::is_not_found`] where it has
    /// no group.
    pub fn in_force(&self, vm: VmId) -> Result<MemoryInForce, LimitsError> {
        let group = self.group(vm);
        let (limit_file, usage_file) = match self.version {
            CgroupVersion::V1 => ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            CgroupVersion::V2 => ("memory.high", "memory.current"),
        };
        let stat = read_text(&group.join("memory.stat"))?;
        let swapped = match self.version {
            CgroupVersion::V1 => stat_field(&stat, "swap"),
            // Without swap accounting there is no such file.
            CgroupVersion::V2 => number(&group.join("memory.swap.current"))?.unwrap_or(0),
        };
        let limit = number(&group.join(limit_file))?.filter(|limit| *limit < UNLIMITED);
        Ok(MemoryInForce {
            limit: limit.map(Bytes),
            usage: Bytes(number(&group.join(usage_file))?.unwrap_or(0)),
            swapped: Bytes(swapped),
            major_faults: stat_field(&stat, "pgmajfault"),
        })
    }

    /// Removes a VM's group. Processes still in it go back to the root first. Without a group
    /// nothing happens.
    ///
    /// # Errors
    /// [`LimitsError::Remove`], [`LimitsError::Write`].
    pub fn remove(&self, vm: VmId) -> Result<(), LimitsError> {
        let group = self.group(vm);
        match read_ids(&group.join("cgroup.procs")) {
            Ok(processes) => move_ids(&self.root.join("cgroup.procs"), &processes)?,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error),
        }
        remove_group(&group)
    }

    /// Removes the group that holds the VMs, once none is left.
    ///
    /// # Errors
    /// [`LimitsError::Remove`] while VMs are in it.
    pub fn remove_parent(&self) -> Result<(), LimitsError> {
        remove_group(&self.parent)
    }

    /// The VMs that have a group, in ascending order.
    ///
    /// # Errors
    /// [`LimitsError::Read`].
    pub fn vms(&self) -> Result<Vec<VmId>, LimitsError> {
        vms_below(&self.parent)
    }

    /// Tries whether a VM's group can be made and limited, under a parent that holds no VMs.
    ///
    /// # Errors
    /// [`LimitsError`] names the step. Nothing is left behind but, at worst, the parent.
    pub fn probe(&self) -> Result<(), LimitsError> {
        let vm = VmId(uuid::Uuid::nil());
        let limited = self.create(vm).and_then(|_| self.limit(vm, Some(OVERHEAD))).map(drop);
        limited.and(self.remove(vm)).and(self.remove_parent())
    }
}

/// The lowest limit with which a VM that may want `most` finds swap space for all above it, with
/// `swapped` of it there already and `free` more at hand.
#[must_use]
pub fn least_limit(most: Bytes, swapped: Bytes, free: Bytes) -> Bytes {
    most.saturating_sub(swapped.saturating_add(free))
}

/// A number, or `None` for `max` and where there is no such file.
fn number(path: &Path) -> Result<Option<u64>, LimitsError> {
    let text = match read_text(path) {
        Err(error) if error.is_not_found() && path.ends_with("memory.swap.current") => {
            return Ok(None);
        }
        text => text?,
    };
    if text == "max" {
        return Ok(None);
    }
    let unreadable = |_| LimitsError::Unreadable { path: path.to_owned(), text: text.clone() };
    text.parse().map(Some).map_err(unreadable)
}

fn enable_memory(group: &Path) -> Result<(), LimitsError> {
    let file = group.join("cgroup.subtree_control");
    if read_text(&file)?.split_whitespace().any(|name| name == "memory") {
        return Ok(());
    }
    write_value(&file, "+memory")
}

#[cfg(test)]
mod tests;

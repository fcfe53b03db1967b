//! CPU limits in the version 2 hierarchy: QEMU joins a threaded domain, its vCPU threads a leaf.

use std::path::{Path, PathBuf};

use plimsoll_model::VmId;

use super::{
    CpuInForce, CpuLimits, LimitsError, Throttling, create_group, move_ids, parent_weight,
    quota_and_period, read_ids, read_number, read_text, remove_group, stat_field, write_value,
};

/// The leaf with a VM's vCPU threads.
const VCPUS: &str = "vcpus";

#[derive(Clone, Debug)]
pub(super) struct Hierarchy {
    root: PathBuf,
    parent: PathBuf,
}

impl Hierarchy {
    pub(super) fn new(root: PathBuf, parent: PathBuf) -> Self {
        Self { root, parent }
    }

    pub(super) fn parent(&self) -> &Path {
        &self.parent
    }

    fn group(&self, vm: VmId) -> PathBuf {
        self.parent.join(vm.to_string())
    }

    pub(super) fn enter(&self, vm: VmId, qemu: u32, vcpus: &[u32]) -> Result<(), LimitsError> {
        create_group(&self.parent)?;
        enable_cpu(&self.root)?;
        enable_cpu(&self.parent)?;
        write_value(&self.parent.join("cpu.weight"), &parent_weight().to_string())?;
        self.enter_threaded(vm, qemu, vcpus)?;
        // Allowed although the group holds QEMU: cpu is a threaded controller.
        enable_cpu(&self.group(vm))
    }

    /// The moves without the controller, which need nothing but a version 2 mount.
    pub(super) fn enter_threaded(
        &self,
        vm: VmId,
        qemu: u32,
        vcpus: &[u32],
    ) -> Result<(), LimitsError> {
        let group = self.group(vm);
        let leaf = group.join(VCPUS);
        create_group(&group)?;
        create_group(&leaf)?;
        let kind = leaf.join("cgroup.type");
        if read_text(&kind)? != "threaded" {
            write_value(&kind, "threaded")?;
        }
        // Writing the process again would drag its vCPU threads back out of the leaf.
        let procs = group.join("cgroup.procs");
        if !read_ids(&procs)?.contains(&qemu) {
            move_ids(&procs, &[qemu])?;
        }
        move_ids(&leaf.join("cgroup.threads"), vcpus)
    }

    pub(super) fn set(&self, vm: VmId, limits: CpuLimits) -> Result<(), LimitsError> {
        let group = self.group(vm);
        write_value(&group.join("cpu.weight"), &limits.weight.get().to_string())?;
        let value = match limits.quota {
            None => "max".to_owned(),
            Some(quota) => {
                let (quota, period) = quota_and_period(quota);
                format!("{quota} {period}")
            }
        };
        write_value(&group.join(VCPUS).join("cpu.max"), &value)
    }

    pub(super) fn in_force(&self, vm: VmId) -> Result<CpuInForce, LimitsError> {
        let group = self.group(vm);
        let max = group.join(VCPUS).join("cpu.max");
        let text = read_text(&max)?;
        let unreadable = || LimitsError::Unreadable { path: max.clone(), text: text.clone() };
        // The kernel prints both; a bare `max`, as it may be written, has the default period.
        let (quota, period) = text.split_once(' ').unwrap_or((&text, "100000"));
        let quota_us = match quota {
            "max" => None,
            number => Some(number.parse().map_err(|_| unreadable())?),
        };
        Ok(CpuInForce {
            quota_us,
            period_us: period.parse().map_err(|_| unreadable())?,
            weight: read_number(&group.join("cpu.weight"))?,
            threads: read_ids(&group.join(VCPUS).join("cgroup.threads"))?,
        })
    }

    pub(super) fn throttling(&self, vm: VmId) -> Result<Throttling, LimitsError> {
        let text = read_text(&self.group(vm).join(VCPUS).join("cpu.stat"))?;
        Ok(Throttling {
            periods: stat_field(&text, "nr_periods"),
            throttled_periods: stat_field(&text, "nr_throttled"),
            throttled_us: stat_field(&text, "throttled_usec"),
        })
    }

    pub(super) fn remove(&self, vm: VmId) -> Result<(), LimitsError> {
        let group = self.group(vm);
        match read_ids(&group.join("cgroup.procs")) {
            // A process moved to another domain takes all its threads along.
            Ok(processes) => move_ids(&self.root.join("cgroup.procs"), &processes)?,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error),
        }
        remove_group(&group.join(VCPUS))?;
        remove_group(&group)
    }
}

fn enable_cpu(group: &Path) -> Result<(), LimitsError> {
    let file = group.join("cgroup.subtree_control");
    if read_text(&file)?.split_whitespace().any(|name| name == "cpu") {
        return Ok(());
    }
    write_value(&file, "+cpu")
}

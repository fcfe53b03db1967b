//! CPU limits in a version 1 hierarchy: threads go into a group one by one.

use std::path::{Path, PathBuf};

use plimsoll_model::VmId;

use super::{
    CpuInForce, CpuLimits, LimitsError, Throttling, create_group, move_ids, parent_weight,
    quota_and_period, read_ids, read_number, read_text, remove_group, stat_field, write_value,
};

/// Version 1 calls 1,024 what version 2 calls 100.
const SHARES_OF_DEFAULT_WEIGHT: u64 = 1024;

#[derive(Clone, Debug)]
pub(super) struct Hierarchy {
    parent: PathBuf,
}

impl Hierarchy {
    pub(super) fn new(parent: PathBuf) -> Self {
        Self { parent }
    }

    pub(super) fn parent(&self) -> &Path {
        &self.parent
    }

    fn group(&self, vm: VmId) -> PathBuf {
        self.parent.join(vm.to_string())
    }

    pub(super) fn enter(&self, vm: VmId, vcpus: &[u32]) -> Result<(), LimitsError> {
        create_group(&self.parent)?;
        write_value(&self.parent.join("cpu.shares"), &shares(parent_weight()).to_string())?;
        let group = self.group(vm);
        create_group(&group)?;
        move_ids(&group.join("tasks"), vcpus)
    }

    pub(super) fn set(&self, vm: VmId, limits: CpuLimits) -> Result<(), LimitsError> {
        let group = self.group(vm);
        write_value(&group.join("cpu.shares"), &shares(limits.weight.get()).to_string())?;
        let quota_file = group.join("cpu.cfs_quota_us");
        let Some(wanted) = limits.quota else { return write_value(&quota_file, "-1") };
        let (quota, period) = quota_and_period(wanted);
        let period_file = group.join("cpu.cfs_period_us");
        if read_number::<u64>(&period_file)? != period {
            // Two files, one ratio: between the two writes a VM must rather run free for a moment
            // than be held to a hundredth, and a quota over its period's maximum is refused.
            write_value(&quota_file, "-1")?;
            write_value(&period_file, &period.to_string())?;
        }
        write_value(&quota_file, &quota.to_string())
    }

    pub(super) fn in_force(&self, vm: VmId) -> Result<CpuInForce, LimitsError> {
        let group = self.group(vm);
        let shares: u64 = read_number(&group.join("cpu.shares"))?;
        let quota: i64 = read_number(&group.join("cpu.cfs_quota_us"))?;
        Ok(CpuInForce {
            quota_us: u64::try_from(quota).ok(),
            period_us: read_number(&group.join("cpu.cfs_period_us"))?,
            weight: weight(shares),
            threads: read_ids(&group.join("tasks"))?,
        })
    }

    pub(super) fn throttling(&self, vm: VmId) -> Result<Throttling, LimitsError> {
        let text = read_text(&self.group(vm).join("cpu.stat"))?;
        Ok(Throttling {
            periods: stat_field(&text, "nr_periods"),
            throttled_periods: stat_field(&text, "nr_throttled"),
            throttled_us: stat_field(&text, "throttled_time") / 1000,
        })
    }

    pub(super) fn remove(&self, vm: VmId) -> Result<(), LimitsError> {
        let group = self.group(vm);
        match read_ids(&group.join("tasks")) {
            // Not to the parent: a group that holds VM groups should hold no threads itself.
            Ok(threads) => {
                let root = self.parent.parent().unwrap_or(&self.parent);
                move_ids(&root.join("tasks"), &threads)?;
            }
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error),
        }
        remove_group(&group)
    }
}

fn shares(weight: u32) -> u64 {
    (u64::from(weight) * SHARES_OF_DEFAULT_WEIGHT / 100).clamp(2, 262_144)
}

fn weight(shares: u64) -> u32 {
    u32::try_from((shares * 100).div_ceil(SHARES_OF_DEFAULT_WEIGHT)).unwrap_or(u32::MAX)
}

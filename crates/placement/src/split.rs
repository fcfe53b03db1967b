//! "64 cores and 256 GiB in all": a total becomes VMs that can be placed.

use plimsoll_model::{
    BitsPerSecond, Bytes, BytesPerSecond, Element, IoPerSecond, MilliCores, Policy, Resources, VmId,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::{
    cluster::Cluster,
    group::{EFFORT, GroupRefusal},
    request::Request,
};

/// The most VMs into which one total is split.
pub const MAX_SPLIT: u32 = 128;

/// What the VMs of a split may be like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitLimits {
    /// At least so many VMs; 0 is taken as 1.
    pub min_vms: u32,
    /// At most so many VMs, and never more than [`MAX_SPLIT`].
    pub max_vms: u32,
    /// No VM gets less than this of an element that the total asks for.
    pub min_per_vm: Resources,
    /// No VM gets more than this; an element that is zero here is not limited.
    pub max_per_vm: Resources,
}

impl Default for SplitLimits {
    fn default() -> Self {
        Self {
            min_vms: 1,
            max_vms: MAX_SPLIT,
            min_per_vm: Resources::default(),
            max_per_vm: Resources::default(),
        }
    }
}

/// A total that cannot be split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum SplitRefusal {
    /// The total asks for nothing.
    #[error("the total asks for nothing")]
    Empty,
    /// All hosts together have too little free, in the element's base unit.
    #[error(
        "insufficient {element} in the whole cluster: needs {}, {} free",
        element.print(*need), element.print(*free)
    )]
    Insufficient {
        /// The element.
        element: Element,
        /// The total.
        need: u64,
        /// What is free on all hosts that take VMs.
        free: u64,
    },
    /// No number of VMs meets the limits for one VM.
    #[error("no number of VMs from {min_vms} to {max_vms} meets the limits for one VM")]
    Limits {
        /// At least so many VMs.
        min_vms: u32,
        /// At most so many VMs.
        max_vms: u32,
    },
    /// Even the emptiest hosts are too small for so few VMs.
    #[error(
        "it takes at least {fewest} VMs to find hosts that are large enough, {max_vms} are allowed"
    )]
    TooFew {
        /// The fewest VMs that could do.
        fewest: u32,
        /// The most that are allowed.
        max_vms: u32,
    },
    /// No number of VMs that meets the limits can be placed.
    #[error("no split into {from} to {to} VMs can be placed")]
    NoPlace {
        /// The fewest VMs tried.
        from: u32,
        /// The most VMs tried.
        to: u32,
        /// Why the last could not be placed.
        #[source]
        last: GroupRefusal,
    },
}

impl Cluster {
    /// Splits a total into the fewest VMs of (nearly) equal size that can all be placed with the
    /// template's constraints, and says how much each gets. The template's own demand and id do
    /// not matter. `docs/algorithms.md` says how; the cluster is as before afterwards.
    ///
    /// # Errors
    /// There is no such split.
    pub fn split_total(
        &mut self,
        total: &Resources,
        limits: &SplitLimits,
        template: &Request,
        policy: Policy,
    ) -> Result<Vec<Resources>, SplitRefusal> {
        if total.elements().all(|(_, amount)| amount == 0) {
            return Err(SplitRefusal::Empty);
        }
        let fewest = self.check_total(total)?;
        let (min_vms, max_vms) = (limits.min_vms.max(1), limits.max_vms.min(MAX_SPLIT));
        if fewest > max_vms {
            return Err(SplitRefusal::TooFew { fewest, max_vms });
        }
        let mut effort = EFFORT;
        let mut tried: Option<(u32, u32, GroupRefusal)> = None;
        for vms in min_vms.max(fewest)..=max_vms {
            let Some(parts) = parts(total, vms) else { continue };
            if !limits.allow(total, &parts) {
                continue;
            }
            let requests = self.requests(template, &parts);
            match self.decide_group_within(&requests, policy, &mut effort) {
                Ok(_) => return Ok(parts),
                Err(refusal) => {
                    let from = tried.map_or(vms, |(from, ..)| from);
                    tried = Some((from, vms, refusal));
                }
            }
        }
        Err(match tried {
            Some((from, to, last)) => SplitRefusal::NoPlace { from, to, last },
            None => SplitRefusal::Limits { min_vms: min_vms.max(fewest), max_vms },
        })
    }

    /// Checks the total against what is free on all hosts that take VMs, and finds the fewest VMs
    /// of which one can be as small as the largest gap.
    fn check_total(&self, total: &Resources) -> Result<u32, SplitRefusal> {
        let mut fewest = 1;
        for (element, need) in total.elements().filter(|(_, need)| *need > 0) {
            let (mut sum, mut largest) = (0_u64, 0_u64);
            for row in self.rows().filter(|row| row.open) {
                let free = row.free_for(&element);
                sum = sum.saturating_add(free);
                largest = largest.max(free);
            }
            if need > sum {
                return Err(SplitRefusal::Insufficient { element, need, free: sum });
            }
            fewest = fewest.max(need.div_ceil(largest.max(1)));
        }
        Ok(u32::try_from(fewest).unwrap_or(u32::MAX))
    }

    /// Requests like the template for these demands, under ids that are not in use.
    fn requests(&self, template: &Request, parts: &[Resources]) -> Vec<Request> {
        let mut ids = (0_u128..)
            .map(|number| VmId(Uuid::from_u128(number)))
            .filter(|id| self.placed(*id).is_none());
        let request = |demand: &Resources| Request {
            vm: ids.next().unwrap_or(template.vm),
            demand: demand.clone(),
            ..template.clone()
        };
        parts.iter().map(request).collect()
    }
}

impl SplitLimits {
    fn allow(&self, total: &Resources, parts: &[Resources]) -> bool {
        parts.iter().all(|part| {
            total.elements().filter(|(_, amount)| *amount > 0).all(|(element, _)| {
                let amount = part.get(&element);
                let max = self.max_per_vm.get(&element);
                amount >= self.min_per_vm.get(&element) && (max == 0 || amount <= max)
            })
        })
    }
}

/// Divides a total into so many parts, as equal as the [`grain`] of each element allows, the
/// larger parts first. None when a part would get nothing of an element, or an amount of an
/// accelerator that no VM can have.
fn parts(total: &Resources, vms: u32) -> Option<Vec<Resources>> {
    let mut parts = vec![Resources::default(); vms as usize];
    for (element, amount) in total.elements().filter(|(_, amount)| *amount > 0) {
        let grain = grain(&element, amount, u64::from(vms));
        let (grains, rest) = (amount / grain, amount % grain);
        let (each, more) = (grains / u64::from(vms), grains % u64::from(vms));
        for (i, part) in (0_u64..).zip(&mut parts) {
            let dust = if i == 0 { rest } else { 0 };
            let share = (each + u64::from(i < more)) * grain + dust;
            if share == 0 {
                return None;
            }
            set(part, &element, share);
        }
    }
    parts.iter().all(|part| part.accelerators.check_request().is_ok()).then_some(parts)
}

/// The unit in which an element is dealt out: whole cores, whole mebibytes and whole devices where
/// there is at least one for each VM, otherwise the base unit.
fn grain(element: &Element, amount: u64, vms: u64) -> u64 {
    let coarse = match element {
        Element::Cpu | Element::Accelerator(_) => 1000,
        Element::Memory | Element::Disk => Bytes::mib(1).0,
        Element::DiskBandwidth | Element::DiskIops | Element::Network => 1,
    };
    if amount / coarse >= vms && (amount.is_multiple_of(coarse) || coarse > 1000) {
        coarse
    } else {
        1
    }
}

fn set(part: &mut Resources, element: &Element, amount: u64) {
    match element {
        Element::Cpu => part.cpu = MilliCores(amount),
        Element::Memory => part.memory = Bytes(amount),
        Element::Disk => part.disk = Bytes(amount),
        Element::DiskBandwidth => part.disk_bandwidth = BytesPerSecond(amount),
        Element::DiskIops => part.disk_iops = IoPerSecond(amount),
        Element::Network => part.network = BitsPerSecond(amount),
        Element::Accelerator(model) => {
            part.accelerators.0.insert(model.clone(), amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_nearly_equal_and_whole() {
        let total = Resources {
            cpu: MilliCores::cores(64),
            memory: Bytes::gib(256),
            ..Resources::default()
        };
        let parts = parts(&total, 3).unwrap();
        let cores: Vec<_> = parts.iter().map(|part| part.cpu.to_string()).collect();
        assert_eq!(cores, ["22", "21", "21"]);
        let memory: Vec<_> = parts.iter().map(|part| part.memory.to_string()).collect();
        assert_eq!(memory, ["87382MiB", "87381MiB", "87381MiB"]);
        let sum = parts.iter().fold(Resources::default(), |sum, part| sum.plus(part));
        assert_eq!(sum, total);
    }

    #[test]
    fn what_is_finer_than_a_mebibyte_goes_to_the_first() {
        let total = Resources { memory: Bytes(Bytes::mib(3).0 + 7), ..Resources::default() };
        let bytes: Vec<_> =
            parts(&total, 2).unwrap().iter().map(|part| part.memory.0 - Bytes::mib(1).0).collect();
        assert_eq!(bytes, [Bytes::mib(1).0 + 7, 0]);
    }

    #[test]
    fn accelerators_are_dealt_whole_while_there_is_one_for_each() {
        let mut total = Resources::default();
        total.accelerators.0.insert("a100".parse().unwrap(), 2000);
        let dealt = |vms| {
            parts(&total, vms).map(|parts| {
                let amounts = parts.iter().map(|part| part.accelerators.0.values().copied().sum());
                amounts.collect::<Vec<u64>>()
            })
        };
        assert_eq!(dealt(1), Some(vec![2000]));
        assert_eq!(dealt(2), Some(vec![1000, 1000]));
        assert_eq!(dealt(4), Some(vec![500; 4]));
    }
}

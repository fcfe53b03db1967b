//! How much memory VMs have, on hosts that do not have what was promised to all of theirs.
//!
//! A VM begins with all that it was promised. Where a host's VMs have more together than it has, they
//! are made smaller: that with the most unused memory first, and none below what it used at most in
//! the last day and a tenth more. A VM that needs more gets it at once. Each change is one resize (of
//! the balloon, say). CPU is shared by weight, and needs no change of size.

use super::{DAY, Vm, fleet::Fleet};

/// The memory that VMs have, in bytes.
#[derive(Clone, Debug)]
pub(super) struct Elastic {
    have: Vec<u64>,
    resizes: u64,
}

impl Elastic {
    pub(super) fn new(vms: &[Vm]) -> Self {
        Self { have: vms.iter().map(|vm| vm.size.memory.0).collect(), resizes: 0 }
    }

    pub(super) const fn resizes(&self) -> u64 {
        self.resizes
    }

    /// Makes room for a slot, of which nothing is known yet.
    pub(super) fn before(&mut self, vms: &[Vm], slot: usize, fleet: &Fleet) {
        let capacity = fleet.capacity().memory.0;
        let mut together = vec![0_u64; fleet.hosts()];
        for (have, host) in self.have.iter().zip(fleet.at()) {
            together[*host] += have;
        }
        for (host, together) in together.into_iter().enumerate() {
            if together <= capacity {
                continue;
            }
            let mut lacking = together - capacity;
            let mut unused: Vec<_> = (0..vms.len())
                .filter(|vm| fleet.at()[*vm] == host)
                .map(|vm| (self.have[vm].saturating_sub(needed(&vms[vm], slot)), vm))
                .filter(|(unused, _)| *unused > 0)
                .collect();
            unused.sort_by(|one, other| other.0.cmp(&one.0).then(one.1.cmp(&other.1)));
            for (unused, vm) in unused {
                if lacking == 0 {
                    break;
                }
                self.have[vm] -= unused;
                self.resizes += 1;
                lacking = lacking.saturating_sub(unused);
            }
        }
    }

    /// Gives VMs back what they turned out to need.
    pub(super) fn after(&mut self, vms: &[Vm], slot: usize) {
        for (vm, have) in vms.iter().zip(&mut self.have) {
            if vm.used[slot].memory.0 > *have {
                *have = needed(vm, slot + 1);
                self.resizes += 1;
            }
        }
    }
}

/// What a VM used at most in the day before a slot, and a tenth more, within its size.
fn needed(vm: &Vm, slot: usize) -> u64 {
    let day = &vm.used[slot.saturating_sub(DAY)..slot];
    let most = day.iter().map(|used| used.memory.0).max().unwrap_or(0);
    (most + most / 10).min(vm.size.memory.0)
}

//! How much of the host's memory a VM's process holds: of its guest's, and of QEMU's own.
//!
//! The kernel tells both together for next to nothing (`/proc/PID/status`), and each mapping alone
//! for a walk through its page tables (`/proc/PID/smaps`). What QEMU holds for itself hardly
//! changes, so the walk is made once in a while.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use plimsoll_api::cluster::VmRates;
use plimsoll_model::VmId;

use super::counters::{Counters, Taps};
use crate::kernel_fields::memory_field;
use crate::limits::CpuGroups;
use crate::net::taps;
use crate::pageout::guest_resident;

/// How long what QEMU holds for itself is believed to be the same.
const BELIEVED: Duration = Duration::from_secs(60);

/// What a process holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Of its guest's memory.
    pub(super) resident: u64,
    /// Beside it.
    pub(super) overhead: u64,
    /// CPU time since the last look, in thousandths of a core.
    pub(super) cpu: u64,
    /// What it did since then, each second.
    pub(super) rates: VmRates,
}

/// Measures processes, again and again.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    /// What each holds of its own, and when that was found out.
    own: BTreeMap<u32, (u64, Instant)>,
    /// What was counted of each, and when.
    counted: BTreeMap<u32, (Counters, Instant)>,
}

impl Gauge {
    /// Measures what the processes of VMs hold and do; those that are gone are left out. `groups`
    /// has what limits their CPU. Blocks.
    pub(super) fn measured(
        mut self,
        processes: &[(VmId, u32)],
        groups: Option<&CpuGroups>,
    ) -> (Self, BTreeMap<u32, Held>) {
        let now = Instant::now();
        let runs = |process: &u32| processes.iter().any(|(_, known)| known == process);
        self.own.retain(|process, _| runs(process));
        self.counted.retain(|process, _| runs(process));
        let taps = taps().ok();
        let mut sizes = BTreeMap::new();
        for (vm, process) in processes {
            if let Some(mut held) = self.measure(*process, now) {
                self.count(*vm, *process, groups, taps.as_ref(), &mut held);
                sizes.insert(*process, held);
            }
        }
        (self, sizes)
    }

    fn measure(&mut self, process: u32, now: Instant) -> Option<Held> {
        let status = fs_err::read_to_string(format!("/proc/{process}/status")).ok()?;
        let all = memory_field(&status, "VmRSS")?.get();
        let known = self.own.get(&process).filter(|(_, at)| now.duration_since(*at) < BELIEVED);
        let own = match known {
            Some((own, _)) => *own,
            None => {
                let smaps = fs_err::read_to_string(format!("/proc/{process}/smaps")).ok()?;
                let own = all.saturating_sub(guest_resident(&smaps));
                self.own.insert(process, (own, now));
                own
            }
        };
        let overhead = own.min(all);
        Some(Held { resident: all - overhead, overhead, ..Held::default() })
    }

    fn count(
        &mut self,
        vm: VmId,
        process: u32,
        groups: Option<&CpuGroups>,
        taps: Option<&Taps>,
        held: &mut Held,
    ) {
        let (is, now) = (Counters::read(vm, process, groups, taps), Instant::now());
        if let Some((was, then)) = self.counted.get(&process) {
            let (cpu, rates) = is.since(was, now.duration_since(*then));
            (held.cpu, held.rates) = (cpu.unwrap_or_default().get(), rates);
        }
        self.counted.insert(process, (is, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_measured_and_one_that_is_gone_is_left_out() {
        let (own, vm) = (std::process::id(), |number| VmId(uuid::Uuid::from_u128(number)));
        let (gauge, sizes) = Gauge::default().measured(&[(vm(1), own), (vm(2), u32::MAX)], None);
        let held = sizes[&own];
        assert!(held.overhead > 0 && sizes.len() == 1, "{sizes:?}");
        // What comes after the walk counts as the guest's.
        let ballast = vec![1_u8; 64 << 20];
        let (gauge, grown) = gauge.measured(&[(vm(1), own)], None);
        assert_eq!(held.rates, VmRates::default(), "one look tells no rate");
        assert!(grown[&own].rates.cpu_wait.is_some(), "{grown:?}");
        assert!(grown[&own].resident >= held.resident + (48 << 20), "{grown:?}");
        assert_eq!(ballast.iter().map(|byte| u64::from(*byte)).sum::<u64>(), 64 << 20);
        let (gauge, none) = gauge.measured(&[], None);
        assert!(none.is_empty() && gauge.own.is_empty() && gauge.counted.is_empty());
    }
}

//! How much of the host's memory a VM's process holds: of its guest's, and of QEMU's own.
//!
//! The kernel tells both together for next to nothing (`/proc/PID/status`), and each mapping alone
//! for a walk through its page tables (`/proc/PID/smaps`). What QEMU holds for itself hardly
//! changes, so the walk is made once in a while.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::kernel_fields::memory_field;
use crate::pageout::guest_resident;
use crate::telemetry::TICKS_PER_SECOND;

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
}

/// Measures processes, again and again.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    /// What each holds of its own, and when that was found out.
    own: BTreeMap<u32, (u64, Instant)>,
    /// The CPU time of each, in ticks, and when it was that.
    ticks: BTreeMap<u32, (u64, Instant)>,
}

impl Gauge {
    /// Measures what processes hold; those that are gone are left out. Blocks.
    pub(super) fn measured(mut self, processes: Vec<u32>) -> (Self, BTreeMap<u32, Held>) {
        let now = Instant::now();
        self.own.retain(|process, _| processes.contains(process));
        self.ticks.retain(|process, _| processes.contains(process));
        let mut sizes = BTreeMap::new();
        for process in processes {
            if let Some(held) = self.measure(process, now) {
                sizes.insert(process, held);
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
        let cpu = self.cpu(process, now).unwrap_or(0);
        Some(Held { resident: all - overhead, overhead, cpu })
    }

    fn cpu(&mut self, process: u32, now: Instant) -> Option<u64> {
        let ticks = process_ticks(&fs_err::read_to_string(format!("/proc/{process}/stat")).ok()?)?;
        let (before, then) = self.ticks.insert(process, (ticks, now))?;
        let millis = u64::try_from(now.duration_since(then).as_millis()).ok()?.max(1);
        Some(ticks.saturating_sub(before).saturating_mul(1_000_000 / TICKS_PER_SECOND) / millis)
    }
}

/// User and system time in a process's `stat`. Its name, in brackets, may hold anything.
fn process_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_process_is_read_whatever_it_is_called() {
        let stat = "42 (a) R 1 (x) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20 0";
        assert_eq!(process_ticks(stat), Some(42));
        for text in ["", "1 (a", "1 (a) S 1 2", "1 (a) S 1 2 3 4 5 6 7 8 9 10 x y"] {
            assert_eq!(process_ticks(text), None, "{text}");
        }
    }

    #[test]
    fn this_process_is_measured_and_one_that_is_gone_is_left_out() {
        let own = std::process::id();
        let (gauge, sizes) = Gauge::default().measured(vec![own, u32::MAX]);
        let held = sizes[&own];
        assert!(held.overhead > 0 && sizes.len() == 1, "{sizes:?}");
        // What comes after the walk counts as the guest's.
        let ballast = vec![1_u8; 64 << 20];
        let (gauge, grown) = gauge.measured(vec![own]);
        assert!(grown[&own].resident >= held.resident + (48 << 20), "{grown:?}");
        assert_eq!(ballast.iter().map(|byte| u64::from(*byte)).sum::<u64>(), 64 << 20);
        let (gauge, none) = gauge.measured(Vec::new());
        assert!(none.is_empty() && gauge.own.is_empty());
    }
}

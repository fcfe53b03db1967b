//! What the kernel has counted of a VM's process, and the rates between two looks.
//!
//! ```text
//!   /proc/PID/stat                 CPU time, major faults
//!   /proc/PID/task/TID/schedstat   time in which a thread was ready and did not run
//!   <cpu cgroup>/<vm>/cpu.stat     of that, what the VM's own limit held back
//!   /proc/PID/io                   bytes that reached, or came from, disks
//!   /proc/thread-self/net/dev      bytes through taps: one read for all VMs
//! ```
//!
//! The kernel counts a thread that its group's quota holds back as waiting too; what is left when
//! that is taken off is what others of the host took from it. Nothing here asks QEMU.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use plimsoll_api::cluster::VmRates;
use plimsoll_model::{BitsPerSecond, BytesPerSecond, MilliCores, VmId};

use crate::limits::CpuGroups;
use crate::net::{NicCounters, tap_name};
use crate::telemetry::{TICKS_PER_SECOND, per_second};

/// The kernel counts faults, each of a page.
const PAGE: u64 = 4096;

/// What went through the taps of this host, by name.
pub(super) type Taps = BTreeMap<String, NicCounters>;

/// What was counted since the process began. `None`: it could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    /// User and system time, in ticks, and major faults.
    stat: Option<(u64, u64)>,
    /// How long each thread waited for a CPU, in nanoseconds.
    waited: Option<BTreeMap<u32, u64>>,
    /// How long the VM's own limit held vCPUs back, in microseconds.
    throttled: Option<u64>,
    /// Bytes read from and written to disks.
    disk: Option<[u64; 2]>,
    /// Bytes sent and received.
    network: Option<[u64; 2]>,
}

impl Counters {
    /// Reads all counters of a VM. Takes some ten microseconds for each thread of its process.
    pub(super) fn read(
        vm: VmId,
        process: u32,
        groups: Option<&CpuGroups>,
        taps: Option<&Taps>,
    ) -> Self {
        let directory = Path::new("/proc").join(process.to_string());
        let text = |name: &str| fs_err::read_to_string(directory.join(name)).ok();
        Self {
            stat: text("stat").as_deref().and_then(process_stat),
            waited: threads_waited(&directory.join("task")),
            throttled: match groups.map(|groups| groups.throttling(vm)) {
                // No group, no limit.
                None => Some(0),
                Some(Err(error)) if error.is_not_found() => Some(0),
                Some(throttling) => throttling.ok().map(|throttling| throttling.throttled_us),
            },
            disk: text("io").as_deref().and_then(disk_bytes),
            network: taps.map(|taps| tap_bytes(vm, taps)),
        }
    }

    /// CPU used in a window that began with `before`, and the rates in it.
    pub(super) fn since(&self, before: &Self, window: Duration) -> (Option<MilliCores>, VmRates) {
        let bytes = |count: Option<u64>| Some(BytesPerSecond(per_second(count?, window)));
        let bits =
            |count: Option<u64>| Some(BitsPerSecond(per_second(count?, window).saturating_mul(8)));
        // Of a second in which one core works, a thousandth is a thousandth of a core.
        let cores = |micros: u64| MilliCores(per_second(micros, window) / 1000);
        let stat = self.stat.zip(before.stat);
        let ticks = stat.and_then(|(is, was)| is.0.checked_sub(was.0));
        let used = ticks.map(|ticks| cores(ticks.saturating_mul(1_000_000 / TICKS_PER_SECOND)));
        let faults = stat.and_then(|(is, was)| is.1.checked_sub(was.1));
        let throttled = difference(self.throttled, before.throttled);
        let waited = self.waited.as_ref().zip(before.waited.as_ref());
        let waited = waited.map(|(is, was)| waited_since(is, was) / 1000);
        let waited = waited.zip(throttled).map(|(all, own)| all.saturating_sub(own));
        let [disk_read, disk_written] = differences(self.disk, before.disk);
        let [sent, received] = differences(self.network, before.network);
        let rates = VmRates {
            cpu_wait: waited.map(cores),
            cpu_throttled: throttled.map(cores),
            swapped_in: bytes(faults.map(|faults| faults.saturating_mul(PAGE))),
            disk_read: bytes(disk_read),
            disk_written: bytes(disk_written),
            sent: bits(sent),
            received: bits(received),
        };
        (used, rates)
    }
}

/// What a counter grew by; one that went back was begun anew, and tells nothing.
fn difference(is: Option<u64>, was: Option<u64>) -> Option<u64> {
    is?.checked_sub(was?)
}

fn differences(is: Option<[u64; 2]>, was: Option<[u64; 2]>) -> [Option<u64>; 2] {
    [0, 1].map(|at| difference(is.map(|is| is[at]), was.map(|was| was[at])))
}

/// A thread that was not there before has waited in this window only.
fn waited_since(is: &BTreeMap<u32, u64>, was: &BTreeMap<u32, u64>) -> u64 {
    let grown = |(thread, is): (&u32, &u64)| {
        let was = was.get(thread).copied().unwrap_or(0);
        // Its number may have gone to another thread.
        if *is >= was { is - was } else { *is }
    };
    is.iter().map(grown).fold(0, u64::saturating_add)
}

/// User and system time together, and major faults, in a process's `stat`. Its name, in brackets,
/// may hold anything.
fn process_stat(stat: &str) -> Option<(u64, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(9);
    let faults = fields.next()?.parse().ok()?;
    let mut time = fields.skip(1).map(|field| field.parse::<u64>().ok());
    Some((time.next()??.checked_add(time.next()??)?, faults))
}

/// How long a thread ran, and how long it waited, in its `schedstat`: nanoseconds.
fn thread_times(schedstat: &str) -> Option<(u64, u64)> {
    let mut fields = schedstat.split_whitespace().map(|field| field.parse().ok());
    Some((fields.next()??, fields.next()??))
}

/// None where the kernel keeps no such count: then all of its numbers are zero.
fn threads_waited(tasks: &Path) -> Option<BTreeMap<u32, u64>> {
    let mut waited = BTreeMap::new();
    let mut counts = false;
    for entry in fs_err::read_dir(tasks).ok()? {
        let entry = entry.ok()?;
        let Some(thread) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A thread may end between the two reads.
        let Ok(text) = fs_err::read_to_string(entry.path().join("schedstat")) else { continue };
        let (ran, wait) = thread_times(&text)?;
        counts |= ran > 0;
        waited.insert(thread, wait);
    }
    counts.then_some(waited)
}

/// What reached disks, in a process's `io`: page caches do not count.
fn disk_bytes(io: &str) -> Option<[u64; 2]> {
    let field = |name: &str| {
        let mut lines = io.lines().filter_map(|line| line.strip_prefix(name));
        lines.find_map(|rest| rest.strip_prefix(':'))?.trim().parse().ok()
    };
    Some([field("read_bytes")?, field("write_bytes")?])
}

/// What went through a VM's taps, which are numbered from 0: sent, and received. Without taps it has
/// no network, and nothing is what it sends.
fn tap_bytes(vm: VmId, taps: &Taps) -> [u64; 2] {
    let own = (0..=u8::MAX).map_while(|index| taps.get(&tap_name(vm, index)));
    own.fold([0_u64, 0], |[sent, received], tap| {
        [sent.saturating_add(tap.from_guest_bytes), received.saturating_add(tap.to_guest_bytes)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const IO: &str = "rchar: 9\nwchar: 8\nsyscr: 7\nsyscw: 6\nread_bytes: 4096\n\
                      write_bytes: 8192\ncancelled_write_bytes: 0\n";

    #[test]
    fn the_kernels_figures_are_understood_and_nonsense_is_not() {
        let stat = "42 (a) R 1 (x) S 1 2 3 4 5 6 7 8 77 10 30 12 0 0 20 0";
        assert_eq!(process_stat(stat), Some((42, 77)));
        assert_eq!(thread_times("1000 250 3\n"), Some((1000, 250)));
        assert_eq!(disk_bytes(IO), Some([4096, 8192]));
        for text in ["", "1 (a", "1 (a) S 1 2", "1 (a) S 1 2 3 4 5 6 7 8 9 10 x y", "x y", "7"] {
            assert_eq!(process_stat(text), None, "{text}");
            assert_eq!(thread_times(text), None, "{text}");
            assert_eq!(disk_bytes(text), None, "{text}");
        }
        assert_eq!(disk_bytes("read_bytes: x\nwrite_bytes: 1"), None);
    }

    fn counted(waited: &[(u32, u64)], throttled: u64) -> Counters {
        Counters {
            stat: Some((100, 5)),
            waited: Some(waited.iter().copied().collect()),
            throttled: Some(throttled),
            disk: Some([1 << 20, 2 << 20]),
            network: Some([1000, 2000]),
        }
    }

    #[test]
    fn rates_are_what_grew_in_the_window() {
        let before = counted(&[(1, 1_000_000_000), (2, 5)], 0);
        let after = Counters {
            stat: Some((300, 261)),
            disk: Some([3 << 20, 2 << 20]),
            network: Some([1000, 252_000]),
            // Half a second by thread 1, half a second by one that is new.
            ..counted(&[(1, 1_500_000_000), (3, 500_000_000)], 0)
        };
        let (used, rates) = after.since(&before, Duration::from_secs(2));
        assert_eq!(used, Some(MilliCores(1000)));
        let wanted = VmRates {
            cpu_wait: Some(MilliCores(500)),
            cpu_throttled: Some(MilliCores(0)),
            swapped_in: Some(BytesPerSecond(512 << 10)),
            disk_read: Some(BytesPerSecond(1 << 20)),
            disk_written: Some(BytesPerSecond(0)),
            sent: Some(BitsPerSecond(0)),
            received: Some(BitsPerSecond(1_000_000)),
        };
        assert_eq!(rates, wanted);
    }

    #[test]
    fn what_the_own_limit_holds_back_is_no_wait_for_others() {
        let before = counted(&[(1, 0)], 0);
        let after = counted(&[(1, 900_000_000)], 600_000);
        let (_, rates) = after.since(&before, Duration::from_secs(1));
        assert_eq!(rates.cpu_wait, Some(MilliCores(300)));
        assert_eq!(rates.cpu_throttled, Some(MilliCores(600)));
    }

    #[test]
    fn what_cannot_be_read_or_went_back_is_not_measured() {
        let before = counted(&[(1, 9)], 50);
        let second = Duration::from_secs(1);
        assert_eq!(Counters::default().since(&before, second), (None, VmRates::default()));
        let again = Counters { disk: Some([0, 3 << 20]), ..counted(&[(1, 9)], 20) };
        let (_, rates) = again.since(&before, second);
        assert_eq!((rates.disk_read, rates.disk_written), (None, Some(BytesPerSecond(1 << 20))));
        assert_eq!((rates.cpu_wait, rates.cpu_throttled), (None, None));
    }

    #[test]
    fn all_taps_of_a_vm_count_and_no_other() {
        let (vm, other) = (VmId(uuid::Uuid::from_u128(1)), VmId(uuid::Uuid::from_u128(2)));
        let tap = |sent, received| NicCounters {
            from_guest_bytes: sent,
            to_guest_bytes: received,
            ..NicCounters::default()
        };
        let taps = Taps::from([
            (tap_name(vm, 0), tap(1, 10)),
            (tap_name(vm, 1), tap(2, 20)),
            (tap_name(other, 0), tap(400, 4000)),
        ]);
        assert_eq!(tap_bytes(vm, &taps), [3, 30]);
        assert_eq!(tap_bytes(other, &taps), [400, 4000]);
        assert_eq!(tap_bytes(VmId(uuid::Uuid::from_u128(3)), &taps), [0, 0]);
    }

    #[test]
    fn this_process_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let vm = VmId(uuid::Uuid::from_u128(1));
        let read = || Counters::read(vm, std::process::id(), None, Some(&Taps::new()));
        let (before, began) = (read(), std::time::Instant::now());
        let path = directory.path().join("file");
        fs_err::write(&path, vec![7; 8 << 20]).unwrap();
        let file = fs_err::File::open(&path).unwrap();
        file.sync_all().unwrap();
        while began.elapsed() < Duration::from_millis(300) {}
        let (used, rates) = read().since(&before, began.elapsed());
        assert!(used.unwrap() > MilliCores(100), "{used:?}");
        assert!(rates.cpu_wait.is_some() && rates.swapped_in.is_some(), "{rates:?}");
        assert_eq!(rates.sent, Some(BitsPerSecond(0)));
        assert!(read().disk >= before.disk);
    }
}

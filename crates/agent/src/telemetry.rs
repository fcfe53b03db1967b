//! How busy the host is, from `/proc`: sampled at each report, never stored.

mod rates;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use fs_err as fs;
use plimsoll_api::cluster::{HostMemory, HostUsage, VmUsage};
use plimsoll_model::{Bytes, MilliCores};
use tokio::sync::watch;

use self::rates::HostMeter;
use crate::{
    config::DeclaredCapacity, disk::space_at, kernel_fields::memory_field, ksm::Deduplication,
};

pub(crate) use rates::{memory_stall, per_second};

/// The kernel counts CPU time in hundredths of a second towards user space, on every architecture.
pub(crate) const TICKS_PER_SECOND: u64 = 100;

/// Less time than this between two samples says little: then the former figure stands.
const SHORTEST_WINDOW: Duration = Duration::from_millis(500);

/// Takes samples, each over the time since the one before.
#[derive(Debug)]
pub struct UsageSampler {
    storage: PathBuf,
    deduplication: Deduplication,
    last: Option<(std::time::Instant, u64)>,
    cpu: MilliCores,
    meter: HostMeter,
    divided: watch::Receiver<Divided>,
}

/// What the task that divides the host's memory tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Divided {
    /// How it is divided; `None` where no VM is elastic.
    pub memory: Option<HostMemory>,
    /// What the VMs that run use.
    pub vms: Vec<VmUsage>,
}

impl UsageSampler {
    /// For a host with its VMs' disks below `storage` and this address on the underlay, of which so
    /// much is declared, whose memory is divided, and equal pages of which are merged, so.
    #[must_use]
    pub fn new(
        storage: PathBuf,
        underlay: IpAddr,
        declared: &DeclaredCapacity,
        divided: watch::Receiver<Divided>,
        deduplication: Deduplication,
    ) -> Self {
        let meter = HostMeter::new(underlay, declared);
        Self { storage, deduplication, last: None, cpu: MilliCores(0), meter, divided }
    }

    /// Ends when the division of the host's memory has changed in a way that is worth telling.
    pub(crate) async fn division_changed(&mut self) {
        if self.divided.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The usage now. What cannot be read counts as zero: a report must not fail for it.
    pub fn sample(&mut self, running_vms: u32) -> HostUsage {
        self.sample_cpu();
        let meminfo = read(Path::new("/proc/meminfo")).unwrap_or_default();
        HostUsage {
            cpu: self.cpu,
            memory: memory(&meminfo).unwrap_or_default(),
            disk_free: space_at(&self.storage).map(|space| space.free).unwrap_or_default(),
            running_vms,
            division: self.divided.borrow_and_update().memory,
            deduplication: Some(self.deduplication.host()),
            swap: memory_field(&meminfo, "SwapTotal").unwrap_or_default(),
            swap_free: memory_field(&meminfo, "SwapFree").unwrap_or_default(),
            rates: self.meter.sample(),
        }
    }

    /// What the VMs that run use.
    #[must_use]
    pub fn vms(&self) -> Vec<VmUsage> {
        self.divided.borrow().vms.clone()
    }

    fn sample_cpu(&mut self) {
        let Some(busy) = read(Path::new("/proc/stat")).and_then(|text| busy_ticks(&text)) else {
            return;
        };
        let now = std::time::Instant::now();
        let Some((then, before)) = self.last else {
            self.last = Some((now, busy));
            return;
        };
        let window = now.duration_since(then);
        if window < SHORTEST_WINDOW {
            return;
        }
        let millis = u64::try_from(window.as_millis()).unwrap_or(u64::MAX).max(1);
        // ticks/100 seconds of CPU, over millis/1000 seconds, in thousandths.
        let used = busy.saturating_sub(before).saturating_mul(1_000_000 / TICKS_PER_SECOND);
        self.cpu = MilliCores(used / millis);
        self.last = Some((now, busy));
    }
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// All ticks of the first line but idle and waiting for disks. Guests' time is in `user` already.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> =
        line.split_ascii_whitespace().take(8).map_while(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, rest @ ..] = ticks.as_slice() else { return None };
    Some(rest.iter().fold(user + nice + system, |sum, ticks| sum.saturating_add(*ticks)))
}

fn memory(meminfo: &str) -> Option<Bytes> {
    let [total, available] = ["MemTotal", "MemAvailable"].map(|name| memory_field(meminfo, name));
    Some(total?.saturating_sub(available?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_figures_are_understood_and_nonsense_is_not() {
        let stat = "cpu  100 20 30 1000 50 5 6 7 400 0\ncpu0 1 2 3\n";
        assert_eq!(busy_ticks(stat), Some(100 + 20 + 30 + 5 + 6 + 7));
        let meminfo = "MemTotal:       2048 kB\nMemFree: 1 kB\nMemAvailable:   1024 kB\n";
        assert_eq!(memory(meminfo), Some(Bytes::mib(1)));
        for text in ["", "cpu", "cpu  x", "cpu  1 2 3", "MemTotal: 5 kB"] {
            assert_eq!(busy_ticks(text), None, "{text}");
            assert_eq!(memory(text), None, "{text}");
        }
    }

    #[test]
    fn a_busy_core_counts_as_a_thousand() {
        let divided = watch::channel(Divided::default()).1;
        let mut sampler = UsageSampler::new(
            "/".into(),
            IpAddr::from([127, 0, 0, 1]),
            &DeclaredCapacity::default(),
            divided,
            Deduplication::off(),
        );
        let usage = sampler.sample(3);
        assert_eq!((usage.running_vms, usage.cpu), (3, MilliCores(0)));
        assert!(usage.memory > Bytes::ZERO && usage.disk_free > Bytes::ZERO);
        // As if one core had been busy for ten seconds, beside whatever else this machine does.
        let (then, busy) = sampler.last.unwrap();
        let window = Duration::from_secs(10);
        sampler.last = Some((then.checked_sub(window).unwrap(), busy.saturating_sub(1000)));
        let cpu = sampler.sample(0).cpu;
        assert!((950..1100).contains(&cpu.0), "{cpu}");
    }
}

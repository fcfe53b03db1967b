//! What this host has, as a resource vector.
//!
//! What can be measured is: cores, memory, disk space, NVIDIA's accelerators. What cannot be known
//! without putting load on the host is assumed, with care, and every assumption is said in
//! [`Inventory::notes`]; the configuration overrides both, element by element.
//!
//! ```text
//! total (measured or assumed) - reserve (for the host itself) = usable -> declared values over it
//! ```

pub mod gpus;

use std::path::{Path, PathBuf};

use fs_err as fs;
use nix::sys::stat::{major, minor, stat};
use plimsoll_model::{
    Accelerators, BitsPerSecond, Bytes, BytesPerSecond, IoPerSecond, MilliCores, Resources,
};
use serde::{Deserialize, Serialize};

use crate::{
    disk::{space_at, space_of_disks},
    kernel_fields::memory_field,
};

/// Assumed where nothing is declared: the usual network of servers.
const ASSUMED_NETWORK: BitsPerSecond = BitsPerSecond(1_000_000_000);
/// What one solid-state disk of the slower kind does.
const ASSUMED_SOLID_STATE: (BytesPerSecond, IoPerSecond) =
    (BytesPerSecond(400 << 20), IoPerSecond(10_000));
/// What one turning disk does.
const ASSUMED_ROTATING: (BytesPerSecond, IoPerSecond) =
    (BytesPerSecond(100 << 20), IoPerSecond(100));

/// What a host has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// All of it. Disk space is what is free and what disks of VMs occupy already.
    pub total: Resources,
    /// What is kept back for the host itself where the configuration says nothing: 256 MiB and a
    /// twentieth of the memory, a twentieth of the disk space. No CPU: weights see to that.
    pub reserve: Resources,
    /// The accelerators that were found.
    pub gpus: Vec<gpus::Gpu>,
    /// What was assumed, and what could not be read.
    pub notes: Vec<String>,
}

impl Inventory {
    /// What VMs can use when so much is kept back.
    #[must_use]
    pub fn usable(&self, reserve: &Resources) -> Resources {
        self.total.minus(reserve)
    }
}

/// Looks at the host; `storage` is where the disks of its VMs are or will be. Takes milliseconds
/// without accelerators; the driver of some takes a second to wake up.
pub async fn inventory(storage: PathBuf) -> Inventory {
    let looked = tokio::task::spawn_blocking(move || look(&storage)).await;
    looked.unwrap_or_else(|error| Inventory {
        total: Resources::default(),
        reserve: Resources::default(),
        gpus: Vec::new(),
        notes: vec![format!("the host could not be looked at: {error}")],
    })
}

fn look(storage: &Path) -> Inventory {
    let mut notes = Vec::new();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| memory_field(&text, "MemTotal"))
        .unwrap_or_else(|| {
            notes.push("the memory is not known: /proc/meminfo cannot be read".to_owned());
            Bytes::ZERO
        });
    let disk = match space_at(storage) {
        Ok(space) => space.free.saturating_add(space_of_disks(storage)),
        Err(error) => {
            notes.push(format!("the disk space is not known: {error}"));
            Bytes::ZERO
        }
    };
    let (disk_bandwidth, disk_iops) = disk_rates(storage, &mut notes);
    notes.push(format!("network bandwidth is assumed: {ASSUMED_NETWORK} in each direction"));
    let gpus = gpus::found().unwrap_or_else(|error| {
        tracing::debug!(%error, "no accelerators through NVML");
        Vec::new()
    });
    let mut accelerators = Accelerators::default();
    for gpu in &gpus {
        *accelerators.0.entry(gpu.model.clone()).or_default() += 1000;
    }
    let total = Resources {
        cpu: MilliCores(u64::try_from(cores).unwrap_or(u64::MAX / 1000).saturating_mul(1000)),
        memory,
        disk,
        disk_bandwidth,
        disk_iops,
        network: ASSUMED_NETWORK,
        accelerators,
    };
    let reserve = Resources {
        memory: Bytes((256 << 20) + memory.get() / 20),
        disk: Bytes(disk.get() / 20),
        ..Resources::default()
    };
    Inventory { total, reserve, gpus, notes }
}

/// What the disk under a path can do: assumed from what kind it is.
fn disk_rates(storage: &Path, notes: &mut Vec<String>) -> (BytesPerSecond, IoPerSecond) {
    let (kind, rates) = match rotates(storage) {
        Some(false) => ("a solid-state disk", ASSUMED_SOLID_STATE),
        Some(true) => ("a rotating disk", ASSUMED_ROTATING),
        None => ("a disk of unknown kind", ASSUMED_ROTATING),
    };
    notes.push(format!("disk bandwidth is assumed: {} and {} IOPS of {kind}", rates.0, rates.1));
    rates
}

fn rotates(storage: &Path) -> Option<bool> {
    let existing = storage.ancestors().find(|path| path.exists())?;
    let device = stat(existing).ok()?.st_dev;
    let directory = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let directory = fs::canonicalize(directory).ok()?;
    // A partition has no queue of its own, the disk above it has.
    let mut candidates = directory.ancestors().take(2);
    let text =
        candidates.find_map(|path| fs::read_to_string(path.join("queue/rotational")).ok())?;
    Some(text.trim() == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn this_host_has_something_and_keeps_some_of_it_back() {
        let directory = tempfile::tempdir().unwrap();
        let found = inventory(directory.path().join("not/yet/there")).await;
        let usable = found.usable(&found.reserve);
        assert!(found.total.cpu >= MilliCores(1000));
        assert!(usable.memory > Bytes::ZERO && usable.memory < found.total.memory);
        assert!(usable.disk > Bytes::ZERO && usable.disk < found.total.disk);
        assert!(usable.disk_iops > IoPerSecond::ZERO && usable.network > BitsPerSecond::ZERO);
        assert_eq!(usable.first_above(&found.total), None);
        assert!(found.notes.iter().any(|note| note.contains("disk bandwidth is assumed")));
        assert!(found.notes.iter().any(|note| note.contains("network bandwidth is assumed")));
    }
}

//! What is seen of hosts and VMs at an instant. What is not measured is `None`, and is never guessed.

use std::time::Duration;

use plimsoll_model::{BitsPerSecond, Bytes, BytesPerSecond, IoPerSecond, MilliCores};
use serde::{Deserialize, Serialize};

use crate::resource::{Amounts, Permille};

/// What a host or a VM uses, as its host sees it (black box).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU in use.
    #[serde(default)]
    pub cpu_used: Option<MilliCores>,
    /// CPU that would be in use if nobody had to wait for another: what is used, and what was stolen
    /// from vCPUs or throttled below what they were promised. A limit of the VM's own is no want.
    #[serde(default)]
    pub cpu_wanted: Option<MilliCores>,
    /// Memory in use that could not be given back.
    #[serde(default)]
    pub memory_used: Option<Bytes>,
    /// The share of time in which work stood still for want of memory.
    #[serde(default)]
    pub memory_pressure: Option<Pressure>,
    /// What is swapped in and out.
    #[serde(default)]
    pub swap: Option<BytesPerSecond>,
    /// Disk bandwidth, reads and writes together.
    #[serde(default)]
    pub disk: Option<BytesPerSecond>,
    /// Disk operations, reads and writes together.
    #[serde(default)]
    pub disk_operations: Option<IoPerSecond>,
    /// Network bandwidth of the busier direction.
    #[serde(default)]
    pub network: Option<BitsPerSecond>,
}

/// Pressure stall information of one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    /// Some task stood still.
    pub some: Permille,
    /// All tasks stood still.
    pub full: Permille,
}

/// What is seen of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSample {
    /// What its host sees.
    pub usage: Usage,
    /// What its guest says.
    #[serde(default)]
    pub guest: GuestWord,
    /// How fast it writes memory.
    #[serde(default)]
    pub memory_written: Option<BytesPerSecond>,
}

/// What a guest and its applications say of themselves (gray box).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestWord {
    /// Memory that could be had without swapping.
    #[serde(default)]
    pub memory_available: Option<Bytes>,
    /// The share of time in which some task stood still for want of CPU.
    #[serde(default)]
    pub cpu_pressure: Option<Permille>,
    /// The share of time in which some task stood still for want of memory.
    #[serde(default)]
    pub memory_pressure: Option<Permille>,
    /// How fast its application answers, and how fast it should.
    #[serde(default)]
    pub latency: Option<Latency>,
}

/// How long an application takes to answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// What it took.
    pub seen: Duration,
    /// What it should take at most.
    pub objective: Duration,
}

impl Latency {
    /// Whether it takes longer than it should.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.seen > self.objective
    }
}

impl Usage {
    /// What is asked for of each resource.
    pub(crate) fn asked(&self) -> Amounts {
        [
            self.cpu_wanted.max(self.cpu_used).map(|cpu| cpu.0 as f64),
            self.memory_used.map(|memory| memory.0 as f64),
            self.disk.map(|disk| disk.0 as f64),
            self.disk_operations.map(|operations| operations.0 as f64),
            self.network.map(|network| network.0 as f64),
        ]
    }
}

//! What VMs and hosts do each second, and the bounds of what can be believed of it.

use plimsoll_model::{BitsPerSecond, Bytes, BytesPerSecond, MilliCores};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{HostUsage, VmUsage};

/// No machine has more: 100,000 cores.
const MOST_CPU: u64 = 100_000_000;
/// No machine has more: an exbibyte.
const MOST_BYTES: u64 = 1 << 60;
/// Nothing is faster: a pebibyte a second.
const MOST_BYTES_PER_SECOND: u64 = 1 << 50;
/// The same in bits.
const MOST_BITS_PER_SECOND: u64 = 1 << 53;

/// What a VM does, as its host sees it: means of the last seconds. `None`: not measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmRates {
    /// CPU that its threads were ready to use while others had it. What its own limit held back is
    /// not in it.
    pub cpu_wait: Option<MilliCores>,
    /// CPU that its own limit held back.
    pub cpu_throttled: Option<MilliCores>,
    /// What its process had to read back into memory: major faults.
    pub swapped_in: Option<BytesPerSecond>,
    /// What its process read from disks.
    pub disk_read: Option<BytesPerSecond>,
    /// What its process wrote to disks.
    pub disk_written: Option<BytesPerSecond>,
    /// What its guest sent, on all of its interfaces.
    pub sent: Option<BitsPerSecond>,
    /// What its guest received.
    pub received: Option<BitsPerSecond>,
}

/// What a host does, all of the machine: means of the last seconds. `None`: not measured, or, of
/// what it can do, not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostRates {
    /// The share of time in which work stood still for want of memory.
    pub memory_stall: Option<MemoryStall>,
    /// What was swapped in.
    pub swapped_in: Option<BytesPerSecond>,
    /// What was swapped out.
    pub swapped_out: Option<BytesPerSecond>,
    /// What came in by the device that has the underlay's address.
    pub received: Option<BitsPerSecond>,
    /// What went out by it.
    pub sent: Option<BitsPerSecond>,
    /// What its network can do in each direction: as configured, or as its driver says.
    pub network_capacity: Option<BitsPerSecond>,
    /// What its disks can do, reads and writes together: as configured.
    pub disk_capacity: Option<BytesPerSecond>,
}

/// Pressure stall information of memory, mean over 10 s, in thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MemoryStall {
    /// Some task stood still.
    pub some_permille: u16,
    /// All tasks stood still.
    pub full_permille: u16,
}

/// A figure that no machine can have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{what} is {value}, and can be {most} at most")]
pub struct Unbelievable {
    /// Which figure.
    pub what: &'static str,
    /// What it is said to be.
    pub value: u64,
    /// The most that it can be.
    pub most: u64,
}

fn at_most(what: &'static str, value: u64, most: u64) -> Result<(), Unbelievable> {
    if value <= most { Ok(()) } else { Err(Unbelievable { what, value, most }) }
}

fn cpu(what: &'static str, value: Option<MilliCores>) -> Result<(), Unbelievable> {
    at_most(what, value.unwrap_or_default().0, MOST_CPU)
}

fn amount(what: &'static str, value: Bytes) -> Result<(), Unbelievable> {
    at_most(what, value.0, MOST_BYTES)
}

fn bytes(what: &'static str, value: Option<BytesPerSecond>) -> Result<(), Unbelievable> {
    at_most(what, value.unwrap_or_default().0, MOST_BYTES_PER_SECOND)
}

fn bits(what: &'static str, value: Option<BitsPerSecond>) -> Result<(), Unbelievable> {
    at_most(what, value.unwrap_or_default().0, MOST_BITS_PER_SECOND)
}

impl VmUsage {
    /// Refuses what no VM can use.
    ///
    /// # Errors
    /// The first figure that is out of bounds.
    pub fn check(&self) -> Result<(), Unbelievable> {
        let rates = &self.rates;
        cpu("cpu", Some(self.cpu))?;
        amount("memory", self.memory)?;
        amount("resident", self.resident)?;
        cpu("cpu_wait", rates.cpu_wait)?;
        cpu("cpu_throttled", rates.cpu_throttled)?;
        bytes("swapped_in", rates.swapped_in)?;
        bytes("disk_read", rates.disk_read)?;
        bytes("disk_written", rates.disk_written)?;
        bits("sent", rates.sent)?;
        bits("received", rates.received)
    }
}

impl HostUsage {
    /// Refuses what no host can use.
    ///
    /// # Errors
    /// The first figure that is out of bounds.
    pub fn check(&self) -> Result<(), Unbelievable> {
        let rates = &self.rates;
        cpu("cpu", Some(self.cpu))?;
        for (what, value) in [
            ("memory", self.memory),
            ("disk_free", self.disk_free),
            ("swap", self.swap),
            ("swap_free", self.swap_free),
        ] {
            amount(what, value)?;
        }
        let stall = rates.memory_stall.unwrap_or_default();
        at_most("some_permille", stall.some_permille.into(), 1000)?;
        at_most("full_permille", stall.full_permille.into(), 1000)?;
        bytes("swapped_in", rates.swapped_in)?;
        bytes("swapped_out", rates.swapped_out)?;
        bits("received", rates.received)?;
        bits("sent", rates.sent)?;
        bits("network_capacity", rates.network_capacity)?;
        bytes("disk_capacity", rates.disk_capacity)
    }
}

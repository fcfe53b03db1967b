//! What a guest tells about itself: numbers and names, bounded before anybody looks at them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{
    MAX_ADDRESSES, MAX_CPUS, MAX_INTERFACES, MAX_TEXT_BYTES, ProtocolError, at_most, length,
    printable,
};

/// A number with two decimals, kept as hundredths, as the kernel prints loads and pressures.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct Hundredths(pub u32);

impl Hundredths {
    /// The number itself.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl std::fmt::Display for Hundredths {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

/// What a guest tells about itself. All of it is the guest's own word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Facts {
    /// As `uname -r` prints it.
    pub kernel_release: String,
    /// The guest's own name.
    pub hostname: String,
    /// `PRETTY_NAME` of its os-release file, or its kernel's name.
    pub os_name: String,
    /// The kernel's id of this boot.
    pub boot_id: String,
    /// Version of the guest agent.
    pub agent_version: String,
    /// Time since the guest booted, in milliseconds.
    pub uptime_ms: u64,
    /// Its network interfaces, loopback left out.
    pub interfaces: Vec<InterfaceFacts>,
    /// Its memory.
    pub memory: MemoryFacts,
    /// Its CPUs.
    pub cpus: CpuCounts,
    /// Time its CPUs spent since boot, all together.
    pub cpu_time: CpuTime,
    /// Load averages over 1, 5 and 15 minutes.
    pub load: [Hundredths; 3],
    /// Stall information; none where the kernel has no PSI.
    #[serde(default)]
    pub pressure: Option<PressureFacts>,
    /// How its application answers; none where none has said it lately.
    #[serde(default)]
    pub latency: Option<ApplicationLatency>,
}

/// How long an application takes to answer, by its own word: what it writes into
/// `/run/plimsoll/latency` at least every 30 s, as two numbers of microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApplicationLatency {
    /// What it took, by the application's own measure (such as its 99th percentile), in microseconds.
    pub seen_us: u64,
    /// What it should take at most, in microseconds.
    pub objective_us: u64,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InterfaceFacts {
    /// Its name in the guest.
    pub name: String,
    /// Its hardware address, as `52:54:00:12:34:56`; none where it has none.
    #[serde(default)]
    pub mac: Option<String>,
    /// Its addresses.
    pub addresses: Vec<InterfaceAddress>,
}

/// One address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InterfaceAddress {
    /// The address.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub address: IpAddr,
    /// Length of its network's prefix in bits.
    pub prefix_length: u8,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MemoryFacts {
    /// What the guest's kernel manages.
    pub total_bytes: u64,
    /// What could be had without swapping.
    pub available_bytes: u64,
    /// What lies entirely unused.
    pub free_bytes: u64,
    /// Page cache and reclaimable slabs.
    pub cached_bytes: u64,
    /// Swap space.
    pub swap_total_bytes: u64,
    /// Unused swap space.
    pub swap_free_bytes: u64,
    /// Cached pages of files that were used again lately; 0 from an older agent.
    #[serde(default)]
    pub active_file_bytes: u64,
    /// What the balloon has taken: part of the total, and in use; 0 from an older agent.
    #[serde(default)]
    pub balloon_bytes: u64,
    /// Processes that the kernel killed for want of memory since boot; 0 from an older agent.
    #[serde(default)]
    pub oom_kills: u64,
}

impl MemoryFacts {
    /// What is in use and could not be given back without swapping. What the balloon has taken is
    /// not in use.
    #[must_use]
    pub const fn used_bytes(&self) -> u64 {
        let other = self.available_bytes.saturating_add(self.balloon_bytes);
        self.total_bytes.saturating_sub(other)
    }
}

/// How many CPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CpuCounts {
    /// CPUs that are plugged in.
    pub present: u32,
    /// CPUs that run.
    pub online: u32,
}

/// Cumulative time of all CPUs since boot, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CpuTime {
    /// In user space, niced included.
    pub user_ms: u64,
    /// In the kernel, interrupts included.
    pub system_ms: u64,
    /// Idle while I/O was outstanding.
    pub iowait_ms: u64,
    /// Wanted to run and were not let by the host.
    pub steal_ms: u64,
    /// Idle.
    pub idle_ms: u64,
}

/// Pressure stall information: the share of time in which work stood still for want of a resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PressureFacts {
    /// For want of CPU.
    pub cpu: Pressure,
    /// For want of memory.
    pub memory: Pressure,
    /// For want of I/O.
    pub io: Pressure,
}

/// One resource's pressure, in percent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pressure {
    /// Some task stood still, mean over 10 s.
    pub some_avg10: Hundredths,
    /// Some task stood still, mean over 60 s.
    pub some_avg60: Hundredths,
    /// All tasks stood still, mean over 10 s.
    pub full_avg10: Hundredths,
    /// All tasks stood still, mean over 60 s.
    pub full_avg60: Hundredths,
}

impl CpuCounts {
    pub(super) fn check(self) -> Result<(), ProtocolError> {
        at_most("present", self.present.into(), MAX_CPUS.into())?;
        at_most("online", self.online.into(), MAX_CPUS.into())
    }
}

impl Facts {
    pub(super) fn check(&self) -> Result<(), ProtocolError> {
        printable("kernel_release", &self.kernel_release, MAX_TEXT_BYTES)?;
        printable("hostname", &self.hostname, MAX_TEXT_BYTES)?;
        printable("os_name", &self.os_name, MAX_TEXT_BYTES)?;
        printable("boot_id", &self.boot_id, MAX_TEXT_BYTES)?;
        printable("agent_version", &self.agent_version, MAX_TEXT_BYTES)?;
        self.cpus.check()?;
        length("interfaces", self.interfaces.len(), MAX_INTERFACES)?;
        self.interfaces.iter().try_for_each(InterfaceFacts::check)
    }
}

impl InterfaceFacts {
    fn check(&self) -> Result<(), ProtocolError> {
        printable("interface name", &self.name, MAX_TEXT_BYTES)?;
        length("addresses", self.addresses.len(), MAX_ADDRESSES)?;
        if self.mac.as_deref().is_some_and(|mac| !is_mac(mac)) {
            return Err(ProtocolError::BadText { field: "mac" });
        }
        for address in &self.addresses {
            let bits = if address.address.is_ipv4() { 32 } else { 128 };
            at_most("prefix_length", address.prefix_length.into(), bits)?;
        }
        Ok(())
    }
}

/// Six pairs of hexadecimal digits with colons between them.
fn is_mac(text: &str) -> bool {
    let pair = |pair: &str| pair.len() == 2 && pair.bytes().all(|byte| byte.is_ascii_hexdigit());
    text.len() == 17 && text.split(':').count() == 6 && text.split(':').all(pair)
}

//! What QEMU answers, as far as we read it. Unknown fields are ignored and unknown words are kept
//! apart (`RunState::Unknown`): a newer QEMU must not break an older agent.

use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionNumbers {
    pub major: u32,
    pub minor: u32,
    pub micro: u32,
}

/// Answer of `query-version`. `package` is the distributor's own version text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    pub qemu: VersionNumbers,
    #[serde(default)]
    pub package: String,
}

/// QEMU's first message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Greeting {
    pub version: VersionInfo,
    #[serde(default)]
    pub capabilities: Vec<Value>,
}

/// What the machine does right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RunState {
    Debug,
    Inmigrate,
    InternalError,
    IoError,
    Paused,
    Postmigrate,
    Prelaunch,
    FinishMigrate,
    RestoreVm,
    Running,
    SaveVm,
    Shutdown,
    Suspended,
    Watchdog,
    GuestPanicked,
    Colo,
    #[serde(other)]
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusInfo {
    pub running: bool,
    pub status: RunState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameInfo {
    pub name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UuidInfo {
    #[serde(rename = "UUID")]
    pub uuid: String,
}

/// Where a vCPU sits; passed back unchanged to `device_add`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuProps {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_id: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket_id: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub die_id: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module_id: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core_id: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread_id: Option<i64>,
}

/// One plugged vCPU. `thread_id` is the host's thread: limits are put on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuFast {
    pub cpu_index: u32,
    pub qom_path: String,
    pub thread_id: i32,
    #[serde(default)]
    pub props: CpuProps,
}

/// One place where a vCPU is or can be. Free when `qom_path` is absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HotpluggableCpu {
    #[serde(rename = "type")]
    pub driver: String,
    #[serde(default)]
    pub vcpus_count: u32,
    #[serde(default)]
    pub props: CpuProps,
    pub qom_path: Option<String>,
}

/// Memory that the guest has with the balloon as it is now, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonInfo {
    pub actual: u64,
}

/// The balloon's statistics. A figure the guest does not give is `None` (QEMU says -1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestStats {
    /// Seconds since the epoch of the guest's last answer; 0: it never answered.
    pub last_update_s: u64,
    pub free_bytes: Option<u64>,
    pub available_bytes: Option<u64>,
    pub total_bytes: Option<u64>,
    pub disk_caches_bytes: Option<u64>,
    pub swap_in_bytes: Option<u64>,
    pub swap_out_bytes: Option<u64>,
    pub major_faults: Option<u64>,
    pub minor_faults: Option<u64>,
}

impl GuestStats {
    /// Reads the value of the balloon's `guest-stats` property; what is missing stays `None`.
    #[must_use]
    pub fn from_value(value: &Value) -> Self {
        let stat = |key: &str| {
            // "Not given" is -1, which reaches JSON as u64::MAX.
            value.get("stats")?.get(key)?.as_u64().filter(|number| *number != u64::MAX)
        };
        Self {
            last_update_s: value.get("last-update").and_then(Value::as_u64).unwrap_or(0),
            free_bytes: stat("stat-free-memory"),
            available_bytes: stat("stat-available-memory"),
            total_bytes: stat("stat-total-memory"),
            disk_caches_bytes: stat("stat-disk-caches"),
            swap_in_bytes: stat("stat-swap-in"),
            swap_out_bytes: stat("stat-swap-out"),
            major_faults: stat("stat-major-faults"),
            minor_faults: stat("stat-minor-faults"),
        }
    }
}

/// One memory device, of `query-memory-devices`: a module, or memory that comes and goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryDevice {
    pub id: Option<String>,
    /// What the guest has of it.
    pub size_bytes: u64,
    /// virtio-mem only: what the guest is to have of it.
    pub requested_bytes: Option<u64>,
}

impl MemoryDevice {
    /// Reads one entry; `None` where it has no size.
    #[must_use]
    pub fn from_value(value: &Value) -> Option<Self> {
        let data = value.get("data")?;
        let id = data.get("id").and_then(Value::as_str).map(str::to_owned);
        Some(Self {
            id,
            size_bytes: data.get("size")?.as_u64()?,
            requested_bytes: data.get("requested-size").and_then(Value::as_u64),
        })
    }
}

/// One entry of `query-block`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockDevice {
    #[serde(default)]
    pub device: String,
    pub qdev: Option<String>,
    pub inserted: Option<BlockInserted>,
    #[serde(rename = "io-status")]
    pub io_status: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockInserted {
    #[serde(rename = "node-name")]
    pub node_name: Option<String>,
    #[serde(default)]
    pub file: String,
    #[serde(default)]
    pub ro: bool,
    #[serde(default)]
    pub drv: String,
    #[serde(default)]
    pub image: Value,
}

impl BlockInserted {
    /// The size that the guest sees, in bytes.
    #[must_use]
    pub fn virtual_size_bytes(&self) -> Option<u64> {
        self.image.get("virtual-size")?.as_u64()
    }
}

/// One entry of `query-chardev`. `frontend_open`: something in the machine (for virtio-serial, the
/// guest) has the other end open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChardevInfo {
    pub label: String,
    #[serde(default)]
    pub filename: String,
    #[serde(default)]
    pub frontend_open: bool,
}

/// One entry of `qom-list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QomProperty {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
}

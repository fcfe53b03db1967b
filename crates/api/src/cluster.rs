//! What an agent and the manager say to each other, over mutual TLS.
//!
//! ```text
//!   POST /v1/join                    (users' port)   a new host asks for its certificate
//!   POST /cluster/v1/report          (agents' port)  what the host observes; renews its lease
//!   GET  /cluster/v1/desired?after=G&wait_ms=W       what it should do, once newer than G
//!   GET  /cluster/v1/images/{sha256}                 a file of an image
//! ```
//!
//! Level, not edge: [`DesiredHost`] is the whole of what the host should run, with a generation
//! number; [`AgentReport`] the whole of what it observes. Lost, doubled and late messages do no
//! harm. The host is known by its certificate (common name `host-N`), never by what it says.
//!
//! **Lease.** A report that the manager answers renews the host's lease to the moment at which the
//! agent *sent* it, plus [`ReportReply::lease_ms`]. The agent writes the deadline into its lease
//! file; every VM's guard process kills a VM marked [`DesiredPresent::fenced_by_lease`] once the
//! lease has run out. The manager counts from the moment at which it *received* the last report,
//! which is later, and adds a margin: then it knows that none of those VMs runs. An agent whose
//! connection is refused by the manager's machine (nothing listens there) also renews: a manager that
//! is down restarts nothing, and when it starts it counts every host as just seen.

mod rates;

use serde::{Deserialize, Serialize};

use plimsoll_model::{
    Amount, Bytes, Cidr, Deflation, Elasticity, HostId, HostSpec, ImageFile, Interface, Level,
    MilliCores, Name, NetworkId, Power, ProjectId, Resources, RestartPolicy, Timestamp, VmId,
};

use crate::deduplication::{HostDeduplication, VmDeduplication};
use crate::guest::Facts;
use crate::migration::{DesiredMigration, ObservedMigration};

pub use rates::{HostRates, MemoryStall, Unbelievable, VmRates};

/// A host asks to join the cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JoinRequest {
    /// The one-use token's secret part.
    pub token: String,
    /// The name that the host would like.
    pub name: Name,
    /// A PKCS#10 certificate request in PEM; the private key never leaves the host.
    pub certificate_request_pem: String,
    /// What the host is.
    pub spec: HostSpec,
}

/// It may.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JoinResponse {
    /// Its number.
    pub host: HostId,
    /// Its certificate, PEM.
    pub certificate_pem: String,
    /// The cluster's CA, PEM.
    pub ca_pem: String,
    /// Where the manager listens for agents: `address:port`.
    pub cluster_address: String,
}

/// What a host observes. Sent on every change and at least every [`ReportReply::interval_ms`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentReport {
    /// The kernel's boot id.
    pub boot_id: String,
    /// Made anew at each start of the agent.
    pub session: uuid::Uuid,
    /// Counts the reports of the session: an older one that arrives late is ignored.
    pub sequence: u64,
    /// What the host is.
    pub spec: HostSpec,
    /// The generation of the desired state that it is working on; 0 before the first.
    pub desired_generation: u64,
    /// Every VM of which it holds a process, a disk or a directory, and every VM that it was told to
    /// make absent and that is gone (reported as [`ObservedPhase::Absent`] until it is no longer
    /// listed).
    pub vms: Vec<ObservedVm>,
    /// How busy it is.
    pub usage: HostUsage,
    /// How busy its running VMs are.
    #[serde(default)]
    pub vm_usage: Vec<VmUsage>,
}

/// What a VM uses, as its host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmUsage {
    /// The VM.
    pub vm: VmId,
    /// CPU time of its process, over the last seconds.
    pub cpu: MilliCores,
    /// Memory that its guest uses and could not give back; where it does not speak, what the host
    /// holds of its memory.
    pub memory: Bytes,
    /// What the host holds of its memory.
    pub resident: Bytes,
    /// What it does each second.
    #[serde(default)]
    pub rates: VmRates,
}

/// How busy a host is. Kept in memory by the manager, never in the store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostUsage {
    /// CPU in use, all of the machine.
    pub cpu: MilliCores,
    /// Memory in use (total without available).
    pub memory: Bytes,
    /// Disk space free where VMs' disks are.
    pub disk_free: Bytes,
    /// VMs whose QEMU runs.
    pub running_vms: u32,
    /// How its memory is divided; `None` where none of its VMs is elastic.
    #[serde(default)]
    pub division: Option<HostMemory>,
    /// What merging equal pages does.
    #[serde(default)]
    pub deduplication: Option<HostDeduplication>,
    /// Swap space, all of the machine.
    #[serde(default)]
    pub swap: Bytes,
    /// What of it is free.
    #[serde(default)]
    pub swap_free: Bytes,
    /// What it does each second, and what it can do.
    #[serde(default)]
    pub rates: HostRates,
}

/// The answer to a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportReply {
    /// The lease lasts this long from the sending of the report. `None`: hosts have no lease, and
    /// guards enforce none.
    pub lease_ms: Option<u64>,
    /// Report again within this time.
    pub interval_ms: u64,
    /// The newest generation of what the host should do.
    pub desired_generation: u64,
}

/// All that a host should do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredHost {
    /// Grows with every change.
    pub generation: u64,
    /// VMs. One that is not listed is left as it is and reported; only `Absent` removes.
    pub vms: Vec<DesiredVm>,
    /// The networks of those VMs. One that is not listed is removed once no VM here uses it.
    pub networks: Vec<DesiredNetwork>,
}

/// What should be with one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredVm {
    /// The VM.
    pub vm: VmId,
    /// The incarnation: an agent that has seen a higher one ignores this.
    pub incarnation: u64,
    /// What it should be.
    pub wanted: Wanted,
}

/// Present or absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// It should be here.
    Present(Box<DesiredPresent>),
    /// Nothing of it should be here.
    Absent {
        /// Whether its disk is to be deleted too; otherwise another host uses it (shared pool).
        delete_disk: bool,
    },
}

/// What a VM that should be here should be like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredPresent {
    /// Counts the changes of what follows.
    pub generation: u64,
    /// Whether it should run.
    pub power: Power,
    /// With `Stopped`: how long the guest may take to shut down before it is ended.
    pub shutdown_grace_ms: u64,
    /// Its name: the guest's host name.
    pub name: Name,
    /// Its project.
    pub project: ProjectId,
    /// Its project's name.
    pub project_name: Name,
    /// What it was promised, and its limits.
    pub resources: Resources,
    /// What it boots from.
    pub image: DesiredImage,
    /// Where its disk comes from.
    pub disk: DiskOrigin,
    /// Its interfaces; their networks are in [`DesiredHost::networks`].
    pub interfaces: Vec<Interface>,
    /// cloud-init user data.
    pub user_data: Option<String>,
    /// SSH public keys.
    pub ssh_keys: Vec<String>,
    /// What to do when QEMU ends unexpectedly.
    pub restart: RestartPolicy,
    /// Whether its guard ends it when the host's lease has run out.
    pub fenced_by_lease: bool,
    /// Reboots asked for so far: the agent reboots when it has done fewer.
    pub reboots: u64,
    /// What is to be taken from it for now.
    #[serde(default)]
    pub deflation: Option<Deflation>,
    /// How far it gives back what it was promised while others need it.
    #[serde(default)]
    pub elasticity: Elasticity,
    /// When it will be stopped.
    pub end_at: Option<Timestamp>,
    /// When its guest is to be warned of `end_at`; `None` without an end.
    pub warn_at: Option<Timestamp>,
    /// A move to another host that is under way.
    #[serde(default)]
    pub migration: Option<DesiredMigration>,
}

/// Where a VM's disk comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskOrigin {
    /// Made from the image where there is none yet.
    Image,
    /// It exists: if it does not, that is an error, and no new one is made in its place.
    Existing,
}

/// An image as agents need it. Files are fetched by checksum and verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredImage {
    /// Its files.
    pub files: Vec<ImageFile>,
    /// `qcow2` or `raw`.
    pub disk_format: String,
    /// The kernel's command line.
    pub append: Option<String>,
    /// Whether a guest agent is expected.
    pub guest_agent: bool,
}

/// A network that VMs of this host use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredNetwork {
    /// The network.
    pub network: NetworkId,
    /// Its VXLAN identifier.
    pub vni: u32,
    /// Its addresses.
    pub cidr: Cidr,
    /// The guests' MTU, in bytes.
    pub mtu: u16,
    /// Whether guests reach the outside through this host.
    pub outside: bool,
    /// The underlay addresses of the other hosts with VMs on it.
    pub peers: Vec<std::net::IpAddr>,
}

/// What a host observes of one VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ObservedVm {
    /// The VM.
    pub vm: VmId,
    /// The incarnation that it is (or was).
    pub incarnation: u64,
    /// The generation of what was wanted that is now true in every part; lower while the agent works
    /// on it or cannot do it (then `message` says why).
    pub generation: u64,
    /// Where it stands.
    pub phase: ObservedPhase,
    /// What there is to say.
    pub message: Option<String>,
    /// How often it was restarted after a crash.
    pub restarts: u32,
    /// Whether its disk is here.
    pub disk_exists: bool,
    /// What the guest's agent tells, while it answers.
    pub guest: Option<Facts>,
    /// The limits as read back.
    pub limits: Option<ActualLimits>,
    /// How the last deflation went, as long as it lasts.
    #[serde(default)]
    pub deflation: Option<DeflationOutcome>,
    /// What its host decided that it is to have now; `None` while its host has not looked at it.
    #[serde(default)]
    pub share: Option<VmShare>,
    /// What merging equal pages does for it, while it runs.
    #[serde(default)]
    pub deduplication: Option<VmDeduplication>,
    /// How a move stands in which this host has a part; said until the move is no longer listed.
    #[serde(default)]
    pub migration: Option<ObservedMigration>,
}

/// What a VM is to have now of what it was promised, by its host's decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmShare {
    /// The size of its memory.
    pub memory: Bytes,
    /// What is taken from it for now, of what its user leaves it.
    pub taken: Bytes,
    /// Its weight against the other VMs of its host when all want CPU, from 1 to 10,000.
    pub cpu_weight: u16,
    /// Why, for people; empty where it has all that it was promised and wants.
    pub reasons: Vec<String>,
}

/// How short of memory a host is, after Waldspurger (OSDI'02, section 6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum MemoryState {
    /// There is enough.
    #[default]
    High,
    /// Guests are asked for memory.
    Soft,
    /// The host pages out as well.
    Hard,
    /// VMs may not grow either.
    Low,
}

impl std::fmt::Display for MemoryState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::High => "high",
            Self::Soft => "soft",
            Self::Hard => "hard",
            Self::Low => "low",
        })
    }
}

/// How a host's memory is divided among its VMs, by the last decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostMemory {
    /// How short of it the host is.
    pub state: MemoryState,
    /// What is free of what VMs may have.
    pub free: Bytes,
    /// What its VMs do without at present, of what they were promised.
    pub reclaimed: Bytes,
    /// What could not be taken although it is needed.
    pub shortfall: Bytes,
}

/// How a deflation went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeflationOutcome {
    /// The VM's generation at which it was asked for.
    pub generation: u64,
    /// What was to be taken.
    pub wanted: Amount,
    /// What each level gave, in the order in which they were asked.
    pub levels: Vec<LevelOutcome>,
    /// What nobody gave.
    pub missing: Amount,
    /// How long all of it took, in milliseconds.
    pub took_ms: u64,
}

/// What one level gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LevelOutcome {
    /// Which level.
    pub level: Level,
    /// What it gave. Of [`Level::Application`]: what its hooks say that they freed.
    pub gave: Amount,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// What there is to say, such as why it gave nothing.
    #[serde(default)]
    pub note: Option<String>,
}

/// Where a VM stands on its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ObservedPhase {
    /// Being prepared or started.
    Starting,
    /// Its QEMU runs (or is paused by QEMU; then `message` says why).
    Running,
    /// Being shut down.
    Stopping,
    /// No QEMU runs: it was stopped, or powered itself off.
    Stopped,
    /// It cannot be started, or crashed and is not restarted.
    Failed,
    /// Nothing of it is here.
    Absent,
}

/// Limits as the host has them, read back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ActualLimits {
    /// CPU time of all vCPUs together; `None`: not limited.
    pub cpu: Option<MilliCores>,
    /// What the guest has: the machine's memory without what the balloon took.
    pub memory: Option<Bytes>,
    /// The most that the guest can have without a reboot.
    #[serde(default)]
    pub memory_max: Option<Bytes>,
    /// What QEMU and its guest have in the host's memory.
    #[serde(default)]
    pub memory_resident: Option<Bytes>,
    /// What of them lies in the host's swap space.
    #[serde(default)]
    pub memory_swapped: Option<Bytes>,
    /// The most that they may have in the host's memory; `None`: not limited.
    #[serde(default)]
    pub memory_held: Option<Bytes>,
    /// vCPUs plugged in.
    pub vcpus: Option<u32>,
    /// Disk bytes per second; 0: not limited.
    pub disk_bandwidth: Option<plimsoll_model::BytesPerSecond>,
    /// Disk operations per second; 0: not limited.
    pub disk_iops: Option<plimsoll_model::IoPerSecond>,
    /// Network, each direction; 0: not limited.
    pub network: Option<plimsoll_model::BitsPerSecond>,
    /// Size of the disk.
    pub disk: Option<Bytes>,
}

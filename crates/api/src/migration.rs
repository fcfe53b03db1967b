//! Moving a running VM from one host to another.
//!
//! ```text
//!   manager --desired--> source agent                       target agent <--desired-- manager
//!     (Departure)          | 1 prepare ------- peer API -------> |  (Arrival)
//!                          |                  starts QEMU, paused, waiting for memory
//!                          | 2 disk, 3 memory  = tunnel = QEMU -> QEMU
//!                          | 4 VM stands still; `handed over` is written down
//!                          | 5 go ------------- peer API -------> |  the VM runs here
//!                          | <------------------ arrived -------- |
//!   manager <--report: gone-- |                                   |--report: arrived--> manager
//! ```
//!
//! **Exactly one runs.** The VM is the source's until its agent says `go`, and the target's from then
//! on. The target's QEMU is started paused and runs only when told `go`. The source's agent says it
//! only once its own QEMU stands still with all state sent, and writes down before that it may. A
//! source that crashes in between asks the target again: `go` may be repeated, and a target that
//! answers `abandon` never runs the VM for this move. No part of this waits for the manager, which
//! only learns the outcome: a manager that is down holds up no switch.
//!
//! **Incarnations.** The source has the VM as incarnation `i`, the target gets it as a higher one. The
//! manager gives the VM to the target when the target reports that it has arrived, and takes the
//! target's wish back when the source reports that the move has failed: then the VM is the source's
//! for certain. Each attempt has an id of its own and a higher incarnation than any before.

use plimsoll_model::{Bytes, BytesPerSecond, HostId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A host's part in a move, as the manager wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DesiredMigration {
    /// The VM leaves this host.
    Departure(Departure),
    /// The VM comes to this host. Nothing is started on account of the wish to run: the source's
    /// agent says when.
    Arrival(Arrival),
}

impl DesiredMigration {
    /// The move's id.
    #[must_use]
    pub const fn id(&self) -> Uuid {
        match self {
            Self::Departure(departure) => departure.id,
            Self::Arrival(arrival) => arrival.id,
        }
    }
}

/// What the source is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departure {
    /// The move: a new id for each attempt.
    pub id: Uuid,
    /// Where the VM goes.
    pub to: HostId,
    /// Where that host's agent listens: `address:port`.
    pub address: String,
    /// Whether its disk has to be copied; otherwise both hosts see the same.
    pub copy_disk: bool,
    /// What the user allows.
    pub limits: MigrationLimits,
    /// It is to be given up, as long as that is possible.
    #[serde(default)]
    pub cancel: bool,
    /// The target is known to run nothing any more (it is fenced): what was handed over to it is lost
    /// there, and the VM is to be started anew here, from its disk.
    #[serde(default)]
    pub target_lost: bool,
}

/// What the target is to expect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    /// The move.
    pub id: Uuid,
    /// From where the VM comes: only that host's agent may bring it.
    pub from: HostId,
}

/// What a user allows a move to cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrationLimits {
    /// How long the VM may stand still, in milliseconds: 1 to 10,000. What is left to copy is
    /// reckoned against it with the bandwidth that is seen.
    #[serde(default = "default_max_downtime_ms")]
    pub max_downtime_ms: u64,
    /// By when the VM must run on the target, in milliseconds from the beginning of the move: 1,000 to
    /// 86,400,000. Where copying does not converge by then, the rest is fetched afterwards
    /// (post-copy) or the move is given up.
    #[serde(default = "default_deadline_ms")]
    pub deadline_ms: u64,
    /// The most that is sent, disk and memory each; 0: no limit.
    #[serde(default = "default_bandwidth")]
    pub bandwidth: BytesPerSecond,
    /// Whether the VM may run on the target before all of its memory is there. From then on the loss
    /// of either host loses what the VM has in memory.
    #[serde(default = "default_post_copy")]
    pub post_copy: bool,
}

const fn default_max_downtime_ms() -> u64 {
    100
}

const fn default_deadline_ms() -> u64 {
    300_000
}

const fn default_bandwidth() -> BytesPerSecond {
    BytesPerSecond(1 << 30)
}

const fn default_post_copy() -> bool {
    true
}

impl Default for MigrationLimits {
    fn default() -> Self {
        Self {
            max_downtime_ms: default_max_downtime_ms(),
            deadline_ms: default_deadline_ms(),
            bandwidth: default_bandwidth(),
            post_copy: default_post_copy(),
        }
    }
}

/// How a move stands, as one of its hosts observes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedMigration {
    /// The move.
    pub id: Uuid,
    /// How far it is here.
    pub stage: MigrationStage,
    /// What there is to say, such as why it failed.
    #[serde(default)]
    pub message: Option<String>,
    /// How much is done; of the source.
    #[serde(default)]
    pub progress: MigrationProgress,
    /// What it cost, once the VM has moved; of the source.
    #[serde(default)]
    pub figures: Option<MigrationFigures>,
}

/// How far a move is.
///
/// ```text
///   source:  preparing -> copying_disk -> copying_memory -> switching -> gone
///               |              |               |     \          |  \
///               |              |               |   post_copy ---+   (asks the target, until it knows)
///               +--------------+---------------+----------------+--> failed
///   target:  preparing -> waiting -> arrived            (or failed, before it runs)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum MigrationStage {
    /// The target's QEMU is being made ready.
    Preparing,
    /// The disk is copied, while the VM runs.
    CopyingDisk,
    /// Memory is copied, while the VM runs.
    CopyingMemory,
    /// The VM stands still, or may: the last of it is handed over.
    Switching,
    /// The VM runs on the target, and the rest of its memory follows.
    PostCopy,
    /// Source, last word: the VM runs on the target.
    Gone,
    /// Source, last word: the VM is the source's, and the target never ran it nor ever will for this
    /// move. Target: it cannot take the VM; what counts is the source's word.
    Failed,
    /// Target: its QEMU waits for memory.
    Waiting,
    /// Target, last word: the VM runs here.
    Arrived,
}

/// How much of a move is done. Zero: not known yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrationProgress {
    /// The VM's memory.
    pub memory_total: Bytes,
    /// What of it is still to be copied, in this pass.
    pub memory_left: Bytes,
    /// What the disk's copy comes to.
    pub disk_total: Bytes,
    /// What of it is left.
    pub disk_left: Bytes,
    /// How fast the guest writes to memory.
    pub dirty_rate: BytesPerSecond,
    /// Passes over memory that were begun.
    pub passes: u64,
    /// Since the move began, in milliseconds.
    pub elapsed_ms: u64,
    /// How long the move will take in all, in milliseconds, by what is seen so far.
    pub predicted_total_ms: u64,
    /// How long the VM will stand still, in milliseconds.
    pub predicted_downtime_ms: u64,
}

/// What a move cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrationFigures {
    /// From the beginning to the VM's first instruction on the target, in milliseconds.
    pub total_ms: u64,
    /// How long the VM stood still, in milliseconds: until the source knew that it runs.
    pub downtime_ms: u64,
    /// Memory that was sent.
    pub memory_sent: Bytes,
    /// Disk that was sent.
    pub disk_sent: Bytes,
    /// Passes over memory.
    pub passes: u64,
    /// Whether memory followed after the switch.
    pub post_copied: bool,
}

/// The machine that comes, as the target has to build it: source agent to target agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrepareArrival {
    /// QEMU's name of the machine, with its version.
    pub machine_type: String,
    /// QEMU's version.
    pub qemu_version: String,
    /// What runs its instructions: `kvm` or `tcg`.
    pub accelerator: String,
    /// The processor's features that its guest may use, where they are the host's own: sorted.
    #[serde(default)]
    pub cpu_features: Vec<String>,
    /// vCPUs that are plugged in.
    pub vcpus: u32,
    /// vCPUs that it can have.
    pub max_vcpus: u32,
    /// Memory with which it booted.
    pub memory: Bytes,
    /// Memory that it can have.
    pub max_memory: Bytes,
    /// Interfaces.
    pub interfaces: u32,
    /// The size of its disk, and whether it comes with it.
    pub disk_size: Bytes,
    /// The disk is copied; otherwise the target must see the same one.
    pub copy_disk: bool,
    /// Memory may follow after the switch.
    pub post_copy: bool,
    /// What is sent of each at most; 0: no limit.
    pub bandwidth: BytesPerSecond,
}

/// The target is ready to take memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrivalPrepared {
    /// The port at which its end of the tunnel listens, at the agent's own address.
    pub tunnel_port: u16,
    /// Whether memory may follow after the switch on this target too.
    pub post_copy: bool,
}

/// What became of a move, as the target says: the answer to `go` and to `abandon`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArrivalVerdict {
    /// The VM runs there.
    Runs,
    /// It does not, and never will for this move.
    Never,
}

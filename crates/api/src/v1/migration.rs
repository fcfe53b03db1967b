//! Moving running VMs, and emptying hosts.

use plimsoll_model::{Name, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::migration::{MigrationFigures, MigrationLimits, MigrationProgress, MigrationStage};

/// Has a running VM moved to another host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrateRequest {
    /// Where to; without, where the VM's policy would have it, among the other hosts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Name>,
    /// What the move may cost.
    pub limits: MigrationLimits,
    /// Only says where the VM would go, and why: nothing moves.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// Where a VM is to go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrateResponse {
    /// Its host now.
    pub from: Name,
    /// The host to which it goes, or would go.
    pub to: Name,
    /// Why there.
    pub reason: String,
    /// Whether its disk has to be copied: it is on its host, and not in a shared pool.
    pub copy_disk: bool,
    /// The VM: with the move in `migration`, but for a dry run.
    pub vm: super::VmView,
}

/// Who asked for a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum MigrationCause {
    /// A user, for this VM.
    User,
    /// Its host is emptied.
    Drain,
    /// The cluster is balanced.
    Balance,
}

/// A move that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrationView {
    /// The move.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Uuid))]
    pub id: Uuid,
    /// The host that the VM leaves.
    pub from: Name,
    /// The host to which it goes.
    pub to: Name,
    /// Why to that one.
    pub reason: String,
    /// Who asked for it.
    pub cause: MigrationCause,
    /// How far it is, as the source says.
    pub stage: MigrationStage,
    /// What there is to say, such as for what it waits.
    pub message: Option<String>,
    /// How much is done, as the source says.
    pub progress: MigrationProgress,
    /// What it may cost.
    pub limits: MigrationLimits,
    /// Whether the disk is copied.
    pub copy_disk: bool,
    /// Whether it is to be given up.
    pub cancelled: bool,
    /// When it began.
    pub begun_at: Timestamp,
}

/// What became of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum MigrationOutcome {
    /// The VM runs on the target.
    Moved,
    /// It stayed where it was.
    Failed,
    /// It stayed, as somebody asked.
    Cancelled,
}

/// A VM's last move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LastMigration {
    /// The move.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Uuid))]
    pub id: Uuid,
    /// The host from which it went.
    pub from: Name,
    /// The host to which it went, or should have gone.
    pub to: Name,
    /// Who asked for it.
    pub cause: MigrationCause,
    /// What became of it.
    pub outcome: MigrationOutcome,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What it cost; shortly after a move the source may not have told yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub figures: Option<MigrationFigures>,
    /// What it was reckoned to cost when it began, as far as anybody had reckoned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<MigrationPrediction>,
    /// When it began.
    pub begun_at: Timestamp,
    /// When it was over.
    pub ended_at: Timestamp,
}

/// What a move will cost, as its source reckoned when it had begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrationPrediction {
    /// How long it takes, in milliseconds.
    pub total_ms: u64,
    /// How long the VM stands still, in milliseconds.
    pub downtime_ms: u64,
}

/// Empties a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DrainRequest {
    /// Only places nothing new there: what is there stays.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cordon_only: bool,
    /// How many VMs move at once: 1 to 64.
    pub parallel: u32,
    /// What each move may cost.
    pub limits: MigrationLimits,
}

impl Default for DrainRequest {
    fn default() -> Self {
        Self { cordon_only: false, parallel: 2, limits: MigrationLimits::default() }
    }
}

/// What becomes of a VM of a host that is emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum DrainProspect {
    /// It moves already.
    Moving,
    /// It will move.
    Moves,
    /// It does not run, and its disk is in a shared pool: it is placed elsewhere when it starts.
    StartsElsewhere,
    /// It stays, at least for now.
    Stays,
}

/// A VM of a host that is emptied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DrainedVm {
    /// Its project's name.
    pub project: Name,
    /// Its name.
    pub vm: Name,
    /// What becomes of it.
    pub prospect: DrainProspect,
    /// Where it goes, as things are now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Name>,
    /// Why it stays, or did not move yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What becomes of a drain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DrainResponse {
    /// The host now.
    pub host: super::HostView,
    /// Its VMs.
    pub vms: Vec<DrainedVm>,
}

/// A drain that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DrainView {
    /// Since when.
    pub since: Timestamp,
    /// How many VMs move at once.
    pub parallel: u32,
    /// What each move may cost.
    pub limits: MigrationLimits,
    /// VMs that could not be moved, and why; they are tried again.
    pub waiting: Vec<DrainedVm>,
}

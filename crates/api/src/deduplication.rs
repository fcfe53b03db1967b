//! Page deduplication as it is reported: of a VM, and of a host.

use std::fmt;

use plimsoll_model::{Bytes, MilliCores, Name};
use serde::{Deserialize, Serialize};

/// Whether a VM's memory may be merged, decided at its start and true until its QEMU ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Merging {
    /// With that of other VMs of its project.
    WithinProject,
    /// With that of any VM: the host is configured so, for a demonstration.
    AcrossProjects,
    /// It may not: another project's VMs are merged on this host.
    OtherProject,
    /// It may not: another project's VMs, about to start, had more to gain.
    Outweighed,
    /// It may not: processes that are not of this agent are merged on this host.
    Strangers,
    /// It may not: another agent of the machine sets the scanner.
    OtherAgent,
    /// It may not: the host is configured so.
    SwitchedOff,
    /// It may not: the host's kernel merges nothing, or the agent may not set its scanner.
    Unsupported,
}

impl Merging {
    /// Whether it may be merged.
    #[must_use]
    pub const fn is_allowed(self) -> bool {
        matches!(self, Self::WithinProject | Self::AcrossProjects)
    }
}

impl fmt::Display for Merging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::WithinProject => "with VMs of its project",
            Self::AcrossProjects => "with VMs of every project (forced by the host)",
            Self::OtherProject => "no: another project's VMs are merged on this host",
            Self::Outweighed => "no: another project's VMs that were to start had more to gain",
            Self::Strangers => "no: processes that are no VMs of this host's are merged on it",
            Self::OtherAgent => "no: another agent of this machine sets the kernel's scanner",
            Self::SwitchedOff => "no: the host is configured so",
            Self::Unsupported => "no: the host cannot (`plimsoll doctor` there tells why)",
        })
    }
}

/// What merging equal pages does for a VM that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmDeduplication {
    /// Whether it may be merged, or why not.
    pub merging: Merging,
    /// How much of its memory stands in pages that are merged.
    pub merged: Bytes,
    /// Its part of what the host saves: the merged pages of all VMs less the pages that stand for
    /// them, in proportion to `merged`.
    pub saved: Bytes,
    /// What the kernel's records on its pages take.
    pub overhead: Bytes,
}

/// What merging equal pages does for a project: of its VMs that run, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProjectDeduplication {
    /// VMs that may be merged.
    pub vms: u32,
    /// What is saved by them.
    pub saved: Bytes,
    /// What the kernel's records on their pages take.
    pub overhead: Bytes,
}

/// What the scanner is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ScannerPhase {
    /// It stands still.
    #[default]
    Off,
    /// It goes fast: pages may have become equal.
    Converging,
    /// It goes at a trickle: nothing was found.
    Idle,
}

impl fmt::Display for ScannerPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Off => "off",
            Self::Converging => "converging",
            Self::Idle => "idle",
        })
    }
}

/// What merging equal pages does for a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostDeduplication {
    /// Whose VMs are merged; none while no mergeable VM runs, or when all are.
    #[serde(default)]
    pub project: Option<Name>,
    /// Whether projects are merged with each other: the host is configured so.
    #[serde(default)]
    pub across_projects: bool,
    /// Mergeable VMs that run.
    pub vms: u32,
    /// What is saved: the merged pages less those that stand for them.
    pub saved: Bytes,
    /// What the kernel's records take.
    pub overhead: Bytes,
    /// What the scanner is at.
    pub phase: ScannerPhase,
    /// What of a core the scanner took since the last look.
    pub scanner_cpu: MilliCores,
    /// Why nothing is merged, or not as it should be.
    #[serde(default)]
    pub note: Option<String>,
}

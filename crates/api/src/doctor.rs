//! What a host can and cannot do: the answer of `plimsoll doctor`.

use serde::{Deserialize, Serialize};

/// How VMs run on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum DoctorAccelerator {
    /// By the processor, through the kernel.
    Kvm,
    /// Translated by QEMU: everything works, some ten times slower.
    Tcg,
}

impl DoctorAccelerator {
    /// The name that QEMU uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum CheckStatus {
    /// It works.
    Ok,
    /// It works, but not as it should.
    Warning,
    /// It is not there.
    Missing,
    /// It is there, but does not work.
    Unusable,
}

impl CheckStatus {
    /// The name as on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Missing => "missing",
            Self::Unusable => "unusable",
        }
    }
}

/// One thing that a host can or cannot do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DoctorCheck {
    /// What was looked at, such as `kvm`. Stable.
    pub name: String,
    /// What was found.
    pub status: CheckStatus,
    /// Whether no VM can run here unless it is `ok` or `warning`.
    pub required: bool,
    /// What was seen, with numbers.
    pub evidence: String,
    /// What to do about it, and what does not work until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl DoctorCheck {
    /// Whether VMs cannot run because of it.
    #[must_use]
    pub const fn is_fatal(&self) -> bool {
        self.required && matches!(self.status, CheckStatus::Missing | CheckStatus::Unusable)
    }
}

/// All checks of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DoctorReport {
    /// The version of Plimsoll that looked.
    pub version: String,
    /// The kernel's release.
    pub kernel: String,
    /// How VMs will run.
    pub accelerator: DoctorAccelerator,
    /// At which rate 64-bit kernel-mode code ran under KVM, in instructions per second; `None`
    /// where it could not be run.
    #[serde(default)]
    pub kvm_instructions_per_second: Option<u64>,
    /// QEMU's version, where there is one.
    #[serde(default)]
    pub qemu_version: Option<String>,
    /// Whether VMs can run here.
    pub usable: bool,
    /// The checks, in a fixed order.
    pub checks: Vec<DoctorCheck>,
    /// How long looking took, in milliseconds.
    pub duration_ms: u64,
}

impl DoctorReport {
    /// The check of that name.
    #[must_use]
    pub fn check(&self, name: &str) -> Option<&DoctorCheck> {
        self.checks.iter().find(|check| check.name == name)
    }
}

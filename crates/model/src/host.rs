//! Hosts: what they are and the machine of their phases.
//!
//! ```text
//!            Report                 Silent              SilentTooLong
//!   (join) ----------> up ------------------> unreachable -------------> dead
//!                      ^  <------------------     |                       |
//!                      |          Report          | Fenced                | Fenced
//!                      |                          v                       v
//!                      +------------------------- fenced <----------------+
//!                         Report (the agent has confirmed that it runs none of the VMs
//!                         that were placed elsewhere meanwhile)
//! ```
//!
//! Only a fenced host's VMs may be started elsewhere. `fenced` is entered when it is *known* that
//! the host runs none of them: see [`Fencing`].

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    Timestamp,
    id::HostId,
    name::{Label, Name},
    resources::Resources,
};

/// What a host says of itself when it joins and whenever it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostSpec {
    /// The rack; hosts that name none are each a rack of their own.
    #[serde(default)]
    pub rack: Option<Label>,
    /// The zone; hosts that name none are all in one zone.
    #[serde(default)]
    pub zone: Option<Label>,
    /// Labels for constraints.
    #[serde(default)]
    pub labels: BTreeMap<Label, Label>,
    /// What VMs can use of it: what the machine has without what is kept back for the host itself.
    pub capacity: Resources,
    /// Where its agent listens: `address:port`.
    pub agent_address: String,
    /// The address to which other hosts send VXLAN packets.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub underlay_address: std::net::IpAddr,
    /// Where disks of VMs are kept.
    pub storage: StoragePool,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// QEMU's version.
    pub qemu_version: String,
    /// The agent's version.
    pub agent_version: String,
}

/// Where a host keeps its VMs' disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum StoragePool {
    /// On the host itself: a disk is lost with it.
    Local,
    /// On a file system that all hosts which name the same pool have mounted.
    Shared {
        /// The pool.
        pool: Name,
    },
}

/// Where a host stands. See the module's diagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum HostPhase {
    /// It reports in time.
    Up,
    /// It has not reported for a while.
    Unreachable,
    /// It has not reported for so long that its VMs are to be restarted elsewhere, as soon as it is
    /// known that they no longer run.
    Dead,
    /// It is known to run none of its VMs.
    Fenced,
}

impl fmt::Display for HostPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Up => "up",
            Self::Unreachable => "unreachable",
            Self::Dead => "dead",
            Self::Fenced => "fenced",
        })
    }
}

/// What happens to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// Its agent reported.
    Report,
    /// No report for the unreachable time.
    Silent,
    /// No report for the dead time.
    SilentTooLong,
    /// It is known to be fenced.
    Fenced,
}

/// An event that the phase does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a host that is {from} cannot take {event:?}")]
pub struct IllegalHostTransition {
    /// The phase.
    pub from: HostPhase,
    /// The event.
    pub event: HostEvent,
}

impl HostPhase {
    /// The phase after an event.
    ///
    /// # Errors
    /// The event is not legal in this phase.
    pub const fn next(self, event: HostEvent) -> Result<Self, IllegalHostTransition> {
        match (self, event) {
            (_, HostEvent::Report) => Ok(Self::Up),
            (Self::Up, HostEvent::Silent) => Ok(Self::Unreachable),
            (Self::Up | Self::Unreachable, HostEvent::SilentTooLong) => Ok(Self::Dead),
            (Self::Unreachable | Self::Dead | Self::Fenced, HostEvent::Fenced) => Ok(Self::Fenced),
            (from, event) => Err(IllegalHostTransition { from, event }),
        }
    }
}

/// How it is known that a host runs none of its VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Fencing {
    /// An operator said so.
    Operator,
    /// The configured fencing command succeeded.
    Command,
    /// Its lease ran out: the guards on the host have killed every VM that may be restarted.
    Lease,
    /// It came back with another boot id: nothing from before the reboot can be running.
    Reboot,
}

/// A host as the manager keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Host {
    /// Its number.
    pub id: HostId,
    /// Its name, unique in the cluster.
    pub name: Name,
    /// What it said of itself.
    pub spec: HostSpec,
    /// Where it stands.
    pub phase: HostPhase,
    /// False while it is drained: nothing new is placed here.
    pub schedulable: bool,
    /// How it came to be fenced, if it is.
    #[serde(default)]
    pub fencing: Option<Fencing>,
    /// The kernel's boot id at its last report.
    #[serde(default)]
    pub boot_id: Option<String>,
    /// Since when it is in this phase.
    pub phase_since: Timestamp,
    /// When it joined.
    pub joined_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_silence_leads_to_fencing_and_a_report_leads_back() {
        use HostEvent::{Fenced, Report, Silent, SilentTooLong};
        let up = HostPhase::Up;
        assert_eq!(up.next(Silent), Ok(HostPhase::Unreachable));
        assert_eq!(HostPhase::Unreachable.next(SilentTooLong), Ok(HostPhase::Dead));
        assert_eq!(HostPhase::Dead.next(Fenced), Ok(HostPhase::Fenced));
        assert_eq!(HostPhase::Fenced.next(Report), Ok(up));
        assert!(up.next(Fenced).is_err());
        assert!(HostPhase::Fenced.next(Silent).is_err());
    }
}

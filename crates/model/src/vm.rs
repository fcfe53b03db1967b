//! Virtual machines: what is wanted of them, what is seen of them, and the machine of their phases.
//!
//! ```text
//!              Placed             Started
//!   pending ----------> starting ---------> running <------------+
//!    | ^  ^                |  |               |  |  |             |
//!    | |  | Displaced      |  | Crashed       |  |  | StopWanted  | Started (agent restarts it)
//!    | |  +----------------+  v               |  |  v             |
//!    +-|---- Crashed -----> failed <----------+  |  stopping -----+
//!      |                      |       Crashed    |     | Exited
//!      |   StartWanted        | StartWanted      |     v
//!      +----------------------+------------------+-- stopped
//!                                        Exited
//!   Lost: starting, running, stopping, failed -> unknown (its host is silent); Seen leads back.
//!   DeleteWanted: any -> deleting, the last phase; the record goes when every host that may hold
//!   a trace of the VM has confirmed that it holds none.
//! ```
//!
//! The manager owns the record. The agent reports what it observes with the incarnation and
//! generation to which it belongs, so that late and doubled reports do no harm.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    Timestamp,
    constraint::Constraint,
    deflation::Deflation,
    elasticity::Elasticity,
    id::{HostId, ProjectId, VmId},
    name::Name,
    network::Interface,
    policy::Policy,
    resources::Resources,
};

/// What a user wants of a VM. Changing it makes a new generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmSpec {
    /// What it is promised and held to.
    pub resources: Resources,
    /// The name of an image of its project, or of a public one.
    pub image: Name,
    /// Networks of its project, one interface each, in this order. Without any it has no network.
    #[serde(default)]
    pub networks: Vec<Name>,
    /// The application of which it is a part.
    #[serde(default)]
    pub application: Option<Name>,
    /// The placement groups to which it belongs.
    #[serde(default)]
    pub groups: BTreeSet<Name>,
    /// What it asks of its place.
    #[serde(default)]
    pub constraints: Vec<Constraint>,
    /// cloud-init user data, given to the guest on a read-only disk. At most 64 KiB.
    #[serde(default)]
    pub user_data: Option<String>,
    /// SSH public keys for the image's default user.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// Before when it is not started; without, it may start at once.
    #[serde(default, alias = "start_at")]
    pub start_after: Option<Timestamp>,
    /// For how long it is to run, in milliseconds: set in place of `end_at`, which it becomes when
    /// the VM starts. A VM that has one, and for which there is no room at present, is booked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// By when all of its duration must be over: without an interval before it, it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// When to stop it, after a warning to the guest.
    #[serde(default)]
    pub end_at: Option<Timestamp>,
    /// What the agent does when QEMU ends unexpectedly.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// What the manager does when its host is fenced.
    #[serde(default)]
    pub on_host_failure: OnHostFailure,
    /// How far it gives back what it was promised while its host needs it for others.
    #[serde(default)]
    pub elasticity: Elasticity,
}

impl VmSpec {
    /// A VM with these resources and this image, and nothing else asked for.
    #[must_use]
    pub fn new(resources: Resources, image: Name) -> Self {
        Self {
            resources,
            image,
            networks: Vec::new(),
            application: None,
            groups: BTreeSet::new(),
            constraints: Vec::new(),
            user_data: None,
            ssh_keys: Vec::new(),
            start_after: None,
            duration_ms: None,
            deadline: None,
            end_at: None,
            restart: RestartPolicy::default(),
            on_host_failure: OnHostFailure::default(),
            elasticity: Elasticity::default(),
        }
    }
}

/// What happens when a VM's QEMU ends although it should run. A guest that powers itself off has
/// ended as it wished and is not restarted, but for `always`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RestartPolicy {
    /// Started again after a crash, with growing pauses.
    #[default]
    OnFailure,
    /// Started again whatever ended it.
    Always,
    /// Left as it is.
    Never,
}

/// What happens to a VM whose host is fenced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum OnHostFailure {
    /// Restarted elsewhere with its disk if that is in a shared pool; otherwise it waits.
    #[default]
    Restart,
    /// Restarted elsewhere; with a new disk from its image if the old one is out of reach.
    Recreate,
    /// Waits for its host.
    Wait,
}

/// Whether a VM should run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Power {
    /// It should run.
    #[default]
    Running,
    /// It should not; its disk is kept.
    Stopped,
}

/// Where a VM stands. See the module's diagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum VmPhase {
    /// It has no host: its time has not come (a host may be booked for it), or none can hold it.
    Pending,
    /// A host was chosen and is starting it.
    Starting,
    /// It runs.
    Running,
    /// It is asked to shut down.
    Stopping,
    /// It does not run; its disk is kept.
    Stopped,
    /// It could not be started, or ended unexpectedly and is not restarted.
    Failed,
    /// Its host is silent: it may or may not run.
    Unknown,
    /// It is being removed.
    Deleting,
}

impl fmt::Display for VmPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pending => "pending",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Deleting => "deleting",
        })
    }
}

/// What happens to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmEvent {
    /// A host was chosen.
    Placed,
    /// It must leave its host: no host holds it now.
    Displaced,
    /// Its QEMU runs.
    Started,
    /// Its QEMU ended as wished.
    Exited,
    /// Its QEMU ended otherwise, or could not be started: its time is over, for one that waits.
    Crashed,
    /// It should run.
    StartWanted,
    /// It should not run.
    StopWanted,
    /// Its host went silent.
    Lost,
    /// It should not exist.
    DeleteWanted,
}

/// An event that the phase does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a VM that is {from} cannot take {event:?}")]
pub struct IllegalVmTransition {
    /// The phase.
    pub from: VmPhase,
    /// The event.
    pub event: VmEvent,
}

impl VmPhase {
    /// The phase after an event.
    ///
    /// # Errors
    /// The event is not legal in this phase.
    pub const fn next(self, event: VmEvent) -> Result<Self, IllegalVmTransition> {
        use VmEvent::{
            Crashed, DeleteWanted, Displaced, Exited, Lost, Placed, StartWanted, Started,
            StopWanted,
        };
        use VmPhase::{Deleting, Failed, Pending, Running, Starting, Stopped, Stopping, Unknown};
        match (self, event) {
            (_, DeleteWanted) => Ok(Deleting),
            (Deleting, _) => Err(IllegalVmTransition { from: self, event }),
            (Pending | Stopped | Failed, Placed) => Ok(Starting),
            (_, Displaced) => Ok(Pending),
            (Starting | Running | Unknown | Failed | Stopped, Started) => Ok(Running),
            (Stopping, Started) => Ok(Stopping),
            (Starting | Running | Stopping | Stopped | Unknown | Failed, Exited) => Ok(Stopped),
            // One that waits has failed when it can no longer have what it waits for.
            (Pending | Starting | Running | Unknown | Failed | Stopped, Crashed) => Ok(Failed),
            // It was to end: that it ended badly changes nothing.
            (Stopping, Crashed) => Ok(Stopped),
            (Stopped | Failed | Pending, StartWanted) => Ok(Pending),
            (Starting | Running | Unknown, StartWanted) => Ok(self),
            (Stopping, StartWanted) => Ok(Starting),
            (Pending | Stopped | Failed, StopWanted) => Ok(Stopped),
            (Starting | Running | Stopping | Unknown, StopWanted) => Ok(Stopping),
            (Starting | Running | Stopping | Failed | Unknown, Lost) => Ok(Unknown),
            (Pending | Stopped, Lost) => Ok(self),
            (from, event) => Err(IllegalVmTransition { from, event }),
        }
    }
}

/// On which host a VM is, and why there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Placement {
    /// The host.
    pub host: HostId,
    /// The policy that chose it.
    pub policy: Policy,
    /// The reason in a few words, such as `most-free 0.812`.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

/// Where a VM's disk is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum DiskLocation {
    /// On one host's own storage: the VM can start only there.
    Host {
        /// The host.
        host: HostId,
    },
    /// In a shared pool: the VM can start on every host that has it.
    Pool {
        /// The pool.
        pool: Name,
    },
}

/// A VM as the manager keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// Its project.
    pub project: ProjectId,
    /// Its name, unique in the project.
    pub name: Name,
    /// What is wanted.
    pub spec: VmSpec,
    /// Whether it should run.
    pub power: Power,
    /// Counts the changes of what is wanted.
    pub generation: u64,
    /// Counts the hosts to which it was given: of two copies only the higher may run.
    pub incarnation: u64,
    /// How often a reboot was asked for.
    #[serde(default)]
    pub reboots: u64,
    /// What is taken from it for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deflation: Option<Deflation>,
    /// Where it is.
    #[serde(default)]
    pub placement: Option<Placement>,
    /// Where its disk is, once a host has reported one: from then on no new one is made in its place.
    #[serde(default)]
    pub disk: Option<DiskLocation>,
    /// The policy with which it is placed; without, the cluster's.
    #[serde(default)]
    pub policy: Option<Policy>,
    /// Where it stands.
    pub phase: VmPhase,
    /// Since when it is in this phase.
    pub phase_since: Timestamp,
    /// What there is to say about it, such as why it failed or waits.
    #[serde(default)]
    pub message: Option<String>,
    /// Its network interfaces, with the addresses handed out to it.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// The generation that its host has carried out.
    #[serde(default)]
    pub observed_generation: u64,
    /// When it was created.
    pub created_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_deleting() {
        for event in [
            VmEvent::Placed,
            VmEvent::Started,
            VmEvent::Exited,
            VmEvent::Crashed,
            VmEvent::StartWanted,
            VmEvent::StopWanted,
            VmEvent::Lost,
            VmEvent::Displaced,
        ] {
            assert!(VmPhase::Deleting.next(event).is_err());
        }
        assert_eq!(VmPhase::Deleting.next(VmEvent::DeleteWanted), Ok(VmPhase::Deleting));
    }

    #[test]
    fn the_start_is_also_known_by_its_first_name() {
        let text = r#"{"resources": {}, "image": "tiny", "start_at": "2030-01-01T00:00:00Z"}"#;
        let spec: VmSpec = serde_json::from_str(text).unwrap();
        assert_eq!(spec.start_after, Some("2030-01-01T00:00:00Z".parse().unwrap()));
        assert_eq!((spec.duration_ms, spec.deadline), (None, None));
        let written = serde_json::to_string(&spec).unwrap();
        assert!(written.contains("start_after") && !written.contains("start_at\""), "{written}");
        assert_eq!(serde_json::from_str::<VmSpec>(&written).unwrap(), spec);
    }

    #[test]
    fn a_vm_runs_stops_and_runs_again() {
        let walk = [
            (VmEvent::Placed, VmPhase::Starting),
            (VmEvent::Started, VmPhase::Running),
            (VmEvent::Lost, VmPhase::Unknown),
            (VmEvent::Started, VmPhase::Running),
            (VmEvent::StopWanted, VmPhase::Stopping),
            (VmEvent::Started, VmPhase::Stopping),
            (VmEvent::Exited, VmPhase::Stopped),
            (VmEvent::StartWanted, VmPhase::Pending),
            (VmEvent::Placed, VmPhase::Starting),
            (VmEvent::Crashed, VmPhase::Failed),
        ];
        let mut phase = VmPhase::Pending;
        for (event, expected) in walk {
            phase = phase.next(event).unwrap();
            assert_eq!(phase, expected, "{event:?}");
        }
    }
}

//! The cluster's log: what happened to whom, when, and who asked for it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    Timestamp,
    id::{EventSequence, HostId, ImageId, NetworkId, ProjectId, TokenId, VmId},
    name::Name,
};

/// How much an event matters to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Severity {
    /// As it should be.
    Info,
    /// Somebody may want to look.
    Warning,
    /// Something does not work.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// Whom an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Subject {
    /// A VM.
    Vm {
        /// Its id.
        id: VmId,
        /// Its name.
        name: Name,
    },
    /// A host.
    Host {
        /// Its id.
        id: HostId,
        /// Its name.
        name: Name,
    },
    /// A project.
    Project {
        /// Its id.
        id: ProjectId,
        /// Its name.
        name: Name,
    },
    /// A network.
    Network {
        /// Its id.
        id: NetworkId,
        /// Its name.
        name: Name,
    },
    /// An image.
    Image {
        /// Its id.
        id: ImageId,
        /// Its name.
        name: Name,
    },
    /// A token.
    Token {
        /// Its id.
        id: TokenId,
    },
    /// The cluster as a whole.
    Cluster,
}

/// What happened. Stable names: programs match on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum EventKind {
    VmCreated,
    VmChanged,
    VmBooked,
    VmBookingMoved,
    VmBookingLost,
    VmPlaced,
    VmUnplaceable,
    VmStarted,
    VmStopped,
    VmCrashed,
    VmRebooted,
    /// A part of what it has is to be taken.
    VmDeflated,
    /// What was taken is to be given back.
    VmInflated,
    /// Its host takes memory from it for others.
    VmReclaimed,
    /// It has all of its memory again.
    VmRestored,
    /// It is to move to another host.
    VmMigrating,
    /// It has moved.
    VmMigrated,
    /// What its move cost.
    VmMigrationMeasured,
    /// It stayed where it was.
    VmMigrationFailed,
    /// It stayed where it was, as somebody asked.
    VmMigrationCancelled,
    VmEndingSoon,
    VmEnded,
    VmLost,
    VmRecovered,
    VmDisplaced,
    VmDeleteRequested,
    VmDeleted,
    VmUnclaimed,
    VmAccessed,
    HostJoined,
    HostChanged,
    HostUp,
    HostUnreachable,
    HostDead,
    HostFenced,
    HostFencingFailed,
    HostDraining,
    HostUndrained,
    HostRemoved,
    /// How short of memory it is has changed.
    HostMemory,
    ProjectCreated,
    ProjectChanged,
    ProjectDeleted,
    ProjectOutOfCredits,
    NetworkCreated,
    NetworkDeleted,
    ImageCreated,
    ImageReady,
    ImageDeleted,
    TokenCreated,
    TokenUsed,
    TokenRevoked,
    SettingsChanged,
    ManagerStarted,
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One source of the names: what serde writes.
        Serialize::serialize(self, f)
    }
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Event {
    /// Its place in the log.
    pub sequence: EventSequence,
    /// When.
    pub at: Timestamp,
    /// How much it matters.
    pub severity: Severity,
    /// What.
    pub kind: EventKind,
    /// To whom.
    pub subject: Subject,
    /// The project that may see it; without, only those who may see the cluster.
    pub project: Option<ProjectId>,
    /// Who asked for it: a token; without, Plimsoll itself.
    pub actor: Option<TokenId>,
    /// What there is to say.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_print_as_they_are_on_the_wire() {
        assert_eq!(EventKind::HostFenced.to_string(), "host_fenced");
    }
}

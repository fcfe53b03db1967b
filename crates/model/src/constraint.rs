//! What a VM asks of the place where it runs, beside room.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::name::{Label, Name};

/// Whether breaking a rule is out of the question or only a pity.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Strength {
    /// A host that breaks it is refused.
    #[default]
    Required,
    /// Among the hosts that can hold the VM, those that break fewer preferred rules come first,
    /// before any score is compared.
    Preferred,
}

/// How near is near: two hosts of the same rack share the failure of that rack.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Scope {
    /// One host.
    #[default]
    Host,
    /// All hosts of one rack (of one zone: racks of different zones differ).
    Rack,
    /// All hosts of one zone.
    Zone,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Host => "host",
            Self::Rack => "rack",
            Self::Zone => "zone",
        })
    }
}

/// Who may not be beside an exclusive VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ExclusiveAgainst {
    /// VMs of any other project.
    OtherProjects,
    /// VMs of any other application, of the same project too; a VM without an application counts
    /// as an application of its own.
    OtherApplications,
}

/// One rule. Groups are placement groups: a VM lists those to which it belongs, and rules speak of
/// the members within the same project.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Rule {
    /// In the same host, rack or zone as every member of the group that is placed. While none is
    /// placed any host will do. A required rule also draws later members to where this VM runs.
    Affinity {
        /// The placement group.
        group: Name,
        /// How near.
        #[serde(default)]
        scope: Scope,
    },
    /// In no host, rack or zone where another member of the group is. A required rule also keeps
    /// later members away from where this VM runs.
    AntiAffinity {
        /// The placement group.
        group: Name,
        /// How near is too near.
        #[serde(default)]
        scope: Scope,
    },
    /// Alone on its host, but for VMs of the same project or application. A required rule also
    /// keeps others away later.
    Exclusive {
        /// Beside whom it will not run.
        against: ExclusiveAgainst,
    },
    /// On a host that has this label with one of these values.
    HostLabel {
        /// The label's key.
        key: Label,
        /// The values that will do.
        values: Vec<Label>,
    },
}

/// A rule and how much it matters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Constraint {
    /// Required or preferred.
    #[serde(default)]
    pub strength: Strength,
    /// The rule.
    #[serde(flatten)]
    pub rule: Rule,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Affinity { group, scope } => write!(f, "same {scope} as group {group}"),
            Self::AntiAffinity { group, scope } => write!(f, "other {scope} than group {group}"),
            Self::Exclusive { against: ExclusiveAgainst::OtherProjects } => {
                f.write_str("no other project on the host")
            }
            Self::Exclusive { against: ExclusiveAgainst::OtherApplications } => {
                f.write_str("no other application on the host")
            }
            Self::HostLabel { key, values } => {
                write!(f, "host label {key} in [")?;
                for (i, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str("]")
            }
        }
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.strength {
            Strength::Required => self.rule.fmt(f),
            Strength::Preferred => write!(f, "preferably {}", self.rule),
        }
    }
}

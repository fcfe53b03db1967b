//! Moving VMs off hosts that run hot.

use std::{fmt, str::FromStr};

use plimsoll_model::{Bytes, Name, Timestamp};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What is done about hosts that run hot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum BalanceMode {
    /// Nothing, and nothing is looked at.
    #[default]
    Off,
    /// A plan is made and shown.
    Advise,
    /// Plans are carried out.
    Automatic,
}

/// A text that is no mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("use off, advise or automatic")]
pub struct InvalidBalanceMode;

impl FromStr for BalanceMode {
    type Err = InvalidBalanceMode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "advise" => Ok(Self::Advise),
            "automatic" => Ok(Self::Automatic),
            _ => Err(InvalidBalanceMode),
        }
    }
}

impl fmt::Display for BalanceMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Off => "off",
            Self::Advise => "advise",
            Self::Automatic => "automatic",
        })
    }
}

/// When a host is hot, and how eagerly VMs are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BalanceSettings {
    /// What is done.
    pub mode: BalanceMode,
    /// A host is hot when it is asked for more than this of its CPU, disk or network, in percent: 20
    /// to 95.
    pub threshold_percent: u8,
    /// A VM that has moved is not moved again for so many seconds, but for an emergency: 0 to 86,400.
    pub cooldown_s: u32,
    /// How many VMs move at the same time: 1 to 100.
    pub moves_at_once: u32,
}

impl Default for BalanceSettings {
    fn default() -> Self {
        Self { mode: BalanceMode::Off, threshold_percent: 75, cooldown_s: 300, moves_at_once: 4 }
    }
}

/// How balanced the cluster is, and what is done about it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BalanceView {
    /// What is done.
    pub settings: BalanceSettings,
    /// How busy each host is, by what its VMs use.
    pub hosts: Vec<HostLoad>,
    /// VMs that move at present, whoever wished it.
    pub moves_running: u32,
    /// Moves that balancing has begun since the manager started.
    pub moves_begun: u64,
    /// The last plan; none before the first look.
    pub plan: Option<BalancePlan>,
}

/// How busy a host is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostLoad {
    /// The host.
    pub host: Name,
    /// What its VMs use of its CPU, in percent.
    pub cpu_percent: f64,
    /// The same of its memory.
    pub memory_percent: f64,
    /// What its VMs wait for CPU, in percent of its CPU; `None` where it is not measured.
    #[serde(default)]
    pub cpu_wait_percent: Option<f64>,
    /// What its VMs read and write, in percent of what its disks can do; `None` where either is not
    /// known.
    #[serde(default)]
    pub disk_percent: Option<f64>,
    /// What its VMs send or receive, whichever is more, in percent of what its network can do.
    #[serde(default)]
    pub network_percent: Option<f64>,
    /// Whether it counts as hot.
    pub hot: bool,
}

/// What is to be done, in order, and what is not, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BalancePlan {
    /// When it was made.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub made_at: Option<Timestamp>,
    /// What is wrong: a sentence each.
    pub findings: Vec<String>,
    /// What is done about it.
    pub steps: Vec<BalanceStep>,
    /// What nothing is done about, and why not: a sentence each.
    pub left: Vec<String>,
    /// By how much all hosts together are overloaded now, in percent of one host.
    pub overload_before_percent: f64,
    /// And when all steps are done.
    pub overload_after_percent: f64,
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BalanceStep {
    /// The VM, as `project/name`.
    pub vm: String,
    /// What is done with it.
    pub what: BalanceAction,
    /// Why.
    pub reason: String,
    /// The steps, from 1, that must be over before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<usize>,
    /// How hosts are expected to do.
    pub hosts: Vec<HostForecast>,
    /// What is sent.
    pub bytes: Bytes,
    /// How long it is expected to take, in milliseconds.
    pub expected_ms: u64,
    /// What it takes from the sum of overloads, in percent of one host.
    pub gain_percent: f64,
}

/// What is done with a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum BalanceAction {
    /// It goes to another host.
    Move {
        /// Where it is.
        from: Name,
        /// Where it goes.
        to: Name,
    },
    /// What it may use is changed where it is.
    Resize {
        /// Where it is.
        host: Name,
        /// To so much CPU.
        cpu: plimsoll_model::MilliCores,
        /// To so much memory.
        memory: Bytes,
    },
}

/// How a host is expected to do, before and after a step, in percent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostForecast {
    /// The host.
    pub host: Name,
    /// Its CPU before.
    pub cpu_before_percent: Option<f64>,
    /// Its CPU after.
    pub cpu_after_percent: Option<f64>,
    /// Its memory before.
    pub memory_before_percent: Option<f64>,
    /// Its memory after.
    pub memory_after_percent: Option<f64>,
    /// Its disks' bandwidth before.
    #[serde(default)]
    pub disk_before_percent: Option<f64>,
    /// Its disks' bandwidth after.
    #[serde(default)]
    pub disk_after_percent: Option<f64>,
    /// Its network before.
    #[serde(default)]
    pub network_before_percent: Option<f64>,
    /// Its network after.
    #[serde(default)]
    pub network_after_percent: Option<f64>,
}

//! What the manager asks of an agent, over mutual TLS: all that cannot be said as desired state.
//!
//! ```text
//!   POST /agent/v1/vms/{vm}/exec                       ExecRequest -> ExecResponse
//!   GET  /agent/v1/vms/{vm}/logs?source=&tail_bytes=&follow=   text, streamed with follow=true
//!   GET  /agent/v1/vms/{vm}/console                    WebSocket, binary frames both ways
//!   GET  /agent/v1/doctor                              what the host can do
//!   GET  /agent/v1/facts                               AgentFacts: what the agent holds itself to be
//! ```

use plimsoll_model::{HostId, HostSpec};
use serde::{Deserialize, Serialize};

use crate::cluster::ObservedVm;

/// Run a program in the guest, through its agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExecRequest {
    /// The program and its arguments; at least the program.
    pub argv: Vec<String>,
    /// What it reads on standard input, base64. At most 256 KiB before encoding.
    #[serde(default)]
    pub stdin: String,
    /// It is killed after this time: at most 10 minutes, by default one.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
}

const fn default_timeout_ms() -> u64 {
    60_000
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExecResponse {
    /// Its exit status; `None` when a signal ended it.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether it was killed because its time was over.
    pub timed_out: bool,
    /// Standard output, base64.
    pub stdout: String,
    /// Standard error, base64.
    pub stderr: String,
    /// Whether output was cut off at the limit (256 KiB each).
    pub truncated: bool,
}

/// Which log of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum LogSource {
    /// What the guest wrote to its serial console.
    #[default]
    Console,
    /// What QEMU and the guard wrote.
    Qemu,
}

/// How much of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
pub struct LogQuery {
    /// Which log.
    #[serde(default)]
    pub source: LogSource,
    /// The last so many bytes; by default 64 KiB, at most 4 MiB.
    #[serde(default)]
    pub tail_bytes: Option<u64>,
    /// Goes on with what is written, until the client leaves.
    #[serde(default)]
    pub follow: bool,
}

/// What an agent says of itself when asked, whether or not its reports get through.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentFacts {
    /// Which host it is.
    pub host: HostId,
    /// What it says the host is.
    pub spec: HostSpec,
    /// What it observes.
    pub vms: Vec<ObservedVm>,
}

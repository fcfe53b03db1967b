//! Keeps what is and what should be together.

use std::time::Duration;

/// A command that fences a host, IPMI-style: when it succeeds, the host runs nothing any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FencingCommand {
    /// The program and its arguments; `{host}` stands for the host's name and `{id}` for its id.
    pub argv: Vec<String>,
    /// It is killed, and has failed, after this time.
    pub timeout: Duration,
}

//! The hands of one host: QEMU, limits, networks, disks.
//!
//! ```text
//!   manager <--report, desired--> link --want--> vm (one task per VM) --> guard --> QEMU
//!           ---exec, logs, console--> server ------^   |
//!                                                      +--> host: disk, net, images; limits
//! ```
//!
//! [`run()`] is an agent from its start to its end; [`vm::guard_main`] the process between it and
//! each QEMU. Both are verbs of the one binary.

pub mod command;
pub mod config;
pub mod disk;
pub mod doctor;
pub mod host;
pub mod images;
pub mod inventory;
pub mod join;
mod kernel_fields;
pub mod ksm;
pub mod lease;
pub mod limits;
pub mod link;
pub mod net;
pub mod pageout;
pub mod run;
pub mod server;
pub mod swap;
pub mod telemetry;
pub mod vm;

#[cfg(test)]
mod testing;

pub use config::{AgentConfig, AgentOverrides};
pub use run::{AgentError, Start, run};

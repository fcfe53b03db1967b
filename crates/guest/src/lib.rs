//! The agent inside a VM: one static binary that answers its host on a virtio-serial port.
//!
//! The protocol is [`plimsoll_api::guest`]; its bounds hold for both sides. Threads instead of an
//! async runtime: the binary lives in every image, and an idle agent must cost a guest next to
//! nothing.
//!
//! ```text
//!   port --> reader --+--> facts, hello (at once) --------+
//!   ^                 +--> exec, cpus, deflate, notice ... |
//!   |                      (one thread each, bounded) ----+--> outbox --> writer --> port
//!   |                                  heartbeat thread --+
//! ```
//!
//! Invariants:
//! - An `exec` that runs for an hour delays no other request and no heartbeat.
//! - The agent never spins: a port without a host peer reads 0 bytes at once, forever, so it is
//!   asked again only after a pause that grows.
//! - A reply reaches only the session that asked: see [`session`].

pub mod cpus;
pub mod deflate;
pub mod exec;
pub mod facts;
pub mod grow;
mod hooks;
pub mod memory;
pub mod notice;
pub mod port;
pub mod power;
pub mod session;
pub mod system;

/// Version of this agent, as it tells the host.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

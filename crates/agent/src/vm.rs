//! Virtual machines of this host: one task and one directory for each.
//!
//! ```text
//!   outer loop --want(DesiredVm)--> Vms --mpsc--> runner task (one per VM) --spawn--> guard
//!   outer loop <--observed()------- Vms <--watch-- runner                              | child
//!                                                   |  QMP, guest agent, console       v
//!                                                   +-------- unix sockets -------- QEMU
//! ```
//!
//! - **VMs outlive the agent.** QEMU is the child of its [`guard`], a tiny process that dies with
//!   nobody but its VM. A new agent finds each VM again ([`adopt`]) by its directory and `/proc`.
//! - **Never two QEMUs for one VM.** The guard and QEMU each hold a lock in the VM's directory for
//!   their whole lives; starting takes both first.
//! - **Level-triggered.** A runner gets the whole wish and makes it so; wishes may come late, twice
//!   or out of order (incarnation and generation tell).
//! - **Reported is verified.** What stands in an `ObservedVm` was read back from QEMU or the kernel.

pub mod adopt;
pub mod argv;
pub mod console;
pub(crate) mod files;
mod forecast;
pub mod guard;
pub mod guest_channel;
pub mod host;
pub mod lease;
pub mod peer;
mod post_copy;
mod processor;
pub(crate) mod reclaim;
mod registry;
mod runner;
mod socket;
pub mod tunnel;

pub use guard::guard_main;
pub use host::{DiskFiles, Disks, HostError, Images, Networks, Tap};
pub use lease::{BootTime, Lease, LeaseError, LeaseKeeper};
pub use peer::{PeerAnswer, PeerError, PeerRequest};
pub use registry::{Environment, QemuUser, VmRequestError, Vms, VmsError};
pub use tunnel::{Reach, tunnel_main};

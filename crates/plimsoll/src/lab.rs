//! A whole cluster on one machine: a manager and hosts, each in a network namespace of its own.
//!
//! ```text
//!   plimsoll-LAB-sw          bridge `br0`, no addresses
//!     p0 --veth-- eth0   plimsoll-LAB-manager   10.254.0.1      manager
//!     p1 --veth-- eth0   plimsoll-LAB-host-1    10.254.0.11     agent, guards, QEMUs
//!     p2 --veth-- eth0   plimsoll-LAB-host-2    10.254.0.12     ...
//! ```
//!
//! The root namespace has no address, bridge or link of the lab; commands reach the manager through
//! its unix socket. Everything that was started is written down with its process id and the time at
//! which the kernel says it began, so that what is ended later is what was started, and nothing
//! else. `up` is level-triggered: it makes true what `lab.json` says and what is not true yet, so
//! the second `up` of a healthy lab does nothing and that of a damaged one heals it.

pub(crate) mod attack;
pub(crate) mod down;
pub(crate) mod layout;
pub(crate) mod network;
pub(crate) mod process;
pub(crate) mod status;
pub(crate) mod up;

#[cfg(test)]
mod tests;

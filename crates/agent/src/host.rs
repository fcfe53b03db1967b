//! What the VMs need of the rest of this host, put together: disks, networks, images.
//!
//! The rooms themselves ([`crate::disk`], [`crate::net`], [`crate::images`]) know nothing of what
//! is wanted; here a VM's wish becomes calls to them.

mod disks;
mod networks;

pub use disks::HostDisks;
pub use networks::{HostNetworks, HostNetworksError};

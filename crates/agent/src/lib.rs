//! The hands of one host: QEMU, limits, networks, disks.

pub mod command;
pub mod disk;
pub mod limits;
pub mod net;

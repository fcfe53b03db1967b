//! The hands of one host: QEMU, limits, networks, disks.

pub mod limits;

//! The hands of one host: QEMU, limits, networks, disks.

pub mod command;
pub mod disk;
pub mod doctor;
pub mod error_chain;
pub mod inventory;
pub mod limits;
pub mod net;
pub mod vm;

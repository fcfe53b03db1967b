//! Scenarios on a real lab: a manager, agents and QEMU guests on this machine.
//!
//! They need root, QEMU, iproute2 and the image `tiny`, and say so loudly if one is missing. Each
//! test has a lab of its own, which goes with it.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "helpers of tests may fail loudly and talk"
)]

mod chaos;
mod console;
mod deaths;
mod drain;
mod elastic;
mod failover;
mod host_failure;
mod hotspot;
mod lab;
mod limits;
mod migration;
mod network;
mod observer;
mod qemu_killed;
mod reservations;
mod simulate;
mod smoke;
mod swap;
mod webshop;

//! Scenarios on a real lab: a manager, agents and QEMU guests on this machine.
//!
//! They need root, QEMU, iproute2 and the image `tiny`, and say so loudly if one is missing. Each
//! test has a lab of its own, which goes with it.

mod failover;
mod lab;
mod smoke;
mod webshop;

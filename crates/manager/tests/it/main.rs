//! The manager as others see it: the real server on real sockets, with fake agents on the real
//! agents' port.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail loudly")]

mod access;
mod agents;
mod api_errors;
mod auth;
mod cluster;
mod images;
mod lifecycle;
mod migration;
mod openapi;
mod process;

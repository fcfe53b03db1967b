//! Wire types of Plimsoll's interfaces: what users say to the manager ([`v1`]), what agents and the
//! manager say to each other ([`cluster`], [`agent`]), what host and guest say to each other
//! ([`guest`]), and the one error body ([`error`]).
//!
//! Without features the crate is only these types, light enough for the static guest agent. The
//! feature `openapi` derives schemas, `client` adds a typed HTTP client.

pub mod agent;
pub mod cluster;
pub mod error;
pub mod guest;
pub mod v1;

pub use error::{ErrorBody, ErrorCode};

//! Wire types of Plimsoll's interfaces: what users say to the manager ([`v1`]), what agents and the
//! manager say to each other ([`cluster`], [`agent`]), what host and guest say to each other
//! ([`guest`]), and the one error body ([`error`]). [`error_chain`] says an error's causes where there
//! is no body for them.
//!
//! Without features the crate is only these types, light enough for the static guest agent. The
//! feature `openapi` derives schemas, `client` adds a typed HTTP client.

pub mod agent;
#[cfg(feature = "client")]
pub mod client;
pub mod cluster;
pub mod deduplication;
pub mod doctor;
pub mod error;
pub mod error_chain;
pub mod guest;
pub mod join_token;
pub mod migration;
#[cfg(feature = "client")]
pub mod tls;
pub mod v1;

#[cfg(feature = "client")]
pub use client::{AgentClient, Client, ClientError, ClusterClient};
pub use error::{ErrorBody, ErrorCode};
pub use error_chain::ErrorChain;
pub use join_token::JoinToken;

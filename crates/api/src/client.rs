//! Typed clients of Plimsoll's HTTP interfaces: [`Client`] for users, [`ClusterClient`] for agents,
//! [`AgentClient`] for what the manager asks of agents.
//!
//! A server is known by its name in the cluster (`manager`, `host-N`), not by its address: see
//! [`crate::tls`]. Every call has a time limit; bodies have size limits. Failures say which kind
//! they are: an answer of the server ([`ClientError::Api`]), nobody there ([`ClientError::Unreachable`],
//! which tells a refused connection from all else), too slow, or not understood.

mod agent;
mod cluster;
mod console;
mod error;
mod peer;
mod transport;
mod user;

pub use agent::AgentClient;
pub use cluster::{ClusterClient, join};
pub use console::{Console, ConsoleReceiver, ConsoleSender};
pub use error::ClientError;
pub use peer::PeerClient;
pub use transport::ByteStream;
pub use user::{Client, ClientConfig};

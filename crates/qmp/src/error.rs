//! What can go wrong between us and a QEMU.

use std::path::PathBuf;
use std::time::Duration;

use crate::codec::CodecError;

/// A failed operation on a monitor connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QmpError {
    #[error("cannot connect to the monitor socket {}", path.display())]
    Connect {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the monitor did not greet and accept us within {limit:?}")]
    HandshakeTimeout { limit: Duration },
    #[error("cannot exchange the monitor's greeting")]
    Handshake(#[source] CodecError),
    #[error("the monitor's first message is not a greeting")]
    NoGreeting,
    #[error("the monitor hung up during the greeting")]
    HandshakeEnded,
    #[error("`{command}` got no answer within {limit:?}")]
    Timeout { command: String, limit: Duration },
    #[error("QEMU refused `{command}`: {description} ({class})")]
    Refused { command: String, class: String, description: String },
    #[error("the monitor connection ended before `{command}` was answered")]
    Closed { command: String },
    #[error("the answer to `{command}` has an unknown shape")]
    ReplyShape {
        command: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("cannot write the arguments of `{command}` as JSON")]
    Arguments {
        command: String,
        #[source]
        source: serde_json::Error,
    },
}

impl QmpError {
    /// True when the connection itself is gone, so that only a new one can help.
    #[must_use]
    pub fn is_disconnected(&self) -> bool {
        matches!(
            self,
            Self::Closed { .. }
                | Self::Connect { .. }
                | Self::HandshakeEnded
                | Self::Handshake(_)
                | Self::NoGreeting
                | Self::HandshakeTimeout { .. }
        )
    }

    /// QEMU's error class when QEMU itself refused (`DeviceNotFound`, `GenericError`, ...).
    #[must_use]
    pub fn class(&self) -> Option<&str> {
        match self {
            Self::Refused { class, .. } => Some(class),
            _ => None,
        }
    }
}

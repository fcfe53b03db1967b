//! What can go wrong between a client and a server.

use thiserror::Error;

use crate::{ErrorBody, ErrorCode, error_chain::involves, tls::TlsError};

/// Why a call has no result.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The server refused it and said why.
    #[error("{body}")]
    Api {
        /// What the server said.
        body: Box<ErrorBody>,
        /// The HTTP status.
        status: u16,
    },
    /// There was no connection, or it broke.
    #[error("cannot reach {address}")]
    Unreachable {
        /// Whom.
        address: String,
        /// Whether the connection was refused: the machine answers, and nothing listens there.
        refused: bool,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("no answer from {address} within {limit_ms} ms")]
    Timeout {
        /// From whom.
        address: String,
        /// The limit.
        limit_ms: u128,
    },
    /// An answer that is not what the endpoint is to send.
    #[error("cannot understand the answer of {address} to {request}")]
    Decode {
        /// Whose.
        address: String,
        /// To what: method and path.
        request: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A failure without our error body: something else than Plimsoll answers there.
    #[error("{address} answered with HTTP status {status}, but not as Plimsoll does")]
    Foreign {
        /// Who.
        address: String,
        /// The HTTP status.
        status: u16,
    },
    /// The answer is larger than it may be.
    #[error("the answer of {address} is larger than {limit} bytes")]
    AnswerTooLarge {
        /// Whose.
        address: String,
        /// The limit.
        limit: u64,
    },
    /// A file could not be read or written while it was carried over.
    #[error("cannot {doing} the file")]
    File {
        /// `read` or `write`.
        doing: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An address that is none.
    #[error(
        "`{address}` is not an address of a server: use https://HOST:PORT, or unix:PATH for a socket"
    )]
    Address {
        /// The text.
        address: String,
    },
    /// The token cannot be sent in a header.
    #[error("the token has characters that no token has")]
    Token,
    /// TLS could not be set up.
    #[error("cannot set up TLS for {address}")]
    Tls {
        /// To whom.
        address: String,
        /// Why.
        #[source]
        source: TlsError,
    },
    /// The HTTP client could not be set up.
    #[error("cannot set up an HTTP client for {address}")]
    Setup {
        /// To whom.
        address: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The WebSocket failed.
    #[error("the console's connection to {address} failed")]
    WebSocket {
        /// To whom.
        address: String,
        /// Why.
        #[source]
        source: Box<tokio_tungstenite::tungstenite::Error>,
    },
    /// The server is not the one of the join token.
    #[error("{address} gave a CA that is not the one of the join token")]
    OtherCa {
        /// Who.
        address: String,
    },
}

impl ClientError {
    /// What the server said, if it is that.
    #[must_use]
    pub fn api(&self) -> Option<&ErrorBody> {
        match self {
            Self::Api { body, .. } => Some(body),
            _ => None,
        }
    }

    /// The server's error code, if it is that.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        self.api().map(|body| body.code)
    }

    /// Whether the connection was refused: the machine is there and nothing listens. Whoever cannot
    /// tell (a timeout, no route, a TLS failure, a broken connection) says no.
    #[must_use]
    pub const fn is_refused(&self) -> bool {
        matches!(self, Self::Unreachable { refused: true, .. })
    }
}

/// Whether a refused connection is among the causes.
pub(super) fn caused_by_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    involves(error, |io: &std::io::Error| io.kind() == std::io::ErrorKind::ConnectionRefused)
}

//! The one error body of every HTTP interface.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// What kind of error it is: stable names that programs match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ErrorCode {
    /// The request is not of the form that the endpoint takes. 400.
    InvalidRequest,
    /// A value is well formed but not allowed. 400.
    InvalidValue,
    /// No token, or one that is unknown, expired or revoked. 401.
    Unauthenticated,
    /// The token's role does not allow it. 403.
    Forbidden,
    /// There is no such thing, or none that the token may see. 404.
    NotFound,
    /// The endpoint does not take this method. 405.
    MethodNotAllowed,
    /// Something of this name is there already. 409.
    AlreadyExists,
    /// The thing's state does not allow it now. 409.
    WrongState,
    /// Somebody else changed it meanwhile. 409.
    Conflict,
    /// Others still use it. 409.
    InUse,
    /// The body is larger than allowed. 413.
    TooLarge,
    /// Too many requests. 429.
    TooManyRequests,
    /// The project's quota does not allow it. 403.
    QuotaExceeded,
    /// The project has no credits left. 403.
    NoCredits,
    /// No host can hold it; `details` tells each host's refusal. 507.
    NoCapacity,
    /// The host or guest cannot do this; the message says why and what would help. 501.
    Unsupported,
    /// The host's agent, or the guest's, does not answer. 503.
    Unreachable,
    /// It took longer than allowed. 504.
    TimedOut,
    /// A mistake of ours; the log has the rest under the request id. 500.
    Internal,
}

impl ErrorCode {
    /// The HTTP status that goes with it.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidRequest | Self::InvalidValue => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden | Self::QuotaExceeded | Self::NoCredits => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::AlreadyExists | Self::WrongState | Self::Conflict | Self::InUse => 409,
            Self::TooLarge => 413,
            Self::TooManyRequests => 429,
            Self::Internal => 500,
            Self::Unsupported => 501,
            Self::Unreachable => 503,
            Self::TimedOut => 504,
            Self::NoCapacity => 507,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Serialize::serialize(self, f)
    }
}

/// The body of every response that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// What kind of error.
    pub code: ErrorCode,
    /// What went wrong, for people; one sentence without a full stop.
    pub message: String,
    /// What caused it, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// What would help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Further lines by subject, such as each host's refusal.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
    /// The request's id, to be found in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl ErrorBody {
    /// An error of this kind with a message.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            causes: Vec::new(),
            hint: None,
            details: BTreeMap::new(),
            request_id: None,
        }
    }

    /// The same with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for ErrorBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ErrorBody {}

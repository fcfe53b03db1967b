//! Errors as answers.

use std::error::Error;

use axum::{
    Json,
    extract::rejection::JsonRejection,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use plimsoll_api::{ErrorBody, ErrorCode, error_chain::causes, guest::FailureCode};

use crate::vm::{VmRequestError, guest_channel::GuestCallError};

/// An answer that is not a success.
#[derive(Debug)]
pub(super) struct Problem(Box<ErrorBody>);

impl Problem {
    pub(super) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(Box::new(ErrorBody::new(code, message)))
    }

    pub(super) fn of(code: ErrorCode, error: &(dyn Error + 'static)) -> Self {
        let mut problem = Self::new(code, error.to_string());
        problem.0.causes = causes(error).collect();
        problem
    }

    /// A body that is too large, or not what the endpoint takes.
    pub(super) fn of_body(rejection: &JsonRejection) -> Self {
        let code = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            ErrorCode::TooLarge
        } else {
            ErrorCode::InvalidRequest
        };
        Self::new(code, rejection.body_text())
    }

    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }
}

impl From<VmRequestError> for Problem {
    fn from(error: VmRequestError) -> Self {
        let code = match &error {
            VmRequestError::NotHere { .. } => ErrorCode::NotFound,
            VmRequestError::Busy { .. } => ErrorCode::TooManyRequests,
            VmRequestError::Guest { source, .. } => guest_code(source),
            VmRequestError::NotRunning { .. } | VmRequestError::Console { .. } => {
                ErrorCode::WrongState
            }
        };
        Self::of(code, &error)
    }
}

fn guest_code(error: &GuestCallError) -> ErrorCode {
    match error {
        GuestCallError::Busy => ErrorCode::TooManyRequests,
        GuestCallError::Timeout { .. } => ErrorCode::TimedOut,
        GuestCallError::Call(_) => ErrorCode::InvalidValue,
        GuestCallError::Silent | GuestCallError::Broken | GuestCallError::WrongAnswer => {
            ErrorCode::Unreachable
        }
        GuestCallError::Refused { failure } => match failure.code {
            FailureCode::Busy => ErrorCode::TooManyRequests,
            FailureCode::Unsupported => ErrorCode::Unsupported,
            _ => ErrorCode::InvalidValue,
        },
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

//! Errors on their way out: whatever went wrong becomes an [`ErrorBody`].

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use plimsoll_api::{ClientError, ErrorBody, ErrorChain, ErrorCode, error_chain::causes};

use crate::{
    app::AppError,
    images::{BlobError, InspectError},
};

/// An error as the client gets it. The [frame](super::frame) adds the request's id.
#[derive(Clone, Debug)]
pub(crate) struct ApiError(pub(crate) Box<ErrorBody>);

impl ApiError {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(Box::new(ErrorBody::new(code, message)))
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    pub(crate) fn cause(mut self, cause: impl Into<String>) -> Self {
        self.0.causes.push(cause.into());
        self
    }

    /// A mistake of ours: what it was goes to the log only.
    pub(crate) fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = %ErrorChain(error), "internal error");
        Self::new(ErrorCode::Internal, "something went wrong inside the manager")
            .hint("the manager's log has the rest under this request id")
    }
}

impl From<AppError> for ApiError {
    fn from(error: AppError) -> Self {
        let body = error.to_body();
        if body.code == ErrorCode::Internal {
            tracing::error!(error = %ErrorChain(&error), "internal error");
        }
        Self(Box::new(body))
    }
}

impl From<BlobError> for ApiError {
    fn from(error: BlobError) -> Self {
        let (code, hint) = match &error {
            BlobError::File { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                tracing::error!(error = %ErrorChain(&error), "no room for images");
                return Self::new(ErrorCode::NoCapacity, "the manager has no room for the file")
                    .hint(
                        "delete images that are no longer needed, or give the manager more disk",
                    );
            }
            BlobError::File { .. } => return Self::internal(&error),
            BlobError::Disk(InspectError::Read(_) | InspectError::Run(_)) => {
                return Self::internal(&error);
            }
            BlobError::Disk(InspectError::TimedOut) => {
                (ErrorCode::TimedOut, "try again; if it fails again, the disk may be damaged")
            }
            BlobError::Disk(_) => (
                ErrorCode::InvalidValue,
                "use a qcow2 or raw disk that stands alone: `qemu-img convert -O qcow2`",
            ),
            BlobError::Broken { .. } | BlobError::Idle { .. } => {
                (ErrorCode::InvalidRequest, "send the whole file again")
            }
            BlobError::Size { more: true, .. } => {
                (ErrorCode::TooLarge, "announce the size that the file has")
            }
            BlobError::Size { .. } | BlobError::Checksum { .. } => (
                ErrorCode::InvalidValue,
                "send the file that was announced, or announce this one as another image",
            ),
            BlobError::Missing { .. } => (ErrorCode::NotFound, "upload the image again"),
        };
        let mut body = ErrorBody::new(code, error.to_string()).with_hint(hint);
        body.causes = causes(&error).collect();
        Self(Box::new(body))
    }
}

/// What came of a call to a host's agent.
pub(crate) fn from_agent(host: &plimsoll_model::Name, error: &ClientError) -> ApiError {
    match error {
        ClientError::Api { body, .. } => ApiError(body.clone()),
        ClientError::Timeout { limit_ms, .. } => ApiError::new(
            ErrorCode::TimedOut,
            format!("the agent of host `{host}` has not answered within {limit_ms} ms"),
        ),
        other => {
            tracing::warn!(%host, error = %ErrorChain(other), "cannot reach an agent");
            ApiError::new(ErrorCode::Unreachable, format!("host `{host}` does not answer"))
        }
    }
    .hint("`plimsoll host show` tells since when it has not reported; check its agent")
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(&*self.0)).into_response();
        let headers = response.headers_mut();
        match self.0.code {
            ErrorCode::TooManyRequests => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            ErrorCode::Unauthenticated => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response.extensions_mut().insert(self);
        response
    }
}

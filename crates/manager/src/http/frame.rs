//! What surrounds every request: an id, a time limit, a limit on how many run at once, the metrics,
//! a net under panics.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use futures_util::FutureExt as _;
use plimsoll_api::ErrorCode;
use tokio::{sync::Semaphore, time::Instant};
use tracing::Instrument as _;

use super::error::ApiError;
use crate::metrics::Metrics;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The frame around one router.
#[derive(Clone)]
pub(crate) struct Frame {
    pub(crate) metrics: Metrics,
    /// How many requests may run at once: above, they are refused at once.
    pub(crate) slots: Arc<Semaphore>,
}

/// How long a request may take until its answer begins.
fn limit(route: &str) -> Duration {
    if route.contains("/files/") {
        // An upload. Silence is bounded where it is read.
        Duration::from_secs(4 * 3600)
    } else if route.ends_with("/exec") {
        Duration::from_secs(12 * 60)
    } else {
        Duration::from_secs(90)
    }
}

pub(crate) async fn frame(State(frame): State<Frame>, request: Request, next: Next) -> Response {
    let id = uuid::Uuid::now_v7().simple().to_string();
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unknown".to_owned(), |path| path.as_str().to_owned());
    let span = tracing::info_span!("request", %id, %method, route);
    let started = Instant::now();
    let response = match frame.slots.try_acquire() {
        Err(_) => ApiError::new(ErrorCode::TooManyRequests, "too many requests run at once")
            .hint("wait a moment and try again")
            .into_response(),
        Ok(_slot) => {
            let run = AssertUnwindSafe(next.run(request)).catch_unwind().instrument(span.clone());
            match tokio::time::timeout(limit(&route), run).await {
                Ok(Ok(response)) => response,
                // The panic's message went to the log by the panic hook.
                Ok(Err(_)) => {
                    ApiError::new(ErrorCode::Internal, "something went wrong inside the manager")
                        .hint("the manager's log has the rest under this request id")
                        .into_response()
                }
                Err(_) => ApiError::new(ErrorCode::TimedOut, "the request took too long")
                    .hint("it may have been carried out: look before you repeat it")
                    .into_response(),
            }
        }
    };
    let status = response.status();
    let elapsed = started.elapsed();
    frame.metrics.request(method.as_str(), &route, status.as_u16(), elapsed);
    span.in_scope(|| {
        if status.is_server_error() {
            tracing::warn!(status = status.as_u16(), ?elapsed, "answered");
        } else {
            tracing::debug!(status = status.as_u16(), ?elapsed, "answered");
        }
    });
    with_id(response, &id)
}

/// Adds the id to the headers, and to the error body if it is one.
fn with_id(mut response: Response, id: &str) -> Response {
    if let Some(ApiError(mut body)) = response.extensions_mut().remove::<ApiError>() {
        body.request_id = Some(id.to_owned());
        // What cannot be written is sent as it was.
        if let Ok(text) = serde_json::to_vec(&body) {
            response.headers_mut().remove(axum::http::header::CONTENT_LENGTH);
            *response.body_mut() = Body::from(text);
        }
    }
    if let Ok(value) = HeaderValue::from_str(id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// The answer for a path that does not exist.
pub(crate) async fn no_such_path(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(200).collect();
    ApiError::new(ErrorCode::NotFound, format!("there is no endpoint `{path}`"))
        .hint("/v1/openapi.json lists the endpoints")
}

/// The answer for a method that an endpoint does not take.
pub(crate) async fn no_such_method(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(200).collect();
    ApiError::new(
        ErrorCode::MethodNotAllowed,
        format!("`{path}` does not take {}", request.method()),
    )
    .hint("/v1/openapi.json lists the methods of each endpoint")
}

#[cfg(test)]
mod tests {
    use axum::{Router, middleware, routing::get};
    use plimsoll_api::ErrorBody;
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(path: &str, slots: usize) -> (u16, ErrorBody, bool) {
        let state = Frame { metrics: Metrics::new(), slots: Arc::new(Semaphore::new(slots)) };
        #[expect(clippy::panic, reason = "the net under panics is what is tested")]
        async fn panics() -> &'static str {
            panic!("a secret")
        }
        let router = Router::new()
            .route("/panics", get(panics))
            .fallback(no_such_path)
            .method_not_allowed_fallback(no_such_method)
            .layer(middleware::from_fn_with_state(state, frame));
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let named = response.headers().contains_key(REQUEST_ID);
        let text = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&text).unwrap(), named)
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_error_that_tells_nothing() {
        let (status, body, named) = ask("/panics", 1).await;
        assert_eq!((status, body.code, named), (500, ErrorCode::Internal, true));
        assert!(!format!("{body:?}").contains("secret"));
        assert!(body.request_id.is_some());
    }

    #[tokio::test]
    async fn too_much_at_once_is_refused_at_once() {
        let (status, body, _) = ask("/panics", 0).await;
        assert_eq!((status, body.code), (429, ErrorCode::TooManyRequests));
        assert!(body.hint.is_some());
    }

    #[tokio::test]
    async fn unknown_paths_have_the_same_error_body() {
        let (status, body, named) = ask("/nothing", 1).await;
        assert_eq!((status, body.code, named), (404, ErrorCode::NotFound, true));
    }
}

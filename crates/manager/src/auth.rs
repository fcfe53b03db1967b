//! Who asks, and how often: bearer tokens, and the rates that one token and one address may have.
//!
//! Tokens themselves are the app layer's business ([`crate::app::token_authenticate`]): here they are
//! only taken out of the header. A token that is good is always let through, up to its own rate;
//! failures are slowed down by where they come from, so that nobody can lock others out by failing.

mod bucket;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header::AUTHORIZATION},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use plimsoll_api::ErrorCode;
use plimsoll_model::TokenId;
use tokio::time::Instant;

use crate::{
    app::{self, AppError, Caller},
    http::{Services, error::ApiError, listener::Peer},
};
use bucket::Buckets;

/// What one token may ask: so many requests at once, and so many a second in the long run.
const TOKEN_RATE: (f64, f64) = (2000.0, 1000.0);
/// What failures one address may have.
const FAILURE_RATE: (f64, f64) = (20.0, 1.0);
/// The longest token.
const LONGEST: usize = 512;

/// The rates of all who ask.
pub(crate) struct Limiter {
    tokens: Buckets<TokenId>,
    failures: Buckets<String>,
}

impl Limiter {
    pub(crate) fn new() -> Self {
        Self {
            tokens: Buckets::new(TOKEN_RATE.0, TOKEN_RATE.1),
            failures: Buckets::new(FAILURE_RATE.0, FAILURE_RATE.1),
        }
    }

    /// Counts a failure to show a good token. Above the rate, the answer is another.
    pub(crate) fn failure(&self, peer: Option<&Peer>) -> Result<(), ApiError> {
        let from = match peer {
            Some(Peer::Address(address)) => address.to_string(),
            Some(Peer::Host(host)) => host.to_string(),
            Some(Peer::Socket) | None => "socket".to_owned(),
        };
        if self.failures.take(from, Instant::now()) { Ok(()) } else { Err(too_many()) }
    }
}

fn too_many() -> ApiError {
    ApiError::new(ErrorCode::TooManyRequests, "too many requests in a short time")
        .hint("wait a moment and try again; batches need fewer requests")
}

/// The token of a request, if it has one of the right form.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = text.split_once(' ')?;
    let token = token.trim();
    let plain =
        scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= LONGEST;
    plain.then_some(token)
}

/// Lets a request through with its [`Caller`], or refuses it.
pub(crate) async fn authenticate(
    State(services): State<Services>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let caller = bearer(request.headers())
        .ok_or(AppError::Unauthenticated)
        .and_then(|secret| app::token_authenticate(&services.core, secret));
    let caller: Caller = match caller {
        Ok(caller) => caller,
        Err(error) => {
            services.limiter.failure(request.extensions().get())?;
            let missing = !request.headers().contains_key(AUTHORIZATION);
            let error = ApiError::from(error);
            return Err(if missing {
                error.cause("the request has no `Authorization: Bearer TOKEN` header")
            } else {
                error
            });
        }
    };
    if !services.limiter.tokens.take(caller.token, Instant::now()) {
        return Err(too_many());
    }
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Caller {
    type Rejection = Response;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        _: &S,
    ) -> Result<Self, Response> {
        // A handler that wants a caller and is not behind `authenticate` answers nobody.
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| ApiError::from(AppError::Unauthenticated).into_response())
    }
}

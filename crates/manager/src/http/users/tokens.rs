//! Tokens of users, and those with which hosts join.

use axum::{Json as Answer, extract::State, http::StatusCode};
use plimsoll_api::{
    ErrorCode, JoinToken,
    v1::{
        CreateJoinTokenRequest, CreateJoinTokenResponse, CreateTokenRequest, CreateTokenResponse,
        TokenView,
    },
};
use plimsoll_model::TokenId;

use crate::{
    app::{self, Caller},
    http::{
        Services,
        error::ApiError,
        extract::{At, Json, OptionalJson},
    },
};

/// Makes a token. Its secret is shown this once.
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens",
    request_body = CreateTokenRequest, responses((status = 201, body = CreateTokenResponse)))]
pub(super) async fn token_create(
    State(services): State<Services>,
    caller: Caller,
    Json(request): Json<CreateTokenRequest>,
) -> Result<(StatusCode, Answer<CreateTokenResponse>), ApiError> {
    let created = app::token_create(&services.core, &caller, request).await?;
    Ok((StatusCode::CREATED, Answer(created)))
}

/// The tokens that the caller may manage, without their secrets.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens",
    responses((status = 200, body = Vec<TokenView>)))]
pub(super) async fn token_list(
    State(services): State<Services>,
    caller: Caller,
) -> Result<Answer<Vec<TokenView>>, ApiError> {
    Ok(Answer(app::token_list(&services.core, &caller)?))
}

/// Revokes a token.
#[utoipa::path(delete, path = "/v1/tokens/{token}", tag = "tokens",
    responses((status = 204, description = "It is no longer good")))]
pub(super) async fn token_revoke(
    State(services): State<Services>,
    caller: Caller,
    At((token,)): At<(TokenId,)>,
) -> Result<StatusCode, ApiError> {
    app::token_revoke(&services.core, &caller, token).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a token with which one host joins, once.
#[utoipa::path(post, path = "/v1/join-tokens", tag = "tokens",
    request_body = CreateJoinTokenRequest,
    responses((status = 201, body = CreateJoinTokenResponse)))]
pub(super) async fn join_token_create(
    State(services): State<Services>,
    caller: Caller,
    OptionalJson(request): OptionalJson<CreateJoinTokenRequest>,
) -> Result<(StatusCode, Answer<CreateJoinTokenResponse>), ApiError> {
    let address = services.api_address.clone().ok_or_else(|| {
        ApiError::new(ErrorCode::WrongState, "this manager has no address for hosts to join at")
            .hint("set `api_listen` in the server's configuration")
    })?;
    let (secret, expires_at) = app::join_token_create(&services.core, &caller, request).await?;
    let token = JoinToken { address, ca_sha256: services.ca.sha256(), secret }.to_string();
    Ok((StatusCode::CREATED, Answer(CreateJoinTokenResponse { token, expires_at })))
}

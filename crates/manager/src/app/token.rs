//! Tokens of users and of hosts that join. Only SHA-256 hashes of their 256-bit random secrets are
//! kept, so a copy of the store opens nothing.

use plimsoll_api::v1::{
    CreateJoinTokenRequest, CreateTokenRequest, CreateTokenResponse, TokenView,
};
use plimsoll_model::{Timestamp, TokenId};

use crate::{
    app::{AppError, Caller},
    core::Core,
};

/// Who the holder of this secret is.
///
/// # Errors
/// The token is unknown, expired or revoked: always the same error.
pub fn token_authenticate(core: &Core, secret: &str) -> Result<Caller, AppError> {
    let _ = (core, secret);
    todo!()
}

/// Makes a token.
///
/// # Errors
/// The caller is not an admin of the project, or of the cluster for a token without a project.
pub async fn token_create(
    core: &Core,
    caller: &Caller,
    request: CreateTokenRequest,
) -> Result<CreateTokenResponse, AppError> {
    let _ = (core, caller, request);
    todo!()
}

/// The tokens that the caller may manage, by age.
///
/// # Errors
/// The caller is not an admin.
pub fn token_list(core: &Core, caller: &Caller) -> Result<Vec<TokenView>, AppError> {
    let _ = (core, caller);
    todo!()
}

/// Revokes a token.
///
/// # Errors
/// There is no such token that the caller may manage, or it is the cluster's last admin token.
pub async fn token_revoke(core: &Core, caller: &Caller, token: TokenId) -> Result<(), AppError> {
    let _ = (core, caller, token);
    todo!()
}

/// Makes a one-use token with which a host joins. Returns its secret part and its end.
///
/// # Errors
/// The caller is not an admin of the cluster, or the lifetime is not allowed.
pub async fn join_token_create(
    core: &Core,
    caller: &Caller,
    request: CreateJoinTokenRequest,
) -> Result<(String, Timestamp), AppError> {
    let _ = (core, caller, request);
    todo!()
}

/// Makes sure that there is an admin token of the cluster with this secret, for the server's first
/// start (and for the lab): the caller writes the secret to a private file before. Idempotent.
///
/// # Errors
/// The store refuses, or the secret is shorter than 32 characters.
pub async fn token_ensure_admin(core: &Core, secret: &str, note: &str) -> Result<(), AppError> {
    let _ = (core, secret, note);
    todo!()
}

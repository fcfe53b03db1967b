//! Networks of projects.

use axum::{Json as Answer, extract::State, http::StatusCode};
use plimsoll_api::v1::CreateNetworkRequest;
use plimsoll_model::{Name, Network};

use crate::{
    app::{self, Caller},
    http::{
        Services,
        error::ApiError,
        extract::{At, Json},
    },
};

/// Creates a network.
#[utoipa::path(post, path = "/v1/projects/{project}/networks", tag = "networks",
    request_body = CreateNetworkRequest, responses((status = 201, body = Network)))]
pub(super) async fn network_create(
    State(services): State<Services>,
    caller: Caller,
    At((project,)): At<(Name,)>,
    Json(request): Json<CreateNetworkRequest>,
) -> Result<(StatusCode, Answer<Network>), ApiError> {
    let network = app::network_create(&services.core, &caller, &project, request).await?;
    Ok((StatusCode::CREATED, Answer(network)))
}

/// The networks of a project.
#[utoipa::path(get, path = "/v1/projects/{project}/networks", tag = "networks",
    responses((status = 200, body = Vec<Network>)))]
pub(super) async fn network_list(
    State(services): State<Services>,
    caller: Caller,
    At((project,)): At<(Name,)>,
) -> Result<Answer<Vec<Network>>, ApiError> {
    Ok(Answer(app::network_list(&services.core, &caller, &project)?))
}

/// One network.
#[utoipa::path(get, path = "/v1/projects/{project}/networks/{network}", tag = "networks",
    responses((status = 200, body = Network)))]
pub(super) async fn network_show(
    State(services): State<Services>,
    caller: Caller,
    At((project, network)): At<(Name, Name)>,
) -> Result<Answer<Network>, ApiError> {
    Ok(Answer(app::network_show(&services.core, &caller, &project, &network)?))
}

/// Deletes a network that no VM uses.
#[utoipa::path(delete, path = "/v1/projects/{project}/networks/{network}", tag = "networks",
    responses((status = 204, description = "It is gone")))]
pub(super) async fn network_delete(
    State(services): State<Services>,
    caller: Caller,
    At((project, network)): At<(Name, Name)>,
) -> Result<StatusCode, ApiError> {
    app::network_delete(&services.core, &caller, &project, &network).await?;
    Ok(StatusCode::NO_CONTENT)
}

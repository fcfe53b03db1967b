//! Projects.

use axum::{Json as Answer, extract::State, http::StatusCode};
use plimsoll_api::v1::{CreateProjectRequest, ProjectView, SetProjectRequest};
use plimsoll_model::Name;

use crate::{
    app::{self, Caller},
    http::{
        Services,
        error::ApiError,
        extract::{At, Json},
    },
};

/// Creates a project.
#[utoipa::path(post, path = "/v1/projects", tag = "projects",
    request_body = CreateProjectRequest, responses((status = 201, body = ProjectView)))]
pub(super) async fn project_create(
    State(services): State<Services>,
    caller: Caller,
    Json(request): Json<CreateProjectRequest>,
) -> Result<(StatusCode, Answer<ProjectView>), ApiError> {
    let project = app::project_create(&services.core, &caller, request).await?;
    Ok((StatusCode::CREATED, Answer(project)))
}

/// The projects that the token may see.
#[utoipa::path(get, path = "/v1/projects", tag = "projects",
    responses((status = 200, body = Vec<ProjectView>)))]
pub(super) async fn project_list(
    State(services): State<Services>,
    caller: Caller,
) -> Result<Answer<Vec<ProjectView>>, ApiError> {
    Ok(Answer(app::project_list(&services.core, &caller)?))
}

/// One project.
#[utoipa::path(get, path = "/v1/projects/{project}", tag = "projects",
    responses((status = 200, body = ProjectView)))]
pub(super) async fn project_show(
    State(services): State<Services>,
    caller: Caller,
    At((project,)): At<(Name,)>,
) -> Result<Answer<ProjectView>, ApiError> {
    Ok(Answer(app::project_show(&services.core, &caller, &project)?))
}

/// Changes a project's quota or credits; what is absent stays.
#[utoipa::path(patch, path = "/v1/projects/{project}", tag = "projects",
    request_body = SetProjectRequest, responses((status = 200, body = ProjectView)))]
pub(super) async fn project_set(
    State(services): State<Services>,
    caller: Caller,
    At((project,)): At<(Name,)>,
    Json(request): Json<SetProjectRequest>,
) -> Result<Answer<ProjectView>, ApiError> {
    Ok(Answer(app::project_set(&services.core, &caller, &project, request).await?))
}

/// Deletes an empty project with its tokens.
#[utoipa::path(delete, path = "/v1/projects/{project}", tag = "projects",
    responses((status = 204, description = "It is gone")))]
pub(super) async fn project_delete(
    State(services): State<Services>,
    caller: Caller,
    At((project,)): At<(Name,)>,
) -> Result<StatusCode, ApiError> {
    app::project_delete(&services.core, &caller, &project).await?;
    Ok(StatusCode::NO_CONTENT)
}

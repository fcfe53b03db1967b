//! The cluster as a whole: status, settings, events, metrics.

use axum::{
    Json as Answer,
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse as _, Response},
};
use plimsoll_api::v1::{ClusterStatus, EventQuery, SetSettingsRequest, Settings, WhoAmI};
use plimsoll_model::{Event, Role};

use crate::{
    app::{self, Caller},
    http::{
        Services,
        error::ApiError,
        extract::{Json, Query},
    },
};

/// The cluster in numbers, and its reconcilers' last results.
#[utoipa::path(get, path = "/v1/status", tag = "cluster",
    responses((status = 200, body = ClusterStatus)))]
pub(super) async fn status_show(
    State(services): State<Services>,
    caller: Caller,
) -> Result<Answer<ClusterStatus>, ApiError> {
    Ok(Answer(app::cluster_status(&services.core, &caller)?))
}

/// Who the token's holder is.
#[utoipa::path(get, path = "/v1/whoami", tag = "cluster",
    responses((status = 200, body = WhoAmI)))]
pub(super) async fn whoami(State(services): State<Services>, caller: Caller) -> Answer<WhoAmI> {
    Answer(app::whoami(&services.core, &caller))
}

/// The settings of the cluster.
#[utoipa::path(get, path = "/v1/settings", tag = "cluster",
    responses((status = 200, body = Settings)))]
pub(super) async fn settings_show(
    State(services): State<Services>,
    caller: Caller,
) -> Result<Answer<Settings>, ApiError> {
    Ok(Answer(app::settings_show(&services.core, &caller)?))
}

/// Changes settings; what is absent stays.
#[utoipa::path(patch, path = "/v1/settings", tag = "cluster",
    request_body = SetSettingsRequest, responses((status = 200, body = Settings)))]
pub(super) async fn settings_set(
    State(services): State<Services>,
    caller: Caller,
    Json(request): Json<SetSettingsRequest>,
) -> Result<Answer<Settings>, ApiError> {
    Ok(Answer(app::settings_set(&services.core, &caller, request).await?))
}

/// What happened, oldest first; with `wait_ms` it waits for something new.
#[utoipa::path(get, path = "/v1/events", tag = "cluster", params(EventQuery),
    responses((status = 200, body = Vec<Event>)))]
pub(super) async fn event_list(
    State(services): State<Services>,
    caller: Caller,
    Query(query): Query<EventQuery>,
) -> Result<Answer<Vec<Event>>, ApiError> {
    Ok(Answer(app::event_list(&services.core, &caller, query).await?))
}

/// Numbers for Prometheus: for tokens that may see the whole cluster.
pub(super) async fn metrics(
    State(services): State<Services>,
    caller: Caller,
) -> Result<Response, ApiError> {
    caller.in_cluster(Role::Viewer)?;
    let text = services
        .metrics
        .render(&app::cluster_numbers(&services.core))
        .map_err(|error| ApiError::internal(&error))?;
    const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(CONTENT_TYPE, FORMAT)], text).into_response())
}

//! The agents' port: see [`plimsoll_api::cluster`]. A host is known by its certificate; whether it is
//! still a member is asked on every request.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json as Answer, Router,
    body::Body,
    extract::State,
    http::{
        StatusCode,
        header::{CONTENT_LENGTH, CONTENT_TYPE},
    },
    middleware,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use plimsoll_api::{
    ErrorCode,
    cluster::{AgentReport, ReportReply},
};
use plimsoll_model::HostId;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio_util::io::ReaderStream;

use super::{
    Services,
    error::ApiError,
    extract::{At, Json, Query, REPORT_LIMIT},
    frame::{Frame, frame, no_such_method, no_such_path},
    listener::{Peer, stopped},
};
use crate::app;

/// Every host has a long poll open all the time.
const MOST_REQUESTS: usize = 100_000;
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Files go out in pieces of this size.
const PIECE: usize = 256 * 1024;

pub(crate) fn router(services: Services) -> Router {
    let frame_state =
        Frame { metrics: services.metrics.clone(), slots: Arc::new(Semaphore::new(MOST_REQUESTS)) };
    Router::new()
        .route("/cluster/v1/report", post(report))
        .route("/cluster/v1/desired", get(desired))
        .route("/cluster/v1/images/{sha256}", get(image))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(frame_state, frame))
        .with_state(services)
}

fn host_of(peer: &Peer) -> Result<HostId, ApiError> {
    match peer {
        Peer::Host(host) => Ok(*host),
        Peer::Address(_) | Peer::Socket => {
            Err(ApiError::new(ErrorCode::Unauthenticated, "this port is for hosts of the cluster"))
        }
    }
}

async fn report(
    State(services): State<Services>,
    Extension(peer): Extension<Peer>,
    Json(report): Json<AgentReport, REPORT_LIMIT>,
) -> Result<Answer<ReportReply>, ApiError> {
    let host = host_of(&peer)?;
    Ok(Answer(app::agent_report(&services.core, host, report).await?))
}

#[derive(Deserialize)]
struct DesiredQuery {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    wait_ms: u64,
}

async fn desired(
    State(services): State<Services>,
    Extension(peer): Extension<Peer>,
    Query(query): Query<DesiredQuery>,
) -> Result<Response, ApiError> {
    let host = host_of(&peer)?;
    let wait = Duration::from_millis(query.wait_ms).min(LONGEST_WAIT);
    let mut stopping = services.stopping.clone();
    let desired = tokio::select! {
        desired = app::agent_desired(&services.core, host, query.after, wait) => desired?,
        () = stopped(&mut stopping) => {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
    };
    if desired.generation > query.after {
        Ok(Answer(desired).into_response())
    } else {
        Ok(StatusCode::NO_CONTENT.into_response())
    }
}

async fn image(
    State(services): State<Services>,
    Extension(peer): Extension<Peer>,
    At((sha256,)): At<(String,)>,
) -> Result<Response, ApiError> {
    let host = host_of(&peer)?;
    let wanted = app::image_file_for_host(&services.core, host, &sha256)?;
    let (file, length) = services.blobs.read(&wanted.sha256).await?;
    let headers = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (CONTENT_LENGTH, length.to_string()),
    ];
    Ok((headers, Body::from_stream(ReaderStream::with_capacity(file, PIECE))).into_response())
}

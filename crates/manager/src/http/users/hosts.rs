//! Hosts.

use axum::{Json as Answer, extract::State, http::StatusCode};
use plimsoll_api::{
    ErrorChain,
    cluster::{JoinRequest, JoinResponse},
    v1::{DrainRequest, DrainResponse, HostView},
};
use plimsoll_model::{Name, Timestamp};

use crate::{
    app::{self, AppError, Caller},
    ca::CaError,
    http::{
        Services,
        error::ApiError,
        extract::{At, Json, OptionalJson},
        listener::Peer,
    },
};

/// The hosts.
#[utoipa::path(get, path = "/v1/hosts", tag = "hosts",
    responses((status = 200, body = Vec<HostView>)))]
pub(super) async fn host_list(
    State(services): State<Services>,
    caller: Caller,
) -> Result<Answer<Vec<HostView>>, ApiError> {
    Ok(Answer(app::host_list(&services.core, &caller)?))
}

/// One host.
#[utoipa::path(get, path = "/v1/hosts/{host}", tag = "hosts",
    responses((status = 200, body = HostView)))]
pub(super) async fn host_show(
    State(services): State<Services>,
    caller: Caller,
    At((host,)): At<(Name,)>,
) -> Result<Answer<HostView>, ApiError> {
    Ok(Answer(app::host_show(&services.core, &caller, &host)?))
}

/// Empties a host: places nothing new there, and moves its VMs away, now and as long as it is not
/// undrained.
#[utoipa::path(post, path = "/v1/hosts/{host}/drain", tag = "hosts",
    request_body = DrainRequest, responses((status = 200, body = DrainResponse)))]
pub(super) async fn host_drain(
    State(services): State<Services>,
    caller: Caller,
    At((host,)): At<(Name,)>,
    OptionalJson(request): OptionalJson<DrainRequest>,
) -> Result<Answer<DrainResponse>, ApiError> {
    Ok(Answer(app::host_drain(&services.core, &caller, &host, request).await?))
}

/// Places VMs on a host again.
#[utoipa::path(post, path = "/v1/hosts/{host}/undrain", tag = "hosts",
    responses((status = 200, body = HostView)))]
pub(super) async fn host_undrain(
    State(services): State<Services>,
    caller: Caller,
    At((host,)): At<(Name,)>,
) -> Result<Answer<HostView>, ApiError> {
    Ok(Answer(app::host_undrain(&services.core, &caller, &host).await?))
}

/// Vouches that a silent host runs none of its VMs: they may be restarted elsewhere.
#[utoipa::path(post, path = "/v1/hosts/{host}/fence", tag = "hosts",
    responses((status = 200, body = HostView)))]
pub(super) async fn host_fence(
    State(services): State<Services>,
    caller: Caller,
    At((host,)): At<(Name,)>,
) -> Result<Answer<HostView>, ApiError> {
    Ok(Answer(app::host_fence(&services.core, &caller, &host).await?))
}

/// Removes a host that holds no VM; its certificate is refused from then on.
#[utoipa::path(delete, path = "/v1/hosts/{host}", tag = "hosts",
    responses((status = 204, description = "It is gone")))]
pub(super) async fn host_remove(
    State(services): State<Services>,
    caller: Caller,
    At((host,)): At<(Name,)>,
) -> Result<StatusCode, ApiError> {
    app::host_remove(&services.core, &caller, &host).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A new host asks for its certificate, with a one-use join token in the body.
#[utoipa::path(post, path = "/v1/join", tag = "hosts", security(()),
    request_body = JoinRequest, responses((status = 201, body = JoinResponse)))]
pub(super) async fn host_join(
    State(services): State<Services>,
    axum::Extension(peer): axum::Extension<Peer>,
    Json(request): Json<JoinRequest>,
) -> Result<(StatusCode, Answer<JoinResponse>), ApiError> {
    let JoinRequest { token, name, certificate_request_pem, spec } = request;
    let signer = services.clone();
    let sign = move |host| {
        signer
            .ca
            .sign_host(host, &certificate_request_pem, Timestamp::now())
            .map_err(|error| refuse_request(&error))
    };
    let joined = app::host_join(&services.core, &token, name, spec, sign).await;
    let (host, certificate_pem) = match joined {
        Err(AppError::Unauthenticated) => {
            services.limiter.failure(Some(&peer))?;
            return Err(ApiError::from(AppError::Unauthenticated).hint(
                "each join token joins one host; make another with `plimsoll join-token create`",
            ));
        }
        other => other?,
    };
    let joined = JoinResponse {
        host,
        certificate_pem,
        ca_pem: services.ca.certificate_pem().to_owned(),
        cluster_address: services.cluster_address.clone(),
    };
    Ok((StatusCode::CREATED, Answer(joined)))
}

fn refuse_request(error: &CaError) -> AppError {
    AppError::invalid(
        "certificate_request_pem",
        ErrorChain(error).to_string(),
        "send a PKCS#10 request in PEM, signed with its own key",
    )
}

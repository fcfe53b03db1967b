//! What agents of other hosts ask, for VMs that move: unpack, ask the VM's task, pack.

use axum::{
    Extension, Json, Router,
    extract::{DefaultBodyLimit, Path, State, rejection::JsonRejection},
    routing::post,
};
use plimsoll_api::{
    ErrorCode,
    migration::{ArrivalPrepared, ArrivalVerdict, PrepareArrival},
};
use plimsoll_model::{HostId, VmId};
use tower_http::timeout::RequestBodyTimeoutLayer;
use uuid::Uuid;

use super::{BODY_LIMIT, problem::Problem};
use crate::vm::{PeerAnswer, PeerError, PeerRequest, Vms};

/// A description of a machine, with the names of its processor's features.
const LARGEST_BODY: usize = 64 << 10;

pub(super) fn router(vms: Vms) -> Router {
    Router::new()
        .route("/peer/v1/vms/{vm}/migrations/{id}/prepare", post(prepare))
        .route("/peer/v1/vms/{vm}/migrations/{id}/close-disk", post(close_disk))
        .route("/peer/v1/vms/{vm}/migrations/{id}/go", post(go))
        .route("/peer/v1/vms/{vm}/migrations/{id}/abandon", post(abandon))
        .fallback(async || Problem::new(ErrorCode::Forbidden, "a host may not ask for that"))
        .method_not_allowed_fallback(async || {
            Problem::new(ErrorCode::MethodNotAllowed, "the endpoint does not take this method")
        })
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(RequestBodyTimeoutLayer::new(BODY_LIMIT))
        .with_state(vms)
}

impl From<PeerError> for Problem {
    fn from(error: PeerError) -> Self {
        let code = match &error {
            PeerError::NotExpected => ErrorCode::NotFound,
            PeerError::NotNow => ErrorCode::Unreachable,
            PeerError::Failed { .. } => ErrorCode::Unsupported,
        };
        Self::of(code, &error)
    }
}

/// A move, as a path names it.
fn moved(vm: &str, id: &str) -> Result<(VmId, Uuid), Problem> {
    let vm = vm.parse::<VmId>().map_err(|error| Problem::of(ErrorCode::InvalidRequest, &error))?;
    let id = Uuid::try_parse(id).map_err(|error| Problem::of(ErrorCode::InvalidRequest, &error))?;
    Ok((vm, id))
}

async fn ask(
    vms: &Vms,
    from: HostId,
    (vm, id): (String, String),
    request: PeerRequest,
) -> Result<PeerAnswer, Problem> {
    let (vm, id) = moved(&vm, &id)?;
    Ok(vms.ask_for_peer(vm, from, id, request).await?)
}

fn odd() -> Problem {
    Problem::new(ErrorCode::Internal, "the VM's task answered another question")
}

async fn prepare(
    State(vms): State<Vms>,
    Extension(from): Extension<HostId>,
    Path(which): Path<(String, String)>,
    machine: Result<Json<PrepareArrival>, JsonRejection>,
) -> Result<Json<ArrivalPrepared>, Problem> {
    let Json(machine) = machine.map_err(|rejection| Problem::of_body(&rejection))?;
    match ask(&vms, from, which, PeerRequest::Prepare(Box::new(machine))).await? {
        PeerAnswer::Prepared(prepared) => Ok(Json(prepared)),
        _ => Err(odd()),
    }
}

async fn close_disk(
    State(vms): State<Vms>,
    Extension(from): Extension<HostId>,
    Path(which): Path<(String, String)>,
) -> Result<Json<()>, Problem> {
    match ask(&vms, from, which, PeerRequest::CloseDisk).await? {
        PeerAnswer::Done => Ok(Json(())),
        _ => Err(odd()),
    }
}

async fn go(
    State(vms): State<Vms>,
    Extension(from): Extension<HostId>,
    Path(which): Path<(String, String)>,
) -> Result<Json<ArrivalVerdict>, Problem> {
    verdict(&ask(&vms, from, which, PeerRequest::Go).await?)
}

async fn abandon(
    State(vms): State<Vms>,
    Extension(from): Extension<HostId>,
    Path(which): Path<(String, String)>,
) -> Result<Json<ArrivalVerdict>, Problem> {
    verdict(&ask(&vms, from, which, PeerRequest::Abandon).await?)
}

fn verdict(answer: &PeerAnswer) -> Result<Json<ArrivalVerdict>, Problem> {
    match answer {
        PeerAnswer::Verdict(verdict) => Ok(Json(*verdict)),
        _ => Err(odd()),
    }
}

//! VMs, but for what happens inside them.

use axum::{Json as Answer, extract::State, http::StatusCode};
use plimsoll_api::v1::{
    CreateVmsRequest, CreateVmsResponse, DeflateVmRequest, ExplainRequest, Explanation,
    MigrateRequest, MigrateResponse, Reservation, SetVmRequest, StopVmRequest, VmView,
};
use plimsoll_model::Name;

use crate::{
    app::{self, Caller},
    http::{
        Services,
        error::ApiError,
        extract::{At, Json, OptionalJson},
    },
};

/// Creates VMs: singly, so many of a size, or as a total to be split; all or none, or what can be.
#[utoipa::path(post, path = "/v1/projects/{project}/vms", tag = "vms",
    request_body = CreateVmsRequest, responses((status = 201, body = CreateVmsResponse)))]
pub(super) async fn vm_create(
    State(services): State<Services>,
    caller: Caller,
    At((project,)): At<(Name,)>,
    Json(request): Json<CreateVmsRequest>,
) -> Result<(StatusCode, Answer<CreateVmsResponse>), ApiError> {
    let created = app::vm_create(&services.core, &caller, &project, request).await?;
    Ok((StatusCode::CREATED, Answer(created)))
}

/// The VMs of a project.
#[utoipa::path(get, path = "/v1/projects/{project}/vms", tag = "vms",
    responses((status = 200, body = Vec<VmView>)))]
pub(super) async fn vm_list(
    State(services): State<Services>,
    caller: Caller,
    At((project,)): At<(Name,)>,
) -> Result<Answer<Vec<VmView>>, ApiError> {
    Ok(Answer(app::vm_list(&services.core, &caller, &project)?))
}

/// What is booked in a project, or held until an end: by start, then by end.
#[utoipa::path(get, path = "/v1/projects/{project}/reservations", tag = "vms",
    responses((status = 200, body = Vec<Reservation>)))]
pub(super) async fn reservation_list(
    State(services): State<Services>,
    caller: Caller,
    At((project,)): At<(Name,)>,
) -> Result<Answer<Vec<Reservation>>, ApiError> {
    Ok(Answer(app::reservation_list(&services.core, &caller, &project)?))
}

/// One VM.
#[utoipa::path(get, path = "/v1/projects/{project}/vms/{vm}", tag = "vms",
    responses((status = 200, body = VmView)))]
pub(super) async fn vm_show(
    State(services): State<Services>,
    caller: Caller,
    At((project, vm)): At<(Name, Name)>,
) -> Result<Answer<VmView>, ApiError> {
    Ok(Answer(app::vm_show(&services.core, &caller, &project, &vm)?))
}

/// Changes a VM, running or not; what is absent stays.
#[utoipa::path(patch, path = "/v1/projects/{project}/vms/{vm}", tag = "vms",
    request_body = SetVmRequest, responses((status = 200, body = VmView)))]
pub(super) async fn vm_set(
    State(services): State<Services>,
    caller: Caller,
    At((project, vm)): At<(Name, Name)>,
    Json(request): Json<SetVmRequest>,
) -> Result<Answer<VmView>, ApiError> {
    Ok(Answer(app::vm_set(&services.core, &caller, &project, &vm, request).await?))
}

/// Deletes a VM with its disk: it is gone when it is no longer found.
#[utoipa::path(delete, path = "/v1/projects/{project}/vms/{vm}", tag = "vms",
    responses((status = 202, body = VmView)))]
pub(super) async fn vm_delete(
    State(services): State<Services>,
    caller: Caller,
    At((project, vm)): At<(Name, Name)>,
) -> Result<(StatusCode, Answer<VmView>), ApiError> {
    let vm = app::vm_delete(&services.core, &caller, &project, &vm).await?;
    Ok((StatusCode::ACCEPTED, Answer(vm)))
}

/// Starts a VM.
#[utoipa::path(post, path = "/v1/projects/{project}/vms/{vm}/start", tag = "vms",
    responses((status = 200, body = VmView)))]
pub(super) async fn vm_start(
    State(services): State<Services>,
    caller: Caller,
    At((project, vm)): At<(Name, Name)>,
) -> Result<Answer<VmView>, ApiError> {
    Ok(Answer(app::vm_start(&services.core, &caller, &project, &vm).await?))
}

/// Stops a VM.
#[utoipa::path(post, path = "/v1/projects/{project}/vms/{vm}/stop", tag = "vms",
    request_body = StopVmRequest, responses((status = 200, body = VmView)))]
pub(super) async fn vm_stop(
    State(services): State<Services>,
    caller: Caller,
    At((project, vm)): At<(Name, Name)>,
    OptionalJson(request): OptionalJson<StopVmRequest>,
) -> Result<Answer<VmView>, ApiError> {
    Ok(Answer(app::vm_stop(&services.core, &caller, &project, &vm, request).await?))
}

/// Reboots a running VM.
#[utoipa::path(post, path = "/v1/projects/{project}/vms/{vm}/reboot", tag = "vms",
    responses((status = 200, body = VmView)))]
pub(super) async fn vm_reboot(
    State(services): State<Services>,
    caller: Caller,
    At((project, vm)): At<(Name, Name)>,
) -> Result<Answer<VmView>, ApiError> {
    Ok(Answer(app::vm_reboot(&services.core, &caller, &project, &vm).await?))
}

/// Takes a part of a running VM's memory and CPU: from its applications, then its kernel, then
/// without its help.
#[utoipa::path(post, path = "/v1/projects/{project}/vms/{vm}/deflate", tag = "vms",
    request_body = DeflateVmRequest, responses((status = 200, body = VmView)))]
pub(super) async fn vm_deflate(
    State(services): State<Services>,
    caller: Caller,
    At((project, vm)): At<(Name, Name)>,
    Json(request): Json<DeflateVmRequest>,
) -> Result<Answer<VmView>, ApiError> {
    Ok(Answer(app::vm_deflate(&services.core, &caller, &project, &vm, request).await?))
}

/// Gives a VM back what was taken.
#[utoipa::path(post, path = "/v1/projects/{project}/vms/{vm}/inflate", tag = "vms",
    responses((status = 200, body = VmView)))]
pub(super) async fn vm_inflate(
    State(services): State<Services>,
    caller: Caller,
    At((project, vm)): At<(Name, Name)>,
) -> Result<Answer<VmView>, ApiError> {
    Ok(Answer(app::vm_inflate(&services.core, &caller, &project, &vm).await?))
}

/// Moves a running VM to another host. It is there when `migration` is gone; `last_migration` says
/// how it went.
#[utoipa::path(post, path = "/v1/projects/{project}/vms/{vm}/migrate", tag = "vms",
    request_body = MigrateRequest, responses((status = 200, body = MigrateResponse)))]
pub(super) async fn vm_migrate(
    State(services): State<Services>,
    caller: Caller,
    At((project, vm)): At<(Name, Name)>,
    OptionalJson(request): OptionalJson<MigrateRequest>,
) -> Result<Answer<MigrateResponse>, ApiError> {
    Ok(Answer(app::vm_migrate(&services.core, &caller, &project, &vm, request).await?))
}

/// Gives up a VM's move, as long as that is possible: it may arrive nevertheless.
#[utoipa::path(post, path = "/v1/projects/{project}/vms/{vm}/migrate/cancel", tag = "vms",
    responses((status = 200, body = VmView)))]
pub(super) async fn vm_migrate_cancel(
    State(services): State<Services>,
    caller: Caller,
    At((project, vm)): At<(Name, Name)>,
) -> Result<Answer<VmView>, ApiError> {
    Ok(Answer(app::vm_migrate_cancel(&services.core, &caller, &project, &vm).await?))
}

/// Explains where a VM is: every host's refusal, or its score.
#[utoipa::path(get, path = "/v1/projects/{project}/vms/{vm}/explain", tag = "vms",
    responses((status = 200, body = Explanation)))]
pub(super) async fn vm_explain(
    State(services): State<Services>,
    caller: Caller,
    At((project, vm)): At<(Name, Name)>,
) -> Result<Answer<Explanation>, ApiError> {
    Ok(Answer(app::vm_explain(&services.core, &caller, &project, &vm).await?))
}

/// Explains where a VM would be placed; nothing is created.
#[utoipa::path(post, path = "/v1/projects/{project}/explain", tag = "vms",
    request_body = ExplainRequest, responses((status = 200, body = Explanation)))]
pub(super) async fn request_explain(
    State(services): State<Services>,
    caller: Caller,
    At((project,)): At<(Name,)>,
    Json(request): Json<ExplainRequest>,
) -> Result<Answer<Explanation>, ApiError> {
    Ok(Answer(app::request_explain(&services.core, &caller, &project, request).await?))
}

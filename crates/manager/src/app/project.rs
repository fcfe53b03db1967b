//! Projects.

use plimsoll_api::v1::{CreateProjectRequest, ProjectView, SetProjectRequest};
use plimsoll_model::Name;

use crate::{
    app::{AppError, Caller},
    core::Core,
};

/// Creates a project.
///
/// # Errors
/// The name is taken, or the caller is not an admin of the cluster.
pub async fn project_create(
    core: &Core,
    caller: &Caller,
    request: CreateProjectRequest,
) -> Result<ProjectView, AppError> {
    let _ = (core, caller, request);
    todo!()
}

/// The projects that the caller may see, by name.
///
/// # Errors
/// None at present.
pub fn project_list(core: &Core, caller: &Caller) -> Result<Vec<ProjectView>, AppError> {
    let _ = (core, caller);
    todo!()
}

/// One project.
///
/// # Errors
/// There is none of that name for the caller.
pub fn project_show(core: &Core, caller: &Caller, project: &Name) -> Result<ProjectView, AppError> {
    let _ = (core, caller, project);
    todo!()
}

/// Changes a project's quota or credits. A quota below what the project holds stops nothing.
///
/// # Errors
/// There is none of that name, or the caller is not an admin of the cluster.
pub async fn project_set(
    core: &Core,
    caller: &Caller,
    project: &Name,
    request: SetProjectRequest,
) -> Result<ProjectView, AppError> {
    let _ = (core, caller, project, request);
    todo!()
}

/// Deletes an empty project with its tokens.
///
/// # Errors
/// It has VMs, networks or images, or the caller is not an admin of the cluster.
pub async fn project_delete(core: &Core, caller: &Caller, project: &Name) -> Result<(), AppError> {
    let _ = (core, caller, project);
    todo!()
}

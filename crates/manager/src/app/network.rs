//! Networks.

use plimsoll_api::v1::CreateNetworkRequest;
use plimsoll_model::{Name, Network};

use crate::{
    app::{AppError, Caller},
    core::Core,
};

/// Creates a network.
///
/// # Errors
/// The name is taken, or its addresses overlap with those of another network of the project.
pub async fn network_create(
    core: &Core,
    caller: &Caller,
    project: &Name,
    request: CreateNetworkRequest,
) -> Result<Network, AppError> {
    let _ = (core, caller, project, request);
    todo!()
}

/// The networks of a project, by name.
///
/// # Errors
/// There is no such project for the caller.
pub fn network_list(
    core: &Core,
    caller: &Caller,
    project: &Name,
) -> Result<Vec<Network>, AppError> {
    let _ = (core, caller, project);
    todo!()
}

/// One network.
///
/// # Errors
/// There is no such network for the caller.
pub fn network_show(
    core: &Core,
    caller: &Caller,
    project: &Name,
    network: &Name,
) -> Result<Network, AppError> {
    let _ = (core, caller, project, network);
    todo!()
}

/// Deletes a network.
///
/// # Errors
/// VMs are on it.
pub async fn network_delete(
    core: &Core,
    caller: &Caller,
    project: &Name,
    network: &Name,
) -> Result<(), AppError> {
    let _ = (core, caller, project, network);
    todo!()
}

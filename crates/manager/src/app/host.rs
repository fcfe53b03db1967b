//! Hosts.

use plimsoll_api::v1::{DrainResponse, HostView};
use plimsoll_model::{HostId, HostSpec, Name};

use crate::{
    app::{AppError, Caller},
    core::Core,
};

/// Takes a host into the cluster: uses up the join token, registers the host and makes its
/// certificate, or does nothing of it. `sign` gets the host's new id and returns what is to be
/// returned (the certificate); it runs inside the transaction and must be quick.
///
/// # Errors
/// The token is not good, the name is taken, the spec is not valid, or `sign` fails.
pub async fn host_join<T: Send + 'static>(
    core: &Core,
    token: &str,
    name: Name,
    spec: HostSpec,
    sign: impl FnOnce(HostId) -> Result<T, AppError> + Send + 'static,
) -> Result<(HostId, T), AppError> {
    let _ = (core, token, name, spec, sign);
    todo!()
}

/// Every host, by id.
///
/// # Errors
/// The caller's token is bound to a project.
pub fn host_list(core: &Core, caller: &Caller) -> Result<Vec<HostView>, AppError> {
    let _ = (core, caller);
    todo!()
}

/// One host.
///
/// # Errors
/// There is none of that name, or the caller's token is bound to a project.
pub fn host_show(core: &Core, caller: &Caller, host: &Name) -> Result<HostView, AppError> {
    let _ = (core, caller, host);
    todo!()
}

/// Places nothing new on a host.
///
/// # Errors
/// There is none of that name, or the caller may not.
pub async fn host_drain(
    core: &Core,
    caller: &Caller,
    host: &Name,
) -> Result<DrainResponse, AppError> {
    let _ = (core, caller, host);
    todo!()
}

/// Places VMs on a host again.
///
/// # Errors
/// There is none of that name, or the caller may not.
pub async fn host_undrain(core: &Core, caller: &Caller, host: &Name) -> Result<HostView, AppError> {
    let _ = (core, caller, host);
    todo!()
}

/// The caller vouches that the host runs none of its VMs: they may be restarted elsewhere.
///
/// # Errors
/// The host is up, there is none of that name, or the caller may not.
pub async fn host_fence(core: &Core, caller: &Caller, host: &Name) -> Result<HostView, AppError> {
    let _ = (core, caller, host);
    todo!()
}

/// Removes a host for good.
///
/// # Errors
/// VMs are assigned to it, or it may still hold something of deleted ones and is not fenced.
pub async fn host_remove(core: &Core, caller: &Caller, host: &Name) -> Result<(), AppError> {
    let _ = (core, caller, host);
    todo!()
}

//! VMs.

use plimsoll_api::v1::{CreateVmsRequest, CreateVmsResponse, SetVmRequest, StopVmRequest, VmView};
use plimsoll_model::{HostId, Name, VmId};

use crate::{
    app::{AppError, Caller},
    core::Core,
};

/// What somebody wants inside a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read its logs or its state: a viewer may.
    Read,
    /// Run a program in it: an operator may, and it is put on record.
    Exec,
    /// Use its console: an operator may, and it is put on record.
    Console,
}

/// Where a VM can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmLocation {
    /// The VM.
    pub vm: VmId,
    /// Its host.
    pub host: HostId,
    /// The host's name.
    pub host_name: Name,
    /// Where its host's agent listens: `address:port`. Its certificate's name is the host's id.
    pub agent_address: String,
}

/// Creates VMs: all in one transaction.
///
/// # Errors
/// The request is not valid, or quota, credits, addresses or capacity do not allow it; with
/// `all_or_nothing` nothing is created then.
pub async fn vm_create(
    core: &Core,
    caller: &Caller,
    project: &Name,
    request: CreateVmsRequest,
) -> Result<CreateVmsResponse, AppError> {
    let _ = (core, caller, project, request);
    todo!()
}

/// The VMs of a project, by name.
///
/// # Errors
/// There is no such project for the caller.
pub fn vm_list(core: &Core, caller: &Caller, project: &Name) -> Result<Vec<VmView>, AppError> {
    let _ = (core, caller, project);
    todo!()
}

/// One VM.
///
/// # Errors
/// There is no such VM for the caller.
pub fn vm_show(
    core: &Core,
    caller: &Caller,
    project: &Name,
    vm: &Name,
) -> Result<VmView, AppError> {
    let _ = (core, caller, project, vm);
    todo!()
}

/// Changes a VM.
///
/// # Errors
/// A value is not allowed, the VM's state or generation is another, or quota or its host's capacity
/// do not allow it; nothing is changed then.
pub async fn vm_set(
    core: &Core,
    caller: &Caller,
    project: &Name,
    vm: &Name,
    request: SetVmRequest,
) -> Result<VmView, AppError> {
    let _ = (core, caller, project, vm, request);
    todo!()
}

/// Starts a stopped or failed VM; one that runs is left as it is.
///
/// # Errors
/// Quota, credits or capacity do not allow it, or it is being deleted.
pub async fn vm_start(
    core: &Core,
    caller: &Caller,
    project: &Name,
    vm: &Name,
) -> Result<VmView, AppError> {
    let _ = (core, caller, project, vm);
    todo!()
}

/// Stops a VM; one that is stopped is left as it is.
///
/// # Errors
/// It is being deleted, or the grace is longer than an hour.
pub async fn vm_stop(
    core: &Core,
    caller: &Caller,
    project: &Name,
    vm: &Name,
    request: StopVmRequest,
) -> Result<VmView, AppError> {
    let _ = (core, caller, project, vm, request);
    todo!()
}

/// Reboots a running VM.
///
/// # Errors
/// It does not run.
pub async fn vm_reboot(
    core: &Core,
    caller: &Caller,
    project: &Name,
    vm: &Name,
) -> Result<VmView, AppError> {
    let _ = (core, caller, project, vm);
    todo!()
}

/// Deletes a VM with its disk. The answer shows it `deleting`, until its host has confirmed.
///
/// # Errors
/// There is no such VM for the caller.
pub async fn vm_delete(
    core: &Core,
    caller: &Caller,
    project: &Name,
    vm: &Name,
) -> Result<VmView, AppError> {
    let _ = (core, caller, project, vm);
    todo!()
}

/// Where a VM can be reached, for reading.
///
/// # Errors
/// It is on no host, or its host does not answer.
pub fn vm_locate(
    core: &Core,
    caller: &Caller,
    project: &Name,
    vm: &Name,
) -> Result<VmLocation, AppError> {
    let _ = (core, caller, project, vm);
    todo!()
}

/// Where a VM can be reached, with the access put on record for [`Access::Exec`] and
/// [`Access::Console`].
///
/// # Errors
/// It does not run, its host does not answer, or the role does not allow it.
pub async fn vm_access(
    core: &Core,
    caller: &Caller,
    project: &Name,
    vm: &Name,
    access: Access,
) -> Result<VmLocation, AppError> {
    let _ = (core, caller, project, vm, access);
    todo!()
}

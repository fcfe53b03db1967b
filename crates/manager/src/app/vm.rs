//! VMs.

use std::collections::BTreeMap;

use plimsoll_api::{
    cluster::{ObservedPhase, ObservedVm},
    v1::{
        BookingView, CreateVmsRequest, CreateVmsResponse, DeflateVmRequest, SetVmRequest,
        StopVmRequest, VmRequest, VmView,
    },
};
use plimsoll_model::{
    EventKind, HostId, HostPhase, Name, Policy, Project, Role, Severity, VmId, VmPhase,
};

use crate::{
    admission::{place, place::Wanted, validate},
    app::{AppError, Caller, Noun, change, migration},
    core::{
        Core, State,
        record::{Booking, VmRecord},
        txn::Txn,
    },
};

/// The longest grace of a stop.
const MAX_GRACE_S: u32 = 3600;

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
    let (core, caller_, project) = (core.clone(), caller.clone(), project.clone());
    let answer = core.clone();
    validate::counts(&request)?;
    core.submit(Some(caller.token), move |txn| {
        let project = caller_.project(&txn.state, &project)?.clone();
        caller_.at_least(Role::Operator)?;
        create(txn, &answer, &project, &request)
    })
    .await
}

/// The VMs of a project, by name.
///
/// # Errors
/// There is no such project for the caller.
pub fn vm_list(core: &Core, caller: &Caller, project: &Name) -> Result<Vec<VmView>, AppError> {
    let state = core.snapshot();
    let project = caller.project(&state, project)?;
    let first = (project.id, FIRST_NAME.parse().expect("a legal name"));
    Ok(state
        .vm_names
        .range(first..)
        .take_while(|((owner, _), _)| *owner == project.id)
        .filter_map(|(_, id)| state.vm(*id))
        .map(|record| view(core, &state, record))
        .collect())
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
    let state = core.snapshot();
    let record = find(&state, caller, project, vm)?;
    Ok(view(core, &state, record))
}

/// Carries out one change of a VM that the caller may change, and shows the VM after it.
async fn change(
    core: &Core,
    caller: &Caller,
    project: &Name,
    vm: &Name,
    change: impl FnOnce(&mut Txn<'_>, &VmRecord) -> Result<(), AppError> + Send + 'static,
) -> Result<VmView, AppError> {
    let (core_, caller_) = (core.clone(), caller.clone());
    let (project, vm) = (project.clone(), vm.clone());
    core.submit(Some(caller.token), move |txn| {
        let record = find(&txn.state, &caller_, &project, &vm)?.clone();
        caller_.at_least(Role::Operator)?;
        change(txn, &record)?;
        Ok(view_now(&core_, txn, record.vm.id))
    })
    .await
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
    let inner = core.clone();
    let set = move |txn: &mut Txn<'_>, record: &VmRecord| {
        let limits = seen(&inner, record).and_then(|seen| seen.limits);
        let most = limits.and_then(|limits| limits.memory_max).unwrap_or(record.booted_memory);
        change::set(txn, record, request, most)
    };
    change(core, caller, project, vm, set).await
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
    change(core, caller, project, vm, change::start).await
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
    if request.grace_s > MAX_GRACE_S {
        return Err(AppError::invalid(
            "grace_s",
            format!("{} s", request.grace_s),
            "use 0 to 3600 seconds",
        ));
    }
    change(core, caller, project, vm, move |txn, record| {
        change::stop(txn, record, u64::from(request.grace_s) * 1000)
    })
    .await
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
    change(core, caller, project, vm, change::reboot).await
}

/// Takes a part of what a running VM has. It is done when the VM's generation is observed; what
/// came of it stands in its `deflation_outcome`.
///
/// # Errors
/// It does not run, or more is asked for than can be taken.
pub async fn vm_deflate(
    core: &Core,
    caller: &Caller,
    project: &Name,
    vm: &Name,
    request: DeflateVmRequest,
) -> Result<VmView, AppError> {
    change(core, caller, project, vm, move |txn, record| change::deflate(txn, record, request))
        .await
}

/// Gives a VM back what was taken from it; one that is not deflated is left as it is.
///
/// # Errors
/// It is being deleted.
pub async fn vm_inflate(
    core: &Core,
    caller: &Caller,
    project: &Name,
    vm: &Name,
) -> Result<VmView, AppError> {
    change(core, caller, project, vm, change::inflate).await
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
    let (core_, caller_) = (core.clone(), caller.clone());
    let (project, vm) = (project.clone(), vm.clone());
    core.submit(Some(caller.token), move |txn| {
        let record = find(&txn.state, &caller_, &project, &vm)?.clone();
        caller_.at_least(Role::Operator)?;
        change::delete(txn, &record);
        let mut view = view(&core_, &txn.state, txn.state.vm(record.vm.id).unwrap_or(&record));
        view.state = VmPhase::Deleting;
        Ok(view)
    })
    .await
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
    let state = core.snapshot();
    let record = find(&state, caller, project, vm)?;
    locate(&state, record)
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
    if access == Access::Read {
        return vm_locate(core, caller, project, vm);
    }
    let caller_ = caller.clone();
    let (project, vm) = (project.clone(), vm.clone());
    core.submit(Some(caller.token), move |txn| {
        let record = find(&txn.state, &caller_, &project, &vm)?.clone();
        caller_.at_least(Role::Operator)?;
        if record.vm.phase != VmPhase::Running {
            return Err(change::wrong_state("enter", &record, "it must be running"));
        }
        let location = locate(&txn.state, &record)?;
        let message = if access == Access::Exec { "exec" } else { "console" };
        txn.vm_event(Severity::Info, EventKind::VmAccessed, &record, message);
        Ok(location)
    })
    .await
}

/// Where the names of a project begin: the first legal name.
const FIRST_NAME: &str = "a";

pub(crate) fn find<'a>(
    state: &'a State,
    caller: &Caller,
    project: &Name,
    vm: &Name,
) -> Result<&'a std::sync::Arc<VmRecord>, AppError> {
    let project = caller.project(state, project)?;
    state.vm_by_name(project.id, vm).ok_or_else(|| AppError::not_found(Noun::Vm, vm))
}

fn locate(state: &State, record: &VmRecord) -> Result<VmLocation, AppError> {
    let host = record.host().and_then(|id| state.host(id)).ok_or_else(|| {
        change::wrong_state("reach", record, "it has no host: `plimsoll vm show` tells why")
    })?;
    if host.host.phase != HostPhase::Up {
        return Err(AppError::Unreachable { host: host.host.name.clone() });
    }
    Ok(VmLocation {
        vm: record.vm.id,
        host: host.host.id,
        host_name: host.host.name.clone(),
        agent_address: host.host.spec.agent_address.clone(),
    })
}

fn create(
    txn: &mut Txn<'_>,
    core: &Core,
    project: &Project,
    request: &CreateVmsRequest,
) -> Result<CreateVmsResponse, AppError> {
    let mut refused = BTreeMap::new();
    let mut ids = Vec::new();
    if request.all_or_nothing {
        let mut wanted = Vec::new();
        for (i, entry) in request.requests.iter().enumerate() {
            wanted.extend(expand(txn, project, entry, i, request.policy)?);
        }
        ids = place::create(txn, project, &wanted, request.policy)?;
    } else {
        for (i, entry) in request.requests.iter().enumerate() {
            let wanted = match expand(txn, project, entry, i, request.policy) {
                Ok(wanted) => wanted,
                Err(error) => {
                    refused.insert(entry.name.to_string(), error.to_body());
                    continue;
                }
            };
            // The VMs of a split are one thing; others stand alone.
            let size = if entry.split.is_some() { wanted.len().max(1) } else { 1 };
            for part in wanted.chunks(size) {
                let mark = txn.mark();
                match place::create(txn, project, part, request.policy) {
                    Ok(created) => ids.extend(created),
                    Err(error) => {
                        txn.roll_back(mark);
                        let body = error.to_body();
                        for vm in part {
                            refused.insert(vm.name.to_string(), body.clone());
                        }
                    }
                }
            }
        }
    }
    let vms = ids.into_iter().map(|id| view_now(core, txn, id)).collect();
    Ok(CreateVmsResponse { vms, refused })
}

fn expand(
    txn: &mut Txn<'_>,
    project: &Project,
    entry: &VmRequest,
    index: usize,
    policy: Option<Policy>,
) -> Result<Vec<Wanted>, AppError> {
    let policy = policy.unwrap_or(txn.state.settings().policy);
    place::expand(txn, project.id, entry, &format!("requests[{index}]"), policy)
}

fn view_now(core: &Core, txn: &Txn<'_>, id: VmId) -> VmView {
    let record = txn.state.vm(id).expect("a VM that was just written is there");
    view(core, &txn.state, record)
}

fn booking_view(state: &State, booking: &Booking) -> Option<BookingView> {
    Some(BookingView {
        host: state.host(booking.host)?.host.name.clone(),
        reason: booking.reason.clone(),
        starts_at: booking.from,
        ends_at: booking.until,
        since: booking.since,
    })
}

/// What its host tells of a VM as it is now.
fn seen(core: &Core, record: &VmRecord) -> Option<ObservedVm> {
    let seen = core.telemetry().seen(record.host()?, record.vm.id)?;
    Some(seen.observed).filter(|observed| observed.incarnation == record.vm.incarnation)
}

/// A VM as users see it.
pub(crate) fn view(core: &Core, state: &State, record: &VmRecord) -> VmView {
    let vm = &record.vm;
    let host = record.host().and_then(|id| state.host(id));
    let seen = host.and_then(|_| seen(core, record));
    let running =
        seen.as_ref().filter(|observed| observed.phase == ObservedPhase::Running).cloned();
    let behind = vm.phase != VmPhase::Running || vm.observed_generation < vm.generation;
    let message = core
        .waiting(vm.id)
        .filter(|_| vm.phase == VmPhase::Pending)
        .or_else(|| record.migration.as_ref().and_then(|migration| migration.message.clone()))
        .or_else(|| vm.message.clone())
        .or_else(|| seen.as_ref().filter(|_| behind).and_then(|seen| seen.message.clone()));
    VmView {
        migration: migration::view(core, state, record),
        last_migration: migration::view_last(state, record),
        booking: record.booking.as_ref().and_then(|booking| booking_view(state, booking)),
        id: vm.id,
        name: vm.name.clone(),
        project: state
            .project(vm.project)
            .map_or_else(|| vm.name.clone(), |project| project.name.clone()),
        state: vm.phase,
        state_since: vm.phase_since,
        host: host.map(|host| host.host.name.clone()),
        placement_reason: vm.placement.as_ref().map(|placement| placement.reason.clone()),
        addresses: vm.interfaces.iter().map(|interface| interface.address).collect(),
        resources: vm.spec.resources.clone(),
        spec: vm.spec.clone(),
        power: vm.power,
        generation: vm.generation,
        observed_generation: vm.observed_generation,
        message,
        created_at: vm.created_at,
        restarts: seen.as_ref().map_or(0, |seen| seen.restarts),
        limits: running.as_ref().and_then(|seen| seen.limits.clone()),
        deflation: vm.deflation,
        deflation_outcome: running.as_ref().and_then(|seen| seen.deflation.clone()),
        share: running.as_ref().and_then(|seen| seen.share.clone()),
        usage: running
            .as_ref()
            .and(record.host())
            .and_then(|host| core.telemetry().usage_of(host, vm.id)),
        deduplication: running.as_ref().and_then(|seen| seen.deduplication),
        guest: running.and_then(|seen| seen.guest),
    }
}

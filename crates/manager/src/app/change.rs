//! Changes of one VM, inside a transaction.

use plimsoll_api::v1::{DeflateVmRequest, SetVmRequest};
use plimsoll_model::{
    Bytes, Deflation, DiskLocation, EventKind, HostId, HostPhase, Name, OnHostFailure, Power,
    Resources, Severity, StoragePool, VmEvent, VmPhase,
};
use plimsoll_placement::{Refusal, Request, Verdict};

use crate::{
    admission::{book, place, quota, validate},
    app::{AppError, Noun},
    core::{
        State,
        record::{Claim, Cleanup, HostRecord, VmRecord},
        txn::Txn,
    },
};

/// The VM's phase does not allow it.
pub(crate) fn wrong_state(action: &'static str, record: &VmRecord, hint: &'static str) -> AppError {
    AppError::WrongState {
        action,
        what: Noun::Vm,
        name: record.vm.name.to_string(),
        state: record.vm.phase.to_string(),
        hint,
    }
}

/// While a VM moves nothing else of it changes: its source and its target would not know of the same
/// VM.
fn not_moving(action: &'static str, record: &VmRecord) -> Result<(), AppError> {
    if record.migration.is_some() {
        return Err(AppError::WrongState {
            action,
            what: Noun::Vm,
            name: record.vm.name.to_string(),
            state: "moving to another host".to_owned(),
            hint: "wait until it is there, or end the move with `plimsoll vm migrate NAME --cancel`",
        });
    }
    Ok(())
}

fn not_deleting(action: &'static str, record: &VmRecord) -> Result<(), AppError> {
    if record.vm.phase == VmPhase::Deleting {
        return Err(wrong_state(action, record, "it is going; create a new one when it is gone"));
    }
    Ok(())
}

fn step(record: &mut VmRecord, event: VmEvent) -> Result<(), AppError> {
    record.vm.phase = record.vm.phase.next(event).map_err(|_| {
        wrong_state("change", record, "wait until it is in another state and try again")
    })?;
    Ok(())
}

/// Starts a VM: one that runs or waits is left as it is.
pub(crate) fn start(txn: &mut Txn<'_>, record: &VmRecord) -> Result<(), AppError> {
    not_deleting("start", record)?;
    let mut new = record.clone();
    let phase = record.vm.phase;
    if record.vm.power == Power::Running && phase != VmPhase::Failed {
        return Ok(());
    }
    if record.vm.spec.end_at.is_some_and(|end| end <= txn.now) {
        return Err(wrong_state(
            "start",
            record,
            "its end has passed: set a later one with `plimsoll vm set --end-at`",
        ));
    }
    new.vm.power = Power::Running;
    new.vm.generation += 1;
    new.power_generation = new.vm.generation;
    new.wanted_since = txn.revision;
    step(&mut new, VmEvent::StartWanted)?;
    if new.vm.phase != VmPhase::Pending {
        // It has not stopped yet and still holds all that it needs.
        txn.put_vm(new);
        return Ok(());
    }
    book::start_or_book(txn, &new)
}

/// Stops a VM.
pub(crate) fn stop(txn: &mut Txn<'_>, record: &VmRecord, grace_ms: u64) -> Result<(), AppError> {
    not_deleting("stop", record)?;
    not_moving("stop", record)?;
    if record.vm.power == Power::Stopped
        && (record.vm.phase == VmPhase::Stopped || grace_ms >= record.shutdown_grace_ms)
    {
        return Ok(());
    }
    let mut new = record.clone();
    new.vm.power = Power::Stopped;
    new.vm.generation += 1;
    new.power_generation = new.vm.generation;
    new.wanted_since = txn.revision;
    new.shutdown_grace_ms = grace_ms;
    new.booking = None;
    new.vm.message = None;
    step(&mut new, VmEvent::StopWanted)?;
    if new.vm.phase == VmPhase::Stopped && record.vm.phase == VmPhase::Pending {
        txn.vm_event(Severity::Info, EventKind::VmStopped, &new, "stopped before it was placed");
    }
    txn.put_vm(new);
    Ok(())
}

/// Reboots a VM.
pub(crate) fn reboot(txn: &mut Txn<'_>, record: &VmRecord) -> Result<(), AppError> {
    if record.vm.phase != VmPhase::Running {
        return Err(wrong_state("reboot", record, "start it with `plimsoll vm start`"));
    }
    not_moving("reboot", record)?;
    let mut new = record.clone();
    new.vm.reboots += 1;
    new.vm.generation += 1;
    txn.vm_event(Severity::Info, EventKind::VmRebooted, &new, "reboot asked for");
    txn.put_vm(new);
    Ok(())
}

/// Takes a part of what a VM has.
pub(crate) fn deflate(
    txn: &mut Txn<'_>,
    record: &VmRecord,
    request: DeflateVmRequest,
) -> Result<(), AppError> {
    let DeflateVmRequest { memory_percent, cpu_percent, within_ms, from } = request;
    let generation = record.vm.generation + 1;
    let deflation = Deflation { generation, memory_percent, cpu_percent, within_ms, from };
    deflation.check().map_err(|error| {
        let hint = "give from 1 to 90 percent of memory, of CPU or of both, and 0.1 s to 10 min";
        AppError::invalid("deflation", error.to_string(), hint)
    })?;
    if record.vm.phase != VmPhase::Running {
        return Err(wrong_state("deflate", record, "start it with `plimsoll vm start`"));
    }
    not_moving("deflate", record)?;
    let mut new = record.clone();
    new.vm.generation = generation;
    new.vm.deflation = Some(deflation);
    new.balanced_deflation = false;
    let message = format!("asked for {memory_percent} % of memory, {cpu_percent} % of CPU");
    txn.vm_event(Severity::Info, EventKind::VmDeflated, &new, message);
    txn.put_vm(new);
    Ok(())
}

/// Gives a VM back what was taken.
pub(crate) fn inflate(txn: &mut Txn<'_>, record: &VmRecord) -> Result<(), AppError> {
    not_deleting("inflate", record)?;
    if record.vm.deflation.is_none() {
        return Ok(());
    }
    not_moving("inflate", record)?;
    let mut new = record.clone();
    new.vm.generation += 1;
    new.vm.deflation = None;
    new.balanced_deflation = false;
    txn.vm_event(Severity::Info, EventKind::VmInflated, &new, "has all that it is promised");
    txn.put_vm(new);
    Ok(())
}

/// Deletes a VM: its record goes when its hosts have confirmed that they hold nothing of it.
pub(crate) fn delete(txn: &mut Txn<'_>, record: &VmRecord) {
    if record.vm.phase == VmPhase::Deleting {
        return;
    }
    let mut new = record.clone();
    new.vm.phase = VmPhase::Deleting;
    new.vm.power = Power::Stopped;
    new.vm.generation += 1;
    new.wanted_since = txn.revision;
    new.booking = None;
    if let Some(host) = new.host() {
        let cleanup = Cleanup { incarnation: new.vm.incarnation, delete_disk: true };
        new.cleanups.insert(host, cleanup);
        new.delete_arrival();
    } else if let Some(DiskLocation::Pool { pool }) = &new.vm.disk {
        // No host has it at present: any that sees the pool can remove its disk.
        let cleanup = Cleanup { incarnation: new.vm.incarnation, delete_disk: true };
        if let Some(host) = host_of_pool(&txn.state, pool) {
            new.cleanups.insert(host, cleanup);
        }
    }
    new.vm.message = None;
    txn.vm_event(Severity::Info, EventKind::VmDeleteRequested, &new, "deletion asked for");
    if new.cleanups.is_empty() {
        txn.vm_event(Severity::Info, EventKind::VmDeleted, &new, "deleted");
        txn.remove_vm(new.vm.id);
    } else {
        txn.put_vm(new);
    }
}

fn host_of_pool(state: &State, pool: &Name) -> Option<HostId> {
    let sees = |host: &&std::sync::Arc<HostRecord>| matches!(&host.host.spec.storage, StoragePool::Shared { pool: has } if has == pool);
    let mut hosts: Vec<_> = state.hosts.values().filter(sees).collect();
    hosts.sort_by_key(|host| (host.host.phase != HostPhase::Up, host.host.id));
    hosts.first().map(|host| host.host.id)
}

/// Changes a VM's spec. `most` is the memory that it can have without a reboot.
pub(crate) fn set(
    txn: &mut Txn<'_>,
    record: &VmRecord,
    request: SetVmRequest,
    most: Bytes,
) -> Result<(), AppError> {
    not_deleting("change", record)?;
    not_moving("change", record)?;
    if let Some(expected) = request.if_generation
        && expected != record.vm.generation
    {
        return Err(AppError::Conflict {
            what: Noun::Vm,
            name: record.vm.name.to_string(),
            expected,
            actual: record.vm.generation,
        });
    }
    let mut new = record.clone();
    apply(&mut new, request);
    if new.vm.spec == record.vm.spec {
        return Ok(());
    }
    check_values(txn, record, &new, most)?;
    check_room(txn, record, &new)?;
    new.vm.generation += 1;
    new.end_announced &= new.vm.spec.end_at == record.vm.spec.end_at;
    place::mark_fencing(&txn.state, &mut new, false);
    let message = differences(&record.vm.spec.resources, &new.vm.spec.resources);
    txn.vm_event(Severity::Info, EventKind::VmChanged, &new, message);
    if new.booking.is_some() {
        return book::change(txn, new);
    }
    txn.put_vm(new);
    Ok(())
}

fn apply(new: &mut VmRecord, request: SetVmRequest) {
    let spec = &mut new.vm.spec;
    let resources = &mut spec.resources;
    resources.cpu = request.cpu.unwrap_or(resources.cpu);
    resources.memory = request.memory.unwrap_or(resources.memory);
    resources.disk = request.disk.unwrap_or(resources.disk);
    resources.disk_bandwidth = request.disk_bandwidth.unwrap_or(resources.disk_bandwidth);
    resources.disk_iops = request.disk_iops.unwrap_or(resources.disk_iops);
    resources.network = request.network.unwrap_or(resources.network);
    spec.end_at = request.end_at.or(spec.end_at);
    spec.restart = request.restart.unwrap_or(spec.restart);
    spec.on_host_failure = request.on_host_failure.unwrap_or(spec.on_host_failure);
    if let Some(elasticity) = request.elasticity {
        spec.elasticity = elasticity;
    }
    if let Some(constraints) = request.constraints {
        spec.constraints = constraints;
    }
}

fn check_values(
    txn: &Txn<'_>,
    old: &VmRecord,
    new: &VmRecord,
    most: Bytes,
) -> Result<(), AppError> {
    let (was, is) = (&old.vm.spec, &new.vm.spec);
    validate::resources(&is.resources, "resources")?;
    validate::constraints(&is.constraints, "constraints")?;
    validate::elasticity(is, "elasticity")?;
    if is.end_at != was.end_at {
        if old.duration().is_some() {
            return Err(AppError::invalid(
                "end_at",
                "it has a duration, and has not started",
                "its end is known when it starts; create it anew with another duration",
            ));
        }
        validate::ends(is.start_after, is.end_at, "spec", txn.now)?;
    }
    if is.resources.disk < was.resources.disk {
        return Err(AppError::invalid(
            "disk",
            format!("{} is less than the {} that it has", is.resources.disk, was.resources.disk),
            "a disk only grows: create a new VM with a smaller one",
        ));
    }
    if let Some(image) = txn.state.images.get(&old.image) {
        let mut resources = is.resources.clone();
        validate::against_image(&mut resources, &image.image, "resources")?;
    }
    let runs = old.host().is_some() && old.claim == Claim::Full;
    if runs && is.resources.memory > most && is.resources.memory > was.resources.memory {
        return Err(AppError::invalid(
            "memory",
            format!(
                "{} is more than the {most} that it can have while it runs",
                is.resources.memory
            ),
            "stop it first: it starts with the new size, and room to grow from there",
        ));
    }
    Ok(())
}

/// Growth must fit into the project's quota and on the present host, whose other VMs the new
/// constraints must tolerate.
fn check_room(txn: &mut Txn<'_>, old: &VmRecord, new: &VmRecord) -> Result<(), AppError> {
    if let Some(project) = txn.state.project(old.vm.project) {
        quota::check_quota(&txn.state, project, &old.used(), &new.used(), 0)?;
    }
    let Some(host) = old.host() else { return Ok(()) };
    // Something may be booked behind its end.
    let later = match (old.vm.spec.end_at, new.vm.spec.end_at) {
        (Some(was), Some(is)) => is > was,
        (was, is) => was.is_some() && is.is_none(),
    };
    let grows = new.vm.spec.resources.first_above(&old.vm.spec.resources).is_some()
        || (later && new.claim == Claim::Full);
    if !grows && new.vm.spec.constraints == old.vm.spec.constraints {
        return Ok(());
    }
    let Some((_, request)) = new.entry() else { return Ok(()) };
    let request = Request { pinned_host: Some(host), ..request };
    let policy = new.vm.policy.unwrap_or(txn.state.settings().policy);
    let Err(refusals) = txn.cluster().decide(&request, policy) else { return Ok(()) };
    // A host that takes no new VMs still keeps those that it has.
    let explanation = txn.cluster().explain(&request, policy);
    let stays = explanation.hosts.iter().find(|verdict| verdict.host == host).is_some_and(|v| {
        match &v.verdict {
            Verdict::Refused { reasons } => {
                reasons.iter().all(|reason| matches!(reason, Refusal::Unschedulable { .. }))
            }
            Verdict::Possible { .. } => true,
        }
    });
    if stays {
        return Ok(());
    }
    Err(AppError::NoCapacity { vm: new.vm.name.clone(), refusals })
}

fn differences(old: &Resources, new: &Resources) -> String {
    let mut changes = Vec::new();
    for element in plimsoll_model::Element::SCALARS {
        let (was, is) = (old.get(&element), new.get(&element));
        if was != is {
            changes.push(format!("{element} {} -> {}", element.print(was), element.print(is)));
        }
    }
    if changes.is_empty() { "changed".to_owned() } else { changes.join(", ") }
}

/// Why a VM of a fenced host is not started elsewhere, and what would help.
pub(crate) fn why_it_waits(record: &VmRecord, host: &str) -> String {
    match record.vm.spec.on_host_failure {
        OnHostFailure::Wait => format!("waits for host {host}, as it asks (on_host_failure: wait)"),
        OnHostFailure::Restart => format!(
            "its disk is on host {host}: bring the host back, or give the disk up with \
             `plimsoll vm set --on-host-failure recreate`"
        ),
        OnHostFailure::Recreate => format!(
            "host {host} is fenced only by its lease, which did not cover this VM yet: fence the \
             host with `plimsoll host fence`"
        ),
    }
}

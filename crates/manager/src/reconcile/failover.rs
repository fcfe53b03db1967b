//! VMs of fenced hosts are started elsewhere, where that is known to be safe and asked for.
//!
//! A host that is fenced by its lease has ended only the VMs whose guards had heard that they are
//! to: [`covered`]. Taking a VM from its host makes a new incarnation when it is placed, and leaves
//! the host with the duty to confirm that it holds nothing of the old one.

use plimsoll_model::{
    DiskLocation, EventKind, Fencing, HostId, HostPhase, OnHostFailure, Power, Severity, VmEvent,
    VmPhase,
};

use crate::{
    admission::place,
    app::{AppError, change},
    core::{
        Core, State,
        record::{Claim, VmRecord},
        txn::Txn,
    },
};

pub(crate) async fn reconcile(core: Core) -> Result<String, AppError> {
    let state = core.snapshot();
    let mut moved = 0;
    for record in state.hosts.values() {
        let id = record.host.id;
        if record.host.phase == HostPhase::Fenced
            && vms(&state, id).any(|vm| next(&state, id, vm).is_some())
        {
            moved += core.submit(None, move |txn| Ok(fail_over(txn, id))).await?;
        }
    }
    if moved > 0 {
        core.nudge();
    }
    Ok(format!("{moved} VMs taken from fenced hosts"))
}

fn vms(state: &State, host: HostId) -> impl Iterator<Item = &VmRecord> {
    state
        .vms_of_host(host)
        .map(|record| &**record)
        .filter(move |vm| vm.host() == Some(host) && vm.vm.phase != VmPhase::Deleting)
}

/// Whether it is known that a VM of a fenced host does not run there.
pub(crate) const fn covered(record: &VmRecord, fencing: Fencing) -> bool {
    match fencing {
        Fencing::Operator | Fencing::Command | Fencing::Reboot => true,
        Fencing::Lease => {
            record.fenced_by_lease && record.vm.observed_generation >= record.lease_generation
        }
    }
}

/// [`covered`] for the VM's host, or the one to which it moves.
pub(crate) fn covered_on(record: &VmRecord, host: HostId, fencing: Fencing) -> bool {
    match record.migration.as_ref().filter(|migration| migration.to == host) {
        // Its guard there has it from the start.
        Some(migration) => fencing != Fencing::Lease || migration.fenced_by_lease,
        None => covered(record, fencing),
    }
}

/// Whether it may be started elsewhere once it is known not to run.
pub(crate) const fn movable(record: &VmRecord) -> bool {
    match record.vm.spec.on_host_failure {
        OnHostFailure::Wait => false,
        OnHostFailure::Recreate => true,
        OnHostFailure::Restart => !matches!(record.vm.disk, Some(DiskLocation::Host { .. })),
    }
}

/// The VM after the step that is due; `None` if it stays as it is.
fn next(state: &State, host: HostId, record: &VmRecord) -> Option<VmRecord> {
    // Nothing before it is known where it runs: `reconcile::migration`.
    if record.migration.is_some() {
        return None;
    }
    let host = state.host(host)?;
    let fencing = host.host.fencing?;
    let mut new = record.clone();
    let known = covered(record, fencing);
    match record.vm.power {
        Power::Stopped => {
            if !known || record.claim == Claim::Disk {
                return None;
            }
            new.vm.phase = record.vm.phase.next(VmEvent::Exited).unwrap_or(record.vm.phase);
            new.claim = Claim::Disk;
        }
        Power::Running if known && movable(record) => {
            if new.vm.spec.on_host_failure == OnHostFailure::Recreate
                && matches!(new.vm.disk, Some(DiskLocation::Host { .. }))
            {
                new.vm.disk = None;
            }
            new.vm.phase = record.vm.phase.next(VmEvent::Displaced).ok()?;
            new.vm.message = None;
            place::leave(&mut new, state);
        }
        Power::Running => {
            let name = host.host.name.as_str();
            new.vm.message = Some(change::why_it_waits(record, name));
        }
    }
    (new != *record).then_some(new)
}

/// Takes the VMs from a fenced host, and places them where there is room.
fn fail_over(txn: &mut Txn<'_>, host: HostId) -> usize {
    if txn.state.host(host).is_none_or(|record| record.host.phase != HostPhase::Fenced) {
        return 0;
    }
    let name = txn.state.host(host).map(|record| record.host.name.to_string());
    let name = name.unwrap_or_default();
    let due: Vec<VmRecord> =
        vms(&txn.state, host).filter_map(|vm| next(&txn.state, host, vm)).collect();
    let mut moved = Vec::new();
    for record in due {
        if record.vm.phase == VmPhase::Pending {
            let message = format!("taken from host {name}");
            txn.vm_event(Severity::Warning, EventKind::VmDisplaced, &record, message);
            moved.push(record.vm.id);
        }
        txn.put_vm(record);
    }
    for id in &moved {
        let Some(record) = txn.state.vm(*id).cloned() else { continue };
        let mark = txn.mark();
        // What finds no room now waits: the reconciler of pending VMs tries again.
        if place::start(txn, &record).is_err() {
            txn.roll_back(mark);
        }
    }
    moved.len()
}

//! Hosts.

use std::sync::Arc;

use plimsoll_api::v1::HostView;
use plimsoll_model::{
    Amount, EventKind, Fencing, Host, HostEvent, HostId, HostPhase, HostSpec, Name, Power,
    Resources, Role, Severity, VmEvent, VmId, VmPhase,
};

use crate::{
    admission::{book, validate},
    app::{AppError, Caller, Noun, drain, token},
    core::{
        Core, State,
        record::{Claim, Drain, HostRecord, VmRecord},
        txn::Txn,
    },
    reconcile::failover,
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
    let hash = token::hash(token);
    let (core_, now) = (core.clone(), core.monotonic());
    validate::host_spec(&spec)?;
    core.submit(None, move |txn| {
        let record = txn
            .state
            .join_token_hashes
            .get(&hash)
            .and_then(|id| txn.state.join_tokens.get(id))
            .filter(|record| record.expires_at > txn.now)
            .cloned()
            .ok_or(AppError::Unauthenticated)?;
        if txn.state.host_by_name(&name).is_some() {
            return Err(AppError::AlreadyExists { what: Noun::Host, name: name.to_string() });
        }
        let settings = txn.settings_mut();
        settings.last_host += 1;
        let id = HostId(settings.last_host);
        let longest_lease_ms = settings.settings.lease_ms;
        let signed = sign(id)?;
        txn.remove_join_token(record.id);
        let host = HostRecord {
            host: Host {
                id,
                name,
                spec,
                // Its first report makes it `up`.
                phase: HostPhase::Unreachable,
                schedulable: true,
                fencing: None,
                boot_id: None,
                phase_since: txn.now,
                joined_at: txn.now,
            },
            lease_armed: false,
            longest_lease_ms,
            loan: Amount::default(),
            draining: None,
        };
        let lease = std::time::Duration::from_millis(longest_lease_ms);
        core_.telemetry().begin(id, now, lease);
        txn.host_event(Severity::Info, EventKind::HostJoined, &host, "joined");
        txn.put_host(host);
        Ok((id, signed))
    })
    .await
}

/// Every host, by id.
///
/// # Errors
/// The caller's token is bound to a project.
pub fn host_list(core: &Core, caller: &Caller) -> Result<Vec<HostView>, AppError> {
    caller.in_cluster(Role::Viewer)?;
    let state = core.snapshot();
    Ok(state.hosts.values().map(|record| view(core, &state, record)).collect())
}

/// One host.
///
/// # Errors
/// There is none of that name, or the caller's token is bound to a project.
pub fn host_show(core: &Core, caller: &Caller, host: &Name) -> Result<HostView, AppError> {
    caller.in_cluster(Role::Viewer)?;
    let state = core.snapshot();
    let record = find(&state, host)?;
    Ok(view(core, &state, &record))
}

/// Places VMs on a host again. Moves that its drain has begun go on, and none is brought back.
///
/// # Errors
/// There is none of that name, or the caller may not.
pub async fn host_undrain(core: &Core, caller: &Caller, host: &Name) -> Result<HostView, AppError> {
    caller.in_cluster(Role::Operator)?;
    let (core_, host) = (core.clone(), host.clone());
    let shown = core
        .submit(Some(caller.token), move |txn| {
            let record = set_schedulable(txn, &host, true, None)?;
            Ok(view(&core_, &txn.state, &record))
        })
        .await;
    core.nudge();
    shown
}

/// The caller vouches that the host runs none of its VMs: they may be restarted elsewhere.
///
/// # Errors
/// The host is up, there is none of that name, or the caller may not.
pub async fn host_fence(core: &Core, caller: &Caller, host: &Name) -> Result<HostView, AppError> {
    caller.in_cluster(Role::Admin)?;
    let (core_, host) = (core.clone(), host.clone());
    let shown = core
        .submit(Some(caller.token), move |txn| {
            let record = find(&txn.state, &host)?;
            if record.host.phase == HostPhase::Up {
                return Err(AppError::WrongState {
                    action: "fence",
                    what: Noun::Host,
                    name: host.to_string(),
                    state: "up".to_owned(),
                    hint: "it reports: power it off first; VMs run on without its agent",
                });
            }
            let silent_ms = txn.state.settings().unreachable_after_ms;
            let silent = std::time::Duration::from_millis(silent_ms);
            if !begin_fencing(&core_, txn, record.host.id, Some(silent), None) {
                return Err(AppError::WrongState {
                    action: "fence",
                    what: Noun::Host,
                    name: host.to_string(),
                    state: "reporting again".to_owned(),
                    hint: "it has just reported: look again with `plimsoll host show`",
                });
            }
            let record = fence(txn, &record, Fencing::Operator)?;
            Ok(view(&core_, &txn.state, &record))
        })
        .await;
    core.nudge();
    shown
}

/// Removes a host for good.
///
/// # Errors
/// VMs are assigned to it, or it may still hold something of deleted ones and is not fenced.
pub async fn host_remove(core: &Core, caller: &Caller, host: &Name) -> Result<(), AppError> {
    caller.in_cluster(Role::Admin)?;
    let (core_, host) = (core.clone(), host.clone());
    core.submit(Some(caller.token), move |txn| {
        let record = find(&txn.state, &host)?;
        remove(txn, &record)?;
        let id = record.host.id;
        txn.afterwards(move || {
            if core_.snapshot().host(id).is_none() {
                core_.telemetry().forget(id);
            }
        });
        Ok(())
    })
    .await
}

pub(crate) fn find(state: &State, name: &Name) -> Result<Arc<HostRecord>, AppError> {
    state.host_by_name(name).cloned().ok_or_else(|| AppError::not_found(Noun::Host, name))
}

/// A VM as `project/vm`.
fn label(state: &State, record: &VmRecord) -> String {
    let project = state.project(record.vm.project).map(|project| project.name.as_str());
    format!("{}/{}", project.unwrap_or("?"), record.vm.name)
}

pub(crate) fn set_schedulable(
    txn: &mut Txn<'_>,
    host: &Name,
    schedulable: bool,
    draining: Option<Drain>,
) -> Result<Arc<HostRecord>, AppError> {
    let record = find(&txn.state, host)?;
    let begins = draining.is_some() && record.draining.is_none();
    let mut new = (*record).clone();
    new.draining = draining;
    if record.host.schedulable == schedulable && !begins {
        txn.put_host(new);
        return find(&txn.state, host);
    }
    new.host.schedulable = schedulable;
    let (kind, message) = match (schedulable, begins) {
        (true, _) => (EventKind::HostUndrained, "takes VMs again"),
        (false, true) => (EventKind::HostDraining, "takes no new VMs, and its VMs are moved away"),
        (false, false) => (EventKind::HostDraining, "takes no new VMs"),
    };
    txn.host_event(Severity::Info, kind, &new, message);
    txn.put_host(new);
    find(&txn.state, host)
}

/// From here until the commit is published no report of the host is taken, so that its lease is not
/// renewed meanwhile. False, and nothing begun, if it has been silent for less than `silent` or its
/// lease and `lease_margin` are not over.
pub(crate) fn begin_fencing(
    core: &Core,
    txn: &mut Txn<'_>,
    host: HostId,
    silent: Option<std::time::Duration>,
    lease_margin: Option<std::time::Duration>,
) -> bool {
    let now = core.monotonic();
    let begun = core.telemetry().with(host, |telemetry| {
        let long_silent =
            silent.is_none_or(|silent| now.saturating_sub(telemetry.received) >= silent);
        let lease_over =
            lease_margin.is_none_or(|margin| now >= telemetry.lease_until.saturating_add(margin));
        telemetry.being_fenced = long_silent && lease_over;
        telemetry.being_fenced
    });
    if begun {
        let core = core.clone();
        txn.afterwards(move || {
            core.telemetry().with(host, |telemetry| telemetry.being_fenced = false);
        });
    }
    begun
}

/// Notes that a host is known to run none of its VMs.
pub(crate) fn fence(
    txn: &mut Txn<'_>,
    record: &HostRecord,
    fencing: Fencing,
) -> Result<Arc<HostRecord>, AppError> {
    let mut new = record.clone();
    let phase = record.host.phase.next(HostEvent::Fenced).map_err(|_| AppError::WrongState {
        action: "fence",
        what: Noun::Host,
        name: record.host.name.to_string(),
        state: record.host.phase.to_string(),
        hint: "only a silent host can be fenced",
    })?;
    if new.host.phase != phase {
        new.host.phase_since = txn.now;
    }
    new.host.phase = phase;
    new.host.fencing = Some(fencing);
    let how = match fencing {
        Fencing::Operator => "an operator vouches for it",
        Fencing::Command => "the fencing command succeeded",
        Fencing::Lease => "its lease ran out: its guards have ended every VM that may be moved",
        Fencing::Reboot => "it was rebooted",
    };
    txn.host_event(Severity::Warning, EventKind::HostFenced, &new, how);
    txn.put_host(new);
    if fencing != Fencing::Lease {
        settle_stopped(txn, record.host.id);
    }
    find(&txn.state, &record.host.name)
}

/// VMs of a fenced host that should not run do not.
fn settle_stopped(txn: &mut Txn<'_>, host: HostId) {
    let stopping: Vec<_> = txn
        .state
        .vms_of_host(host)
        .filter(|vm| vm.host() == Some(host) && vm.vm.power == Power::Stopped)
        .filter(|vm| matches!(vm.vm.phase, VmPhase::Stopping | VmPhase::Unknown))
        .cloned()
        .collect();
    for record in stopping {
        let mut new = (*record).clone();
        if let Ok(phase) = new.vm.phase.next(VmEvent::Exited) {
            new.vm.phase = phase;
            new.claim = Claim::Disk;
            txn.put_vm(new);
        }
    }
}

fn remove(txn: &mut Txn<'_>, record: &HostRecord) -> Result<(), AppError> {
    let id = record.host.id;
    let in_use = |by: String, hint: &'static str| AppError::InUse {
        what: Noun::Host,
        name: record.host.name.to_string(),
        by,
        hint,
    };
    let vms: Vec<_> = txn.state.vms_of_host(id).cloned().collect();
    let mut assigned = vms
        .iter()
        .filter(|vm| vm.host() == Some(id) && vm.vm.phase != VmPhase::Deleting)
        .map(|vm| label(&txn.state, vm));
    if let Some(first) = assigned.next() {
        let others = assigned.count();
        let by = if others == 0 { first } else { format!("{first} and {others} more VMs") };
        return Err(in_use(by, "delete its VMs, or let them be started elsewhere"));
    }
    let mut coming = vms
        .iter()
        .filter(|vm| vm.destination() == Some(id) && vm.vm.phase != VmPhase::Deleting)
        .map(|vm| label(&txn.state, vm));
    if let Some(first) = coming.next() {
        let others = coming.count();
        let by = if others == 0 { first } else { format!("{first} and {others} more VMs") };
        let hint = "they move there: wait until it is known where they run, or end the moves with \
                    `plimsoll vm migrate NAME --cancel`";
        return Err(in_use(by, hint));
    }
    // What was taken from it is known not to run; what is being deleted may not be.
    let unsure = |vm: &&Arc<VmRecord>| {
        let fencing = record.host.fencing.filter(|_| record.host.phase == HostPhase::Fenced);
        let held = vm.host() == Some(id) || vm.destination() == Some(id);
        fencing.is_none_or(|fencing| held && !failover::covered_on(vm, id, fencing))
    };
    let unsure = vms.iter().filter(unsure).count();
    if unsure > 0 {
        return Err(in_use(
            format!("{unsure} VMs that it has not confirmed to be gone"),
            "wait until it has; if it never comes back, `plimsoll host fence` it first",
        ));
    }
    for vm in vms {
        let mut new = (*vm).clone();
        new.cleanups.remove(&id);
        if new.destination() == Some(id) {
            new.migration = None;
        }
        if new.vm.phase == VmPhase::Deleting {
            new.vm.placement = None;
            if new.cleanups.is_empty() {
                txn.vm_event(Severity::Info, EventKind::VmDeleted, &new, "gone with its host");
                txn.remove_vm(new.vm.id);
                continue;
            }
        }
        txn.put_vm(new);
    }
    book_elsewhere(txn, record);
    txn.host_event(Severity::Info, EventKind::HostRemoved, record, "removed");
    txn.remove_host(id);
    Ok(())
}

/// What is booked on a host that goes is booked on another one, or loses its booking.
fn book_elsewhere(txn: &mut Txn<'_>, record: &HostRecord) {
    let id = record.host.id;
    let on_it = |vm: &VmId| {
        let record = txn.state.vm(*vm);
        record.and_then(|record| record.booking.as_ref()).is_some_and(|b| b.host == id)
    };
    let booked: Vec<VmId> = txn.state.bookings.iter().map(|(_, vm)| *vm).filter(on_it).collect();
    if booked.is_empty() {
        return;
    }
    let mut closed = record.clone();
    closed.host.schedulable = false;
    txn.put_host(closed);
    for vm in booked {
        if let Some(vm) = txn.state.vm(vm).cloned() {
            book::review(txn, &vm);
        }
    }
}

/// A host as users see it.
pub(crate) fn view(core: &Core, state: &State, record: &HostRecord) -> HostView {
    let host = &record.host;
    let (committed, vms) = committed(state, host.id);
    let (usage, last_report_at) = core.telemetry().with(host.id, |telemetry| {
        (telemetry.received_at.map(|_| telemetry.usage.clone()), telemetry.received_at)
    });
    HostView {
        id: host.id,
        name: host.name.clone(),
        state: host.phase,
        state_since: host.phase_since,
        schedulable: host.schedulable,
        draining: drain::view(core, state, record),
        fencing: host.fencing,
        spec: host.spec.clone(),
        loan: record.loan,
        free: record.capacity_with_loan().minus(&committed),
        committed,
        usage,
        vms,
        last_report_at,
    }
}

/// What a host's VMs were promised, overhead included, and how many they are.
pub(crate) fn committed(state: &State, host: HostId) -> (Resources, u32) {
    state
        .vms_of_host(host)
        .flat_map(|vm| vm.entries())
        .filter(|(on, _)| *on == host)
        .fold((Resources::default(), 0), |(sum, count), (_, request)| {
            (sum.plus(&request.demand), count + 1)
        })
}

//! Who reports, who is silent, and whose lease has run out.
//!
//! Silence is measured on the monotonic clock, from the last report or from the manager's start:
//! while no manager runs nobody can report, and agents hold their leases for as long as nothing
//! listens.

use std::time::Duration;

use futures_util::future::join_all;
use plimsoll_model::{
    EventKind, Fencing, HostEvent, HostId, HostPhase, Severity, VmEvent, VmPhase,
};

use crate::{
    app::{AppError, host},
    core::{Core, txn::Txn},
};

/// What is due for a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    Silence(HostEvent),
    LeaseOver,
}

pub(crate) async fn reconcile(core: Core) -> Result<String, AppError> {
    let state = core.snapshot();
    let ids: Vec<HostId> =
        state.hosts.keys().copied().filter(|id| due(&core, &state, *id) != Due::Nothing).collect();
    let changes = ids.iter().map(|id| {
        let (core, id) = (core.clone(), *id);
        async move {
            let inner = core.clone();
            core.submit(None, move |txn| advance(&inner, txn, id)).await
        }
    });
    for result in join_all(changes).await {
        result?;
    }
    if !ids.is_empty() {
        core.nudge();
    }
    let silent =
        core.snapshot().hosts.values().filter(|record| record.host.phase != HostPhase::Up).count();
    Ok(format!("{} hosts, {silent} not up", state.hosts.len()))
}

fn due(core: &Core, state: &crate::core::State, id: HostId) -> Due {
    let Some(record) = state.host(id) else { return Due::Nothing };
    let settings = state.settings();
    let (silent, lease_until) = core.telemetry().with(id, |telemetry| {
        (core.monotonic().saturating_sub(telemetry.received), telemetry.lease_until)
    });
    let dead = silent >= Duration::from_millis(settings.dead_after_ms);
    let unreachable = silent >= Duration::from_millis(settings.unreachable_after_ms);
    match record.host.phase {
        HostPhase::Up | HostPhase::Unreachable if dead => Due::Silence(HostEvent::SilentTooLong),
        HostPhase::Up if unreachable => Due::Silence(HostEvent::Silent),
        HostPhase::Dead
            if settings.lease_ms > 0
                && record.lease_armed
                && core.monotonic() >= lease_until.saturating_add(core.config().lease_margin) =>
        {
            Due::LeaseOver
        }
        _ => Due::Nothing,
    }
}

fn advance(core: &Core, txn: &mut Txn<'_>, id: HostId) -> Result<(), AppError> {
    let Some(record) = txn.state.host(id).cloned() else { return Ok(()) };
    match due(core, &txn.state, id) {
        Due::Nothing => {}
        Due::LeaseOver => {
            let margin = core.config().lease_margin;
            if host::begin_fencing(core, txn, id, None, Some(margin)) {
                host::fence(txn, &record, Fencing::Lease)?;
            }
        }
        Due::Silence(event) => {
            let Ok(phase) = record.host.phase.next(event) else { return Ok(()) };
            let mut new = (*record).clone();
            new.host.phase = phase;
            new.host.phase_since = txn.now;
            let (severity, kind, message) = if phase == HostPhase::Dead {
                (Severity::Error, EventKind::HostDead, "no report for too long")
            } else {
                (Severity::Warning, EventKind::HostUnreachable, "does not report")
            };
            txn.host_event(severity, kind, &new, message);
            txn.put_host(new);
            lose_vms(txn, id);
        }
    }
    Ok(())
}

/// The VMs of a silent host may or may not run.
fn lose_vms(txn: &mut Txn<'_>, id: HostId) {
    let vms: Vec<_> =
        txn.state.vms_of_host(id).filter(|vm| vm.host() == Some(id)).cloned().collect();
    for record in vms {
        if record.vm.phase == VmPhase::Deleting {
            continue;
        }
        let mut new = (*record).clone();
        if let Ok(phase) = new.vm.phase.next(VmEvent::Lost)
            && phase != record.vm.phase
        {
            new.vm.phase = phase;
            txn.vm_event(Severity::Warning, EventKind::VmLost, &new, "its host does not report");
            txn.put_vm(new);
        }
    }
}

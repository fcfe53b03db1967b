//! VMs that wait: for their time to come, or for room.

use std::collections::HashMap;

use plimsoll_model::{EventKind, Power, Severity, Timestamp, VmEvent, VmId};
use plimsoll_placement::BookRefusal;

use crate::{
    admission::book,
    app::AppError,
    core::{Core, record::VmRecord, txn::Txn},
};

/// So many are tried in one transaction; others have their turn meanwhile.
const AT_ONCE: usize = 128;

pub(crate) async fn reconcile(core: Core) -> Result<String, AppError> {
    let state = core.snapshot();
    let now = core.now();
    let mut due: Vec<_> = state
        .pending
        .iter()
        .filter_map(|id| state.vm(*id))
        .filter(|record| record.vm.power == Power::Running)
        .filter(|record| is_due(record, now))
        .map(|record| (record.vm.created_at, record.vm.id))
        .collect();
    due.sort_unstable();
    let mut waiting = HashMap::new();
    let tried = due.len();
    for part in due.chunks(AT_ONCE) {
        let ids: Vec<VmId> = part.iter().map(|(_, id)| *id).collect();
        waiting.extend(core.submit(None, move |txn| Ok(try_all(txn, &ids))).await?);
    }
    let left = waiting.len();
    core.note_waiting(waiting);
    Ok(format!("{} of {tried} waiting VMs placed", tried - left))
}

/// Whether it should have a host by now, or a booking.
fn is_due(record: &VmRecord, now: Timestamp) -> bool {
    match &record.booking {
        Some(booking) => booking.from <= now,
        None => {
            record.vm.spec.start_after.is_none_or(|start| start <= now) || record.may_be_booked(now)
        }
    }
}

/// Tries to place each; says why those that still wait do.
fn try_all(txn: &mut Txn<'_>, ids: &[VmId]) -> Vec<(VmId, String)> {
    let mut waiting = Vec::new();
    for id in ids {
        let Some(record) = txn.state.vm(*id).cloned() else { continue };
        if !txn.state.pending.contains(id) || record.vm.power != Power::Running {
            continue;
        }
        let mark = txn.mark();
        let Err(error) = book::begin(txn, &record) else { continue };
        txn.roll_back(mark);
        if let AppError::NoInterval { refusal: BookRefusal::Deadline { deadline, .. }, .. } = error
        {
            give_up(txn, &record, deadline);
            continue;
        }
        let message = format!("waits: {}", error.in_full());
        // On record once; how the reason changes with every VM that comes and goes is not.
        if !record.vm.message.as_ref().is_some_and(|old| old.starts_with("waits: ")) {
            let mut new = (*record).clone();
            new.vm.message = Some(message.clone());
            let kind = EventKind::VmUnplaceable;
            txn.vm_event(Severity::Warning, kind, &new, message.clone());
            txn.put_vm(new);
        }
        waiting.push((*id, message));
    }
    waiting
}

/// A VM that can no longer be over by its deadline has failed.
fn give_up(txn: &mut Txn<'_>, record: &VmRecord, deadline: Timestamp) {
    let mut new = record.clone();
    new.booking = None;
    if let Ok(phase) = record.vm.phase.next(VmEvent::Crashed) {
        new.vm.phase = phase;
    }
    let message =
        format!("never started: it cannot be over by its deadline {deadline:.0} any more");
    new.vm.message = Some(message.clone());
    txn.vm_event(Severity::Error, EventKind::VmUnplaceable, &new, message);
    txn.put_vm(new);
}

//! VMs that wait: for their time to come, or for room.

use std::collections::HashMap;

use plimsoll_model::{EventKind, Power, Severity, VmId};

use crate::{
    admission::place,
    app::AppError,
    core::{Core, txn::Txn},
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
        .filter(|record| record.vm.spec.start_at.is_none_or(|start| start <= now))
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

/// Tries to place each; says why those that still wait do.
fn try_all(txn: &mut Txn<'_>, ids: &[VmId]) -> Vec<(VmId, String)> {
    let mut waiting = Vec::new();
    for id in ids {
        let Some(record) = txn.state.vm(*id).cloned() else { continue };
        if !txn.state.pending.contains(id) || record.vm.power != Power::Running {
            continue;
        }
        let mark = txn.mark();
        let Err(error) = place::start(txn, &record) else { continue };
        txn.roll_back(mark);
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        let message = format!("waits: {error}{}", cause.unwrap_or_default());
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

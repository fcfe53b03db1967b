//! VMs with an end: announced, then stopped. The agent warns the guest, at the same instant: it is
//! told of it with the end.

use plimsoll_model::{EventKind, Power, Severity, VmId, VmPhase};

use crate::{
    admission::place::default_grace_ms,
    app::{AppError, change},
    core::{Core, State, record::VmRecord},
};

pub(crate) async fn reconcile(core: Core) -> Result<String, AppError> {
    let due = due(&core.snapshot(), core.now());
    if due.is_empty() {
        return Ok("nothing ends".to_owned());
    }
    let (announced, ended) = core
        .submit(None, move |txn| {
            let (mut announced, mut ended) = (0, 0);
            for id in self::due(&txn.state, txn.now) {
                let Some(record) = txn.state.vm(id).cloned() else { continue };
                let Some(end) = record.vm.spec.end_at else { continue };
                if end <= txn.now {
                    let kind = EventKind::VmEnded;
                    txn.vm_event(Severity::Info, kind, &record, format!("its end was {end}"));
                    change::stop(txn, &record, default_grace_ms())?;
                    ended += 1;
                } else {
                    let mut new = (*record).clone();
                    new.end_announced = true;
                    let kind = EventKind::VmEndingSoon;
                    txn.vm_event(Severity::Info, kind, &new, format!("it is stopped at {end}"));
                    txn.put_vm(new);
                    announced += 1;
                }
            }
            Ok((announced, ended))
        })
        .await?;
    Ok(format!("{announced} ends announced, {ended} VMs ended"))
}

fn due(state: &State, now: plimsoll_model::Timestamp) -> Vec<VmId> {
    let is_due = |record: &VmRecord| {
        record.vm.power == Power::Running
            && record.vm.phase != VmPhase::Deleting
            // One that moves is stopped when it is there: the guest has its end with it.
            && record.vm.spec.end_at.is_some_and(|end| {
                if end <= now { record.migration.is_none() } else { !record.end_announced }
            })
    };
    state
        .ends
        .iter()
        .take_while(|(end, _)| state.warn_at(*end) <= now)
        .filter(|(_, id)| state.vm(*id).is_some_and(|record| is_due(record)))
        .map(|(_, id)| *id)
        .collect()
}

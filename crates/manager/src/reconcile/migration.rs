//! Moves one of whose hosts is lost.
//!
//! Nothing is decided before it is known where the VM runs. While a host is only silent the move
//! waits: the other side may still tell how it ended, and does. A host that is known to run nothing
//! (fenced) cannot have the VM, and the other side is told so; where both are, the VM runs nowhere.
//! What then follows is that side's word ([`crate::core::migration`]), and only after it the VM may be
//! placed anew ([`crate::reconcile::failover`]).

use plimsoll_api::v1::MigrationOutcome;
use plimsoll_model::{Fencing, HostId, HostPhase, VmPhase};

use crate::{
    app::{AppError, migration::name_of},
    core::{
        Core, State,
        migration::Migration,
        record::{HostRecord, VmRecord},
        txn::Txn,
    },
    reconcile::failover::{covered_on, movable},
};

pub(crate) async fn reconcile(core: Core) -> Result<String, AppError> {
    let state = core.snapshot();
    let count = state.migrating.len();
    let due = |record: &VmRecord| next(&state, record).is_some();
    if !state.migrating.iter().filter_map(|id| state.vm(*id)).any(|record| due(record)) {
        return Ok(format!("{count} VMs move"));
    }
    let (changed, over) = core.submit(None, |txn| Ok(advance(txn))).await?;
    for _ in 0..over {
        core.config().moves.over(MigrationOutcome::Failed);
    }
    core.nudge();
    Ok(format!("{count} VMs move, {changed} with a host lost"))
}

/// What became of a move whose hosts are as they are.
#[derive(Debug, PartialEq)]
enum Step {
    /// Its record changes.
    Changed(Migration),
    /// Neither host runs it.
    Over,
}

/// How many moves have changed, and how many of them are over.
fn advance(txn: &mut Txn<'_>) -> (usize, usize) {
    let ids: Vec<_> = txn.state.migrating.iter().copied().collect();
    let (mut changed, mut over) = (0, 0);
    for id in ids {
        let Some(record) = txn.state.vm(id).cloned() else { continue };
        let Some(step) = next(&txn.state, &record) else { continue };
        let mut new = (*record).clone();
        match step {
            Step::Changed(migration) => new.migration = Some(migration),
            Step::Over => {
                over += 1;
                let why = Some("both of its hosts were lost on the way".to_owned());
                if let Some((severity, kind, said)) = new.stay(why, false, txn.revision, txn.now) {
                    txn.vm_event(severity, kind, &new, said);
                }
            }
        }
        txn.put_vm(new);
        changed += 1;
    }
    (changed, over)
}

/// Whether a host is known not to run the VM.
fn runs_not(record: &VmRecord, host: &HostRecord) -> bool {
    let fencing: Option<Fencing> = host.host.fencing;
    host.host.phase == HostPhase::Fenced
        && fencing.is_some_and(|fencing| covered_on(record, host.host.id, fencing))
}

/// The step that is due; nothing if all stays as it is.
fn next(state: &State, record: &VmRecord) -> Option<Step> {
    if record.vm.phase == VmPhase::Deleting {
        return None;
    }
    let migration = record.migration.as_ref()?;
    let (from, to) = (state.host(record.host()?)?, state.host(migration.to)?);
    let (not_here, not_there) = (runs_not(record, from), runs_not(record, to));
    let may_move = movable(record);
    if not_here && not_there && may_move {
        return Some(Step::Over);
    }
    let mut new = migration.clone();
    if not_there && may_move && !migration.copy_disk {
        new.target_lost = true;
    }
    if not_here && may_move && !migration.target_lost {
        new.dropped = true;
    }
    new.message = message(state, record, &new);
    (new != *migration).then_some(Step::Changed(new))
}

/// For what the move waits, where a host does not answer.
fn message(state: &State, record: &VmRecord, migration: &Migration) -> Option<String> {
    let name = |id: HostId| name_of(state, id).map_or_else(|| id.to_string(), |n| n.to_string());
    let silent = |id: HostId| state.host(id).is_some_and(|h| h.host.phase != HostPhase::Up);
    let (source, target) = (record.host()?, migration.to);
    let (from, to) = (name(source), name(target));
    if migration.target_lost {
        return Some(format!(
            "host {to} is lost: host {from} keeps the VM, or starts it anew if it had given it away"
        ));
    }
    if migration.dropped {
        return Some(format!("host {from} is lost: host {to} is asked whether it has the VM"));
    }
    match (silent(source), silent(target)) {
        (false, false) => None,
        (true, true) => Some(format!("waits for hosts {from} and {to}: neither answers")),
        (true, false) => Some(format!(
            "host {from} does not answer: waits until it does, or host {to} has the VM"
        )),
        (false, true) if migration.copy_disk => Some(format!(
            "host {to} does not answer: if the VM runs there already, so is its disk; waits until \
             host {from} says that it stays, or host {to} is back"
        )),
        (false, true) => Some(format!(
            "host {to} does not answer: waits until host {from} says that the VM stays, or host {to} \
             is back or fenced"
        )),
    }
}

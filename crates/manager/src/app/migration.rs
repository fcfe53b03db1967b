//! Moving running VMs, as users ask for it and see it.

use std::sync::Arc;

use plimsoll_api::{
    migration::{MigrationLimits, MigrationStage},
    v1::{LastMigration, MigrateRequest, MigrateResponse, MigrationCause, MigrationView, VmView},
};
use plimsoll_model::{HostId, Name, Role};

use crate::{
    admission::migrate::{self, Wish},
    app::{AppError, Caller, Noun, change::wrong_state, vm},
    core::{Core, State, record::VmRecord},
};

/// Moves a running VM to another host, or (a dry run) only says to which.
///
/// # Errors
/// It does not run or moves already, or no host can take it, or not the one that is asked for, or
/// the limits are not allowed.
pub async fn vm_migrate(
    core: &Core,
    caller: &Caller,
    project: &Name,
    vm: &Name,
    request: MigrateRequest,
) -> Result<MigrateResponse, AppError> {
    check_limits(&request.limits)?;
    let (core_, caller_) = (core.clone(), caller.clone());
    let (project, vm) = (project.clone(), vm.clone());
    core.submit(Some(caller.token), move |txn| {
        let record = Arc::clone(vm::find(&txn.state, &caller_, &project, &vm)?);
        caller_.at_least(Role::Operator)?;
        let to = match &request.to {
            Some(name) => {
                let host = txn.state.host_by_name(name);
                Some(host.ok_or_else(|| AppError::not_found(Noun::Host, name))?.host.id)
            }
            None => None,
        };
        let plan = migrate::plan(txn, &record, to)?;
        if !request.dry_run {
            let wish = Wish { to, limits: request.limits, cause: MigrationCause::User };
            migrate::begin(txn, &record, wish)?;
        }
        let now = txn.state.vm(record.vm.id).unwrap_or(&record);
        let name = |host: Option<HostId>| host.and_then(|id| name_of(&txn.state, id));
        Ok(MigrateResponse {
            from: name(record.host()).unwrap_or_else(|| vm.clone()),
            to: name(Some(plan.choice.host)).unwrap_or(vm),
            reason: plan.choice.reason(),
            copy_disk: plan.copy_disk,
            vm: vm::view(&core_, &txn.state, now),
        })
    })
    .await
}

/// Gives up a VM's move, as long as that is possible: it may arrive nevertheless.
///
/// # Errors
/// It does not move.
pub async fn vm_migrate_cancel(
    core: &Core,
    caller: &Caller,
    project: &Name,
    vm: &Name,
) -> Result<VmView, AppError> {
    let (core_, caller_) = (core.clone(), caller.clone());
    let (project, vm) = (project.clone(), vm.clone());
    core.submit(Some(caller.token), move |txn| {
        let record = Arc::clone(vm::find(&txn.state, &caller_, &project, &vm)?);
        caller_.at_least(Role::Operator)?;
        let mut new = (*record).clone();
        let Some(migration) = &mut new.migration else {
            return Err(wrong_state("cancel a move of", &record, "it does not move"));
        };
        migration.cancel = true;
        txn.put_vm(new);
        let now = txn.state.vm(record.vm.id).unwrap_or(&record);
        Ok(vm::view(&core_, &txn.state, now))
    })
    .await
}

pub(crate) fn check_limits(limits: &MigrationLimits) -> Result<(), AppError> {
    let MigrationLimits { max_downtime_ms, deadline_ms, .. } = *limits;
    if !(1..=10_000).contains(&max_downtime_ms) {
        return Err(AppError::invalid(
            "limits.max_downtime_ms",
            format!("{max_downtime_ms} ms"),
            "use 1 to 10000 milliseconds",
        ));
    }
    if !(1_000..=86_400_000).contains(&deadline_ms) {
        return Err(AppError::invalid(
            "limits.deadline_ms",
            format!("{deadline_ms} ms"),
            "use 1 second to 1 day",
        ));
    }
    Ok(())
}

pub(crate) fn name_of(state: &State, id: HostId) -> Option<Name> {
    state.host(id).map(|host| host.host.name.clone())
}

/// A VM's move as users see it.
pub(crate) fn view(core: &Core, state: &State, record: &VmRecord) -> Option<MigrationView> {
    let migration = record.migration.as_ref()?;
    let from = record.host()?;
    let seen = |host| {
        let seen = core.telemetry().seen(host, record.vm.id)?;
        seen.observed.migration.filter(|seen| seen.id == migration.id)
    };
    let (source, target) = (seen(from), seen(migration.to));
    let told = source.as_ref().and_then(|seen| seen.message.clone());
    let told = told.or_else(|| target.and_then(|seen| seen.message));
    Some(MigrationView {
        id: migration.id,
        from: name_of(state, from)?,
        to: name_of(state, migration.to)?,
        reason: migration.reason.clone(),
        cause: migration.cause,
        stage: source.as_ref().map_or(MigrationStage::Preparing, |seen| seen.stage),
        message: migration.message.clone().or(told),
        progress: source.map(|seen| seen.progress).unwrap_or_default(),
        limits: migration.limits,
        copy_disk: migration.copy_disk,
        cancelled: migration.cancel,
        begun_at: migration.begun_at,
    })
}

/// A VM's last move as users see it. Hosts that are no longer there are named by their number.
pub(crate) fn view_last(state: &State, record: &VmRecord) -> Option<LastMigration> {
    let last = record.last_migration.as_ref()?;
    let name = |id: HostId| name_of(state, id).or_else(|| id.to_string().parse().ok());
    Some(LastMigration {
        id: last.id,
        from: name(last.from)?,
        to: name(last.to)?,
        cause: last.cause,
        outcome: last.outcome,
        message: last.message.clone(),
        figures: last.figures,
        predicted: last.predicted,
        begun_at: last.begun_at,
        ended_at: last.ended_at,
    })
}

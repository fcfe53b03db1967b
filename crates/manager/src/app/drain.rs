//! Emptying a host: the wish, and what becomes of its VMs. [`crate::reconcile::draining`] carries it
//! out.

use std::sync::Arc;

use plimsoll_api::v1::{
    DrainProspect, DrainRequest, DrainResponse, DrainView, DrainedVm, MigrationCause,
};
use plimsoll_model::{DiskLocation, Name, Role, VmPhase};

use crate::{
    admission::migrate::{self, Wish},
    app::{AppError, Caller, host, migration},
    core::{
        Core, State,
        record::{Drain, HostRecord, VmRecord},
        txn::Txn,
    },
};

/// The most moves of one host at once.
const MAX_PARALLEL: u32 = 64;

/// Places nothing new on a host, and moves its VMs away. Says beforehand where each would go, decided
/// one after the other as they will be, or why it stays.
///
/// # Errors
/// There is none of that name, a value is not allowed, or the caller may not.
pub async fn host_drain(
    core: &Core,
    caller: &Caller,
    host: &Name,
    request: DrainRequest,
) -> Result<DrainResponse, AppError> {
    caller.in_cluster(Role::Operator)?;
    migration::check_limits(&request.limits)?;
    if !(1..=MAX_PARALLEL).contains(&request.parallel) {
        let reason = request.parallel.to_string();
        return Err(AppError::invalid("parallel", reason, "move 1 to 64 VMs at once"));
    }
    let (core_, host) = (core.clone(), host.clone());
    let answer = core
        .submit(Some(caller.token), move |txn| {
            let before = host::find(&txn.state, &host)?;
            let since = before.draining.as_ref().map_or(txn.now, |drain| drain.since);
            let DrainRequest { parallel, limits, .. } = request;
            let drain = (!request.cordon_only).then_some(Drain { parallel, limits, since });
            let record = host::set_schedulable(txn, &host, false, drain.clone())?;
            let vms = drain.map(|drain| prospects(txn, &record, &drain)).unwrap_or_default();
            Ok(DrainResponse { host: host::view(&core_, &txn.state, &record), vms })
        })
        .await;
    core.nudge();
    answer
}

/// The VMs that are on a host, by id.
pub(crate) fn vms_on(state: &State, host: &HostRecord) -> Vec<Arc<VmRecord>> {
    let id = host.host.id;
    state
        .vms_of_host(id)
        .filter(|vm| vm.host() == Some(id) && vm.vm.phase != VmPhase::Deleting)
        .cloned()
        .collect()
}

/// What becomes of each VM, by a try that is taken back.
fn prospects(txn: &mut Txn<'_>, host: &HostRecord, drain: &Drain) -> Vec<DrainedVm> {
    let mark = txn.mark();
    let prospects = vms_on(&txn.state, host)
        .iter()
        .map(|record| {
            let (prospect, to, why) = prospect(txn, record, drain);
            drained(&txn.state, record, prospect, to, why)
        })
        .collect();
    txn.roll_back(mark);
    prospects
}

fn prospect(
    txn: &mut Txn<'_>,
    record: &VmRecord,
    drain: &Drain,
) -> (DrainProspect, Option<Name>, Option<String>) {
    let to = |txn: &Txn<'_>| {
        let to = txn.state.vm(record.vm.id)?.destination()?;
        migration::name_of(&txn.state, to)
    };
    if record.migration.is_some() {
        return (DrainProspect::Moving, to(txn), None);
    }
    if !matches!(record.vm.phase, VmPhase::Running) {
        return match record.vm.disk {
            Some(DiskLocation::Pool { .. }) => (DrainProspect::StartsElsewhere, None, None),
            _ => {
                let why = format!("it is {} and its disk is on this host", record.vm.phase);
                (DrainProspect::Stays, None, Some(why))
            }
        };
    }
    match migrate::begin(txn, record, wish(drain)) {
        Ok(()) => (DrainProspect::Moves, to(txn), None),
        Err(error) => (DrainProspect::Stays, None, Some(error.in_full())),
    }
}

pub(crate) const fn wish(drain: &Drain) -> Wish {
    Wish { to: None, limits: drain.limits, cause: MigrationCause::Drain }
}

fn drained(
    state: &State,
    record: &VmRecord,
    prospect: DrainProspect,
    to: Option<Name>,
    why: Option<String>,
) -> DrainedVm {
    let vm = record.vm.name.clone();
    let project = state.project(record.vm.project).map(|project| project.name.clone());
    DrainedVm { project: project.unwrap_or_else(|| vm.clone()), vm, prospect, to, why }
}

/// A host's drain as users see it.
pub(crate) fn view(core: &Core, state: &State, record: &HostRecord) -> Option<DrainView> {
    let Drain { parallel, limits, since } = record.draining.clone()?;
    let held_up = core.held_up().clone();
    let waiting = vms_on(state, record)
        .iter()
        .filter(|vm| vm.migration.is_none())
        .filter_map(|vm| {
            let why = held_up.get(&vm.vm.id)?.why.clone();
            Some(drained(state, vm, DrainProspect::Stays, None, Some(why)))
        })
        .collect();
    Some(DrainView { since, parallel, limits, waiting })
}

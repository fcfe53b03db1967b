//! Moves VMs away from hosts that are to be emptied.
//!
//! As many at once as the drain says, each decided on what those before it have left. One that
//! cannot move, or whose move has failed, is tried again after pauses that grow; why stands beside
//! the host until then. Memory alone knows the pauses: a new manager begins with the shortest.

use std::time::Duration;

use plimsoll_api::v1::MigrationOutcome;
use plimsoll_model::{HostId, HostPhase, Power, VmId, VmPhase};
use uuid::Uuid;

use crate::{
    admission::migrate,
    app::{AppError, drain},
    core::{Core, State, record::VmRecord, txn::Txn},
};

/// The pause after a failure doubles from the first of these to the second.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// A VM that was to leave its host, and did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeldUp {
    /// Why.
    pub(crate) why: String,
    /// Not before then is it tried again.
    until: Duration,
    pause: Duration,
    /// The failed move that was counted last.
    counted: Option<Uuid>,
}

impl HeldUp {
    fn after(before: Option<&Self>, why: String, counted: Option<Uuid>, now: Duration) -> Self {
        let pause =
            before.map_or(FIRST_PAUSE, |before| before.pause.saturating_mul(2).min(LONGEST_PAUSE));
        let counted = counted.or_else(|| before.and_then(|before| before.counted));
        Self { why, until: now.saturating_add(pause), pause, counted }
    }
}

pub(crate) async fn reconcile(core: Core) -> Result<String, AppError> {
    let state = core.snapshot();
    let draining: Vec<HostId> = state
        .hosts
        .values()
        .filter(|record| record.draining.is_some())
        .map(|record| record.host.id)
        .collect();
    let is_draining = |vm: &VmId| {
        let host = state.vm(*vm).and_then(|record| record.host());
        host.is_some_and(|host| draining.contains(&host))
    };
    core.held_up().retain(|vm, _| is_draining(vm));
    let mut begun = 0;
    for host in &draining {
        count_failures(&core, &state, *host);
        if !due(&core, &state, *host).is_empty() {
            let (inner, host) = (core.clone(), *host);
            begun += core.submit(None, move |txn| Ok(empty(&inner, txn, host))).await?;
        }
    }
    Ok(format!("{} hosts are emptied, {begun} moves begun", draining.len()))
}

/// Notes the moves that have failed since.
fn count_failures(core: &Core, state: &State, host: HostId) {
    let Some(host) = state.host(host) else { return };
    let mut held_up = core.held_up();
    for record in drain::vms_on(state, host) {
        let Some(last) = record.last_migration.as_ref() else { continue };
        let before = held_up.get(&record.vm.id);
        if record.migration.is_some()
            || last.outcome == MigrationOutcome::Moved
            || last.from != host.host.id
            || host.draining.as_ref().is_none_or(|drain| last.ended_at < drain.since)
            || before.is_some_and(|before| before.counted == Some(last.id))
        {
            continue;
        }
        let why = last.message.clone().unwrap_or_else(|| "its move did not succeed".to_owned());
        let new = HeldUp::after(before, why, Some(last.id), core.monotonic());
        held_up.insert(record.vm.id, new);
    }
}

/// Whether a VM could begin to move.
fn runs(record: &VmRecord) -> bool {
    record.migration.is_none()
        && record.vm.phase == VmPhase::Running
        && record.vm.power == Power::Running
}

/// The VMs to be tried now.
fn due(core: &Core, state: &State, host: HostId) -> Vec<VmId> {
    let Some(record) = state.host(host) else { return Vec::new() };
    let Some(wish) = record.draining.as_ref().filter(|_| record.host.phase == HostPhase::Up) else {
        return Vec::new();
    };
    let vms = drain::vms_on(state, record);
    let moving = vms.iter().filter(|vm| vm.migration.is_some()).count();
    if moving >= usize::try_from(wish.parallel).unwrap_or(usize::MAX) {
        return Vec::new();
    }
    let (held_up, now) = (core.held_up(), core.monotonic());
    let waits = |vm: &VmId| held_up.get(vm).is_some_and(|held_up| now < held_up.until);
    vms.iter().filter(|vm| runs(vm)).map(|vm| vm.vm.id).filter(|vm| !waits(vm)).collect()
}

/// Begins as many moves as the drain allows.
fn empty(core: &Core, txn: &mut Txn<'_>, host: HostId) -> usize {
    let Some(wish) = txn.state.host(host).and_then(|record| record.draining.clone()) else {
        return 0;
    };
    let moving = txn.state.vms_of_host(host);
    let moving = moving.filter(|vm| vm.host() == Some(host) && vm.migration.is_some()).count();
    let room = usize::try_from(wish.parallel).unwrap_or(usize::MAX).saturating_sub(moving);
    let mut begun = 0;
    for id in due(core, &txn.state, host) {
        if begun == room {
            break;
        }
        let Some(record) = txn.state.vm(id).cloned() else { continue };
        match migrate::begin(txn, &record, drain::wish(&wish)) {
            Ok(()) => begun += 1,
            Err(error) => {
                let mut held_up = core.held_up();
                let before = held_up.get(&id);
                let new = HeldUp::after(before, error.in_full(), None, core.monotonic());
                held_up.insert(id, new);
            }
        }
    }
    begun
}

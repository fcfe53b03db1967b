//! The cluster in numbers.

use plimsoll_api::v1::{ClusterStatus, WhoAmI};

use std::collections::BTreeMap;

use plimsoll_model::Resources;

use crate::{
    app::{AppError, Caller, host},
    core::Core,
};

/// The cluster in numbers; for a project's token only its own VMs.
///
/// # Errors
/// None at present.
pub fn cluster_status(core: &Core, caller: &Caller) -> Result<ClusterStatus, AppError> {
    let Some(project) = caller.project else { return Ok(cluster_numbers(core)) };
    let state = core.snapshot();
    let mut vms = BTreeMap::new();
    for record in state.vms.values().filter(|record| record.vm.project == project) {
        *vms.entry(record.vm.phase).or_default() += 1;
    }
    Ok(ClusterStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: core.started_at(),
        hosts: BTreeMap::new(),
        vms,
        capacity: Resources::default(),
        committed: state.usage(project).held,
        tasks: BTreeMap::new(),
    })
}

/// The whole cluster in numbers, for metrics.
#[must_use]
pub fn cluster_numbers(core: &Core) -> ClusterStatus {
    let state = core.snapshot();
    let mut hosts = BTreeMap::new();
    let (mut capacity, mut committed) = (Resources::default(), Resources::default());
    for record in state.hosts.values() {
        *hosts.entry(record.host.phase).or_default() += 1;
        capacity = capacity.plus(&record.host.spec.capacity);
        committed = committed.plus(&host::committed(&state, record.host.id).0);
    }
    ClusterStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: core.started_at(),
        hosts,
        vms: state.phases.iter().map(|(phase, count)| (*phase, *count)).collect(),
        capacity,
        committed,
        tasks: core.tasks(),
    }
}

/// Who the caller is.
#[must_use]
pub fn whoami(core: &Core, caller: &Caller) -> WhoAmI {
    caller.who(&core.snapshot())
}

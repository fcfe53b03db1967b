//! Hosts that exist only here.

use std::collections::BTreeMap;

use plimsoll_model::{HostId, ProjectId, Resources, VmId};
use plimsoll_placement::{HostState, Request};
use uuid::Uuid;

/// A host that takes VMs, named after its number.
pub(crate) fn host(number: u32, capacity: Resources) -> HostState {
    HostState {
        id: HostId(number),
        name: format!("host-{number}").parse().expect("a letter, digits and a dash"),
        rack: None,
        zone: None,
        labels: BTreeMap::new(),
        capacity,
        pool: None,
        unschedulable: None,
    }
}

/// The request of the VM of a number, of the one project of an experiment.
pub(crate) fn request(number: u64, demand: Resources) -> Request {
    let vm = VmId(Uuid::from_u128(u128::from(number)));
    Request::new(vm, ProjectId(Uuid::nil()), demand)
}

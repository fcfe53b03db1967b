//! What a host should do, from the state.
//!
//! A host that is known but fenced gets its desired state like any other: that is how it learns what
//! it must make absent before it is `up` again.

use std::collections::BTreeSet;

use plimsoll_api::cluster::{
    DesiredHost, DesiredImage, DesiredNetwork, DesiredPresent, DesiredVm, DiskOrigin, Wanted,
};
use plimsoll_model::{DiskLocation, HostId, NetworkId, OnHostFailure, StoragePool, VmPhase};

use crate::core::{
    record::{HostRecord, VmRecord},
    state::State,
};

/// What the VXLAN header takes of an Ethernet frame of 1500 bytes.
const NETWORK_MTU: u16 = 1450;

/// What the host should do; `None` if there is no such host.
#[must_use]
pub fn desired_host(state: &State, host: HostId) -> Option<DesiredHost> {
    state.host(host)?;
    let mut desired =
        DesiredHost { generation: state.desired_generation(host), ..DesiredHost::default() };
    let mut networks = BTreeSet::new();
    for record in state.vms_of_host(host) {
        let vm = &record.vm;
        let present = record.host() == Some(host) && vm.phase != VmPhase::Deleting;
        let (incarnation, wanted) = match record.cleanups.get(&host) {
            Some(cleanup) if !present => {
                (cleanup.incarnation, Wanted::Absent { delete_disk: cleanup.delete_disk })
            }
            _ if present => match desired_present(state, record) {
                Some(present) => {
                    networks.extend(vm.interfaces.iter().map(|interface| interface.network));
                    (vm.incarnation, Wanted::Present(Box::new(present)))
                }
                None => continue,
            },
            _ => continue,
        };
        desired.vms.push(DesiredVm { vm: vm.id, incarnation, wanted });
    }
    desired.networks =
        networks.into_iter().filter_map(|id| desired_network(state, host, id)).collect();
    Some(desired)
}

fn desired_present(state: &State, record: &VmRecord) -> Option<DesiredPresent> {
    let vm = &record.vm;
    let project = state.project(vm.project)?;
    let image = &state.images.get(&record.image)?.image;
    Some(DesiredPresent {
        generation: vm.generation,
        power: vm.power,
        shutdown_grace_ms: record.shutdown_grace_ms,
        name: vm.name.clone(),
        project: vm.project,
        project_name: project.name.clone(),
        resources: vm.spec.resources.clone(),
        image: DesiredImage {
            files: image.files.clone(),
            disk_format: image.disk_format.clone(),
            append: image.append.clone(),
            guest_agent: image.guest_agent,
        },
        disk: if vm.disk.is_some() { DiskOrigin::Existing } else { DiskOrigin::Image },
        interfaces: vm.interfaces.clone(),
        user_data: vm.spec.user_data.clone(),
        ssh_keys: vm.spec.ssh_keys.clone(),
        restart: vm.spec.restart,
        fenced_by_lease: record.fenced_by_lease,
        reboots: vm.reboots,
        deflation: vm.deflation,
        elasticity: vm.spec.elasticity.clone(),
        end_at: vm.spec.end_at,
        warn_at: vm.spec.end_at.map(|end| state.warn_at(end)),
        migration: None,
    })
}

fn desired_network(state: &State, host: HostId, id: NetworkId) -> Option<DesiredNetwork> {
    let network = state.networks.get(&id)?;
    let peers = state
        .hosts_of_network(id)
        .filter(|peer| *peer != host)
        .filter_map(|peer| state.host(peer))
        .map(|peer| peer.host.spec.underlay_address)
        .collect();
    Some(DesiredNetwork {
        network: id,
        vni: network.vni,
        cidr: network.cidr,
        mtu: NETWORK_MTU,
        outside: network.outside,
        peers,
    })
}

/// Whether the guard of a VM that is placed on this host is to end it when the host's lease runs
/// out: exactly when the manager may then start it elsewhere.
#[must_use]
pub fn fenced_by_lease(lease_ms: u64, record: &VmRecord, host: &HostRecord) -> bool {
    lease_ms > 0
        && match record.vm.spec.on_host_failure {
            OnHostFailure::Wait => false,
            OnHostFailure::Recreate => true,
            OnHostFailure::Restart => match &record.vm.disk {
                Some(DiskLocation::Pool { .. }) => true,
                Some(DiskLocation::Host { .. }) => false,
                None => matches!(host.host.spec.storage, StoragePool::Shared { .. }),
            },
        }
}

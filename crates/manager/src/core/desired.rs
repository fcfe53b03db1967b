//! What a host should do, from the state.
//!
//! A host that is known but fenced gets its desired state like any other: that is how it learns what
//! it must make absent before it is `up` again.

use std::collections::BTreeSet;

use plimsoll_api::{
    cluster::{
        DesiredHost, DesiredImage, DesiredNetwork, DesiredPresent, DesiredVm, DiskOrigin, Wanted,
    },
    migration::{Arrival, Departure, DesiredMigration},
};
use plimsoll_model::{DiskLocation, HostId, NetworkId, OnHostFailure, StoragePool, VmPhase};

use crate::core::{
    migration::Migration,
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
        let Some((incarnation, wanted)) = wanted(state, host, record) else { continue };
        if matches!(wanted, Wanted::Present(_)) {
            networks.extend(record.vm.interfaces.iter().map(|interface| interface.network));
        }
        desired.vms.push(DesiredVm { vm: record.vm.id, incarnation, wanted });
    }
    desired.networks =
        networks.into_iter().filter_map(|id| desired_network(state, host, id)).collect();
    Some(desired)
}

/// What is wanted of a VM on a host that may hold something of it.
fn wanted(state: &State, host: HostId, record: &VmRecord) -> Option<(u64, Wanted)> {
    let vm = &record.vm;
    let migration = record.migration.as_ref();
    if vm.phase != VmPhase::Deleting {
        if record.host() == Some(host) {
            let mut present = desired_present(state, record)?;
            present.migration = migration.and_then(|migration| departure(state, migration));
            return Some((vm.incarnation, Wanted::Present(Box::new(present))));
        }
        if let Some(migration) = migration.filter(|migration| migration.to == host) {
            if migration.is_withdrawn() {
                // Whether its disk goes is decided when the move is over: it may have arrived.
                return Some((migration.incarnation, Wanted::Absent { delete_disk: false }));
            }
            let mut present = desired_present(state, record)?;
            present.disk =
                if migration.copy_disk { DiskOrigin::Image } else { DiskOrigin::Existing };
            present.fenced_by_lease = migration.fenced_by_lease;
            let from = record.host()?;
            present.migration = Some(DesiredMigration::Arrival(Arrival { id: migration.id, from }));
            return Some((migration.incarnation, Wanted::Present(Box::new(present))));
        }
    }
    let cleanup = record.cleanups.get(&host)?;
    Some((cleanup.incarnation, Wanted::Absent { delete_disk: cleanup.delete_disk }))
}

fn departure(state: &State, migration: &Migration) -> Option<DesiredMigration> {
    let target = state.host(migration.to)?;
    Some(DesiredMigration::Departure(Departure {
        id: migration.id,
        to: migration.to,
        address: target.host.spec.agent_address.clone(),
        copy_disk: migration.copy_disk,
        limits: migration.limits,
        cancel: migration.cancel,
        target_lost: migration.target_lost,
    }))
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

//! From what is stored to what is in memory.

use std::sync::Arc;

use plimsoll_model::{EventKind, Network, Severity, Subject};
use plimsoll_placement::{Cluster, OccupyError};
use plimsoll_store::{Contents, Kind, Record, StoreError};
use serde::de::DeserializeOwned;

use crate::core::{
    OpenError,
    record::{
        HostRecord, ImageRecord, JoinTokenRecord, ProjectRecord, SettingsRecord, TokenRecord,
        VmRecord,
    },
    state::State,
    txn::{Txn, host_state},
};

fn decode<T: DeserializeOwned>(record: &Record) -> Result<T, OpenError> {
    serde_json::from_str(&record.body).map_err(|source| {
        OpenError::Load(StoreError::Decode { kind: record.kind, id: record.id.clone(), source })
    })
}

/// The state with its indices.
pub(crate) fn state(contents: &Contents) -> Result<State, OpenError> {
    let mut state = State { revision: contents.revision, ..State::default() };
    let revision = contents.revision;
    let of = |kind: Kind| contents.records.iter().filter(move |record| record.kind == kind);
    for record in of(Kind::Settings) {
        state.settings = Arc::new(decode::<SettingsRecord>(record)?);
    }
    for record in of(Kind::Project) {
        let project: ProjectRecord = decode(record)?;
        state.put_project(project.project.id, Some(Arc::new(project)));
    }
    for record in of(Kind::Network) {
        let network: Network = decode(record)?;
        state.put_network(network.id, Some(Arc::new(network)));
    }
    for record in of(Kind::Image) {
        let image: ImageRecord = decode(record)?;
        state.put_image(image.image.id, Some(Arc::new(image)));
    }
    for record in of(Kind::Token) {
        let token: TokenRecord = decode(record)?;
        state.put_token(token.id, Some(Arc::new(token)));
    }
    for record in of(Kind::JoinToken) {
        let token: JoinTokenRecord = decode(record)?;
        state.put_join_token(token.id, Some(Arc::new(token)));
    }
    for record in of(Kind::Host) {
        let host: HostRecord = decode(record)?;
        state.put_host(host.host.id, Some(&Arc::new(host)), revision);
    }
    for record in of(Kind::Vm) {
        let vm: VmRecord = decode(record)?;
        state.put_vm(vm.vm.id, Some(&Arc::new(vm)), revision);
    }
    for stored in &contents.events {
        let event = serde_json::from_str(&stored.body).map_err(|source| {
            OpenError::Load(StoreError::DecodeEvent { sequence: stored.sequence, source })
        })?;
        state.put_event(event);
    }
    Ok(state)
}

/// Placement's books.
pub(crate) fn cluster(state: &State) -> Result<Cluster, OpenError> {
    let mut cluster = Cluster::new();
    for host in state.hosts.values() {
        cluster.upsert_host(host_state(host));
    }
    for record in state.vms.values() {
        let inconsistent = |error: OccupyError| OpenError::Inconsistent { what: error.to_string() };
        if let Some((host, request)) = record.entry() {
            let occupied = if record.devices.is_empty() {
                cluster.occupy(host, &request)
            } else {
                cluster.occupy_devices(host, &request, &record.devices)
            };
            let _ = occupied.map_err(inconsistent)?;
        }
        if let Some((host, request)) = record.arrival_entry() {
            let _ = cluster.occupy(host, &request).map_err(inconsistent)?;
        }
    }
    Ok(cluster)
}

/// Every start is a commit: its revision is above every generation that hosts have seen.
pub(crate) fn note_start(txn: &mut Txn<'_>) {
    txn.event(
        Severity::Info,
        EventKind::ManagerStarted,
        Subject::Cluster,
        None,
        format!("version {}", env!("CARGO_PKG_VERSION")),
    );
}

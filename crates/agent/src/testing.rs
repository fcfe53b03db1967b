//! What several tests need: a cluster's CA, a manager that answers as told, waiting with a limit.

mod authority;
mod host;
mod manager;

use std::{collections::BTreeMap, time::Duration};

use plimsoll_model::{HostSpec, Resources, StoragePool};

pub(crate) use crate::vm::BootTime;
pub(crate) use authority::Authority;
pub(crate) use host::environment;
pub(crate) use manager::{Behaviour, FakeManager};

pub(crate) fn host_spec() -> HostSpec {
    HostSpec {
        rack: None,
        zone: None,
        labels: BTreeMap::new(),
        capacity: Resources::default(),
        agent_address: "192.0.2.1:8008".into(),
        underlay_address: [192, 0, 2, 1].into(),
        storage: StoragePool::Local,
        accelerator: "tcg".into(),
        qemu_version: "10.0.2".into(),
        agent_version: "0.1.0".into(),
    }
}

/// Waits until `condition` gives something; fails the test after ten seconds.
pub(crate) async fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

//! What several tests need.

use plimsoll_model::{HostSpec, Resources, StoragePool};

pub(crate) fn host_spec() -> HostSpec {
    HostSpec {
        rack: None,
        zone: None,
        labels: std::collections::BTreeMap::new(),
        capacity: Resources::default(),
        agent_address: "192.0.2.1:7703".into(),
        underlay_address: [192, 0, 2, 1].into(),
        storage: StoragePool::Local,
        accelerator: "tcg".into(),
        qemu_version: "10.0.2".into(),
        agent_version: "0.1.0".into(),
    }
}

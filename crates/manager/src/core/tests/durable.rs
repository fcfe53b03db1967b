//! With the real store: what is acknowledged is on disk, at every commit.

use std::path::Path;

use plimsoll_model::StoragePool;
use plimsoll_store::{SqliteStore, Store};

use super::super::rig::{Rig, name, request, resources, spec};
use crate::{
    app,
    core::{Core, CoreConfig, State},
};

/// What a process that starts on what a killed one has left would find.
fn after_a_crash(directory: &Path) -> State {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let mut store = SqliteStore::open(&copy.path().join("state.db")).unwrap();
    crate::core::load::state(&store.load().unwrap()).unwrap()
}

#[tokio::test]
async fn what_is_acknowledged_survives_a_kill_at_any_moment() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let rig = Rig::on(Box::new(SqliteStore::open(&path).unwrap())).await;
    let mut host = rig.host("h1", StoragePool::Local).await;
    for i in 0..8 {
        let vm = format!("v{i}");
        rig.create(request(&vm, None, spec(resources(100, 128)))).await.unwrap();
        let found = after_a_crash(directory.path());
        let state = rig.core.snapshot();
        assert_eq!((found.revision, &found.vms), (state.revision, &state.vms));
        host.exchange(&rig.core).await;
        if i % 2 == 0 {
            app::vm_delete(&rig.core, &rig.admin, &name("p"), &name(&vm)).await.unwrap();
            host.exchange(&rig.core).await;
        }
        let found = after_a_crash(directory.path());
        let state = rig.core.snapshot();
        assert_eq!((&found.vms, &found.hosts), (&state.vms, &state.hosts));
        assert_eq!((&found.events, &found.usage), (&state.events, &state.usage));
    }
    rig.core.close().await;
    assert!(SqliteStore::open(&path).is_ok(), "closing lets go of the store");
}

/// A second process on the same store would be a second brain.
#[tokio::test]
async fn a_second_manager_on_the_same_store_does_not_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let rig = Rig::on(Box::new(SqliteStore::open(&path).unwrap())).await;
    assert!(SqliteStore::open(&path).is_err());
    rig.core.close().await;
}

#[tokio::test]
async fn a_store_of_nonsense_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(&directory.path().join("state.db")).unwrap();
    let batch = plimsoll_store::Batch {
        puts: vec![(plimsoll_store::Kind::Vm, "vm-x".to_owned(), "{}".to_owned())],
        ..Default::default()
    };
    store.commit(&batch).unwrap();
    let error = Core::open(CoreConfig::default(), Box::new(store)).unwrap_err();
    assert!(matches!(error, crate::core::OpenError::Load(_)));
}

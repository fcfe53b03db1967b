//! Against a real QEMU that has no machine: starts in milliseconds and needs no guest.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use plimsoll_qmp::{
    ConnectOptions, EventKind, EventReceiver, MigrationStatus, Qmp, QmpError, RunState,
};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

const QEMU: &str = "qemu-system-x86_64";
const LIMIT: Duration = Duration::from_secs(20);

/// A QEMU with these extra arguments, or `None` (said aloud) where there is none installed.
async fn qemu(directory: &Path, arguments: &[&str]) -> Option<(Child, Qmp, EventReceiver)> {
    let socket = directory.join("qmp");
    let child = Command::new(QEMU)
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("SKIPPED: {QEMU} is not installed");
            return None;
        }
        Err(error) => panic!("cannot start {QEMU}: {error}"),
    };
    let connect = async {
        loop {
            match Qmp::connect(&socket, ConnectOptions::default()).await {
                Ok(connected) => return connected,
                Err(QmpError::Connect { .. }) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    let (qmp, events) = tokio::time::timeout(LIMIT, connect).await.unwrap();
    Some((child, qmp, events))
}

#[tokio::test]
async fn qemu_without_a_machine_answers_and_quits() {
    let directory = tempfile::tempdir().unwrap();
    let uuid = "7c9e6679-7425-40de-944b-e07fc1f90ae7";
    let arguments = ["-machine", "none", "-name", "web-1", "-uuid", uuid];
    let Some((mut child, qmp, mut events)) = qemu(directory.path(), &arguments).await else {
        return;
    };
    assert!(qmp.query_version().await.unwrap().qemu.major >= 7);
    assert_eq!(qmp.query_name().await.unwrap().name.as_deref(), Some("web-1"));
    assert_eq!(qmp.query_uuid().await.unwrap().uuid, uuid);
    assert!(qmp.query_block().await.unwrap().is_empty());
    let unknown = qmp.execute("no-such-command", Value::Null).await.unwrap_err();
    assert_eq!(unknown.class(), Some("CommandNotFound"));
    // The longest answer that QEMU has.
    let schema = qmp.execute("query-qmp-schema", Value::Null).await.unwrap();
    assert!(schema.as_array().unwrap().len() > 500);

    qmp.object_add(json!({"qom-type": "throttle-group", "id": "t0", "limits": {"iops-total": 5}}))
        .await
        .unwrap();
    // Only the whole structure can be set later, not the `x-` properties one by one.
    qmp.qom_set("/objects/t0", "limits", &json!({"iops-total": 7})).await.unwrap();
    assert_eq!(qmp.qom_get("/objects/t0", "limits").await.unwrap()["iops-total"], json!(7));

    qmp.quit().await.unwrap();
    tokio::time::timeout(LIMIT, qmp.closed()).await.unwrap();
    assert!(tokio::time::timeout(LIMIT, child.wait()).await.unwrap().unwrap().success());
    let kind = events.recv().await.unwrap().kind();
    assert!(matches!(kind, EventKind::Shutdown { guest: false, .. }), "{kind:?}");
}

#[tokio::test]
async fn qemu_with_a_paused_machine_is_queried_and_stepped() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = [
        "-machine",
        "q35",
        "-accel",
        "tcg",
        "-cpu",
        "max",
        "-m",
        "64,slots=2,maxmem=1G",
        "-smp",
        "1,maxcpus=3",
        "-S",
        "-device",
        "virtio-balloon-pci,id=balloon0,deflate-on-oom=on",
    ];
    let Some((_child, qmp, mut events)) = qemu(directory.path(), &arguments).await else { return };
    assert_eq!(qmp.query_status().await.unwrap().status, RunState::Prelaunch);
    let cpus = qmp.query_cpus_fast().await.unwrap();
    assert_eq!(cpus.len(), 1);
    assert!(cpus[0].thread_id > 0);
    let slots = qmp.query_hotpluggable_cpus().await.unwrap();
    assert_eq!(slots.len(), 3);
    let free = slots.iter().rev().find(|slot| slot.qom_path.is_none()).unwrap();
    qmp.plug_cpu("cpu1", free).await.unwrap();
    assert_eq!(qmp.query_cpus_fast().await.unwrap().len(), 2);
    qmp.set_guest_stats_interval("/machine/peripheral/balloon0", 2).await.unwrap();
    assert_eq!(qmp.guest_stats("/machine/peripheral/balloon0").await.unwrap().last_update_s, 0);
    assert_eq!(qmp.query_balloon().await.unwrap().actual, 64 << 20);
    assert!(qmp.query_memory_devices().await.unwrap().is_empty());
    let backend = json!({"qom-type": "memory-backend-ram", "id": "m0", "size": 128 << 20});
    qmp.object_add(backend).await.unwrap();
    qmp.device_add(json!({"driver": "pc-dimm", "id": "dimm0", "memdev": "m0"})).await.unwrap();
    assert_eq!(qmp.query_memory_devices().await.unwrap()[0].size_bytes, 128 << 20);
    qmp.cont().await.unwrap();
    let resume = tokio::time::timeout(LIMIT, events.recv()).await.unwrap().unwrap();
    assert_eq!(resume.kind(), EventKind::Resume);
    assert_eq!(qmp.query_status().await.unwrap().status, RunState::Running);
    qmp.stop().await.unwrap();
    assert_eq!(qmp.query_status().await.unwrap().status, RunState::Paused);
    qmp.quit().await.unwrap();
}

#[tokio::test]
async fn descriptors_are_handed_over() {
    let directory = tempfile::tempdir().unwrap();
    let Some((_child, qmp, _)) = qemu(directory.path(), &["-machine", "none"]).await else {
        return;
    };
    let handed = (0..8).map(|number| {
        let qmp = qmp.clone();
        async move {
            let name = format!("d{number}");
            let (_, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
            qmp.send_descriptor(&name, theirs.into()).await.unwrap();
            qmp.execute("closefd", json!({"fdname": name})).await.unwrap();
        }
    });
    futures_util::future::join_all(handed).await;
    let again = qmp.execute("closefd", json!({"fdname": "d0"})).await;
    assert!(matches!(again, Err(QmpError::Refused { .. })), "{again:?}");
    let bare = qmp.execute("getfd", json!({"fdname": "none"})).await;
    assert!(matches!(bare, Err(QmpError::Refused { .. })), "{bare:?}");
    qmp.quit().await.unwrap();
}

/// Waits for the event `name`, with these data where they are given.
async fn event(events: &mut EventReceiver, name: &str, data: Option<Value>) -> Value {
    let found = async {
        loop {
            let event = events.recv().await.unwrap();
            if event.name == name && data.as_ref().is_none_or(|data| *data == event.data) {
                return event.data;
            }
        }
    };
    tokio::time::timeout(LIMIT, found).await.unwrap()
}

fn status(word: &str) -> Option<Value> {
    Some(json!({"status": word}))
}

/// A whole move: the disk by NBD, the memory behind it, both over descriptors.
#[tokio::test]
async fn a_machine_moves_with_its_disk() {
    const SIZE: u64 = 4 << 20;
    let machine = ["-machine", "q35", "-accel", "tcg", "-m", "64", "-S"];
    let source_directory = tempfile::tempdir().unwrap();
    let target_directory = tempfile::tempdir().unwrap();
    let incoming: Vec<&str> = machine.iter().copied().chain(["-incoming", "defer"]).collect();
    let Some((_source, source, mut events)) = qemu(source_directory.path(), &machine).await else {
        return;
    };
    let Some((_target, target, mut arrival)) = qemu(target_directory.path(), &incoming).await
    else {
        return;
    };
    let kind = source.query_machine_type().await.unwrap();
    assert_eq!(target.query_machine_type().await.unwrap(), kind);
    let content = vec![0xa7_u8; usize::try_from(SIZE).unwrap()];
    let (from, to) = (source_directory.path().join("disk"), target_directory.path().join("disk"));
    std::fs::write(&from, &content).unwrap();
    std::fs::File::create(&to).unwrap().set_len(SIZE).unwrap();
    for (qmp, file) in [(&source, &from), (&target, &to)] {
        let disk = json!({"driver": "file", "node-name": "disk", "filename": file});
        qmp.blockdev_add(disk).await.unwrap();
        qmp.migrate_set_capabilities(&[("events", true), ("pause-before-switchover", true)])
            .await
            .unwrap();
    }

    let path = target_directory.path().join("nbd");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    target.send_descriptor("nbd", listener.into()).await.unwrap();
    target.nbd_server_start("nbd").await.unwrap();
    target.nbd_export("disk", "disk").await.unwrap();
    let stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    source.send_descriptor("nbd", stream.into()).await.unwrap();
    let remote = json!({"driver": "nbd", "node-name": "remote", "export": "disk",
        "server": {"type": "fd", "str": "nbd"}});
    source.blockdev_add(remote).await.unwrap();
    source.blockdev_mirror("move", "disk", "remote", 0).await.unwrap();
    event(&mut events, "BLOCK_JOB_READY", None).await;
    let jobs = source.query_block_jobs().await.unwrap();
    assert!(jobs[0].ready && jobs[0].offset == SIZE, "{jobs:?}");
    source.block_job_cancel("move", false).await.unwrap();
    let ended = event(&mut events, "BLOCK_JOB_COMPLETED", None).await;
    assert_eq!((&ended["device"], ended.get("error")), (&json!("move"), None));
    // A node whose server is gone cannot be flushed, and the switch of a migration flushes all.
    source.blockdev_del("remote").await.unwrap();
    target.nbd_server_stop().await.unwrap();
    assert!(std::fs::read(&to).unwrap() == content);

    let (outgoing, incoming) = std::os::unix::net::UnixStream::pair().unwrap();
    target.send_descriptor("memory", incoming.into()).await.unwrap();
    target.migrate_incoming("fd:memory").await.unwrap();
    source.send_descriptor("memory", outgoing.into()).await.unwrap();
    source.migrate("fd:memory").await.unwrap();
    event(&mut events, "MIGRATION", status("pre-switchover")).await;
    let info = source.query_migrate().await.unwrap();
    assert_eq!(info.status, MigrationStatus::PreSwitchover);
    source.migrate_continue().await.unwrap();
    event(&mut events, "MIGRATION", status("completed")).await;
    event(&mut arrival, "MIGRATION", status("completed")).await;
    let info = source.query_migrate().await.unwrap();
    assert!(info.ram.total >= 64 << 20 && info.ram.remaining == 0, "{info:?}");
    target.cont().await.unwrap();
    assert_eq!(target.query_status().await.unwrap().status, RunState::Running);
    target.announce_self().await.unwrap();
    source.quit().await.unwrap();
    target.quit().await.unwrap();
}

#[tokio::test]
async fn a_migration_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let machine = ["-machine", "q35", "-accel", "tcg", "-m", "64"];
    let Some((_child, qmp, mut events)) = qemu(directory.path(), &machine).await else { return };
    qmp.migrate_set_capabilities(&[("events", true)]).await.unwrap();
    qmp.migrate_set_parameters(json!({"max-bandwidth": 4096})).await.unwrap();
    // Nobody reads: it stands still once the socket is full.
    let (_reader, outgoing) = std::os::unix::net::UnixStream::pair().unwrap();
    qmp.send_descriptor("memory", outgoing.into()).await.unwrap();
    qmp.migrate("fd:memory").await.unwrap();
    event(&mut events, "MIGRATION_PASS", Some(json!({"pass": 1}))).await;
    qmp.migrate_cancel().await.unwrap();
    event(&mut events, "MIGRATION", status("cancelled")).await;
    assert_eq!(qmp.query_migrate().await.unwrap().status, MigrationStatus::Cancelled);
    assert_eq!(qmp.query_status().await.unwrap().status, RunState::Running);
    qmp.quit().await.unwrap();
}

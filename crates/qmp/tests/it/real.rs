//! Against a real QEMU that has no machine: starts in milliseconds and needs no guest.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use plimsoll_qmp::{ConnectOptions, EventKind, EventReceiver, Qmp, QmpError, RunState};
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

use std::process::{Child, Command, Stdio};

use plimsoll_model::Timestamp;
use plimsoll_qmp::fake::{FakeServer, Step};
use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::vm::guard::record::ProcessId;

const VM: VmId = VmId(Uuid::from_u128(0x7c9e));

/// A directory as a guard leaves it at some instant, and a process in QEMU's place.
struct Scene {
    root: tempfile::TempDir,
    directory: VmDirectory,
    qemu: Child,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Scene {
    /// QEMU's arguments hold `uuid`.
    fn new(uuid: Uuid) -> Self {
        let root = tempfile::tempdir().unwrap();
        let directory = VmDirectory::new(root.path().to_owned());
        // It ends with its input.
        let qemu = Command::new("sh")
            .args(["-c", "read line", "-uuid", &uuid.hyphenated().to_string()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        Self { root, directory, qemu }
    }

    fn record(&self) -> GuardRecord {
        GuardRecord {
            vm: VM,
            launch: 1,
            uuid: VM.0,
            boot_id: files::boot_id().unwrap(),
            guard: ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap(),
            qemu: ProcessId::of(i32::try_from(self.qemu.id()).unwrap()).unwrap(),
        }
    }

    fn write(&self, record: &GuardRecord) {
        files::write_json(&self.directory.file(name::GUARD), record).unwrap();
    }

    fn monitor(&self, uuid: Uuid) -> FakeServer {
        let answer = json!({"UUID": uuid.hyphenated().to_string()});
        let path = self.root.path().join(name::QMP_SOCKET);
        FakeServer::start(&path, vec![Step::returns("query-uuid", answer)]).unwrap()
    }

    fn lock(&self) -> std::fs::File {
        lock::take(&self.directory.file(name::GUARD_LOCK)).unwrap().unwrap()
    }
}

#[tokio::test]
async fn what_has_no_lock_is_dead_and_can_not_come_to_life() {
    let scene = Scene::new(VM.0);
    let nowhere = VmDirectory::new(scene.root.path().join("nowhere"));
    assert!(matches!(adopt(VM, &nowhere).await.unwrap(), Verdict::Dead(None)));

    // The agent died between the permission to start and the guard's locks.
    let launch = scene.directory.file(name::LAUNCH);
    std::fs::write(&launch, b"{}").unwrap();
    assert!(matches!(adopt(VM, &scene.directory).await.unwrap(), Verdict::Dead(None)));
    assert!(!launch.exists());

    // A complete record of processes that live proves nothing without the locks.
    scene.write(&scene.record());
    let exit = ExitRecord {
        launch: 1,
        reason: ExitReason::Signalled { signal: 9 },
        at: Timestamp::UNIX_EPOCH,
    };
    files::write_json(&scene.directory.file(name::EXIT), &exit).unwrap();
    let Verdict::Dead(found) = adopt(VM, &scene.directory).await.unwrap() else {
        panic!("without locks it is dead");
    };
    assert_eq!(exit_of(1, found.clone()), Some(ExitReason::Signalled { signal: 9 }));
    assert_eq!(exit_of(2, found), None, "an older launch's end is not the newest's");

    // Cut off in the middle, which our own writes are not: still dead.
    std::fs::write(scene.directory.file(name::EXIT), b"{\"launch\": 1, \"rea").unwrap();
    assert!(matches!(adopt(VM, &scene.directory).await.unwrap(), Verdict::Dead(None)));
}

#[tokio::test]
async fn a_vm_is_found_again_also_while_its_guard_is_just_starting() {
    let scene = Scene::new(VM.0);
    let _lock = scene.lock();
    assert!(is_alive(&scene.directory).unwrap());
    let _monitor = scene.monitor(VM.0);
    // The record of the launch before is there, the new one comes in a moment.
    let stale = GuardRecord {
        qemu: ProcessId { pid: scene.record().qemu.pid, start_time: 1 },
        ..scene.record()
    };
    scene.write(&stale);
    let late = async {
        tokio::time::sleep(3 * PAUSE).await;
        scene.write(&scene.record());
    };
    let (verdict, ()) = tokio::join!(adopt(VM, &scene.directory), late);
    let Verdict::Running(adopted) = verdict.unwrap() else { panic!("it runs") };
    assert_eq!(adopted.record, scene.record());
}

#[tokio::test]
async fn each_difference_makes_an_impostor() {
    let scene = Scene::new(VM.0);
    let check =
        |record: GuardRecord| check_processes(VM, &record, &files::boot_id().unwrap()).unwrap_err();
    let good = scene.record();
    let other = Uuid::from_u128(1);
    assert!(matches!(check(GuardRecord { vm: VmId(other), ..good.clone() }), Mismatch::OtherVm));
    assert!(matches!(check(GuardRecord { uuid: other, ..good.clone() }), Mismatch::OtherVm));
    let boot_id = "another".to_owned();
    assert!(matches!(check(GuardRecord { boot_id, ..good.clone() }), Mismatch::OtherBoot));
    let later = |process: ProcessId| ProcessId { start_time: process.start_time + 1, ..process };
    for record in [
        GuardRecord { guard: later(good.guard), ..good.clone() },
        GuardRecord { qemu: later(good.qemu), ..good.clone() },
    ] {
        assert!(matches!(check(record), Mismatch::OtherProcess { .. }));
    }
    let stranger = Scene::new(other);
    let record = GuardRecord { qemu: stranger.record().qemu, ..good.clone() };
    assert!(matches!(check(record), Mismatch::OtherArguments { .. }));

    let _monitor = scene.monitor(other);
    let mismatch = check_monitor(VM, &scene.directory).await.unwrap_err();
    assert!(matches!(mismatch, Mismatch::OtherUuid { .. }));
}

#[tokio::test]
async fn something_that_holds_the_locks_and_never_says_who_it_is_is_left_alone() {
    let scene = Scene::new(VM.0);
    let _lock = scene.lock();
    let verdict = adopt_within(VM, &scene.directory, 2 * PAUSE).await.unwrap();
    assert!(matches!(verdict, Verdict::Impostor(Mismatch::NoRecord)));
    assert!(scene.record().qemu.exists());
}

#[tokio::test]
async fn qemus_own_lock_counts_too() {
    let scene = Scene::new(VM.0);
    let _lock = lock::take(&scene.directory.file(name::QEMU_LOCK)).unwrap().unwrap();
    assert!(is_alive(&scene.directory).unwrap());
    assert!(disarm(&scene.directory).unwrap().is_none());
}

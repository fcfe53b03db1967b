//! The life of a VM under its runner.

use std::time::{Duration, Instant};

use plimsoll_agent::vm::BootTime;
use plimsoll_api::cluster::{DesiredPresent, ObservedPhase, ObservedVm};
use plimsoll_model::{Bytes, BytesPerSecond, IoPerSecond, MilliCores, Power};

use crate::support::{Host, LIMIT, MIB, absent, desired, new_vm, present};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_boots_runs_as_nobody_stops_when_asked_and_leaves_nothing() {
    let Some(mut host) = Host::start() else { return };
    let vm = new_vm();
    host.want(desired(vm, present()));
    let observed = host.until_booted(vm).await;
    assert!(observed.guest.unwrap().kernel_release.starts_with("6."));
    assert_eq!(host.exec(vm, &["echo", "hello"]).await, "hello");
    let observed = host.until(vm, "applied", |observed| observed.generation == 1).await;
    let limits = observed.limits.unwrap();
    assert_eq!(limits.cpu, Some(MilliCores(1000)));
    assert_eq!(limits.memory, Some(Bytes(256 * MIB)));
    assert_eq!((limits.vcpus, limits.disk), (Some(1), Some(Bytes(64 * MIB))));

    let processes = host.processes(vm);
    let status = std::fs::read_to_string(format!("/proc/{}/status", processes.qemu.pid)).unwrap();
    let line = |key: &str| status.lines().find(|line| line.starts_with(key)).unwrap().to_owned();
    assert!(line("Uid:").split_whitespace().skip(1).all(|uid| uid.parse::<u32>().unwrap() > 1000));
    assert_eq!(line("NoNewPrivs:").split_whitespace().last(), Some("1"));
    assert_eq!(line("Seccomp:").split_whitespace().last(), Some("2"));
    let guard = std::fs::read_to_string(format!("/proc/{}/status", processes.guard.pid)).unwrap();
    let rss = guard.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    let kib: u64 = rss.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 1024, "a guard has {rss}");

    let mut log = host.vms.log(vm, plimsoll_api::agent::LogSource::Console, 65_536).unwrap();
    let piece = log.next(false).await.unwrap().unwrap();
    assert!(!piece.is_empty());

    let stopped = DesiredPresent { generation: 2, power: Power::Stopped, ..present() };
    host.want(desired(vm, stopped));
    host.until_phase(vm, ObservedPhase::Stopping).await;
    let observed = host.until_phase(vm, ObservedPhase::Stopped).await;
    assert_eq!((observed.generation, observed.disk_exists), (2, true));
    assert!(!processes.guard.exists() && !processes.qemu.exists());

    let again = DesiredPresent { generation: 3, ..present() };
    host.want(desired(vm, again));
    host.until_booted(vm).await;
    let processes = host.processes(vm);
    host.want(absent(vm));
    let observed = host.until_phase(vm, ObservedPhase::Absent).await;
    assert!(!observed.disk_exists);
    assert!(!processes.guard.exists() && !processes.qemu.exists());
    assert!(!host.vm_directory(vm).exists());
    assert!(!host.directory.path().join("disks").join(vm.to_string()).exists());
    // Not listed any more: forgotten.
    host.vms.want(&[], BootTime::now());
    assert!(host.observed(vm).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_change_on_the_running_vm() {
    let Some(mut host) = Host::start() else { return };
    let vm = new_vm();
    host.want(desired(vm, present()));
    host.until_booted(vm).await;
    let processes = host.processes(vm);
    assert_eq!(host.exec(vm, &["nproc"]).await, "1");

    let mut more = present();
    more.generation = 2;
    more.resources.cpu = MilliCores(2500);
    more.resources.memory = Bytes(160 * MIB);
    more.resources.disk = Bytes(96 * MIB);
    more.resources.disk_bandwidth = BytesPerSecond(10 * MIB);
    more.resources.disk_iops = IoPerSecond(100);
    host.want(desired(vm, more.clone()));
    let observed = host.until(vm, "changed", |observed| observed.generation == 2).await;
    let limits = observed.limits.unwrap();
    assert_eq!((limits.vcpus, limits.cpu), (Some(3), Some(MilliCores(2500))));
    assert_eq!(limits.memory, Some(Bytes(160 * MIB)));
    assert_eq!(limits.disk, Some(Bytes(96 * MIB)));
    assert_eq!(limits.disk_bandwidth, Some(BytesPerSecond(10 * MIB)));
    assert_eq!(limits.disk_iops, Some(IoPerSecond(100)));
    assert_eq!(host.exec(vm, &["nproc"]).await, "3");
    let size = host.exec(vm, &["cat", "/sys/block/vda/size"]).await;
    assert_eq!(size.parse::<u64>().unwrap() * 512, 96 * MIB);

    let mut less = more;
    less.generation = 3;
    less.resources.cpu = MilliCores(500);
    less.resources.memory = Bytes(448 * MIB);
    less.resources.disk_iops = IoPerSecond(0);
    host.want(desired(vm, less));
    let observed = host.until(vm, "changed back", |observed| observed.generation == 3).await;
    let limits = observed.limits.unwrap();
    // Plugged vCPUs stay; the guest does not run on them.
    assert_eq!((limits.vcpus, limits.cpu), (Some(3), Some(MilliCores(500))));
    assert_eq!(limits.memory, Some(Bytes(448 * MIB)));
    let total = host.exec(vm, &["sh", "-c", "grep MemTotal /proc/meminfo"]).await;
    let kib: u64 = total.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib > 400 * 1024, "the guest uses what was plugged in: {total}");
    assert_eq!(limits.disk_iops, Some(IoPerSecond(0)));
    assert_eq!(host.exec(vm, &["nproc"]).await, "1");
    assert_eq!(host.processes(vm), processes, "it was not restarted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vms_outlive_the_agent_and_are_found_again() {
    let Some(mut host) = Host::start() else { return };
    let vm = new_vm();
    host.want(desired(vm, present()));
    host.until_booted(vm).await;
    let processes = host.processes(vm);
    host.restart_agent().await;
    // Before any word of the manager.
    let observed = host.observed(vm).unwrap();
    assert_eq!(observed.phase, ObservedPhase::Running);
    host.want_again();
    host.until_booted(vm).await;
    assert_eq!(host.exec(vm, &["echo", "still here"]).await, "still here");
    assert_eq!(host.processes(vm), processes);

    // It dies while no agent is there.
    host.kill_agent();
    host.kill(processes.qemu);
    host.restart_agent().await;
    host.want_again();
    let restarted =
        |observed: &ObservedVm| observed.restarts == 1 && observed.phase == ObservedPhase::Running;
    host.until(vm, "restarted", restarted).await;
    assert_ne!(host.processes(vm), processes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_are_mended_and_the_guests_own_end_is_respected() {
    let Some(mut host) = Host::start() else { return };
    let vm = new_vm();
    host.want(desired(vm, present()));
    host.until_booted(vm).await;
    let first = host.processes(vm);
    host.kill(first.qemu);
    let observed = host.until(vm, "restarting", |observed| observed.restarts == 1).await;
    assert!(observed.message.unwrap_or_default().contains("signal 9"));
    host.until_booted(vm).await;
    let second = host.processes(vm);
    assert_eq!(second.launch, 2);

    // A guard takes its QEMU with it.
    host.kill(second.guard);
    let deadline = Instant::now() + Duration::from_secs(5);
    while second.qemu.exists() {
        assert!(Instant::now() < deadline, "QEMU outlives its guard");
        tokio::task::yield_now().await;
    }
    host.until(vm, "restarting", |observed| observed.restarts == 2).await;
    host.until_booted(vm).await;

    let _ = host.exec(vm, &["sh", "-c", "poweroff >/dev/null 2>&1 &"]).await;
    let observed = host.until_phase(vm, ObservedPhase::Stopped).await;
    assert_eq!(observed.message.as_deref(), Some("the guest powered off"));
    host.restart_agent().await;
    host.want_again();
    let observed = host.until(vm, "applied", |observed| observed.generation == 1).await;
    assert_eq!(observed.phase, ObservedPhase::Stopped);

    let again = DesiredPresent { generation: 2, ..present() };
    host.want(desired(vm, again));
    host.until_phase(vm, ObservedPhase::Running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reboot_that_was_asked_for_happens_once() {
    let Some(mut host) = Host::start() else { return };
    let vm = new_vm();
    host.want(desired(vm, present()));
    host.until_booted(vm).await;
    let first = host.processes(vm);
    let reboot = DesiredPresent { generation: 2, reboots: 1, ..present() };
    host.want(desired(vm, reboot));
    let observed = host
        .until(vm, "rebooted", |observed| observed.generation == 2 && observed.guest.is_some())
        .await;
    assert_eq!(observed.restarts, 0);
    let second = host.processes(vm);
    assert_eq!((first.launch, second.launch), (1, 2));
    host.restart_agent().await;
    host.want_again();
    host.until(vm, "applied", |observed| observed.generation == 2).await;
    assert_eq!(host.processes(vm), second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_lease_a_fenced_vm_neither_runs_nor_starts() {
    let Some(mut host) = Host::start() else { return };
    let (vm, free) = (new_vm(), new_vm());
    let fenced = DesiredPresent { fenced_by_lease: true, ..present() };
    host.lease.renew(BootTime::now(), Some(600_000)).unwrap();
    host.want(desired(vm, fenced));
    host.want(desired(free, present()));
    host.until_phase(vm, ObservedPhase::Running).await;
    host.until_phase(free, ObservedPhase::Running).await;
    let processes = host.processes(vm);

    // Even without an agent.
    host.kill_agent();
    host.lease.renew(BootTime::now(), Some(1_000)).unwrap();
    let end = Instant::now() + Duration::from_millis(1_000);
    while processes.qemu.exists() {
        assert!(end.elapsed() < Duration::from_millis(1_500), "it runs on without a lease");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(Instant::now() >= end, "it was killed within its lease");
    let deadline = Instant::now() + LIMIT;
    let mut exit = std::fs::read_to_string(host.vm_directory(vm).join("exit.json"));
    while exit.is_err() {
        assert!(Instant::now() < deadline);
        exit = std::fs::read_to_string(host.vm_directory(vm).join("exit.json"));
    }
    assert!(exit.unwrap().contains("lease_expired"));

    // An old wish starts nothing, not even when there is a lease again.
    let stale = BootTime::now();
    host.restart_agent().await;
    assert_eq!(host.observed(free).unwrap().phase, ObservedPhase::Running);
    host.vms.want(&[desired(vm, DesiredPresent { fenced_by_lease: true, ..present() })], stale);
    host.until(vm, "waiting", |observed| {
        observed.message.as_deref().is_some_and(|text| text.contains("lease"))
    })
    .await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    host.lease.renew(BootTime::now(), Some(600_000)).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(host.observed(vm).unwrap().phase, ObservedPhase::Starting);
    host.want_again();
    host.until_phase(vm, ObservedPhase::Running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_guard_starts_nothing() {
    let Some(mut host) = Host::start() else { return };
    let vm = new_vm();
    host.want(desired(vm, present()));
    host.until_phase(vm, ObservedPhase::Running).await;
    let processes = host.processes(vm);
    let directory = host.vm_directory(vm);
    // Permission to start, as a second agent would give it.
    std::fs::copy(directory.join("launched.json"), directory.join("launch.json")).unwrap();
    let guard = std::env::current_exe().unwrap();
    let guard = guard.parent().unwrap().parent().unwrap().join("examples/vm_guard");
    let run =
        || std::process::Command::new(&guard).arg("--directory").arg(&directory).output().unwrap();
    assert_eq!(run().status.code(), Some(3));
    assert_eq!(host.processes(vm), processes);
    assert!(processes.qemu.exists());
    let stopped =
        DesiredPresent { generation: 2, shutdown_grace_ms: 0, power: Power::Stopped, ..present() };
    host.want(desired(vm, stopped));
    host.until_phase(vm, ObservedPhase::Stopped).await;
    // The permission was taken away when it was seen dead: a guard that comes late finds none.
    let late = run();
    assert_eq!(late.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&late.stderr).contains("no launch file"));
}

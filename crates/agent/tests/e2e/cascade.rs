//! Half of a guest's memory is taken, by the cascade and by swap alone, while it works: what it has
//! left of its throughput, and that what is paged out stays out and comes back whole.

use std::path::Path;
use std::time::Duration;

use plimsoll_agent::config::SwapConfig;
use plimsoll_agent::swap;
use plimsoll_api::cluster::{DeflationOutcome, DesiredPresent, ObservedVm};
use plimsoll_model::{Bytes, Deflation, Level, VmId};

use crate::support::{Host, MIB, desired, new_vm, present};

const GUEST: u64 = 256 * MIB;
const HALF: Bytes = Bytes(GUEST / 2);
/// What a VM costs its host beside the guest's memory.
const OVERHEAD: u64 = 96 * MIB;
/// How long throughput is measured, and what a guest gets to find its balance before.
const WINDOW: Duration = Duration::from_secs(5);
/// A machine that was busy with something else for a while is asked again.
const ATTEMPTS: u32 = 3;

/// A swap file on the disk with the tests' files, gone with the test.
struct SwapFile(tempfile::TempDir);

impl SwapFile {
    fn set_up() -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let config = SwapConfig::File { size: Bytes::gib(1), directory: None };
        swap::set_up(&config, directory.path()).unwrap();
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SwapFile {
    fn drop(&mut self) {
        if let Err(error) = swap::remove(self.path()) {
            eprintln!("the test's swap space stays: {error}");
        }
    }
}

fn vm_with(generation: u64, from: Option<Level>) -> DesiredPresent {
    let mut present = DesiredPresent { generation, ..present() };
    present.resources.memory = Bytes(GUEST);
    present.resources.disk = Bytes::gib(2);
    present.deflation = from.map(|from| Deflation {
        generation,
        memory_percent: 50,
        cpu_percent: 0,
        within_ms: 8000,
        from,
    });
    present
}

/// Wants it so, and waits until it is.
async fn make(host: &mut Host, vm: VmId, generation: u64, from: Option<Level>) -> ObservedVm {
    host.want(desired(vm, vm_with(generation, from)));
    host.until(vm, &format!("generation {generation}"), |observed| {
        observed.generation == generation
    })
    .await
}

fn gave(outcome: &DeflationOutcome, level: Level) -> Bytes {
    outcome.levels.iter().find(|found| found.level == level).unwrap().gave.memory
}

/// Starts a load that goes on, and waits until it is ready.
async fn begin(host: &Host, vm: VmId, load: &str) {
    let script = format!("plimsoll-workload {load} --seconds 0 > /run/load 2>&1 < /dev/null &");
    host.exec(vm, &["sh", "-c", &script]).await;
    while !host.exec(vm, &["cat", "/run/load"]).await.contains("\"ready\"") {
        assert_running(host, vm).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// It has found no wrong byte, or it would have ended.
async fn assert_running(host: &Host, vm: VmId) {
    let script = "pidof plimsoll-workload > /dev/null || tail -n 1 /run/load";
    assert_eq!(host.exec(vm, &["sh", "-c", script]).await, "", "the load has ended");
}

/// Operations a second over the next window.
async fn throughput(host: &Host, vm: VmId) -> f64 {
    let lines: u64 = host.exec(vm, &["sh", "-c", "wc -l < /run/load"]).await.parse().unwrap();
    loop {
        tokio::time::sleep(WINDOW).await;
        assert_running(host, vm).await;
        // The line after the last began before the window did.
        let from = format!("+{}", lines + 2);
        let text = host.exec(vm, &["tail", "-n", &from, "/run/load"]).await;
        let (mut operations, mut seconds) = (0.0, 0.0);
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            operations += line["operations"].as_f64().unwrap();
            seconds += line["seconds"].as_f64().unwrap();
        }
        if seconds > 0.0 {
            return operations / seconds;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_server_keeps_by_the_cascade_what_it_loses_by_swap_alone() {
    if !crate::support::can_run() {
        return;
    }
    let _swap = SwapFile::set_up();
    let Some(mut host) = Host::start() else { return };
    let vm = new_vm();
    host.want(desired(vm, vm_with(1, None)));
    host.until_booted(vm).await;
    // Four times what the guest has: its cache is full, and turns over.
    begin(&host, vm, "files --size 1G").await;
    let mut generation = 1;
    for attempt in 1..=ATTEMPTS {
        let mut kept = Vec::new();
        for from in [Level::Application, Level::Host] {
            tokio::time::sleep(WINDOW).await;
            let before = throughput(&host, vm).await;
            generation += 1;
            let observed = make(&mut host, vm, generation, Some(from)).await;
            let outcome = observed.deflation.unwrap();
            let limits = observed.limits.unwrap();
            assert_eq!(outcome.missing.memory, Bytes::ZERO, "{outcome:?}");
            if from == Level::Application {
                assert_eq!(gave(&outcome, Level::Guest), HALF, "its caches are worth less");
                assert_eq!(limits.memory_held, None);
            } else {
                assert_eq!(gave(&outcome, Level::Guest), Bytes::ZERO, "it was not asked");
                assert_eq!(gave(&outcome, Level::Host), HALF);
            }
            tokio::time::sleep(WINDOW / 2).await;
            let after = throughput(&host, vm).await;
            eprintln!("attempt {attempt}, from {from}: {before:.1}/s, then {after:.1}/s");
            kept.push(after / before);
            generation += 1;
            let observed = make(&mut host, vm, generation, None).await;
            assert_eq!(observed.limits.unwrap().memory_held, None, "given back");
        }
        if kept[0] > 0.8 && kept[0] > 1.25 * kept[1] {
            return;
        }
    }
    panic!("the cascade was no better than swap alone, {ATTEMPTS} times");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_is_in_use_is_left_to_the_guest_and_held_by_the_host_alone() {
    if !crate::support::can_run() {
        return;
    }
    let swap = SwapFile::set_up();
    let Some(mut host) = Host::start() else { return };
    let vm = new_vm();
    host.want(desired(vm, vm_with(1, None)));
    host.until_booted(vm).await;
    begin(&host, vm, "store --size 140M").await;
    let observed = make(&mut host, vm, 2, Some(Level::Application)).await;
    let outcome = observed.deflation.unwrap();
    let guest = gave(&outcome, Level::Guest);
    // It has some 40 MiB left, and keeps 24 of them.
    assert!(guest < Bytes(32 * MIB), "it gave {guest}, which it needs");
    assert_eq!(gave(&outcome, Level::Host), HALF.saturating_sub(guest));
    let held = observed.limits.unwrap().memory_held.unwrap();
    assert_eq!(held.get(), (GUEST - HALF.get() + OVERHEAD) / 4096 * 4096);

    // It stays out, also when another agent takes over, and what comes in by turns is whole.
    tokio::time::sleep(WINDOW).await;
    host.restart_agent().await;
    host.want_again();
    let observed = host
        .until(vm, "deflated again", |observed| {
            let seen = observed.limits.is_some() && observed.guest.is_some();
            observed.generation == 2 && observed.deflation.is_some() && seen
        })
        .await;
    let limits = observed.limits.unwrap();
    assert_eq!(limits.memory_held, Some(held));
    assert!(limits.memory_resident.unwrap() <= Bytes(held.get() + MIB), "{limits:?}");
    assert!(limits.memory_swapped.unwrap() >= Bytes(16 * MIB), "{limits:?}");
    let area = swap::areas().unwrap().into_iter().find(|area| area.path.starts_with(swap.path()));
    assert!(area.unwrap().used >= Bytes(16 * MIB), "it lies in what was set up for it");
    assert_running(&host, vm).await;

    let observed = make(&mut host, vm, 3, None).await;
    assert_eq!(observed.limits.unwrap().memory_held, None);
    assert!(throughput(&host, vm).await > 0.0);
    assert_running(&host, vm).await;
}

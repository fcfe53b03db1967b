//! VMs that give back what they have, and get it again, while they work.

use plimsoll_api::cluster::{DesiredPresent, ObservedVm};
use plimsoll_model::{Amount, Bytes, Deflation, Level, MilliCores, VmId};

use crate::support::{Host, MIB, desired, new_vm, present};

/// A VM of so many cores and MiB.
fn vm_of(cores: u64, mib: u64) -> DesiredPresent {
    let mut present = present();
    present.resources.cpu = MilliCores(cores * 1000);
    present.resources.memory = Bytes(mib * MIB);
    present
}

async fn meminfo(host: &Host, vm: VmId, field: &str) -> u64 {
    let script = format!("awk '/^{field}:/ {{ print int($2 / 1024) }}' /proc/meminfo");
    host.exec(vm, &["sh", "-c", &script]).await.parse().unwrap()
}

/// What QEMU has of the host's memory, in MiB.
fn resident_mib(host: &Host, vm: VmId) -> u64 {
    let pid = host.processes(vm).qemu.pid;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

/// The guest's kernel killed nothing and did not complain.
async fn assert_unharmed(host: &Host, vm: VmId) {
    let log = host
        .exec(
            vm,
            &[
                "sh",
                "-c",
                "dmesg | grep -E 'Out of memory|oom-kill|BUG:|Kernel panic|Oops' || true",
            ],
        )
        .await;
    assert_eq!(log, "", "the guest's kernel complains");
}

async fn is_now(host: &Host, vm: VmId, generation: u64) -> ObservedVm {
    host.until(vm, &format!("generation {generation}"), |observed| {
        observed.generation == generation
    })
    .await
}

/// Work that never ends and keeps count: CPU on every vCPU, and memory that is written and checked.
const LOAD: &str = "
    (while :; do :; done) &
    (while :; do
        head -c 4194304 /dev/urandom > /tmp/a && cp /tmp/a /tmp/b && cmp -s /tmp/a /tmp/b ||
            echo broken >> /tmp/failed
        echo x >> /tmp/turns
    done) > /dev/null 2>&1 &
    echo begun";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_under_load_is_resized_again_and_again() {
    let Some(mut host) = Host::start() else { return };
    let vm = new_vm();
    host.want(desired(vm, vm_of(4, 1024)));
    host.until_booted(vm).await;
    let processes = host.processes(vm);
    assert_eq!(host.exec(vm, &["sh", "-c", LOAD]).await, "begun");
    let mut generation = 1;
    let mut slowest = std::time::Duration::ZERO;
    for round in 0..resize_rounds() {
        for (cores, mib) in [(1, 1024), (4, 1024), (4, 512), (4, 1024), (4, 2048), (4, 1024)] {
            generation += 1;
            let began = std::time::Instant::now();
            host.want(desired(vm, DesiredPresent { generation, ..vm_of(cores, mib) }));
            let observed = is_now(&host, vm, generation).await;
            let took = began.elapsed();
            slowest = slowest.max(took);
            let limits = observed.limits.unwrap();
            assert_eq!(limits.memory, Some(Bytes(mib * MIB)));
            let online = host.exec(vm, &["nproc"]).await;
            let available = meminfo(&host, vm, "MemAvailable").await;
            let resident = resident_mib(&host, vm);
            eprintln!(
                "round {round}: {cores} vCPUs, {mib} MiB after {took:.3?}: the guest has {online} \
                 and {available} MiB left, QEMU {resident} MiB"
            );
            assert_eq!(online, cores.to_string());
            // The kernel and the load keep a part for themselves.
            assert!(available > mib / 2 && available <= mib, "{available} of {mib} MiB");
            // Beside its guest's memory QEMU has a code cache and its own.
            assert!(resident < mib + 200, "QEMU has {resident} MiB for a guest of {mib}");
        }
    }
    eprintln!("slowest step: {slowest:.3?}");
    assert_unharmed(&host, vm).await;
    assert_eq!(host.exec(vm, &["sh", "-c", "cat /tmp/failed 2>/dev/null || true"]).await, "");
    let turns = host.exec(vm, &["sh", "-c", "wc -l < /tmp/turns"]).await;
    assert_ne!(turns, "0", "the load worked");
    assert_eq!(host.processes(vm), processes, "it was not restarted");
}

/// `PLIMSOLL_RESIZE_ROUNDS`, or two.
fn resize_rounds() -> u32 {
    std::env::var("PLIMSOLL_RESIZE_ROUNDS")
        .map_or(2, |rounds| rounds.parse().expect("PLIMSOLL_RESIZE_ROUNDS is a number"))
}

fn deflation(generation: u64, memory_percent: u8, cpu_percent: u8) -> Option<Deflation> {
    let from = Level::Application;
    Some(Deflation { generation, memory_percent, cpu_percent, within_ms: 8000, from })
}

/// An application with a cache of 64 MiB that it can do without.
const HOOK: &str = r#"
    mkdir -p /etc/plimsoll/deflate.d
    head -c 67108864 /dev/zero > /tmp/cache
    cat > /etc/plimsoll/deflate.d/10-cache <<'HOOK'
#!/bin/sh
echo "$1 $PLIMSOLL_MEMORY_BYTES" >> /tmp/asked
[ "$1" = deflate ] || exit 0
rm -f /tmp/cache
echo '{"memory_bytes": 67108864}'
HOOK
    chmod 755 /etc/plimsoll/deflate.d/10-cache"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applications_give_before_the_kernel_and_the_kernel_before_the_host() {
    let Some(mut host) = Host::start() else { return };
    let vm = new_vm();
    host.want(desired(vm, vm_of(2, 256)));
    host.until_booted(vm).await;
    host.exec(vm, &["sh", "-c", HOOK]).await;
    assert_eq!(host.exec(vm, &["nproc"]).await, "2");

    // 1.5 of 2 cores: a vCPU goes, and half of the other's time.
    let wish = DesiredPresent { generation: 2, deflation: deflation(2, 50, 75), ..vm_of(2, 256) };
    host.want(desired(vm, wish.clone()));
    let observed = is_now(&host, vm, 2).await;
    let outcome = observed.deflation.unwrap();
    eprintln!("{outcome:#?}");
    let gave: Vec<_> = outcome.levels.iter().map(|level| (level.level, level.gave)).collect();
    let of = |mib, cpu| Amount { memory: Bytes(mib * MIB), cpu: MilliCores(cpu) };
    assert_eq!(
        gave,
        [(Level::Application, of(64, 0)), (Level::Guest, of(128, 1000)), (Level::Host, of(0, 500))]
    );
    assert_eq!((outcome.generation, outcome.missing), (2, Amount::default()));
    let limits = observed.limits.unwrap();
    assert_eq!((limits.memory, limits.cpu), (Some(Bytes(128 * MIB)), Some(MilliCores(500))));
    assert_eq!(host.exec(vm, &["nproc"]).await, "1");
    assert_eq!(host.exec(vm, &["cat", "/tmp/asked"]).await, format!("deflate {}", 128 * MIB));

    // Another agent finds the VM as it is, and takes no more.
    host.restart_agent().await;
    host.want_again();
    is_now(&host, vm, 2).await;
    host.until_booted(vm).await;
    assert_eq!(host.exec(vm, &["nproc"]).await, "1");

    // What was taken stays taken when the promise changes.
    for (generation, mib) in [(3, 320), (4, 256)] {
        let wish = DesiredPresent { generation, deflation: wish.deflation, ..vm_of(2, mib) };
        host.want(desired(vm, wish));
        let observed = is_now(&host, vm, generation).await;
        assert_eq!(observed.limits.unwrap().memory, Some(Bytes((mib - 128) * MIB)));
        assert!(observed.deflation.is_some());
    }

    host.want(desired(vm, DesiredPresent { generation: 5, ..vm_of(2, 256) }));
    let observed = is_now(&host, vm, 5).await;
    let limits = observed.limits.unwrap();
    assert_eq!((limits.memory, limits.cpu), (Some(Bytes(256 * MIB)), Some(MilliCores(2000))));
    assert_eq!(observed.deflation, None);
    assert_eq!(host.exec(vm, &["nproc"]).await, "2");
    host.until_exec(vm, "tail -1 /tmp/asked", "inflate 0").await;
    assert_unharmed(&host, vm).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_keeps_what_it_needs_and_one_that_is_silent_is_not_asked() {
    let Some(mut host) = Host::start() else { return };
    let vm = new_vm();
    host.want(desired(vm, vm_of(2, 256)));
    host.until_booted(vm).await;
    // In its own memory, which no kernel can drop.
    let available = meminfo(&host, vm, "MemAvailable").await;
    let fill = format!(
        "mkdir /own && mount -t tmpfs -o size=100% none /own && head -c {} /dev/urandom > /own/data",
        (available - 70) * MIB
    );
    host.exec(vm, &["sh", "-c", &fill]).await;
    let sum = host.exec(vm, &["md5sum", "/own/data"]).await;

    let wish = DesiredPresent { generation: 2, deflation: deflation(2, 80, 0), ..vm_of(2, 256) };
    host.want(desired(vm, wish));
    let outcome = is_now(&host, vm, 2).await.deflation.unwrap();
    eprintln!("{outcome:#?}");
    let guest = outcome.levels.iter().find(|level| level.level == Level::Guest).unwrap();
    assert!(guest.gave.memory >= Bytes(16 * MIB), "it had 70 MiB and needs a reserve");
    assert!(guest.gave.memory <= Bytes(70 * MIB), "it gave what it needs");
    let given: u64 = outcome.levels.iter().skip(1).map(|level| level.gave.memory.get()).sum();
    assert_eq!(outcome.wanted.memory.get(), given + outcome.missing.memory.get());
    assert_eq!(host.exec(vm, &["md5sum", "/own/data"]).await, sum);
    assert_unharmed(&host, vm).await;

    // Its agent stands still, and goes on much later.
    host.want(desired(vm, DesiredPresent { generation: 3, ..vm_of(2, 256) }));
    is_now(&host, vm, 3).await;
    let stall = "(sleep 1; kill -STOP $(pidof plimsoll-guest); sleep 45; \
                 kill -CONT $(pidof plimsoll-guest)) > /dev/null 2>&1 &";
    host.exec(vm, &["sh", "-c", stall]).await;
    host.until(vm, "silent", |observed| observed.guest.is_none()).await;
    let wish = DesiredPresent { generation: 4, deflation: deflation(4, 25, 75), ..vm_of(2, 256) };
    host.want(desired(vm, wish));
    let observed = is_now(&host, vm, 4).await;
    let outcome = observed.deflation.unwrap();
    for level in &outcome.levels[..2] {
        assert_eq!(level.gave, Amount::default());
        assert_eq!(level.note.as_deref(), Some("its agent does not answer"));
    }
    assert_eq!(outcome.levels[2].gave.cpu, MilliCores(1500));
    assert_eq!(
        observed.limits.unwrap().memory,
        Some(Bytes(256 * MIB)),
        "the balloon was not asked"
    );
}

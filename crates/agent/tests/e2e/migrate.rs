//! A VM moves from host to host: two agents with ports of their own, real QEMU on both sides, and
//! guests that check from inside what they have.

use std::time::{Duration, Instant};

use plimsoll_agent::config::DeduplicationMode;
use plimsoll_agent::vm::guard::record::ProcessId;
use plimsoll_api::cluster::{
    DesiredPresent, DesiredVm, DiskOrigin, ObservedPhase, ObservedVm, Wanted,
};
use plimsoll_api::migration::{
    Arrival, Departure, DesiredMigration, MigrationLimits, MigrationStage,
};
use plimsoll_model::VmId;
use uuid::Uuid;

use super::support::{Cluster, Host, LIMIT, desired, new_vm, present};

/// Two hosts, and a VM that runs on the first with something in its memory and on its disk.
struct Pair {
    source: Host,
    target: Host,
    vm: VmId,
    present: DesiredPresent,
    /// What the guest has in memory and on its disk, by their checksums.
    memory: String,
    disk: String,
    boot: String,
}

const MEMORY: &str = "md5sum < /run/memory";
/// Past the guest's own cache.
const DISK: &str = "echo 3 > /proc/sys/vm/drop_caches; md5sum < /data/file";
const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";

impl Pair {
    async fn start() -> Option<Self> {
        let cluster = Cluster::new();
        let off = DeduplicationMode::Off;
        let mut source = Host::start_in(&cluster, 1, off)?;
        let target = Host::start_in(&cluster, 2, off)?;
        let (vm, present) = (new_vm(), present());
        source.want(desired(vm, present.clone()));
        source.until_booted(vm).await;
        let sh = async |command| source.exec(vm, &["sh", "-c", command]).await;
        sh("head -c 33554432 /dev/urandom > /run/memory; sync").await;
        sh("head -c 8388608 /dev/urandom > /data/file; sync").await;
        let (memory, disk, boot) = (sh(MEMORY).await, sh(DISK).await, sh(BOOT).await);
        Some(Self { source, target, vm, present, memory, disk, boot })
    }

    /// The manager's wishes for a move.
    fn begin(&mut self, limits: MigrationLimits) -> Uuid {
        let id = Uuid::new_v4();
        let departure = Departure {
            id,
            to: self.target.id(),
            address: self.target.address(),
            copy_disk: true,
            limits,
            cancel: false,
            target_lost: false,
        };
        self.source.want(self.wish(1, Some(DesiredMigration::Departure(departure))));
        let arrival = Arrival { id, from: self.source.id() };
        self.target.want(self.wish(2, Some(DesiredMigration::Arrival(arrival))));
        id
    }

    fn wish(&self, incarnation: u64, migration: Option<DesiredMigration>) -> DesiredVm {
        let disk = DiskOrigin::Existing;
        let present = DesiredPresent { migration, disk, ..self.present.clone() };
        DesiredVm { vm: self.vm, incarnation, wanted: Wanted::Present(Box::new(present)) }
    }

    /// What the manager does when the target says that the VM has come.
    async fn finish(&mut self) {
        let absent = Wanted::Absent { delete_disk: true };
        self.source.want(DesiredVm { vm: self.vm, incarnation: 1, wanted: absent });
        self.target.want(self.wish(2, None));
        self.source.until_phase(self.vm, ObservedPhase::Absent).await;
        assert!(!self.source.vm_directory(self.vm).exists());
        self.target.until(self.vm, "done", |seen| seen.migration.is_none()).await;
    }

    /// And when the source says that it has failed.
    async fn take_back(&mut self) {
        self.source.want(self.wish(3, None));
        let absent = Wanted::Absent { delete_disk: true };
        self.target.want(DesiredVm { vm: self.vm, incarnation: 2, wanted: absent });
        self.target.until_phase(self.vm, ObservedPhase::Absent).await;
        assert!(!self.target.vm_directory(self.vm).exists());
        self.source.until(self.vm, "done", |seen| seen.migration.is_none()).await;
    }

    async fn unharmed(&self, host: &Host) {
        let sh = async |command| host.exec(self.vm, &["sh", "-c", command]).await;
        assert_eq!(sh(BOOT).await, self.boot, "it was booted anew");
        assert_eq!(sh(MEMORY).await, self.memory);
        assert_eq!(sh(DISK).await, self.disk);
    }

    fn qemu(&self, host: &Host) -> ProcessId {
        host.processes(self.vm).qemu
    }
}

fn is_at(stage: MigrationStage) -> impl Fn(&ObservedVm) -> bool {
    move |seen| seen.migration.as_ref().is_some_and(|migration| migration.stage == stage)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_moves_with_its_memory_and_its_disk() {
    let Some(mut pair) = Pair::start().await else { return };
    pair.begin(MigrationLimits::default());
    let left = pair.qemu(&pair.source);
    let arrived = pair.target.until(pair.vm, "arrived", is_at(MigrationStage::Arrived)).await;
    assert_eq!((arrived.phase, arrived.incarnation), (ObservedPhase::Running, 2));
    let gone = pair.source.until(pair.vm, "gone", is_at(MigrationStage::Gone)).await;
    let figures = gone.migration.unwrap().figures.unwrap();
    eprintln!("{figures:?}");
    assert!(figures.memory_sent.get() > 32 << 20 && figures.disk_sent.get() >= 8 << 20);
    assert!(!figures.post_copied);
    pair.unharmed(&pair.target).await;
    pair.finish().await;
    assert!(!left.exists());
    pair.unharmed(&pair.target).await;
    // It is a VM like any other there.
    let limits = pair.target.observed(pair.vm).unwrap().limits.unwrap();
    assert!(limits.cpu.is_some() && limits.memory.is_some(), "{limits:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_follows_where_the_guest_writes_too_fast() {
    let Some(mut pair) = Pair::start().await else { return };
    let hold = [
        "sh",
        "-c",
        "plimsoll-workload hold --size 64M --churn 48M --seconds 300 >/dev/null 2>&1 &",
    ];
    pair.source.exec(pair.vm, &hold).await;
    let slow = plimsoll_model::BytesPerSecond(16 << 20);
    let limits =
        MigrationLimits { bandwidth: slow, deadline_ms: 5_000, ..MigrationLimits::default() };
    pair.begin(limits);
    pair.target.until(pair.vm, "arrived", is_at(MigrationStage::Arrived)).await;
    let gone = pair.source.until(pair.vm, "gone", is_at(MigrationStage::Gone)).await;
    let figures = gone.migration.unwrap().figures.unwrap();
    eprintln!("{figures:?}");
    assert!(figures.post_copied);
    pair.finish().await;
    pair.unharmed(&pair.target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_does_not_converge_is_refused_by_its_deadline() {
    let Some(mut pair) = Pair::start().await else { return };
    let hold = [
        "sh",
        "-c",
        "plimsoll-workload hold --size 64M --churn 48M --seconds 300 >/dev/null 2>&1 &",
    ];
    pair.source.exec(pair.vm, &hold).await;
    let slow = plimsoll_model::BytesPerSecond(4 << 20);
    let limits = MigrationLimits {
        bandwidth: slow,
        deadline_ms: 6_000,
        post_copy: false,
        ..MigrationLimits::default()
    };
    pair.begin(limits);
    let failed = pair.source.until(pair.vm, "failed", is_at(MigrationStage::Failed)).await;
    eprintln!("{:?}", failed.migration);
    pair.take_back().await;
    pair.unharmed(&pair.source).await;
}

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    SourceAgent,
    TargetAgent,
    SourceQemu,
    TargetQemu,
}

impl Pair {
    /// Does what the manager would, until the move is over; tells whether the VM has moved.
    async fn resolve(&mut self) -> bool {
        let deadline = Instant::now() + LIMIT;
        loop {
            assert!(
                Instant::now() < deadline,
                "not resolved: {:?} {:?}",
                self.source.observed(self.vm),
                self.target.observed(self.vm)
            );
            let stage = |host: &Host| {
                host.observed(self.vm).and_then(|seen| seen.migration).map(|seen| seen.stage)
            };
            if stage(&self.target) == Some(MigrationStage::Arrived) {
                self.finish().await;
                return true;
            }
            if stage(&self.source) == Some(MigrationStage::Failed) {
                self.take_back().await;
                return false;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the source is at a stage, if it ever is.
    async fn until_stage(&self, stage: MigrationStage) {
        self.source
            .until(self.vm, "that far", |seen| {
                seen.migration.as_ref().is_some_and(|migration| {
                    migration.stage == stage
                        || matches!(migration.stage, MigrationStage::Gone | MigrationStage::Failed)
                })
            })
            .await;
    }

    async fn kill(&mut self, victim: Victim) {
        match victim {
            Victim::SourceAgent => {
                self.source.restart_agent().await;
                self.source.want_again();
            }
            Victim::TargetAgent => {
                self.target.restart_agent().await;
                self.target.want_again();
            }
            Victim::SourceQemu => self.kill_qemu(&self.source),
            Victim::TargetQemu => self.kill_qemu(&self.target),
        }
    }

    /// One that is gone already needs no killing.
    fn kill_qemu(&self, host: &Host) {
        let record = host.vm_directory(self.vm).join("guard.json");
        if record.exists() && host.processes(self.vm).qemu.exists() {
            host.kill(host.processes(self.vm).qemu);
        }
    }

    /// QEMUs of the VM that run its guest, by their monitors' word that they are not paused.
    fn alive(&self) -> usize {
        let alive = |host: &Host| {
            let record = host.vm_directory(self.vm).join("guard.json");
            record.exists() && host.processes(self.vm).qemu.exists()
        };
        usize::from(alive(&self.source)) + usize::from(alive(&self.target))
    }

    async fn died_at(stage: MigrationStage, victim: Victim) {
        let Some(mut pair) = Self::start().await else { return };
        let slowly = plimsoll_model::BytesPerSecond(24 << 20);
        pair.begin(MigrationLimits { bandwidth: slowly, ..MigrationLimits::default() });
        pair.until_stage(stage).await;
        pair.kill(victim).await;
        let moved = pair.resolve().await;
        eprintln!("{victim:?} killed at {stage:?}: {}", if moved { "moved" } else { "stayed" });
        let host = if moved { &pair.target } else { &pair.source };
        host.until_booted(pair.vm).await;
        assert_eq!(pair.alive(), 1);
        let own = if moved { Victim::TargetQemu } else { Victim::SourceQemu };
        if victim == own {
            // It was the VM that was killed: it was started again, with its disk.
            let sh = async |command| host.exec(pair.vm, &["sh", "-c", command]).await;
            assert_ne!(sh(BOOT).await, pair.boot);
            assert_eq!(sh(DISK).await, pair.disk);
        } else {
            pair.unharmed(host).await;
        }
        assert!(!pair.left_over(), "something of the move is left");
    }

    fn left_over(&self) -> bool {
        ["departure.json", "arrival.json", "tunnel.json", "tunnel-process.json", "disk.sock"]
            .iter()
            .any(|name| {
                [&self.source, &self.target]
                    .iter()
                    .any(|host| host.vm_directory(self.vm).join(name).exists())
            })
    }
}

macro_rules! deaths {
    ($($name:ident: $stage:ident, $victim:ident;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                Pair::died_at(MigrationStage::$stage, Victim::$victim).await;
            }
        )*
    };
}

deaths! {
    the_sources_agent_dies_while_the_disk_is_copied: CopyingDisk, SourceAgent;
    the_sources_agent_dies_while_memory_is_copied: CopyingMemory, SourceAgent;
    the_sources_agent_dies_at_the_switch: Switching, SourceAgent;
    the_targets_agent_dies_while_it_prepares: Preparing, TargetAgent;
    the_targets_agent_dies_while_memory_is_copied: CopyingMemory, TargetAgent;
    the_targets_agent_dies_at_the_switch: Switching, TargetAgent;
    the_source_dies_while_memory_is_copied: CopyingMemory, SourceQemu;
    the_source_dies_at_the_switch: Switching, SourceQemu;
    the_target_dies_while_the_disk_is_copied: CopyingDisk, TargetQemu;
    the_target_dies_while_memory_is_copied: CopyingMemory, TargetQemu;
    the_target_dies_at_the_switch: Switching, TargetQemu;
}

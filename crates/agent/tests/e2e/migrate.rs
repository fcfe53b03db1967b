//! A VM moves from host to host: two agents with ports of their own, real QEMU on both sides, and
//! guests that check from inside what they have.

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

use super::support::{Cluster, Host, desired, new_vm, present};

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
    let hold = ["sh", "-c", "plimsoll-workload hold --size 64M --seconds 300 >/dev/null 2>&1 &"];
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
    let hold = ["sh", "-c", "plimsoll-workload hold --size 64M --seconds 300 >/dev/null 2>&1 &"];
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

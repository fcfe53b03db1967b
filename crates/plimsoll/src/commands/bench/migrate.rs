//! `plimsoll bench migrate`: how long a VM stands still when it moves, and how long the move takes, by
//! Plimsoll and by bare QEMU.
//!
//! On a lab of two hosts with disks of their own a real VM is moved to and fro; between its moves the
//! same machine, under QEMU alone, is moved by nothing but its monitor: the same memory, disk, load and
//! limits, over TCP without TLS. Turn and turn about, so that a machine that is busy for a while is so
//! for both; the load of the one stands still while the other moves. What counts are the medians.

mod bare;

use std::time::Duration;

use plimsoll_agent::config::DeduplicationMode;
use plimsoll_api::{
    Client,
    migration::{MigrationFigures, MigrationLimits},
    v1::{
        CreateProjectRequest, CreateVmsRequest, LastMigration, MigrateRequest, MigrationOutcome,
        VmRequest,
    },
};
use plimsoll_model::{Bytes, BytesPerSecond, MilliCores, Name, Quota, Resources, VmSpec};
use serde::Serialize;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use self::bare::Bare;
use super::{
    cascade::{median, rounded, take_down},
    guest::Guest,
};
use crate::{
    cli::{
        cluster::BenchMigrateArgs,
        lab::{LabNameArgs, LabUpArgs},
    },
    failure::{Failure, OrFail as _, Outcome},
    image::LocalImage,
    lab::{layout::Lab, up},
    output::{Output, progress::Progress},
};

/// What a VM's disk holds that has to be copied.
pub(super) const DISK: Bytes = Bytes(64 << 20);
/// What the guest writes to its disk before it moves: pages of it are in its cache too.
pub(super) const FILE_MIB: u64 = 16;
/// A move takes seconds.
const LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);
/// Between two moves: caches and boot are over.
const REST: Duration = Duration::from_secs(2);

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    memory: Bytes,
    /// What the guest rewrites of its memory.
    writes: BytesPerSecond,
    bandwidth: BytesPerSecond,
    rounds: u32,
    plimsoll: Way,
    bare_qemu: Way,
    /// Plimsoll's median by bare QEMU's.
    downtime_ratio: f64,
    total_ratio: f64,
}

/// One way to move.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Way {
    /// Medians, in milliseconds.
    downtime_ms: f64,
    total_ms: f64,
    /// Every move, in its order.
    moves: Vec<Move>,
}

/// One move.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Move {
    /// From the last instruction on the source to the first on the target.
    pub(super) downtime_ms: f64,
    /// From the wish to the first instruction on the target, with the start of the target's QEMU.
    pub(super) total_ms: f64,
    pub(super) memory_sent: Bytes,
    pub(super) disk_sent: Bytes,
}

/// Measures, and prints the report.
pub(crate) async fn migrate(args: &BenchMigrateArgs, output: Output) -> Outcome {
    crate::commands::lab::need_root()?;
    let report = measure(args).await?;
    output.show(&report, people)
}

fn people(output: &Output, report: &Report) -> String {
    let Report { memory, writes, bandwidth, rounds, .. } = report;
    let mut facts = vec![
        (
            "VM",
            format!("{memory}, of which {writes}/s are rewritten; at most {bandwidth}/s are sent"),
        ),
        ("rounds", rounds.to_string()),
    ];
    for (name, way) in [("Plimsoll", &report.plimsoll), ("bare QEMU", &report.bare_qemu)] {
        let Way { downtime_ms, total_ms, .. } = way;
        facts.push((name, format!("stands still for {downtime_ms} ms, {total_ms} ms in all")));
    }
    let Report { downtime_ratio, total_ratio, .. } = report;
    facts.push(("ratio", format!("{downtime_ratio} of the downtime, {total_ratio} of the time")));
    output.facts(&facts)
}

fn lab_args(args: &BenchMigrateArgs) -> Outcome<LabUpArgs> {
    Ok(LabUpArgs {
        lab: LabNameArgs { name: "bench-migrate".parse()?, directory: args.directory.clone() },
        hosts: Some(2),
        cpu: None,
        memory: None,
        disk: None,
        disk_bandwidth: None,
        disk_iops: None,
        network: None,
        image: vec![args.image.clone()],
        local_disks: true,
        swap: None,
        no_context: true,
        deduplication: DeduplicationMode::default(),
    })
}

async fn measure(args: &BenchMigrateArgs) -> Outcome<Report> {
    let progress = Progress::new("bringing a lab up");
    let image = LocalImage::name_in(&args.image).or_fail(|| {
        format!("{} is no image: build it with `images/build tiny`", args.image.display())
    })?;
    let wanted = lab_args(args)?;
    let lab = Lab::hold(&wanted.lab, true)?;
    if lab.load()?.is_some() {
        // Left by a run that was cut off.
        take_down(&lab, &progress)?;
    }
    let measured = async {
        up::up(&lab, &wanted, &progress).await?;
        let client = up::connect(&lab).await?;
        run(args, client, image, &progress).await
    }
    .await;
    let down = take_down(&lab, &progress);
    let report = measured?;
    down.map(|()| report)
}

/// What a guest does while it is moved: a shell's script.
pub(super) fn load(args: &BenchMigrateArgs) -> String {
    let (size, churn) = (args.memory.get() >> 21, args.writes.get() >> 20);
    format!(
        "head -c {} /dev/urandom > /data/file; sync; plimsoll-workload hold --size {size}M --churn {churn}M \
         --seconds 0 > /run/load.jsonl 2>&1 < /dev/null &",
        FILE_MIB << 20
    )
}

async fn run(
    args: &BenchMigrateArgs,
    client: Client,
    image: Name,
    progress: &Progress,
) -> Outcome<Report> {
    let project: Name = "bench".parse()?;
    let request =
        CreateProjectRequest { name: project.clone(), quota: Quota::default(), credits: None };
    client.create_project(&request).await?;
    progress.set("booting the VM");
    let name: Name = "mover".parse()?;
    client.create_vms(&project, &vm_request(args, name.clone(), image)).await?;
    let guest = Guest::new(client.clone(), project.clone(), name.clone());
    guest.until_booted().await?;
    guest.shell(&load(args)).await?;
    progress.set("booting the same machine under bare QEMU");
    let mut bare = Bare::start(args).await?;
    let limits = MigrationLimits { bandwidth: args.bandwidth, ..MigrationLimits::default() };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=args.rounds {
        progress.set(format!("round {round} of {}: Plimsoll", args.rounds));
        bare.pause().await?;
        guest.resume().await?;
        sleep(REST).await;
        ours.push(move_once(&client, &project, &name, limits).await?);
        guest.check().await?;
        progress.set(format!("round {round} of {}: bare QEMU", args.rounds));
        guest.pause().await?;
        bare.resume().await?;
        sleep(REST).await;
        theirs.push(bare.move_once(limits).await?);
        bare.check().await?;
    }
    let (plimsoll, bare_qemu) = (way(ours), way(theirs));
    Ok(Report {
        memory: args.memory,
        writes: args.writes,
        bandwidth: args.bandwidth,
        rounds: args.rounds,
        downtime_ratio: ratio(plimsoll.downtime_ms, bare_qemu.downtime_ms),
        total_ratio: ratio(plimsoll.total_ms, bare_qemu.total_ms),
        plimsoll,
        bare_qemu,
    })
}

fn ratio(ours: f64, theirs: f64) -> f64 {
    (ours / theirs.max(0.001) * 100.0).round() / 100.0
}

fn way(moves: Vec<Move>) -> Way {
    let of = |value: fn(&Move) -> f64| rounded(median(moves.iter().map(value).collect()));
    Way { downtime_ms: of(|moved| moved.downtime_ms), total_ms: of(|moved| moved.total_ms), moves }
}

fn vm_request(args: &BenchMigrateArgs, name: Name, image: Name) -> CreateVmsRequest {
    let resources = Resources {
        cpu: MilliCores::cores(1),
        memory: args.memory,
        disk: DISK,
        ..Resources::default()
    };
    let spec = VmSpec::new(resources, image);
    let request = VmRequest { name, count: None, split: None, spec };
    CreateVmsRequest { requests: vec![request], all_or_nothing: true, policy: None }
}

/// Moves the VM to the other host, and waits until the source has told what it cost.
async fn move_once(
    client: &Client,
    project: &Name,
    name: &Name,
    limits: MigrationLimits,
) -> Outcome<Move> {
    let request = MigrateRequest { limits, ..MigrateRequest::default() };
    let response = client.migrate_vm(project, name, &request).await?;
    let id = response.vm.migration.map(|migration| migration.id);
    let id = id.ok_or_else(|| Failure::new("the VM does not move"))?;
    let deadline = Instant::now() + LIMIT;
    loop {
        let last = client.vm(project, name).await?.last_migration;
        if let Some(figures) = last.and_then(|last| figures(id, last).transpose()) {
            let MigrationFigures { downtime_ms, total_ms, memory_sent, disk_sent, .. } = figures?;
            return Ok(Move {
                downtime_ms: downtime_ms as f64,
                total_ms: total_ms as f64,
                memory_sent,
                disk_sent,
            });
        }
        if Instant::now() >= deadline {
            return Err(Failure::new("the VM does not arrive"));
        }
        sleep(POLL).await;
    }
}

/// The figures of this move, once they are there.
fn figures(id: Uuid, last: LastMigration) -> Outcome<Option<MigrationFigures>> {
    if last.id != id {
        return Ok(None);
    }
    match last.outcome {
        MigrationOutcome::Moved => Ok(last.figures),
        MigrationOutcome::Failed | MigrationOutcome::Cancelled => {
            Err(Failure::new(last.message.unwrap_or_default()).context("the VM did not move"))
        }
    }
}

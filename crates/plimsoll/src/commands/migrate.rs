//! `plimsoll vm migrate` and `plimsoll host drain`.

use std::time::{Duration, Instant};

use plimsoll_api::v1::{
    DrainRequest, HostView, LastMigration, MigrateRequest, MigrateResponse, MigrationOutcome,
    VmView,
};
use plimsoll_model::{Bytes, Name};
use serde::Serialize;
use uuid::Uuid;

use super::wait::patiently;
use crate::{
    cli::migrate::{DrainArgs, MigrateArgs},
    config::Connection,
    failure::{Failure, OrFail as _, Outcome},
    output::{
        Output,
        migration::{ended, how_far, prospects},
        progress::Progress,
    },
};

/// How often the manager is asked.
const POLL: Duration = Duration::from_millis(200);
/// How long after its deadline a move is waited for: a host may have been lost on the way.
const SLACK: Duration = Duration::from_secs(120);
/// How long the source's figures are waited for.
const FIGURES: Duration = Duration::from_secs(10);

/// Where a VM would go, for programs.
#[derive(Serialize)]
struct Planned<'a> {
    vm: &'a Name,
    from: &'a Name,
    to: &'a Name,
    reason: &'a str,
    copy_disk: bool,
}

/// How a move went, for programs. What is not known is absent.
#[derive(Serialize)]
struct Moved<'a> {
    vm: &'a Name,
    from: &'a Name,
    to: &'a Name,
    outcome: MigrationOutcome,
    message: Option<&'a str>,
    total_ms: Option<u64>,
    downtime_ms: Option<u64>,
    predicted_total_ms: Option<u64>,
    predicted_downtime_ms: Option<u64>,
    memory_sent: Option<Bytes>,
    disk_sent: Option<Bytes>,
    passes: Option<u64>,
    post_copied: Option<bool>,
}

impl<'a> Moved<'a> {
    fn new(vm: &'a Name, last: &'a LastMigration) -> Self {
        let figures = last.figures.as_ref();
        Self {
            vm,
            from: &last.from,
            to: &last.to,
            outcome: last.outcome,
            message: last.message.as_deref(),
            total_ms: figures.map(|figures| figures.total_ms),
            downtime_ms: figures.map(|figures| figures.downtime_ms),
            predicted_total_ms: last.predicted.map(|predicted| predicted.total_ms),
            predicted_downtime_ms: last.predicted.map(|predicted| predicted.downtime_ms),
            memory_sent: figures.map(|figures| figures.memory_sent),
            disk_sent: figures.map(|figures| figures.disk_sent),
            passes: figures.map(|figures| figures.passes),
            post_copied: figures.map(|figures| figures.post_copied),
        }
    }
}

/// Moves a VM, gives its move up, or says where it would go.
pub(crate) async fn migrate(
    args: &MigrateArgs,
    connection: &Connection,
    output: Output,
) -> Outcome {
    let project = connection.project()?;
    let (client, name) = (&connection.client, &args.name);
    let begun = if args.cancel {
        let vm = client.cancel_migration(&project, name).await;
        vm.or_fail(|| format!("cannot cancel the move of vm `{name}`"))?
    } else {
        let request = MigrateRequest {
            to: args.to.clone(),
            limits: args.limits.into(),
            dry_run: args.dry_run,
        };
        let answer = client.migrate_vm(&project, name, &request).await;
        let answer = answer.or_fail(|| format!("cannot move vm `{name}`"))?;
        if args.dry_run {
            return planned(output, name, &answer);
        }
        answer.vm
    };
    let Some(migration) = &begun.migration else {
        return Err(Failure::new(format!("vm `{name}` does not move")));
    };
    if args.no_wait {
        return output.show(&begun, |_, _| {
            format!("vm {name} moves from {} to {}\n", migration.from, migration.to)
        });
    }
    let limit = Duration::from_millis(migration.limits.deadline_ms).saturating_add(SLACK);
    let progress = Progress::new(format!("moving vm {name}: {}", how_far(migration)));
    let last = until_over(connection, &project, name, migration.id, limit, &progress).await?;
    drop(progress);
    output.show(&Moved::new(name, &last), |_, _| ended(name, &last))?;
    match (last.outcome, args.cancel) {
        (MigrationOutcome::Moved, false) | (MigrationOutcome::Cancelled, true) => Ok(()),
        (MigrationOutcome::Moved, true) => {
            Err(Failure::new(format!("vm `{name}` had been handed over already: it has moved")))
        }
        (outcome, _) => {
            let cancelled = outcome == MigrationOutcome::Cancelled;
            let why = if cancelled { "somebody cancelled the move" } else { "no reason is known" };
            let why = last.message.unwrap_or_else(|| why.to_owned());
            let hint = format!("the VM runs on {}, as before", last.from);
            Err(Failure::new(why).context(format!("vm `{name}` has not moved")).hint(hint))
        }
    }
}

fn planned(output: Output, vm: &Name, answer: &MigrateResponse) -> Outcome {
    let MigrateResponse { from, to, reason, copy_disk, .. } = answer;
    let planned = Planned { vm, from, to, reason, copy_disk: *copy_disk };
    output.show(&planned, |_, planned| {
        let disk = if planned.copy_disk { ", with its disk" } else { "" };
        format!("vm {vm} would go from {from} to {to}{disk}: {reason}\n")
    })
}

/// Waits until a move is over, and a moment longer for what it cost.
async fn until_over(
    connection: &Connection,
    project: &Name,
    name: &Name,
    id: Uuid,
    limit: Duration,
    progress: &Progress,
) -> Outcome<LastMigration> {
    let deadline = Instant::now() + limit;
    let mut figures_by = None;
    loop {
        let vm: VmView = patiently(deadline, async || connection.client.vm(project, name).await)
            .await
            .or_fail(|| "cannot see how far it is".to_owned())?;
        match (&vm.migration, vm.last_migration) {
            (Some(migration), _) if migration.id == id => {
                progress.set(format!("moving vm {name}: {}", how_far(migration)));
            }
            (_, Some(last)) if last.id == id => {
                let by = *figures_by.get_or_insert_with(|| Instant::now() + FIGURES);
                let known = last.figures.is_some() || last.outcome != MigrationOutcome::Moved;
                if known || Instant::now() >= by {
                    return Ok(last);
                }
            }
            _ => return Err(Failure::new(format!("vm `{name}` was deleted or moved meanwhile"))),
        }
        if Instant::now() >= deadline {
            let hint = "it goes on in the background: `plimsoll vm show` tells how far it is";
            return Err(Failure::new("it is not done within the time limit").hint(hint));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Empties a host, or closes it to new VMs.
pub(crate) async fn drain(args: &DrainArgs, connection: &Connection, output: Output) -> Outcome {
    let (client, name) = (&connection.client, &args.name);
    let request = DrainRequest {
        cordon_only: args.cordon_only,
        parallel: args.max_parallel,
        limits: args.limits.into(),
    };
    let drained = client.drain_host(name, &request).await;
    let drained = drained.or_fail(|| format!("cannot drain host `{name}`"))?;
    if args.cordon_only || args.no_wait {
        return output.show(&drained, |_, drained| prospects(drained));
    }
    if !output.is_json() {
        output.data(&prospects(&drained))?;
    }
    let progress = Progress::new(format!("emptying host {name}"));
    let host = until_empty(args, connection, &progress).await?;
    drop(progress);
    let left = host.draining.iter().flat_map(|drain| &drain.waiting).collect::<Vec<_>>();
    if output.is_json() {
        output.json(&serde_json::json!({
            "host": name, "vms": host.vms, "before": drained.vms, "waiting": left,
        }))?;
    } else if host.vms == 0 {
        output.data(&format!("host {name} is empty\n"))?;
    }
    if host.vms == 0 {
        return Ok(());
    }
    let failure = Failure::new(format!("{} VMs are still there", host.vms))
        .context(format!("host `{name}` is not empty"))
        .hint(format!(
            "it goes on in the background: `plimsoll host show {name}` tells how far it is"
        ));
    let details = left.into_iter().take(10);
    Err(details.fold(failure, |failure, vm| {
        let why = vm.why.clone().unwrap_or_default();
        failure.detail(format!("vm {}/{}", vm.project, vm.vm), why)
    }))
}

/// Waits until the host is empty, or nothing on it moves or will be tried soon.
async fn until_empty(
    args: &DrainArgs,
    connection: &Connection,
    progress: &Progress,
) -> Outcome<HostView> {
    let deadline = Instant::now() + args.timeout;
    let name = &args.name;
    let mut before = None;
    loop {
        let host: HostView = patiently(deadline, async || connection.client.host(name).await)
            .await
            .or_fail(|| "cannot see how far it is".to_owned())?;
        if host.vms == 0 || host.draining.is_none() || Instant::now() >= deadline {
            return Ok(host);
        }
        let waiting = host.draining.as_ref().map_or(0, |drain| drain.waiting.len());
        progress.set(format!("emptying host {name}: {} VMs left, {waiting} held up", host.vms));
        if before.is_some_and(|before| before != host.vms) {
            progress.say(&format!("{} VMs left on host {name}", host.vms));
        }
        before = Some(host.vms);
        tokio::time::sleep(POLL.saturating_mul(2)).await;
    }
}

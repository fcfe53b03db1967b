//! What a report means for a VM. Pure: the record and what was observed in, the record after it out.
//!
//! A report tells of the desired state on which its host works. What it says about a VM's phase
//! counts only if that state is one that has the VM's last change of power or place; and `stopped`
//! means "the guest powered itself off" only if the VM had run since it was last wanted to.

use std::time::Duration;

use plimsoll_api::{
    cluster::{ObservedPhase, ObservedVm},
    migration::MigrationFigures,
};
use plimsoll_model::{
    Bytes, DiskLocation, EventKind, HostId, Power, RestartPolicy, Severity, StoragePool, Timestamp,
    VmEvent, VmPhase,
};

use crate::core::{
    migration::{self, Word},
    record::{Claim, Cleanup, HostRecord, VmRecord},
    telemetry::{Seen, runs_not},
};

/// A running VM that is reported stopped, at a generation before it was last wanted to run, for so
/// long has powered itself off: an agent that is still at work reports `starting`.
const SETTLED: Duration = Duration::from_secs(10);

/// For so long after a start the failure before it may still be reported.
const OLD_FAILURE_MS: i128 = 5_000;

/// When and by what a report was made.
pub(crate) struct Context<'a> {
    pub(crate) host: &'a HostRecord,
    /// The desired state on which the host works.
    pub(crate) working_on: u64,
    /// The revision that a change would be part of.
    pub(crate) revision: u64,
    pub(crate) now: Timestamp,
    pub(crate) monotonic: Duration,
    /// How people call a host.
    pub(crate) name_of: &'a dyn Fn(HostId) -> String,
}

/// What became of a VM.
#[derive(Debug, PartialEq)]
pub(crate) struct Observation {
    pub(crate) record: VmRecord,
    /// Its record is no longer needed: every host has confirmed that it holds nothing.
    pub(crate) gone: bool,
    pub(crate) events: Vec<(Severity, EventKind, String)>,
}

/// What the report means; `None` if nothing durable changes.
pub(crate) fn observe(
    record: &VmRecord,
    seen: &Seen,
    context: &Context<'_>,
) -> Option<Observation> {
    if runs_as_known(record, &seen.observed, context.host.host.id) {
        return None;
    }
    let mut after = Observation { record: record.clone(), gone: false, events: Vec::new() };
    let host = context.host.host.id;
    let observed = &seen.observed;
    if record.vm.phase != VmPhase::Deleting
        && let Some(word) = migration::word(record, host, observed)
    {
        heed(word, context, &mut after);
        note_figures(host, observed, &mut after);
        return Some(after);
    }
    note_figures(host, observed, &mut after);
    let current = record.host() == Some(host) && record.vm.phase != VmPhase::Deleting;
    if let Some(cleanup) = record.cleanups.get(&host)
        && !current
    {
        if observed.phase == ObservedPhase::Absent && observed.incarnation >= cleanup.incarnation {
            after.record.cleanups.remove(&host);
            if after.record.destination() == Some(host) {
                // The room that was held for it there.
                after.record.migration = None;
            }
            after.gone = record.vm.phase == VmPhase::Deleting && after.record.cleanups.is_empty();
        }
    } else if current && observed.incarnation == record.vm.incarnation {
        observe_current(seen, context, &mut after);
    } else if !current
        && observed.phase != ObservedPhase::Absent
        && observed.incarnation < record.vm.incarnation
    {
        // A host that was removed and has joined again may hold what has long been moved.
        let delete_disk = matches!(context.host.host.spec.storage, StoragePool::Local);
        let cleanup = Cleanup { incarnation: observed.incarnation, delete_disk };
        after.record.cleanups.insert(host, cleanup);
    }
    (after.gone || after.record != *record).then_some(after)
}

/// Most of what is ever reported: it runs where and as it should, and that is on record.
fn runs_as_known(record: &VmRecord, observed: &ObservedVm, host: HostId) -> bool {
    let vm = &record.vm;
    record.migration.is_none()
        && vm.phase == VmPhase::Running
        && vm.power == Power::Running
        && record.host() == Some(host)
        && observed.incarnation == vm.incarnation
        && observed.phase == ObservedPhase::Running
        && observed.generation.min(vm.generation) <= vm.observed_generation
        && (vm.disk.is_some() || !observed.disk_exists)
}

/// What a move has cost is told by its source, with its last word or after the target's.
fn note_figures(host: HostId, observed: &ObservedVm, after: &mut Observation) {
    if after.record.note_figures(host, observed)
        && let Some(figures) = observed.migration.as_ref().and_then(|seen| seen.figures)
    {
        let message = measured(&figures);
        after.events.push((Severity::Info, EventKind::VmMigrationMeasured, message));
    }
}

/// What follows from what a host says about the VM's move.
fn heed(word: Word, context: &Context<'_>, after: &mut Observation) {
    let (revision, now) = (context.revision, context.now);
    let record = &mut after.record;
    let name = |host: Option<HostId>| host.map(context.name_of).unwrap_or_default();
    let (from, to) = (name(record.host()), name(record.destination()));
    let line = match word {
        Word::Predicted(predicted) => {
            if let Some(migration) = &mut record.migration {
                migration.predicted = Some(predicted);
            }
            None
        }
        Word::Moved { generation } => {
            let line = record.arrive(revision, now);
            let generation = generation.unwrap_or(0).min(record.vm.generation);
            record.vm.observed_generation = generation;
            line.map(|line| (line, format!("from {from} to {to}")))
        }
        Word::Stays { why } => {
            record.stay(why, false, revision, now).map(|line| (line, format!("on {from}")))
        }
        Word::Dropped => {
            let why = Some(format!("host {from} was lost on the way"));
            record.stay(why, true, revision, now).map(|line| (line, format!("not to {to}")))
        }
    };
    if let Some(((severity, kind, said), place)) = line {
        after.events.push((severity, kind, format!("{place}: {said}")));
    }
}

/// What a move cost, in words.
fn measured(figures: &MigrationFigures) -> String {
    let MigrationFigures { total_ms, downtime_ms, memory_sent, disk_sent, passes, post_copied } =
        figures;
    let disk = if *disk_sent > Bytes::ZERO { format!(", disk {disk_sent}") } else { String::new() };
    let after = if *post_copied { ", part of it after the switch" } else { "" };
    format!(
        "stood still for {downtime_ms} ms, {total_ms} ms in all; sent memory {memory_sent} in \
         {passes} passes{after}{disk}"
    )
}

fn observe_current(seen: &Seen, context: &Context<'_>, after: &mut Observation) {
    let observed = &seen.observed;
    let record = &mut after.record;
    let generation = observed.generation.min(record.vm.generation);
    record.vm.observed_generation = record.vm.observed_generation.max(generation);
    if observed.disk_exists && record.vm.disk.is_none() {
        record.vm.disk = Some(match &context.host.host.spec.storage {
            StoragePool::Local => DiskLocation::Host { host: context.host.host.id },
            StoragePool::Shared { pool } => DiskLocation::Pool { pool: pool.clone() },
        });
    }
    if context.working_on < record.wanted_since {
        return;
    }
    // While it moves, its host may have stopped it for that, or it may have ended and run elsewhere:
    // the move is over first. What is true then is reported again.
    if record.migration.is_some() && observed.phase != ObservedPhase::Running {
        return;
    }
    match record.vm.power {
        Power::Running => observe_wanted_running(seen, context, after),
        Power::Stopped => observe_wanted_stopped(observed.phase, after),
    }
}

fn observe_wanted_running(seen: &Seen, context: &Context<'_>, after: &mut Observation) {
    let observed = &seen.observed;
    let phase = after.record.vm.phase;
    match observed.phase {
        ObservedPhase::Running => {
            if phase != VmPhase::Running {
                let kind = match phase {
                    VmPhase::Unknown => EventKind::VmRecovered,
                    _ => EventKind::VmStarted,
                };
                step(after, VmEvent::Started);
                after.record.vm.message = None;
                after.events.push((Severity::Info, kind, "runs".to_owned()));
            }
        }
        ObservedPhase::Stopped => {
            let settled = phase == VmPhase::Running
                && context.monotonic.saturating_sub(seen.since) >= SETTLED;
            if after.record.vm.spec.restart == RestartPolicy::Always
                || !(observed.generation >= after.record.power_generation || settled)
            {
                return;
            }
            step(after, VmEvent::Exited);
            let record = &mut after.record;
            record.vm.power = Power::Stopped;
            record.vm.generation += 1;
            record.power_generation = record.vm.generation;
            record.wanted_since = context.revision;
            let message = "the guest powered itself off".to_owned();
            record.vm.message = Some(message.clone());
            after.events.push((Severity::Info, EventKind::VmStopped, message));
        }
        ObservedPhase::Failed => {
            let started_ms = context.now.duration_since(after.record.vm.phase_since).as_millis();
            let failed_ms = context.monotonic.saturating_sub(seen.since).as_millis();
            let old_failure = phase == VmPhase::Starting
                && started_ms < OLD_FAILURE_MS
                && i128::try_from(failed_ms).unwrap_or(i128::MAX) > started_ms;
            if phase == VmPhase::Failed || old_failure {
                return;
            }
            step(after, VmEvent::Crashed);
            let message = observed.message.clone().unwrap_or_else(|| "it ended".to_owned());
            after.record.vm.message = Some(message.clone());
            after.events.push((Severity::Error, EventKind::VmCrashed, message));
        }
        ObservedPhase::Starting | ObservedPhase::Stopping | ObservedPhase::Absent => {}
    }
}

fn observe_wanted_stopped(observed: ObservedPhase, after: &mut Observation) {
    if runs_not(observed) {
        if after.record.vm.phase != VmPhase::Stopped {
            step(after, VmEvent::Exited);
            after.events.push((Severity::Info, EventKind::VmStopped, "stopped".to_owned()));
        }
        // It is told to be stopped and does not run: it cannot start by itself any more.
        after.record.claim = Claim::Disk;
    } else if after.record.vm.phase == VmPhase::Unknown || after.record.vm.phase == VmPhase::Stopped
    {
        if after.record.vm.phase == VmPhase::Stopped {
            step(after, VmEvent::Started);
        }
        step(after, VmEvent::StopWanted);
        after.record.claim = Claim::Full;
    }
}

fn step(after: &mut Observation, event: VmEvent) {
    match after.record.vm.phase.next(event) {
        Ok(phase) => after.record.vm.phase = phase,
        // Reports are hostile input: one that makes no sense changes nothing.
        Err(error) => tracing::warn!(vm = %after.record.vm.id, %error, "report makes no sense"),
    }
}

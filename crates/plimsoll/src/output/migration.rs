//! Moves of VMs, for people.

use plimsoll_api::{
    migration::MigrationFigures,
    v1::{
        DrainProspect, DrainResponse, LastMigration, MigrationOutcome, MigrationPrediction,
        MigrationView,
    },
};
use plimsoll_model::{Bytes, Name};

use super::tame;

/// How far a move is: `copying_memory, 63 % of 2GiB, 0.4 s of 1.2 s, predicted downtime 40 ms`.
pub(crate) fn how_far(migration: &MigrationView) -> String {
    let MigrationView { progress, stage, from, to, .. } = migration;
    let stage = serde_json::to_value(stage).ok();
    let stage = stage.as_ref().and_then(|stage| stage.as_str()).unwrap_or("moving");
    let mut text = format!("{from} to {to}, {}", stage.replace('_', " "));
    for (what, total, left) in [
        ("disk", progress.disk_total, progress.disk_left),
        ("memory", progress.memory_total, progress.memory_left),
    ] {
        if total > Bytes::ZERO && left > Bytes::ZERO {
            let done = total.0.saturating_sub(left.0).saturating_mul(100) / total.0;
            text.push_str(&format!(", {done} % of {total} of {what}"));
        }
    }
    if progress.dirty_rate.0 > 0 {
        text.push_str(&format!(", writes {}", progress.dirty_rate));
    }
    if progress.predicted_total_ms > 0 {
        let (elapsed, total) = (seconds(progress.elapsed_ms), seconds(progress.predicted_total_ms));
        let downtime = progress.predicted_downtime_ms;
        text.push_str(&format!(", {elapsed} of {total}, predicted downtime {downtime} ms"));
    }
    if let Some(message) = &migration.message {
        text.push_str(&format!(": {}", tame(message)));
    }
    text
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

/// How a move went.
pub(crate) fn ended(vm: &Name, last: &LastMigration) -> String {
    let LastMigration { from, to, .. } = last;
    if last.outcome != MigrationOutcome::Moved {
        return format!("vm {vm} stays on {from}\n");
    }
    let mut text = format!("vm {vm} has moved from {from} to {to}\n");
    let Some(figures) = &last.figures else { return text };
    let MigrationFigures { total_ms, downtime_ms, memory_sent, disk_sent, passes, post_copied } =
        figures;
    text.push_str(&format!("stood still for {downtime_ms} ms, {} in all", seconds(*total_ms)));
    if let Some(MigrationPrediction { total_ms, downtime_ms }) = last.predicted {
        text.push_str(&format!(" (predicted: {downtime_ms} ms, {})", seconds(total_ms)));
    }
    let after = if *post_copied { ", part of it after the switch" } else { "" };
    text.push_str(&format!(
        "\nsent memory {memory_sent} in {passes} passes{after}; disk {disk_sent}\n"
    ));
    text
}

/// What becomes of the VMs of a host that is emptied.
pub(crate) fn prospects(drained: &DrainResponse) -> String {
    let mut text = format!("host {} takes no new VMs\n", drained.host.name);
    for vm in &drained.vms {
        let to = vm.to.as_ref().map(|to| format!(" to {to}")).unwrap_or_default();
        let what = match vm.prospect {
            DrainProspect::Moving => format!("is moving{to}"),
            DrainProspect::Moves => format!("moves{to}"),
            DrainProspect::StartsElsewhere => "is placed elsewhere when it starts".to_owned(),
            DrainProspect::Stays => "stays".to_owned(),
        };
        let why = vm.why.as_deref().map(|why| format!(": {}", tame(why)));
        text.push_str(&format!("  {}/{} {what}{}\n", vm.project, vm.vm, why.unwrap_or_default()));
    }
    text
}

/// A move in one line, for `vm show`.
pub(crate) fn under_way(migration: &MigrationView) -> String {
    let cancelled = if migration.cancelled { ", to be given up" } else { "" };
    format!("{}{cancelled}", how_far(migration))
}

/// A move that is over in one line, for `vm show`.
pub(crate) fn over(last: &LastMigration) -> String {
    let LastMigration { from, to, outcome, figures, message, .. } = last;
    let outcome = match outcome {
        MigrationOutcome::Moved => "moved",
        MigrationOutcome::Failed => "failed",
        MigrationOutcome::Cancelled => "cancelled",
    };
    let mut text = format!("{outcome}, {from} to {to}, {:.0}", last.ended_at);
    if let Some(figures) = figures {
        let (downtime, total) = (figures.downtime_ms, seconds(figures.total_ms));
        text.push_str(&format!("; stood still for {downtime} ms, {total} in all"));
    }
    if let Some(message) = message {
        text.push_str(&format!(": {}", tame(message)));
    }
    text
}

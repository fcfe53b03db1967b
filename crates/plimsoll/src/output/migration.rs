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

#[cfg(test)]
pub(crate) mod tests {
    use plimsoll_api::{
        migration::{MigrationLimits, MigrationProgress, MigrationStage},
        v1::MigrationCause,
    };
    use plimsoll_model::BytesPerSecond;

    use super::*;

    fn past(outcome: MigrationOutcome) -> LastMigration {
        let moved = outcome == MigrationOutcome::Moved;
        LastMigration {
            id: uuid::Uuid::nil(),
            from: "host-1".parse().unwrap(),
            to: "host-2".parse().unwrap(),
            cause: MigrationCause::User,
            outcome,
            message: (!moved).then(|| "the target\u{1b}[31m is full".to_owned()),
            figures: moved.then_some(MigrationFigures {
                total_ms: 2_350,
                downtime_ms: 43,
                memory_sent: Bytes::mib(640),
                disk_sent: Bytes::gib(1),
                passes: 4,
                post_copied: false,
            }),
            predicted: Some(MigrationPrediction { total_ms: 2_100, downtime_ms: 60 }),
            begun_at: "2030-01-01T02:00:00Z".parse().unwrap(),
            ended_at: "2030-01-01T02:00:02.4Z".parse().unwrap(),
        }
    }

    #[test]
    fn the_end_of_a_move_has_what_it_cost_beside_what_was_predicted() {
        let vm = "web-1".parse().unwrap();
        let said = ended(&vm, &past(MigrationOutcome::Moved));
        insta::assert_snapshot!(said, @"
        vm web-1 has moved from host-1 to host-2
        stood still for 43 ms, 2.3 s in all (predicted: 60 ms, 2.1 s)
        sent memory 640MiB in 4 passes; disk 1GiB
        ");
        assert_eq!(ended(&vm, &past(MigrationOutcome::Failed)), "vm web-1 stays on host-1\n");
        let line = over(&past(MigrationOutcome::Failed));
        assert!(line.starts_with("failed, host-1 to host-2, 2030-01-01T02:00:02Z: the target"));
        assert!(!line.contains('\u{1b}'), "what hosts say is tamed");
    }

    /// A move for goldens.
    pub(crate) fn sample() -> MigrationView {
        MigrationView {
            id: uuid::Uuid::nil(),
            from: "host-1".parse().unwrap(),
            to: "host-2".parse().unwrap(),
            reason: "most-free 0.8".to_owned(),
            cause: MigrationCause::Drain,
            stage: MigrationStage::CopyingMemory,
            message: None,
            progress: MigrationProgress {
                memory_total: Bytes::gib(2),
                memory_left: Bytes::mib(512),
                dirty_rate: BytesPerSecond(10 << 20),
                elapsed_ms: 700,
                predicted_total_ms: 1_250,
                predicted_downtime_ms: 40,
                ..MigrationProgress::default()
            },
            limits: MigrationLimits::default(),
            copy_disk: false,
            cancelled: true,
            begun_at: "2030-01-01T02:00:00Z".parse().unwrap(),
        }
    }

    #[test]
    fn how_far_a_move_is_stands_in_one_line() {
        insta::assert_snapshot!(under_way(&sample()), @"host-1 to host-2, copying memory, 75 % of 2GiB of memory, writes 10MiB/s, 0.7 s of 1.2 s, predicted downtime 40 ms, to be given up");
    }
}

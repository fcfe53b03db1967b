//! How two simulated hosts move a VM between them: `plimsoll_api::migration`, one message at a time.

use std::time::Duration;

use plimsoll_api::{
    cluster::DesiredPresent,
    migration::{
        DesiredMigration, MigrationFigures, MigrationProgress, MigrationStage, ObservedMigration,
    },
};
use plimsoll_model::{Bytes, HostId, VmId};
use uuid::Uuid;

use super::host::{SimHost, SimVm};

/// A host's part in a move, as it is in the agent's journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) id: Uuid,
    pub(crate) stage: MigrationStage,
    leaves: bool,
}

impl Part {
    /// Whether the VM was to leave, and stays.
    pub(super) fn stays(self) -> bool {
        self.leaves && self.stage == MigrationStage::Failed
    }
}

/// How a step goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said {
    /// Whether the source's word is that the VM may run there, and not that it may not.
    pub(crate) go: bool,
    /// Whether the answer arrives.
    pub(crate) heard: bool,
}

/// Whether the VM is a host's to run, as far as its part in a move goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Runs,
    Waits,
}

impl SimVm {
    /// Takes part in what is wanted; a wish for no move ends the part.
    pub(super) fn take_part(&mut self, present: &DesiredPresent) -> Turn {
        use MigrationStage as S;
        let part = |id| self.part.filter(|part| part.id == id);
        match &present.migration {
            Some(DesiredMigration::Departure(wish)) => {
                let mut part = part(wish.id).unwrap_or(Part {
                    id: wish.id,
                    stage: S::Preparing,
                    leaves: true,
                });
                let given_up = wish.cancel || wish.target_lost || !self.running;
                match part.stage {
                    S::Preparing | S::CopyingMemory if given_up => part.stage = S::Failed,
                    S::Switching | S::Gone if wish.target_lost => part.stage = S::Failed,
                    _ => {}
                }
                self.part = Some(part);
                let given = matches!(part.stage, S::Switching | S::Gone);
                if given { Turn::Waits } else { Turn::Runs }
            }
            Some(DesiredMigration::Arrival(wish)) => {
                let part =
                    part(wish.id).unwrap_or(Part { id: wish.id, stage: S::Waiting, leaves: false });
                self.part = Some(part);
                if part.stage == S::Arrived {
                    return Turn::Runs;
                }
                assert!(!self.running, "what is to come here runs here already");
                Turn::Waits
            }
            None => {
                let unheard = self.part.filter(|part| matches!(part.stage, S::Waiting));
                assert_eq!(unheard, None, "given a VM that did not come");
                self.part = None;
                Turn::Runs
            }
        }
    }

    /// Its QEMU is gone: one that only waited never runs.
    pub(super) fn lose_arrival(&mut self) {
        if let Some(part) = self.part.as_mut().filter(|part| part.stage == MigrationStage::Waiting)
        {
            part.stage = MigrationStage::Failed;
        }
    }

    pub(super) fn observed_part(&self) -> Option<ObservedMigration> {
        let Part { id, stage, .. } = self.part?;
        let progress = MigrationProgress {
            predicted_total_ms: 900,
            predicted_downtime_ms: 40,
            memory_total: Bytes::mib(100),
            ..MigrationProgress::default()
        };
        let figures = MigrationFigures {
            total_ms: 1_000,
            downtime_ms: 50,
            memory_sent: Bytes::mib(120),
            passes: 3,
            ..MigrationFigures::default()
        };
        Some(ObservedMigration {
            id,
            stage,
            message: (stage == MigrationStage::Failed).then(|| "as it happened".to_owned()),
            progress,
            figures: (stage == MigrationStage::Gone).then_some(figures),
        })
    }
}

impl SimHost {
    /// Whether the host moves the VM to that one, as it last heard.
    pub(crate) fn knows_target(&self, vm: VmId, target: HostId) -> bool {
        let present = self.vms.get(&vm).and_then(|vm| vm.present.as_ref());
        let wish = present.and_then(|present| present.migration.as_ref());
        matches!(wish, Some(DesiredMigration::Departure(wish)) if wish.to == target)
    }

    /// A step of a move between two hosts that hear each other.
    pub(crate) fn talk(&mut self, target: &mut Self, vm: VmId, now: Duration, said: Said) {
        use MigrationStage as S;
        let Said { go, heard } = said;
        self.guard(now);
        target.guard(now);
        let can_start = target.may_start_fenced();
        let Some(leaving) = self.vms.get_mut(&vm) else { return };
        let Some(part) = leaving.part else { return };
        let there = target.vms.get_mut(&vm);
        let coming = there.filter(|there| there.part.is_some_and(|there| there.id == part.id));
        let stage = match part.stage {
            S::Preparing => match coming.and_then(|there| there.part).map(|there| there.stage) {
                Some(S::Waiting) => S::CopyingMemory,
                Some(_) => S::Failed,
                None => S::Preparing,
            },
            S::CopyingMemory if !leaving.running => S::Failed,
            S::CopyingMemory => {
                leaving.running = false;
                S::Switching
            }
            S::Switching if verdict(coming, go, can_start) => S::Gone,
            S::Switching => S::Failed,
            done => done,
        };
        if heard || !matches!(part.stage, S::Switching) {
            leaving.part = Some(Part { stage, ..part });
        }
    }
}

/// What the target answers to `go` or `abandon`: whether the VM runs there.
fn verdict(coming: Option<&mut SimVm>, go: bool, can_start: bool) -> bool {
    let Some(coming) = coming else { return false };
    let Some(part) = &mut coming.part else { return false };
    if part.stage == MigrationStage::Waiting {
        let fenced = coming.present.as_ref().is_some_and(|present| present.fenced_by_lease);
        if go && (can_start || !fenced) {
            part.stage = MigrationStage::Arrived;
            coming.running = true;
            coming.disk = true;
            coming.generation = coming.present.as_ref().map_or(0, |present| present.generation);
        } else {
            part.stage = MigrationStage::Failed;
        }
    }
    part.stage == MigrationStage::Arrived
}

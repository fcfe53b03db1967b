//! How fake agents move a VM: as `plimsoll_api::migration` says, with nothing to send.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use plimsoll_api::migration::{
    Arrival, Departure, MigrationFigures, MigrationProgress, MigrationStage, ObservedMigration,
};
use plimsoll_model::Bytes;
use uuid::Uuid;

/// What targets of this process have promised or done: their wire to the sources, which are of this
/// process too.
static TARGETS: Mutex<BTreeMap<Uuid, Target>> = Mutex::new(BTreeMap::new());

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Waits,
    Runs,
    Never,
}

/// A fake agent's part in a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FakeMove {
    /// The move.
    pub id: Uuid,
    /// How far it is here.
    pub stage: MigrationStage,
    memory: Bytes,
}

impl FakeMove {
    /// The source's next step.
    pub(super) fn departs(before: Option<Self>, wish: &Departure, memory: Bytes) -> Self {
        use MigrationStage as S;
        let new = Self { id: wish.id, stage: S::Preparing, memory };
        let before = before.filter(|before| before.id == wish.id).unwrap_or(new);
        let mut targets = TARGETS.lock();
        let target = targets.get(&wish.id).copied();
        let stage = match before.stage {
            S::Preparing | S::CopyingMemory if wish.cancel || wish.target_lost => {
                targets.insert(wish.id, Target::Never);
                S::Failed
            }
            S::Preparing | S::CopyingMemory if target == Some(Target::Never) => S::Failed,
            S::Preparing if target == Some(Target::Waits) => S::CopyingMemory,
            S::CopyingMemory if target == Some(Target::Waits) => {
                targets.insert(wish.id, Target::Runs);
                S::Gone
            }
            stage => stage,
        };
        Self { stage, ..before }
    }

    /// The target's; one that is `unwilling` fails the move.
    pub(super) fn arrives(wish: &Arrival, unwilling: bool) -> Self {
        let first = if unwilling { Target::Never } else { Target::Waits };
        let stage = match *TARGETS.lock().entry(wish.id).or_insert(first) {
            Target::Waits => MigrationStage::Waiting,
            Target::Runs => MigrationStage::Arrived,
            Target::Never => MigrationStage::Failed,
        };
        Self { id: wish.id, stage, memory: Bytes::ZERO }
    }

    /// Whether there is more to do.
    pub(super) const fn is_under_way(&self) -> bool {
        matches!(
            self.stage,
            MigrationStage::Preparing | MigrationStage::CopyingMemory | MigrationStage::Waiting
        )
    }

    pub(super) fn observed(&self) -> ObservedMigration {
        let memory = self.memory;
        let gone = self.stage == MigrationStage::Gone;
        let copying = self.stage == MigrationStage::CopyingMemory;
        let figures = MigrationFigures {
            total_ms: 1_000,
            downtime_ms: 40,
            memory_sent: memory,
            passes: 2,
            ..MigrationFigures::default()
        };
        ObservedMigration {
            id: self.id,
            stage: self.stage,
            message: (self.stage == MigrationStage::Failed)
                .then(|| "it pretends to fail".to_owned()),
            progress: MigrationProgress {
                memory_total: memory,
                memory_left: if copying { Bytes(memory.0 / 2) } else { Bytes::ZERO },
                passes: 1,
                predicted_total_ms: if copying { 1_000 } else { 0 },
                predicted_downtime_ms: if copying { 50 } else { 0 },
                ..MigrationProgress::default()
            },
            figures: gone.then_some(figures),
        }
    }
}

//! A VM's move to another host, as it stands on its record, and the steps that end it. Pure.
//!
//! ```text
//!   begun ---- target arrived, or source gone ------------------> the VM is the target's
//!     |  \
//!     |   +--- source says failed ------------------------------> the VM is the source's
//!     |          ^
//!     +-> target lost: it is fenced and the disk is shared; the source is told, and starts it anew
//!     |
//!     +-> dropped: the source is fenced and the VM may be started elsewhere; the target is told to
//!         have nothing of it
//!           |-- it had arrived meanwhile -----------------------> the VM is the target's
//!           +-- it has nothing ---------------------------------> the VM is the source's, fenced
//! ```
//!
//! From the beginning to the end both hosts hold room for the VM, in placement's books under two
//! ids, and its record names the source. Nobody but the source, the target or a proof that one of
//! them runs nothing can end it: until then the VM is placed nowhere else.

use plimsoll_api::{
    cluster::{ObservedPhase, ObservedVm},
    migration::{MigrationFigures, MigrationLimits, MigrationStage, ObservedMigration},
    v1::{MigrationCause, MigrationOutcome, MigrationPrediction},
};
use plimsoll_model::{
    Bytes, DiskLocation, EventKind, HostId, Placement, Policy, Severity, Timestamp, VmEvent, VmId,
};
use plimsoll_placement::{Devices, Request};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::core::record::{Claim, Cleanup, VmRecord};

/// A move that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    /// The move.
    pub id: Uuid,
    /// Where the VM goes.
    pub to: HostId,
    /// The incarnation that it is to be there: above every one before.
    pub incarnation: u64,
    /// The id under which placement's books hold its room there.
    pub reservation: VmId,
    /// Memory that it will cost its new host beside its own.
    pub overhead: Bytes,
    /// What it may cost.
    pub limits: MigrationLimits,
    /// Whether its disk is copied.
    pub copy_disk: bool,
    /// Whether its guard there ends it when that host's lease has run out.
    pub fenced_by_lease: bool,
    /// The policy that chose the host.
    pub policy: Policy,
    /// The reason in a few words.
    pub reason: String,
    /// Who asked for it.
    pub cause: MigrationCause,
    /// When it began.
    pub begun_at: Timestamp,
    /// It is to be given up, as long as that is possible.
    #[serde(default)]
    pub cancel: bool,
    /// The target is known to run nothing any more, and the disk is shared: the source is to start
    /// the VM anew if it has handed it over. The target is to have nothing of it.
    #[serde(default)]
    pub target_lost: bool,
    /// The source is known to run nothing any more, and the VM may be started elsewhere as soon as
    /// the target has nothing of it.
    #[serde(default)]
    pub dropped: bool,
    /// What it will cost, as the source reckoned first.
    #[serde(default)]
    pub predicted: Option<MigrationPrediction>,
    /// For what it waits, where a host is lost.
    #[serde(default)]
    pub message: Option<String>,
}

impl Migration {
    /// Whether the target is to have nothing of the VM.
    #[must_use]
    pub const fn is_withdrawn(&self) -> bool {
        self.target_lost || self.dropped
    }

    /// What hosts are told of it.
    pub(crate) const fn wish(&self) -> (Uuid, HostId, u64, bool, bool, bool) {
        (self.id, self.to, self.incarnation, self.cancel, self.target_lost, self.dropped)
    }
}

/// A VM's last move, once it is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastMigration {
    /// The move.
    pub id: Uuid,
    /// From where it went.
    pub from: HostId,
    /// Where it went, or should have gone.
    pub to: HostId,
    /// Who asked for it.
    pub cause: MigrationCause,
    /// What became of it.
    pub outcome: MigrationOutcome,
    /// Why it failed.
    #[serde(default)]
    pub message: Option<String>,
    /// What it cost.
    #[serde(default)]
    pub figures: Option<MigrationFigures>,
    /// What it was reckoned to cost.
    #[serde(default)]
    pub predicted: Option<MigrationPrediction>,
    /// When it began.
    pub begun_at: Timestamp,
    /// When it was over.
    pub ended_at: Timestamp,
}

/// Something for the log.
type Line = (Severity, EventKind, String);

impl VmRecord {
    /// Its entry in placement's books for the host to which it moves.
    #[must_use]
    pub fn arrival_entry(&self) -> Option<(HostId, Request)> {
        let migration = self.migration.as_ref()?;
        let request = self.request(self.demand(migration.overhead));
        Some((migration.to, Request { vm: migration.reservation, ..request }))
    }

    /// All of its entries in placement's books.
    pub fn entries(&self) -> impl Iterator<Item = (HostId, Request)> {
        self.entry().into_iter().chain(self.arrival_entry())
    }

    /// The host to which it moves.
    #[must_use]
    pub fn destination(&self) -> Option<HostId> {
        self.migration.as_ref().map(|migration| migration.to)
    }

    /// The move is over: what is remembered of it.
    fn remember(
        &mut self,
        migration: &Migration,
        from: HostId,
        outcome: MigrationOutcome,
        now: Timestamp,
    ) -> &mut PastMigration {
        self.last_migration.insert(PastMigration {
            id: migration.id,
            from,
            to: migration.to,
            cause: migration.cause,
            outcome,
            message: None,
            figures: None,
            predicted: migration.predicted,
            begun_at: migration.begun_at,
            ended_at: now,
        })
    }

    /// The VM runs on the target: from now on it is that host's, and the source is to have nothing
    /// of it any more. The generation that is true of it there is not known yet.
    pub(crate) fn arrive(&mut self, revision: u64, now: Timestamp) -> Option<Line> {
        let from = self.host()?;
        let migration = self.migration.take()?;
        let cleanup =
            Cleanup { incarnation: self.vm.incarnation, delete_disk: migration.copy_disk };
        self.cleanups.insert(from, cleanup);
        self.cleanups.remove(&migration.to);
        self.vm.placement = Some(Placement {
            host: migration.to,
            policy: migration.policy,
            reason: migration.reason.clone(),
            since: now,
        });
        self.vm.incarnation = migration.incarnation;
        self.vm.observed_generation = 0;
        self.claim = Claim::Full;
        self.overhead = migration.overhead;
        self.devices = Devices::default();
        self.wanted_since = revision;
        if migration.copy_disk {
            self.vm.disk = Some(DiskLocation::Host { host: migration.to });
        }
        self.fenced_by_lease = migration.fenced_by_lease;
        self.lease_generation = 0;
        if let Ok(phase) = self.vm.phase.next(VmEvent::Started) {
            self.vm.phase = phase;
        }
        self.vm.message = None;
        let line = (Severity::Info, EventKind::VmMigrated, migration.reason.clone());
        self.remember(&migration, from, MigrationOutcome::Moved, now);
        Some(line)
    }

    /// The VM is the source's for certain. It is of a new incarnation there, above the target's, so
    /// that nobody can take one for the other; the running QEMU only gets the new number. `absent`:
    /// the target has confirmed that it has nothing of it.
    pub(crate) fn stay(
        &mut self,
        why: Option<String>,
        absent: bool,
        revision: u64,
        now: Timestamp,
    ) -> Option<Line> {
        let from = self.host()?;
        let migration = self.migration.take()?;
        // What it was told to have no more it may have kept the disk of.
        if !absent || migration.copy_disk {
            let cleanup =
                Cleanup { incarnation: migration.incarnation, delete_disk: migration.copy_disk };
            self.cleanups.insert(migration.to, cleanup);
        }
        self.vm.incarnation = migration.incarnation + 1;
        self.wanted_since = revision;
        let outcome =
            if migration.cancel { MigrationOutcome::Cancelled } else { MigrationOutcome::Failed };
        let (severity, kind, said) = match outcome {
            MigrationOutcome::Cancelled => {
                (Severity::Info, EventKind::VmMigrationCancelled, "stays: the move was cancelled")
            }
            _ => (Severity::Warning, EventKind::VmMigrationFailed, "stays: the move failed"),
        };
        let said = why.as_ref().map_or_else(|| said.to_owned(), |why| format!("{said}: {why}"));
        self.remember(&migration, from, outcome, now).message = why;
        Some((severity, kind, said))
    }

    /// It is being deleted: both hosts are to have nothing of it. The target's room stays taken until
    /// it has confirmed that.
    pub(crate) fn delete_arrival(&mut self) {
        if let Some(migration) = &self.migration {
            let cleanup = Cleanup { incarnation: migration.incarnation, delete_disk: true };
            self.cleanups.insert(migration.to, cleanup);
        }
    }

    /// Notes what the source tells of a move that is over: it may come after the target's word.
    /// False if there is nothing to note.
    pub(crate) fn note_figures(&mut self, host: HostId, observed: &ObservedVm) -> bool {
        let (Some(past), Some(seen)) = (&mut self.last_migration, &observed.migration) else {
            return false;
        };
        let told = seen.figures.filter(|_| past.figures.is_none());
        let (Some(told), true) = (told, past.id == seen.id && past.from == host) else {
            return false;
        };
        if past.outcome != MigrationOutcome::Moved {
            return false;
        }
        past.figures = Some(told);
        true
    }
}

/// What a report says about a move that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// The VM runs on the target.
    Moved {
        /// The generation that is true of it there, if it is the target that says so.
        generation: Option<u64>,
    },
    /// It is the source's.
    Stays { why: Option<String> },
    /// The target has nothing of it, as it was told.
    Dropped,
    /// What it will cost, as the source reckons.
    Predicted(MigrationPrediction),
}

/// What a host's report means for the move; nothing for a foreign host, another move, or a stage on
/// the way.
pub(crate) fn word(record: &VmRecord, host: HostId, observed: &ObservedVm) -> Option<Word> {
    let migration = record.migration.as_ref()?;
    let seen = observed.migration.as_ref().filter(|seen| seen.id == migration.id);
    if host == migration.to {
        if observed.incarnation < migration.incarnation {
            return None;
        }
        // A target that is known to run nothing has nothing to say: the source goes on.
        if migration.target_lost {
            return None;
        }
        if observed.phase == ObservedPhase::Absent {
            return migration.dropped.then_some(Word::Dropped);
        }
        // Whatever became of it since: it is the target's.
        let arrived =
            observed.incarnation == migration.incarnation && seen?.stage == MigrationStage::Arrived;
        return arrived.then_some(Word::Moved { generation: Some(observed.generation) });
    }
    if record.host() == Some(host) && observed.incarnation == record.vm.incarnation {
        // Once it is told that the target is lost it starts the VM anew if it had given it away. What
        // it said of that before it heard so counts no more, or the VM would be placed elsewhere too.
        return word_of_source(migration, seen?)
            .filter(|word| !(migration.target_lost && matches!(word, Word::Moved { .. })));
    }
    None
}

fn word_of_source(migration: &Migration, seen: &ObservedMigration) -> Option<Word> {
    match seen.stage {
        MigrationStage::Gone => Some(Word::Moved { generation: None }),
        MigrationStage::Failed => Some(Word::Stays { why: seen.message.clone() }),
        _ => {
            let predicted = MigrationPrediction {
                total_ms: seen.progress.predicted_total_ms,
                downtime_ms: seen.progress.predicted_downtime_ms,
            };
            (migration.predicted.is_none() && predicted.total_ms > 0)
                .then_some(Word::Predicted(predicted))
        }
    }
}

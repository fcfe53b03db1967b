//! A VM that leaves for another host: this host's part, as its source.
//!
//! ```text
//!   wish with a departure --> begin --task--> prepare the target -> tunnel -> disk -> memory
//!        |                                         | fails, is cancelled      | all is sent
//!        |                                         v                          v
//!        |                                   take back: the VM runs on     `go`, again and again
//!        |                                         |                        | runs     | never
//!        |                                         v                        v          |
//!        +--- report, again and again ------ Failed <----------------- Gone   <--------+ (Failed)
//! ```
//!
//! The VM is this host's until the target was told to go. What makes that safe across crashes:
//! - the target's QEMU is paused and runs only when told; only this agent tells it;
//! - it is told only once QEMU here stands still with everything sent (`completed`), a state that QEMU
//!   does not leave by itself; before any memory is sent [`DepartureRecord::may_have_gone`] is on disk;
//! - an agent that finds that mark, and QEMU at `completed` or gone, asks the target, which answers
//!   for good: it runs there, or never will. Where the target cannot be asked the VM stays as it is:
//!   in doubt it runs nowhere rather than twice;
//! - the outcome is on disk before it is reported, and a VM that is gone is never started here again.

mod copy;
mod record;
mod task;

use std::time::Duration;

use plimsoll_api::ErrorChain;
use plimsoll_api::cluster::{DesiredPresent, ObservedPhase};
use plimsoll_api::migration::{
    Departure, MigrationFigures, MigrationProgress, MigrationStage, ObservedMigration,
};
use plimsoll_model::Timestamp;
use plimsoll_qmp::MigrationStatus;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use self::record::{DepartureRecord, Outcome};
use self::task::Task;
use super::{HURRY, Process, REFRESH, Runner};
use crate::vm::adopt::AdoptError;
use crate::vm::tunnel;

/// A departure that is at work.
pub(super) struct Departing {
    id: Uuid,
    /// What is said of it.
    said: watch::Receiver<ObservedMigration>,
    cancel: CancellationToken,
    /// The target is known to run nothing any more.
    target_lost: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Departing {
    /// Ends when there is something new to be said.
    pub(super) async fn news(&mut self) {
        if self.said.changed().await.is_err() {
            // The task has ended: what became of it is on disk.
            if !self.task.is_finished() {
                tokio::task::yield_now().await;
            }
        }
    }
}

impl Runner {
    /// One look at a departure that is wished for. `None`: there is nothing to do about it, and the VM
    /// is as any other of this host.
    pub(super) async fn depart(
        &mut self,
        present: &DesiredPresent,
        wanted: &Departure,
    ) -> Result<Option<(ObservedPhase, Duration)>, AdoptError> {
        let record = DepartureRecord::read(&self.directory).map_err(AdoptError::Record)?;
        let record = match record {
            Some(record) if record.departure.id == wanted.id => record,
            // An earlier one that is not settled comes first: this id has to wait.
            Some(record) if record.outcome.is_none() => record,
            _ => {
                let record = DepartureRecord {
                    departure: wanted.clone(),
                    begun_at: Timestamp::now(),
                    may_have_gone: false,
                    outcome: None,
                };
                record.write(&self.directory).map_err(AdoptError::Record)?;
                record
            }
        };
        let id = record.departure.id;
        match &record.outcome {
            Some(Outcome::Failed { message }) => {
                self.departing = None;
                self.migration = Some(failed(id, message));
                return Ok(None);
            }
            Some(Outcome::Gone { .. })
                if wanted.target_lost
                    && wanted.id == id
                    && !matches!(self.process, Process::Live(..)) =>
            {
                // It ran over there, and nothing of that is left but its disk, which is shared.
                self.departing = None;
                let message =
                    "the target was lost with it: it starts anew from its disk".to_owned();
                self.settle(record, Outcome::Failed { message })?;
                return Ok(None);
            }
            Some(Outcome::Gone { figures }) => {
                self.departing = None;
                self.migration = Some(gone(id, *figures));
                self.message = Some(format!("it runs on {} now", record.departure.to));
                if matches!(self.process, Process::Live(..)) {
                    let (_, pause) = self.stop_step(Duration::ZERO).await;
                    return Ok(Some((ObservedPhase::Stopping, pause)));
                }
                self.rest().await;
                return Ok(Some((ObservedPhase::Stopping, REFRESH)));
            }
            None => {}
        }
        let alive = matches!(self.process, Process::Live(..));
        if !alive && !record.may_have_gone {
            // Nothing was ever sent: this host has it for certain.
            self.departing = None;
            let message = "its QEMU ended while the move was prepared".to_owned();
            self.settle(record, Outcome::Failed { message })?;
            return Ok(None);
        }
        if self.departing.as_ref().is_none_or(|departing| departing.id != id || departing.is_over())
        {
            self.departing = Some(self.begin_departure(&record, present));
        }
        let Some(departing) = &mut self.departing else { return Ok(None) };
        if wanted.cancel || wanted.id != id {
            departing.cancel.cancel();
        }
        if wanted.target_lost && wanted.id == id {
            departing.target_lost.cancel();
        }
        self.migration = Some(departing.said.borrow_and_update().clone());
        self.message = Some(format!("moves to {}", record.departure.to));
        let phase = if alive { ObservedPhase::Running } else { ObservedPhase::Stopping };
        Ok(Some((phase, HURRY)))
    }

    /// A departure that the manager lists no more. One that is settled is forgotten; one that is not
    /// is cancelled, or brought to the end that it must have.
    pub(super) async fn end_departure(
        &mut self,
        present: &DesiredPresent,
    ) -> Result<Option<(ObservedPhase, Duration)>, AdoptError> {
        let Some(record) = DepartureRecord::read(&self.directory).map_err(AdoptError::Record)?
        else {
            return Ok(None);
        };
        if let Some(outcome) = &record.outcome {
            if matches!(outcome, Outcome::Gone { .. }) && matches!(self.process, Process::Live(..))
            {
                // It was given to this host anew: what stands still here is old.
                let (phase, pause) = self.stop_step(Duration::ZERO).await;
                return Ok(Some((phase, pause)));
            }
            self.departing = None;
            self.migration = None;
            DepartureRecord::remove(&self.directory).map_err(AdoptError::Disarm)?;
            return Ok(None);
        }
        let wanted = Departure { cancel: true, ..record.departure };
        self.depart(present, &wanted).await
    }

    /// Nothing of the VM shall be here any more: it has moved, or is deleted. Once it may run on the
    /// target, our QEMU is needed until all of its memory is there; what it cost is said to the end.
    pub(super) async fn part_with_departure(&mut self) -> Option<(ObservedPhase, Duration)> {
        let record = DepartureRecord::read(&self.directory).ok().flatten();
        let outcome = record.as_ref().and_then(|record| record.outcome.clone());
        let may_have_gone = record.as_ref().is_some_and(|record| record.may_have_gone);
        if let Some(Outcome::Gone { figures }) = outcome {
            self.departing = None;
            self.migration = record.map(|record| gone(record.departure.id, figures));
            return None;
        }
        if outcome.is_none() && may_have_gone {
            if let Some(departing) = self.departing.as_mut().filter(|task| !task.is_over()) {
                departing.cancel.cancel();
                self.migration = Some(departing.said.borrow_and_update().clone());
                return Some((self.phase_without_wish(), HURRY));
            }
            if self.memory_follows().await {
                return Some((self.phase_without_wish(), HURRY));
            }
        }
        self.departing = None;
        if record.is_some() {
            self.migration = None;
            tunnel::end(&self.directory);
        }
        None
    }

    /// Whether the VM runs elsewhere on memory that is still here.
    async fn memory_follows(&self) -> bool {
        let Process::Live(live, _) = &self.process else { return false };
        let info = live.qmp.query_migrate().await;
        info.is_ok_and(|info| info.status == MigrationStatus::PostcopyActive)
    }

    fn settle(&mut self, mut record: DepartureRecord, outcome: Outcome) -> Result<(), AdoptError> {
        let id = record.departure.id;
        if let Outcome::Failed { message } = &outcome {
            self.migration = Some(failed(id, message));
        }
        record.outcome = Some(outcome);
        record.write(&self.directory).map_err(AdoptError::Record)
    }

    fn begin_departure(&self, record: &DepartureRecord, present: &DesiredPresent) -> Departing {
        let id = record.departure.id;
        let stage = if record.may_have_gone {
            MigrationStage::Switching
        } else {
            MigrationStage::Preparing
        };
        let (say, said) = watch::channel(ObservedMigration {
            id,
            stage,
            message: None,
            progress: MigrationProgress::default(),
            figures: None,
        });
        let (cancel, target_lost) = (CancellationToken::new(), CancellationToken::new());
        let live = match &self.process {
            Process::Live(live, _) => Some((live.qmp.clone(), live.record.qemu)),
            _ => None,
        };
        let task = Task {
            environment: self.environment.clone(),
            vm: self.vm,
            directory: self.directory.clone(),
            machine: self.record.machine,
            present: present.clone(),
            live,
            record: record.clone(),
            say,
            cancel: cancel.clone(),
            target_lost: target_lost.clone(),
            began: tokio::time::Instant::now(),
        };
        let (vm, to) = (self.vm, record.departure.to);
        tracing::info!(%vm, %to, move_id = %id, again = record.may_have_gone, "VM departs");
        let task = AbortOnDropHandle::new(tokio::spawn(task.run()));
        Departing { id, said, cancel, target_lost, task }
    }
}

impl Departing {
    fn is_over(&self) -> bool {
        self.task.is_finished()
    }
}

fn failed(id: Uuid, message: &str) -> ObservedMigration {
    ObservedMigration {
        id,
        stage: MigrationStage::Failed,
        message: Some(message.to_owned()),
        progress: MigrationProgress::default(),
        figures: None,
    }
}

fn gone(id: Uuid, figures: MigrationFigures) -> ObservedMigration {
    ObservedMigration {
        id,
        stage: MigrationStage::Gone,
        message: None,
        progress: MigrationProgress::default(),
        figures: Some(figures),
    }
}

/// A message for people from an error.
fn said(what: &str, error: &(dyn std::error::Error + 'static)) -> String {
    format!("{what}: {}", ErrorChain(error))
}

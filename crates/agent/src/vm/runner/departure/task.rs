//! The task of one departure: from the first look at the target to what is certain in the end.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use plimsoll_api::ErrorChain;
use plimsoll_api::client::{ClientError, PeerClient};
use plimsoll_api::cluster::DesiredPresent;
use plimsoll_api::migration::{
    ArrivalPrepared, ArrivalVerdict, MigrationFigures, MigrationStage, ObservedMigration,
    PrepareArrival,
};
use plimsoll_model::{Bytes, Timestamp, VmId};
use plimsoll_qmp::{Event, EventReceiver, MigrationStatus, Qmp, QmpError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::copy::{self, Copy};
use super::record::{DepartureRecord, Outcome};
use super::said;
use crate::vm::argv::{Accelerator, ROOT_NODE};
use crate::vm::guard::record::{ProcessId, VmDirectory};
use crate::vm::registry::Environment;
use crate::vm::runner::record::LaunchedMachine;
use crate::vm::{processor, tunnel};

/// Between two questions that the target could not be asked.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// A target that was never told to go, and whose machine refuses connections for so long, is given up.
const REFUSED_LIMIT: Duration = Duration::from_secs(10);
/// QEMU gives a migration up within this.
const CANCEL_LIMIT: Duration = Duration::from_secs(30);
/// Telling the target that it is not needed is a courtesy.
const ABANDON_LIMIT: Duration = Duration::from_secs(5);
/// For how long QEMU may refuse to go on after a migration.
const CONT_LIMIT: Duration = Duration::from_secs(10);

/// Why a move does not go on.
#[derive(Debug)]
pub(super) enum Stop {
    /// It cannot, and says why.
    Why(String),
    /// Our own QEMU has ended: what is true now is for its runner to find out.
    QemuEnded,
}

impl Stop {
    pub(super) fn qemu(qmp: &Qmp, what: &str, error: &QmpError) -> Self {
        if qmp.is_closed() { Self::QemuEnded } else { Self::Why(said(what, error)) }
    }
}

pub(super) struct Task {
    pub environment: Arc<Environment>,
    pub vm: VmId,
    pub directory: VmDirectory,
    pub machine: LaunchedMachine,
    pub present: DesiredPresent,
    /// The VM's monitor and process, while it lives.
    pub live: Option<(Qmp, ProcessId)>,
    pub record: DepartureRecord,
    pub say: watch::Sender<ObservedMigration>,
    pub cancel: CancellationToken,
    pub target_lost: CancellationToken,
    pub began: Instant,
}

impl Task {
    pub(super) async fn run(mut self) {
        let ended = match self.live.clone() {
            Some((qmp, _)) if self.record.may_have_gone => self.recover(&qmp).await,
            Some((qmp, _)) => self.attempt(&qmp).await,
            None => self.settle_without_qemu().await,
        };
        let Some(outcome) = ended else { return };
        tunnel::end(&self.directory);
        tracing::info!(vm = %self.vm, move_id = %self.record.departure.id, ?outcome, "departure ended");
        self.record.outcome = Some(outcome);
        while let Err(error) = self.record.write(&self.directory) {
            self.stage(MigrationStage::Switching, Some(ErrorChain(&error).to_string()));
            sleep(ASK_AGAIN).await;
        }
        // The runner reads it, and says it.
        self.say.send_modify(|_| {});
    }

    pub(super) fn stage(&self, stage: MigrationStage, message: Option<String>) {
        self.say.send_modify(|said| {
            said.stage = stage;
            said.message = message;
        });
    }

    fn peer(&self) -> Result<PeerClient, ClientError> {
        let reach = &self.environment.reach;
        let departure = &self.record.departure;
        PeerClient::new(departure.to, &departure.address, &reach.ca_pem, &reach.identity)
    }

    /// A move from its beginning.
    async fn attempt(&mut self, qmp: &Qmp) -> Option<Outcome> {
        match self.move_out(qmp).await {
            Ok(figures) => Some(Outcome::Gone { figures }),
            Err(Stop::QemuEnded) => None,
            Err(Stop::Why(why)) => self.take_back(qmp, why).await,
        }
    }

    async fn move_out(&mut self, qmp: &Qmp) -> Result<MigrationFigures, Stop> {
        let peer =
            self.peer().map_err(|error| Stop::Why(said("cannot call the target", &error)))?;
        let mut events = qmp.subscribe();
        let arrival = self.describe(qmp).await?;
        let cancelled = self.cancel.clone();
        let prepared = tokio::select! {
            prepared = self.prepare(&peer, &arrival) => prepared?,
            () = cancelled.cancelled() => return Err(Stop::Why("cancelled".to_owned())),
        };
        let mut copy = Copy::begin(self, qmp, &arrival, &prepared).await?;
        if arrival.copy_disk {
            copy.disk(self).await?;
        }
        self.record.may_have_gone = true;
        let written = self.record.write(&self.directory);
        written.map_err(|error| Stop::Why(said("cannot write down that it may go", &error)))?;
        copy.begin_memory(self).await?;
        copy.memory(self, &peer, &mut events).await?;
        self.stage(MigrationStage::Switching, None);
        self.tell(&peer).await?;
        let mut figures = copy.figures();
        figures.total_ms = millis(self.began.elapsed());
        let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0);
        figures.downtime_ms = copy.stopped_at().map_or(0, |then| now.saturating_sub(millis(then)));
        if copy.is_post_copy() {
            copy.rest(self, &mut figures).await;
        }
        Ok(figures)
    }

    /// The machine, as the target has to build it.
    async fn describe(&self, qmp: &Qmp) -> Result<PrepareArrival, Stop> {
        let ask = |error: QmpError| Stop::qemu(qmp, "cannot ask QEMU what it is", &error);
        let machine_type = qmp.query_machine_type().await.map_err(ask)?;
        let vcpus = qmp.query_cpus_fast().await.map_err(ask)?.len();
        let devices = qmp.query_block().await.map_err(ask)?;
        let nodes = devices.iter().filter_map(|device| device.inserted.as_ref());
        let root = nodes.filter(|node| node.node_name.as_deref() == Some(ROOT_NODE));
        let disk_size = root
            .filter_map(plimsoll_qmp::BlockInserted::virtual_size_bytes)
            .next()
            .ok_or_else(|| Stop::Why("QEMU does not tell the size of the disk".to_owned()))?;
        let version = &qmp.greeting().version.qemu;
        let kvm = self.environment.accelerator == Accelerator::Kvm;
        let departure = &self.record.departure;
        Ok(PrepareArrival {
            machine_type,
            qemu_version: format!("{}.{}.{}", version.major, version.minor, version.micro),
            accelerator: if kvm { "kvm" } else { "tcg" }.to_owned(),
            cpu_features: if kvm { processor::features() } else { Vec::new() },
            vcpus: u32::try_from(vcpus).unwrap_or(u32::MAX),
            max_vcpus: self.machine.max_vcpus,
            memory: self.machine.memory,
            max_memory: self.machine.max_memory,
            interfaces: u32::try_from(self.machine.interfaces).unwrap_or(u32::MAX),
            disk_size: Bytes(disk_size),
            copy_disk: departure.copy_disk,
            post_copy: departure.limits.post_copy,
            bandwidth: departure.limits.bandwidth,
        })
    }

    async fn prepare(
        &self,
        peer: &PeerClient,
        arrival: &PrepareArrival,
    ) -> Result<ArrivalPrepared, Stop> {
        let deadline = Duration::from_millis(self.record.departure.limits.deadline_ms);
        let id = self.record.departure.id;
        loop {
            let why = match peer.prepare(self.vm, id, arrival).await {
                Ok(prepared) => return Ok(prepared),
                // It may not have heard of the move yet, or not be back yet.
                Err(error) if is_too_early(&error) => error,
                Err(error) => return Err(Stop::Why(said("the target cannot take it", &error))),
            };
            if self.began.elapsed() >= deadline {
                return Err(Stop::Why(said("the target was not ready by the deadline", &why)));
            }
            sleep(ASK_AGAIN / 5).await;
        }
    }

    /// Tells the target to go until it answers for good.
    async fn tell(&self, peer: &PeerClient) -> Result<(), Stop> {
        let id = self.record.departure.id;
        let mut refused_since = None;
        // Whether it may have been told: by this agent, or by one before it.
        let mut may_have_heard = false;
        loop {
            let error = match peer.go(self.vm, id).await {
                Ok(ArrivalVerdict::Runs) => return Ok(()),
                Ok(ArrivalVerdict::Never) => {
                    return Err(Stop::Why("the target lost what it was sent".to_owned()));
                }
                Err(error) => error,
            };
            let refused = matches!(&error, ClientError::Unreachable { refused: true, .. });
            may_have_heard |= !refused;
            let since = *refused_since.get_or_insert_with(Instant::now);
            if !may_have_heard && since.elapsed() >= REFUSED_LIMIT {
                return Err(Stop::Why(said("the target was gone at the switch", &error)));
            }
            if self.target_lost.is_cancelled() {
                self.start_anew();
                return Err(Stop::QemuEnded);
            }
            let to = self.record.departure.to;
            let message = format!("asks {to} whether it runs there: {}", ErrorChain(&error));
            self.stage(MigrationStage::Switching, Some(message));
            sleep(ASK_AGAIN).await;
        }
    }

    /// The target is fenced, and what it may have done to the disk is done: what QEMU has here is old.
    fn start_anew(&self) {
        tracing::warn!(vm = %self.vm, "its target was lost at the switch: it starts anew from its disk");
        if let Some((_, qemu)) = &self.live
            && qemu.exists()
        {
            // The runner finds it crashed, and starts it as its policy says.
            let _ = kill(Pid::from_raw(qemu.pid), Signal::SIGKILL);
        }
    }

    /// After an agent's death: goes on where that must be, and takes the move back where that may be.
    async fn recover(&mut self, qmp: &Qmp) -> Option<Outcome> {
        let peer = match self.peer() {
            Ok(peer) => peer,
            Err(error) => {
                self.stage(MigrationStage::Switching, Some(ErrorChain(&error).to_string()));
                sleep(ASK_AGAIN).await;
                return None;
            }
        };
        loop {
            let status = match qmp.query_migrate().await {
                Ok(info) => info.status,
                Err(_) => return None,
            };
            match status {
                // What is sent now is about to be all: a moment, and it is certain.
                MigrationStatus::Device | MigrationStatus::Cancelling => {
                    sleep(ASK_AGAIN / 10).await;
                }
                MigrationStatus::Completed
                | MigrationStatus::PostcopyActive
                | MigrationStatus::PostcopyPaused
                | MigrationStatus::PostcopyRecover => break,
                _ => {
                    let why = "the agent was restarted while it moved".to_owned();
                    return self.take_back(qmp, why).await;
                }
            }
        }
        match self.tell_again(&peer).await {
            ArrivalVerdict::Runs => {
                let mut figures = MigrationFigures::default();
                copy::follow_post_copy(self, qmp, &mut figures).await;
                Some(Outcome::Gone { figures })
            }
            ArrivalVerdict::Never => {
                self.take_back(qmp, "the target lost what it was sent".to_owned()).await
            }
        }
    }

    /// Our QEMU is gone, and the target may have everything.
    async fn settle_without_qemu(&mut self) -> Option<Outcome> {
        let peer = self.peer().ok()?;
        match self.tell_again(&peer).await {
            ArrivalVerdict::Runs => Some(Outcome::Gone { figures: MigrationFigures::default() }),
            ArrivalVerdict::Never => {
                let message = "its QEMU ended while it moved".to_owned();
                Some(Outcome::Failed { message })
            }
        }
    }

    /// As [`Self::tell`], by an agent that does not know what one before it has said.
    async fn tell_again(&self, peer: &PeerClient) -> ArrivalVerdict {
        let (id, to) = (self.record.departure.id, self.record.departure.to);
        loop {
            let error = match peer.go(self.vm, id).await {
                Ok(verdict) => return verdict,
                Err(error) => error,
            };
            if self.target_lost.is_cancelled() {
                self.start_anew();
                return ArrivalVerdict::Never;
            }
            let message = format!("asks {to} whether it runs there: {}", ErrorChain(&error));
            self.stage(MigrationStage::Switching, Some(message));
            sleep(ASK_AGAIN).await;
        }
    }

    /// The target was not told to go, and will not be: the VM goes on here.
    async fn take_back(&self, qmp: &Qmp, why: String) -> Option<Outcome> {
        match self.undo(qmp).await {
            Ok(()) => {}
            Err(Stop::QemuEnded) => {
                // It was never told: this host's QEMU was the VM, and it is gone. What was sent may be
                // whole, so the target is asked; the runner does that when it has looked.
                return None;
            }
            Err(Stop::Why(problem)) => {
                self.stage(MigrationStage::Switching, Some(format!("{why}; {problem}")));
                sleep(ASK_AGAIN).await;
                return None;
            }
        }
        if let Ok(peer) = self.peer() {
            let id = self.record.departure.id;
            let _ = timeout(ABANDON_LIMIT, peer.abandon(self.vm, id)).await;
        }
        Some(Outcome::Failed { message: why })
    }

    async fn undo(&self, qmp: &Qmp) -> Result<(), Stop> {
        let ask = |error: QmpError| Stop::qemu(qmp, "cannot end the migration", &error);
        let deadline = Instant::now() + CANCEL_LIMIT;
        loop {
            let status = qmp.query_migrate().await.map_err(ask)?.status;
            match status {
                MigrationStatus::None
                | MigrationStatus::Completed
                | MigrationStatus::Failed
                | MigrationStatus::Cancelled => break,
                MigrationStatus::Cancelling => {}
                _ => drop(qmp.migrate_cancel().await),
            }
            if Instant::now() >= deadline {
                return Err(Stop::Why("QEMU does not give the migration up".to_owned()));
            }
            sleep(ASK_AGAIN / 20).await;
        }
        copy::end_disk_copy(self, qmp).await?;
        let deadline = Instant::now() + CONT_LIMIT;
        loop {
            let status = qmp.query_status().await.map_err(ask)?;
            if status.running {
                return Ok(());
            }
            // After a migration QEMU may refuse for a moment.
            drop(qmp.cont().await);
            if qmp.query_status().await.map_err(ask)?.running {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Stop::Why("QEMU does not go on".to_owned()));
            }
            sleep(ASK_AGAIN / 20).await;
        }
    }
}

/// The target has not heard of the move yet, or its agent is just not there.
fn is_too_early(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } => true,
        ClientError::Api { status, .. } => matches!(status, 404 | 409 | 503),
        _ => false,
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Waits for an event that may say something of the migration.
pub(super) async fn next_news(events: &mut EventReceiver, limit: Duration) -> Option<Event> {
    timeout(limit, events.recv()).await.ok()?.ok()
}

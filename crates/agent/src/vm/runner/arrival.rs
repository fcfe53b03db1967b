//! A VM that comes from another host: this host's part, as its target.
//!
//! ```text
//!   wish with an arrival --> expected --prepare--> QEMU, paused, waits --go--> told --> runs: any VM
//!                                |                       |
//!                                |                       | abandon, or QEMU ends
//!                                +---------> never <-----+
//! ```
//!
//! The wish only says who may bring the VM; the source's agent says when, by the peer API. Once told,
//! which is on disk before QEMU is let go, the VM is this host's like any other, whatever dies then.
//! Until then it is never let run, and `never` is for good: the QEMU that had its state is dead.

use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use plimsoll_api::ErrorChain;
use plimsoll_api::cluster::{DesiredPresent, ObservedPhase, Wanted};
use plimsoll_api::migration::{
    Arrival, ArrivalPrepared, ArrivalVerdict, DesiredMigration, MigrationProgress, MigrationStage,
    ObservedMigration, PrepareArrival,
};
use plimsoll_model::{Bytes, HostId};
use plimsoll_qmp::{MigrationStatus, Qmp, QmpError};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{HURRY, Process, RETRY, Runner, Wish, launch, wait_dead};
use crate::vm::adopt::AdoptError;
use crate::vm::argv::{Accelerator, EXPORT_NAME, IMAGE_NODE};
use crate::vm::files::{self, FileError};
use crate::vm::guard::record::{ExitReason, VmDirectory};
use crate::vm::peer::{PeerAnswer, PeerError, PeerRequest};
use crate::vm::{post_copy, processor, tunnel};

const NAME: &str = "arrival.json";
/// Names under which QEMU finds its ends of the tunnel.
const MEMORY: &str = "migration-memory";
const DISK: &str = "migration-disk";
/// A QEMU that was told runs within this, or has lost what it was sent.
const RUN_LIMIT: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(1);
/// A guest whose agent answered before answers again within this, or something is wrong with it.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(15);
/// The largest machines: bounds on what another host can ask for.
const MOST_INTERFACES: u32 = 32;
const MOST_MEMORY: Bytes = Bytes(64 << 40);
const LARGEST_DISK: Bytes = Bytes(1 << 50);

/// What must be known of an arrival after a crash of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ArrivalRecord {
    arrival: Arrival,
    /// As which the VM comes.
    incarnation: u64,
    /// What was prepared, and how the source was answered.
    prepared: Option<(PrepareArrival, ArrivalPrepared)>,
    /// It was told to go: the VM is this host's.
    told: bool,
    /// It never runs for this move.
    never: Option<String>,
}

impl ArrivalRecord {
    fn read(directory: &VmDirectory) -> Result<Option<Self>, FileError> {
        files::read_json(&directory.file(NAME))
    }

    fn write(&self, directory: &VmDirectory) -> Result<(), FileError> {
        files::write_json(&directory.file(NAME), self)
    }
}

/// Since when an arrived guest is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived {
    id: Uuid,
    since: Instant,
}

impl Runner {
    /// One look at an arrival that is wished for. `None`: the VM is this host's, like any other.
    pub(super) async fn arrive(
        &mut self,
        present: &DesiredPresent,
        arrival: &Arrival,
    ) -> Result<Option<(ObservedPhase, Duration)>, AdoptError> {
        let record = self.expected(arrival)?;
        let id = arrival.id;
        if record.told {
            self.note_arrived(present, id);
            return Ok(None);
        }
        if let Some(why) = &record.never {
            self.migration = Some(observed(id, MigrationStage::Failed, Some(why.clone())));
            self.message = Some(why.clone());
            if matches!(self.process, Process::Live(..)) {
                self.end_arrival().await?;
            }
            return Ok(Some((self.phase_of_arrival(), RETRY)));
        }
        let stage = match &self.process {
            Process::Live(..) => MigrationStage::Waiting,
            _ if record.prepared.is_some() => {
                self.never(record, "its QEMU ended before all of the VM was there")?;
                return Ok(Some((self.phase_of_arrival(), Duration::ZERO)));
            }
            _ => MigrationStage::Preparing,
        };
        self.migration = Some(observed(id, stage, None));
        self.message = Some(format!("comes from {}", arrival.from));
        Ok(Some((self.phase_of_arrival(), HURRY)))
    }

    /// An arrival that the manager lists no more. A VM that came is here for good; one that was never
    /// let run must not be taken for one that is here.
    pub(super) async fn end_of_arrival(
        &mut self,
    ) -> Result<Option<(ObservedPhase, Duration)>, AdoptError> {
        let record = ArrivalRecord::read(&self.directory).map_err(AdoptError::Record)?;
        let Some(record) = record else {
            self.arrived = None;
            self.migration = None;
            return Ok(None);
        };
        if !record.told && self.record.incarnation <= record.incarnation {
            // Only the source's agent may make it this host's.
            self.message = Some("its move here was taken back".to_owned());
            return Ok(Some((self.phase_of_arrival(), RETRY)));
        }
        if !record.told {
            // It was given to this host anew: what waited for its memory goes first.
            self.end_arrival().await?;
            if !matches!(self.process, Process::Dead) {
                return Ok(Some((self.phase_of_arrival(), HURRY)));
            }
        }
        if let Process::Live(live, _) = &self.process
            && live.qmp.query_migrate().await.is_ok_and(|info| is_under_way(&info.status))
        {
            // The rest of its memory still comes, through what would be removed.
            return Ok(None);
        }
        self.forget_pipes();
        self.arrived = None;
        self.migration = None;
        files::remove(&self.directory.file(NAME)).map_err(AdoptError::Disarm)?;
        Ok(None)
    }

    /// Nothing of a machine that waits runs: no phase that looks as if it did.
    fn phase_of_arrival(&self) -> ObservedPhase {
        match &self.process {
            Process::Dead => ObservedPhase::Stopped,
            _ => ObservedPhase::Starting,
        }
    }

    /// The record of an arrival that is wished for: a new one where it is a new move.
    fn expected(&mut self, arrival: &Arrival) -> Result<ArrivalRecord, AdoptError> {
        let record = ArrivalRecord::read(&self.directory).map_err(AdoptError::Record)?;
        if let Some(record) = record.filter(|record| record.arrival == *arrival) {
            return Ok(record);
        }
        let record = ArrivalRecord {
            arrival: arrival.clone(),
            incarnation: self.record.incarnation,
            prepared: None,
            told: false,
            // Whatever lives here now is of something else, and is never told.
            never: match &self.process {
                Process::Dead => None,
                _ => Some("something else of this VM lives here".to_owned()),
            },
        };
        record.write(&self.directory).map_err(AdoptError::Record)?;
        Ok(record)
    }

    fn never(&mut self, mut record: ArrivalRecord, why: &str) -> Result<(), AdoptError> {
        tracing::warn!(vm = %self.vm, move_id = %record.arrival.id, why, "VM does not arrive");
        record.never = Some(why.to_owned());
        record.write(&self.directory).map_err(AdoptError::Record)
    }

    /// A migration counts once the guest itself was heard (QEMU may say `completed` of a broken one).
    fn note_arrived(&mut self, present: &DesiredPresent, id: Uuid) {
        let arrived = match self.arrived {
            Some(arrived) if arrived.id == id => arrived,
            _ => *self.arrived.insert(Arrived { id, since: Instant::now() }),
        };
        let speaks = match &self.process {
            Process::Live(live, _) => live.guest.is_speaking(),
            // It has crashed since, and is started again as its policy says: it is here.
            _ => true,
        };
        let heard = speaks || !present.image.guest_agent;
        let late = arrived.since.elapsed() >= HEARTBEAT_LIMIT;
        let stage = if heard || late { MigrationStage::Arrived } else { MigrationStage::Switching };
        let message =
            (late && !heard).then(|| "its guest was not heard since it has moved".to_owned());
        self.migration = Some(observed(id, stage, message));
    }

    /// Answers the source's agent.
    pub(super) async fn answer(
        &mut self,
        from: HostId,
        id: Uuid,
        request: PeerRequest,
    ) -> Result<PeerAnswer, PeerError> {
        let wish = self.wishes.borrow().clone();
        let expected = wish.as_ref().and_then(|wish| match &wish.desired.wanted {
            Wanted::Present(present) => match &present.migration {
                Some(DesiredMigration::Arrival(arrival)) => (arrival.id == id
                    && arrival.from == from)
                    .then(|| (wish.clone(), present.clone(), arrival.clone())),
                _ => None,
            },
            Wanted::Absent { .. } => None,
        });
        let Some((wish, present, arrival)) = expected else {
            return self.answer_unexpected(from, id, &request);
        };
        if matches!(self.process, Process::Unknown | Process::Impostor) {
            return Err(PeerError::NotNow);
        }
        self.make_directory(&wish, present.generation).map_err(|error| self.trouble(&error))?;
        let record = self.expected(&arrival).map_err(|error| self.trouble(&error))?;
        match request {
            PeerRequest::Prepare(machine) => {
                let prepared = self.prepare_arrival(&wish, &present, record, *machine).await?;
                Ok(PeerAnswer::Prepared(prepared))
            }
            PeerRequest::CloseDisk => {
                let Process::Live(live, _) = &self.process else { return Err(PeerError::NotNow) };
                live.qmp.nbd_server_stop().await.map_err(|error| self.trouble(&error))?;
                Ok(PeerAnswer::Done)
            }
            PeerRequest::Go => Ok(PeerAnswer::Verdict(self.go(record).await?)),
            PeerRequest::Abandon => Ok(PeerAnswer::Verdict(self.abandon(record).await?)),
        }
    }

    /// A source that asks about a move which the manager no longer lists, or not yet: what is on disk
    /// tells what became of it.
    fn answer_unexpected(
        &self,
        from: HostId,
        id: Uuid,
        request: &PeerRequest,
    ) -> Result<PeerAnswer, PeerError> {
        let record = ArrivalRecord::read(&self.directory).map_err(|error| self.trouble(&error))?;
        let record = record.filter(|record| record.arrival.id == id && record.arrival.from == from);
        match (request, record) {
            (PeerRequest::Go | PeerRequest::Abandon, Some(record)) if record.told => {
                Ok(PeerAnswer::Verdict(ArrivalVerdict::Runs))
            }
            (PeerRequest::Go | PeerRequest::Abandon, Some(record)) if record.never.is_some() => {
                Ok(PeerAnswer::Verdict(ArrivalVerdict::Never))
            }
            _ => Err(PeerError::NotExpected),
        }
    }

    fn trouble(&self, error: &(dyn std::error::Error + 'static)) -> PeerError {
        PeerError::Failed { message: ErrorChain(error).to_string() }
    }

    async fn prepare_arrival(
        &mut self,
        wish: &Wish,
        present: &DesiredPresent,
        mut record: ArrivalRecord,
        machine: PrepareArrival,
    ) -> Result<ArrivalPrepared, PeerError> {
        if let Some((before, answer)) = &record.prepared {
            // The answer was lost on its way.
            let same = *before == machine && matches!(self.process, Process::Live(..));
            return if same && record.never.is_none() {
                Ok(answer.clone())
            } else {
                Err(PeerError::Failed { message: "it was prepared before, and ended".to_owned() })
            };
        }
        if let Some(why) = &record.never {
            return Err(PeerError::Failed { message: why.clone() });
        }
        self.check_machine(&machine)?;
        if let Some(reason) = self.waits_for(wish, present) {
            tracing::debug!(vm = %self.vm, reason, "an arrival waits");
            return Err(PeerError::NotNow);
        }
        self.say(self.phase_of_arrival());
        let prepared = self.make_ready(wish, present, &machine).await;
        match prepared {
            Ok(answer) => {
                record.prepared = Some((machine, answer.clone()));
                record.write(&self.directory).map_err(|error| self.trouble(&error))?;
                Ok(answer)
            }
            Err(message) => {
                record.prepared = None;
                self.never(record, &message).map_err(|error| self.trouble(&error))?;
                self.end_arrival().await.map_err(|error| self.trouble(&error))?;
                Err(PeerError::Failed { message })
            }
        }
    }

    /// Whether this host can run the machine as it is.
    fn check_machine(&self, machine: &PrepareArrival) -> Result<(), PeerError> {
        let refuse = |message: String| Err(PeerError::Failed { message });
        let kvm = self.environment.accelerator == Accelerator::Kvm;
        let here = if kvm { "kvm" } else { "tcg" };
        if machine.accelerator != here {
            let there = &machine.accelerator;
            return refuse(format!("its guest runs under {there}, and this host has {here}"));
        }
        if !is_machine_type(&machine.machine_type) {
            return refuse(format!("`{}` is no type of machine", machine.machine_type));
        }
        let missing = processor::missing(&machine.cpu_features, &processor::features());
        if kvm && !missing.is_empty() {
            let missing = missing.join(", ");
            return refuse(format!(
                "this host's processor lacks {missing}, which its guest may use"
            ));
        }
        let most = self.environment.max_vcpus.max(1);
        if machine.vcpus == 0 || machine.vcpus > machine.max_vcpus || machine.max_vcpus > most {
            let wanted = machine.max_vcpus;
            return refuse(format!("it has places for {wanted} vCPUs, and this host for {most}"));
        }
        if machine.memory == Bytes::ZERO || machine.memory > machine.max_memory {
            return refuse("the machine's description contradicts itself".to_owned());
        }
        let is_too_large = machine.interfaces > MOST_INTERFACES
            || machine.max_memory > MOST_MEMORY
            || machine.disk_size > LARGEST_DISK;
        if is_too_large {
            return refuse("no machine is as large as the one that is described".to_owned());
        }
        Ok(())
    }

    /// From a description to a QEMU that waits for memory.
    async fn make_ready(
        &mut self,
        wish: &Wish,
        present: &DesiredPresent,
        machine: &PrepareArrival,
    ) -> Result<ArrivalPrepared, String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let prepared = launch::prepare(&self.environment, self.vm, present, Some(machine)).await;
        let (built, launched) = prepared.map_err(|error| ErrorChain(&error).to_string())?;
        if built.nics.len() != usize::try_from(machine.interfaces).unwrap_or(usize::MAX) {
            return Err("it has other interfaces than this host was told of".to_owned());
        }
        self.start_machine(wish, present, built, launched)
            .await
            .map_err(|error| ErrorChain(&*error).to_string())?;
        self.look().await.map_err(|error| text(&error))?;
        let Process::Live(live, _) = &self.process else {
            return Err("its QEMU ended at once".to_owned());
        };
        let qmp = live.qmp.clone();
        self.open_channels(&qmp, machine).await
    }

    async fn open_channels(
        &self,
        qmp: &Qmp,
        machine: &PrepareArrival,
    ) -> Result<ArrivalPrepared, String> {
        let qemu = |what: &str| {
            let what = what.to_owned();
            move |error: QmpError| format!("{what}: {}", ErrorChain(&error))
        };
        let post_copy = machine.post_copy && self.may_post_copy(qmp).await;
        let disk = if machine.copy_disk { Some(self.listen_for_disk()?) } else { None };
        if let Some(listener) = disk {
            let failed = qemu("cannot take the disk");
            qmp.send_descriptor(DISK, listener).await.map_err(&failed)?;
            qmp.nbd_server_start(DISK).await.map_err(&failed)?;
            qmp.nbd_export(IMAGE_NODE, EXPORT_NAME).await.map_err(&failed)?;
        }
        let made = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC);
        let (memory, far): (OwnedFd, OwnedFd) =
            made.map_err(|error| format!("cannot make a channel: {error}"))?;
        let failed = qemu("cannot wait for memory");
        qmp.send_descriptor(MEMORY, memory).await.map_err(&failed)?;
        let wish = self.wishes.borrow().clone();
        let from = wish.and_then(|wish| match wish.desired.wanted {
            Wanted::Present(present) => match present.migration {
                Some(DesiredMigration::Arrival(arrival)) => Some(arrival.from),
                _ => None,
            },
            Wanted::Absent { .. } => None,
        });
        let from = from.ok_or("it is not expected any more")?;
        let tunnel_port =
            tunnel::open_for(&self.environment, &self.directory, from, far, machine.copy_disk)
                .map_err(|error| format!("cannot open the tunnel: {}", ErrorChain(&error)))?;
        qmp.migrate_incoming(&format!("fd:{MEMORY}")).await.map_err(&failed)?;
        Ok(ArrivalPrepared { tunnel_port, post_copy })
    }

    /// Whether memory may follow after the switch here.
    async fn may_post_copy(&self, qmp: &Qmp) -> bool {
        let user = self.environment.user.of(self.vm).map(|user| user.uid);
        if let Err(error) = post_copy::allow(user) {
            tracing::info!(vm = %self.vm, %error, "no post-copy on this host");
            return false;
        }
        match qmp.migrate_set_capabilities(&[("postcopy-ram", true)]).await {
            Ok(()) => true,
            Err(error) => {
                tracing::info!(vm = %self.vm, error = %ErrorChain(&error), "no post-copy here");
                post_copy::forbid(user);
                false
            }
        }
    }

    /// A socket for QEMU's NBD server, to which our end of the tunnel connects.
    fn listen_for_disk(&self) -> Result<OwnedFd, String> {
        tunnel::listen_for_disk(&self.directory)
            .map_err(|error| format!("cannot listen for the disk: {error}"))
    }

    /// The source stands still with all sent: the VM is ours from now on, and runs.
    async fn go(&mut self, mut record: ArrivalRecord) -> Result<ArrivalVerdict, PeerError> {
        if record.told {
            return Ok(ArrivalVerdict::Runs);
        }
        if record.never.is_some() {
            return Ok(ArrivalVerdict::Never);
        }
        let Process::Live(live, _) = &self.process else {
            let why = "its QEMU ended before all of the VM was there";
            self.never(record, why).map_err(|error| self.trouble(&error))?;
            return Ok(ArrivalVerdict::Never);
        };
        let qmp = live.qmp.clone();
        record.told = true;
        // Before it runs: an agent after this one must not ask whether it may.
        record.write(&self.directory).map_err(|error| self.trouble(&error))?;
        let runs = let_run(&qmp).await;
        if runs {
            drop(qmp.announce_self().await);
            tracing::info!(vm = %self.vm, move_id = %record.arrival.id, "VM arrived");
            return Ok(ArrivalVerdict::Runs);
        }
        if !qmp.is_closed() {
            // It may run any moment, and nobody can say that it does not.
            return Err(PeerError::NotNow);
        }
        self.look().await.map_err(|error| self.trouble(&error))?;
        if !matches!(self.process, Process::Dead) {
            return Err(PeerError::NotNow);
        }
        // QEMU ends by itself, with an error, when what it was sent is not whole. Ended otherwise it
        // may have run: then the VM was ours, and has crashed.
        if !self.ended_by_itself() {
            return Ok(ArrivalVerdict::Runs);
        }
        record.told = false;
        let why = "it could not read what it was sent";
        self.never(record, why).map_err(|error| self.trouble(&error))?;
        Ok(ArrivalVerdict::Never)
    }

    fn ended_by_itself(&self) -> bool {
        let exit = files::read_json(&self.directory.file(crate::vm::guard::record::name::EXIT));
        let exit = crate::vm::adopt::exit_of(self.record.launch, exit.unwrap_or_default());
        matches!(exit, Some(ExitReason::Exited { code: 1.. }))
    }

    async fn abandon(&mut self, record: ArrivalRecord) -> Result<ArrivalVerdict, PeerError> {
        if record.told {
            return Ok(ArrivalVerdict::Runs);
        }
        if record.never.is_none() {
            self.never(record, "the move was given up").map_err(|error| self.trouble(&error))?;
        }
        self.end_arrival().await.map_err(|error| self.trouble(&error))?;
        Ok(ArrivalVerdict::Never)
    }

    /// Ends a QEMU that was never let run.
    async fn end_arrival(&mut self) -> Result<(), AdoptError> {
        tunnel::end(&self.directory);
        post_copy::forbid(self.environment.user.of(self.vm).map(|user| user.uid));
        if matches!(self.process, Process::Live(..)) {
            let _ = self.stop_step(Duration::ZERO).await;
            let _ = wait_dead(&self.directory, Instant::now() + RUN_LIMIT).await;
            self.look().await?;
        }
        Ok(())
    }

    /// All of its memory is here: what only the move needed goes.
    pub(super) fn forget_pipes(&self) {
        tunnel::forget(&self.directory);
        post_copy::forbid(self.environment.user.of(self.vm).map(|user| user.uid));
    }
}

/// Lets QEMU go, and waits until it does.
async fn let_run(qmp: &Qmp) -> bool {
    let deadline = Instant::now() + RUN_LIMIT;
    loop {
        // While it still reads, this means: as soon as all is there.
        if qmp.cont().await.is_err() && qmp.is_closed() {
            return false;
        }
        match qmp.query_status().await {
            Ok(status) if status.running => return true,
            Err(_) if qmp.is_closed() => return false,
            _ if Instant::now() >= deadline => return false,
            _ => sleep(LOOK).await,
        }
    }
}

/// Whether memory still comes.
const fn is_under_way(status: &MigrationStatus) -> bool {
    matches!(
        status,
        MigrationStatus::Active
            | MigrationStatus::Setup
            | MigrationStatus::Device
            | MigrationStatus::PostcopyActive
            | MigrationStatus::PostcopyPaused
            | MigrationStatus::PostcopyRecover
    )
}

/// `pc-q35-10.0` and its like: it becomes part of QEMU's arguments.
fn is_machine_type(text: &str) -> bool {
    let Some(version) = text.strip_prefix("pc-q35-") else { return false };
    version.split_once('.').is_some_and(|(major, minor)| {
        [major, minor].iter().all(|part| {
            (1..=3).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
        })
    })
}

fn observed(id: Uuid, stage: MigrationStage, message: Option<String>) -> ObservedMigration {
    let progress = MigrationProgress::default();
    ObservedMigration { id, stage, message, progress, figures: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_of_machine_is_nothing_else() {
        for good in ["pc-q35-10.0", "pc-q35-9.2", "pc-q35-10.10"] {
            assert!(is_machine_type(good), "{good}");
        }
        for bad in [
            "",
            "q35",
            "pc-q35-",
            "pc-q35-10",
            "pc-q35-10.0,accel=kvm",
            "pc-q35-1.2.3",
            "pc-q35-.1",
            "pc-q35-1.",
            "pc-i440fx-10.0",
            "pc-q35-1000.0",
        ] {
            assert!(!is_machine_type(bad), "{bad}");
        }
    }
}

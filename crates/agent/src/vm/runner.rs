//! The task of one VM: gets the whole wish, makes it so, says what is.
//!
//! ```text
//!            +------------------- adopt ------------------+
//!            v                                            v
//!   +----> Dead --(should run)--> launch --> adopt --> Live --apply limits (again and again)
//!   |        |                                            |
//!   |        +--(absent)--> taps, cgroup, disk, directory |  should not run, or a reboot is asked
//!   |                        --> Absent                   v  for: guest agent, ACPI, quit, kill
//!   +---------------- guard's locks are free ---------- Stopping
//! ```
//!
//! Only the locks tell that a VM is dead ([`super::adopt`]). Each step looks at the newest wish, may
//! be repeated, and can be cut off by the agent's death anywhere: what must be known afterwards was
//! written down before ([`record`]). A VM that moves to another host is led by [`departure`] here, and
//! by [`arrival`] there, until it is this host's for certain.

mod arrival;
mod deflation;
mod departure;
mod hold;
mod launch;
mod live;
mod record;
mod stop;
mod warning;

use std::sync::Arc;
use std::time::Duration;

use plimsoll_api::ErrorChain;
use plimsoll_api::cluster::{
    ActualLimits, DeflationOutcome, DesiredPresent, DesiredVm, ObservedPhase, ObservedVm, VmShare,
    Wanted,
};
use plimsoll_api::deduplication::Merging;
use plimsoll_api::guest::{Answer, Call, Facts};
use plimsoll_api::migration::{DesiredMigration, ObservedMigration};
use plimsoll_model::{Amount, Bytes, Elasticity, Power, ProjectId, Timestamp, VmId};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use self::arrival::Arrived;
use self::departure::Departing;
use self::hold::Holder;
use self::live::{Goal, Live, taken_back};
use self::record::{End, Ended, LaunchedMachine, Next, Record};
use self::stop::Stopping;
use super::adopt::{AdoptError, Verdict, adopt, exit_of};
use super::argv::Machine;
use super::files;
use super::guard::record::{ExitReason, ExitRecord, VmDirectory, name};
use super::guest_channel::{GuestChannel, GuestStatus};
use super::lease::{BootTime, Lease};
use super::peer::{PeerCall, PeerError};
use super::registry::Environment;

/// All limits are read back, and set again where they differ, at least this often.
const REFRESH: Duration = Duration::from_secs(30);
/// While something is not as wished yet.
const HURRY: Duration = Duration::from_secs(1);
/// While a guest is at it: it follows within milliseconds where it can.
const FOLLOW: Duration = Duration::from_millis(100);
/// After something failed that may work later.
const RETRY: Duration = Duration::from_secs(5);
/// Facts are asked for this often.
const FACTS: Duration = Duration::from_secs(10);
/// And this often where an application says how it answers: somebody may have to help it.
const FACTS_WITH_LATENCY: Duration = Duration::from_secs(2);
const FACTS_LIMIT: Duration = Duration::from_secs(8);
/// Questions of another host that may wait; it asks one after the other.
const PEER_CALLS: usize = 4;
/// A VM that ran for this long has recovered from its last crash.
const RECOVERED: Duration = Duration::from_secs(120);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
struct Wish {
    desired: DesiredVm,
    asked_at: BootTime,
}

impl Wish {
    /// Whether `self` may take the place of `old`: a late message must not undo a newer one.
    fn replaces(&self, old: &Self) -> bool {
        let (new, old) = (&self.desired, &old.desired);
        if new.incarnation != old.incarnation {
            return new.incarnation > old.incarnation;
        }
        match (&old.wanted, &new.wanted) {
            // Nothing comes back within an incarnation.
            (Wanted::Absent { .. }, Wanted::Present(_)) => false,
            (Wanted::Present(old), Wanted::Present(new)) => new.generation >= old.generation,
            (_, Wanted::Absent { .. }) => true,
        }
    }
}

/// The face of a runner.
#[derive(Debug)]
pub(super) struct RunnerHandle {
    wish: watch::Sender<Option<Wish>>,
    observed: watch::Receiver<Option<ObservedVm>>,
    guest: watch::Receiver<Option<GuestChannel>>,
    footing: watch::Receiver<Option<Footing>>,
    share: watch::Sender<Option<Share>>,
    calls: mpsc::Sender<PeerCall>,
    absent: ObservedVm,
    _stop: DropGuard,
}

/// A running VM as it is looked at by whoever divides the host.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Footing {
    /// QEMU's process.
    pub qemu: u32,
    /// What was launched, counted.
    pub launch: u64,
    pub elasticity: Elasticity,
    /// What its user leaves it.
    pub promised: Amount,
    /// The memory that it has now: boot memory and what is plugged in, less the balloon.
    pub memory: Bytes,
    /// What its guest told last; `None` while it does not speak.
    pub facts: Option<Facts>,
    /// How often its guest took memory back by itself.
    pub taken_back: u64,
}

/// What a VM is to have of the host.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Share {
    pub decision: VmShare,
    /// What its user left it when that was decided.
    pub promised: Bytes,
    /// How often its guest is to be asked how it does.
    pub ask_every: Duration,
}

impl RunnerHandle {
    pub(super) fn want(&self, desired: DesiredVm, asked_at: BootTime) {
        let wish = Wish { desired, asked_at };
        self.wish.send_if_modified(|current| {
            if current.as_ref().is_some_and(|current| !wish.replaces(current)) {
                return false;
            }
            *current = Some(wish);
            true
        });
    }

    /// What is; before the VM was looked at, nothing.
    pub(super) fn observed(&self) -> ObservedVm {
        self.observed.borrow().clone().unwrap_or_else(|| self.absent.clone())
    }

    /// Whether the VM was looked at.
    pub(super) fn is_adopted(&self) -> bool {
        self.observed.borrow().is_some()
    }

    pub(super) fn guest(&self) -> Option<GuestChannel> {
        self.guest.borrow().clone()
    }

    /// How it stands, while it runs.
    pub(super) fn footing(&self) -> Option<Footing> {
        self.footing.borrow().clone()
    }

    /// Hands on what the VM's source asks.
    pub(super) fn ask(&self, call: PeerCall) -> Result<(), PeerError> {
        self.calls.try_send(call).map_err(|_| PeerError::NotNow)
    }

    /// What it is to have from now on; `None`: all that it is promised.
    pub(super) fn give(&self, share: Option<Share>) {
        self.share.send_if_modified(|current| {
            let news = *current != share;
            *current = share;
            news
        });
    }
}

/// Starts the task of a VM. It ends when the handle is dropped; the VM goes on.
pub(super) fn spawn(
    environment: Arc<Environment>,
    vm: VmId,
    directory: VmDirectory,
    changes: watch::Sender<u64>,
) -> RunnerHandle {
    let (wish, wishes) = watch::channel(None);
    let (publish, observed) = watch::channel(None);
    let (guest_sender, guest) = watch::channel(None);
    let (stand, footing) = watch::channel(None);
    let (share, shares) = watch::channel(None);
    let (calls, called) = mpsc::channel(PEER_CALLS);
    let stop = CancellationToken::new();
    let runner = Runner {
        environment,
        vm,
        directory,
        wishes,
        publish,
        changes,
        guest_sender,
        stand,
        shares,
        called,
        call: None,
        departing: None,
        arrived: None,
        migration: None,
        record: Record::default(),
        process: Process::Unknown,
        message: None,
        applied: 0,
        limits: None,
        deflation: None,
        failures: 0,
        not_before: Instant::now(),
        warned: None,
        rested: false,
        patience: 0,
    };
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = stopped.cancelled() => {}
            () = runner.run() => {}
        }
    });
    let absent = ObservedVm {
        vm,
        incarnation: 0,
        generation: 0,
        phase: ObservedPhase::Absent,
        message: None,
        restarts: 0,
        disk_exists: false,
        guest: None,
        limits: None,
        deflation: None,
        share: None,
        deduplication: None,
        migration: None,
    };
    let _stop = stop.drop_guard();
    RunnerHandle { wish, observed, guest, footing, share, calls, absent, _stop }
}

/// With what merging a VM that was found was launched, if it ever was.
pub(super) fn launched_merging(directory: &VmDirectory) -> Option<(ProjectId, Merging)> {
    let machine = Record::read(directory).ok()?.machine;
    Some((machine.project?, machine.merging?))
}

/// Why a runner no longer waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wake {
    /// Something may be to be done.
    Step,
    /// There is news of the guest.
    News,
}

enum Process {
    /// Not looked at yet.
    Unknown,
    /// Something lives that could not be identified.
    Impostor,
    Dead,
    Live(Box<Live>, Option<Stopping>),
}

/// What became of a start that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Launched {
    /// A guard was begun, or lived already.
    Tried,
    /// Another wish came meanwhile.
    Moot,
}

struct Runner {
    environment: Arc<Environment>,
    vm: VmId,
    directory: VmDirectory,
    wishes: watch::Receiver<Option<Wish>>,
    publish: watch::Sender<Option<ObservedVm>>,
    changes: watch::Sender<u64>,
    guest_sender: watch::Sender<Option<GuestChannel>>,
    stand: watch::Sender<Option<Footing>>,
    shares: watch::Receiver<Option<Share>>,
    /// What another host asks, which brings the VM.
    called: mpsc::Receiver<PeerCall>,
    call: Option<PeerCall>,
    /// A move away that is at work.
    departing: Option<Departing>,
    /// Since when a guest that came is waited for.
    arrived: Option<Arrived>,
    /// How a move stands in which this host has a part.
    migration: Option<ObservedMigration>,
    record: Record,
    process: Process,
    message: Option<String>,
    /// The generation of which everything is true.
    applied: u64,
    limits: Option<ActualLimits>,
    deflation: Option<DeflationOutcome>,
    /// Ends since the VM last ran for a while.
    failures: u32,
    /// No start before.
    not_before: Instant,
    /// The end time of which the guest was told.
    warned: Option<Timestamp>,
    /// What only a running VM needs was taken away.
    rested: bool,
    /// Looks in a row at which the same was outstanding.
    patience: u32,
}

impl Runner {
    async fn run(mut self) {
        loop {
            let (phase, pause) = self.step().await;
            self.say(phase);
            let until = Instant::now() + pause;
            while self.wait(until).await == Wake::News {
                self.say(phase);
            }
        }
    }

    /// Waits for whatever can make another step necessary, or is worth being said.
    async fn wait(&mut self, until: Instant) -> Wake {
        let wishes = &mut self.wishes;
        let wish = async {
            if wishes.changed().await.is_err() {
                // The handle is gone, and this task with it in a moment.
                std::future::pending::<()>().await;
            }
        };
        let called = &mut self.called;
        let call = async {
            match called.recv().await {
                Some(call) => call,
                // As above.
                None => std::future::pending().await,
            }
        };
        let departing = &mut self.departing;
        let moves = async {
            match departing {
                Some(departing) => departing.news().await,
                None => std::future::pending().await,
            }
        };
        let Process::Live(live, _) = &mut self.process else {
            tokio::select! {
                () = wish => {}
                call = call => self.call = Some(call),
                () = moves => {}
                () = sleep_until(until) => {}
            }
            return Wake::Step;
        };
        let mut guest = live.guest.status();
        let before = live.guest.now();
        // How a guest does that has less than it was promised decides what it is left.
        let deflated = live.is_deflated();
        let shares = &mut self.shares;
        let share = async {
            if shares.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = wish => Wake::Step,
            call = call => {
                self.call = Some(call);
                Wake::Step
            }
            () = moves => Wake::Step,
            () = share => Wake::Step,
            () = taken_back(&mut live.events, &live.memory) => Wake::Step,
            () = live.qmp.closed() => Wake::Step,
            // Its answer borrows the status: it must not live on.
            () = async { drop(guest.wait_for(|status| *status != before).await) } => Wake::Step,
            () = async { if live.facts.changed().await.is_err() { std::future::pending().await } }
                => if deflated { Wake::Step } else { Wake::News },
            () = sleep_until(until) => Wake::Step,
        }
    }

    /// One look at the wish and one step towards it.
    async fn step(&mut self) -> (ObservedPhase, Duration) {
        let wish = self.wishes.borrow_and_update().clone();
        if matches!(self.process, Process::Unknown | Process::Impostor) {
            if let Err(error) = self.look().await {
                self.message = Some(format!("cannot tell whether it runs: {}", ErrorChain(&error)));
                return (self.phase_without_wish(), RETRY);
            }
            if matches!(self.process, Process::Impostor) {
                return (self.phase_without_wish(), RETRY);
            }
        }
        if let Process::Live(live, _) = &self.process
            && live.qmp.is_closed()
        {
            let phase = self.phase_without_wish();
            self.process = Process::Unknown;
            self.guest_sender.send_replace(None);
            return (phase, Duration::ZERO);
        }
        if let Some(PeerCall { from, id, request, reply }) = self.call.take() {
            // Whoever asked may have given up meanwhile: it asks again.
            let _ = reply.send(self.answer(from, id, request).await);
        }
        // An older incarnation's wish is no wish.
        let wish = wish.filter(|wish| wish.desired.incarnation >= self.record.incarnation);
        let Some(wish) = wish else {
            return (self.phase_without_wish(), REFRESH);
        };
        match &wish.desired.wanted {
            Wanted::Absent { delete_disk } => self.absent(&wish, *delete_disk).await,
            Wanted::Present(present) => match self.present(&wish, present).await {
                Ok(done) => done,
                Err(error) => {
                    self.message = Some(ErrorChain(&error).to_string());
                    (self.phase_without_wish(), RETRY)
                }
            },
        }
    }

    /// Finds out what lives.
    async fn look(&mut self) -> Result<(), AdoptError> {
        self.record = Record::read(&self.directory).map_err(AdoptError::Record)?;
        match adopt(self.vm, &self.directory).await? {
            Verdict::Running(adopted) => {
                let qemu = u32::try_from(adopted.record.qemu.pid).unwrap_or(0);
                let LaunchedMachine { project, merging, .. } = self.record.machine;
                self.environment.deduplication.runs(self.vm, qemu, project, merging);
                let guest = GuestChannel::open(self.directory.clone());
                self.guest_sender.send_replace(Some(guest.clone()));
                let (news, facts) = watch::channel(None);
                let gather = tokio::spawn(gather_facts(guest.clone(), self.shares.clone(), news));
                let gather = AbortOnDropHandle::new(gather);
                let live = Live::new(
                    adopted.record,
                    adopted.qmp,
                    guest,
                    facts,
                    gather,
                    self.record.held.clone(),
                );
                live.begin_statistics().await;
                if !self.record.lived && self.record.launch == live.record.launch {
                    self.record.lived = true;
                    self.record.write(&self.directory).map_err(AdoptError::Record)?;
                }
                self.message = None;
                self.process = Process::Live(Box::new(live), None);
            }
            Verdict::Dead(exit) => {
                self.process = Process::Dead;
                self.environment.deduplication.gone(self.vm);
                self.guest_sender.send_replace(None);
                self.limits = None;
                self.deflation = None;
                self.ended(exit)?;
            }
            Verdict::Impostor(mismatch) => {
                tracing::error!(vm = %self.vm, error = %ErrorChain(&mismatch), "unknown process");
                self.message =
                    Some(format!("something holds its locks: {}", ErrorChain(&mismatch)));
                self.process = Process::Impostor;
            }
        }
        Ok(())
    }

    /// Deals with the newest launch's end, once.
    fn ended(&mut self, exit: Option<ExitRecord>) -> Result<(), AdoptError> {
        let launch = self.record.launch;
        if launch == 0 || self.record.ended.as_ref().is_some_and(|ended| ended.launch == launch) {
            return Ok(());
        }
        let reason = exit_of(launch, exit);
        let how = End::of(reason.as_ref(), self.record.end_asked, self.record.lived);
        let mut message = match (&reason, how) {
            (_, End::Asked) => "stopped as asked".to_owned(),
            (Some(reason), _) => reason.to_string(),
            (None, _) => "QEMU and its guard are gone without a word".to_owned(),
        };
        if matches!(reason, Some(ExitReason::Exited { code: 1.. })) {
            message.push_str(&last_line(&self.directory));
        }
        if how == End::Crashed {
            self.record.restarts = self.record.restarts.saturating_add(1);
        }
        let generation = self.record.generation;
        tracing::info!(vm = %self.vm, launch, how = ?how, %message, "VM ended");
        self.record.ended = Some(Ended { launch, how, message, generation });
        self.record.write(&self.directory).map_err(AdoptError::Record)?;
        if matches!(how, End::Crashed | End::NotStarted) {
            self.back_off();
        }
        Ok(())
    }

    /// Puts the next start off: 1, 2, 4, ... up to 60 s.
    fn back_off(&mut self) {
        let pause = Duration::from_secs(1 << self.failures.min(6)).min(LONGEST_BACKOFF);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Instant::now() + pause;
    }

    fn phase_without_wish(&self) -> ObservedPhase {
        match &self.process {
            Process::Live(_, Some(_)) => ObservedPhase::Stopping,
            Process::Live(_, None) => ObservedPhase::Running,
            // Something may live: no phase that lets the manager start it elsewhere.
            Process::Unknown | Process::Impostor => ObservedPhase::Starting,
            Process::Dead if !self.directory.path().exists() => ObservedPhase::Absent,
            Process::Dead => match self.record.ended.as_ref().map(|ended| ended.how) {
                Some(End::Crashed | End::NotStarted) => ObservedPhase::Failed,
                _ => ObservedPhase::Stopped,
            },
        }
    }

    /// Nothing of the VM shall be here.
    async fn absent(&mut self, wish: &Wish, delete_disk: bool) -> (ObservedPhase, Duration) {
        self.record.incarnation = wish.desired.incarnation;
        if let Some(done) = self.part_with_departure().await {
            return done;
        }
        self.forget_pipes();
        if let Process::Live(..) = self.process {
            return self.stop_step(Duration::ZERO).await;
        }
        match self.remove(delete_disk).await {
            Ok(()) => {
                self.message = None;
                self.limits = None;
                (ObservedPhase::Absent, REFRESH)
            }
            Err(message) => {
                self.message = Some(message);
                (self.phase_without_wish_but_absent(), RETRY)
            }
        }
    }

    /// What cannot be removed is not absent.
    fn phase_without_wish_but_absent(&self) -> ObservedPhase {
        match self.phase_without_wish() {
            ObservedPhase::Absent => ObservedPhase::Stopped,
            phase => phase,
        }
    }

    /// Removes all traces. The directory goes last: while it is there the VM is looked after.
    async fn remove(&mut self, delete_disk: bool) -> Result<(), String> {
        let said = |what: &str, error: &(dyn std::error::Error + 'static)| {
            format!("{what}: {}", ErrorChain(error))
        };
        self.environment
            .networks
            .detach(self.vm)
            .await
            .map_err(|error| said("cannot remove its taps", &*error))?;
        self.environment
            .remove_groups(self.vm)
            .map_err(|error| said("cannot remove its cgroups", &error))?;
        if delete_disk {
            let deleted = self.environment.disks.delete(self.vm).await;
            deleted.map_err(|error| said("cannot delete its disk", &*error))?;
            if self.environment.disks.exists(self.vm) {
                return Err("its disk was deleted, but is there".to_owned());
            }
        }
        let path = self.directory.path();
        match fs_err::remove_dir_all(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(said("cannot remove its directory", &error))
            }
            _ => Ok(()),
        }
    }

    /// It shall be here, running or not.
    async fn present(
        &mut self,
        wish: &Wish,
        present: &DesiredPresent,
    ) -> Result<(ObservedPhase, Duration), AdoptError> {
        self.make_directory(wish, present.generation)?;
        if let Some(done) = self.moves(present).await? {
            return Ok(done);
        }
        let reboot = present.reboots > self.record.reboots_done;
        if matches!(self.process, Process::Live(..)) {
            if present.power == Power::Stopped || reboot || self.is_stopping() {
                let grace = Duration::from_millis(present.shutdown_grace_ms);
                return Ok(self.stop_step(grace).await);
            }
            return Ok(self.keep_running(present).await);
        }
        if present.power == Power::Stopped {
            self.message = None;
            self.limits = None;
            self.rest().await;
            self.applied = present.generation;
            return Ok((ObservedPhase::Stopped, REFRESH));
        }
        match self.record.next(present.restart, present.generation) {
            Next::StayStopped => Ok((self.stay(present, ObservedPhase::Stopped).await, REFRESH)),
            Next::StayFailed => Ok((self.stay(present, ObservedPhase::Failed).await, REFRESH)),
            Next::Start => self.start(wish, present).await,
        }
    }

    /// A move in which this host has a part. `None`: the VM is as any other of this host.
    async fn moves(
        &mut self,
        present: &DesiredPresent,
    ) -> Result<Option<(ObservedPhase, Duration)>, AdoptError> {
        match &present.migration {
            Some(DesiredMigration::Arrival(arrival)) => self.arrive(present, arrival).await,
            Some(DesiredMigration::Departure(departure)) => self.depart(present, departure).await,
            None => {
                if let Some(done) = self.end_departure(present).await? {
                    return Ok(Some(done));
                }
                self.end_of_arrival().await
            }
        }
    }

    /// The VM's directory and memory, before anything else of it exists.
    fn make_directory(&mut self, wish: &Wish, generation: u64) -> Result<(), AdoptError> {
        let path = self.directory.path();
        let failed =
            |source| AdoptError::Record(files::FileError::Write { path: path.to_owned(), source });
        if !path.exists() {
            fs_err::create_dir_all(path).map_err(failed)?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            fs_err::set_permissions(path, mode).map_err(failed)?;
        }
        let seen = (wish.desired.incarnation, generation);
        if (self.record.incarnation, self.record.generation) != seen {
            (self.record.incarnation, self.record.generation) = seen;
            self.record.write(&self.directory).map_err(AdoptError::Record)?;
        }
        Ok(())
    }

    async fn stay(&mut self, present: &DesiredPresent, phase: ObservedPhase) -> ObservedPhase {
        self.message = self.record.ended.as_ref().map(|ended| ended.message.clone());
        self.applied = present.generation;
        self.rest().await;
        phase
    }

    /// Takes away what only a running VM needs. It is made again at a start, so failing is no harm.
    async fn rest(&mut self) {
        if self.rested {
            return;
        }
        self.rested = true;
        if let Err(error) = self.environment.networks.detach(self.vm).await {
            tracing::warn!(vm = %self.vm, error = %ErrorChain(&*error), "taps stay");
            self.rested = false;
        }
        if let Err(error) = self.environment.remove_groups(self.vm) {
            tracing::warn!(vm = %self.vm, error = %ErrorChain(&error), "a cgroup stays");
            self.rested = false;
        }
    }

    async fn start(
        &mut self,
        wish: &Wish,
        present: &DesiredPresent,
    ) -> Result<(ObservedPhase, Duration), AdoptError> {
        let ended = self
            .record
            .ended
            .as_ref()
            .filter(|ended| matches!(ended.how, End::Crashed | End::NotStarted | End::Host));
        let why = ended.map(|ended| ended.message.clone());
        let now = Instant::now();
        if now < self.not_before {
            let wait = self.not_before - now;
            let seconds = wait.as_secs() + 1;
            let why = self.message.take().or(why).unwrap_or_else(|| "it did not start".to_owned());
            let why = why.split("; next attempt").next().unwrap_or_default();
            self.message = Some(format!("{why}; next attempt in {seconds} s"));
            return Ok((self.phase_while_waiting(), wait));
        }
        if let Some(reason) = self.waits_for(wish, present) {
            self.message = Some(reason.to_owned());
            return Ok((ObservedPhase::Starting, HURRY));
        }
        self.message = None;
        self.rested = false;
        self.say(ObservedPhase::Starting);
        match self.launch(wish, present).await {
            Ok(Launched::Tried | Launched::Moot) => {}
            Err(error) => {
                let text = ErrorChain(&*error).to_string();
                tracing::warn!(vm = %self.vm, error = %text, "VM could not be started");
                self.look().await?;
                if matches!(self.process, Process::Dead) {
                    self.message = Some(text);
                    self.back_off();
                    return Ok((ObservedPhase::Failed, Duration::ZERO));
                }
            }
        }
        Ok((ObservedPhase::Starting, Duration::ZERO))
    }

    /// Between a crash and the next start it is starting; what never started has failed.
    fn phase_while_waiting(&self) -> ObservedPhase {
        match self.record.ended.as_ref().map(|ended| ended.how) {
            Some(End::Crashed | End::Host) => ObservedPhase::Starting,
            _ => ObservedPhase::Failed,
        }
    }

    /// Why the VM may not start on this wish yet. One that was heard before the host's last boot is
    /// never enough: whoever vouched that the host is off may have let the VM run elsewhere since.
    fn waits_for(&self, wish: &Wish, present: &DesiredPresent) -> Option<&'static str> {
        if wish.asked_at == BootTime(0) {
            return Some("waits for the manager's word since the host's last boot");
        }
        if !present.fenced_by_lease {
            return None;
        }
        let allowed = files::boot_id().is_ok_and(|boot_id| {
            Lease::read(&self.environment.lease_file)
                .is_some_and(|lease| lease.allows_start(&boot_id, BootTime::now(), wish.asked_at))
        });
        (!allowed).then_some("waits for the host's lease and a wish from within it")
    }

    async fn launch(
        &mut self,
        wish: &Wish,
        present: &DesiredPresent,
    ) -> Result<Launched, Box<dyn std::error::Error + Send + Sync>> {
        let (machine, launched) = {
            let mut wishes = self.wishes.clone();
            let prepare = launch::prepare(&self.environment, self.vm, present, None);
            tokio::select! {
                prepared = prepare => prepared?,
                // Fetching an image can take minutes: a newer wish need not wait for it.
                () = another_wish(&mut wishes, present) => return Ok(Launched::Moot),
            }
        };
        self.start_machine(wish, present, machine, launched).await?;
        Ok(Launched::Tried)
    }

    /// Writes down what is launched, and launches it.
    async fn start_machine(
        &mut self,
        wish: &Wish,
        present: &DesiredPresent,
        mut machine: Machine,
        mut launched: LaunchedMachine,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.mark_fenced(present.fenced_by_lease)?;
        let merging = self.environment.deduplication.decide(self.vm, present);
        machine.mergeable = merging.is_allowed();
        launched.merging = Some(merging);
        self.record.launch += 1;
        self.record.machine = launched;
        self.record.reboots_done = present.reboots;
        self.record.end_asked = false;
        self.record.lived = false;
        self.record.ended = None;
        self.record.held = None;
        self.record.write(&self.directory)?;
        let number = self.record.launch;
        tracing::info!(vm = %self.vm, launch = number, "VM starts");
        let (environment, directory) = (&self.environment, &self.directory);
        let answer =
            launch::launch(environment, directory, number, &machine, wish.asked_at).await?;
        if answer == launch::Answer::Held {
            tracing::warn!(vm = %self.vm, "a guard lives already");
        }
        self.process = Process::Unknown;
        Ok(())
    }

    /// The marker by which the guard knows whether to look at the lease.
    fn mark_fenced(&self, fenced: bool) -> std::io::Result<()> {
        let path = self.directory.file(name::FENCED);
        if fenced == path.exists() {
            return Ok(());
        }
        if fenced {
            fs_err::write(&path, b"")?;
        } else {
            files::remove(&path)?;
        }
        files::sync_directory(self.directory.path())
    }

    async fn keep_running(&mut self, present: &DesiredPresent) -> (ObservedPhase, Duration) {
        let fenced = self.mark_fenced(present.fenced_by_lease);
        let Process::Live(live, _) = &mut self.process else {
            return (self.phase_without_wish(), HURRY);
        };
        if live.since.elapsed() > RECOVERED {
            self.failures = 0;
        }
        let machine = self.record.machine;
        let holder = Holder::new(self.environment.memory_groups.clone(), self.vm, &live.record);
        let left = live.deflate(present, self.limits.as_ref(), holder).await;
        let share = self.shares.borrow_and_update().clone();
        let is_elastic = present.elasticity != Elasticity::Guaranteed;
        let aim = match &share {
            Some(share) => left.within(share),
            // What an agent before this one took stays taken until the first decision.
            None if is_elastic => live.as_it_is(left).await,
            None => left,
        };
        let goal = Goal { present, aim, machine: &machine };
        let (limits, mut outstanding) = live.apply(&self.environment, self.vm, &goal).await;
        if live.is_deflating() {
            outstanding.0.push("it is being deflated".to_owned());
        } else {
            self.deflation = live.deflation().cloned();
        }
        let held = live.held();
        if self.record.held != held {
            self.record.held = held;
            if let Err(error) = self.record.write(&self.directory) {
                outstanding.failed("cannot write down what is held back", &error);
            }
        }
        if let Err(error) = fenced {
            outstanding.0.push(format!("cannot mark it for the lease: {error}"));
        }
        warning::give(live, present, &mut self.warned).await;
        let next_look = REFRESH.min(warning::pause(present, self.warned));
        let footing = Footing {
            qemu: u32::try_from(live.record.qemu.pid).unwrap_or(0),
            launch: self.record.launch,
            elasticity: present.elasticity.clone(),
            promised: Amount { memory: left.memory, cpu: left.cpu },
            memory: limits.memory.unwrap_or(left.memory),
            facts: live.guest.is_speaking().then(|| live.facts.borrow().clone()).flatten(),
            taken_back: live.times_taken_back(),
        };
        self.stand.send_if_modified(|stand| {
            let news = stand.as_ref() != Some(&footing);
            *stand = Some(footing);
            news
        });
        self.limits = Some(limits);
        if live.qmp.is_closed() {
            return (ObservedPhase::Running, Duration::ZERO);
        }
        if outstanding.0.is_empty() {
            self.applied = present.generation;
            self.patience = 0;
            self.message = (present.image.guest_agent && !live.guest.is_speaking())
                .then(|| "its guest agent does not answer yet".to_owned());
            return (ObservedPhase::Running, next_look);
        }
        let message = outstanding.0.join("; ");
        // What stays outstanding is looked at ever less often: some of it waits for a reboot.
        let same = self.message.as_ref() == Some(&message);
        self.patience = if same { self.patience.saturating_add(1).min(16) } else { 0 };
        self.message = Some(message);
        (ObservedPhase::Running, (FOLLOW * (1 << (self.patience / 2))).min(next_look))
    }

    fn is_stopping(&self) -> bool {
        matches!(self.process, Process::Live(_, Some(_)))
    }

    /// Says what is, if that is news.
    fn say(&mut self, phase: ObservedPhase) {
        let facts = match &self.process {
            Process::Live(live, _) if live.guest.is_speaking() => live.facts.borrow().clone(),
            _ => None,
        };
        let observed = ObservedVm {
            vm: self.vm,
            incarnation: self.record.incarnation,
            generation: self.applied,
            phase,
            message: self.message.clone(),
            restarts: self.record.restarts,
            disk_exists: self.environment.disks.exists(self.vm),
            guest: facts,
            limits: self.limits.clone(),
            deflation: self.deflation.clone(),
            share: self.shares.borrow().as_ref().map(|share| share.decision.clone()),
            deduplication: None,
            migration: self.migration.clone(),
        };
        if !matches!(self.process, Process::Live(..)) {
            self.stand.send_replace(None);
        }
        let news = self.publish.send_if_modified(|current| {
            if current.as_ref() == Some(&observed) {
                return false;
            }
            *current = Some(observed);
            true
        });
        if news {
            self.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

/// Ends when a wish comes that makes a start with this one moot.
async fn another_wish(wishes: &mut watch::Receiver<Option<Wish>>, present: &DesiredPresent) {
    let moot = |wish: &Option<Wish>| match wish.as_ref().map(|wish| &wish.desired.wanted) {
        Some(Wanted::Present(now)) => now.generation != present.generation,
        Some(Wanted::Absent { .. }) => true,
        None => false,
    };
    if wishes.wait_for(moot).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Asks the guest for its facts, again and again. Holds no monitor connection: QEMU serves one
/// client, and the next agent's would wait for its end.
async fn gather_facts(
    guest: GuestChannel,
    mut shares: watch::Receiver<Option<Share>>,
    facts: watch::Sender<Option<Facts>>,
) {
    let mut status = guest.status();
    loop {
        if status.wait_for(|status| *status != GuestStatus::Silent).await.is_err() {
            return;
        }
        let mut otherwise = FACTS;
        if let Ok(Answer::Facts(news)) = guest.call(Call::Facts, FACTS_LIMIT).await {
            if news.latency.is_some() {
                otherwise = FACTS_WITH_LATENCY;
            }
            facts.send_replace(Some(*news));
        }
        let asked = Instant::now();
        let due = |share: &Option<Share>| {
            let every = share.as_ref().map_or(FACTS, |share| share.ask_every);
            asked + every.min(otherwise)
        };
        loop {
            let until = due(&shares.borrow_and_update());
            tokio::select! {
                () = sleep_until(until) => break,
                // It may be in more of a hurry now.
                Ok(()) = shares.changed() => {}
            }
        }
    }
}

/// QEMU's last words, for people.
fn last_line(directory: &VmDirectory) -> String {
    let text = fs_err::read(directory.file(name::QEMU_LOG)).unwrap_or_default();
    let tail = &text[text.len().saturating_sub(2048)..];
    let text = String::from_utf8_lossy(tail);
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let line: String = line.chars().filter(|c| !c.is_control()).take(300).collect();
    if line.is_empty() { line } else { format!(" ({line})") }
}

/// Waits until nothing of the VM lives.
async fn wait_dead(directory: &VmDirectory, until: Instant) -> bool {
    let dead = async {
        while super::adopt::is_alive(directory).unwrap_or(true) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout_at(until, dead).await.is_ok()
}

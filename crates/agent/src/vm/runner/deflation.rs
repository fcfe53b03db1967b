//! The cascade: who gives back what a VM is to do without.
//!
//! ```text
//!   application --(answered, or half of the time is over)--> guest --(given, or nearly all of the
//!   time is over)--> host --> settled --(asked for no more)--> inflated
//! ```
//!
//! After Sharma et al., Resource Deflation (EuroSys'19, section 3): the higher a level, the better
//! it knows what is of no use to it, so each is asked for what those above it left, and the host
//! takes the rest without asking. Two things differ from the paper:
//!
//! - A guest is never asked for what it needs itself. What its own numbers say is available, less a
//!   reserve, is all that its balloon takes; the rest is the host's to page out. An inflated
//!   balloon that drives a guest into its out-of-memory killer saves nothing.
//! - What a guest has taken back by itself (`deflate-on-oom`), or needs again, it keeps.
//!
//! A guest whose agent does not answer is not asked at all: only the host's means are left.

use std::time::Duration;

use plimsoll_api::ErrorChain;
use plimsoll_api::cluster::{ActualLimits, DeflationOutcome, DesiredPresent, LevelOutcome};
use plimsoll_api::guest::{Answer, Call, DeflateRequest, DeflateResult, Facts, MemoryFacts};
use plimsoll_model::{Amount, Bytes, Deflation, Level, MilliCores};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::Share;
use super::hold::{Hold, Holder, Taken};
use super::launch::vcpus_for;
use crate::limits::CpuWeight;
use crate::pageout::PageOutError;
use crate::vm::argv::boot_memory;
use crate::vm::guest_channel::{GuestCallError, GuestChannel};

/// How long hooks may take over hearing that they may use all again. Nobody waits for them.
const INFLATE_LIMIT: Duration = Duration::from_secs(15);
/// How long a guest's agent is listened for, and in which part of the time.
const LISTENING_LIMIT: Duration = Duration::from_secs(3);
const LISTENING_PART: (u32, u32) = (1, 4);
/// A guest that has only just begun, or whom our agent has, is waited for.
const BOOT: Duration = Duration::from_secs(30);
/// The parts of the time that are over when applications, and when the guest, must have given.
const APPLICATION_PART: (u32, u32) = (1, 2);
const GUEST_PART: (u32, u32) = (4, 5);
/// A limit of CPU time that is not in force by then was refused.
const THROTTLE_LIMIT: Duration = Duration::from_secs(2);
/// A guest keeps at least this much available, and at least a part in 32 of what it is promised.
const LEAST_RESERVE: u64 = 24 << 20;
/// What is said of a level that the deflation leaves out.
const NOT_ASKED: &str = "not asked";
/// Memory stall, in hundredths of a percent over ten seconds, at which a guest is given some back.
const PRESSED: u32 = 1000;

/// What a VM is to have now, of what it is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Aim {
    /// Memory, by the guest's own help.
    pub memory: Bytes,
    /// CPU time.
    pub cpu: MilliCores,
    /// vCPUs on which the guest runs.
    pub vcpus: u32,
    /// Against other VMs; `None`: by what it is promised.
    pub weight: Option<CpuWeight>,
    /// What the host keeps out of its memory.
    pub hold: Hold,
}

impl Aim {
    /// All that it is promised.
    pub(super) fn promised(present: &DesiredPresent) -> Self {
        let resources = &present.resources;
        Self {
            memory: boot_memory(resources.memory),
            cpu: resources.cpu,
            vcpus: vcpus_for(resources.cpu),
            weight: None,
            hold: Hold::Nothing,
        }
    }

    /// No more than the host has for it. What its user has given it since that was decided is its own.
    pub(super) fn within(self, share: &Share) -> Self {
        let Share { decision, promised, .. } = share;
        let more = self.memory.saturating_sub(*promised);
        Self {
            memory: self.memory.min(decision.memory.saturating_add(more)),
            weight: CpuWeight::new(decision.cpu_weight.into()),
            ..self
        }
    }
}

/// A deflation under way, or one that lasts.
#[derive(Debug)]
pub(super) struct Cascade {
    asked: Deflation,
    wanted: Amount,
    began: Instant,
    stage: Stage,
    stage_began: Instant,
    levels: Vec<LevelOutcome>,
    /// What the guest is to do without.
    guest: Amount,
    /// What the host keeps out of its memory beside that; zero where nothing holds it out.
    host: Bytes,
    /// Whether the host holds the VM to less CPU time.
    throttled: bool,
    outcome: Option<DeflationOutcome>,
    /// The promise with which the guest had given all that it is to do without.
    reached: Option<Bytes>,
}

/// A deflation that has settled, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Held {
    asked: Deflation,
    wanted: Amount,
    guest: Amount,
    #[serde(default)]
    host: Bytes,
    throttled: bool,
    outcome: DeflationOutcome,
}

#[derive(Debug)]
enum Stage {
    /// The guest's agent was not heard yet: ours may just have begun.
    Listening,
    Application(AbortOnDropHandle<Result<DeflateResult, GuestCallError>>),
    Guest,
    Host {
        paging: Option<JoinHandle<Result<Taken, PageOutError>>>,
        /// What was taken, and what there is to say about it.
        taken: Taken,
    },
    Settled,
}

/// What the cascade sees of a running VM.
pub(super) struct Sight<'a> {
    pub present: &'a DesiredPresent,
    pub guest: &'a GuestChannel,
    pub facts: Option<&'a Facts>,
    /// As read back at the last look.
    pub limits: Option<&'a ActualLimits>,
    /// On how many vCPUs the guest says that it runs.
    pub online: Option<u32>,
    /// For how long we have known it.
    pub known_for: Duration,
    /// What takes memory without the guest's help.
    pub holder: Holder,
}

impl Sight<'_> {
    fn memory(&self) -> Bytes {
        let promised = boot_memory(self.present.resources.memory);
        self.limits.and_then(|limits| limits.memory).unwrap_or(promised)
    }

    /// What the guest does without of what it is promised.
    fn given(&self) -> Bytes {
        boot_memory(self.present.resources.memory).saturating_sub(self.memory())
    }
}

/// Takes the cascade as far as it goes at once, and tells what the VM is to have now.
pub(super) async fn follow(cascade: &mut Option<Cascade>, sight: &Sight<'_>) -> Aim {
    let Some(asked) = sight.present.deflation else {
        if cascade.take().is_some() {
            let guest = sight.guest.clone();
            // Its answer is of no use to anybody.
            tokio::spawn(async move { drop(guest.call(Call::Inflate, INFLATE_LIMIT).await) });
        }
        return Aim::promised(sight.present);
    };
    if cascade.as_ref().is_none_or(|cascade| cascade.asked != asked) {
        let before = cascade.take();
        *cascade = Some(Cascade::begin(asked, before, sight));
    }
    let Some(cascade) = cascade else { return Aim::promised(sight.present) };
    cascade.advance(sight).await;
    cascade.aim(sight.present)
}

impl Cascade {
    /// Begins anew; what an earlier one took stays taken until it is known what this one takes.
    fn begin(asked: Deflation, before: Option<Self>, sight: &Sight<'_>) -> Self {
        let wanted = asked.of(&sight.present.resources);
        let now = Instant::now();
        let mut cascade = Self {
            asked,
            wanted,
            began: now,
            stage: Stage::Listening,
            stage_began: now,
            levels: Vec::new(),
            guest: before.as_ref().map_or_else(Amount::default, |before| before.guest),
            host: before.as_ref().map_or(Bytes::ZERO, |before| before.host),
            throttled: before.is_some_and(|before| before.throttled),
            outcome: None,
            reached: None,
        };
        match asked.from {
            Level::Application => cascade.listen(sight),
            Level::Guest => {
                cascade.level(Level::Application, Amount::default(), Some(NOT_ASKED.to_owned()));
                cascade.ask_guest(None, sight);
            }
            Level::Host => cascade.skip_guest(NOT_ASKED, sight),
        }
        cascade
    }

    /// One that settled under another agent.
    pub(super) fn recall(held: Held) -> Self {
        let Held { asked, wanted, guest, host, throttled, outcome } = held;
        let now = Instant::now();
        Self {
            asked,
            wanted,
            began: now,
            stage: Stage::Settled,
            stage_began: now,
            levels: outcome.levels.clone(),
            guest,
            host,
            throttled,
            outcome: Some(outcome),
            reached: None,
        }
    }

    /// What an agent to come must know.
    pub(super) fn held(&self) -> Option<Held> {
        let Self { asked, wanted, guest, host, throttled, outcome, .. } = self;
        outcome.clone().map(|outcome| Held {
            asked: *asked,
            wanted: *wanted,
            guest: *guest,
            host: *host,
            throttled: *throttled,
            outcome,
        })
    }

    /// Asks the guest's applications, if its agent answers.
    fn listen(&mut self, sight: &Sight<'_>) {
        if sight.guest.is_speaking() {
            let limit = self.share(APPLICATION_PART);
            let request = DeflateRequest {
                memory_bytes: self.wanted.memory.get(),
                cpu_millicores: self.wanted.cpu.get(),
                within_ms: millis(limit).max(1),
            };
            let guest = sight.guest.clone();
            self.stage = Stage::Application(AbortOnDropHandle::new(tokio::spawn(async move {
                match guest.call(Call::Deflate(request), limit).await? {
                    Answer::Deflated(result) => Ok(result),
                    _ => Err(GuestCallError::WrongAnswer),
                }
            })));
        } else if self.began.elapsed() >= LISTENING_LIMIT.min(self.share(LISTENING_PART))
            && !(sight.present.image.guest_agent && sight.known_for < BOOT)
        {
            self.skip_guest("its agent does not answer", sight);
        }
    }

    /// Leaves all to the host.
    fn skip_guest(&mut self, why: &str, sight: &Sight<'_>) {
        for level in [Level::Application, Level::Guest] {
            self.level(level, Amount::default(), Some(why.to_owned()));
        }
        self.guest = Amount::default();
        self.turn_to_host(sight);
    }

    fn share(&self, (part, of): (u32, u32)) -> Duration {
        Duration::from_millis(self.asked.within_ms) * part / of
    }

    /// How it went, once it is known.
    pub(super) fn outcome(&self) -> Option<&DeflationOutcome> {
        self.outcome.as_ref()
    }

    /// What the VM is to have now.
    fn aim(&self, present: &DesiredPresent) -> Aim {
        let promised = Aim::promised(present);
        let cpu =
            |taken: MilliCores| MilliCores(promised.cpu.get().saturating_sub(taken.get()).max(1));
        let wants = Bytes(promised.memory.get().saturating_sub(self.guest.memory.get()));
        let hold = match self.stage {
            // What is held of it when it is about to have less or more stays until that is known.
            Stage::Settled if self.host == Bytes::ZERO => Hold::Nothing,
            Stage::Settled => Hold::Back { wants, taken: self.host },
            _ => Hold::AsItIs,
        };
        Aim {
            memory: wants,
            hold,
            cpu: if self.throttled { cpu(self.wanted.cpu) } else { promised.cpu },
            vcpus: vcpus_for(cpu(self.guest.cpu)),
            weight: None,
        }
    }

    fn level(&mut self, level: Level, gave: Amount, note: Option<String>) {
        let took_ms = millis(self.stage_began.elapsed());
        self.levels.push(LevelOutcome { level, gave, took_ms, note });
        self.stage_began = Instant::now();
    }

    async fn advance(&mut self, sight: &Sight<'_>) {
        match &mut self.stage {
            Stage::Listening => self.listen(sight),
            Stage::Application(asking) => {
                if !asking.is_finished() {
                    return;
                }
                let answer = asking.await.unwrap_or(Err(GuestCallError::Broken));
                self.application_answered(answer, sight);
            }
            Stage::Guest => self.look_at_guest(sight),
            Stage::Host { paging, taken } => {
                if let Some(task) = paging.take_if(|task| task.is_finished()) {
                    *taken = match task.await {
                        Ok(Ok(taken)) => taken,
                        Ok(Err(error)) => Taken::nothing(ErrorChain(&error).to_string()),
                        Err(_) => Taken::nothing("paging out was cut off".to_owned()),
                    };
                }
                if paging.is_none() {
                    let taken = std::mem::take(taken);
                    self.settle(taken, sight);
                }
            }
            Stage::Settled => self.keep_watch(sight),
        }
    }

    /// The guest's own numbers decide how much its kernel is asked for.
    fn application_answered(
        &mut self,
        answer: Result<DeflateResult, GuestCallError>,
        sight: &Sight<'_>,
    ) {
        let (gave, note, memory) = match answer {
            Ok(result) => {
                let gave = Amount {
                    memory: Bytes(sum(result.hooks.iter().map(|hook| hook.freed_bytes))),
                    cpu: MilliCores(sum(result.hooks.iter().map(|hook| hook.freed_millicores))),
                };
                (gave, about_hooks(&result), Some(result.memory))
            }
            Err(error) => (Amount::default(), Some(ErrorChain(&error).to_string()), None),
        };
        self.level(Level::Application, gave, note);
        self.ask_guest(memory, sight);
    }

    fn ask_guest(&mut self, memory: Option<MemoryFacts>, sight: &Sight<'_>) {
        self.stage = Stage::Guest;
        let memory = memory.or_else(|| sight.facts.map(|facts| facts.memory));
        let spare = memory.map_or(0, |memory| spare(&memory, sight.present.resources.memory));
        // What an earlier deflation holds is no longer available to the guest, and counts too.
        let held = sight.given().get();
        self.guest = Amount {
            memory: pages(self.wanted.memory.min(Bytes(held.saturating_add(spare)))),
            cpu: self.wanted.cpu,
        };
    }

    fn look_at_guest(&mut self, sight: &Sight<'_>) {
        let vcpus = self.aim(sight.present).vcpus;
        let switched = sight.online == Some(vcpus);
        let promised = sight.present.resources.cpu.get();
        let gave = Amount {
            memory: sight.given().min(self.wanted.memory),
            cpu: MilliCores(match sight.online {
                Some(online) => promised.saturating_sub(u64::from(online) * 1000),
                None => 0,
            })
            .min(self.wanted.cpu),
        };
        let given = gave.memory >= self.guest.memory && switched;
        if !given && self.began.elapsed() < self.share(GUEST_PART) {
            return;
        }
        let note = if gave.memory < self.guest.memory {
            Some(format!("its kernel gave {} of {} in time", gave.memory, self.guest.memory))
        } else if !switched {
            Some("it did not switch its vCPUs in time".to_owned())
        } else if self.guest.memory < self.wanted.memory {
            Some("the guest needs the rest itself".to_owned())
        } else {
            None
        };
        // What it has not given by now it keeps: the host takes the rest.
        self.guest.memory = pages(gave.memory);
        self.level(Level::Guest, gave, note);
        self.turn_to_host(sight);
    }

    fn turn_to_host(&mut self, sight: &Sight<'_>) {
        self.throttled = self.wanted.cpu > MilliCores(0);
        let rest = self.wanted.memory.get().saturating_sub(self.guest.memory.get());
        let wants = self.aim(sight.present).memory;
        let holder = sight.holder.clone();
        let paging = (rest > 0)
            .then(|| tokio::task::spawn_blocking(move || holder.take(wants, Bytes(rest))));
        self.stage = Stage::Host { paging, taken: Taken::default() };
    }

    fn settle(&mut self, taken: Taken, sight: &Sight<'_>) {
        let by_guest = self
            .levels
            .iter()
            .find(|level| level.level == Level::Guest)
            .map_or_else(Amount::default, |level| level.gave);
        let rest = self.wanted.saturating_sub(by_guest);
        let limit = self.aim(sight.present).cpu.get();
        let is = sight.limits.and_then(|limits| limits.cpu);
        let held = is.is_some_and(|cpu| cpu.get() <= limit + limit / 100 + 1);
        if rest.cpu > MilliCores(0) && !held && self.stage_began.elapsed() < THROTTLE_LIMIT {
            // The limit is set at one look and read back at the next.
            self.stage = Stage::Host { paging: None, taken };
            return;
        }
        let gave = Amount {
            memory: taken.amount.min(rest.memory),
            cpu: if held { rest.cpu } else { MilliCores(0) },
        };
        self.host = if taken.holds { gave.memory } else { Bytes::ZERO };
        self.level(Level::Host, gave, taken.note);
        self.outcome = Some(DeflationOutcome {
            generation: self.asked.generation,
            wanted: self.wanted,
            levels: self.levels.clone(),
            missing: rest.saturating_sub(gave),
            took_ms: millis(self.began.elapsed()),
        });
        self.stage = Stage::Settled;
    }

    /// A guest that took memory back keeps it; one that is pressed gets an eighth of it.
    fn keep_watch(&mut self, sight: &Sight<'_>) {
        let promised = boot_memory(sight.present.resources.memory);
        let aim = self.aim(sight.present).memory;
        if sight.memory() <= aim {
            self.reached = Some(promised);
        } else if self.reached == Some(promised) {
            self.guest.memory = self.guest.memory.min(sight.given());
        }
        let pressed = sight.facts.is_some_and(|facts| {
            let reserve = reserve(sight.present.resources.memory);
            facts.memory.available_bytes < reserve / 2
                || facts.pressure.is_some_and(|pressure| pressure.memory.some_avg10.0 > PRESSED)
        });
        if pressed && self.guest.memory > Bytes::ZERO {
            let eighth = (self.wanted.memory.get() / 8).max(1 << 20);
            self.guest.memory = pages(Bytes(self.guest.memory.get().saturating_sub(eighth)));
        }
        if let Some(outcome) = &mut self.outcome {
            let guest = outcome.levels.iter_mut().find(|level| level.level == Level::Guest);
            if let Some(guest) = guest
                && guest.gave.memory > self.guest.memory
            {
                let back = guest.gave.memory.get() - self.guest.memory.get();
                guest.note = Some(format!("has {} of it back: it needs it", Bytes(back)));
            }
        }
    }
}

/// What a guest can do without by its own numbers.
fn spare(memory: &MemoryFacts, promised: Bytes) -> u64 {
    memory.available_bytes.saturating_sub(reserve(promised))
}

/// What a balloon can take of an amount: whole pages.
fn pages(amount: Bytes) -> Bytes {
    const PAGE: u64 = 4096;
    Bytes(amount.get() - amount.get() % PAGE)
}

fn reserve(promised: Bytes) -> u64 {
    LEAST_RESERVE.max(promised.get() / 32)
}

fn sum(amounts: impl Iterator<Item = u64>) -> u64 {
    amounts.fold(0, u64::saturating_add)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What hooks said, for people.
fn about_hooks(result: &DeflateResult) -> Option<String> {
    if result.hooks.is_empty() {
        return Some("no application has a hook".to_owned());
    }
    let hooks = result.hooks.iter().map(|hook| match &hook.failure {
        None => format!("{} freed {}", hook.name, Bytes(hook.freed_bytes)),
        Some(failure) => format!("{} failed: {failure}", hook.name),
    });
    Some(hooks.collect::<Vec<_>>().join("; "))
}

//! Divides the host: asks [`plimsoll_reclaim::plan`] how much each VM is to have, and tells the VMs'
//! tasks.
//!
//! ```text
//!   runners --footing--> Reclaimer --plan--> share --> runners (balloon, plugged memory, weight)
//!                         ^     \
//!      /proc: what the host      +--> pages out what guests did not give
//!      holds of each, what is free
//! ```
//!
//! Everything that is decided is decided by `plan`; what is here sees and carries out. It goes on
//! while the manager is away. Where no VM is elastic nothing is divided, and nothing is asked of
//! guests but how they do.

mod counters;
mod ledger;
mod resident;

use std::collections::BTreeMap;
use std::time::Duration;

use plimsoll_api::ErrorChain;
use plimsoll_api::cluster::{HostMemory, MemoryState, VmShare, VmUsage};
use plimsoll_model::{Bytes, Elasticity, HostSpec, MilliCores, VmId};
use plimsoll_reclaim::{DEFAULT_IDLE_TAX, HostView, Memory, Plan, Pressure, State, Target, plan};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use self::ledger::Ledger;
use self::resident::Gauge;
use super::registry::Vms;
use super::runner::{Footing, Share};
use crate::kernel_fields::memory_field;
use crate::pageout::{page_out, swap_free};
use crate::telemetry::{Divided, memory_stall};

/// How often the host is divided: `plan` counts its steps in rounds of about a second.
const ROUND: Duration = Duration::from_secs(1);
/// How often a guest is asked how it does: while it has what it wants, and while it has not.
const ASK_AT_EASE: Duration = Duration::from_secs(5);
const ASK_IN_NEED: Duration = Duration::from_secs(1);
/// Where nothing is to be divided, one round in so many looks at what VMs use: as often as a manager
/// that balances its hosts wants to hear of it.
const IDLE_ROUNDS: u32 = 2;
/// Sizes are rounded up to this.
const UNIT: u64 = 1 << 20;
/// Less than this is not worth paging out.
const LEAST_PAGED_OUT: u64 = 4 << 20;

/// The task that divides a host.
#[derive(Debug)]
pub(crate) struct Reclaimer {
    vms: Vms,
    spec: watch::Receiver<HostSpec>,
    /// What is told of the last division.
    divided: watch::Sender<Divided>,
    memory: Memory,
    ledgers: BTreeMap<VmId, Ledger>,
    gauge: Gauge,
    paging: BTreeMap<VmId, JoinHandle<()>>,
    /// Rounds in which there was nothing to divide.
    idle_rounds: u32,
}

impl Reclaimer {
    pub(crate) fn new(
        vms: Vms,
        spec: watch::Receiver<HostSpec>,
        divided: watch::Sender<Divided>,
    ) -> Self {
        Self {
            vms,
            spec,
            divided,
            memory: Memory::default(),
            ledgers: BTreeMap::new(),
            gauge: Gauge::default(),
            paging: BTreeMap::new(),
            idle_rounds: 0,
        }
    }

    /// Divides the host again and again; never ends.
    pub(crate) async fn run(mut self) {
        let mut rounds = interval(ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            self.round().await;
        }
    }

    async fn round(&mut self) {
        let footings = self.vms.footings();
        let elastic = footings.values().any(|footing| footing.elasticity != Elasticity::Guaranteed);
        self.ledgers
            .retain(|vm, ledger| footings.get(vm).is_some_and(|footing| ledger.is_of(footing)));
        self.paging.retain(|_, task| !task.is_finished());
        if !elastic && !self.looks_around() {
            return;
        }
        let processes: Vec<_> = footings.iter().map(|(vm, footing)| (*vm, footing.qemu)).collect();
        let (gauge, groups) = (std::mem::take(&mut self.gauge), self.vms.cpu_groups());
        let measure = move || gauge.measured(&processes, groups.as_ref());
        let Ok((gauge, sizes)) = tokio::task::spawn_blocking(measure).await else { return };
        self.gauge = gauge;
        // A VM whose process has just ended is left out: its runner will say so.
        let seen: Vec<(VmId, &Footing, resident::Held)> = footings
            .iter()
            .filter_map(|(vm, footing)| Some((*vm, footing, *sizes.get(&footing.qemu)?)))
            .collect();
        self.divided.send_if_modified(|divided| {
            divided.vms =
                seen.iter().map(|(vm, footing, held)| usage(*vm, footing, *held)).collect();
            false
        });
        if !elastic {
            self.rest(&seen);
            return;
        }
        for (vm, footing, held) in &seen {
            self.ledgers.entry(*vm).or_insert_with(|| Ledger::begin(footing)).look(footing, *held);
        }
        let views: Vec<_> = seen
            .iter()
            .filter_map(|(vm, footing, held)| Some(self.ledgers.get(vm)?.view(*vm, footing, *held)))
            .collect();
        tracing::trace!(?views, "seen");
        let host = self.host(seen.iter().map(|(_, _, held)| held.overhead).sum());
        let (plan, memory) = plan(&host, &views, &self.memory);
        drop(views);
        tracing::trace!(?host, ?plan, "divided");
        self.memory = memory;
        for target in &plan.targets {
            if let Some((_, footing, held)) = seen.iter().find(|(vm, ..)| *vm == target.vm) {
                self.carry_out(plan.state, target, footing, *held);
            }
        }
        self.tell(&plan, &seen);
    }

    /// Whether it is time to look at VMs of which none is elastic.
    fn looks_around(&mut self) -> bool {
        self.idle_rounds += 1;
        self.idle_rounds.is_multiple_of(IDLE_ROUNDS)
    }

    /// Nothing is to be divided: everybody has what was promised.
    fn rest(&mut self, seen: &[(VmId, &Footing, resident::Held)]) {
        if self.divided.borrow().memory.is_some() {
            seen.iter().for_each(|(vm, ..)| self.vms.give(*vm, None));
            self.divided.send_modify(|divided| divided.memory = None);
            (self.ledgers, self.memory) = (BTreeMap::new(), Memory::default());
        }
    }

    fn host(&self, overhead: u64) -> HostView {
        let capacity = self.spec.borrow().capacity.clone();
        let meminfo = fs_err::read_to_string("/proc/meminfo").unwrap_or_default();
        HostView {
            memory: capacity.memory,
            overhead: Bytes(overhead),
            available: memory_field(&meminfo, "MemAvailable").unwrap_or_default(),
            swap_free: swap_free().unwrap_or_default(),
            cpu: capacity.cpu,
            pressure: host_pressure(),
            idle_tax: DEFAULT_IDLE_TAX,
        }
    }

    fn carry_out(
        &mut self,
        state: State,
        target: &Target,
        footing: &Footing,
        held: resident::Held,
    ) {
        let Some(ledger) = self.ledgers.get_mut(&target.vm) else { return };
        let promised = footing.promised.memory;
        // Whole units: what is said, asked for and read back is the same number.
        let memory = Bytes(target.memory.get().next_multiple_of(UNIT)).min(promised);
        let at_ease = state == State::High && memory >= promised;
        let decision = ledger.allocate(VmShare {
            memory,
            taken: promised.saturating_sub(memory),
            cpu_weight: target.cpu_weight,
            reasons: target.reasons.iter().map(ToString::to_string).collect(),
        });
        let ask_every = if at_ease { ASK_AT_EASE } else { ASK_IN_NEED };
        self.vms.give(target.vm, Some(Share { decision, promised, ask_every }));
        let Some(resident) = target.resident else { return };
        let wanted = held.resident.saturating_sub(resident.0);
        if wanted < LEAST_PAGED_OUT || self.paging.contains_key(&target.vm) {
            return;
        }
        let (vm, qemu) = (target.vm, footing.qemu);
        let task = tokio::task::spawn_blocking(move || match page_out(qemu, Bytes(wanted)) {
            Ok(went) => tracing::info!(%vm, %went, "paged out"),
            Err(error) => tracing::warn!(%vm, error = %ErrorChain(&error), "cannot page out"),
        });
        self.paging.insert(vm, task);
    }

    fn tell(&self, plan: &Plan, seen: &[(VmId, &Footing, resident::Held)]) {
        let reclaimed = seen.iter().zip(&plan.targets).map(|((_, footing, _), target)| {
            footing.promised.memory.saturating_sub(target.memory).0
        });
        let state = match plan.state {
            State::High => MemoryState::High,
            State::Soft => MemoryState::Soft,
            State::Hard => MemoryState::Hard,
            State::Low => MemoryState::Low,
        };
        let reclaimed = Bytes(reclaimed.sum());
        let shortfall = plan.shortfall;
        self.divided.send_if_modified(|divided| {
            let before = divided.memory.map(|memory| (memory.state, memory.shortfall));
            divided.memory = Some(HostMemory { state, free: plan.free, reclaimed, shortfall });
            before != Some((state, shortfall))
        });
    }
}

fn usage(vm: VmId, footing: &Footing, held: resident::Held) -> VmUsage {
    let said = footing.facts.as_ref().map(|facts| facts.memory.used_bytes());
    let resident = Bytes(held.resident);
    let memory = said.map_or(resident, Bytes).min(footing.promised.memory);
    VmUsage { vm, cpu: MilliCores(held.cpu), memory, resident, rates: held.rates }
}

/// The host's own pressure; none where its kernel does not tell.
fn host_pressure() -> Pressure {
    let stall = memory_stall().unwrap_or_default();
    Pressure { some: stall.some_permille, full: stall.full_permille }
}

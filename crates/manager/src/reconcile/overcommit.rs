//! Reckons what each host can be promised beyond what it has.
//!
//! What hosts report of their VMs' use is remembered, a maximum for each slot, by
//! [`plimsoll_reclaim::predict`]. From it follows, at the risk that the settings state, what the
//! elastic VMs of a host will ask for together; what they are promised beyond that is lent to
//! newcomers ([`loan`]). Guaranteed VMs, and those that do not run, count with all that they are
//! promised, and so does every VM of whose kind nothing is known yet.
//!
//! Histories live in memory only: a new manager lends nothing until it has seen VMs at work. Loans
//! that were made stay made; nobody is moved or stopped because one shrank.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use parking_lot::Mutex;
use plimsoll_model::{Amount, Bytes, Elasticity, HostId, MilliCores, VmId, VmPhase};
use plimsoll_placement::Request;
use plimsoll_reclaim::predict::{
    Horizon, Predictor, Risk,
    admit::{Room, loan},
};

use crate::{
    app::AppError,
    core::{
        Core, State,
        record::{Claim, HostRecord, VmRecord},
    },
};

/// Loans are of whole MiB and hundredths of a core.
const MEMORY_STEP: u64 = 1 << 20;
const CPU_STEP: u64 = 10;
/// A loan grows only by as much as a part in so many of the capacity: one that flutters would have
/// every waiting VM tried again and again.
const LEAST_GROWTH: u64 = 100;

/// How often is looked at what VMs use: other reconcilers' nudges are no reason to.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
const LOOKS_IN_SLOT: u32 = 30;

/// What is remembered from one look to the next.
#[derive(Debug, Default)]
pub(crate) struct Overcommitter {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    slot_s: u32,
    /// When it was looked last.
    looked: Option<Duration>,
    predictor: Predictor,
    vms: BTreeSet<VmId>,
    /// For which slot, and holding what, each host was reckoned last.
    reckoned: BTreeMap<HostId, (u64, Amount, Amount)>,
}

impl Overcommitter {
    pub(crate) async fn reconcile(&self, core: Core) -> Result<String, AppError> {
        let state = core.snapshot();
        let slot_s = state.settings().slot_s;
        let seconds = core.now().as_second();
        let slot = u64::try_from(seconds).unwrap_or(0) / u64::from(slot_s.max(1));
        let loans = {
            let mut known = self.known.lock();
            if known.slot_s != slot_s {
                *known = Known { slot_s, ..Known::default() };
            }
            let pause = LEAST_PAUSE.max(Duration::from_secs(slot_s.into()) / LOOKS_IN_SLOT);
            let now = core.monotonic();
            if known.looked.is_some_and(|looked| now < looked.saturating_add(pause)) {
                return Ok("waits for news".to_owned());
            }
            known.looked = Some(now);
            known.observe(&core, &state, slot);
            known.loans(&core, &state, slot)
        };
        let lent = loans.values().filter(|loan| **loan != Amount::default()).count();
        let loans: BTreeMap<HostId, Amount> = loans
            .into_iter()
            .filter(|(host, loan)| {
                state.host(*host).is_some_and(|record| is_worth_it(record, *loan))
            })
            .collect();
        let changed = loans.len();
        if changed > 0 {
            core.submit(None, move |txn| {
                for (host, loan) in loans {
                    if let Some(record) = txn.state.host(host).cloned() {
                        txn.put_host(HostRecord { loan, ..(*record).clone() });
                    }
                }
                Ok(())
            })
            .await?;
            core.nudge();
        }
        Ok(format!("{lent} hosts lend, {changed} loans changed"))
    }
}

fn is_worth_it(record: &HostRecord, loan: Amount) -> bool {
    let capacity = &record.host.spec.capacity;
    let is_less = loan.cpu < record.loan.cpu || loan.memory < record.loan.memory;
    is_less
        || loan.cpu.0 > record.loan.cpu.0 + capacity.cpu.0 / LEAST_GROWTH
        || loan.memory.0 > record.loan.memory.0 + capacity.memory.0 / LEAST_GROWTH
}

/// What a VM that runs, and is elastic, holds of a host.
fn elastic(record: &VmRecord) -> Option<Amount> {
    let spec = &record.vm.spec;
    let runs = record.vm.phase == VmPhase::Running && record.claim == Claim::Full;
    let size = Amount { memory: spec.resources.memory, cpu: spec.resources.cpu };
    (runs && spec.elasticity != Elasticity::Guaranteed).then_some(size)
}

impl Known {
    fn observe(&mut self, core: &Core, state: &State, slot: u64) {
        let mut seen = BTreeSet::new();
        for host in state.hosts.keys() {
            let used = core.telemetry().with(*host, |telemetry| telemetry.vm_usage.clone());
            for usage in used {
                let Some(record) = state.vm(usage.vm) else { continue };
                if record.host() != Some(*host) {
                    continue;
                }
                let resources = &record.vm.spec.resources;
                let size = Amount { memory: resources.memory, cpu: resources.cpu };
                let used = Amount { memory: usage.memory, cpu: usage.cpu };
                self.predictor.observe(slot, usage.vm, size, used);
                seen.insert(usage.vm);
            }
        }
        for gone in self.vms.iter().filter(|vm| state.vm(**vm).is_none()) {
            self.predictor.forget(*gone);
        }
        self.vms.retain(|vm| state.vm(*vm).is_some());
        self.vms.extend(seen);
    }

    /// The loans of those hosts for which there is something new.
    fn loans(&mut self, core: &Core, state: &State, slot: u64) -> BTreeMap<HostId, Amount> {
        let settings = state.settings();
        let (cpu, memory) = (settings.risk_cpu.as_f64(), settings.risk_memory.as_f64());
        let risk = Risk { cpu, memory };
        let mut loans = BTreeMap::new();
        self.reckoned.retain(|host, _| state.host(*host).is_some());
        for (host, record) in &state.hosts {
            if risk == Risk::NONE {
                if record.loan != Amount::default() {
                    loans.insert(*host, Amount::default());
                }
                continue;
            }
            let mut committed = Amount::default();
            let mut minimum = Amount::default();
            let mut sizes = Vec::new();
            for vm in state.vms_of_host(*host) {
                let amount = |request: &Request| Amount {
                    memory: request.demand.memory,
                    cpu: request.demand.cpu,
                };
                // What is on its way here counts in full until it has arrived.
                if let Some((_, request)) = vm.arrival_entry().filter(|(to, _)| to == host) {
                    committed = committed.saturating_add(amount(&request));
                    minimum = minimum.saturating_add(amount(&request));
                }
                let Some((on, request)) = vm.entry() else { continue };
                if on != *host {
                    continue;
                }
                let held = amount(&request);
                committed = committed.saturating_add(held);
                match elastic(vm) {
                    Some(size) => {
                        minimum = minimum.saturating_add(held.saturating_sub(vm.yielding()));
                        sizes.push((vm.vm.id, size));
                    }
                    None => minimum = minimum.saturating_add(held),
                }
            }
            let key = (slot, committed, minimum);
            if self.reckoned.insert(*host, key) == Some(key) {
                continue;
            }
            let promised =
                sizes.iter().fold(Amount::default(), |sum, (_, size)| sum.saturating_add(*size));
            // Others, and what VMs cost beside their own, as it is promised.
            let fixed = committed.saturating_sub(promised);
            let peak = self.predictor.peak(&sizes, risk, Horizon::Week).usage.saturating_add(fixed);
            let swap = core.telemetry().with(*host, |telemetry| telemetry.usage.swap);
            let capacity = &record.host.spec.capacity;
            let room = Room {
                capacity: Amount { memory: capacity.memory, cpu: capacity.cpu },
                refuge: swap,
            };
            let lent = loan(&room, committed, minimum, peak);
            let memory = if risk.memory > 0.0 { lent.memory.0 } else { 0 };
            let cpu = if risk.cpu > 0.0 { lent.cpu.0 } else { 0 };
            let lent = Amount {
                memory: Bytes(memory - memory % MEMORY_STEP),
                cpu: MilliCores(cpu - cpu % CPU_STEP),
            };
            loans.insert(*host, lent);
        }
        loans
    }
}

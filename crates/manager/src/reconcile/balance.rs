//! Moves VMs off hosts that run hot, or only says what it would do.
//!
//! ```text
//!   reports --samples--> Balancer (pure) --plan--> shown; carried out in the mode `automatic`
//! ```
//!
//! A sample is taken of each report. What counts as a host's use is what its VMs use: several hosts of
//! a lab share one machine, and what else runs on a real one was kept back from its capacity. A plan is
//! made when a host or a VM may be in need, on a copy of placement's books as the published state has
//! them; each of its moves is decided again in the transaction that begins it. Only steps that wait for
//! no other are begun: when they are over, what is left is planned anew.
//!
//! [`signals`] has what else is made of reports.
//!
//! A resize is a deflation, or its end: what is promised stays promised. One that a user has asked for
//! is never touched.

pub(crate) mod signals;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use plimsoll_api::{
    cluster::VmUsage,
    migration::MigrationLimits,
    v1::{BalanceMode, BalanceSettings, MigrationCause},
};
use plimsoll_balance::{
    Action, Balancer, Fixed, GuestWord, Latency, Permille, Plan, Settings, Situation, VmSample,
    VmState,
};
use plimsoll_model::{
    Amount, Bytes, BytesPerSecond, Deflation, DiskLocation, Elasticity, EventKind, HostId,
    HostPhase, Level, MilliCores, Severity, Timestamp, VmId, VmPhase,
};

use self::signals::HostSum;
use crate::{
    admission::migrate::{self, Wish},
    app::AppError,
    core::{
        Core, State, load,
        record::{HostRecord, VmRecord},
        txn::Txn,
    },
};

/// How often hosts report while their VMs are balanced.
pub(crate) const REPORT_MS: u64 = 2_000;
/// Between two plans, while nothing changes.
const LEAST_PAUSE: Duration = Duration::from_secs(2);
/// A VM whose move failed is left alone for so long.
const FAILED_PAUSE: Duration = Duration::from_secs(60);
/// A deflation by balancing takes effect within this.
const RESIZE_MS: u64 = 5_000;

/// What is remembered from one look to the next.
#[derive(Debug)]
pub(crate) struct Balance {
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    settings: BalanceSettings,
    balancer: Balancer,
    /// When the last report of each host came that was looked at.
    received: BTreeMap<HostId, Duration>,
    /// Where each VM was last seen.
    places: BTreeMap<VmId, HostId>,
    /// VMs that could not be moved, and until when they are spared.
    spared: BTreeMap<VmId, Duration>,
    planned: Option<Duration>,
    last: Option<(Timestamp, Plan)>,
    begun: u64,
}

/// What there is to show.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown {
    pub(crate) plan: Option<(Timestamp, Plan)>,
    pub(crate) begun: u64,
}

impl Default for Balance {
    fn default() -> Self {
        let settings = BalanceSettings::default();
        let known = Known {
            settings,
            balancer: Balancer::new(rules(&settings)),
            received: BTreeMap::new(),
            places: BTreeMap::new(),
            spared: BTreeMap::new(),
            planned: None,
            last: None,
            begun: 0,
        };
        Self { known: Mutex::new(known) }
    }
}

/// The decider's settings, from the cluster's.
fn rules(settings: &BalanceSettings) -> Settings {
    Settings {
        threshold: Permille(u32::from(settings.threshold_percent) * 10),
        cooldown: Duration::from_secs(settings.cooldown_s.into()),
        moves_at_once: settings.moves_at_once,
        ..Settings::default()
    }
}

/// What a plan is made with.
struct Asked {
    balancer: Balancer,
    state: Arc<State>,
    vms: BTreeMap<VmId, VmState>,
    now: Duration,
}

impl Balance {
    pub(crate) async fn reconcile(&self, core: Core) -> Result<String, AppError> {
        let state = core.snapshot();
        let settings = state.settings().balance;
        if settings.mode == BalanceMode::Off {
            *self.known.lock() = Self::default().known.into_inner();
            return Ok("off".to_owned());
        }
        let now = core.monotonic();
        let asked = {
            let mut known = self.known.lock();
            known.set(settings);
            let news = known.observe(&core, &state, now);
            let due = known.planned.is_none_or(|then| now >= then.saturating_add(LEAST_PAUSE));
            if !news || !due {
                return Ok("waits for news".to_owned());
            }
            known.planned = Some(now);
            known.asked(&core, &state, now)
        };
        let plan = make(asked).await?;
        self.known.lock().last = Some((core.now(), plan.clone()));
        let found = plan.hotspots.len() + plan.needs.len();
        if settings.mode != BalanceMode::Automatic {
            return Ok(format!("{found} overloads, {} steps advised", plan.steps.len()));
        }
        let begun = self.carry_out(&core, &plan).await?;
        Ok(format!("{found} overloads, {begun} of {} steps begun", plan.steps.len()))
    }

    /// A plan on what is known now, whatever the mode.
    pub(crate) async fn plan_now(&self, core: &Core) -> Result<(Timestamp, Plan), AppError> {
        let (state, now) = (core.snapshot(), core.monotonic());
        let asked = {
            let mut known = self.known.lock();
            known.set(state.settings().balance);
            known.observe(core, &state, now);
            known.asked(core, &state, now)
        };
        let made = (core.now(), make(asked).await?);
        self.known.lock().last = Some(made.clone());
        Ok(made)
    }

    /// Begins the steps of a plan that wait for no other; how many it has begun.
    pub(crate) async fn carry_out(&self, core: &Core, plan: &Plan) -> Result<usize, AppError> {
        let mut begun = 0;
        for step in plan.steps.iter().filter(|step| step.after.is_empty()) {
            let action = step.action;
            let done = core
                .submit(None, move |txn| match action {
                    Action::Move { vm, to, .. } => begin_move(txn, vm, to),
                    Action::Resize { vm, to, .. } => resize(txn, vm, to),
                })
                .await;
            let mut known = self.known.lock();
            match done {
                Ok(()) => {
                    begun += 1;
                    known.begun += 1;
                    if let Action::Resize { vm, from, to, .. } = action {
                        known.balancer.resized(vm, from, to);
                    }
                }
                Err(error) => {
                    let vm = action.vm();
                    tracing::info!(%vm, error = %error.in_full(), "a step is not taken");
                    known.spared.insert(vm, core.monotonic().saturating_add(FAILED_PAUSE));
                }
            }
        }
        Ok(begun)
    }

    /// What there is to show.
    pub(crate) fn shown(&self) -> Shown {
        let known = self.known.lock();
        Shown { plan: known.last.clone(), begun: known.begun }
    }
}

async fn make(asked: Asked) -> Result<Plan, AppError> {
    let made = tokio::task::spawn_blocking(move || {
        let cluster =
            load::cluster(&asked.state).map_err(|error| AppError::NoPlan(error.into()))?;
        let moves = u32::try_from(asked.state.migrating.len()).unwrap_or(u32::MAX);
        let situation = Situation {
            cluster: &cluster,
            vms: &asked.vms,
            moves_running: moves,
            policy: asked.state.settings().policy,
            now: asked.now,
        };
        Ok(asked.balancer.plan(&situation))
    });
    made.await.map_err(|error| AppError::NoPlan(error.into()))?
}

impl Known {
    fn set(&mut self, settings: BalanceSettings) {
        if self.settings != settings {
            self.balancer.set(rules(&settings));
            self.settings = settings;
        }
    }

    /// Takes a sample of each report that is new; whether there was one.
    fn observe(&mut self, core: &Core, state: &State, now: Duration) -> bool {
        let mut news = false;
        self.note_moves(state, now);
        for (host, record) in &state.hosts {
            if record.host.phase != HostPhase::Up {
                continue;
            }
            let (received, rates, usage) = core.telemetry().with(*host, |telemetry| {
                (telemetry.received, telemetry.usage.rates, telemetry.vm_usage.clone())
            });
            if self.received.insert(*host, received) == Some(received) {
                continue;
            }
            news = true;
            let used = self.observe_vms(core, state, *host, &usage, now).with(&rates);
            let has = signals::known(&record.host.spec.capacity, &rates);
            self.balancer.observe_host(now, *host, &has, &used);
        }
        let vms = &state.vms;
        self.balancer.retain(|host| state.hosts.contains_key(&host), |vm| vms.contains_key(&vm));
        self.received.retain(|host, _| state.hosts.contains_key(host));
        self.spared.retain(|vm, until| *until > now && vms.contains_key(vm));
        news
    }

    /// VMs that are elsewhere than they were, or whose last move failed.
    fn note_moves(&mut self, state: &State, now: Duration) {
        let mut places = BTreeMap::new();
        for (vm, record) in &state.vms {
            let Some(host) = record.host() else { continue };
            if let Some(before) = self.places.get(vm).filter(|before| **before != host) {
                self.balancer.moved(now, *vm, *before, host);
            }
            places.insert(*vm, host);
        }
        self.places = places;
    }

    /// Notes what VMs use; the sum, which is what their host uses.
    fn observe_vms(
        &mut self,
        core: &Core,
        state: &State,
        host: HostId,
        usage: &[VmUsage],
        now: Duration,
    ) -> HostSum {
        let mut sum = HostSum::nothing();
        let mut seen = BTreeSet::new();
        for used in usage {
            let Some(record) = state.vm(used.vm).filter(|vm| vm.host() == Some(host)) else {
                continue;
            };
            if !seen.insert(used.vm) {
                continue;
            }
            let has = has(record);
            let usage = signals::of_vm(used, has, record.migration.is_some());
            sum.add(&usage, &used.rates);
            let guest = guest_word(core, host, used.vm);
            let sample = VmSample { usage, guest, memory_written: None };
            self.balancer.observe_vm(now, used.vm, has, &sample);
        }
        sum
    }

    fn asked(&self, core: &Core, state: &Arc<State>, now: Duration) -> Asked {
        let vms = state
            .vms
            .iter()
            .filter(|(_, record)| record.host().is_some())
            .map(|(vm, record)| (*vm, self.vm_state(core, record, now)))
            .collect();
        Asked { balancer: self.balancer.clone(), state: Arc::clone(state), vms, now }
    }

    fn vm_state(&self, core: &Core, record: &VmRecord, now: Duration) -> VmState {
        let spec = &record.vm.spec;
        let promised = Amount { memory: spec.resources.memory, cpu: spec.resources.cpu };
        let has = has(record);
        let by_user = record.vm.deflation.is_some() && !record.balanced_deflation;
        let elastic = spec.elasticity != Elasticity::Guaranteed && !by_user;
        let (memory_min, cpu_min) = spec.elasticity.minimum(promised.memory, promised.cpu);
        // Memory is divided by the host itself, once a second: here it is about CPU.
        let least =
            if elastic { Amount { memory: has.memory, cpu: cpu_min.min(has.cpu) } } else { has };
        debug_assert!(memory_min <= promised.memory);
        let most = if by_user { has } else { promised };
        let held = record.host().and_then(|host| core.telemetry().usage_of(host, record.vm.id));
        let disk = match &record.vm.disk {
            Some(DiskLocation::Pool { .. }) => Bytes(0),
            Some(DiskLocation::Host { .. }) | None => spec.resources.disk,
        };
        let resident = held.map_or(promised.memory, |usage| usage.resident);
        VmState {
            has,
            least,
            most,
            to_send: resident.saturating_add(disk),
            fixed: self.fixed(record, now),
        }
    }

    fn fixed(&self, record: &VmRecord, now: Duration) -> Option<Fixed> {
        let runs = record.vm.phase == VmPhase::Running;
        let spared = self.spared.get(&record.vm.id).is_some_and(|until| *until > now);
        if record.migration.is_some() {
            Some(Fixed::Moving)
        } else if !runs || spared || !record.cleanups.is_empty() {
            Some(Fixed::Busy)
        } else if !record.devices.is_empty() {
            Some(Fixed::Devices)
        } else {
            None
        }
    }
}

/// What a VM can use now: what it is promised, less what is taken from it.
pub(crate) fn has(record: &VmRecord) -> Amount {
    let promised = &record.vm.spec.resources;
    let Some(deflation) = &record.vm.deflation else {
        return Amount { memory: promised.memory, cpu: promised.cpu };
    };
    let left = |amount: u64, percent: u8| {
        amount.saturating_sub(amount / 100 * u64::from(percent.min(100)))
    };
    Amount {
        memory: Bytes(left(promised.memory.0, deflation.memory_percent)),
        cpu: MilliCores(left(promised.cpu.0, deflation.cpu_percent)),
    }
}

/// What a guest and its application say.
fn guest_word(core: &Core, host: HostId, vm: VmId) -> GuestWord {
    let seen = core.telemetry().seen(host, vm);
    let Some(facts) = seen.and_then(|seen| seen.observed.guest) else {
        return GuestWord::default();
    };
    let latency = facts.latency.map(|latency| Latency {
        seen: Duration::from_micros(latency.seen_us),
        objective: Duration::from_micros(latency.objective_us),
    });
    let word = GuestWord {
        memory_available: Some(Bytes(facts.memory.available_bytes)),
        latency,
        ..GuestWord::default()
    };
    facts.pressure.map_or(word, |stalls| signals::stalls(word, stalls.cpu, stalls.memory))
}

fn begin_move(txn: &mut Txn<'_>, vm: VmId, to: HostId) -> Result<(), AppError> {
    let Some(record) = txn.state.vm(vm).cloned() else { return Ok(()) };
    let limits =
        MigrationLimits { bandwidth: BytesPerSecond(1 << 30), ..MigrationLimits::default() };
    migrate::begin(txn, &record, Wish { to: Some(to), limits, cause: MigrationCause::Balance })
}

/// Leaves a VM so much of its CPU, for a time, or all again.
fn resize(txn: &mut Txn<'_>, vm: VmId, to: Amount) -> Result<(), AppError> {
    let Some(record) = txn.state.vm(vm).cloned() else { return Ok(()) };
    if record.migration.is_some() || (record.vm.deflation.is_some() && !record.balanced_deflation) {
        return Ok(());
    }
    let promised = record.vm.spec.resources.cpu;
    let taken = promised.0.saturating_sub(to.cpu.0);
    let percent = u8::try_from(taken.saturating_mul(100) / promised.0.max(1)).unwrap_or(0).min(90);
    let mut new = (*record).clone();
    new.vm.generation += 1;
    new.vm.deflation = (percent > 0).then_some(Deflation {
        generation: new.vm.generation,
        memory_percent: 0,
        cpu_percent: percent,
        within_ms: RESIZE_MS,
        from: Level::Host,
    });
    new.balanced_deflation = percent > 0;
    if new.vm.deflation.map(|taken| taken.cpu_percent) == record.vm.deflation.map(|t| t.cpu_percent)
    {
        return Ok(());
    }
    let message = if percent > 0 {
        format!("does with {percent} % less CPU while its host is overloaded for a short time")
    } else {
        "has all of its CPU again".to_owned()
    };
    let kind = if percent > 0 { EventKind::VmReclaimed } else { EventKind::VmRestored };
    txn.vm_event(Severity::Info, kind, &new, message);
    txn.put_vm(new);
    Ok(())
}

/// How busy a host is by what its VMs use: shares of its CPU and its memory.
pub(crate) fn load_of(core: &Core, record: &HostRecord) -> (f64, f64) {
    let used = core.telemetry().with(record.host.id, |telemetry| telemetry.vm_usage.clone());
    let cpu: u64 = used.iter().map(|vm| vm.cpu.0).sum();
    let memory: u64 = used.iter().map(|vm| vm.memory.0).sum();
    let capacity = &record.host.spec.capacity;
    let share = |used: u64, has: u64| if has == 0 { 0.0 } else { used as f64 / has as f64 };
    (share(cpu, capacity.cpu.0), share(memory, capacity.memory.0))
}

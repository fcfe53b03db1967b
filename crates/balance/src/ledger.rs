//! The books of a plan: where VMs will be, and how hosts will do, after the steps so far.
//!
//! A VM that leaves is replaced by its *shadow*, a VM with another id that is promised the same under
//! the same rules, until the plan ends. So whatever is decided afterwards would also hold if the VM
//! were still there: steps can be taken in any order and at the same time. A step that needs the room
//! that another makes says so ([`crate::Step::after`]), and only for its decision the shadow is away.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_model::{HostId, VmId};
use plimsoll_placement::{Choice, Cluster, Placed, Refusal, Request, Unschedulable};

use crate::{
    balancer::{Balancer, Situation},
    hotspot::shares,
    plan::{Cost, Forecast, RefusedMove, Tried},
    resource::{Amounts, NOTHING, Permille, RESOURCES, Resource, Utilisation, capacities},
    settings::Settings,
};

/// How many hosts are looked at for one VM, as far as their loads go.
const LOOKS_AT_LOADS: usize = 1024;

/// How many hosts placement is asked about for one VM.
const LOOKS_AT_RULES: usize = 128;

/// Of so many hosts that will do the best is taken.
const CHOICES: usize = 4;

/// A cost that every move has beside what it sends: it begins, and it ends.
const FIXED_COST_MS: f64 = 1000.0;

/// A guest that writes faster than this share of the bandwidth is reckoned with this share: then it
/// is slowed down, or moved by post-copy.
const MOST_WRITTEN: f64 = 0.9;

/// How a host will do.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) host: HostId,
    pub(crate) asked: Amounts,
    pub(crate) capacity: Amounts,
    /// Whether VMs leave it in this plan: then no others come.
    leaves: bool,
    /// Whether placement takes new VMs there.
    open: bool,
}

impl Load {
    pub(crate) fn shares(&self) -> Amounts {
        shares(&self.asked, &self.capacity)
    }

    /// By how much it is overloaded, summed over its resources, if so much leaves and comes.
    pub(crate) fn overload(&self, settings: &Settings) -> f64 {
        overload(&self.shares(), settings)
    }

    /// How full the fullest of its resources is, measured by how full it may be.
    fn fullness(&self, settings: &Settings) -> f64 {
        fullness(&self.shares(), settings)
    }

    /// What is asked for when this leaves and that comes.
    pub(crate) fn changed(&self, leaves: &Amounts, comes: &Amounts) -> Amounts {
        let mut asked = self.asked;
        for (asked, (leaves, comes)) in asked.iter_mut().zip(leaves.iter().zip(comes)) {
            if let Some(asked) = asked {
                *asked = (*asked - leaves.unwrap_or(0.0)).max(0.0) + comes.unwrap_or(0.0);
            }
        }
        asked
    }

    pub(crate) fn is_measured(&self) -> bool {
        self.asked.iter().any(Option::is_some)
    }

    /// The shares then.
    pub(crate) fn shares_if(&self, leaves: &Amounts, comes: &Amounts) -> Amounts {
        shares(&self.changed(leaves, comes), &self.capacity)
    }

    /// Whether all that is measured of a VM is measured of the host, if it accounts for it.
    pub(crate) fn knows(&self, vm: &Amounts) -> bool {
        (0..RESOURCES)
            .all(|i| vm[i].is_none() || self.capacity[i].is_none() || self.asked[i].is_some())
    }
}

pub(crate) fn overload(shares: &Amounts, settings: &Settings) -> f64 {
    let over = |resource: Resource| {
        let share = shares[resource.index()]?;
        Some((share - settings.threshold_of(resource).share()).max(0.0))
    };
    Resource::ALL.into_iter().filter_map(over).sum()
}

fn fullness(shares: &Amounts, settings: &Settings) -> f64 {
    let full = |resource: Resource| {
        let limit = settings.limit_of(resource).share();
        shares[resource.index()].map(|share| share / limit)
    };
    Resource::ALL.into_iter().filter_map(full).fold(0.0, f64::max)
}

/// A host for a VM.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) at: usize,
    pub(crate) choice: Choice,
    pub(crate) gain: f64,
}

/// What a VM asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) vm: VmId,
    /// As far as it is measured: so much is missing where it leaves.
    pub(crate) leaves: Amounts,
    /// What it was promised where it is not measured: so much is expected where it comes.
    pub(crate) comes: Amounts,
}

/// A move that was entered, and can be taken back.
#[derive(Debug)]
pub(crate) struct Entry {
    placed: Placed,
    shadow: VmId,
    from: usize,
    to: usize,
    asked: [Amounts; 2],
    left_before: bool,
}

impl Entry {
    /// The VM that moves.
    pub(crate) const fn vm(&self) -> VmId {
        self.placed.request.vm
    }
}

pub(crate) struct Ledger<'a> {
    pub(crate) balancer: &'a Balancer,
    pub(crate) situation: &'a Situation<'a>,
    pub(crate) cluster: Cluster,
    pub(crate) loads: Vec<Load>,
    at: BTreeMap<HostId, usize>,
    /// The hosts that may be targets, by how full they are.
    coolest: BTreeSet<(u64, usize)>,
    pub(crate) looks: u32,
}

impl<'a> Ledger<'a> {
    pub(crate) fn new(balancer: &'a Balancer, situation: &'a Situation<'a>) -> Self {
        let mut ledger = Self {
            balancer,
            situation,
            cluster: situation.cluster.clone(),
            loads: Vec::new(),
            at: BTreeMap::new(),
            coolest: BTreeSet::new(),
            looks: 0,
        };
        for host in situation.cluster.hosts() {
            let record = balancer.hosts.get(&host.id);
            ledger.at.insert(host.id, ledger.loads.len());
            ledger.loads.push(Load {
                host: host.id,
                asked: record.map(|record| record.series.next()).unwrap_or_default(),
                capacity: record
                    .map_or_else(|| capacities(&host.capacity), |record| record.capacity),
                leaves: false,
                open: host.unschedulable.is_none(),
            });
            ledger.file(ledger.loads.len() - 1);
        }
        ledger
    }

    pub(crate) const fn settings(&self) -> &'a Settings {
        &self.balancer.settings
    }

    pub(crate) fn find(&self, host: HostId) -> Option<usize> {
        self.at.get(&host).copied()
    }

    /// Whether the plan may take no more looks.
    pub(crate) const fn is_spent(&self) -> bool {
        self.looks >= self.balancer.settings.most_looks
    }

    fn key(&self, at: usize) -> (u64, usize) {
        // The bits of numbers that are not negative are in the order of the numbers.
        (self.loads[at].fullness(self.settings()).to_bits(), at)
    }

    fn file(&mut self, at: usize) {
        let load = &self.loads[at];
        if load.open && !load.leaves && load.is_measured() {
            self.coolest.insert(self.key(at));
        }
    }

    fn unfile(&mut self, at: usize) {
        self.coolest.remove(&self.key(at));
    }

    /// The sum of what hosts are overloaded by.
    pub(crate) fn overload(&self) -> Permille {
        Permille::of(self.loads.iter().map(|load| load.overload(self.settings())).sum())
    }

    /// What a VM asks for.
    pub(crate) fn ask(&self, vm: VmId) -> Ask {
        let leaves = self.balancer.asked(vm);
        let comes = self
            .situation
            .cluster
            .placed(vm)
            .map_or(leaves, |placed| self.balancer.may_ask(vm, &placed.request.demand));
        Ask { vm, leaves, comes }
    }

    /// What a move of it costs: pre-copy sends again what is written meanwhile, and again what is
    /// written while that is sent: `size / (1 - written / bandwidth)`.
    pub(crate) fn cost(&self, vm: VmId) -> Cost {
        let bandwidth = self.settings().bandwidth.0.max(1) as f64;
        let written = self.balancer.vms.get(&vm).and_then(|record| record.last.memory_written);
        let written = written.map_or(0.0, |written| written.0 as f64 / bandwidth);
        let size = self.situation.vms.get(&vm).map_or(0, |state| state.to_send.0) as f64;
        let bytes = size / (1.0 - written.min(MOST_WRITTEN));
        let milliseconds = bytes / bandwidth * 1000.0 + FIXED_COST_MS;
        Cost { bytes: plimsoll_model::Bytes(whole(bytes)), expected_ms: whole(milliseconds) }
    }

    /// What is gained by a move, in shares of a host, if the target may be so full.
    pub(crate) fn gain(&self, ask: &Ask, from: usize, to: usize) -> f64 {
        let settings = self.settings();
        let (source, target) = (&self.loads[from], &self.loads[to]);
        let now = source.overload(settings) + target.overload(settings);
        let then = overload(&source.shares_if(&ask.leaves, &NOTHING), settings)
            + overload(&target.shares_if(&NOTHING, &ask.comes), settings);
        now - then
    }

    /// Whether a host stays as cool as targets must.
    pub(crate) fn is_cool(&self, shares: &Amounts) -> bool {
        fullness(shares, self.settings()) <= 1.0
    }

    /// Whether no VM is on a host.
    fn is_empty(&self, at: usize) -> bool {
        self.cluster.vms_on(self.loads[at].host).next().is_none()
    }

    /// Whether placement lets a VM go to a host.
    pub(crate) fn may_go(&mut self, vm: VmId, to: usize) -> Option<Result<Choice, Refusal>> {
        self.looks = self.looks.saturating_add(1);
        let request = &self.cluster.placed(vm)?.request;
        self.cluster.decide_on(request, self.loads[to].host, self.situation.policy)
    }

    /// The best host for a VM: of the coolest that will do the one that breaks the fewest of its
    /// preferred rules, and then the one that is the least full afterwards. `worth` says what would be
    /// gained at a host, and none where that is too little.
    pub(crate) fn best_target(
        &mut self,
        ask: &Ask,
        from: usize,
        tried: &mut Tried,
        worth: impl Fn(&Self, usize) -> Option<f64>,
    ) -> Option<Target> {
        let mut fits = Vec::new();
        for (_, at) in self.coolest.iter().take(LOOKS_AT_LOADS) {
            let load = &self.loads[*at];
            if *at == from {
                continue;
            }
            if !load.knows(&ask.leaves) {
                tried.unmeasured += 1;
                continue;
            }
            let shares = load.shares_if(&NOTHING, &ask.comes);
            if !self.is_cool(&shares) && !self.is_empty(*at) {
                tried.too_full += 1;
            } else if let Some(gain) = worth(self, *at) {
                fits.push((*at, gain, fullness(&shares, self.settings())));
                if fits.len() == LOOKS_AT_RULES {
                    break;
                }
            } else {
                tried.no_gain += 1;
            }
        }
        fits.sort_by(|a, b| a.2.total_cmp(&b.2).then(a.0.cmp(&b.0)));
        let mut best: Option<Target> = None;
        let mut found = 0;
        for (at, gain, _) in fits {
            match self.may_go(ask.vm, at) {
                Some(Ok(choice)) => {
                    found += 1;
                    if best.as_ref().is_none_or(|best| choice.broken < best.choice.broken) {
                        best = Some(Target { at, choice, gain });
                    }
                    if found == CHOICES {
                        break;
                    }
                }
                Some(Err(refusal)) => {
                    tried.refused += 1;
                    let (vm, to) = (ask.vm, self.loads[at].host);
                    tried.example.get_or_insert(RefusedMove { vm, to, refusal });
                }
                None => {}
            }
        }
        best
    }

    /// The coolest hosts.
    pub(crate) fn coolest(&self, most: usize) -> Vec<usize> {
        self.coolest.iter().take(most).map(|(_, at)| *at).collect()
    }

    /// Enters a move that placement lets be made. None, and nothing is changed, when there is no such
    /// VM, or when a VM has the id of its shadow.
    pub(crate) fn enter(&mut self, ask: &Ask, to: usize, choice: &Choice) -> Option<Entry> {
        let shadow = shadow(ask.vm);
        if self.cluster.placed(shadow).is_some() {
            return None;
        }
        let from = self.find(self.cluster.placed(ask.vm)?.host)?;
        let placed = self.cluster.release(ask.vm)?;
        let target = self.loads[to].host;
        let _ = self.cluster.occupy_devices(target, &placed.request, &choice.devices);
        let entry = Entry {
            asked: [self.loads[from].asked, self.loads[to].asked],
            left_before: self.loads[from].leaves,
            placed,
            shadow,
            from,
            to,
        };
        self.show(&entry);
        self.change(from, self.loads[from].changed(&ask.leaves, &NOTHING), true);
        let leaves = self.loads[to].leaves;
        self.change(to, self.loads[to].changed(&NOTHING, &ask.comes), leaves);
        Some(entry)
    }

    /// Lets no VM come to a host from now on, since it is to be emptied. None when there is no such
    /// host.
    pub(crate) fn close(&mut self, host: HostId) -> Option<usize> {
        let at = self.find(host)?;
        let mut state = self.cluster.host(host)?.clone();
        state.unschedulable.get_or_insert(Unschedulable::Draining);
        self.cluster.upsert_host(state);
        self.unfile(at);
        self.loads[at].open = false;
        Some(at)
    }

    /// Another load of a host.
    pub(crate) fn set(&mut self, at: usize, asked: Amounts) {
        self.change(at, asked, self.loads[at].leaves);
    }

    fn change(&mut self, at: usize, asked: Amounts, leaves: bool) {
        self.unfile(at);
        self.loads[at].asked = asked;
        self.loads[at].leaves = leaves;
        self.file(at);
    }

    /// Puts the shadow of a VM where it was.
    pub(crate) fn show(&mut self, entry: &Entry) {
        let request = Request { vm: entry.shadow, ..entry.placed.request.clone() };
        let _ = self.cluster.occupy_devices(entry.placed.host, &request, &entry.placed.devices);
    }

    /// Takes the shadow away: the move is over.
    pub(crate) fn hide(&mut self, entry: &Entry) {
        let _ = self.cluster.release(entry.shadow);
    }

    /// Takes a move back; the last one first.
    pub(crate) fn take_back(&mut self, entry: Entry) {
        self.hide(&entry);
        let _ = self.cluster.release(entry.placed.request.vm);
        let Placed { host, request, devices } = entry.placed;
        let _ = self.cluster.occupy_devices(host, &request, &devices);
        let [source, target] = entry.asked;
        let leaves = self.loads[entry.to].leaves;
        self.change(entry.to, target, leaves);
        self.change(entry.from, source, entry.left_before);
    }

    /// The VM that moves, from where, and to where.
    pub(crate) fn hosts_of(&self, entry: &Entry) -> (VmId, HostId, HostId) {
        (entry.vm(), self.loads[entry.from].host, self.loads[entry.to].host)
    }

    /// How both hosts of a move do, before and after.
    pub(crate) fn forecasts(&self, entry: &Entry) -> Vec<Forecast> {
        let hosts = [(entry.from, entry.asked[0]), (entry.to, entry.asked[1])];
        let forecast = |(at, asked): (usize, Amounts)| {
            let load = &self.loads[at];
            Forecast {
                host: load.host,
                before: Utilisation::of(&shares(&asked, &load.capacity)),
                after: Utilisation::of(&load.shares()),
            }
        };
        hosts.into_iter().map(forecast).collect()
    }
}

/// The id of a VM's shadow: one that no VM is given, for its version is none that is in use.
const fn shadow(vm: VmId) -> VmId {
    VmId(uuid::Uuid::from_u128(!vm.0.as_u128()))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates; what is written has a bound, so that it is never negative"
)]
const fn whole(number: f64) -> u64 {
    number as u64
}

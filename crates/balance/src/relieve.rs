//! The plan against hotspots and needs.
//!
//! Hotspots are met in the order of their volume (Sandpiper, section 5.1). One that is expected to be
//! over soon is met by limits, where elastic VMs allow it; any other by moves, the VM first that takes
//! the most of what is short for what its move costs; and where none of its VMs can go anywhere, by a
//! swap. A VM in need gets more where it is, if that is allowed and there is room; otherwise it goes
//! to a host whose other VMs leave it more.

mod need;
mod resize;
mod swap;

use std::collections::BTreeSet;

use plimsoll_model::VmId;

use crate::{
    balancer::{Balancer, Situation},
    hotspot::volume,
    ledger::{Ask, Entry, Ledger, Target},
    plan::{Action, Fixed, Hotspot, NoBeneficialMove, Plan, Reason, Step, Subject, Tried, Unmet},
    resource::{Permille, Resource},
};

/// A VM that asks for less than this share of what is short is not moved: it would not be felt.
const FELT: f64 = 0.005;

impl Balancer {
    /// What is to be done about hotspots and VMs in need. The same input gives the same plan.
    #[must_use]
    pub fn plan(&self, situation: &Situation<'_>) -> Plan {
        let plan = Plan {
            hotspots: self.hotspots(situation),
            needs: self.needs(situation),
            ..Plan::default()
        };
        let lowered = self.vms.values().any(|vm| vm.lowered_from.is_some());
        if plan.hotspots.is_empty() && plan.needs.is_empty() && !lowered {
            return plan;
        }
        let ledger = Ledger::new(self, situation);
        let moves = situation.moves_running;
        Planner { ledger, plan, moves, touched: BTreeSet::new() }.finish()
    }
}

pub(crate) struct Planner<'a> {
    pub(crate) ledger: Ledger<'a>,
    pub(crate) plan: Plan,
    /// Moves that run, or are planned.
    pub(crate) moves: u32,
    /// The VMs of its steps.
    touched: BTreeSet<VmId>,
}

/// A VM of a hotspot that could leave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) ask: Ask,
    /// Of what it takes the most that is short.
    resource: Resource,
    /// What it takes of what is short, for what its move costs.
    worth: f64,
}

impl Planner<'_> {
    fn finish(mut self) -> Plan {
        self.plan.overload_before = self.ledger.overload();
        for hotspot in self.plan.hotspots.clone() {
            self.relieve(&hotspot);
        }
        for need in self.plan.needs.clone() {
            self.help(&need);
        }
        self.restore();
        self.plan.overload_after = self.ledger.overload();
        self.plan.cut_short = self.ledger.is_spent();
        self.plan
    }

    fn relieve(&mut self, hotspot: &Hotspot) {
        let subject = Subject::Host(hotspot.host);
        let Some(from) = self.ledger.find(hotspot.host) else { return };
        if let Some(done) = self.lower(hotspot, from) {
            if let Err(why) = done {
                self.plan.unmet.push(Unmet { subject, why });
            }
            return;
        }
        while self.is_short(hotspot, from) {
            if let Some(why) = self.limit() {
                self.plan.unmet.push(Unmet { subject, why });
                return;
            }
            let mut tried = Tried::default();
            let candidates = self.candidates(hotspot, from, &mut tried);
            let moved = self.move_one(hotspot, from, &candidates, &mut tried)
                || self.swap_one(hotspot, from, &candidates, &mut tried);
            if !moved {
                let why = self.limit().unwrap_or(NoBeneficialMove::Tried(Box::new(tried)));
                self.plan.unmet.push(Unmet { subject, why });
                return;
            }
        }
    }

    /// Whether a host is still short of what makes it a hotspot.
    fn is_short(&self, hotspot: &Hotspot, at: usize) -> bool {
        let shares = self.ledger.loads[at].shares();
        hotspot.short.iter().any(|shortage| {
            shares[shortage.resource.index()]
                .is_some_and(|share| share > shortage.threshold.share())
        })
    }

    /// The limit that allows no further move, if one is reached.
    pub(crate) fn limit(&self) -> Option<NoBeneficialMove> {
        let settings = self.ledger.settings();
        if self.moves >= settings.moves_at_once {
            return Some(NoBeneficialMove::MovesAtOnce { limit: settings.moves_at_once });
        }
        self.ledger.is_spent().then_some(NoBeneficialMove::Looks { limit: settings.most_looks })
    }

    /// Why a VM cannot be moved.
    pub(crate) fn fixed(&self, vm: VmId) -> Option<Fixed> {
        fixed(self.ledger.situation, vm)
    }

    pub(crate) fn is_touched(&self, vm: VmId) -> bool {
        self.touched.contains(&vm)
    }

    /// The VMs that could leave a hotspot, the best first.
    fn candidates(&self, hotspot: &Hotspot, from: usize, tried: &mut Tried) -> Vec<Candidate> {
        let ledger = &self.ledger;
        let now = ledger.situation.now;
        let mut candidates = Vec::new();
        tried.vms = 0;
        for vm in ledger.situation.cluster.vms_on(hotspot.host) {
            tried.vms += 1;
            if self.fixed(vm).is_some() || self.is_touched(vm) {
                tried.fixed += 1;
            } else if !hotspot.emergency && ledger.balancer.is_cooling(vm, now) {
                tried.cooling += 1;
            } else if let Some(candidate) = self.candidate(hotspot, from, vm) {
                candidates.push(candidate);
            } else {
                tried.no_help += 1;
            }
        }
        candidates.sort_by(|a, b| b.worth.total_cmp(&a.worth).then(a.ask.vm.cmp(&b.ask.vm)));
        candidates
    }

    /// What a VM is worth moving. Sandpiper takes the VM with the highest volume for its size. Its
    /// volume does not say of *what* a VM takes much, so that it can choose one that takes nothing of
    /// what is short: here it is multiplied by how much of the shortage leaves with the VM. The size
    /// is the time that the move takes, what is written meanwhile and its fixed cost included.
    fn candidate(&self, hotspot: &Hotspot, from: usize, vm: VmId) -> Option<Candidate> {
        let load = &self.ledger.loads[from];
        let settings = self.ledger.settings();
        let (ask, shares) = (self.ledger.ask(vm), load.shares());
        let taken = crate::hotspot::shares(&ask.leaves, &load.capacity);
        let mut relief = 0.0;
        let mut most: Option<(Resource, f64)> = None;
        for shortage in &hotspot.short {
            let at = shortage.resource.index();
            let (Some(share), Some(taken)) = (shares[at], taken[at]) else { continue };
            let excess = share - settings.limit_of(shortage.resource).share();
            let relieved = taken.min(excess.max(0.0));
            relief += relieved;
            if taken > FELT && most.is_none_or(|(_, other)| relieved > other) {
                most = Some((shortage.resource, relieved));
            }
        }
        let (resource, _) = most?;
        let milliseconds = self.ledger.cost(vm).expected_ms.max(1) as f64;
        Some(Candidate { ask, resource, worth: relief * volume(&taken) / milliseconds })
    }

    /// Moves the best VM that has somewhere to go.
    fn move_one(
        &mut self,
        hotspot: &Hotspot,
        from: usize,
        candidates: &[Candidate],
        tried: &mut Tried,
    ) -> bool {
        let least = self.ledger.settings().least_gain.share();
        for candidate in candidates {
            if self.ledger.is_spent() {
                return false;
            }
            tried.looked_for += 1;
            let ask = candidate.ask;
            let worth = |ledger: &Ledger<'_>, to: usize| {
                Some(ledger.gain(&ask, from, to)).filter(|gain| *gain >= least)
            };
            let Some(target) = self.ledger.best_target(&ask, from, tried, worth) else { continue };
            let reason = Reason::Hotspot { host: hotspot.host, resource: candidate.resource };
            if self.carry_out(&ask, &target, reason) {
                return true;
            }
        }
        false
    }

    /// Enters a move and notes its step.
    pub(crate) fn carry_out(&mut self, ask: &Ask, target: &Target, reason: Reason) -> bool {
        let Some(entry) = self.ledger.enter(ask, target.at, &target.choice) else { return false };
        self.note(&entry, reason, Vec::new(), target.gain);
        true
    }

    /// Adds a step to the plan.
    pub(crate) fn add(&mut self, step: Step) {
        self.touched.insert(step.action.vm());
        self.plan.steps.push(step);
    }

    /// Notes the step of a move that was entered.
    pub(crate) fn note(&mut self, entry: &Entry, reason: Reason, after: Vec<usize>, gain: f64) {
        let (vm, from, to) = self.ledger.hosts_of(entry);
        let step = Step {
            action: Action::Move { vm, from, to },
            reason,
            after,
            hosts: self.ledger.forecasts(entry),
            cost: self.ledger.cost(vm),
            gain: Permille::of(gain),
        };
        self.add(step);
        self.moves += 1;
    }
}

/// Why a VM cannot be moved.
pub(crate) fn fixed(situation: &Situation<'_>, vm: VmId) -> Option<Fixed> {
    let Some(state) = situation.vms.get(&vm) else { return Some(Fixed::Unknown) };
    let placed = situation.cluster.placed(vm);
    let devices = placed.is_some_and(|placed| !placed.devices.0.is_empty());
    state.fixed.or(devices.then_some(Fixed::Devices))
}

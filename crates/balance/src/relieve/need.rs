//! VMs that are short of something although their hosts may be idle: gray-box overloads.
//!
//! A guest knows before its host does (Sandpiper, section 4.3). First it gets more where it is, up to
//! what it was promised, if there is room. If it has that, what keeps it from its objective is beside
//! it: it goes to a host whose other VMs ask for clearly less.

use plimsoll_model::{Amount, VmId};

use super::{
    Planner,
    resize::{part, with},
};
use crate::{
    ledger::{Ask, Ledger},
    plan::{Need, NoBeneficialMove, Reason, Subject, Tried, Unmet},
    resource::{Amounts, NOTHING, Resource},
};

/// Less than this share of what it has is not worth giving to a VM.
const FELT: f64 = 0.02;

impl Planner<'_> {
    /// Does something about a VM in need; where its host is a hotspot, that is met already.
    pub(super) fn help(&mut self, need: &Need) {
        let Some(at) = self.ledger.find(need.host) else { return };
        let hot = self.plan.hotspots.iter().any(|hotspot| hotspot.host == need.host);
        if hot || self.is_touched(need.vm) || self.raise(need, at) {
            return;
        }
        if let Err(why) = self.move_away(need, at) {
            self.plan.unmet.push(Unmet { subject: Subject::Vm(need.vm), why });
        }
    }

    /// Gives a VM more of what it is short of.
    fn raise(&mut self, need: &Need, at: usize) -> bool {
        let Some(state) = self.ledger.situation.vms.get(&need.vm).copied() else { return false };
        let wanted = match need.short {
            Some(Resource::Cpu) => &[Resource::Cpu][..],
            Some(Resource::Memory) => &[Resource::Memory],
            Some(_) => &[],
            None => &[Resource::Cpu, Resource::Memory],
        };
        let mut to = state.has;
        let mut more = NOTHING;
        for resource in wanted {
            let has = part(state.has, *resource);
            let room = self.room(at, *resource);
            let given = (part(state.most, *resource) - has).min(room);
            if given > has * FELT {
                to = with(to, *resource, has + given);
                more[resource.index()] = Some(given);
            }
        }
        if to == state.has {
            return false;
        }
        let reason = Reason::Need { symptom: need.symptom, short: need.short };
        self.resize(need.vm, at, (state.has, to), reason, (&NOTHING, &more));
        true
    }

    /// How much more of a resource a host can be asked for and stay cool.
    fn room(&self, at: usize, resource: Resource) -> f64 {
        let load = &self.ledger.loads[at];
        let limit = self.ledger.settings().limit_of(resource).share();
        let (asked, has) = (load.asked[resource.index()], load.capacity[resource.index()]);
        asked.zip(has).map_or(0.0, |(asked, has)| (has * limit - asked).max(0.0))
    }

    /// Moves a VM to where others leave it more.
    fn move_away(&mut self, need: &Need, at: usize) -> Result<(), NoBeneficialMove> {
        let mut tried = Tried { vms: 1, ..Tried::default() };
        if self.fixed(need.vm).is_some() {
            tried.fixed = 1;
        } else if self.ledger.balancer.is_cooling(need.vm, self.ledger.situation.now) {
            tried.cooling = 1;
        } else if let Some(why) = self.limit() {
            return Err(why);
        } else {
            tried.looked_for = 1;
            let ask = self.needs(need);
            let others = self.others(&ask, at, need.short);
            let least = self.ledger.settings().margin.share();
            let worth = |ledger: &Ledger<'_>, to: usize| {
                let load = &ledger.loads[to];
                let there = pressing(&load.shares(), need.short);
                (others - there >= least).then(|| ledger.gain(&ask, at, to).max(0.0))
            };
            if let Some(target) = self.ledger.best_target(&ask, at, &mut tried, worth) {
                let reason = Reason::Need { symptom: need.symptom, short: need.short };
                if self.carry_out(&ask, &target, reason) {
                    return Ok(());
                }
            }
        }
        Err(NoBeneficialMove::Tried(Box::new(tried)))
    }

    /// What a VM in need asks for: all that it was promised of what it is short of, for what it gets
    /// now is too little.
    fn needs(&self, need: &Need) -> Ask {
        let mut ask = self.ledger.ask(need.vm);
        let Some(state) = self.ledger.situation.vms.get(&need.vm) else { return ask };
        for resource in [Resource::Cpu, Resource::Memory] {
            if need.short.is_none_or(|short| short == resource) {
                let comes = &mut ask.comes[resource.index()];
                *comes = Some(comes.unwrap_or(0.0).max(part(state.most, resource)));
            }
        }
        ask
    }

    /// How much the other VMs of its host ask for.
    fn others(&self, ask: &Ask, at: usize, short: Option<Resource>) -> f64 {
        pressing(&self.ledger.loads[at].shares_if(&ask.leaves, &NOTHING), short)
    }

    /// Gives back what was taken from VMs for a short overload that is over.
    pub(super) fn restore(&mut self) {
        let records = self.ledger.balancer.vms.iter();
        let lowered: Vec<(VmId, _)> =
            records.filter_map(|(vm, record)| Some((*vm, record.lowered_from?))).collect();
        for (vm, full) in lowered {
            let Some(placed) = self.ledger.situation.cluster.placed(vm) else { continue };
            let Some(at) = self.ledger.find(placed.host) else { continue };
            let Some(state) = self.ledger.situation.vms.get(&vm).copied() else { continue };
            let to = Amount {
                cpu: full.cpu.min(state.most.cpu).max(state.has.cpu),
                memory: full.memory.min(state.most.memory).max(state.has.memory),
            };
            let calm = self.ledger.balancer.is_calm(placed.host)
                && self.ledger.is_cool(&self.ledger.loads[at].shares());
            if calm && to != state.has && !self.is_touched(vm) {
                self.resize(vm, at, (state.has, to), Reason::Restore, (&NOTHING, &NOTHING));
            }
        }
    }
}

/// The share of what a VM is short of, or else of the fullest.
fn pressing(shares: &Amounts, short: Option<Resource>) -> f64 {
    match short {
        Some(short) => shares[short.index()].unwrap_or(0.0),
        None => shares.iter().flatten().copied().fold(0.0, f64::max),
    }
}

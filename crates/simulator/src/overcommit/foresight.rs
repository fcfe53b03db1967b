//! Plimsoll's own policy: what hosts' VMs will ask for *together* is predicted, at a stated risk.
//!
//! - Once a day VMs that peak together in the week that is known are taken apart.
//! - In every slot, a host that will be short in the next one in a larger share of the scenarios
//!   than the risk gives VMs away, or swaps them.
//! - A host is opened only where moves do not help: when four fifths of the shortages that the risk
//!   allows in a week are used up, or when a host will be asked for far more than it has. The risk is
//!   a share of time, so it is kept as a budget over time; the last fifth is kept for what nobody can
//!   foresee. For memory there is no budget: a host that will be short of it is not waited for.
//! - A host is emptied only when by the week that is known it would not have been missed, with room
//!   to spare.

use std::collections::VecDeque;

use plimsoll_reclaim::predict::{Horizon, Outlook, Predictor, Risk, relieve::Aim};

use super::{
    DAY, HISTORY, Vm,
    fleet::{Fleet, share},
    float, scaled,
};

/// The share of a host's capacity to which the next slot may fill it: what is left covers that a
/// move takes a part of the slot.
const FILL: f64 = 0.97;

/// The same for the days that come.
const FILL_FOR_DAYS: f64 = 0.9;

/// The least that a move must take from the hosts' mean excess, in hosts: now, and for days.
const GAIN: f64 = 0.01;
const GAIN_FOR_DAYS: f64 = 0.001;

/// The most moves of one decision: now, and once a day.
const MOVES: usize = 20;
const MOVES_FOR_DAYS: usize = 200;

/// The share of the allowed shortages after which a host is opened.
const SPENT: f64 = 0.8;

/// So far above its capacity nobody waits for the budget.
const FAR_ABOVE: f64 = 1.25;

/// A host is emptied when all fits into the others filled to this share.
const FILL_TO_CLOSE: f64 = 0.75;

/// Predicts, and decides.
#[derive(Debug)]
pub(super) struct Foresight {
    risk: Risk,
    predictor: Predictor,
    /// How many hosts were short of CPU in each slot of the last week.
    short: VecDeque<u64>,
}

impl Foresight {
    /// Has seen the first week.
    pub(super) fn new(vms: &[Vm], risk: Risk) -> Self {
        let predictor = Predictor::new();
        let mut foresight = Self { risk, predictor, short: VecDeque::new() };
        for slot in 0..HISTORY {
            foresight.learn(vms, slot);
        }
        foresight
    }

    fn learn(&mut self, vms: &[Vm], slot: usize) {
        for vm in vms {
            self.predictor.observe(slot as u64, vm.id, vm.size, vm.used[slot]);
        }
    }

    /// Is told what was used in a slot, and how many hosts were short of CPU.
    pub(super) fn observe(&mut self, vms: &[Vm], slot: usize, short: u64) {
        self.learn(vms, slot);
        self.short.push_back(short);
        if self.short.len() > HISTORY {
            self.short.pop_front();
        }
    }

    /// What each VM may ask for in the days that come.
    pub(super) fn week(&self, vms: &[Vm]) -> Vec<Outlook> {
        self.outlooks(vms, Horizon::Week)
    }

    fn outlooks(&self, vms: &[Vm], horizon: Horizon) -> Vec<Outlook> {
        vms.iter().map(|vm| self.predictor.outlook(vm.id, vm.size, horizon)).collect()
    }

    fn aim(&self, fill: f64, least_gain: f64, most_moves: usize) -> Aim {
        // Ten times rarer is ten times as bad.
        let memory_weight = (self.risk.cpu / self.risk.memory).clamp(1.0, 1000.0);
        let memory_weight = if memory_weight.is_nan() { 1.0 } else { memory_weight };
        Aim { fill, least_gain, most_moves, memory_weight }
    }

    pub(super) fn decide(&self, vms: &[Vm], slot: usize, fleet: &mut Fleet) {
        if (slot - HISTORY).is_multiple_of(DAY) {
            let week = self.week(vms);
            self.spread(&week, fleet);
            self.close(&week, fleet);
        }
        let next = self.outlooks(vms, Horizon::Next);
        let filled = scaled(fleet.capacity(), FILL);
        if !self.forecast(&next, fleet).iter().any(|host| {
            let short = host.short(filled);
            short.cpu > self.risk.cpu || short.memory > self.risk.memory
        }) {
            return;
        }
        let aim = self.aim(FILL, GAIN, MOVES);
        fleet.relieve(&next, &aim);
        while self.must_open(&self.forecast(&next, fleet), fleet) {
            let used = fleet.open(|fleet| {
                self.spread(&self.week(vms), fleet);
                fleet.relieve(&next, &aim);
            });
            if !used {
                break;
            }
        }
    }

    fn forecast(&self, next: &[Outlook], fleet: &Fleet) -> Vec<Outlook> {
        fleet.together(next, &Outlook::nothing(Horizon::Next))
    }

    /// Takes VMs apart that peak together.
    fn spread(&self, week: &[Outlook], fleet: &mut Fleet) {
        fleet.relieve(week, &self.aim(FILL_FOR_DAYS, GAIN_FOR_DAYS, MOVES_FOR_DAYS));
    }

    /// Whether hosts will be short, moves do not help, and the risk does not allow it.
    fn must_open(&self, hosts: &[Outlook], fleet: &Fleet) -> bool {
        let capacity = fleet.capacity();
        let mut expected = 0.0;
        let mut likely = false;
        for (number, host) in hosts.iter().enumerate() {
            let short = host.short(capacity);
            expected += short.cpu;
            // A VM alone on its host has nobody to give way to it.
            if fleet.at().iter().filter(|at| **at == number).nth(1).is_none() {
                continue;
            }
            if short.memory > 0.5 || share(host.median(), capacity) > FAR_ABOVE {
                return true;
            }
            likely |= short.cpu > 0.5;
        }
        let allowed = self.risk.cpu * float(HISTORY as u64) * float(fleet.hosts() as u64);
        let spent = float(self.short.iter().sum());
        likely && spent + expected > SPENT * allowed
    }

    /// Empties a host that would not have been missed in the week that is known.
    fn close(&self, week: &[Outlook], fleet: &mut Fleet) {
        let nothing = Outlook::nothing(Horizon::Week);
        while fleet.hosts() > 1 {
            let mut all = nothing.clone();
            week.iter().for_each(|outlook| all.add(outlook));
            let others = float(fleet.hosts() as u64 - 1);
            let needed = share(all.peak(self.risk), fleet.capacity());
            if needed > others * FILL_TO_CLOSE
                || !fleet.close_one(week, &nothing, self.risk, FILL_FOR_DAYS)
            {
                break;
            }
        }
    }
}

//! Where the VMs of a host go that is to be emptied.

use plimsoll_model::{HostId, VmId};
use plimsoll_placement::Request;

use crate::{
    balancer::{Balancer, Situation},
    ledger::{Ask, Ledger, Target},
    plan::{Spread, SpreadStep, Stuck, StuckBecause, Tried},
    relieve::fixed,
    resource::{NOTHING, Utilisation},
};

impl Balancer {
    /// The order and the targets of all VMs of a host, spread over many: each goes to the coolest host
    /// that placement lets it go to, after those before it, and none is filled above its threshold
    /// less the margin. Those that cannot leave stay, and it is said why.
    ///
    /// Large VMs are placed first, for which it is hardest to find room. The moves may run in any order
    /// and at the same time: no VM that leaves keeps another away, since they are on one host now.
    ///
    /// A host of which nothing was seen is a target where no other will do: then placement's policy
    /// chooses by what VMs were promised.
    #[must_use]
    pub fn spread(&self, situation: &Situation<'_>, host: HostId) -> Spread {
        let mut spread = Spread::default();
        let mut ledger = Ledger::new(self, situation);
        let Some(from) = ledger.close(host) else { return spread };
        let mut vms: Vec<_> = situation.cluster.vms_on(host).collect();
        let size = |vm: &VmId| situation.cluster.placed(*vm).map(|vm| vm.request.demand.memory);
        vms.sort_by_key(|vm| (std::cmp::Reverse(size(vm)), *vm));
        for vm in vms {
            let stuck = match fixed(situation, vm) {
                Some(fixed) => StuckBecause::Fixed { fixed },
                None => match step(&mut ledger, vm, from) {
                    Some(step) => {
                        spread.steps.push(step);
                        continue;
                    }
                    None => ledger.why_stuck(vm),
                },
            };
            spread.stuck.push(Stuck { vm, why: stuck });
        }
        spread.stuck.sort_by_key(|stuck| stuck.vm);
        spread
    }
}

fn step(ledger: &mut Ledger<'_>, vm: VmId, from: usize) -> Option<SpreadStep> {
    let ask = ledger.ask(vm);
    let target = ledger.target_of_any(&ask, from)?;
    let entry = ledger.enter(&ask, target.at, &target.choice)?;
    let measured = ledger.loads[target.at].is_measured();
    Some(SpreadStep {
        vm,
        to: ledger.loads[target.at].host,
        broken: target.choice.broken,
        target: ledger.forecasts(&entry).pop().filter(|_| measured),
        cost: ledger.cost(vm),
    })
}

impl Ledger<'_> {
    /// A target, or where none of those that are looked at will do, what placement chooses of all if
    /// it stays cool.
    fn target_of_any(&mut self, ask: &Ask, from: usize) -> Option<Target> {
        let best = self.best_target(ask, from, &mut Tried::default(), |_, _| Some(0.0));
        best.or_else(|| self.chosen(ask).filter(|target| self.stays_cool(ask, target.at)))
    }

    /// What placement chooses by itself.
    fn chosen(&self, ask: &Ask) -> Option<Target> {
        let request: &Request = &self.cluster.placed(ask.vm)?.request;
        let choice = self.cluster.find(request, self.situation.policy)?;
        Some(Target { at: self.find(choice.host)?, choice, gain: 0.0 })
    }

    fn stays_cool(&self, ask: &Ask, at: usize) -> bool {
        let load = &self.loads[at];
        !load.is_measured()
            || load.knows(&ask.leaves) && self.is_cool(&load.shares_if(&NOTHING, &ask.comes))
    }

    fn why_stuck(&self, vm: VmId) -> StuckBecause {
        let ask = self.ask(vm);
        if let Some(target) = self.chosen(&ask) {
            let load = &self.loads[target.at];
            let after = load.shares_if(&NOTHING, &ask.comes);
            return StuckBecause::Overload { best: load.host, after: Utilisation::of(&after) };
        }
        let placed = self.cluster.placed(vm).expect("it is on the host");
        let refused = self.cluster.decide(&placed.request, self.situation.policy);
        StuckBecause::Refused(refused.expect_err("none was chosen"))
    }
}

//! Short overloads of CPU or memory are met by limits: elastic VMs do with less until it is over.
//!
//! Moving takes seconds, costs bandwidth, and comes too late for most overloads (see
//! [`crate::past`]). What a VM uses above the least that it must have can be had at once.

use plimsoll_model::{Amount, Bytes, MilliCores, VmId};

use super::Planner;
use crate::{
    balancer::VmState,
    plan::{Action, Cost, Forecast, Hotspot, NoBeneficialMove, Reason, Step},
    resource::{Amounts, NOTHING, Permille, Resource, Utilisation},
};

/// A VM that can do with less.
struct Elastic {
    vm: VmId,
    state: VmState,
    /// What it asks for and gets above the least that it must have.
    spare: f64,
}

impl Planner<'_> {
    /// Lowers limits on a host whose overload is expected to be short. None when that is not expected,
    /// or not possible; an error when it was done before and the end has only to be waited for.
    pub(super) fn lower(
        &mut self,
        hotspot: &Hotspot,
        at: usize,
    ) -> Option<Result<(), NoBeneficialMove>> {
        let for_s = hotspot.short_for_s?;
        let [shortage] = hotspot.short[..] else { return None };
        let resource = shortage.resource;
        if !matches!(resource, Resource::Cpu | Resource::Memory) {
            return None;
        }
        let load = &self.ledger.loads[at];
        let capacity = load.capacity[resource.index()]?;
        let asked = load.asked[resource.index()]?;
        let wanted = asked - capacity * shortage.threshold.share();
        let vms: Vec<_> = self.ledger.situation.cluster.vms_on(hotspot.host).collect();
        let known = vms.iter().filter_map(|vm| {
            let state = *self.ledger.situation.vms.get(vm)?;
            let asks = self.ledger.balancer.asked(*vm)[resource.index()]?;
            Some((*vm, state, asks))
        });
        let mut denied = 0.0;
        let mut elastic = Vec::new();
        for (vm, state, asks) in known {
            let has = part(state.has, resource);
            if has < part(state.most, resource) {
                denied += (asks - has).max(0.0);
            }
            let spare = asks.min(has) - part(state.least, resource);
            if spare > 0.0 && !self.is_touched(vm) {
                elastic.push(Elastic { vm, state, spare });
            }
        }
        // What VMs are kept from for a while is no load.
        let excess = wanted - denied;
        if excess <= 0.0 {
            return Some(Err(NoBeneficialMove::EndsSoon { in_s: for_s }));
        }
        let spare: f64 = elastic.iter().map(|vm| vm.spare).sum();
        if spare < excess {
            return None;
        }
        let reason = Reason::ShortOverload { host: hotspot.host, resource, for_s };
        for one in elastic {
            let least = part(one.state.least, resource);
            let to = with(one.state.has, resource, least + one.spare * (1.0 - excess / spare));
            let mut less = NOTHING;
            less[resource.index()] = Some(one.spare * excess / spare);
            self.resize(one.vm, at, (one.state.has, to), reason, (&less, &NOTHING));
        }
        Some(Ok(()))
    }

    /// Notes a change of limits, by which so much less and so much more is asked for.
    pub(super) fn resize(
        &mut self,
        vm: VmId,
        at: usize,
        (from, to): (Amount, Amount),
        reason: Reason,
        (less, more): (&Amounts, &Amounts),
    ) {
        let settings = self.ledger.settings();
        let load = &self.ledger.loads[at];
        let (host, before, overload) = (load.host, load.shares(), load.overload(settings));
        self.ledger.set(at, load.changed(less, more));
        let load = &self.ledger.loads[at];
        let after = Utilisation::of(&load.shares());
        let step = Step {
            action: Action::Resize { vm, host, from, to },
            reason,
            after: Vec::new(),
            hosts: vec![Forecast { host, before: Utilisation::of(&before), after }],
            cost: Cost::default(),
            gain: Permille::of(overload - load.overload(settings)),
        };
        self.add(step);
    }
}

/// CPU or memory, in base units.
pub(super) fn part(amount: Amount, resource: Resource) -> f64 {
    match resource {
        Resource::Cpu => amount.cpu.0 as f64,
        _ => amount.memory.0 as f64,
    }
}

/// An amount with another CPU or memory.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates, and is never negative"
)]
pub(super) fn with(amount: Amount, resource: Resource, value: f64) -> Amount {
    let value = value.max(0.0).round() as u64;
    match resource {
        Resource::Cpu => Amount { cpu: MilliCores(value), ..amount },
        _ => Amount { memory: Bytes(value), ..amount },
    }
}

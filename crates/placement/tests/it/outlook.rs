//! The policies that judge a host by what is usually asked for, from their definitions: every
//! typical request is looked at anew for every state.

use std::collections::BTreeMap;

use plimsoll_model::{Label, Policy};
use plimsoll_placement::{AnyModel, HostState, Request, TypicalRequest};

use crate::naive::World;

/// What is free of a host: scalars, none where it does not account for them, and devices.
#[derive(Clone, Debug)]
struct Free {
    scalars: Vec<Option<u64>>,
    devices: BTreeMap<Label, Vec<u64>>,
}

impl World {
    /// The cost of the best way to place a settled request: less is better.
    pub(crate) fn outlook(&self, policy: Policy, host: &HostState, request: &Request) -> f64 {
        self.ways(policy, host, request).into_iter().map(|(_, cost)| cost).fold(f64::MAX, f64::min)
    }

    /// Every way to give a settled request its shares, by model the device, with its cost.
    pub(crate) fn ways(
        &self,
        policy: Policy,
        host: &HostState,
        request: &Request,
    ) -> Vec<(BTreeMap<Label, usize>, f64)> {
        let typical = self.typical(request);
        let before = self.state(host, request);
        let mut after = before.clone();
        for (free, need) in after.scalars.iter_mut().zip(request.demand.scalars()) {
            *free = free.map(|free| free - need);
        }
        let demanded = || request.demand.accelerators.0.iter();
        for (model, need) in demanded().filter(|(_, need)| **need >= 1000) {
            for _ in 0..need / 1000 {
                let devices = after.devices.get_mut(model).unwrap();
                *devices.iter_mut().find(|free| **free == 1000).unwrap() = 0;
            }
        }
        let mut ways = vec![(BTreeMap::new(), after)];
        // Shares come when all whole devices are taken.
        for (model, need) in demanded() {
            let share = need % 1000;
            if share == 0 {
                continue;
            }
            let mut more = Vec::new();
            for (way, free) in ways {
                // Each share goes where it does best, given those before it.
                let mut tries = Vec::new();
                for device in 0..free.devices[model].len() {
                    let mut free = free.clone();
                    if free.devices[model][device] >= share {
                        free.devices.get_mut(model).unwrap()[device] -= share;
                        let mut way = way.clone();
                        way.insert(model.clone(), device);
                        tries.push((way, free));
                    }
                }
                let cost = |free: &Free| cost(policy, &typical, &before, free);
                let least = tries.iter().map(|(_, free)| cost(free)).fold(f64::MAX, f64::min);
                more.extend(tries.into_iter().filter(|(_, free)| cost(free) < least + 1e-10));
            }
            more.truncate(16);
            ways = more;
        }
        ways.into_iter().map(|(way, free)| (way, cost(policy, &typical, &before, &free))).collect()
    }

    fn state(&self, host: &HostState, request: &Request) -> Free {
        let capacities = host.capacity.scalars();
        let scalars = plimsoll_model::Element::SCALARS.iter().zip(capacities).enumerate();
        let scalars = scalars.map(|(i, (element, capacity))| {
            (i < 3 || capacity > 0).then(|| self.free(host, element, request))
        });
        let models = host.capacity.accelerators.0.keys();
        let devices = models.map(|model| (model.clone(), self.free_devices(host, model, request)));
        Free { scalars: scalars.collect(), devices: devices.collect() }
    }

    /// What is usually asked for: as stated, or the other VMs, counted, to two leading bits.
    fn typical(&self, request: &Request) -> Vec<TypicalRequest> {
        if let Some(workload) = &self.workload {
            return workload.clone();
        }
        let mut typical: Vec<TypicalRequest> = Vec::new();
        for (_, placed, _) in &self.placed {
            if placed.vm == request.vm {
                continue;
            }
            let same = |typical: &&mut TypicalRequest| {
                typical.demand.minus(&placed.demand) == placed.demand.minus(&typical.demand)
                    && typical.accelerator == placed.accelerator
            };
            match typical.iter_mut().find(same) {
                Some(typical) => typical.weight += 1,
                None => typical.push(TypicalRequest {
                    demand: placed.demand.clone(),
                    accelerator: placed.accelerator.clone(),
                    weight: 1,
                }),
            }
        }
        for typical in &mut typical {
            while !(1..=3).any(|bits| (0..64).any(|shift| typical.weight == bits << shift)) {
                typical.weight -= 1;
            }
        }
        typical
    }
}

fn cost(policy: Policy, typical: &[TypicalRequest], before: &Free, after: &Free) -> f64 {
    match policy {
        Policy::Fgd => {
            let won = fragments(typical, before) - fragments(typical, after);
            let won = (won * 1e12).round() / 1e12;
            -(100.0 / (1.0 + (-won).exp())).floor()
        }
        _ => room(typical, before) - room(typical, after),
    }
}

/// What a typical request asks of a model, all in all.
fn need(typical: &TypicalRequest, model: &Label) -> u64 {
    let own = typical.demand.accelerators.get(model);
    match &typical.accelerator {
        Some(any) if accepts(any, model) => own + any.thousandths,
        Some(_) => 0,
        None => own,
    }
}

fn accepts(any: &AnyModel, model: &Label) -> bool {
    any.models.is_empty() || any.models.contains(model)
}

/// How many devices' worth requests for so much could take, in thousandths.
fn most(devices: &[u64], need: u64) -> u64 {
    if need < 1000 {
        devices.iter().map(|free| free / need * need).sum()
    } else {
        let whole = devices.iter().filter(|free| **free == 1000).count() as u64;
        whole / need.div_ceil(1000) * need.div_ceil(1000) * 1000
    }
}

/// Whether the host has what a request asks of the models other than this one.
fn beside(typical: &TypicalRequest, model: &Label, free: &Free) -> bool {
    typical.demand.accelerators.0.iter().filter(|(other, _)| *other != model).all(
        |(other, need)| {
            *need == 0 || free.devices.get(other).is_some_and(|devices| most(devices, *need) > 0)
        },
    )
}

/// Weng et al.: for each typical request, the free devices that it cannot use.
fn fragments(typical: &[TypicalRequest], free: &Free) -> f64 {
    // By cores and accelerators only, the most frequent until they are 95 % of all.
    let mut merged: Vec<TypicalRequest> = Vec::new();
    for request in typical {
        let mut request = request.clone();
        let mut scalars = [0; 6];
        scalars[0] = request.demand.cpu.0;
        let accelerators = std::mem::take(&mut request.demand.accelerators);
        request.demand = plimsoll_model::Resources::from_scalars(scalars);
        request.demand.accelerators = accelerators;
        request.demand.accelerators.0.retain(|_, need| *need > 0);
        match merged.iter_mut().find(|other| {
            other.demand == request.demand && other.accelerator == request.accelerator
        }) {
            Some(other) => other.weight += request.weight,
            None => merged.push(request),
        }
    }
    merged.sort_by_key(|request| {
        let models: Vec<_> = request.demand.accelerators.0.clone().into_iter().collect();
        let models: Vec<_> =
            models.into_iter().map(|(model, need)| (model.to_string(), need)).collect();
        (u64::MAX - request.weight, request.demand.cpu, models, request.accelerator.clone())
    });
    let all: u64 = merged.iter().map(|request| request.weight).sum();
    let mut kept = Vec::new();
    let mut sum = 0;
    for request in merged {
        if sum * 100 < all * 95 {
            sum += request.weight;
            kept.push(request);
        }
    }
    if sum == 0 {
        return free.devices.values().flatten().sum::<u64>() as f64 / 1000.0;
    }
    let mut fragments = 0.0;
    for request in &kept {
        for (model, devices) in &free.devices {
            let need = need(request, model);
            let fits = need > 0
                && free.scalars[0].is_none_or(|free| free >= request.demand.cpu.0)
                && beside(request, model, free)
                && most(devices, need) > 0;
            let lost: u64 = devices.iter().filter(|free| !fits || **free < need.min(1000)).sum();
            fragments += request.weight as f64 / sum as f64 * lost as f64 / 1000.0;
        }
    }
    fragments
}

/// Free devices (or cores), times the weighted mean of the fourth root of what a typical request
/// could fill of them.
fn room(typical: &[TypicalRequest], free: &Free) -> f64 {
    let asks = |request: &&TypicalRequest| {
        request.accelerator.is_some()
            || request.demand.accelerators.0.values().any(|need| *need > 0)
    };
    let users: Vec<_> = typical.iter().filter(asks).collect();
    if users.is_empty() {
        let users: Vec<_> = typical.iter().filter(|request| request.demand.cpu.0 > 0).collect();
        let all: u64 = users.iter().map(|request| request.weight).sum();
        let cores = free.scalars[0].unwrap();
        return users
            .iter()
            .filter(|_| cores > 0)
            .map(|request| {
                let count = request
                    .demand
                    .scalars()
                    .into_iter()
                    .zip(&free.scalars)
                    .filter(|(need, free)| *need > 0 && free.is_some())
                    .map(|(need, free)| free.unwrap() / need)
                    .min()
                    .unwrap();
                let filled = (count * request.demand.cpu.0) as f64 / cores as f64;
                request.weight as f64 / all as f64 * filled.powf(0.25) * cores as f64 / 1000.0
            })
            .sum();
    }
    let all: u64 = users.iter().map(|request| request.weight).sum();
    let mut room = 0.0;
    for (model, devices) in &free.devices {
        let total: u64 = devices.iter().sum();
        for request in users.iter().filter(|_| total > 0) {
            let need = need(request, model);
            if need == 0 || !beside(request, model, free) {
                continue;
            }
            let mut filled = most(devices, need) as f64;
            for (asked, free) in request.demand.scalars().into_iter().zip(&free.scalars) {
                if let (1.., Some(free)) = (asked, free) {
                    filled = filled.min(*free as f64 / asked as f64 * need as f64);
                }
            }
            let part = (filled / total as f64).powf(0.25);
            room += request.weight as f64 / all as f64 * part * total as f64 / 1000.0;
        }
    }
    room
}

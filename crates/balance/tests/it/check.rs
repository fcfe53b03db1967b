//! What must hold of every plan, checked without the planner's books: by placement's facts alone, with
//! each VM that moves counted on both hosts, and by sums of what VMs ask for.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_balance::{Action, Plan};
use plimsoll_model::{HostId, Rule, Scope, Strength, VmId};
use plimsoll_placement::Request;

use crate::world::World;

/// Where a VM is: on one host, or on two while it moves.
type Where = BTreeMap<VmId, (Request, BTreeSet<HostId>)>;

/// Panics unless the plan can be carried out in an order that `draw` draws from those that
/// [`plimsoll_balance::Step::after`] allows, with moves that overlap.
pub(crate) fn every_step_is_feasible(
    world: &World,
    moves: &[(VmId, HostId, HostId, Vec<usize>)],
    mut draw: impl FnMut(usize) -> usize,
) {
    let mut at: Where = BTreeMap::new();
    for host in world.cluster.hosts() {
        for vm in world.cluster.vms_on(host.id) {
            let request = world.cluster.placed(vm).unwrap().request.clone();
            at.insert(vm, (request, BTreeSet::from([host.id])));
        }
    }
    let before = broken(world, &at);
    let mut waiting: BTreeSet<usize> = (0..moves.len()).collect();
    let mut running = BTreeSet::new();
    let mut over = BTreeSet::new();
    while over.len() < moves.len() {
        let ready = waiting.iter().filter(|i| moves[**i].3.iter().all(|j| over.contains(j)));
        let ready: Vec<_> = ready.copied().collect();
        let choice = draw(ready.len() + running.len());
        if let Some(i) = ready.get(choice) {
            let (vm, from, to, _) = &moves[*i];
            let (_, hosts) = at.get_mut(vm).unwrap();
            assert_eq!(*hosts, BTreeSet::from([*from]), "{vm} moves twice");
            assert!(world.cluster.host(*to).unwrap().unschedulable.is_none());
            hosts.insert(*to);
            waiting.remove(i);
            running.insert(*i);
        } else {
            let i = *running.iter().nth(choice - ready.len()).unwrap();
            at.get_mut(&moves[i].0).unwrap().1.remove(&moves[i].1);
            running.remove(&i);
            over.insert(i);
        }
        let now = broken(world, &at);
        assert!(now.is_subset(&before), "{:?}", now.difference(&before));
    }
}

/// All that is wrong: hosts over their capacity, and rules that are broken.
fn broken(world: &World, at: &Where) -> BTreeSet<String> {
    let mut wrong = BTreeSet::new();
    for host in world.cluster.hosts() {
        let here = at.values().filter(|(_, hosts)| hosts.contains(&host.id));
        let (cpu, memory) = here.fold((0, 0), |(cpu, memory), (request, _)| {
            (cpu + request.demand.cpu.0, memory + request.demand.memory.0)
        });
        if cpu > host.capacity.cpu.0 {
            wrong.insert(format!("cpu of {}", host.id));
        }
        if memory > host.capacity.memory.0 {
            wrong.insert(format!("memory of {}", host.id));
        }
    }
    for (vm, (request, hosts)) in at {
        let required = request.constraints.iter().filter(|c| c.strength == Strength::Required);
        for constraint in required {
            for host in hosts {
                if !holds(world, at, (*vm, request), &constraint.rule, *host) {
                    wrong.insert(format!("{} of {vm} on {host}", constraint.rule));
                }
            }
        }
    }
    wrong
}

fn holds(world: &World, at: &Where, one: (VmId, &Request), rule: &Rule, host: HostId) -> bool {
    let (vm, request) = one;
    let state = world.cluster.host(host).unwrap();
    let near = |scope: Scope, other: HostId| {
        let other = world.cluster.host(other).unwrap();
        match scope {
            Scope::Host => other.id == host,
            Scope::Rack => {
                other.id == host
                    || state.rack.is_some() && state.rack == other.rack && state.zone == other.zone
            }
            Scope::Zone => state.zone == other.zone,
        }
    };
    let is_member = |other: &Request, group: &plimsoll_model::Name| {
        other.project == request.project && other.groups.contains(group)
    };
    let mut others = at.iter().filter(|(other, _)| **other != vm).map(|(_, value)| value);
    match rule {
        Rule::HostLabel { key, values } => {
            state.labels.get(key).is_some_and(|value| values.contains(value))
        }
        Rule::AntiAffinity { group, scope } => others.all(|(other, hosts)| {
            !is_member(other, group) || !hosts.iter().any(|host| near(*scope, *host))
        }),
        Rule::Affinity { group, scope } => others.all(|(other, hosts)| {
            !is_member(other, group) || hosts.iter().all(|host| near(*scope, *host))
        }),
        Rule::Exclusive { .. } => {
            others.all(|(other, hosts)| other.project == request.project || !hosts.contains(&host))
        }
    }
}

/// The moves of a plan with what they wait for, numbered anew.
pub(crate) fn moves_of(plan: &Plan) -> Vec<(VmId, HostId, HostId, Vec<usize>)> {
    let mut numbers = BTreeMap::new();
    let mut moves = Vec::new();
    for (i, step) in plan.steps.iter().enumerate() {
        if let Action::Move { vm, from, to } = step.action {
            numbers.insert(i, moves.len());
            let after = step.after.iter().map(|j| numbers[j]).collect();
            moves.push((vm, from, to, after));
        }
    }
    moves
}

/// Panics if the plan makes the sum of overloads of CPU and memory larger than it is, or fills a target
/// above what it may be filled to. For loads that have not changed for long.
pub(crate) fn nothing_gets_worse(world: &World, plan: &Plan) {
    let settings = plimsoll_balance::Settings::default();
    let shares = |world: &World, host: HostId| {
        let capacity = &world.cluster.host(host).unwrap().capacity;
        let vms = world.cluster.vms_on(host).map(|vm| world.seen[&vm].usage);
        let (cpu, memory) = vms.fold((0, 0), |(cpu, memory), usage| {
            (cpu + usage.cpu_used.unwrap().0, memory + usage.memory_used.unwrap().0)
        });
        [cpu as f64 / capacity.cpu.0 as f64, memory as f64 / capacity.memory.0 as f64]
    };
    let thresholds = [settings.threshold.share(), settings.memory_threshold.share()];
    let overload = |world: &World| -> f64 {
        let hosts = world.cluster.hosts().map(|host| {
            shares(world, host.id)
                .iter()
                .zip(thresholds)
                .map(|(s, t)| (s - t).max(0.0))
                .sum::<f64>()
        });
        hosts.sum()
    };
    let mut after = world.clone();
    after.carry_out(plan);
    let (was, is) = (overload(world), overload(&after));
    assert!(is <= was + 1e-9, "{was} -> {is}");
    assert!(moves_of(plan).is_empty() || is < was, "moves without a gain");
    assert!((plan.overload_before.share() - was).abs() < 0.002, "{plan:#?} {was}");
    assert!((plan.overload_after.share() - is).abs() < 0.002, "{plan:#?} {is}");
    let hot: BTreeSet<_> = plan.hotspots.iter().map(|hotspot| hotspot.host).collect();
    for (vm, _, to, _) in moves_of(plan) {
        let alone = after.cluster.vms_on(to).all(|other| other == vm);
        if !hot.contains(&to) && !alone {
            let margin = settings.margin.share();
            for (share, threshold) in shares(&after, to).iter().zip(thresholds) {
                assert!(*share <= threshold - margin + 1e-9, "{to} is filled to {share}");
            }
        }
    }
}

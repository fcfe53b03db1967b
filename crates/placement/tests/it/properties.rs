//! Acceptance: 10^5 random histories of random clusters, each step checked against the naive model.

use std::{cell::Cell, collections::BTreeSet};

use plimsoll_model::{Element, HostId, Label, Policy, Resources};
use plimsoll_placement::{
    Choice, Cluster, Devices, Explanation, Refusal, Request, SplitLimits, Verdict, Workload,
};
use proptest::{
    collection::vec,
    prelude::{ProptestConfig, any},
    test_runner::TestRunner,
};

use crate::{
    naive::{Reason, World},
    scenario::{Tape, vm},
};

/// How many histories are run in all.
const CASES: u32 = 100_000;
/// In how many tests, which can run side by side.
const SHARDS: u32 = 4;
/// How many groups are tried.
const GROUPS: u32 = 20_000;
/// How many totals are split.
const SPLITS: u32 = 5_000;

/// How often something happened, so that a test cannot pass by never getting anywhere.
#[derive(Default)]
struct Seen {
    yes: Cell<u32>,
    no: Cell<u32>,
}

impl Seen {
    fn see(&self, what: bool) {
        let cell = if what { &self.yes } else { &self.no };
        cell.set(cell.get() + 1);
    }

    /// Panics unless both happened at least so often.
    fn at_least(&self, times: u32, what: &str) {
        eprintln!("{what}: {} yes, {} no", self.yes.get(), self.no.get());
        assert!(self.yes.get() >= times && self.no.get() >= times, "{what} is not tested");
    }
}

fn run(cases: u32, bytes: usize, check: impl Fn(&[u8])) {
    let config = ProptestConfig { cases, ..ProptestConfig::default() };
    let result = TestRunner::new(config).run(&vec(any::<u8>(), 0..bytes), |tape| {
        check(&tape);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    eprintln!("{cases} cases");
}

#[test]
fn histories_agree_with_the_naive_model_1() {
    histories();
}

#[test]
fn histories_agree_with_the_naive_model_2() {
    histories();
}

#[test]
fn histories_agree_with_the_naive_model_3() {
    histories();
}

#[test]
fn histories_agree_with_the_naive_model_4() {
    histories();
}

fn histories() {
    let placed = Seen::default();
    run(CASES / SHARDS, 400, |bytes| history(bytes, &placed));
    placed.at_least(CASES / SHARDS, "a request is placed");
}

/// One history: hosts come, VMs are placed, released and decided about again; in every other
/// history also facts are stated that no decision would have made.
fn history(bytes: &[u8], placed: &Seen) {
    let mut tape = Tape::new(bytes);
    let facts = tape.once_in(2);
    let mut world = World::default();
    let mut cluster = Cluster::new();
    for host in tape.hosts(true) {
        world.hosts.insert(host.id, host);
    }
    if tape.once_in(2) {
        let workload = tape.workload(true);
        cluster.set_workload(Some(Workload::new(workload.clone())));
        world.workload = Some(workload);
    }
    // The order in which hosts join must not matter.
    for host in world.hosts.values().rev() {
        cluster.upsert_host(host.clone());
    }
    let mut last = None;
    for number in 0..12 {
        if tape.is_at_end() {
            break;
        }
        let step = tape.below(if facts { 8 } else { 6 });
        let policy = tape.policy();
        match step {
            0..=3 => {
                let request = tape.request(vm(number), true);
                let choice = decide(&cluster, &world, &request, policy);
                placed.see(choice.is_some());
                if let Some(choice) = choice {
                    place(&mut cluster, &mut world, &request, &choice);
                }
                last = Some((request, policy));
            }
            4 => release(&mut tape, &mut cluster, &mut world),
            5 => redecide(&mut tape, &mut cluster, &mut world, policy),
            6 => {
                let request = tape.request(vm(number), true);
                let hosts: Vec<_> = world.hosts.keys().copied().collect();
                let host = hosts[tape.below(hosts.len())];
                state(&mut cluster, &mut world, &request, host);
            }
            _ => {
                let hosts: Vec<_> = world.hosts.keys().copied().collect();
                let id = hosts[tape.below(hosts.len())];
                let host = tape.host(id, true);
                // Another capacity numbers devices anew, which the naive model does not follow.
                let capacity = world.hosts[&host.id].capacity.clone();
                let accelerators = capacity.accelerators.clone();
                let host = plimsoll_placement::HostState {
                    capacity: Resources { accelerators, ..host.capacity.clone() },
                    ..host
                };
                cluster.upsert_host(host.clone());
                world.hosts.insert(host.id, host);
            }
        }
        if !facts {
            world.check();
        }
        sums_agree(&cluster, &world);
    }
    if let Some((request, policy)) = last {
        same_bytes(&cluster, &world, &request, policy);
    }
}

/// Decides, and checks the decision and its explanation against the naive model.
fn decide(cluster: &Cluster, world: &World, request: &Request, policy: Policy) -> Option<Choice> {
    let decided = cluster.decide(request, policy);
    let explanation = cluster.explain(request, policy);
    assert_eq!(decided.as_ref().ok(), explanation.choice.as_ref(), "explain disagrees");
    assert_eq!(
        decided.as_ref().ok().map(|choice| choice.host),
        world.pick(policy, request),
        "{policy} did not pick what its formula says: {explanation:#?}"
    );
    if let Err(refusals) = &decided {
        assert_eq!(*refusals, explanation.refusals());
    }
    check_explanation(world, request, policy, &explanation);
    for host in &explanation.hosts {
        let on = cluster.decide_on(request, host.host, policy).unwrap();
        match &host.verdict {
            Verdict::Possible { score, .. } => assert_eq!(on.unwrap().score, *score),
            Verdict::Refused { reasons } => {
                assert_eq!(Some(on.unwrap_err()), reasons.first().cloned());
            }
        }
    }
    decided.ok()
}

fn check_explanation(world: &World, request: &Request, policy: Policy, explanation: &Explanation) {
    assert!(explanation.hosts.iter().map(|h| h.host).eq(world.hosts.keys().copied()));
    let mut ranks = BTreeSet::new();
    for (verdict, host) in explanation.hosts.iter().zip(world.hosts.values()) {
        let expected = world.reasons(host, request);
        match &verdict.verdict {
            Verdict::Refused { reasons } => {
                let mut kinds: Vec<_> = reasons.iter().map(kind).collect();
                kinds.sort();
                kinds.dedup();
                assert_eq!(kinds, expected, "{reasons:?}");
                for reason in reasons {
                    if let Refusal::Insufficient { element, need, free, capacity } = reason {
                        let any = request.accelerator.as_ref().map_or(0, |any| any.thousandths);
                        let own = request.demand.get(element);
                        let accelerator = matches!(element, Element::Accelerator(_));
                        assert!(*need == own || accelerator && *need == own + any);
                        assert_eq!(*free, world.free(host, element, request));
                        assert_eq!(*capacity, host.capacity.get(element));
                    }
                }
            }
            Verdict::Possible { rank, score, broken } => {
                assert!(expected.is_empty(), "{} should be refused: {expected:?}", host.id);
                assert!(ranks.insert(*rank));
                assert_eq!(*rank == 1, explanation.choice.as_ref().unwrap().host == host.id);
                assert_eq!(*broken, world.broken(host, request));
                let cost = world.cost(policy, host, request);
                assert!((score.abs() - cost.abs()).abs() < 1e-9, "{policy}: {score} {cost}");
            }
        }
    }
    let possible = ranks.len();
    assert!(ranks.into_iter().eq((1..).take(possible)));
    assert_eq!(possible > 0, explanation.choice.is_some());
}

const fn kind(refusal: &Refusal) -> Reason {
    match refusal {
        Refusal::Unschedulable { .. } => Reason::Schedulable,
        Refusal::Pinned { .. } => Reason::Pinned,
        Refusal::Excluded => Reason::Excluded,
        Refusal::Pool { .. } => Reason::Pool,
        Refusal::Insufficient { .. } | Refusal::Fragmented { .. } => Reason::Room,
        Refusal::HostLabel { .. } => Reason::HostLabel,
        Refusal::Affinity { .. } | Refusal::AffinityOfPlaced { .. } => Reason::Near,
        Refusal::AntiAffinity { .. } | Refusal::AntiAffinityOfPlaced { .. } => Reason::Apart,
        Refusal::Exclusive { .. } | Refusal::ExclusiveOfPlaced { .. } => Reason::Alone,
    }
}

/// States a choice as a fact; on the way, occupying and releasing are exact inverses.
fn place(cluster: &mut Cluster, world: &mut World, request: &Request, choice: &Choice) {
    let before = cluster.clone();
    let occupied = cluster.occupy_devices(choice.host, request, &choice.devices).unwrap();
    assert_eq!(occupied.devices, choice.devices);
    assert!(occupied.over.is_empty(), "{:?}", occupied.over);
    let after = cluster.clone();
    let placed = cluster.release(request.vm).unwrap();
    assert_eq!(*cluster, before);
    let again = cluster.occupy_devices(placed.host, &placed.request, &placed.devices).unwrap();
    assert!(again.over.is_empty());
    assert_eq!(*cluster, after);
    check_devices(cluster, world, request, choice);
    let settled = world.settled(&world.hosts[&choice.host], request);
    world.placed.push((choice.host, settled, choice.devices.clone()));
}

/// A share goes to the fullest device that has room for it, or where the policy likes it best.
fn check_devices(cluster: &Cluster, world: &World, request: &Request, choice: &Choice) {
    let host = &world.hosts[&choice.host];
    let settled = world.settled(host, request);
    assert_eq!(cluster.placed(request.vm).map(|placed| &placed.request), Some(&settled));
    if matches!(choice.policy, Policy::Fgd | Policy::LeastStranding) {
        let ways = world.ways(choice.policy, host, &settled);
        let least = ways.iter().map(|(_, cost)| *cost).fold(f64::MAX, f64::min);
        let taken = |model: &Label, device: &usize| {
            let share = settled.demand.accelerators.get(model) % 1000;
            choice.devices.0[model]
                .iter()
                .any(|taken| taken.device as usize == *device && taken.thousandths == share)
        };
        let chosen = ways.iter().find(|(way, cost)| {
            *cost < least + 1e-9 && way.iter().all(|(model, device)| taken(model, device))
        });
        assert!(chosen.is_some(), "{choice:?} is not among {ways:?}");
        return;
    }
    for (model, need) in &settled.demand.accelerators.0 {
        if *need < 1000 {
            let free = world.free_devices(host, model, request);
            let best = free.iter().copied().filter(|free| free >= need).min();
            assert_eq!(Some(free[choice.devices.0[model][0].device as usize]), best);
        }
    }
}

/// States that a VM is where no decision might have put it.
fn state(cluster: &mut Cluster, world: &mut World, request: &Request, host: HostId) {
    let before = cluster.clone();
    let _ = cluster.occupy(host, request).unwrap();
    assert_eq!(cluster.release(request.vm).unwrap().host, host);
    assert_eq!(*cluster, before);
    let occupied = cluster.occupy(host, request).unwrap();
    assert!(cluster.occupy(host, request).is_err());
    let state = &world.hosts[&host];
    let fits = world.reasons(state, request).iter().all(|reason| *reason != Reason::Room);
    if fits {
        assert!(occupied.over.is_empty(), "{:?}", occupied.over);
    } else {
        assert!(!occupied.over.is_empty());
    }
    let settled = cluster.placed(request.vm).unwrap().request.clone();
    world.placed.push((host, settled, occupied.devices));
}

fn release(tape: &mut Tape<'_>, cluster: &mut Cluster, world: &mut World) {
    if world.placed.is_empty() {
        return;
    }
    let (host, request, devices) = world.placed.remove(tape.below(world.placed.len()));
    let placed = cluster.release(request.vm).unwrap();
    assert_eq!((placed.host, placed.request, placed.devices), (host, request.clone(), devices));
    assert!(cluster.release(request.vm).is_none());
}

/// A VM that is placed is decided about as if it had left, perhaps with another demand.
fn redecide(tape: &mut Tape<'_>, cluster: &mut Cluster, world: &mut World, policy: Policy) {
    if world.placed.is_empty() {
        return;
    }
    let at = tape.below(world.placed.len());
    let mut request = world.placed[at].1.clone();
    if tape.once_in(2) {
        request = tape.request(request.vm, true);
    }
    let with = cluster.explain(&request, policy);
    let choice = decide(cluster, world, &request, policy);
    cluster.release(request.vm).unwrap();
    world.placed.remove(at);
    assert_eq!(cluster.explain(&request, policy), with);
    if let Some(choice) = choice {
        place(cluster, world, &request, &choice);
    }
}

fn sums_agree(cluster: &Cluster, world: &World) {
    for host in world.hosts.values() {
        let mut sum = Resources::default();
        let mut vms = BTreeSet::new();
        for (_, request, _) in world.placed.iter().filter(|(at, ..)| *at == host.id) {
            sum = sum.plus(&request.demand);
            vms.insert(request.vm);
        }
        assert_eq!(cluster.committed(host.id), sum);
        assert!(cluster.vms_on(host.id).eq(vms));
        assert_eq!(cluster.host(host.id), Some(host));
        let free = cluster.free(host.id);
        assert_eq!(free.scalars(), host.capacity.minus(&sum).scalars());
    }
    for (host, request, _) in &world.placed {
        assert_eq!(cluster.placed(request.vm).map(|placed| placed.host), Some(*host));
    }
}

/// A cluster built anew from the same facts in another order gives the same bytes.
fn same_bytes(cluster: &Cluster, world: &World, request: &Request, policy: Policy) {
    let mut other = Cluster::new();
    for host in world.hosts.values() {
        other.upsert_host(host.clone());
    }
    other.set_workload(world.workload.clone().map(Workload::new));
    for (host, request, devices) in world.placed.iter().rev() {
        let _ = other.occupy_devices(*host, request, devices).unwrap();
    }
    let bytes = |cluster: &Cluster| serde_json::to_vec(&cluster.explain(request, policy)).unwrap();
    assert_eq!(bytes(cluster), bytes(&other));
}

#[test]
fn groups_are_all_or_nothing_and_found_whenever_there_is_a_way() {
    let (possible, repaired) = (Seen::default(), Seen::default());
    run(GROUPS, 200, |bytes| {
        let mut tape = Tape::new(bytes);
        let mut world = World::default();
        let mut cluster = Cluster::new();
        for host in tape.hosts(false).into_iter().take(4) {
            cluster.upsert_host(host.clone());
            world.hosts.insert(host.id, host);
        }
        let policy = tape.policy();
        for number in 0..tape.below(4) {
            let request = tape.request(vm(100 + number), false);
            if let Ok(choice) = cluster.decide(&request, policy) {
                place(&mut cluster, &mut world, &request, &choice);
            }
        }
        let group: Vec<_> = (0..1 + tape.below(4)).map(|n| tape.request(vm(n), false)).collect();
        let before = cluster.clone();
        let result = cluster.decide_group(&group, policy);
        assert_eq!(cluster, before, "the cluster has changed");
        assert_eq!(cluster.decide_group(&group, policy), result);
        possible.see(result.is_ok());
        let greedy = greedy(&world, &group, policy);
        repaired.see(greedy.is_none() && result.is_ok());
        if let Some(hosts) = greedy {
            let choices = result.as_ref().unwrap();
            assert!(
                choices.iter().map(|choice| choice.host).eq(hosts),
                "not the order of {policy}"
            );
        }
        match result {
            Ok(choices) => {
                assert!(choices.iter().map(|c| c.vm).eq(group.iter().map(|r| r.vm)));
                for (request, choice) in group.iter().zip(&choices) {
                    let host = &world.hosts[&choice.host];
                    assert_eq!(world.reasons(host, request), [], "{choice:?}");
                    place(&mut cluster, &mut world, request, choice);
                }
                world.check();
            }
            Err(refusal) => {
                assert!(!any_way(&mut world, &group), "there is a way: {refusal:?}");
                assert_eq!(group[refusal.index].vm, refusal.vm);
            }
        }
    });
    possible.at_least(GROUPS / 10, "a group is placed");
    repaired.at_least(GROUPS / 400, "a group is placed in another order than the policy's");
}

/// The group placed one by one in the policy's order, if that works.
fn greedy(world: &World, group: &[Request], policy: Policy) -> Option<Vec<HostId>> {
    let mut order: Vec<usize> = (0..group.len()).collect();
    if matches!(policy, Policy::FfdProd | Policy::FfdSum) {
        let elements: Vec<_> = plimsoll_model::Element::SCALARS
            .into_iter()
            .filter(|element| group.iter().any(|request| request.demand.get(element) > 0))
            .collect();
        let size = |at: &usize| {
            let shares: Vec<f64> = elements
                .iter()
                .filter_map(|element| {
                    let having: Vec<u64> = world
                        .hosts
                        .values()
                        .map(|host| host.capacity.get(element))
                        .filter(|capacity| *capacity > 0)
                        .collect();
                    let mean = having.iter().sum::<u64>() as f64 / having.len() as f64;
                    (!having.is_empty()).then(|| group[*at].demand.get(element) as f64 / mean)
                })
                .collect();
            (shares.iter().product::<f64>(), shares.iter().sum::<f64>())
        };
        order.sort_by(|a, b| {
            let ((product_a, sum_a), (product_b, sum_b)) = (size(a), size(b));
            if policy == Policy::FfdProd && product_a != product_b {
                return product_b.total_cmp(&product_a);
            }
            sum_b.total_cmp(&sum_a)
        });
    }
    let mut world = world.clone();
    let mut hosts = vec![HostId(0); group.len()];
    for at in order {
        hosts[at] = world.pick(policy, &group[at])?;
        world.placed.push((hosts[at], group[at].clone(), Devices::default()));
    }
    Some(hosts)
}

/// Tries every assignment.
fn any_way(world: &mut World, group: &[Request]) -> bool {
    let Some((request, rest)) = group.split_first() else { return true };
    let hosts: Vec<_> = world.hosts.keys().copied().collect();
    hosts.into_iter().any(|id| {
        if !world.reasons(&world.hosts[&id], request).is_empty() {
            return false;
        }
        world.placed.push((id, request.clone(), Devices::default()));
        let found = any_way(world, rest);
        world.placed.pop();
        found
    })
}

#[test]
fn totals_split_into_the_fewest_vms_that_can_be_placed() {
    let (possible, several) = (Seen::default(), Seen::default());
    run(SPLITS, 120, |bytes| {
        let mut tape = Tape::new(bytes);
        let mut cluster = Cluster::new();
        for host in tape.hosts(true) {
            cluster.upsert_host(host);
        }
        let policy = tape.policy();
        let template = tape.request(vm(0), true);
        let total = template.demand.times(1 + tape.below(8) as u64);
        let max_vms = 1 + u32::try_from(tape.below(12)).unwrap();
        let limits = SplitLimits {
            min_vms: u32::try_from(tape.below(3)).unwrap(),
            max_vms,
            ..SplitLimits::default()
        };
        let before = cluster.clone();
        let result = cluster.split_total(&total, &limits, &template, policy);
        assert_eq!(cluster, before, "the cluster has changed");
        possible.see(result.is_ok());
        let Ok(parts) = result else { return };
        several.see(parts.len() > 1);
        let count = u32::try_from(parts.len()).unwrap();
        assert!((limits.min_vms..=limits.max_vms).contains(&count));
        assert_eq!(parts.iter().fold(Resources::default(), |sum, part| sum.plus(part)), total);
        let requests: Vec<_> = (0..)
            .zip(&parts)
            .map(|(n, part)| Request { vm: vm(n), demand: part.clone(), ..template.clone() })
            .collect();
        assert!(cluster.decide_group(&requests, policy).is_ok());
        if count > limits.min_vms.max(1) {
            let fewer = SplitLimits { max_vms: count - 1, ..limits };
            assert!(cluster.split_total(&total, &fewer, &template, policy).is_err());
        }
    });
    possible.at_least(SPLITS / 10, "a total is split");
    several.at_least(SPLITS / 100, "it is split into several VMs");
}

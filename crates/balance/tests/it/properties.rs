//! Plans and drains of random clusters with rules, against the naive checks.

use plimsoll_balance::{Settings, Subject};
use plimsoll_model::{Constraint, ExclusiveAgainst, HostId, ProjectId, Rule, Scope, Strength};
use plimsoll_placement::Unschedulable;
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

use crate::{
    check::{every_step_is_feasible, moves_of, nothing_gets_worse},
    world::{World, request, vm},
};

/// Hosts of different sizes, racks and labels, some of them hot and tight, and VMs under rules, which
/// placement admits one after the other.
fn world(rng: &mut ChaCha8Rng) -> World {
    let settings = Settings { moves_at_once: 64, ..Settings::default() };
    let mut world = World::new(settings);
    let hosts = rng.random_range(2..=8);
    for id in 1..=hosts {
        world.add_host(id, *[4, 8, 16].choose(rng).unwrap(), *[8, 16, 32].choose(rng).unwrap());
        let mut state = world.cluster.host(HostId(id)).unwrap().clone();
        state.rack =
            [None, Some("r1"), Some("r2")].choose(rng).unwrap().map(|r| r.parse().unwrap());
        if rng.random_bool(0.5) {
            state.labels.insert("storage".parse().unwrap(), "ssd".parse().unwrap());
        }
        state.unschedulable = rng.random_bool(0.1).then_some(Unschedulable::Draining);
        world.cluster.upsert_host(state);
    }
    let busy: Vec<u64> = (0..=hosts).map(|_| rng.random_range(0..1600)).collect();
    for id in 0..rng.random_range(5..=40) {
        let cores = rng.random_range(0..=4);
        let mut request = request(vm(id), cores, rng.random_range(1..=6));
        request.project = ProjectId(uuid::Uuid::from_u128(u128::from(id % 7 == 0)));
        for group in ["g", "h"] {
            if rng.random_bool(0.3) {
                request.groups.insert(group.parse().unwrap());
            }
        }
        if rng.random_bool(0.3) {
            let rule = rule(rng);
            let strength = *[Strength::Required, Strength::Preferred].choose(rng).unwrap();
            request.constraints.push(Constraint { strength, rule });
        }
        let host = HostId(rng.random_range(1..=hosts));
        let policy = plimsoll_model::Policy::FirstFit;
        if let Some(Ok(_)) = world.cluster.decide_on(&request, host, policy) {
            let most = cores * busy[host.0 as usize];
            let cpu = rng.random_range(most / 2..=most);
            world.add_vm(&request, host.0, cpu);
            if rng.random_bool(0.3) {
                let state = world.vms.get_mut(&request.vm).unwrap();
                state.least.cpu.0 /= 2;
            }
        }
    }
    world.observe(rng.random_range(3..=80));
    world
}

fn rule(rng: &mut ChaCha8Rng) -> Rule {
    let group = ["g", "h"].choose(rng).unwrap().parse().unwrap();
    let scope = *[Scope::Host, Scope::Rack, Scope::Zone].choose(rng).unwrap();
    match rng.random_range(0..5) {
        0 | 1 => Rule::AntiAffinity { group, scope },
        2 => Rule::Affinity { group, scope },
        3 => Rule::Exclusive { against: ExclusiveAgainst::OtherProjects },
        _ => {
            let values = vec!["ssd".parse().unwrap()];
            Rule::HostLabel { key: "storage".parse().unwrap(), values }
        }
    }
}

#[test]
fn every_plan_is_feasible_at_each_step_gains_and_is_the_same_again() {
    let (mut moves, mut swaps, mut resizes) = (0, 0, 0);
    for seed in 0..3000 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let world = world(&mut rng);
        let before = world.cluster.clone();
        let plan = world.plan();
        assert!(world.cluster == before, "planning changes nothing");
        assert_eq!(plan, world.clone().plan(), "seed {seed}");
        let planned = moves_of(&plan);
        moves += planned.len();
        swaps += planned.iter().filter(|step| !step.3.is_empty()).count();
        resizes += plan.steps.len() - planned.len();
        every_step_is_feasible(&world, &planned, |count| rng.random_range(0..count));
        if plan.steps.len() == planned.len() {
            nothing_gets_worse(&world, &plan);
        }
        assert!(plan.overload_after <= plan.overload_before, "seed {seed}");
        for hotspot in &plan.hotspots {
            let met = plan
                .steps
                .iter()
                .any(|step| step.hosts.iter().any(|forecast| forecast.host == hotspot.host));
            let unmet = plan.unmet.iter().any(|one| one.subject == Subject::Host(hotspot.host));
            assert!(met || unmet, "nothing is said of {} with seed {seed}", hotspot.host);
        }
    }
    assert!(moves > 500 && swaps > 20 && resizes > 50, "{moves} {swaps} {resizes}");
}

#[test]
fn every_drain_is_feasible_at_each_step_and_leaves_nobody_out() {
    let (mut moved, mut stuck) = (0, 0);
    for seed in 0..2000 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let world = world(&mut rng);
        let host = HostId(1);
        let spread = world.balancer.spread(&world.situation(), host);
        let steps = spread.steps.iter();
        let moves: Vec<_> = steps.map(|s| (s.vm, host, s.to, Vec::new())).collect();
        moved += moves.len();
        stuck += spread.stuck.len();
        assert_eq!(moves.len() + spread.stuck.len(), world.cluster.vms_on(host).count());
        every_step_is_feasible(&world, &moves, |count| rng.random_range(0..count));
    }
    assert!(moved > 500 && stuck > 500, "{moved} {stuck}");
}

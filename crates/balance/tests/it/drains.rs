//! Hosts that are emptied.

use plimsoll_balance::{Fixed, Settings, StuckBecause};
use plimsoll_model::{Constraint, HostId, Rule, Strength};

use crate::{
    check::every_step_is_feasible,
    world::{World, request, vm},
};

fn full() -> World {
    let mut world = World::with_hosts(Settings::default(), 5, 16, 64);
    for id in 0..10 {
        world.add_vm(&request(vm(id), 1, 4), 1, 800);
    }
    world
}

#[test]
fn ten_vms_are_spread_over_all_other_hosts() {
    let mut world = full();
    world.observe(5);
    let spread = world.balancer.spread(&world.situation(), HostId(1));
    assert_eq!((spread.steps.len(), spread.stuck.len()), (10, 0));
    for host in 2..=5 {
        let count = spread.steps.iter().filter(|step| step.to == HostId(host)).count();
        assert!((2..=3).contains(&count), "{count} go to host {host}");
    }
    let last = spread.steps.last().unwrap();
    assert!(last.target.unwrap().after.cpu.unwrap().0 <= 150);
    let moves = spread.steps.iter();
    let moves: Vec<_> = moves.map(|step| (step.vm, HostId(1), step.to, Vec::new())).collect();
    every_step_is_feasible(&world, &moves, |count| count - 1);
}

#[test]
fn a_cluster_of_which_nothing_is_known_is_drained_by_what_was_promised() {
    let world = full();
    let spread = world.balancer.spread(&world.situation(), HostId(1));
    assert_eq!((spread.steps.len(), spread.stuck.len()), (10, 0));
    let mut targets: Vec<_> = spread.steps.iter().map(|step| step.to).collect();
    targets.sort();
    targets.dedup();
    assert_eq!(targets.len(), 4);
}

#[test]
fn those_that_cannot_leave_stay_and_it_is_said_why() {
    let mut world = full();
    let key: plimsoll_model::Label = "storage".parse().unwrap();
    let rule = Rule::HostLabel { key, values: vec!["ssd".parse().unwrap()] };
    let mut labelled = request(vm(20), 1, 4);
    labelled.constraints.push(Constraint { strength: Strength::Required, rule });
    world.add_vm(&labelled, 1, 100);
    world.add_vm(&request(vm(21), 1, 1), 1, 100);
    world.vms.get_mut(&vm(21)).unwrap().fixed = Some(Fixed::Forbidden);
    world.add_vm(&request(vm(22), 12, 1), 1, 11_000);
    world.observe(5);
    let spread = world.balancer.spread(&world.situation(), HostId(1));
    assert_eq!(spread.steps.len(), 10);
    let [refused, fixed, large] = &spread.stuck[..] else { panic!("{spread:#?}") };
    assert_eq!((refused.vm, fixed.vm, large.vm), (vm(20), vm(21), vm(22)));
    assert!(matches!(&refused.why, StuckBecause::Refused(refusals) if refusals.hosts == 5));
    assert_eq!(fixed.why, StuckBecause::Fixed { fixed: Fixed::Forbidden });
    assert!(matches!(large.why, StuckBecause::Overload { .. }), "{:?}", large.why);
}

#[test]
fn an_unknown_host_has_nothing_to_leave() {
    let world = full();
    let spread = world.balancer.spread(&world.situation(), HostId(99));
    assert!(spread.steps.is_empty() && spread.stuck.is_empty());
}

//! What is planned in a few typical situations.

use std::time::Duration;

use plimsoll_balance::{
    Action, Fixed, GuestWord, Latency, NoBeneficialMove, Permille, Reason, Resource, Settings,
    Subject, Symptom,
};
use plimsoll_model::{
    Bytes, BytesPerSecond, Constraint, HostId, MilliCores, Rule, Scope, Strength,
};

use crate::world::{World, amount, moves, request, vm};

/// Host 1 runs two VMs that take all of it, host 2 nothing.
fn two_on_one() -> World {
    let mut world = World::with_hosts(Settings::default(), 2, 4, 16);
    world.add_vm(&request(vm(1), 2, 4), 1, 2000);
    world.add_vm(&request(vm(2), 2, 4), 1, 2000);
    world
}

#[test]
fn a_hotspot_is_gone_after_three_samples_and_one_move() {
    let mut world = two_on_one();
    world.observe(2);
    assert_eq!(world.plan().steps, []);
    world.observe(1);
    let plan = world.plan();
    assert_eq!(moves(&plan), [(vm(1), 1, 2)]);
    let [step] = &plan.steps[..] else { panic!("{plan:#?}") };
    assert_eq!(step.reason, Reason::Hotspot { host: HostId(1), resource: Resource::Cpu });
    let cpu = |i: usize| {
        let forecast = step.hosts[i];
        (forecast.before.cpu.unwrap().0, forecast.after.cpu.unwrap().0)
    };
    assert_eq!((cpu(0), cpu(1)), ((1000, 500), (0, 500)));
    assert_eq!(step.gain, Permille(250));
    assert_eq!(step.cost.bytes, Bytes::gib(2));
    assert_eq!(step.cost.expected_ms, 3000);
    assert_eq!((plan.overload_before, plan.overload_after), (Permille(250), Permille(0)));
    world.carry_out(&plan);
    world.observe(30);
    assert!(world.plan().hotspots.is_empty());
}

#[test]
fn a_plan_can_be_sent() {
    let mut world = two_on_one();
    world.observe(5);
    let plan = world.plan();
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<plimsoll_balance::Plan>(&text).unwrap(), plan);
}

#[test]
fn the_vm_that_takes_what_is_short_goes_and_not_the_one_with_the_largest_volume() {
    let mut world = World::with_hosts(Settings::default(), 2, 8, 64);
    // Much memory and some CPU: a high volume. Little memory and much CPU: what is short.
    world.add_vm(&request(vm(1), 2, 30), 1, 2000);
    world.add_vm(&request(vm(2), 4, 2), 1, 3000);
    world.add_vm(&request(vm(3), 2, 2), 1, 2000);
    world.observe(5);
    assert_eq!(moves(&world.plan()), [(vm(2), 1, 2)]);
}

#[test]
fn what_a_vm_writes_is_part_of_what_its_move_costs() {
    let mut world = two_on_one();
    world.seen.get_mut(&vm(1)).unwrap().memory_written = Some(BytesPerSecond(1 << 29));
    world.observe(5);
    let plan = world.plan();
    assert_eq!(moves(&plan), [(vm(2), 1, 2)], "the one that writes less");
    world.vms.get_mut(&vm(2)).unwrap().fixed = Some(Fixed::Forbidden);
    let plan = world.plan();
    assert_eq!(moves(&plan), [(vm(1), 1, 2)]);
    assert_eq!(plan.steps[0].cost.bytes, Bytes::gib(4));
}

#[test]
fn nothing_that_is_not_measured_is_guessed() {
    let mut world = two_on_one();
    world.seen.clear();
    world.observe(5);
    assert!(world.plan().hotspots.is_empty(), "no host asks for anything");

    let mut world = two_on_one();
    world.observe(5);
    world.balancer.retain(|_| true, |_| false);
    let plan = world.plan();
    assert_eq!(plan.steps, []);
    let NoBeneficialMove::Tried(tried) = &plan.unmet[0].why else { panic!("{plan:#?}") };
    assert_eq!((tried.vms, tried.no_help), (2, 2));

    let mut world = two_on_one();
    world.observe(5);
    world.balancer.retain(|host| host == HostId(1), |_| true);
    assert_eq!(world.plan().steps, [], "host 2 is not measured");
}

#[test]
fn without_a_beneficial_move_it_is_said_what_was_tried() {
    let mut world = two_on_one();
    world.add_vm(&request(vm(3), 2, 12), 2, 2500);
    world.observe(5);
    let plan = world.plan();
    assert_eq!(plan.steps, []);
    assert_eq!(plan.unmet[0].subject, Subject::Host(HostId(1)));
    let NoBeneficialMove::Tried(tried) = &plan.unmet[0].why else { panic!("{plan:#?}") };
    assert_eq!((tried.vms, tried.looked_for, tried.too_full), (2, 2, 2));
}

#[test]
fn placement_has_the_last_word() {
    let mut world = World::with_hosts(Settings::default(), 2, 4, 16);
    let apart = Rule::AntiAffinity { group: "g".parse().unwrap(), scope: Scope::Host };
    let grouped = |id: u32| {
        let mut request = request(vm(id), 1, 4);
        request.groups.insert("g".parse().unwrap());
        let rule = apart.clone();
        request.constraints.push(Constraint { strength: Strength::Required, rule });
        request
    };
    world.add_vm(&grouped(1), 1, 1900);
    world.add_vm(&grouped(2), 2, 100);
    world.add_vm(&request(vm(3), 2, 4), 1, 1900);
    world.vms.get_mut(&vm(3)).unwrap().fixed = Some(Fixed::Busy);
    world.observe(5);
    let plan = world.plan();
    assert_eq!(plan.steps, []);
    let NoBeneficialMove::Tried(tried) = &plan.unmet[0].why else { panic!("{plan:#?}") };
    let example = tried.example.as_ref().unwrap();
    assert_eq!((example.vm, example.to), (vm(1), HostId(2)));
    assert_eq!(example.refusal.to_string(), "1 of group g in the same host");
}

#[test]
fn a_hot_vm_changes_places_with_a_cold_one_when_no_host_has_room() {
    // Host 2 has no memory for either; its cold VM fits beside those of host 1, and then one of them
    // has room.
    let mut world = World::with_hosts(Settings::default(), 2, 4, 16);
    world.add_vm(&request(vm(1), 2, 5), 1, 2000);
    world.add_vm(&request(vm(2), 2, 5), 1, 2000);
    world.add_host(2, 6, 16);
    world.add_vm(&request(vm(3), 0, 6), 2, 100);
    world.add_vm(&request(vm(4), 2, 8), 2, 200);
    world.observe(5);
    let plan = world.plan();
    assert_eq!(moves(&plan), [(vm(3), 2, 1), (vm(1), 1, 2)]);
    assert_eq!(plan.steps[0].reason, Reason::Swap { with: vm(1), hotspot: HostId(1) });
    assert_eq!((plan.steps[0].gain, plan.steps[0].after.len()), (Permille(0), 0));
    assert_eq!(plan.steps[1].after, [0]);
    world.carry_out(&plan);
    world.observe(20);
    assert!(world.plan().hotspots.is_empty());
}

#[test]
fn a_short_overload_is_met_by_limits_and_a_long_one_by_a_move() {
    let mut world = two_on_one();
    for id in [1, 2] {
        world.vms.get_mut(&vm(id)).unwrap().least.cpu = MilliCores(500);
    }
    world.observe(3);
    let plan = world.plan();
    assert_eq!(moves(&plan), []);
    let to = plan.steps.iter().map(|step| match step.action {
        Action::Resize { to, .. } => to.cpu.0,
        Action::Move { .. } => panic!("{plan:#?}"),
    });
    // 75 % of four cores are left.
    assert_eq!(to.collect::<Vec<_>>(), [1500, 1500]);
    assert_eq!(plan.overload_after, Permille(0));
    world.carry_out(&plan);
    world.observe(3);
    let plan = world.plan();
    assert_eq!(plan.steps, []);
    assert!(matches!(plan.unmet[0].why, NoBeneficialMove::EndsSoon { .. }), "{plan:#?}");
    // It goes on for longer than two minutes.
    world.observe(60);
    let plan = world.plan();
    assert_eq!(moves(&plan).len(), 1, "{plan:#?}");
    world.carry_out(&plan);
    // Then both get back what they had.
    world.observe(10);
    let plan = world.plan();
    world.carry_out(&plan);
    assert!(plan.steps.iter().all(|step| step.reason == Reason::Restore), "{plan:#?}");
    assert_eq!(world.vms[&vm(1)].has, amount(2, 4));
    assert_eq!(world.vms[&vm(2)].has, amount(2, 4));
}

/// A VM whose application is too slow on a host that looks idle.
fn slow() -> World {
    let mut world = World::with_hosts(Settings::default(), 2, 8, 32);
    world.add_vm(&request(vm(1), 2, 8), 1, 900);
    world.add_vm(&request(vm(2), 4, 8), 1, 2500);
    let seen = world.seen.get_mut(&vm(1)).unwrap();
    seen.guest = GuestWord {
        latency: Some(Latency {
            seen: Duration::from_millis(250),
            objective: Duration::from_millis(100),
        }),
        ..GuestWord::default()
    };
    world
}

#[test]
fn an_application_that_is_too_slow_gets_more_where_it_is() {
    let mut world = slow();
    world.vms.get_mut(&vm(1)).unwrap().has.cpu = MilliCores(1000);
    world.observe(3);
    let plan = world.plan();
    assert!(plan.hotspots.is_empty());
    let symptom = Symptom::Latency { seen_us: 250_000, objective_us: 100_000 };
    let [step] = &plan.steps[..] else { panic!("{plan:#?}") };
    assert_eq!(step.reason, Reason::Need { symptom, short: Some(Resource::Cpu) });
    let Action::Resize { from, to, .. } = step.action else { panic!("{plan:#?}") };
    assert_eq!((from.cpu.0, to.cpu.0), (1000, 2000));
}

#[test]
fn an_application_that_has_all_it_may_have_goes_to_where_others_leave_more() {
    let mut world = slow();
    world.observe(3);
    let plan = world.plan();
    assert_eq!(moves(&plan), [(vm(1), 1, 2)]);
    world.carry_out(&plan);
    // Still slow, though alone: nothing is to be gained by another move.
    world.observe(200);
    let plan = world.plan();
    assert_eq!(plan.steps, []);
    assert_eq!(plan.unmet[0].subject, Subject::Vm(vm(1)));
}

#[test]
fn a_guest_without_memory_gets_what_was_taken_from_it() {
    let mut world = slow();
    let seen = world.seen.get_mut(&vm(1)).unwrap();
    seen.guest = GuestWord { memory_pressure: Some(Permille(300)), ..GuestWord::default() };
    world.vms.get_mut(&vm(1)).unwrap().has.memory = Bytes::gib(5);
    world.observe(3);
    let plan = world.plan();
    assert_eq!(plan.needs[0].symptom, Symptom::MemoryPressure);
    let Action::Resize { to, .. } = plan.steps[0].action else { panic!("{plan:#?}") };
    assert_eq!(to, amount(2, 8));
}

#[test]
fn no_more_moves_run_at_once_than_may() {
    let mut world = two_on_one();
    world.moves_running = Settings::default().moves_at_once;
    world.observe(5);
    let plan = world.plan();
    assert_eq!(plan.steps, []);
    assert_eq!(plan.unmet[0].why, NoBeneficialMove::MovesAtOnce { limit: 8 });
}

#[test]
fn a_vm_that_moved_is_spared_unless_there_is_an_emergency() {
    let settled = |cpu: u64| {
        let mut world = World::with_hosts(Settings::default(), 2, 4, 16);
        world.add_vm(&request(vm(1), 2, 4), 1, 1000);
        world.observe(5);
        world.balancer.moved(world.now, vm(1), HostId(2), HostId(1));
        world.add_vm(&request(vm(2), 2, 4), 1, cpu);
        world.vms.get_mut(&vm(2)).unwrap().fixed = Some(Fixed::Forbidden);
        world
    };
    let mut world = settled(2200);
    world.observe(20);
    let plan = world.plan();
    assert_eq!((plan.hotspots.len(), plan.steps.len()), (1, 0), "{plan:#?}");
    world.now += Duration::from_secs(300);
    assert_eq!(moves(&world.plan()).len(), 1);
    let mut world = settled(2900);
    world.observe(20);
    let plan = world.plan();
    assert!(plan.hotspots[0].emergency);
    assert_eq!(moves(&plan), [(vm(1), 1, 2)]);
}

//! Single situations, each with what must come of it.

use plimsoll_model::{Amount, Bytes, Elasticity, MilliCores};
use plimsoll_reclaim::{Memory, Plan, Pressure, Reason, State, plan};

use crate::settles::{Guest, World};

const MIB: u64 = 1 << 20;

fn burstable(min: u64, shares: u32) -> Elasticity {
    Elasticity::Burstable { memory_min: Bytes::mib(min), cpu_min: MilliCores(100), shares }
}

/// Guests of so many MiB, of processes and of files.
fn world(memory: u64, guests: &[(Elasticity, u64, u64, u64)]) -> World {
    let guests = guests.iter().map(|(elasticity, promised, needs, files)| {
        Guest::new(elasticity.clone(), promised * MIB, needs * MIB, files * MIB)
    });
    World {
        memory: memory * MIB,
        swap: 4096 * MIB,
        guests: guests.collect(),
        remembered: Memory::default(),
    }
}

fn run(world: &mut World, rounds: usize) -> Plan {
    (1..rounds).for_each(|_| drop(world.round()));
    world.round()
}

fn sizes(world: &World) -> Vec<u64> {
    world.guests.iter().map(|guest| guest.target / MIB).collect()
}

#[test]
fn while_there_is_enough_nothing_is_taken() {
    // Twice what there is was promised; a third of it is used.
    let vm = (burstable(128, 100), 1000, 300, 50);
    let mut world = world(2000, &[vm.clone(), vm.clone(), vm.clone(), vm]);
    let plan = run(&mut world, 50);
    assert_eq!((plan.state, plan.needed), (State::High, Bytes::ZERO));
    assert_eq!(sizes(&world), [1000; 4]);
    assert!(plan.targets.iter().all(|target| target.reasons.is_empty()));
}

#[test]
fn idle_cache_goes_before_what_is_used() {
    // Two that fill all with files; one reads them all again and again.
    let mut world = world(
        1600,
        &[(burstable(128, 100), 1000, 200, 900), (burstable(128, 100), 1000, 200, 900)],
    );
    (world.guests[0].hot, world.guests[1].hot) = (700 * MIB, 20 * MIB);
    let plan = run(&mut world, 100);
    let [used, idle] = sizes(&world)[..] else { unreachable!() };
    assert_eq!(plan.state, State::High);
    assert!(used > 900 && idle < 600, "{used} {idle}");
}

#[test]
fn shares_divide_what_all_use() {
    let mut world = world(
        1600,
        &[(burstable(128, 200), 1000, 100, 900), (burstable(128, 100), 1000, 100, 900)],
    );
    world.guests.iter_mut().for_each(|guest| guest.hot = guest.files);
    run(&mut world, 200);
    let [rich, poor] = sizes(&world)[..] else { unreachable!() };
    assert!(rich.abs_diff(2 * poor) < 20, "{rich} {poor}");
}

#[test]
fn when_there_is_room_again_it_is_given_back() {
    let vm = (burstable(128, 100), 1000, 200, 900);
    let mut world = world(1600, &[vm.clone(), vm]);
    run(&mut world, 100);
    assert!(sizes(&world)[0] < 900, "{:?}", sizes(&world));
    // The other ends.
    world.guests.pop();
    let plan = run(&mut world, 20);
    assert_eq!(sizes(&world), [1000], "{plan:?}");
    assert!(plan.targets[0].reasons.is_empty(), "{plan:?}");
}

#[test]
fn a_guaranteed_vm_has_its_need_before_others_grow() {
    let guaranteed = (Elasticity::Guaranteed, 1000, 100, 0);
    let mut world = world(1500, &[guaranteed, (burstable(128, 10_000), 1400, 100, 1400)]);
    run(&mut world, 100);
    assert!(sizes(&world)[1] > 1000, "lent: {:?}", sizes(&world));
    for needs in 2..10 {
        world.guests[0].needs = needs * 100 * MIB;
        let plan = world.round();
        assert_eq!(plan.targets[0].memory, Bytes::mib(1000));
    }
    let plan = run(&mut world, 20);
    assert_eq!((plan.shortfall, plan.state), (Bytes::ZERO, State::High), "{plan:?}");
    assert!(sizes(&world)[1] < 550, "{:?}", sizes(&world));
}

#[test]
fn a_guest_that_waits_gets_some_back_at_once_if_there_is_room() {
    let mut world = world(2000, &[(burstable(128, 100), 1000, 200, 900)]);
    world.guests[0].target = 500 * MIB;
    world.guests[0].size = 500 * MIB;
    world.guests[0].hot = 600 * MIB;
    let plan = world.round();
    assert!(plan.targets[0].memory >= Bytes::mib(625), "{plan:?}");
    assert!(plan.targets[0].reasons.iter().any(|reason| matches!(reason, Reason::Waits { .. })));
}

#[test]
fn a_guest_that_waits_is_spared_while_there_is_no_hurry() {
    // Cut to half, and it hurts; the other wants more, at a higher price.
    let mut world = world(
        1290,
        &[(burstable(128, 1), 1000, 100, 900), (burstable(128, 10_000), 1000, 100, 900)],
    );
    world.guests[0].hot = 900 * MIB;
    world.guests[0].target = 600 * MIB;
    world.guests[0].size = 600 * MIB;
    world.guests[1].target = 600 * MIB;
    world.guests[1].size = 600 * MIB;
    let plan = world.round();
    assert_eq!(plan.state, State::High);
    assert_eq!(plan.targets[0].memory, Bytes::mib(600), "{plan:?}");
    // The host is short: then it gives, in small steps.
    world.memory = 1215 * MIB;
    let plan = world.round();
    assert_eq!(plan.state, State::Soft, "{plan:?}");
    let taken = 600 - (plan.targets[0].memory.0 >> 20);
    assert!((1..=10).contains(&taken), "{taken}: {plan:?}");
    assert_eq!(plan.shortfall, Bytes::ZERO, "{plan:?}");
}

#[test]
fn a_guest_that_does_not_answer_is_paged_out_when_nothing_else_is_left() {
    let mut world = world(1000, &[(burstable(128, 100), 1000, 700, 300)]);
    world.guests[0].answers = false;
    world.memory = 1024 * MIB;
    let plan = world.round();
    let silent = &plan.targets[0];
    assert_eq!((plan.state, silent.memory, silent.resident), (State::Soft, Bytes::mib(1000), None));
    assert!(plan.shortfall > Bytes::ZERO, "{plan:?}");
    assert!(silent.reasons.contains(&Reason::Silent));
    world.memory = 1000 * MIB;
    let plan = world.round();
    assert_eq!(plan.targets[0].memory, Bytes::mib(1000));
    assert!(plan.targets[0].resident.is_some_and(|resident| resident < Bytes::mib(1000)));
    let plan = run(&mut world, 20);
    assert_eq!((plan.state, plan.shortfall), (State::High, Bytes::ZERO), "{plan:?}");
}

#[test]
fn a_guest_that_does_not_give_is_not_waited_for() {
    let vm = (burstable(128, 100), 1000, 500, 500);
    let mut world = world(2000, &[vm.clone(), vm]);
    // Its balloon has no driver: it says so many things, and stays as it is.
    let stuck = |world: &mut World| {
        world.guests[0].size = 1000 * MIB;
        let plan = world.round();
        world.guests[0].size = 1000 * MIB;
        plan
    };
    let mut plan = stuck(&mut world);
    assert!(plan.targets[0].memory < Bytes::mib(1000), "{plan:?}");
    for _ in 0..10 {
        plan = stuck(&mut world);
    }
    assert!(plan.targets[0].reasons.contains(&Reason::Lags), "{plan:?}");
    for _ in 0..40 {
        plan = stuck(&mut world);
    }
    assert_eq!(plan.state, State::High, "the other gave what was needed: {plan:?}");
    assert!(sizes(&world)[1] < 900, "{:?}", sizes(&world));
}

#[test]
fn in_the_low_state_nobody_grows() {
    let mut world =
        world(1000, &[(burstable(64, 100), 1000, 300, 0), (burstable(64, 100), 1000, 700, 0)]);
    world.memory = 1005 * MIB;
    world.swap = 0;
    let plan = world.round();
    assert_eq!(plan.state, State::Low);
    for (target, held) in plan.targets.iter().zip([300, 700]) {
        // What the guest cannot do without, and a reserve.
        assert!(target.memory <= Bytes::mib(held + 32), "{target:?}");
        assert!(target.memory >= Bytes::mib(held), "{target:?}");
    }
}

#[test]
fn what_a_user_asks_to_be_taken_is_taken_at_once_and_by_the_host_where_the_guest_cannot() {
    let mut guest = Guest::new(burstable(100, 100), 1000 * MIB, 600 * MIB, 300 * MIB);
    guest.hot = 0;
    let world = World {
        memory: 8000 * MIB,
        swap: 1000 * MIB,
        guests: vec![guest],
        remembered: Memory::default(),
    };
    let asked = |mib, cpu| {
        let mut view = world.guests[0].view(0);
        view.asked = Amount { memory: Bytes::mib(mib), cpu: MilliCores(cpu) };
        let (plan, _) = plan(&world.host(), &[view], &Memory::default());
        assert_eq!((plan.state, plan.needed), (State::High, Bytes::ZERO));
        let target = plan.targets[0].clone();
        (target.memory.0 / MIB, target.resident.map(|r| r.0 / MIB), target.cpu.0)
    };
    assert_eq!(asked(250, 0), (750, None, 1000));
    assert_eq!(asked(0, 600), (1000, None, 400));
    assert_eq!(asked(0, 950), (1000, None, 100), "down to the minimum");
    // The guest requires 600 of its processes, 30 of its cache, and a reserve.
    assert_eq!(asked(500, 0), (662, Some(500), 1000));
    assert_eq!(asked(990, 0), (662, Some(100), 1000), "down to the minimum");
}

#[test]
fn a_host_that_stalls_asks_its_guests() {
    let vm = (burstable(128, 100), 1000, 300, 600);
    let world = world(2000, &[vm.clone(), vm]);
    let views: Vec<_> = world.guests.iter().map(|guest| guest.view(0)).collect();
    let mut host = world.host();
    let state = |host: &_| plan(host, &views, &Memory::default()).0.state;
    assert_eq!(state(&host), State::High);
    host.pressure = Pressure { some: 900, full: 300 };
    assert_eq!(state(&host), State::Soft);
}

#[test]
fn a_host_without_vms_has_a_plan() {
    let world = world(1000, &[]);
    let (plan, _) = plan(&world.host(), &[], &Memory::default());
    assert_eq!((plan.targets.len(), plan.needed), (0, Bytes::ZERO));
}

//! Acceptance: on 10^5 random hosts nothing that is promised is broken.

use std::cell::Cell;

use plimsoll_model::{Bytes, MilliCores};
use plimsoll_reclaim::{Memory, Plan, State, plan};
use proptest::{
    collection::vec,
    prelude::{ProptestConfig, any},
    test_runner::TestRunner,
};

use crate::scene::{Scene, Tape, Vm, drawn, scene, with_shares};

/// How many histories are run in all, in how many tests, which can run side by side.
const CASES: u32 = 100_000;
const SHARDS: u32 = 4;
/// How many pairs of hosts are compared.
const PAIRS: u32 = 100_000;
const MIB: u64 = 1 << 20;

/// How often something happened, so that a test cannot pass by never getting anywhere.
#[derive(Default)]
struct Seen {
    counts: [Cell<u32>; 8],
}

const WHAT: [&str; 8] = [
    "unused memory is taken",
    "used memory is taken",
    "the host pages out",
    "growth is withheld",
    "something is deferred",
    "something is lacking",
    "something is given",
    "nothing is needed",
];

impl Seen {
    fn see(&self, plan: &Plan) {
        let happened = [
            plan.unused,
            plan.used,
            plan.paged_out,
            plan.withheld,
            plan.deferred,
            plan.shortfall,
            plan.given,
            Bytes(u64::from(plan.needed == Bytes::ZERO)),
        ];
        for (count, amount) in self.counts.iter().zip(happened) {
            count.set(count.get() + u32::from(amount > Bytes::ZERO));
        }
    }

    fn all_at_least(&self, times: u32) {
        for (what, count) in WHAT.iter().zip(&self.counts) {
            eprintln!("{what}: {}", count.get());
            assert!(count.get() >= times, "{what}: not tested");
        }
    }
}

fn run(cases: u32, check: impl Fn(&mut Tape<'_>)) {
    let config = ProptestConfig { cases, ..ProptestConfig::default() };
    let result =
        TestRunner::new_with_rng(config, drawn()).run(&vec(any::<u8>(), 0..400), |bytes| {
            check(&mut Tape::new(&bytes));
            Ok(())
        });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn promises_hold_1() {
    histories();
}

#[test]
fn promises_hold_2() {
    histories();
}

#[test]
fn promises_hold_3() {
    histories();
}

#[test]
fn promises_hold_4() {
    histories();
}

/// A few rounds, each of a host that is seen otherwise, with what the round before remembers.
fn histories() {
    let seen = Seen::default();
    run(CASES / SHARDS, |tape| {
        let mut memory = Memory::default();
        let rounds = 1 + tape.below(3);
        let first = scene(tape);
        for round in 0..rounds {
            // The same host for several rounds, or another.
            let scene = if tape.once_in(2) { scene(tape) } else { first.clone() };
            let (plan, next) = plan(&scene.host, &scene.views(), &memory);
            check(&scene, &plan, &memory);
            seen.see(&plan);
            if round == 0 {
                let again = plimsoll_reclaim::plan(&scene.host, &scene.views(), &memory);
                assert_eq!(again, (plan, next.clone()), "the same views, another plan");
            }
            memory = next;
        }
    });
    seen.all_at_least(CASES / SHARDS / 100);
}

fn check(scene: &Scene, plan: &Plan, memory: &Memory) {
    assert_eq!(plan.targets.len(), scene.vms.len());
    for (vm, target) in scene.vms.iter().zip(&plan.targets) {
        assert_eq!(vm.id, target.vm);
        let least = vm.minimum();
        assert!(target.memory >= least.memory, "below its minimum: {target:?} {vm:?}");
        assert!(target.memory <= vm.promised.memory, "above its promise: {target:?} {vm:?}");
        assert!((least.cpu..=vm.promised.cpu).contains(&target.cpu), "{target:?} {vm:?}");
        assert!((1..=10_000).contains(&target.cpu_weight), "{target:?}");
        if let Some(resident) = target.resident {
            assert!(resident >= least.memory, "paged out below its minimum: {target:?} {vm:?}");
            assert!(resident < vm.resident, "{target:?} {vm:?}");
        }
        if vm.is_guaranteed() {
            assert_eq!((target.memory, target.resident), (vm.promised.memory, None), "{vm:?}");
        }
        let allocated = vm.allocated.memory.min(vm.promised.memory);
        let Some(guest) = vm.guest else {
            assert!(target.memory >= allocated, "asked, and does not answer: {target:?} {vm:?}");
            continue;
        };
        let total = guest.total.min(vm.promised.memory).0;
        let required = total.saturating_sub(guest.available.max(guest.free).0);
        let floor = Bytes(required.saturating_add(vm.reserve())).min(allocated);
        assert!(target.memory >= floor, "below what its guest needs: {target:?} {vm:?}");
    }
    sums(plan);
    unused_first(scene, plan);
    assert!(plan.paged_out <= scene.host.swap_free, "{plan:?} {scene:?}");
    if plan.state < State::Hard && scene.vms.iter().all(|vm| vm.asked.memory == Bytes::ZERO) {
        assert!(plan.targets.iter().all(|target| target.resident.is_none()), "{:?}", plan.state);
    }
    if memory == &Memory::default() {
        nothing_is_kept_while_something_lacks(scene, plan);
    }
}

fn sums(plan: &Plan) {
    let parts = [plan.unused, plan.used, plan.withheld, plan.deferred, plan.shortfall];
    let sum: u128 = parts.iter().map(|part| u128::from(part.0)).sum();
    let saturated = parts.iter().chain([&plan.needed]).any(|part| part.0 == u64::MAX);
    if !saturated {
        assert_eq!(sum, u128::from(plan.needed.0), "{plan:?}");
    }
}

/// When a used page is taken, nobody who can be asked has unused ones above its reserve (but for
/// what is too little to ask for, while there is no hurry).
fn unused_first(scene: &Scene, plan: &Plan) {
    if plan.used == Bytes::ZERO {
        return;
    }
    for (vm, target) in scene.vms.iter().zip(&plan.targets) {
        let Some(guest) = vm.guest else { continue };
        let content = guest.free.0 >= vm.reserve() / 2
            && !vm.growing
            && !guest.starved
            && guest.pressure.some < 100;
        // Guests that still have what was to be taken may not be following.
        let follows = vm.resident <= vm.allocated.memory;
        if vm.is_guaranteed() || !content || !follows {
            continue;
        }
        let total = guest.total.min(vm.promised.memory).0;
        let used = total.saturating_sub(guest.free.0);
        let kept = used.saturating_add(vm.reserve()).max(vm.minimum().memory.0);
        // Of what was never cut, the host has taken back what lies free, but for what it holds.
        if vm.allocated.memory >= vm.promised.memory && vm.resident.0 <= kept {
            continue;
        }
        let tolerated = match plan.state {
            State::High => (vm.allocated.memory.0 / 50).max(16 * MIB),
            _ => 0,
        };
        assert!(
            target.memory.0 <= kept.saturating_add(tolerated),
            "used pages are taken, but this one keeps unused ones: {target:?} {vm:?}"
        );
    }
}

/// What is said to be lacking is: no guest that follows has more than its floor.
fn nothing_is_kept_while_something_lacks(scene: &Scene, plan: &Plan) {
    if plan.shortfall == Bytes::ZERO || plan.deferred > Bytes::ZERO {
        return;
    }
    for (vm, target) in scene.vms.iter().zip(&plan.targets) {
        let Some(guest) = vm.guest.filter(|_| !vm.is_guaranteed()) else { continue };
        let total = guest.total.min(vm.promised.memory).0;
        let required = total.saturating_sub(guest.available.max(guest.free).0);
        let absent = total.saturating_sub(guest.free.0).saturating_sub(vm.resident.0);
        let floor = required.saturating_add(vm.reserve());
        let floor = floor.max(vm.minimum().memory.0.saturating_add(absent));
        // What was never cut and holds no more than that has nothing to give, whatever its size.
        if vm.allocated.memory >= vm.promised.memory
            && vm.resident.0.saturating_add(absent) <= floor
        {
            continue;
        }
        assert!(
            target.memory.0 <= floor,
            "{} are lacking, but this one has more than it must: {target:?} {vm:?}",
            plan.shortfall
        );
    }
}

/// Two hosts that differ in the shares of one VM.
#[test]
fn more_shares_never_mean_less() {
    let (compared, more_memory) = (Cell::new(0), Cell::new(0));
    run(PAIRS, |tape| {
        let poor = scene(tape);
        let mut rich = poor.clone();
        let who = usize::try_from(tape.below(8)).unwrap() % rich.vms.len();
        let more = 1 + u32::try_from(tape.below(10_000)).unwrap();
        rich.vms[who].elasticity = with_shares(&rich.vms[who].elasticity, more);
        let (before, _) = plan(&poor.host, &poor.views(), &Memory::default());
        let (after, _) = plan(&rich.host, &rich.views(), &Memory::default());
        let (one, other) = (&before.targets[who], &after.targets[who]);
        // What is odd when sums are divided may fall to others.
        let odd = poor.vms.len() as u64;
        compared.set(compared.get() + u32::from(before.used > Bytes::ZERO));
        more_memory.set(more_memory.get() + u32::from(other.memory > one.memory));
        // While there is no hurry a change may be too little to ask for, or for others.
        let tolerated = match before.state.max(after.state) {
            State::High => (poor.vms[who].allocated.memory.0 / 50).max(16 * MIB),
            _ => odd,
        };
        assert!(other.memory.0.saturating_add(tolerated) >= one.memory.0, "{one:?} {other:?}");
        let resident = |resident: Option<Bytes>| resident.map_or(u64::MAX, |bytes| bytes.0);
        let (held, now) = (resident(one.resident), resident(other.resident));
        assert!(now.saturating_add(odd) >= held, "{one:?} {other:?}");
        assert!(other.cpu_weight >= one.cpu_weight, "{one:?} {other:?}");
    });
    eprintln!("{} with used pages taken, {} got more", compared.get(), more_memory.get());
    assert!(compared.get() > PAIRS / 20 && more_memory.get() > PAIRS / 100);
}

/// Of two VMs of one host that differ only in their shares, the one with more has no less.
#[test]
fn of_twins_the_one_with_more_shares_has_no_less() {
    let differ = Cell::new(0);
    run(PAIRS, |tape| {
        let mut scene = scene(tape);
        let mut twin: Vm = scene.vms[0].clone();
        twin.id = crate::scene::vm_id(100);
        twin.elasticity =
            with_shares(&twin.elasticity, 1 + u32::try_from(tape.below(500)).unwrap());
        scene.vms.push(twin);
        let (plan, _) = plan(&scene.host, &scene.views(), &Memory::default());
        let (poor, rich) = (&plan.targets[0], plan.targets.last().unwrap());
        // Where their shares are the same, as there are no more, one has an odd byte.
        let shares = |vm: &Vm| vm.elasticity.shares();
        let odd = u64::from(shares(&scene.vms[0]) == shares(scene.vms.last().unwrap()));
        let tolerated = match plan.state {
            State::High => (scene.vms[0].allocated.memory.0 / 50).max(16 * MIB),
            _ => odd,
        };
        assert!(rich.memory.0.saturating_add(tolerated) >= poor.memory.0, "{poor:?} {rich:?}");
        assert!(odd == 1 || rich.cpu_weight >= poor.cpu_weight, "{poor:?} {rich:?}");
        differ.set(differ.get() + u32::from(rich.memory > poor.memory));
    });
    assert!(differ.get() > PAIRS / 100, "{}", differ.get());
}

/// The order in which VMs are listed changes nothing but where an odd byte goes.
#[test]
fn the_order_of_the_vms_does_not_matter() {
    run(PAIRS / 2, |tape| {
        let scene = scene(tape);
        let mut turned = scene.clone();
        turned.vms.reverse();
        let (plan, _) = plan(&scene.host, &scene.views(), &Memory::default());
        let (mut other, _) =
            plimsoll_reclaim::plan(&turned.host, &turned.views(), &Memory::default());
        other.targets.reverse();
        let odd = scene.vms.len() as u64;
        for (one, other) in plan.targets.iter().zip(&other.targets) {
            // An odd byte can decide whether a change is worth asking for, while there is no hurry.
            let differs = one.memory.0.abs_diff(other.memory.0);
            assert!(differs <= odd || plan.state == State::High, "{one:?} {other:?}");
            assert_eq!((one.vm, one.cpu), (other.vm, other.cpu));
        }
        // What users ask for and swap cannot hold is divided to the byte, and what is needed is what
        // is left of it.
        for (one, other) in [(plan.needed, other.needed), (plan.shortfall, other.shortfall)] {
            assert!(one.0.abs_diff(other.0) <= odd, "{one:?} {other:?}");
        }
        assert_eq!((plan.state, plan.cpu_shortfall), (other.state, other.cpu_shortfall));
    });
}

/// While all want their CPU, weights give nobody less than its minimum.
#[test]
fn weights_keep_the_minimum_of_cpu() {
    let tight = Cell::new(0);
    run(PAIRS / 2, |tape| {
        let scene = scene(tape);
        let (plan, _) = plan(&scene.host, &scene.views(), &Memory::default());
        let weights: u64 = plan.targets.iter().map(|target| u64::from(target.cpu_weight)).sum();
        let promised: u128 = plan.targets.iter().map(|target| u128::from(target.cpu.0)).sum();
        if plan.cpu_shortfall > MilliCores::ZERO || promised <= u128::from(scene.host.cpu.0) {
            return;
        }
        tight.set(tight.get() + 1);
        for (vm, target) in scene.vms.iter().zip(&plan.targets) {
            let share = scene.host.cpu.0 as f64 * f64::from(target.cpu_weight) / weights as f64;
            let least = vm.minimum().cpu.0.min(vm.promised.cpu.0) as f64;
            // A weight is a whole number from 1 to 10,000.
            let fine = scene.host.cpu.0 as f64 * plan.targets.len() as f64 / weights as f64;
            assert!(share + fine + 1.0 >= least, "{share} of {least}: {target:?} {vm:?}");
        }
    });
    assert!(tight.get() > PAIRS / 50, "{}", tight.get());
}

//! Plans on small clusters.

use std::collections::BTreeSet;

use plimsoll_model::{Bytes, MilliCores};
use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

use super::{
    Aim, Constraints, Forecast, Host, InvalidPowerCurve, Plan, PowerCurve, Reason, Sight,
    Unconstrained, Vm, plan,
};

fn host(cores: u64, awake: bool) -> Host {
    Host {
        cpu: MilliCores::cores(cores),
        cpu_of_one: MilliCores::cores(cores),
        memory: Bytes::gib(16),
        power: PowerCurve::new(&[100.0, 200.0]).unwrap(),
        awake,
    }
}

fn vm(host: usize, recent: &[MilliCores]) -> Vm<'_> {
    Vm { cpu: MilliCores::cores(4), memory: Bytes::gib(1), host, recent, moved_ago: None }
}

/// Samples that hardly change.
fn steady(cpu: u64) -> Vec<MilliCores> {
    vec![MilliCores(cpu); 60]
}

fn moves(plan: &Plan) -> Vec<(usize, usize, usize)> {
    plan.moves.iter().map(|one| (one.vm, one.from, one.to)).collect()
}

#[test]
fn a_curve_is_straight_between_its_values() {
    let curve = PowerCurve::new(&[86.0, 89.0, 100.0]).unwrap();
    let watts = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5].map(|share| curve.watts(share));
    assert_eq!(watts, [86.0, 87.5, 89.0, 94.5, 100.0, 100.0]);
    assert_eq!(PowerCurve::new(&[1.0]), Err(InvalidPowerCurve::TooShort));
    assert_eq!(PowerCurve::new(&[2.0, 1.0]), Err(InvalidPowerCurve::NotRising { at: 1 }));
    assert_eq!(PowerCurve::new(&[f64::NAN, 1.0]), Err(InvalidPowerCurve::NotRising { at: 0 }));
}

#[test]
fn a_vm_of_which_nothing_is_known_is_expected_to_ask_for_all() {
    let sight = Sight::default();
    let size = MilliCores::cores(2);
    let unknown = Forecast::of(&[], size, &sight);
    assert_eq!(unknown, Forecast { mean: 2000.0, variance: 0.0 });
    let once = Forecast::of(&[MilliCores(500)], size, &sight);
    let often = Forecast::of(&steady(500), size, &sight);
    assert!(once.variance > often.variance && often.variance > 0.0);
    assert!((once.mean - 500.0).abs() < 1e-9 && (often.mean - 500.0).abs() < 1e-9);
}

#[test]
fn hosts_with_little_are_emptied_and_sleep() {
    let hosts = [host(8, true), host(8, true), host(8, true)];
    let (much, little) = (steady(3000), steady(500));
    let vms = [vm(0, &much), vm(1, &little), vm(2, &little)];
    let plan = plan(&hosts, &vms, &mut Unconstrained, &Aim::default());
    assert_eq!(moves(&plan), [(1, 1, 0), (2, 2, 0)]);
    assert_eq!((plan.sleep, plan.wake), (vec![1, 2], vec![]));
    assert!(plan.watts_after < plan.watts_before);
    assert_eq!(plan.memory_moved, Bytes::gib(2));
    assert!(matches!(plan.moves[0].reason, Reason::Empty { watts, .. } if watts > 90.0));
}

#[test]
fn a_host_that_will_be_short_gives_one_vm_and_wakes_another_if_need_be() {
    let (full, half) = (steady(3500), steady(2000));
    let vms = [vm(0, &full), vm(0, &half), vm(0, &full), vm(1, &half)];
    let hosts = [host(8, true), host(8, true), host(8, false)];
    let got = plan(&hosts, &vms, &mut Unconstrained, &Aim::default());
    // The smallest that is enough.
    assert_eq!(moves(&got), [(1, 0, 1)]);
    assert!(matches!(got.moves[0].reason, Reason::Overload { level, capacity }
        if level > capacity && capacity == MilliCores::cores(8)));
    // The other host is full: the sleeping one is woken.
    let vms = [vm(0, &full), vm(0, &half), vm(0, &full), vm(1, &full), vm(1, &half)];
    let got = plan(&hosts, &vms, &mut Unconstrained, &Aim::default());
    assert_eq!((moves(&got), got.wake), (vec![(1, 0, 2)], vec![2]));
    // There is none: the plan says so.
    let got = plan(&hosts[..2], &vms, &mut Unconstrained, &Aim::default());
    assert_eq!((moves(&got), got.stuck), (vec![], vec![0]));
}

#[test]
fn what_is_not_worth_its_moves_is_left() {
    let little = steady(500);
    let hosts = [host(8, true), host(8, true)];
    let vms = [vm(0, &little), vm(1, &little)];
    let dear = Aim { watt_hours_per_gib: 1000.0, ..Aim::default() };
    assert_eq!(plan(&hosts, &vms, &mut Unconstrained, &dear).moves, []);
    // Nor does a VM that has just moved go on.
    let recently = vms.map(|vm| Vm { moved_ago: Some(1), ..vm });
    assert_eq!(plan(&hosts, &recently, &mut Unconstrained, &Aim::default()).moves, []);
    assert_eq!(plan(&hosts, &vms, &mut Unconstrained, &Aim::default()).moves.len(), 1);
}

#[test]
fn between_the_two_margins_nothing_moves() {
    let samples: Vec<_> = (0..60).map(|n| MilliCores(1500 + 500 * (n % 2))).collect();
    let vms = [vm(0, &samples), vm(0, &samples), vm(0, &samples), vm(1, &samples)];
    let hosts = [host(7, true), host(7, true)];
    let aim = Aim { deviations_at_least: 1.0, deviations_wanted: 3.0, ..Aim::default() };
    assert_eq!(plan(&hosts, &vms, &mut Unconstrained, &aim).moves, []);
}

/// Some VMs must not be together, and some hosts take none.
struct Rules {
    apart: BTreeSet<usize>,
    closed: BTreeSet<usize>,
    at: Vec<usize>,
}

impl Constraints for Rules {
    fn may_hold(&self, vm: usize, host: usize) -> bool {
        let together = |other: &usize| *other != vm && self.at[*other] == host;
        let is_alone = !self.apart.contains(&vm) || !self.apart.iter().any(together);
        is_alone && !self.closed.contains(&host)
    }

    fn moved(&mut self, vm: usize, host: usize) {
        self.at[vm] = host;
    }
}

type Scene = (Vec<(u64, bool)>, Vec<(usize, u64, Vec<u64>, Option<u32>)>, u8, usize);

fn scene() -> impl Strategy<Value = Scene> {
    (2..7_usize).prop_flat_map(|hosts| {
        let one = (
            0..hosts,
            1..5_u64,
            prop::collection::vec(0..4000_u64, 0..10),
            prop::option::of(0..10_u32),
        );
        (
            prop::collection::vec((1..9_u64, any::<bool>()), hosts),
            prop::collection::vec(one, 0..20),
            any::<u8>(),
            0..12_usize,
        )
    })
}

proptest! {
    #[test]
    fn every_step_is_feasible_in_any_order_and_emptying_saves_power(scene in scene()) {
        let (hosts, vms, bits, most_moves) = scene;
        let hosts: Vec<_> = hosts.iter().map(|(cores, awake)| host(*cores, *awake)).collect();
        let samples: Vec<Vec<_>> =
            vms.iter().map(|(_, _, s, _)| s.iter().copied().map(MilliCores).collect()).collect();
        let vms: Vec<_> = vms.iter().zip(&samples).map(|((at, gib, _, moved_ago), samples)| Vm {
            memory: Bytes::gib(*gib),
            moved_ago: *moved_ago,
            ..vm(*at, samples)
        }).collect();
        let rules = || Rules {
            apart: (0..vms.len()).filter(|vm| vm % 3 == 0).collect(),
            closed: (0..hosts.len()).filter(|host| bits >> host & 1 == 1).collect(),
            at: vms.iter().map(|vm| vm.host).collect(),
        };
        let aim = Aim { most_moves, ..Aim::default() };
        let got = plan(&hosts, &vms, &mut rules(), &aim);
        prop_assert_eq!(&got, &plan(&hosts, &vms, &mut rules(), &aim));
        prop_assert!(got.moves.len() <= most_moves);
        // Everything that is on its way counts on both sides, whatever the order.
        let mut memory: Vec<u64> = vec![0; hosts.len()];
        vms.iter().for_each(|vm| memory[vm.host] += vm.memory.0);
        let (mut gives, mut takes, mut once) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut rules = rules();
        for one in &got.moves {
            prop_assert!(once.insert(one.vm) && one.from == vms[one.vm].host && one.to != one.from);
            prop_assert!(rules.may_hold(one.vm, one.to));
            rules.moved(one.vm, one.to);
            memory[one.to] += vms[one.vm].memory.0;
            prop_assert!(memory[one.to] <= hosts[one.to].memory.0);
            gives.insert(one.from);
            takes.insert(one.to);
        }
        prop_assert!(gives.is_disjoint(&takes));
        for one in got.wake.iter().chain(&got.sleep) {
            prop_assert_eq!(rules.at.contains(one), got.wake.contains(one));
        }
        // Where nothing had to be relieved, power falls with every plan that moves anything.
        if !got.moves.is_empty() && got.moves.iter().all(|m| matches!(m.reason, Reason::Empty { .. })) {
            prop_assert!(got.watts_after < got.watts_before);
        } else if got.moves.is_empty() {
            prop_assert_eq!(got.watts_after, got.watts_before);
        }
    }
}

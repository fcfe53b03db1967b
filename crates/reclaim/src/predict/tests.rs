//! What holds for every history, and what is known of small ones.

use plimsoll_model::{Amount, Bytes, MilliCores, VmId};
use proptest::prelude::{
    Just, ProptestConfig, Strategy, prop, prop_assert, prop_assert_eq, proptest,
};

use super::{
    CHANGES, Horizon, Outlook, PERIODS, Peak, Predictor, Risk, SLOTS_IN_PERIOD, WEEK,
    admit::{Refusal, Room, admit},
    relieve::{Aim, Move, relieve},
};

fn vm(number: u128) -> VmId {
    VmId(uuid::Uuid::from_u128(number))
}

/// Thousandths of cores and MiB.
fn usage(cpu: u64, memory: u64) -> Amount {
    Amount { cpu: MilliCores(cpu), memory: Bytes::mib(memory) }
}

const SIZE: Amount = Amount { cpu: MilliCores(4000), memory: Bytes(4096 << 20) };

/// A predictor that has seen VMs of `SIZE` use CPU by slot; memory is always 100 MiB.
fn seen(slots: u64, cpu: &[&dyn Fn(u64) -> u64]) -> Predictor {
    let mut predictor = Predictor::new();
    for slot in 0..slots {
        for (number, cpu) in (1..).zip(cpu) {
            predictor.observe(slot, vm(number), SIZE, usage(cpu(slot), 100));
        }
    }
    predictor
}

fn peak(predictor: &Predictor, vms: &[u128], risk: f64, horizon: Horizon) -> Peak {
    let vms: Vec<_> = vms.iter().map(|number| (vm(*number), SIZE)).collect();
    predictor.peak(&vms, Risk { cpu: risk, memory: risk }, horizon)
}

#[test]
fn vms_that_are_busy_in_turn_peak_at_one_of_them_and_not_at_their_sum() {
    let day = |slot: u64| if slot % 288 < 144 { 4000 } else { 0 };
    let night = |slot: u64| 4000 - day(slot);
    let predictor = seen(WEEK, &[&day, &night, &day]);
    let together = |vms: &[u128]| peak(&predictor, vms, 0.0, Horizon::Week);
    assert_eq!(together(&[1]).usage, usage(4000, 100));
    assert_eq!(together(&[1, 2]).usage, usage(4000, 200));
    assert_eq!(together(&[1, 3]).usage, usage(8000, 200));
    let basis = together(&[1, 2]).basis;
    assert_eq!(basis.each_alone, usage(8000, 200));
    assert_eq!((basis.measured, basis.by_class, basis.by_size), (2, 0, 0));
}

#[test]
fn the_next_slot_is_what_is_used_now_and_a_recent_change() {
    // Level, and a jump by 1000 once in the last 100 slots.
    let jumps = |slot: u64| if slot < WEEK - 100 { 500 } else { 1500 };
    let predictor = seen(WEEK, &[&jumps]);
    let next = |risk| peak(&predictor, &[1], risk, Horizon::Next).usage.cpu.0;
    assert_eq!(next(0.0), 2500);
    assert_eq!(next(1.0 / 144.0), 1500);
    // Two that jump together count together; the size is never passed.
    let predictor = seen(WEEK, &[&jumps, &jumps]);
    assert_eq!(peak(&predictor, &[1, 2], 0.0, Horizon::Next).usage.cpu.0, 5000);
    let steep = |slot: u64| if slot < WEEK - 100 { 0 } else { 3000 };
    let predictor = seen(WEEK, &[&steep]);
    assert_eq!(peak(&predictor, &[1], 0.0, Horizon::Next).usage.cpu.0, 4000);
}

#[test]
fn the_share_of_the_risk_may_exceed_the_peak_and_no_more() {
    // Each half hour of the week has a height of its own.
    let rising = |slot: u64| slot / SLOTS_IN_PERIOD;
    let predictor = seen(WEEK, &[&rising]);
    for exceeded in [0, 1, 3, 33, 335] {
        let risk = exceeded as f64 / PERIODS as f64;
        let cpu = peak(&predictor, &[1], risk, Horizon::Week).usage.cpu.0;
        assert_eq!(cpu, PERIODS - 1 - exceeded, "{exceeded}");
    }
    assert_eq!(peak(&predictor, &[1], 1.0, Horizon::Week).usage.cpu.0, 0);
    assert_eq!(peak(&predictor, &[1], f64::NAN, Horizon::Week).usage.cpu.0, PERIODS - 1);
}

#[test]
fn a_new_vm_counts_by_its_size_then_by_its_class_then_by_itself() {
    let idle = |_: u64| 400;
    let mut predictor = seen(WEEK, &[&idle]);
    let by = |predictor: &Predictor, number, size| {
        let Peak { usage, basis } =
            predictor.peak(&[(vm(number), size)], Risk::NONE, Horizon::Week);
        (usage.cpu.0, [basis.measured, basis.by_class, basis.by_size])
    };
    let other = usage(64_000, 8192);
    assert_eq!(by(&predictor, 9, other), (64_000, [0, 0, 1]));
    // A tenth of the size, in steps of 1/64 rounded up.
    assert_eq!(by(&predictor, 9, SIZE), (438, [0, 1, 0]));
    assert_eq!(by(&predictor, 1, SIZE), (400, [1, 0, 0]));
    // A day of its own history and the rest of the class.
    for slot in WEEK..WEEK + 288 {
        predictor.observe(slot, vm(9), SIZE, usage(2000, 100));
    }
    assert_eq!(by(&predictor, 9, SIZE), (2000, [0, 1, 0]));
    predictor.forget(vm(9));
    // What it taught of its class stays.
    assert_eq!(by(&predictor, 9, SIZE), (2000, [0, 1, 0]));
}

#[test]
fn new_vms_of_a_class_are_not_all_expected_to_be_busy_at_once() {
    // Busy for a tenth of the time.
    let seldom = |slot: u64| if slot % 100 < 10 { 4000 } else { 0 };
    let predictor = seen(WEEK, &[&seldom]);
    let new: Vec<_> = (100..200).map(|number| (vm(number), SIZE)).collect();
    let Peak { usage, basis } =
        predictor.peak(&new, Risk { cpu: 0.01, memory: 0.01 }, Horizon::Week);
    assert_eq!(basis.by_class, 100);
    // 10 of 100 in the mean, 3 as the deviation: 17 or 18 are exceeded in one of a hundred slots.
    let busy = usage.cpu.0 / 4000;
    assert!((13..=24).contains(&busy), "{busy}");
}

#[test]
fn what_is_missing_repeats_what_was_there_and_after_a_week_it_begins_anew() {
    let mut predictor = Predictor::new();
    predictor.observe(0, vm(1), SIZE, usage(1000, 100));
    predictor.observe(WEEK - 1, vm(1), SIZE, usage(3000, 100));
    let week = predictor.outlook(vm(1), SIZE, Horizon::Week);
    assert_eq!(week.peak(Risk { cpu: 1.0 / 336.0, memory: 0.0 }).cpu.0, 1000);
    // A sample from before the last one changes nothing.
    predictor.observe(5, vm(1), SIZE, usage(4000, 100));
    assert_eq!(predictor.outlook(vm(1), SIZE, Horizon::Week), week);
    // Two samples of a slot count as the larger.
    predictor.observe(WEEK - 1, vm(1), SIZE, usage(2000, 100));
    assert_eq!(predictor.outlook(vm(1), SIZE, Horizon::Week), week);
    predictor.observe(3 * WEEK, vm(1), SIZE, usage(10, 100));
    let basis = peak(&predictor, &[1], 0.0, Horizon::Week).basis;
    assert_eq!((basis.measured, basis.by_size), (0, 1));
}

#[test]
fn a_host_takes_what_will_fit_and_has_a_place_to_be() {
    let room = Room { capacity: usage(8000, 1000), refuge: Bytes::mib(500) };
    let ok = usage(16_000, 1500);
    assert_eq!(admit(&room, ok, usage(8000, 1000)), Ok(()));
    let refused = |committed, peak| admit(&room, committed, peak).unwrap_err();
    assert!(matches!(refused(ok, usage(8001, 1)), Refusal::Cpu { .. }));
    assert!(matches!(refused(ok, usage(1, 1001)), Refusal::Memory { .. }));
    let refusal = refused(usage(1, 1501), usage(1, 1));
    assert!(matches!(refusal, Refusal::Refuge { .. }));
    assert_eq!(
        refusal.to_string(),
        "1501MiB of memory would be promised, and the host has 1000MiB and a place for 500MiB more"
    );
}

const AIM: Aim = Aim { fill: 1.0, least_gain: 0.001, most_moves: 50, memory_weight: 10.0 };

fn scenarios(cpu: &[u64]) -> Outlook {
    let memory = cpu.iter().map(|_| 100.0).collect();
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let cpu = cpu.iter().map(|cpu| *cpu as f64).collect();
    Outlook { cpu, memory }
}

#[test]
fn vms_that_peak_together_are_taken_apart_by_one_move() {
    let hosts = [usage(1000, 1000); 2];
    let vms = [scenarios(&[800, 0]), scenarios(&[800, 0]), scenarios(&[0, 800])];
    let mut at = [0, 0, 1];
    let moves = relieve(&hosts, &vms, &mut at, &AIM);
    assert_eq!(moves, [Move { vm: 0, from: 0, to: 1 }]);
    assert_eq!(at, [1, 0, 1]);
    assert_eq!(relieve(&hosts, &vms, &mut at, &AIM), []);
}

#[test]
fn where_no_move_helps_two_change_places() {
    let hosts = [usage(1000, 1000); 2];
    let vms = [700, 400, 600, 300].map(|cpu| scenarios(&[cpu]));
    let mut at = [0, 0, 1, 1];
    let moves = relieve(&hosts, &vms, &mut at, &AIM);
    assert_eq!(moves, [Move { vm: 0, from: 0, to: 1 }, Move { vm: 2, from: 1, to: 0 }]);
    assert_eq!(at, [1, 0, 0, 1]);
    // Not if only one move is allowed.
    let mut at = [0, 0, 1, 1];
    assert_eq!(relieve(&hosts, &vms, &mut at, &Aim { most_moves: 1, ..AIM }), []);
}

#[test]
fn no_vm_goes_to_where_its_memory_does_not_fit() {
    let hosts = [usage(1000, 1000); 2];
    let mut vms = [scenarios(&[800]), scenarios(&[800]), scenarios(&[10])];
    vms[2].memory = vec![950.0];
    let mut at = [0, 0, 1];
    assert_eq!(relieve(&hosts, &vms, &mut at, &AIM), []);
    vms[2].memory = vec![900.0];
    assert_eq!(relieve(&hosts, &vms, &mut at, &AIM).len(), 1);
}

#[test]
fn hosts_without_capacity_vms_without_scenarios_and_hosts_that_are_not_there_do_no_harm() {
    assert_eq!(relieve(&[], &[scenarios(&[1])], &mut [0], &AIM), []);
    assert_eq!(relieve(&[usage(0, 0)], &[], &mut [], &AIM), []);
    let vms = [scenarios(&[5]), scenarios(&[5])];
    let mut at = [0, 7];
    assert_eq!(relieve(&[usage(0, 0), usage(10, 1000)], &vms, &mut at, &AIM).len(), 1);
    assert_eq!(at, [1, 7]);
}

/// The sum of all hosts' excesses, looked at one by one.
fn excess(hosts: &[Amount], vms: &[Outlook], at: &[usize], aim: &Aim) -> f64 {
    let scenarios = vms[0].cpu.len();
    let mut sum = 0.0;
    for (host, capacity) in hosts.iter().enumerate() {
        for scenario in 0..scenarios {
            let on = || vms.iter().zip(at).filter(|(_, at)| **at == host).map(|(vm, _)| vm);
            let cpu: f64 = on().map(|vm| vm.cpu[scenario]).sum();
            let memory: f64 = on().map(|vm| vm.memory[scenario]).sum();
            let over = |asked: f64, has: f64| ((asked - has * aim.fill) / has).max(0.0);
            sum += over(cpu, capacity.cpu.0 as f64);
            sum += aim.memory_weight * over(memory, (capacity.memory.0 >> 20) as f64);
        }
    }
    sum / scenarios as f64
}

type Instance = (Vec<Amount>, Vec<Outlook>, Vec<usize>);

fn instances() -> impl Strategy<Value = Instance> {
    (1..5_usize, 1..12_usize, 1..6_usize).prop_flat_map(|(hosts, vms, scenarios)| {
        let amounts = |most: u32| prop::collection::vec((0..most).prop_map(f64::from), scenarios);
        let outlook =
            (amounts(900), amounts(600)).prop_map(|(cpu, memory)| Outlook { cpu, memory });
        let host = (500..2000_u64, 500..2000_u64).prop_map(|(cpu, memory)| usage(cpu, memory));
        (
            prop::collection::vec(host, hosts),
            prop::collection::vec(outlook, vms),
            prop::collection::vec(0..hosts, vms),
            Just(()),
        )
            .prop_map(|(hosts, vms, at, ())| (hosts, vms, at))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// Moves gain what they must, after every single one memory fits where the VM went, and what is
    /// returned is what was done.
    #[test]
    fn relieving_never_makes_it_worse((hosts, vms, before) in instances(), most_moves in 0..9_usize) {
        let aim = Aim { fill: 0.9, most_moves, ..AIM };
        let mut at = before.clone();
        let moves = relieve(&hosts, &vms, &mut at, &aim);
        prop_assert!(moves.len() <= most_moves);
        let gained = excess(&hosts, &vms, &before, &aim) - excess(&hosts, &vms, &at, &aim);
        let least = moves.len() as f64 * aim.least_gain;
        prop_assert!(gained >= least - 1e-9, "{gained} of {least}");
        let mut now = before;
        for step in &moves {
            prop_assert_eq!(now[step.vm], step.from);
            prop_assert!(step.from != step.to);
            now[step.vm] = step.to;
            for scenario in 0..vms[0].memory.len() {
                let there = vms.iter().zip(&now).filter(|(_, at)| **at == step.to);
                let memory: f64 = there.map(|(vm, _)| vm.memory[scenario]).sum();
                prop_assert!(memory <= (hosts[step.to].memory.0 >> 20) as f64, "{step:?}");
            }
        }
        prop_assert_eq!(&now, &at);
        // At rest: doing it again with moves to spare changes nothing.
        if moves.len() + 1 < most_moves {
            prop_assert_eq!(relieve(&hosts, &vms, &mut at, &aim), vec![]);
        }
    }

    /// The peak is between the busiest VM's and the sum of all, and falls with the risk.
    #[test]
    fn peaks_are_bounded_and_fall_with_the_risk(
        used in prop::collection::vec((0..3_u128, 0..400_u64, 0..6000_u64, 0..6000_u64), 1..60),
        risks in (0.0..1.0_f64, 0.0..1.0_f64),
    ) {
        let mut predictor = Predictor::new();
        let mut used = used;
        used.sort_by_key(|(_, slot, ..)| *slot);
        for (number, slot, cpu, memory) in &used {
            predictor.observe(*slot, vm(*number), SIZE, usage(*cpu, *memory));
        }
        for horizon in [Horizon::Next, Horizon::Week] {
            let at = |vms: &[u128], risk: f64| peak(&predictor, vms, risk, horizon);
            let all = at(&[0, 1, 2], 0.0);
            let single = [0, 1, 2].map(|vm| at(&[vm], 0.0).usage);
            for one in single {
                prop_assert!(one.cpu <= SIZE.cpu && one.memory <= SIZE.memory);
                prop_assert!(all.usage.cpu >= one.cpu && all.usage.memory >= one.memory);
            }
            let sum = single.iter().fold(Amount::default(), |sum, one| sum.saturating_add(*one));
            prop_assert_eq!(all.basis.each_alone, sum);
            prop_assert!(all.usage.cpu <= sum.cpu && all.usage.memory <= sum.memory);
            let (low, high) = (risks.0.min(risks.1), risks.0.max(risks.1));
            let (low, high) = (at(&[0, 1, 2], low).usage, at(&[0, 1, 2], high).usage);
            prop_assert!(high.cpu <= low.cpu && high.memory <= low.memory);
        }
    }

    /// The rings against all samples kept.
    #[test]
    fn histories_keep_what_they_should(
        used in prop::collection::vec((1..400_u64, 0..4000_u64), 1..80),
    ) {
        let mut predictor = Predictor::new();
        let mut all = Vec::new();
        for (gap, cpu) in &used {
            let before = all.last().copied();
            if let Some(before) = before {
                all.extend(std::iter::repeat_n(before, usize::try_from(gap - 1).unwrap()));
            }
            all.push(*cpu);
            let slot = all.len() as u64 - 1;
            predictor.observe(slot, vm(1), SIZE, usage(*cpu, 100));
        }
        let week = predictor.outlook(vm(1), SIZE, Horizon::Week);
        let last = (all.len() - 1) / 6;
        for (back, cpu) in week.cpu.iter().enumerate().take(last + 1) {
            let period = (last - back) * 6;
            let most = all[period..all.len().min(period + 6)].iter().max().unwrap();
            prop_assert_eq!(*cpu, *most as f64, "{} back", back);
        }
        let next = predictor.outlook(vm(1), SIZE, Horizon::Next);
        let now = all.len() - 1;
        for (back, cpu) in next.cpu.iter().enumerate().take(now) {
            let change = all[now - back] as f64 - all[now - back - 1] as f64;
            let expected = (all[now] as f64 + change).clamp(0.0, 4000.0);
            prop_assert_eq!(*cpu, expected, "{} back", back);
        }
        prop_assert_eq!(next.cpu.len() as u64, CHANGES);
    }
}

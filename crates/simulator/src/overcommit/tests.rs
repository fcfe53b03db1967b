//! Traces small enough to know the answer, and the published one.

use plimsoll_model::{Amount, Bytes, MilliCores};
use plimsoll_reclaim::predict::Risk;

use super::{DAY, Experiment, HISTORY, Host, Outcome, OvercommitError, Policy};
use crate::{
    data,
    readers::{Limits, bitbrains},
};

const RISK: Risk = Risk { cpu: 0.01, memory: 0.001 };

/// 4 cores of 1,000 MHz and 4 GiB.
const HOST: Host =
    Host { capacity: Amount { cpu: MilliCores(4000), memory: Bytes(4096 << 20) }, mhz: 1000 };

/// A VM of so many cores and GiB that uses MHz and MiB by slot.
fn vm(id: u64, size: u64, slots: usize, used: impl Fn(usize) -> (u32, u32)) -> bitbrains::Vm {
    bitbrains::Vm {
        id,
        cpu: MilliCores::cores(size),
        memory: Bytes::gib(size),
        cpu_mhz: (0..slots).map(|slot| Some(used(slot).0)).collect(),
        memory_mib: (0..slots).map(|slot| Some(used(slot).1)).collect(),
    }
}

fn run(vms: &[bitbrains::Vm], policy: &str) -> Outcome {
    let experiment = Experiment::new(vms, HOST).unwrap();
    experiment.run(policy.parse().unwrap(), RISK, &mut |_| {})
}

const SLOTS: usize = HISTORY + 4 * DAY;

fn is(outcome: &Outcome, hosts: usize, density: f64) {
    assert_eq!(outcome.hosts, hosts, "{outcome:?}");
    assert!((outcome.density - density).abs() < 1e-9, "{outcome:?}");
}

fn about(is: f64, expected: f64) {
    assert!((is - expected).abs() < 1e-9, "{is} is not {expected}");
}

#[test]
fn what_is_promised_is_what_counts_without_overcommitment() {
    let idle = || (0..8).map(|id| vm(id, 2, SLOTS, |_| (100, 100))).collect::<Vec<_>>();
    is(&run(&idle(), "none"), 4, 1.0);
    is(&run(&idle(), "fixed:2"), 2, 2.0);
    is(&run(&idle(), "fixed:1.99"), 3, 4.0 / 3.0);
    for policy in ["fixed:4", "p95", "peak", "plimsoll"] {
        let outcome = run(&idle(), policy);
        is(&outcome, 1, 4.0);
        about(outcome.cpu_short_percent, 0.0);
        assert_eq!(outcome.migrations, 0);
    }
}

#[test]
fn shortage_is_counted_by_host_and_slot_and_what_is_unmet_by_amount() {
    // On one host: 3 cores of 4 in use, in every tenth slot 6.
    let vms = (0..3)
        .map(|id| vm(id, 2, SLOTS, |slot| if slot % 10 == 0 { (2000, 100) } else { (1000, 100) }));
    let outcome = run(&vms.collect::<Vec<_>>(), "fixed:1.5");
    is(&outcome, 1, 2.0);
    let slots = (HISTORY..SLOTS).filter(|slot| slot % 10 == 0).count() as f64;
    let all = (SLOTS - HISTORY) as f64;
    about(outcome.cpu_short_percent, 100.0 * slots / all);
    about(outcome.cpu_short_slots_percent, 100.0 * slots / all);
    about(outcome.unmet_cpu_percent, 100.0 * 2.0 * slots / (3.0 * all + 3.0 * slots));
    about(outcome.memory_short_percent, 0.0);
    about(outcome.mean_hosts, 1.0);
    about(outcome.one_less_cpu_short_percent, 100.0);
    // 6 cores are asked for of 4 in a tenth of the slots: of two hosts one could do without.
    let vms = (0..3)
        .map(|id| vm(id, 2, SLOTS, |slot| if slot % 10 == 0 { (2000, 100) } else { (1000, 100) }));
    let outcome = run(&vms.collect::<Vec<_>>(), "none");
    is(&outcome, 2, 1.0);
    about(outcome.cpu_short_percent, 0.0);
    about(outcome.one_less_cpu_short_percent, 100.0 * slots / all);
}

#[test]
fn vms_are_never_asked_for_more_than_they_have() {
    // 9,000 MHz of 2 cores of 1,000, and 9 GiB of 2.
    let vms = (0..2).map(|id| vm(id, 2, SLOTS, |_| (9000, 9216)));
    let outcome = run(&vms.collect::<Vec<_>>(), "none");
    about(outcome.cpu_short_percent, 0.0);
    about(outcome.memory_short_percent, 0.0);
}

#[test]
fn vms_that_are_busy_in_turn_share_a_host_under_plimsoll_alone() {
    let half_day = |slot: usize| slot % DAY < DAY / 2;
    let vms = || {
        (0..2).map(|id| {
            vm(
                id,
                4,
                SLOTS,
                move |slot| {
                    if half_day(slot) == (id == 0) { (3900, 2000) } else { (0, 2000) }
                },
            )
        })
    };
    is(&run(&vms().collect::<Vec<_>>(), "p95"), 2, 1.0);
    is(&run(&vms().collect::<Vec<_>>(), "peak"), 2, 1.0);
    let outcome = run(&vms().collect::<Vec<_>>(), "plimsoll");
    is(&outcome, 1, 2.0);
    about(outcome.cpu_short_percent, 0.0);
}

#[test]
fn what_grows_after_the_first_week_gets_hosts_and_shortage_keeps_to_the_risk() {
    // Four of 4 cores with next to nothing; after the first week each rises to all of its cores.
    let vms = || {
        (0..4).map(|id| {
            vm(id, 4, SLOTS, move |slot| {
                let late = slot.saturating_sub(HISTORY + 10 * usize::try_from(id).unwrap());
                (u32::try_from(late * 100).unwrap().clamp(100, 3800), 500)
            })
        })
    };
    let still = run(&vms().collect::<Vec<_>>(), "fixed:4");
    is(&still, 1, 4.0);
    assert!(still.cpu_short_percent > 90.0 && still.migrations == 0, "{still:?}");
    let outcome = run(&vms().collect::<Vec<_>>(), "plimsoll");
    is(&outcome, 4, 1.0);
    assert!(outcome.cpu_short_percent <= 1.0, "{outcome:?}");
    assert!((3..=12).contains(&outcome.migrations), "{outcome:?}");
}

#[test]
fn hosts_that_a_week_did_not_need_are_given_back() {
    let long = HISTORY * 3;
    let vms = || {
        (0..4)
            .map(|id| vm(id, 4, long, |slot| if slot < HISTORY { (3000, 100) } else { (200, 100) }))
    };
    let outcome = run(&vms().collect::<Vec<_>>(), "plimsoll");
    is(&outcome, 4, 1.0);
    // Four for the week in which it is remembered, one from then on.
    assert!((2.0..2.8).contains(&outcome.mean_hosts), "{outcome:?}");
    // One, one more, then both of the last host but one.
    assert_eq!(outcome.migrations, 4);
}

#[test]
fn memory_is_made_room_for_by_making_vms_smaller() {
    // Promised 12 GiB on 4, of which 1.5 GiB is used; one of them once needs 2 GiB.
    let vms = (0..3).map(|id| {
        vm(id, 4, SLOTS, move |slot| (10, if id == 0 && slot == HISTORY + 50 { 2048 } else { 512 }))
    });
    let outcome = run(&vms.collect::<Vec<_>>(), "plimsoll");
    is(&outcome, 1, 3.0);
    about(outcome.memory_short_percent, 0.0);
    // The first three are made smaller, one of them larger when it needs it.
    assert_eq!(outcome.resizes, 4, "{outcome:?}");
}

#[test]
fn memory_that_will_be_short_moves_vms_to_where_there_is_some() {
    // Three of 4 GiB that use 1 GiB in the first week, and then 3 GiB each.
    let vms = (0..3).map(|id| {
        vm(id, 4, SLOTS, |slot| {
            (10, u32::try_from(slot.saturating_sub(HISTORY) * 64).unwrap().clamp(1024, 3072))
        })
    });
    let outcome = run(&vms.collect::<Vec<_>>(), "plimsoll");
    is(&outcome, 3, 1.0);
    assert!(outcome.memory_short_percent < 0.5, "{outcome:?}");
}

#[test]
fn the_past_alone_decides() {
    // What comes later may be anything: until then all is the same.
    let vms = |end: u32| {
        (0..6).map(move |id| {
            vm(id, 2, SLOTS, move |slot| {
                let busy = (slot * 7 + usize::try_from(id).unwrap() * 31) % 97 < 20;
                let cpu = if slot >= SLOTS - DAY { end } else { 1500 * u32::from(busy) };
                (cpu, 600)
            })
        })
    };
    for policy in Policy::ALL {
        let upto = |end| {
            let experiment = Experiment::new(&vms(end).collect::<Vec<_>>(), HOST).unwrap();
            let mut seen = Vec::new();
            experiment.run(policy, RISK, &mut |at| seen.push((at.done, at.hosts)));
            seen.truncate(3);
            seen
        };
        assert_eq!(upto(0), upto(2000), "{policy}");
    }
}

#[test]
fn a_slot_without_a_sample_is_as_the_one_before() {
    let mut recorded = vm(1, 2, SLOTS, |_| (1500, 600));
    for slot in (1..SLOTS).step_by(3) {
        recorded.cpu_mhz[slot] = None;
        recorded.memory_mib[slot] = None;
    }
    let experiment = Experiment::new(&[recorded], HOST).unwrap();
    let same = Amount { cpu: MilliCores(1500), memory: Bytes::mib(600) };
    assert!(experiment.vms[0].used.iter().all(|used| *used == same));
}

#[test]
fn more_than_a_week_is_needed() {
    let new = |vms: &[bitbrains::Vm]| Experiment::new(vms, HOST).map(|_| ());
    let short = OvercommitError::TooShort { slots: HISTORY };
    assert_eq!(new(&[vm(1, 1, HISTORY, |_| (1, 1))]), Err(short));
    assert_eq!(new(&[]), Err(OvercommitError::TooShort { slots: 0 }));
    assert_eq!(new(&[vm(1, 1, HISTORY + 1, |_| (1, 1))]), Ok(()));
}

#[test]
fn a_vm_larger_than_a_host_has_one_of_its_own_and_shares_it_by_what_it_uses() {
    let vms = || vec![vm(1, 5, SLOTS, |_| (800, 300)), vm(2, 1, SLOTS, |_| (800, 300))];
    let none = run(&vms(), "none");
    is(&none, 2, 1.0);
    assert_eq!(none.larger_than_host, 1);
    is(&run(&vms(), "plimsoll"), 1, 2.0);
    // One that uses more than a host is short for ever, and no host is opened for that.
    let busy = || vec![vm(1, 5, SLOTS, |_| (5000, 300)), vm(2, 1, SLOTS, |_| (800, 300))];
    for policy in ["p95", "peak", "plimsoll"] {
        let outcome = run(&busy(), policy);
        is(&outcome, 2, 1.0);
        about(outcome.cpu_short_slots_percent, 100.0);
    }
}

#[test]
fn policies_are_written_as_they_are_read() {
    for text in ["none", "fixed:1.5", "p95", "p95:1.1", "peak", "peak:0.9", "plimsoll"] {
        assert_eq!(text.parse::<Policy>().unwrap().to_string(), text);
    }
    for text in ["", "fixed", "fixed:0", "fixed:x", "p95:", "none:2", "plimsoll:1", "p95:inf"] {
        assert!(text.parse::<Policy>().is_err(), "{text}");
    }
}

/// The published trace. Its figures are in docs/overcommit.md; here it is the bounds that count.
#[test]
fn on_the_published_trace_risks_are_kept_on_few_hosts() {
    let Some(folder) = data::folder("bitbrains") else { return };
    let recorded = bitbrains::read(&folder, &Limits::default()).unwrap();
    assert_eq!(recorded.len(), 247);
    let capacity = Amount { cpu: MilliCores::cores(32), memory: Bytes::gib(256) };
    let experiment = Experiment::new(&recorded, Host { capacity, mhz: 2600 }).unwrap();
    let run = |policy: Policy| experiment.run(policy, RISK, &mut |_| {});
    is(&run(Policy::None), 24, 1.0);
    let plimsoll = run(Policy::Plimsoll);
    assert!(plimsoll.density >= 3.2, "{plimsoll:?}");
    assert!(plimsoll.cpu_short_percent <= 1.0, "{plimsoll:?}");
    assert!(plimsoll.memory_short_percent <= 0.1, "{plimsoll:?}");
    assert!(plimsoll.migrations_per_vm_day < 0.1, "{plimsoll:?}");
    // No policy can do with fewer.
    assert!(plimsoll.one_less_cpu_short_percent > 1.0, "{plimsoll:?}");
    let p95 = run(Policy::P95(1.0));
    assert!(plimsoll.hosts < p95.hosts, "{p95:?}");
    assert!(plimsoll.cpu_short_percent <= p95.cpu_short_percent, "{plimsoll:?} {p95:?}");
    assert!(plimsoll.unmet_cpu_percent <= p95.unmet_cpu_percent, "{plimsoll:?} {p95:?}");
}

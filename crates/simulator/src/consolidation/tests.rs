//! The experiment against hand-made cases, and the published days.

use super::{
    Aim, ConsolidationError, Experiment, Idle, Memory, Outcome, Policy, fleet::Fleet,
    measure::given,
};
use crate::{
    data,
    readers::{Limits, planetlab},
};

fn recorded(rows: &[&[u8]]) -> Vec<planetlab::Vm> {
    let vm = |(row, percent): (usize, &&[u8])| planetlab::Vm {
        name: format!("vm-{row}"),
        cpu_percent: percent.to_vec(),
    };
    rows.iter().enumerate().map(vm).collect()
}

fn experiment(rows: &[&[u8]], idle: Idle) -> Experiment {
    Experiment::new(&recorded(rows), Memory::Ignored, idle).unwrap()
}

fn run(experiment: &Experiment, policy: Policy) -> Outcome {
    experiment.run(policy, &Aim::default(), &mut |_| ()).unwrap()
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-9
}

#[test]
fn vms_are_in_four_blocks_and_start_on_hosts_of_their_own() {
    // Nine rows: blocks of three, and none is left for the last.
    let experiment = experiment(&[&[100, 50][..]; 9], Idle::Stays);
    let mips: Vec<_> = experiment.vms.iter().map(|vm| vm.mips).collect();
    assert_eq!(mips, [2500.0, 2500.0, 2500.0, 2000.0, 2000.0, 2000.0, 1000.0, 1000.0, 1000.0]);
    assert!(close(experiment.vms[0].asked_at(0, 150.0), 1875.0));
    assert!(close(experiment.vms[0].asked_at(1, 299.0), 1250.0), "the last sample goes on");
    let fleet = Fleet::placed(&experiment).unwrap();
    assert_eq!(fleet.used(), 9);
    // A VM of 2500 MIPS is for a G5 only: these have odd numbers.
    assert!((0..6).all(|vm| fleet.host_of(vm).unwrap() % 2 == 1));
}

#[test]
fn cpu_is_shared_out_as_in_cloudsim() {
    let experiment = experiment(&[&[100], &[100], &[100], &[100]], Idle::Stays);
    let asked: Vec<_> = experiment.vms.iter().map(|vm| vm.asked[0]).collect();
    let g5 = &experiment.hosts[1];
    // 2500 + 2000 of 5320: all have what they ask for.
    let mut fleet = Fleet::at(vec![1, 1, 3, 3], 800);
    let got = given(g5, 1, &fleet, &asked);
    assert!(close(got.used, 4500.0) && close(got.lost, 0.0) && !got.short);
    // One is coming: a tenth of it is worked here, and that it asks for more makes the host short.
    fleet.begin(&[(2, 1)]);
    let got = given(g5, 1, &fleet, &asked);
    assert!(close(got.used, 4600.0) && close(got.asked, 4500.0) && close(got.lost, 0.0));
    assert!(got.short);
    // Where it is, it has 90 % of its CPU.
    let got = given(&experiment.hosts[3], 3, &fleet, &asked);
    assert!(close(got.used, 1500.0) && close(got.lost, 100.0) && close(got.lost_by_moves, 100.0));
    assert!(!got.short, "moving is not being short of CPU");
    // Arrived: 5500 of 5320.
    fleet.finish(|_| true);
    let got = given(g5, 1, &fleet, &asked);
    assert!(close(got.used, 5320.0) && close(got.lost, 180.0) && close(got.lost_by_moves, 0.0));
    assert!(got.short);
    // No VM has more than a core of the host: 1860 of 2500.
    let fleet = Fleet::at(vec![0, 1, 1, 1], 800);
    let got = given(&experiment.hosts[0], 0, &fleet, &asked);
    assert!(close(got.used, 1860.0) && close(got.lost, 640.0) && got.short);
}

#[test]
fn energy_and_violations_are_what_they_are_by_hand() {
    // Two VMs alone on G5 hosts; the decider leaves them only if there is no gain in moving.
    let experiment = experiment(&[&[40, 40], &[40, 40]], Idle::Stays);
    let outcome = run(&experiment, Policy::Plimsoll);
    // One moved to the other: 1000 + 800 MIPS, of 870 MB or 1740 MB.
    assert_eq!((outcome.migrations, outcome.vms, outcome.vms_at_end), (1, 2, 2));
    assert!(outcome.mean_hosts > 1.0 && outcome.mean_hosts < 1.06, "{outcome:?}");
    let moved = outcome.moved_gb * 1000.0;
    let move_s = moved / 62.5;
    assert!(close(outcome.mean_hosts, (600.0 + move_s) / 600.0));
    // Short while it comes, on one of two hosts.
    assert!(close(outcome.slatah_percent, 100.0 * move_s / (600.0 + move_s)));
    let asked = if close(moved, 870.0) { 1000.0 } else { 800.0 };
    assert!(close(outcome.pdm_percent, 100.0 * 0.1 * asked * move_s / (1800.0 * 600.0)));
    assert!(close(outcome.slav_percent, outcome.slatah_percent * outcome.pdm_percent / 100.0));
    assert!(close(outcome.esv, outcome.energy_kwh * outcome.slav_percent));
    // Of the G5 with 1800 MIPS (33.8 %) for ten minutes, and a little more.
    let at_least = (105.0 + 5.0 * (1800.0 / 532.0 - 3.0)) * 600.0 / 3.6e6;
    assert!(outcome.energy_kwh > at_least && outcome.energy_kwh < at_least * 1.1);
}

#[test]
fn idle_vms_end_if_that_is_wanted() {
    let rows: &[&[u8]] = &[&[10, 0, 0, 10], &[10, 0, 10, 10], &[0, 10, 10, 10], &[10; 4]];
    let at_end = |idle| run(&experiment(rows, idle), Policy::ThresholdMmt).vms_at_end;
    assert_eq!((at_end(Idle::Stays), at_end(Idle::Ends)), (4, 3));
}

#[test]
fn what_cannot_be_tried_is_refused() {
    let nothing = Experiment::new(&[], Memory::Ignored, Idle::Stays).unwrap_err();
    assert_eq!(nothing, ConsolidationError::Nothing);
    // 4096 MB have room for two VMs of 1740 MB and for four of 870 MB, and a G5 for two of 2500 MIPS.
    let rows = vec![&[1_u8][..]; 4000];
    let full = experiment(&rows, Idle::Stays);
    let error = full.run(Policy::Plimsoll, &Aim::default(), &mut |_| ()).unwrap_err();
    assert_eq!(error, ConsolidationError::Full { number: 801, of: 4000 });
}

#[test]
fn policies_are_named_as_they_are_written() {
    for policy in Policy::ALL {
        assert_eq!(policy.to_string().parse(), Ok(policy));
    }
    let said = "lr".parse::<Policy>().unwrap_err().to_string();
    assert!(said.starts_with("`lr` is not a policy of consolidation: use thr-mmt, "), "{said}");
}

/// kWh, moves and SLAV in %.
type Scores = (f64, f64, f64);

/// Two days, and what `CloudSim` 3.0.3 scores on them with the reference policies in the order of
/// [`Policy::ALL`].
const PUBLISHED: [(&str, [Scores; 4]); 2] = [
    (
        "20110303.csv.xz",
        [
            (192.62, 26711.0, 0.00318),
            (189.98, 26282.0, 0.00301),
            (185.79, 26556.0, 0.00334),
            (163.48, 27859.0, 0.00464),
        ],
    ),
    (
        "20110306.csv.xz",
        [
            (144.74, 20908.0, 0.00360),
            (143.97, 20742.0, 0.00337),
            (140.07, 20682.0, 0.00374),
            (123.28, 20878.0, 0.00462),
        ],
    ),
];

#[test]
fn the_reference_policies_score_as_published_and_plimsoll_beats_each_of_them_on_everything() {
    let Some(folder) = data::folder("planetlab") else { return };
    for (day, published) in PUBLISHED {
        let vms = planetlab::read(&folder.join(day), &Limits::default()).unwrap();
        let as_published = Experiment::new(&vms, Memory::Ignored, Idle::Ends).unwrap();
        for (policy, (energy_kwh, moves, slav)) in Policy::ALL.into_iter().zip(published) {
            let got = run(&as_published, policy);
            let is_near = |got: f64, wanted: f64, by: f64| (got / wanted - 1.0).abs() < by;
            assert!(is_near(got.energy_kwh, energy_kwh, 0.025), "{got:?}");
            assert!(is_near(count(got.migrations), moves, 0.025), "{got:?}");
            assert!(is_near(got.slav_percent, slav, 0.2), "{got:?}");
        }
        // With all VMs to the end of the day, which is more work.
        let all = Experiment::new(&vms, Memory::Ignored, Idle::Stays).unwrap();
        let got = run(&all, Policy::Plimsoll);
        for (energy_kwh, moves, slav) in published {
            assert!(got.energy_kwh < energy_kwh && got.slav_percent < slav, "{got:?}");
            assert!(count(got.migrations) < moves, "{got:?}");
        }
        assert!(got.slatah_percent < 4.8 && got.energy_kwh <= 160.0 && got.migrations <= 8000);
        assert_eq!(got, run(&all, Policy::Plimsoll));
    }
}

#[test]
fn with_memory_counted_no_host_ever_has_more_than_it_has() {
    let Some(folder) = data::folder("planetlab") else { return };
    let vms = planetlab::read(&folder.join(PUBLISHED[1].0), &Limits::default()).unwrap();
    let experiment = Experiment::new(&vms, Memory::Enforced, Idle::Stays).unwrap();
    let mut fleet = Fleet::placed(&experiment).unwrap();
    let mut decider = Policy::Plimsoll.decider(&experiment, &Aim::default());
    for round in 0..20 {
        fleet.begin(&decider.decide(&experiment, round, &fleet));
        for host in 0..experiment.hosts.len() {
            let memory: u32 =
                fleet.vms_of(host).iter().map(|vm| experiment.vms[*vm].memory_mb).sum();
            assert!(memory <= super::HOST_MB);
        }
        fleet.finish(|_| true);
    }
    // 1,114,218 MB.
    assert!(fleet.used() >= 273 && fleet.used() < 330, "{}", fleet.used());
}

fn count(moves: u64) -> f64 {
    f64::from(u32::try_from(moves).unwrap())
}

use std::ops::ControlFlow;

use plimsoll_model::{HostId, MilliCores, Policy, ProjectId, Resources, VmId};
use plimsoll_placement::{Choice, Cluster, HostState, Placed, Request};
use uuid::Uuid;

use super::{Arrival, EventQueue, Newcomer, Observer, RunError, SimTime, Totals, run};

fn cores(count: u64) -> Resources {
    Resources { cpu: MilliCores::cores(count), ..Resources::default() }
}

fn cluster(hosts: u32, size: u64) -> Cluster {
    let mut cluster = Cluster::new();
    for number in 1..=hosts {
        cluster.upsert_host(HostState {
            id: HostId(number),
            name: format!("host-{number}").parse().unwrap(),
            rack: None,
            zone: None,
            labels: Default::default(),
            capacity: cores(size),
            pool: None,
            unschedulable: None,
        });
    }
    cluster
}

fn newcomer(number: u128, size: u64, lifetime_s: Option<u64>) -> Newcomer {
    Newcomer {
        request: Request::new(
            VmId(Uuid::from_u128(number)),
            ProjectId(Uuid::from_u128(1)),
            cores(size),
        ),
        lifetime_ms: lifetime_s.map(|s| s * 1000),
    }
}

fn arrival(at: u64, vms: Vec<Newcomer>) -> Arrival {
    Arrival { at: SimTime::seconds(at), vms, all_or_nothing: false }
}

/// Writes down what it sees.
#[derive(Default)]
struct Log {
    lines: Vec<String>,
    stop_at_rejection: bool,
}

impl Observer for Log {
    fn placed(&mut self, at: SimTime, request: &Request, choice: &Choice) -> ControlFlow<()> {
        let host = choice.host;
        self.lines.push(format!("{} +{} {host}", at.0 / 1000, request.vm.0.as_u128()));
        ControlFlow::Continue(())
    }

    fn rejected(&mut self, at: SimTime, request: &Request, _: &Cluster) -> ControlFlow<()> {
        self.lines.push(format!("{} x{}", at.0 / 1000, request.vm.0.as_u128()));
        if self.stop_at_rejection { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn departed(&mut self, at: SimTime, placed: &Placed) -> ControlFlow<()> {
        let (vm, host) = (placed.request.vm.0.as_u128(), placed.host);
        self.lines.push(format!("{} -{vm} {host}", at.0 / 1000));
        ControlFlow::Continue(())
    }
}

fn logged(hosts: u32, policy: Policy, workload: Vec<Arrival>) -> (Vec<String>, Totals) {
    let mut log = Log::default();
    let totals = run(&mut cluster(hosts, 4), policy, workload, None, &mut log).unwrap();
    (log.lines, Totals { deciding: Default::default(), ..totals })
}

#[test]
fn events_come_by_time_and_equals_in_the_order_given() {
    let mut queue = EventQueue::new();
    for (at, name) in [(2, 'a'), (1, 'b'), (2, 'c'), (1, 'd')] {
        queue.push(SimTime(at), name);
    }
    assert_eq!(queue.pop_until(SimTime(0)), None);
    let order: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|(_, name)| name).collect();
    assert_eq!(order, ['b', 'd', 'a', 'c']);
    assert!(queue.is_empty());
}

#[test]
fn who_leaves_makes_room_for_who_comes_at_the_same_instant() {
    let (lines, totals) = logged(
        1,
        Policy::FirstFit,
        vec![
            arrival(0, vec![newcomer(1, 3, Some(10)), newcomer(2, 2, None)]),
            arrival(10, vec![newcomer(3, 4, Some(5))]),
        ],
    );
    assert_eq!(lines, ["0 +1 host-1", "0 x2", "10 -1 host-1", "10 +3 host-1", "15 -3 host-1"]);
    let end = SimTime::seconds(15);
    assert_eq!(totals, Totals { placed: 2, rejected: 1, departed: 2, end, ..Totals::default() });
}

#[test]
fn ffd_places_the_largest_of_a_batch_first_and_a_group_goes_whole_or_not() {
    let vms = || vec![newcomer(1, 1, None), newcomer(2, 4, None), newcomer(3, 3, None)];
    let (lines, _) = logged(2, Policy::FfdSum, vec![arrival(0, vms())]);
    assert_eq!(lines, ["0 +2 host-1", "0 +3 host-2", "0 +1 host-2"]);
    let whole = |at| Arrival { all_or_nothing: true, ..arrival(at, vms()) };
    let (lines, totals) = logged(1, Policy::FirstFit, vec![whole(0)]);
    assert_eq!(lines, ["0 x1", "0 x2", "0 x3"]);
    assert_eq!((totals.placed, totals.rejected), (0, 3));
    let (_, totals) = logged(2, Policy::FirstFit, vec![whole(0)]);
    assert_eq!(totals.placed, 3);
}

#[test]
fn a_run_ends_at_its_horizon_or_when_its_observer_has_seen_enough() {
    let workload = || (0..10).map(|n| arrival(n, vec![newcomer(n.into(), 2, Some(100))]));
    let mut log = Log { stop_at_rejection: true, ..Log::default() };
    let totals = run(&mut cluster(1, 4), Policy::MostFree, workload(), None, &mut log).unwrap();
    assert_eq!((totals.placed, totals.rejected), (2, 1));
    let end = Some(SimTime::seconds(4));
    let totals =
        run(&mut cluster(9, 4), Policy::MostFree, workload(), end, &mut Log::default()).unwrap();
    assert_eq!((totals.placed, totals.departed, totals.end), (5, 0, SimTime::seconds(4)));
}

#[test]
fn a_workload_that_cannot_be_is_refused() {
    let twice = vec![arrival(0, vec![newcomer(1, 1, None), newcomer(1, 1, None)])];
    let error =
        run(&mut cluster(1, 4), Policy::FirstFit, twice, None, &mut Log::default()).unwrap_err();
    assert!(matches!(error, RunError::Twice { .. }), "{error}");
    let back = vec![arrival(5, vec![]), arrival(4, vec![])];
    let error =
        run(&mut cluster(1, 4), Policy::FirstFit, back, None, &mut Log::default()).unwrap_err();
    assert_eq!(error, RunError::OutOfOrder { at_ms: 5000 - 1000, before_ms: 5000 });
}

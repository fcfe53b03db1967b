//! Facts and questions that should not be, and must do no harm.

use plimsoll_model::{
    Bytes, Constraint, HostId, MilliCores, Policy, ProjectId, Resources, Rule, Scope, Strength,
};
use plimsoll_placement::{
    Cluster, HostState, MAX_DEVICES, OccupyError, Refusal, RemoveHostError, Request, SplitLimits,
    SplitRefusal,
};
use uuid::Uuid;

use crate::scenario::{label, name, vm};

fn host(id: u32, capacity: Resources) -> HostState {
    HostState {
        id: HostId(id),
        name: name(&format!("node-{id}")),
        rack: None,
        zone: None,
        labels: std::collections::BTreeMap::new(),
        capacity,
        pool: None,
        unschedulable: None,
    }
}

fn request(number: usize, demand: Resources) -> Request {
    Request::new(vm(number), ProjectId(Uuid::from_u128(1)), demand)
}

fn all(amount: u64) -> Resources {
    let mut all = Resources::from_scalars([amount; 6]);
    all.accelerators.0.insert(label("t4"), amount);
    all
}

#[test]
fn the_largest_numbers_are_counted_and_taken_back() {
    let mut cluster = Cluster::new();
    cluster.upsert_host(host(1, all(u64::MAX)));
    cluster.upsert_host(host(2, all(0)));
    let empty = cluster.clone();
    for number in 0..4 {
        let at = HostId(1 + u32::from(number >= 2));
        let occupied = cluster.occupy(at, &request(number, all(u64::MAX))).unwrap();
        assert!(number == 0 || !occupied.over.is_empty(), "{number}: {occupied:?}");
    }
    assert_eq!(cluster.committed(HostId(1)).cpu, MilliCores(u64::MAX));
    assert_eq!(cluster.free(HostId(1)), Resources::default());
    for policy in Policy::ALL {
        assert!(cluster.decide(&request(9, all(1)), policy).is_err());
        let nothing = cluster.explain(&request(9, Resources::default()), policy);
        assert!(nothing.choice.unwrap().score.is_finite(), "{policy}");
    }
    for number in 0..4 {
        assert!(cluster.release(vm(number)).is_some());
    }
    assert_eq!(cluster, empty);
}

#[test]
fn a_host_with_too_many_devices_has_as_many_as_are_told_apart() {
    let mut capacity = Resources::default();
    capacity.accelerators.0.insert(label("t4"), u64::MAX);
    let mut cluster = Cluster::new();
    cluster.upsert_host(host(1, capacity));
    let mut demand = Resources::default();
    demand.accelerators.0.insert(label("t4"), 1000 * (MAX_DEVICES as u64 + 1));
    let refusals = cluster.decide(&request(1, demand), Policy::MostFree).unwrap_err();
    assert!(matches!(refusals.counts[0].example.refusal, Refusal::Insufficient { .. }));
}

#[test]
fn facts_that_cannot_be_change_nothing() {
    let mut cluster = Cluster::new();
    cluster.upsert_host(host(1, all(10)));
    let _ = cluster.occupy(HostId(1), &request(1, Resources::default())).unwrap();
    let before = cluster.clone();
    assert_eq!(
        cluster.occupy(HostId(1), &request(1, all(1))),
        Err(OccupyError::AlreadyPlaced { vm: vm(1), host: HostId(1) })
    );
    assert_eq!(
        cluster.occupy(HostId(7), &request(2, all(1))),
        Err(OccupyError::UnknownHost { vm: vm(2), host: HostId(7) })
    );
    assert_eq!(
        cluster.remove_host(HostId(1)),
        Err(RemoveHostError::Occupied { host: HostId(1), vms: 1 })
    );
    assert_eq!(cluster.remove_host(HostId(7)), Err(RemoveHostError::Unknown { host: HostId(7) }));
    assert_eq!(cluster.release(vm(2)), None);
    assert_eq!(cluster, before);
    assert!(cluster.release(vm(1)).is_some());
    assert!(cluster.remove_host(HostId(1)).is_ok());
    assert_eq!(cluster.hosts().count(), 0);
}

#[test]
fn strange_groups_and_totals_leave_the_cluster_as_it_was() {
    let mut cluster = Cluster::new();
    cluster.upsert_host(host(1, Resources::from_scalars([4000, Bytes::gib(4).0, 0, 0, 0, 0])));
    let _ = cluster.occupy(HostId(1), &request(1, Resources::default())).unwrap();
    let before = cluster.clone();
    assert_eq!(cluster.decide_group(&[], Policy::FfdProd), Ok(Vec::new()));
    let twice = [request(1, Resources::default()), request(1, Resources::default())];
    assert_eq!(cluster.decide_group(&twice, Policy::FfdSum).map(|choices| choices.len()), Ok(2));
    assert_eq!(cluster, before);
    let mut split = |total: &Resources, limits: &SplitLimits| {
        cluster.split_total(total, limits, &request(1, all(1)), Policy::Cosine)
    };
    let any = SplitLimits::default();
    assert_eq!(split(&Resources::default(), &any), Err(SplitRefusal::Empty));
    assert!(matches!(split(&all(u64::MAX), &any), Err(SplitRefusal::Insufficient { .. })));
    let none = SplitLimits { min_vms: u32::MAX, max_vms: 0, ..any.clone() };
    let one_core = Resources { cpu: MilliCores::cores(1), ..Resources::default() };
    assert!(matches!(
        split(&one_core, &none),
        Err(SplitRefusal::TooFew { .. } | SplitRefusal::Limits { .. })
    ));
    let tiny =
        SplitLimits { max_per_vm: Resources { cpu: MilliCores(1), ..one_core.clone() }, ..any };
    assert!(matches!(split(&one_core, &tiny), Err(SplitRefusal::Limits { .. })));
    assert_eq!(cluster, before);
}

#[test]
fn a_refused_rack_hides_no_host_that_lies_among_its_own() {
    let mut cluster = Cluster::new();
    // All alike, and so in one row of the index; racks a, a, b, a.
    for (id, rack) in [(1, "a"), (2, "a"), (3, "b"), (4, "a")] {
        let capacity = Resources { cpu: MilliCores::cores(4), ..Resources::default() };
        cluster.upsert_host(HostState { rack: Some(label(rack)), ..host(id, capacity) });
    }
    let member = |number| {
        let mut request = request(number, Resources::default());
        request.groups.insert(name("g"));
        let rule = Rule::AntiAffinity { group: name("g"), scope: Scope::Rack };
        request.constraints.push(Constraint { strength: Strength::Required, rule });
        request
    };
    let _ = cluster.occupy(HostId(1), &member(1)).unwrap();
    for policy in Policy::ALL {
        let found = cluster.find(&member(2), policy).map(|choice| choice.host);
        assert_eq!(found, Some(HostId(3)), "{policy}");
    }
}

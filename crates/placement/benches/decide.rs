//! How long one decision takes over 1,000 hosts that fill up: `cargo bench -p plimsoll-placement`.

#![expect(clippy::unwrap_used, reason = "a benchmark may panic")]

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use plimsoll_model::{
    Bytes, Constraint, HostId, MilliCores, Policy, ProjectId, Resources, Rule, Scope, Strength,
    Timestamp, VmId,
};
use plimsoll_placement::{Cluster, Earliest, HostState, Interval, Request};
use uuid::Uuid;

const HOSTS: u32 = 1000;
/// Placed before the measurement: hosts are a third full.
const PLACED: u64 = 20_000;

fn empty_cluster() -> Cluster {
    let mut cluster = Cluster::new();
    for id in 1..=HOSTS {
        cluster.upsert_host(HostState {
            id: HostId(id),
            name: format!("node-{id}").parse().unwrap(),
            rack: Some(format!("r{}", id / 40).parse().unwrap()),
            zone: Some(format!("z{}", id / 400).parse().unwrap()),
            labels: std::collections::BTreeMap::new(),
            capacity: Resources {
                cpu: MilliCores::cores(64),
                memory: Bytes::gib(256),
                disk: Bytes::gib(4000),
                ..Resources::default()
            },
            pool: None,
            unschedulable: None,
        });
    }
    cluster
}

fn request(number: u64, rules: bool) -> Request {
    let demand = Resources {
        cpu: MilliCores(500 + 500 * (number % 4)),
        memory: Bytes::gib(1 + number % 3),
        disk: Bytes::gib(10),
        ..Resources::default()
    };
    let project = ProjectId(Uuid::from_u128(1));
    let mut request = Request::new(VmId(Uuid::from_u128(number.into())), project, demand);
    if rules {
        let group: plimsoll_model::Name = format!("g{}", number / 20).parse().unwrap();
        request.groups.insert(group.clone());
        for (strength, scope) in
            [(Strength::Required, Scope::Host), (Strength::Preferred, Scope::Rack)]
        {
            let rule = Rule::AntiAffinity { group: group.clone(), scope };
            request.constraints.push(Constraint { strength, rule });
        }
    }
    request
}

fn decide(criterion: &mut Criterion) {
    for rules in [false, true] {
        let name = if rules { "decide, anti-affinity" } else { "decide" };
        let mut group = criterion.benchmark_group(name);
        for policy in [Policy::FirstFit, Policy::MostFree, Policy::Cosine, Policy::L2Ratio] {
            let mut cluster = empty_cluster();
            for number in 0..PLACED {
                let request = request(number, rules);
                let choice = cluster.decide(&request, policy).unwrap();
                let occupied = cluster.occupy(choice.host, &request).unwrap();
                assert!(occupied.over.is_empty(), "a choice has room");
            }
            // One more of the last group, which has members to stay away from.
            let next = request(PLACED - 1, rules);
            cluster.release(next.vm);
            group.bench_function(BenchmarkId::from_parameter(policy), |bencher| {
                bencher.iter(|| cluster.decide(black_box(&next), policy));
            });
        }
    }
}

/// Hosts that are full until their VMs end, one after the other: the first start is found, or it is
/// found that there is none before it.
fn book(criterion: &mut Criterion) {
    let at = |second| Timestamp::from_second(second).unwrap();
    let mut cluster = empty_cluster();
    let mut number = 0;
    for id in 1..=HOSTS {
        for hour in 1..=10 {
            number += 1;
            let mut request = request(number, false);
            request.demand.cpu = MilliCores::cores(6);
            let until = Some(at(3600 * hour + i64::from(id)));
            request.interval = Interval { from: None, until };
            request.keeps_disk = true;
            let _ = cluster.occupy(HostId(id), &request).unwrap();
        }
    }
    let mut next = request(number + 1, false);
    next.demand.cpu = MilliCores::cores(20);
    let hour = Some(Duration::from_secs(3600));
    let when = Earliest { after: at(0), duration: hour, deadline: None };
    let first = cluster.book(&next, &when, Policy::MostFree).unwrap().interval.until.unwrap();
    let earlier = Earliest { deadline: first.checked_sub(Duration::from_nanos(1)).ok(), ..when };
    let mut group = criterion.benchmark_group("book");
    for (name, when) in [("later", when), ("no earlier", earlier)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| cluster.find_booking(black_box(&next), &when, Policy::MostFree));
        });
    }
}

criterion_group!(benches, decide, book);
criterion_main!(benches);

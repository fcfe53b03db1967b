//! How long decisions take. Not a check: machines differ. Run with
//! `cargo test --release -p plimsoll-placement --test it -- --ignored --nocapture speed`.

use std::time::Instant;

use plimsoll_model::{
    Bytes, Constraint, HostId, MilliCores, Policy, ProjectId, Resources, Rule, Scope, Strength,
};
use plimsoll_placement::{Cluster, HostState, Request};
use uuid::Uuid;

use crate::scenario::{label, name, vm};

fn cluster(hosts: u32) -> Cluster {
    let mut cluster = Cluster::new();
    for id in 1..=hosts {
        cluster.upsert_host(HostState {
            id: HostId(id),
            name: format!("node-{id}").parse().unwrap(),
            rack: Some(label(&format!("r{}", id / 40))),
            zone: Some(label(&format!("z{}", id / 400))),
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

#[test]
#[ignore = "a measurement"]
fn speed_of_decisions() {
    let project = ProjectId(Uuid::from_u128(1));
    for policy in [Policy::FirstFit, Policy::MostFree, Policy::Cosine, Policy::L2Ratio] {
        for rules in [false, true] {
            let mut cluster = cluster(1000);
            let mut decide = std::time::Duration::ZERO;
            let started = Instant::now();
            let vms = 20_000;
            for number in 0..vms {
                let demand = Resources {
                    cpu: MilliCores(500 + 500 * (number as u64 % 4)),
                    memory: Bytes::gib(1 + number as u64 % 3),
                    disk: Bytes::gib(10),
                    ..Resources::default()
                };
                let mut request = Request::new(vm(number), project, demand);
                if rules {
                    let group = name(&format!("g{}", number / 20));
                    request.groups.insert(group.clone());
                    request.constraints.push(Constraint {
                        strength: Strength::Required,
                        rule: Rule::AntiAffinity { group: group.clone(), scope: Scope::Host },
                    });
                    request.constraints.push(Constraint {
                        strength: Strength::Preferred,
                        rule: Rule::AntiAffinity { group, scope: Scope::Rack },
                    });
                }
                let before = Instant::now();
                let choice = cluster.decide(&request, policy).unwrap();
                decide += before.elapsed();
                let _ = cluster.occupy(choice.host, &request).unwrap();
            }
            eprintln!(
                "{policy} over 1000 hosts, rules {rules}: {:.1} us a decision, {:.1} us with its fact",
                decide.as_secs_f64() * 1e6 / vms as f64,
                started.elapsed().as_secs_f64() * 1e6 / vms as f64,
            );
        }
    }
}

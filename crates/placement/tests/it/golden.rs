//! What answers look like, to people and on the wire.

use plimsoll_model::{
    Bytes, Constraint, ExclusiveAgainst, HostId, MilliCores, Policy, ProjectId, Resources, Rule,
    Scope, Strength,
};
use plimsoll_placement::{Cluster, HostState, Request, SplitLimits, Unschedulable};
use uuid::Uuid;

use crate::scenario::{label, name, vm};

fn host(id: u32, rack: &str, cores: u64, gib: u64) -> HostState {
    HostState {
        id: HostId(id),
        name: name(&format!("node-{id}")),
        rack: Some(label(rack)),
        zone: None,
        labels: [(label("storage"), label("ssd"))].into(),
        capacity: Resources {
            cpu: MilliCores::cores(cores),
            memory: Bytes::gib(gib),
            ..Resources::default()
        },
        pool: None,
        unschedulable: None,
    }
}

fn size(cores: u64, gib: u64) -> Resources {
    Resources { cpu: MilliCores::cores(cores), memory: Bytes::gib(gib), ..Resources::default() }
}

fn web(number: usize) -> Request {
    let mut request = Request::new(vm(number), ProjectId(Uuid::from_u128(7)), size(2, 4));
    request.groups.insert(name("web"));
    request.constraints = vec![
        Constraint {
            strength: Strength::Required,
            rule: Rule::AntiAffinity { group: name("web"), scope: Scope::Host },
        },
        Constraint {
            strength: Strength::Preferred,
            rule: Rule::AntiAffinity { group: name("web"), scope: Scope::Rack },
        },
        Constraint {
            strength: Strength::Required,
            rule: Rule::HostLabel { key: label("storage"), values: vec![label("ssd")] },
        },
    ];
    request
}

/// Six hosts: one holds a front end, one is drained, one is too small and has no label, one is
/// kept by another project.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.upsert_host(host(1, "r1", 8, 32));
    cluster.upsert_host(host(2, "r1", 8, 32));
    cluster.upsert_host(host(3, "r2", 8, 16));
    cluster.upsert_host(HostState {
        unschedulable: Some(Unschedulable::Draining),
        ..host(4, "r2", 8, 32)
    });
    cluster.upsert_host(HostState {
        labels: std::collections::BTreeMap::new(),
        ..host(5, "r2", 1, 32)
    });
    cluster.upsert_host(host(6, "r3", 8, 32));
    let _ = cluster.occupy(HostId(1), &web(1)).unwrap();
    let mut alone = Request::new(vm(50), ProjectId(Uuid::from_u128(8)), size(1, 1));
    alone.constraints.push(Constraint {
        strength: Strength::Required,
        rule: Rule::Exclusive { against: ExclusiveAgainst::OtherProjects },
    });
    let _ = cluster.occupy(HostId(6), &alone).unwrap();
    cluster
}

#[test]
fn an_explanation_gives_every_hosts_refusal_or_score() {
    let explanation = cluster().explain(&web(2), Policy::MostFree);
    insta::assert_snapshot!(explanation.reason());
    insta::assert_json_snapshot!(explanation);
    let text = serde_json::to_string(&explanation).unwrap();
    assert_eq!(explanation, serde_json::from_str(&text).unwrap());
}

#[test]
fn reasons_are_short_and_have_numbers() {
    let mut cluster = cluster();
    let mut texts = Vec::new();
    for policy in Policy::ALL {
        texts.push(cluster.decide(&web(2), policy).unwrap().reason());
    }
    texts.push(
        cluster
            .decide(&Request { demand: size(9, 4), ..web(2) }, Policy::Cosine)
            .unwrap_err()
            .to_string(),
    );
    texts.push(Cluster::new().decide(&web(2), Policy::Cosine).unwrap_err().to_string());
    let group: Vec<_> = (2..6).map(web).collect();
    let refusal = cluster.decide_group(&group, Policy::FirstFit).unwrap_err();
    texts.push(refusal.to_string());
    texts.push(refusal.refusals.to_string());
    let plain = Request::new(vm(9), ProjectId(Uuid::from_u128(7)), Resources::default());
    let mut split = |cores, gib, limits: &SplitLimits| {
        let split = cluster.split_total(&size(cores, gib), limits, &plain, Policy::MostFree);
        match split {
            Ok(parts) => parts
                .iter()
                .map(|part| format!("{} cores and {}", part.cpu, part.memory))
                .collect::<Vec<_>>()
                .join(", "),
            Err(refusal) => refusal.to_string(),
        }
    };
    texts.push(split(12, 24, &SplitLimits::default()));
    texts.push(split(64, 256, &SplitLimits::default()));
    texts.push(split(22, 24, &SplitLimits { max_vms: 3, ..SplitLimits::default() }));
    texts.push(split(12, 24, &SplitLimits { min_per_vm: size(20, 0), ..SplitLimits::default() }));
    insta::assert_snapshot!(texts.join("\n"));
}

/// 40 racks of 8 hosts with room for one VM each; in all but the last rack one host is drained.
/// Eight VMs that must share a rack fit only there, which no policy's first choice finds.
#[test]
fn a_group_that_must_share_a_rack_finds_the_one_that_holds_it() {
    let mut cluster = Cluster::new();
    for rack in 0..40 {
        for slot in 0..8 {
            let drained = slot == 3 && rack < 39;
            cluster.upsert_host(HostState {
                unschedulable: drained.then_some(Unschedulable::Draining),
                ..host(1 + rack * 8 + slot, &format!("r{rack}"), 2, 4)
            });
        }
    }
    let group: Vec<_> = (0..8)
        .map(|number| {
            let mut request = Request::new(vm(number), ProjectId(Uuid::from_u128(7)), size(2, 4));
            request.groups.insert(name("team"));
            request.constraints.push(Constraint {
                strength: Strength::Required,
                rule: Rule::Affinity { group: name("team"), scope: Scope::Rack },
            });
            request
        })
        .collect();
    for policy in Policy::ALL {
        let choices = cluster.decide_group(&group, policy).unwrap();
        assert!(choices.iter().all(|choice| choice.host.0 > 39 * 8), "{policy}");
    }
}

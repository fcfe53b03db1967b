//! What answers look like, to people and on the wire.

use plimsoll_model::{
    Bytes, Constraint, ExclusiveAgainst, HostId, MilliCores, Policy, ProjectId, Resources, Rule,
    Scope, Strength,
};
use plimsoll_placement::{
    AnyModel, Cluster, HostState, Request, SplitLimits, TypicalRequest, Unschedulable, Workload,
};
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

fn with_devices(mut resources: Resources, model: &str, thousandths: u64) -> Resources {
    resources.accelerators.0.insert(label(model), thousandths);
    resources
}

/// Two hosts with the same devices but not as many cores each, one with another model, one with
/// none; half a device is usually asked for with four cores, and a whole one with eight.
fn accelerated() -> Cluster {
    let mut cluster = Cluster::new();
    for (id, cores, model) in [(1, 16, "t4"), (2, 32, "t4"), (3, 32, "a10"), (4, 64, "none")] {
        let mut state = host(id, "r1", cores, 64);
        if model != "none" {
            state.capacity = with_devices(state.capacity, model, 2000);
        }
        cluster.upsert_host(state);
    }
    let typical = |cores, thousandths, weight| TypicalRequest {
        demand: size(cores, 4),
        accelerator: Some(AnyModel { models: [].into(), thousandths }),
        weight,
    };
    let cores = TypicalRequest { demand: size(2, 4), accelerator: None, weight: 1 };
    let workload = Workload::new([typical(4, 500, 2), typical(8, 1000, 1), cores]);
    assert_eq!(workload.requests().len(), 3);
    cluster.set_workload(Some(workload));
    let project = ProjectId(Uuid::from_u128(7));
    let half = Request::new(vm(1), project, with_devices(size(4, 4), "t4", 400));
    let _ = cluster.occupy(HostId(1), &half).unwrap();
    cluster
}

#[test]
fn what_is_usually_asked_for_decides_where_a_share_goes() {
    let cluster = accelerated();
    let project = ProjectId(Uuid::from_u128(7));
    let mut share = Request::new(vm(2), project, size(4, 4));
    share.accelerator =
        Some(AnyModel { models: [label("a10"), label("t4")].into(), thousandths: 500 });
    let fgd = cluster.explain(&share, Policy::Fgd);
    let least_stranding = cluster.explain(&share, Policy::LeastStranding);
    insta::assert_json_snapshot!([fgd, least_stranding]);
    let only_cores = Request::new(vm(3), project, size(20, 4));
    let choice = cluster.decide(&only_cores, Policy::LeastStranding).unwrap();
    assert_eq!((choice.host, choice.score), (HostId(4), 0.0), "cores without devices strand none");
    assert!((cluster.fragmented() - 1.55).abs() < 1e-9, "{}", cluster.fragmented());
}

#[test]
fn one_model_of_several_is_promised_under_its_name() {
    let mut cluster = accelerated();
    let project = ProjectId(Uuid::from_u128(7));
    let mut request = Request::new(vm(2), project, size(1, 1));
    request.accelerator =
        Some(AnyModel { models: [label("a10"), label("h100")].into(), thousandths: 2000 });
    let choice = cluster.decide(&request, Policy::MostFree).unwrap();
    let before = cluster.clone();
    let occupied = cluster.occupy_devices(choice.host, &request, &choice.devices).unwrap();
    assert_eq!((choice.host, &occupied.devices), (HostId(3), &choice.devices));
    assert!(occupied.over.is_empty());
    let committed = cluster.committed(HostId(3));
    assert_eq!(committed.accelerators.get(&label("a10")), 2000);
    let placed = cluster.release(vm(2)).unwrap();
    assert_eq!((placed.request.accelerator, &cluster), (None, &before));
    let _ = cluster.occupy(HostId(3), &request).unwrap();
    let mut texts = Vec::new();
    for (number, models) in [vec!["a10"], vec!["h100"], vec![]].into_iter().enumerate() {
        let mut more = Request::new(vm(10 + number), project, size(1, 1));
        let models = models.into_iter().map(label).collect();
        more.accelerator = Some(AnyModel { models, thousandths: 3000 });
        texts.push(cluster.decide(&more, Policy::MostFree).unwrap_err().to_string());
    }
    // A fact is taken as it is, and what is over is told.
    let mut nowhere = Request::new(vm(20), project, size(1, 1));
    nowhere.accelerator = Some(AnyModel { models: [].into(), thousandths: 500 });
    let over = cluster.occupy(HostId(4), &nowhere).unwrap().over;
    texts.push(format!("{over:?}"));
    insta::assert_snapshot!(texts.join("\n"));
}

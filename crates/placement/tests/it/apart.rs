//! Acceptance: groups that are spread over racks and hosts go where a scan sends them, when their
//! racks are dense or not, hosts come and go, and whole regions of ids are full.

use plimsoll_model::{
    Bytes, Constraint, HostId, MilliCores, Policy, ProjectId, Resources, Rule, Scope, Strength,
};
use plimsoll_placement::{Cluster, HostState, Request};
use rand::{
    Rng, SeedableRng,
    seq::{IndexedRandom, SliceRandom},
};
use rand_chacha::ChaCha8Rng;
use uuid::Uuid;

use crate::scenario::{label, name, vm};

/// Host ids are below this, not all of them taken.
const IDS: u32 = 2_500;
const RACKS: u32 = IDS / 20;
/// Decisions with each way of giving ids to racks.
const STEPS: usize = 2_500;

#[test]
fn spread_groups_equal_scan_in_dense_racks() {
    history(1, |id, _| id / 20);
}

#[test]
fn spread_groups_equal_scan_in_woven_racks() {
    history(2, |id, _| id / 320 * 16 + id % 16);
}

#[test]
fn spread_groups_equal_scan_in_racks_with_strays() {
    history(3, |id, random| if id % 15 == 0 { random.random_range(0..RACKS) } else { id / 20 });
}

#[test]
fn spread_groups_equal_scan_in_racks_at_random() {
    history(4, |_, random| random.random_range(0..RACKS));
}

fn host(id: u32, rack: u32, random: &mut ChaCha8Rng) -> HostState {
    let cores = [16, 32][random.random_range(0..2)];
    HostState {
        id: HostId(id),
        name: name(&format!("node-{id}")),
        // Now and then one that is in no rack.
        rack: (random.random_range(0..50) > 0).then(|| label(&format!("r{rack}"))),
        zone: None,
        labels: std::collections::BTreeMap::new(),
        capacity: Resources {
            cpu: MilliCores::cores(cores),
            memory: Bytes::gib(2 * cores),
            disk: Bytes::gib(100),
            ..Resources::default()
        },
        pool: None,
        unschedulable: None,
    }
}

fn request(number: usize, cores: u64, random: &mut ChaCha8Rng) -> Request {
    let demand = Resources {
        cpu: MilliCores::cores(cores),
        memory: Bytes((cores << 30) + (random.random_range(0..64) << 20)),
        disk: Bytes::gib(1),
        ..Resources::default()
    };
    Request::new(vm(number), ProjectId(Uuid::nil()), demand)
}

fn member(number: usize, random: &mut ChaCha8Rng) -> Request {
    let cores = [1, 2, 4, 12][random.random_range(0..4)];
    let mut request = request(number, cores, random);
    let group = name(["g", "h", "i"][random.random_range(0..3)]);
    request.groups.insert(group.clone());
    let scope = [Scope::Rack, Scope::Rack, Scope::Host][random.random_range(0..3)];
    let strength = [Strength::Required, Strength::Preferred][random.random_range(0..2)];
    let rule = Rule::AntiAffinity { group, scope };
    request.constraints.push(Constraint { strength, rule });
    request
}

fn history(seed: u64, rack: impl Fn(u32, &mut ChaCha8Rng) -> u32) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut cluster = Cluster::new();
    let mut ids: Vec<u32> = (1..IDS).filter(|_| random.random_range(0..30) > 0).collect();
    let (early, late) = ids.split_at_mut(1_500);
    early[..300].shuffle(&mut random);
    late.shuffle(&mut random);
    for id in &ids {
        let rack = rack(*id, &mut random);
        cluster.upsert_host(host(*id, rack, &mut random));
    }
    let mut number = 0;
    let mut members = Vec::new();
    for step in 0..STEPS {
        if step % 500 == 0 {
            // Some regions are full now, so that what is found lies far apart.
            let from = random.random_range(0..IDS);
            for id in (from..IDS.min(from + 800)).map(HostId) {
                let free = cluster.free(id).cpu.0 / 1000;
                let left = random.random_range(0..3);
                if cluster.host(id).is_some() && free > left {
                    number += 1;
                    let filler = request(number, free - left, &mut random);
                    let _ = cluster.occupy(id, &filler).unwrap();
                }
            }
        }
        match random.random_range(0..20) {
            0 => {
                let id = random.random_range(1..IDS);
                for vm in cluster.vms_on(HostId(id)).collect::<Vec<_>>() {
                    cluster.release(vm).unwrap();
                    members.retain(|request: &Request| request.vm != vm);
                }
                let _ = cluster.remove_host(HostId(id));
            }
            1 => {
                let id = random.random_range(1..IDS);
                let rack = rack(id, &mut random);
                cluster.upsert_host(host(id, rack, &mut random));
            }
            2..6 if members.len() > 200 => {
                let gone = members.swap_remove(random.random_range(0..members.len()));
                cluster.release(gone.vm).unwrap();
            }
            _ => {}
        }
        number += 1;
        let new = member(number, &mut random);
        // One that is placed already is decided about too, as if it had left.
        let placed = members.choose(&mut random).cloned();
        for request in placed.iter().chain([&new]) {
            let policy = if random.random_range(0..2) == 0 {
                Policy::FirstFit
            } else {
                Policy::ALL[random.random_range(0..Policy::ALL.len())]
            };
            let found = cluster.find(request, policy);
            assert_eq!(found, cluster.find_by_scan(request, policy), "{policy} of {request:?}");
            if let Some(choice) = found.filter(|choice| choice.vm == new.vm) {
                let _ = cluster.occupy(choice.host, &new).unwrap();
                members.push(new.clone());
            }
        }
    }
    assert!(members.len() > 150, "groups are as large as that: {}", members.len());
}

//! Acceptance: through 10^5 changes of one cluster, the index finds what a look at every host
//! finds. Hosts come and go, are drained, moved and relabelled; VMs come, go, and are resized; some
//! have a begin or an end, and some are stated where no decision would have put them.

use std::collections::BTreeMap;

use plimsoll_model::{Bytes, HostId, Label, MilliCores, Name, Policy, Resources, Rule, Timestamp};
use plimsoll_placement::{Cluster, HostState, Interval, Request, Unschedulable};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::scenario::{Tape, label, vm};

/// How many changes in all.
const STEPS: usize = 100_000;
/// About so many hosts.
const HOSTS: u32 = 150;
/// About so many where they are alike: enough of them for the boxes of a tree to nest.
const ALIKE: u32 = 600;
/// About so many groups, so that rules about groups bind and can still be kept.
const GROUPS: u32 = 12;

#[test]
fn index_equals_scan_over_hosts_of_all_kinds_1() {
    history(1, HOSTS, false);
}

#[test]
fn index_equals_scan_over_hosts_of_all_kinds_2() {
    history(2, HOSTS, false);
}

#[test]
fn index_equals_scan_over_hosts_that_are_alike_1() {
    history(3, ALIKE, true);
}

#[test]
fn index_equals_scan_over_hosts_that_are_alike_2() {
    history(4, ALIKE, true);
}

struct World {
    cluster: Cluster,
    random: ChaCha8Rng,
    hosts: u32,
    alike: bool,
    vms: Vec<Request>,
    next_vm: usize,
    found: BTreeMap<Policy, (u32, u32)>,
}

fn history(seed: u64, hosts: u32, alike: bool) {
    let mut world = World {
        cluster: Cluster::new(),
        random: ChaCha8Rng::seed_from_u64(seed),
        hosts,
        alike,
        vms: Vec::new(),
        next_vm: 0,
        found: BTreeMap::new(),
    };
    for id in 1..=hosts {
        world.upsert(HostId(id));
    }
    for _ in 0..STEPS / 4 {
        world.step();
    }
    eprintln!("found a host, or none: {:?}", world.found);
    for policy in Policy::ALL {
        let (found, none) = world.found[&policy];
        assert!(found > 100 && none > 50, "{policy} is not tested");
    }
}

impl World {
    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..60 => self.place(),
            60..85 => self.release(),
            85..92 => self.resize(),
            92..96 => {
                let id = HostId(self.random.random_range(1..=self.hosts + 20));
                self.upsert(id);
            }
            96 => self.drain(),
            97 => self.remove_host(),
            _ => self.state_anywhere(),
        }
    }

    /// A tape of random bytes.
    fn tape(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; 80];
        self.random.fill_bytes(&mut bytes);
        bytes
    }

    fn request(&mut self) -> Request {
        self.next_vm += 1;
        let bytes = self.tape();
        let mut request = Tape::new(&bytes).request(vm(self.next_vm), true);
        if self.alike {
            // Hardly two states are the same.
            request.demand.cpu.0 += self.random.random_range(0..400);
            request.demand.memory.0 += self.random.random_range(0..300 << 20);
            request.demand.disk.0 += self.random.random_range(0..1 << 30);
            request.pool = None;
        }
        // Most with few rules, or hardly any finds a place.
        let rules = self.random.random_range(0..3);
        request.constraints.truncate(rules);
        if request.pinned_host.is_some() {
            request.pinned_host = Some(HostId(self.random.random_range(1..=self.hosts)));
        }
        if request.excluded_host.is_some() {
            // The first of equals is the one whose absence is felt.
            request.excluded_host = Some(HostId(self.random.random_range(1..=self.hosts.min(8))));
        }
        // Some for a time: their hosts are looked at one by one where the time counts.
        if self.random.random_range(0..10) == 0 {
            let mut instant =
                |least| Some(Timestamp::from_second(self.random.random_range(least..50)).unwrap());
            request.interval = Interval { from: instant(-5), until: instant(20) };
            if self.random.random_range(0..2) == 0 {
                request.interval.from = None;
            }
            request.keeps_disk = self.random.random_range(0..2) == 0;
        }
        let group = self.random.random_range(0..GROUPS);
        let renamed = |name: &Name| -> Name { format!("{name}{group}").parse().unwrap() };
        request.groups = request.groups.iter().map(renamed).collect();
        for constraint in &mut request.constraints {
            if let Rule::Affinity { group, .. } | Rule::AntiAffinity { group, .. } =
                &mut constraint.rule
            {
                *group = renamed(group);
            }
        }
        request
    }

    /// Both ways must agree, under one policy.
    fn compare(&mut self, request: &Request) -> Option<plimsoll_placement::Choice> {
        let policy = Policy::ALL[self.random.random_range(0..Policy::ALL.len())];
        let found = self.cluster.find(request, policy);
        let scanned = self.cluster.find_by_scan(request, policy);
        assert_eq!(found, scanned, "{policy} of {request:?}");
        let (yes, no) = self.found.entry(policy).or_default();
        *(if found.is_some() { yes } else { no }) += 1;
        found
    }

    fn place(&mut self) {
        let request = self.request();
        if let Some(choice) = self.compare(&request) {
            let over =
                self.cluster.occupy_devices(choice.host, &request, &choice.devices).unwrap().over;
            assert!(over.is_empty(), "{over:?}");
            self.vms.push(request);
        }
    }

    fn release(&mut self) {
        if !self.vms.is_empty() {
            let request = self.vms.swap_remove(self.random.random_range(0..self.vms.len()));
            self.cluster.release(request.vm).unwrap();
        }
    }

    /// A placed VM is decided about anew, with another demand.
    fn resize(&mut self) {
        if self.vms.is_empty() {
            return;
        }
        let at = self.random.random_range(0..self.vms.len());
        let mut request = self.vms[at].clone();
        request.demand = self.request().demand;
        if let Some(choice) = self.compare(&request) {
            self.cluster.release(request.vm).unwrap();
            let _ = self.cluster.occupy_devices(choice.host, &request, &choice.devices).unwrap();
            self.vms[at] = request;
        }
    }

    /// A host that is new, or changed in anything.
    fn upsert(&mut self, id: HostId) {
        let bytes = self.tape();
        let mut host = Tape::new(&bytes).host(id, true);
        if self.alike {
            let cores = [4, 8][self.random.random_range(0..2)];
            host.capacity = Resources {
                cpu: MilliCores::cores(cores),
                memory: Bytes::gib(2 * cores),
                disk: Bytes::gib(4 * cores),
                accelerators: host.capacity.accelerators,
                ..Resources::default()
            };
            host.labels.clear();
            host.pool = None;
        }
        // A key with a value of its own on every host, at times: it must not make strata of one.
        if self.random.random_range(0..4) > 0 {
            host.labels.insert(label("name"), format!("n{}", id.0).parse().unwrap());
        }
        host.rack = host.rack.map(|_| -> Label {
            // Racks of neighbours, but for a few.
            let stray = self.random.random_range(0..10) == 0;
            format!("r{}", if stray { 0 } else { id.0 / 10 }).parse().unwrap()
        });
        self.cluster.upsert_host(host);
    }

    fn any_host(&mut self) -> Option<HostState> {
        let hosts = self.cluster.hosts().count();
        (hosts > 0)
            .then(|| self.cluster.hosts().nth(self.random.random_range(0..hosts)).unwrap().clone())
    }

    fn drain(&mut self) {
        if let Some(mut host) = self.any_host() {
            host.unschedulable = match host.unschedulable {
                None => Some(Unschedulable::Draining),
                Some(_) => None,
            };
            self.cluster.upsert_host(host);
        }
    }

    fn remove_host(&mut self) {
        if let Some(host) = self.any_host() {
            for vm in self.cluster.vms_on(host.id).collect::<Vec<_>>() {
                self.cluster.release(vm).unwrap();
                self.vms.retain(|request| request.vm != vm);
            }
            self.cluster.remove_host(host.id).unwrap();
        }
    }

    fn state_anywhere(&mut self) {
        let request = self.request();
        if let Some(host) = self.any_host() {
            let _ = self.cluster.occupy(host.id, &request).unwrap();
            self.vms.push(request);
        }
    }
}

//! A cluster with loads, of which the balancer sees what is measured.

use std::{collections::BTreeMap, time::Duration};

use plimsoll_balance::{Action, Balancer, Plan, Settings, Situation, Usage, VmSample, VmState};
use plimsoll_model::{
    Amount, BitsPerSecond, Bytes, HostId, MilliCores, Policy, ProjectId, Resources, VmId,
};
use plimsoll_placement::{Cluster, HostState, Request};
use uuid::Uuid;

/// Time between two samples.
pub(crate) const INTERVAL: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) balancer: Balancer,
    pub(crate) vms: BTreeMap<VmId, VmState>,
    /// What each VM asks for, and what its guest says.
    pub(crate) seen: BTreeMap<VmId, VmSample>,
    pub(crate) now: Duration,
    pub(crate) moves_running: u32,
}

pub(crate) fn vm(number: u32) -> VmId {
    VmId(Uuid::from_u128(number.into()))
}

pub(crate) fn amount(cores: u64, gib: u64) -> Amount {
    Amount { cpu: MilliCores::cores(cores), memory: Bytes::gib(gib) }
}

pub(crate) fn request(id: VmId, cores: u64, gib: u64) -> Request {
    let demand = Resources {
        cpu: MilliCores::cores(cores),
        memory: Bytes::gib(gib),
        ..Resources::default()
    };
    Request::new(id, ProjectId(Uuid::nil()), demand)
}

impl World {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            cluster: Cluster::new(),
            balancer: Balancer::new(settings),
            vms: BTreeMap::new(),
            seen: BTreeMap::new(),
            now: Duration::ZERO,
            moves_running: 0,
        }
    }

    /// Hosts 1 to `count`, alike.
    pub(crate) fn with_hosts(settings: Settings, count: u32, cores: u64, gib: u64) -> Self {
        let mut world = Self::new(settings);
        for id in 1..=count {
            world.add_host(id, cores, gib);
        }
        world
    }

    pub(crate) fn add_host(&mut self, id: u32, cores: u64, gib: u64) {
        let capacity = Resources {
            cpu: MilliCores::cores(cores),
            memory: Bytes::gib(gib),
            network: BitsPerSecond(10_000_000_000),
            ..Resources::default()
        };
        self.cluster.upsert_host(HostState {
            id: HostId(id),
            name: format!("h{id}").parse().unwrap(),
            rack: None,
            zone: None,
            labels: BTreeMap::new(),
            capacity,
            pool: None,
            unschedulable: None,
        });
    }

    /// A VM that asks for so much CPU (in thousandths of a core) and uses half of its memory.
    pub(crate) fn add_vm(&mut self, request: &Request, host: u32, cpu: u64) {
        let (cores, memory) = (request.demand.cpu, request.demand.memory);
        let _ = self.cluster.occupy(HostId(host), request).unwrap();
        let has = Amount { cpu: cores, memory };
        let used = Bytes(memory.0 / 2);
        let state = VmState { has, least: has, most: has, to_send: used, fixed: None };
        self.vms.insert(request.vm, state);
        let usage =
            Usage { cpu_used: Some(MilliCores(cpu)), memory_used: Some(used), ..Usage::default() };
        self.seen.insert(request.vm, VmSample { usage, ..VmSample::default() });
    }

    pub(crate) fn load(&mut self, id: VmId, cpu: u64) {
        self.seen.get_mut(&id).unwrap().usage.cpu_used = Some(MilliCores(cpu));
    }

    /// What is asked of a host, and of a VM its limits allow no more.
    fn usage(&self, host: HostId) -> Usage {
        let vms = self.cluster.vms_on(host);
        let usages: Vec<_> = vms.filter_map(|vm| Some(self.seen.get(&vm)?.usage)).collect();
        let sum = |part: fn(&Usage) -> Option<u64>| usages.iter().filter_map(part).sum::<u64>();
        Usage {
            cpu_used: Some(MilliCores(sum(|usage| usage.cpu_used.map(|cpu| cpu.0)))),
            memory_used: Some(Bytes(sum(|usage| usage.memory_used.map(|memory| memory.0)))),
            network: Some(BitsPerSecond(sum(|usage| usage.network.map(|network| network.0)))),
            ..Usage::default()
        }
    }

    /// So many samples of everything.
    pub(crate) fn observe(&mut self, samples: u32) {
        for _ in 0..samples {
            self.now += INTERVAL;
            let hosts: Vec<_> = self.cluster.hosts().cloned().collect();
            for host in hosts {
                let usage = self.usage(host.id);
                self.balancer.observe_host(self.now, host.id, &host.capacity, &usage);
            }
            for (vm, seen) in &self.seen {
                self.balancer.observe_vm(self.now, *vm, self.vms[vm].has, seen);
            }
        }
    }

    pub(crate) fn plan(&self) -> Plan {
        self.balancer.plan(&self.situation())
    }

    pub(crate) fn situation(&self) -> Situation<'_> {
        Situation {
            cluster: &self.cluster,
            vms: &self.vms,
            moves_running: self.moves_running,
            policy: Policy::MostFree,
            now: self.now,
        }
    }

    /// Does what a plan says, at once.
    pub(crate) fn carry_out(&mut self, plan: &Plan) {
        for step in &plan.steps {
            match step.action {
                Action::Move { vm, from, to } => {
                    let placed = self.cluster.release(vm).unwrap();
                    assert_eq!(placed.host, from);
                    let _ = self.cluster.occupy(to, &placed.request).unwrap();
                    self.balancer.moved(self.now, vm, from, to);
                }
                Action::Resize { vm, from, to, .. } => {
                    let state = self.vms.get_mut(&vm).unwrap();
                    assert_eq!(state.has, from);
                    state.has = to;
                    self.balancer.resized(vm, from, to);
                }
            }
        }
    }
}

/// The moves of a plan.
pub(crate) fn moves(plan: &Plan) -> Vec<(VmId, u32, u32)> {
    let moves = plan.steps.iter().filter_map(|step| match step.action {
        Action::Move { vm, from, to } => Some((vm, from.0, to.0)),
        Action::Resize { .. } => None,
    });
    moves.collect()
}

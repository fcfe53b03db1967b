//! A cluster with hot hosts, made up from a seed.

use std::{collections::BTreeMap, time::Duration};

use plimsoll_balance::{
    Balancer, Permille, Plan, Pressure, Settings, Situation, Usage, VmSample, VmState,
};
use plimsoll_model::{
    Amount, Bytes, BytesPerSecond, Constraint, HostId, MilliCores, Policy, ProjectId, Resources,
    Rule, Scope, Strength, VmId,
};
use plimsoll_placement::{Cluster, HostState, Request};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use uuid::Uuid;

use crate::cli::cluster::BenchBalanceArgs;

/// Samples before the first plan: n of "k of the last n".
pub(super) const SAMPLES: u32 = 5;

const INTERVAL: Duration = Duration::from_secs(2);
const HAS: Amount = Amount { cpu: MilliCores::cores(32), memory: Bytes::gib(256) };
/// More than it has of CPU, which is overcommitted.
const PROMISES: MilliCores = MilliCores::cores(56);
const HOSTS_OF_A_RACK: u32 = 40;

/// VMs of a group that must be apart.
const GROUP: u32 = 8;

pub(super) struct Scene {
    rng: ChaCha8Rng,
    cluster: Cluster,
    balancer: Balancer,
    vms: BTreeMap<VmId, VmState>,
    /// The size of each VM in thousandths of a core, where it is, and how busy it is in the mean.
    loads: Vec<(VmId, HostId, u64, f64)>,
    seen: Vec<VmSample>,
    hosts: BTreeMap<HostId, Usage>,
    now: Duration,
}

impl Scene {
    /// Fills the hosts in turn, and goes on where placement says if one has no room; VMs for which
    /// there is none are left out.
    pub(super) fn new(
        args: &BenchBalanceArgs,
        progress: &mut dyn FnMut(u64, u64),
    ) -> anyhow::Result<Self> {
        let settings = Settings { moves_at_once: u32::MAX, ..Settings::default() };
        let mut scene = Self {
            rng: ChaCha8Rng::seed_from_u64(args.seed),
            cluster: Cluster::new(),
            balancer: Balancer::new(settings),
            vms: BTreeMap::new(),
            loads: Vec::new(),
            seen: Vec::new(),
            hosts: BTreeMap::new(),
            now: Duration::ZERO,
        };
        for id in 0..args.hosts {
            scene.cluster.upsert_host(host(id)?);
            scene.hosts.insert(HostId(id), Usage::default());
        }
        for number in 0..args.vms {
            scene.add(number, args)?;
            progress(number.into(), args.vms.into());
        }
        scene.live();
        Ok(scene)
    }

    fn add(&mut self, number: u32, args: &BenchBalanceArgs) -> anyhow::Result<()> {
        let cores = [1, 2, 4, 8][self.rng.random_range(0..4)];
        let has = Amount { cpu: MilliCores::cores(cores), memory: Bytes::gib(cores * 4) };
        let demand = Resources { cpu: has.cpu, memory: has.memory, ..Resources::default() };
        let vm = VmId(Uuid::from_u128(number.into()));
        let mut request = Request::new(vm, ProjectId(Uuid::nil()), demand);
        if number.is_multiple_of(10) {
            let group: plimsoll_model::Name = format!("g{}", number / 10 / GROUP).parse()?;
            request.groups.insert(group.clone());
            let rule = Rule::AntiAffinity { group, scope: Scope::Host };
            request.constraints.push(Constraint { strength: Strength::Required, rule });
        }
        let turn = HostId(number % args.hosts);
        let there = self.cluster.decide_on(&request, turn, Policy::FirstFit).and_then(Result::ok);
        let choice = there.or_else(|| self.cluster.find(&request, Policy::MostFree));
        let Some(choice) = choice else { return Ok(()) };
        let host = choice.host;
        let _ = self.cluster.occupy_devices(host, &request, &choice.devices)?;
        let hot = u64::from(host.0 % 100) < u64::from(args.hot_percent);
        let busy =
            if hot { self.rng.random_range(0.6..1.0) } else { self.rng.random_range(0.15..0.5) };
        let to_send = Bytes(has.memory.0 / 2);
        self.vms.insert(vm, VmState { has, least: has, most: has, to_send, fixed: None });
        self.loads.push((vm, host, has.cpu.0, busy));
        Ok(())
    }

    /// Another sample: each VM a little more or less busy than in the mean.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share between 0 and 1.1 of a VM's size"
    )]
    pub(super) fn live(&mut self) {
        self.hosts.values_mut().for_each(|usage| *usage = Usage::default());
        self.seen.clear();
        for (vm, host, cpu, busy) in &self.loads {
            let now = busy * self.rng.random_range(0.9..1.1);
            let cpu = MilliCores((*cpu as f64 * now) as u64);
            let memory = self.vms[vm].to_send;
            let usage =
                Usage { cpu_used: Some(cpu), memory_used: Some(memory), ..Usage::default() };
            let memory_written = Some(BytesPerSecond(self.rng.random_range(0..1 << 28)));
            self.seen.push(VmSample { usage, memory_written, ..VmSample::default() });
            if let Some(host) = self.hosts.get_mut(host) {
                let cpu = host.cpu_used.unwrap_or_default().0 + cpu.0;
                let memory = host.memory_used.unwrap_or_default().0 + memory.0;
                host.cpu_used = Some(MilliCores(cpu));
                host.memory_used = Some(Bytes(memory));
                host.memory_pressure = Some(Pressure { some: Permille(0), full: Permille(0) });
            }
        }
    }

    /// The balancer sees what there is.
    pub(super) fn observe(&mut self) {
        self.now += INTERVAL;
        let has = Resources { cpu: HAS.cpu, memory: HAS.memory, ..Resources::default() };
        for (host, usage) in &self.hosts {
            self.balancer.observe_host(self.now, *host, &has, usage);
        }
        for ((vm, ..), seen) in self.loads.iter().zip(&self.seen) {
            self.balancer.observe_vm(self.now, *vm, self.vms[vm].has, seen);
        }
    }

    pub(super) fn plan(&self) -> Plan {
        self.balancer.plan(&Situation {
            cluster: &self.cluster,
            vms: &self.vms,
            moves_running: 0,
            policy: Policy::MostFree,
            now: self.now,
        })
    }
}

fn host(id: u32) -> anyhow::Result<HostState> {
    let capacity = Resources { cpu: PROMISES, memory: HAS.memory, ..Resources::default() };
    Ok(HostState {
        id: HostId(id),
        name: format!("h{id}").parse()?,
        rack: Some(format!("r{}", id / HOSTS_OF_A_RACK).parse()?),
        zone: None,
        labels: BTreeMap::new(),
        capacity,
        pool: None,
        unschedulable: None,
    })
}

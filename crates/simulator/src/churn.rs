//! A cluster that is full to 70 % and stays so while VMs come and go: what placement is measured on.
//!
//! Hosts are of five shapes, in racks of 40 and in three zones. The cluster is filled by arrivals
//! that go to random hosts with room, and departures, one for four arrivals: so every host has a
//! history, and no policy has prepared the ground for itself.

use plimsoll_model::{
    Bytes, Constraint, HostId, MilliCores, Name, ProjectId, Resources, Rule, Scope, Strength, VmId,
};
use plimsoll_placement::{Cluster, HostState, Request};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use uuid::Uuid;

use crate::cluster::host;

/// How full the cluster is, in percent of its cores.
pub const FULL_PERCENT: u64 = 70;

/// How many VMs a placement group has, where there are rules.
pub const GROUP: u64 = 100;

/// Cores, memory in GiB and disk in GiB of the shapes of hosts.
const SHAPES: [(u64, u64, u64); 5] =
    [(16, 64, 1000), (32, 128, 2000), (48, 384, 3000), (64, 256, 4000), (96, 768, 4000)];
const RACK: u32 = 40;
const ZONES: u32 = 3;

/// The sizes of VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// 1 to 32 cores with 2, 4 or 8 GiB and 10 GiB of disk each: few distinct states of hosts.
    Catalog,
    /// Cores, memory and disk each drawn from a continuous range: nearly all hosts differ.
    Arbitrary,
}

/// The rules of the VMs that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// None.
    None,
    /// Groups of [`GROUP`] prefer other racks than the rest of their group.
    Spread,
    /// Groups of [`GROUP`] must be on other hosts than the rest of their group.
    Anti,
}

impl Rules {
    /// How the members of a group are to be apart, and how much it matters.
    #[must_use]
    pub const fn apart(self) -> Option<(Strength, Scope)> {
        match self {
            Self::None => None,
            Self::Spread => Some((Strength::Preferred, Scope::Rack)),
            Self::Anti => Some((Strength::Required, Scope::Host)),
        }
    }
}

/// VMs that arrive, and those that are there.
#[derive(Debug)]
pub struct Churn {
    random: ChaCha8Rng,
    mix: Mix,
    next: u64,
    /// Those that are there, with their cores in thousandths.
    vms: Vec<(VmId, u64)>,
}

impl Churn {
    /// A cluster of so many hosts, filled; `progress` is told the thousandths of cores that are
    /// taken, and how many are to be.
    ///
    /// The same arguments give the same cluster.
    pub fn fill(
        hosts: u32,
        mix: Mix,
        seed: u64,
        progress: &mut dyn FnMut(u64, u64),
    ) -> (Cluster, Self) {
        let mut churn =
            Self { random: ChaCha8Rng::seed_from_u64(seed), mix, next: 0, vms: Vec::new() };
        let mut cluster = Cluster::new();
        let mut target = 0;
        for id in 1..=hosts {
            let host = churn.host(id);
            target += host.capacity.cpu.0 * FULL_PERCENT / 100;
            cluster.upsert_host(host);
        }
        let mut taken = 0;
        while taken < target {
            taken += churn.arrive_anywhere(&mut cluster, hosts);
            if churn.random.random_range(0..4) == 0 {
                taken -= churn.depart(&mut cluster);
            }
            if churn.next.is_multiple_of(1024) {
                progress(taken, target);
            }
        }
        (cluster, churn)
    }

    /// How many VMs are there.
    #[must_use]
    pub const fn vms(&self) -> usize {
        self.vms.len()
    }

    fn host(&mut self, id: u32) -> HostState {
        let (cores, memory, disk) = SHAPES[self.random.random_range(0..SHAPES.len())];
        let capacity = Resources {
            cpu: MilliCores::cores(cores),
            memory: Bytes::gib(memory),
            disk: Bytes::gib(disk),
            ..Resources::default()
        };
        HostState {
            rack: format!("rack-{}", id / RACK).parse().ok(),
            zone: format!("zone-{}", id / RACK % ZONES).parse().ok(),
            ..host(id, capacity)
        }
    }

    /// The next VM that arrives.
    pub fn request(&mut self, rules: Rules) -> Request {
        /// Few are large.
        const CORES: [u64; 10] = [1, 2, 2, 4, 4, 4, 8, 8, 16, 32];
        const MEMORY: [u64; 3] = [2, 4, 8];
        let random = &mut self.random;
        let (cpu, memory, disk) = match self.mix {
            Mix::Catalog => {
                let cores = CORES[random.random_range(0..CORES.len())];
                let each = MEMORY[random.random_range(0..MEMORY.len())];
                (MilliCores::cores(cores), Bytes::gib(cores * each), Bytes::gib(cores * 10))
            }
            Mix::Arbitrary => (
                MilliCores(random.random_range(100..12_000)),
                Bytes(random.random_range(Bytes::mib(256).0..Bytes::gib(64).0)),
                Bytes(random.random_range(Bytes::gib(1).0..Bytes::gib(400).0)),
            ),
        };
        let number = self.next;
        self.next += 1;
        let project = ProjectId(Uuid::from_u128(u128::from(number / 1000 % 1000)));
        let demand = Resources { cpu, memory, disk, ..Resources::default() };
        let mut request = Request::new(VmId(Uuid::from_u128(u128::from(number))), project, demand);
        let Some((strength, scope)) = rules.apart() else { return request };
        let group: Name =
            format!("g{}", number / GROUP).parse().expect("a letter and digits make a name");
        request.groups.insert(group.clone());
        request
            .constraints
            .push(Constraint { strength, rule: Rule::AntiAffinity { group, scope } });
        request
    }

    /// A VM goes to a random host; the thousandths of cores that it takes, none if the hosts that
    /// were drawn have no room.
    fn arrive_anywhere(&mut self, cluster: &mut Cluster, hosts: u32) -> u64 {
        const DRAWS: usize = 8;
        let request = self.request(Rules::None);
        for _ in 0..DRAWS {
            let host = HostId(self.random.random_range(1..=hosts));
            if fits(&request.demand, &cluster.free(host)) && cluster.occupy(host, &request).is_ok()
            {
                return self.arrived(&request);
            }
        }
        0
    }

    /// Counts a VM that was placed; its thousandths of cores.
    pub fn arrived(&mut self, request: &Request) -> u64 {
        let cpu = request.demand.cpu.0;
        self.vms.push((request.vm, cpu));
        cpu
    }

    /// A random VM leaves; the thousandths of cores that it gives back.
    pub fn depart(&mut self, cluster: &mut Cluster) -> u64 {
        if self.vms.is_empty() {
            return 0;
        }
        let (vm, cpu) = self.vms.swap_remove(self.random.random_range(0..self.vms.len()));
        cluster.release(vm);
        cpu
    }
}

fn fits(demand: &Resources, free: &Resources) -> bool {
    demand.scalars().into_iter().zip(free.scalars()).all(|(need, free)| need <= free)
}

#[cfg(test)]
mod tests {
    use plimsoll_model::Policy;

    use super::*;

    #[test]
    fn the_cluster_is_full_and_never_over() {
        for mix in [Mix::Catalog, Mix::Arbitrary] {
            let (mut cluster, mut churn) = Churn::fill(100, mix, 1, &mut |_, _| {});
            let (mut taken, mut all) = (0, 0);
            for host in cluster.hosts() {
                let committed = cluster.committed(host.id);
                assert!(fits(&committed, &host.capacity), "{}", host.name);
                taken += committed.cpu.0;
                all += host.capacity.cpu.0;
            }
            let percent = taken * 100 / all;
            assert!((FULL_PERCENT - 1..FULL_PERCENT + 3).contains(&percent), "{percent}");
            for rules in [Rules::None, Rules::Spread, Rules::Anti] {
                for _ in 0..100 {
                    let request = churn.request(rules);
                    let found = cluster.find(&request, Policy::L2Diff);
                    assert_eq!(found, cluster.find_by_scan(&request, Policy::L2Diff));
                    if let Some(choice) = found {
                        let occupied = cluster.occupy(choice.host, &request).unwrap();
                        assert!(occupied.over.is_empty());
                        churn.arrived(&request);
                    }
                    churn.depart(&mut cluster);
                }
            }
        }
    }
}

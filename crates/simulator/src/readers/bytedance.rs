//! Production clusters with NUMA nodes, as `ByteDance` publishes them with *Towards VM Rescheduling
//! Optimization Through Deep Reinforcement Learning* (Ding et al., EuroSys 2025): a JSON file, plain or
//! compressed with xz, with `cluster_list`; of each cluster `host_info` (`node_id` and `numa`, with what
//! each node has and has free of cores and of huge-page memory) and `vm_instance` (`instance_id`,
//! `host_id`, `numa` with what the VM takes of which node, `allow_migration`). MB are MiB.
//!
//! What is stated and what VMs take must agree on CPU. Of memory the published files state more or less
//! than VMs leave on some nodes; the lesser of both counts.

use std::{collections::BTreeMap, io::Read, path::Path};

use plimsoll_balance::defragment::{Host, Node, Part, Place, Vm};
use plimsoll_model::{Bytes, MilliCores};
use serde::{Deserialize, de::IgnoredAny};

use super::{Limits, Place as At, ReadError, source};

/// The most NUMA nodes of a host.
const NODES: usize = 64;

/// The longest name, in bytes.
const NAME: usize = 253;

/// The most cores and MB of anything.
const CORES: f64 = 1e6;
const MB: f64 = 1e9;

/// A cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Its hosts,
    pub hosts: Vec<Host>,
    /// and their names.
    pub host_names: Vec<String>,
    /// The VMs on them,
    pub vms: Vec<Vm>,
    /// and their names.
    pub vm_names: Vec<String>,
}

#[derive(Deserialize)]
struct FileRecord {
    cluster_list: Vec<ClusterRecord>,
}

#[derive(Deserialize)]
struct ClusterRecord {
    host_info: Vec<HostRecord>,
    vm_instance: Vec<VmRecord>,
    other_requirement: Option<Requirements>,
}

#[derive(Deserialize)]
struct Requirements {
    #[serde(default)]
    deployment_set: Vec<IgnoredAny>,
}

#[derive(Deserialize)]
struct HostRecord {
    node_id: String,
    numa: Vec<NodeRecord>,
}

#[derive(Deserialize)]
struct NodeRecord {
    node: usize,
    total_cpu: f64,
    free_cpu: f64,
    memory_huge_total_mb: f64,
    memory_huge_free_mb: f64,
}

#[derive(Deserialize)]
struct VmRecord {
    instance_id: String,
    host_id: String,
    numa: Vec<PartRecord>,
    allow_migration: bool,
}

#[derive(Deserialize)]
struct PartRecord {
    node: usize,
    cpu: f64,
    mem_mb: f64,
}

/// What a node has and what VMs leave of it.
struct Balance {
    total: Part,
    stated: Part,
    used: Part,
}

/// Reads the cluster of this number, from 0.
///
/// # Errors
/// The first thing that is wrong.
pub fn read(file: &Path, cluster: usize, limits: &Limits) -> Result<Cluster, ReadError> {
    let source = source::Source::open(file, limits)?;
    read_from(&file.display().to_string(), source, cluster, limits)
}

/// [`read`] of a text.
///
/// # Errors
/// The first thing that is wrong.
pub fn read_from(
    file: &str,
    text: impl Read,
    cluster: usize,
    limits: &Limits,
) -> Result<Cluster, ReadError> {
    let bounded = std::io::BufReader::new(source::Capped::new(text, limits.bytes));
    let read: FileRecord = serde_json::from_reader(bounded).map_err(|source| {
        // serde counts columns from 0 where a line begins.
        let (line, column) = (source.line() as u64, source.column().max(1));
        ReadError::Json { place: At { file: file.to_owned(), line, column }, source }
    })?;
    let clusters = read.cluster_list.len();
    let found = read.cluster_list.into_iter().nth(cluster);
    let record =
        found.ok_or_else(|| ReadError::NoCluster { file: file.to_owned(), cluster, clusters })?;
    let wrong = |kind, name: &str, wrong| ReadError::Record {
        file: file.to_owned(),
        kind,
        name: name.chars().take(40).collect(),
        wrong,
    };
    check(&record, limits).map_err(|(kind, name, what)| wrong(kind, name, what))
}

/// What is wrong with what.
type Wrong<'a> = (&'static str, &'a str, &'static str);

fn check<'a>(record: &'a ClusterRecord, limits: &Limits) -> Result<Cluster, Wrong<'a>> {
    let requirements = record.other_requirement.as_ref();
    if requirements.is_some_and(|one| !one.deployment_set.is_empty()) {
        return Err(("cluster", "", "its `deployment_set` is not empty, which is not understood"));
    }
    if record.host_info.len() > limits.hosts {
        return Err(("cluster", "", "it has more hosts than are read"));
    }
    if record.vm_instance.len() > limits.records {
        return Err(("cluster", "", "it has more VMs than are read"));
    }
    let mut numbers = BTreeMap::new();
    let mut nodes: Vec<Vec<Balance>> = Vec::new();
    for host in &record.host_info {
        let wrong = |what| ("host", host.node_id.as_str(), what);
        if !(1..=NAME).contains(&host.node_id.len()) {
            return Err(wrong("its name has not from 1 to 253 bytes"));
        }
        if numbers.insert(host.node_id.as_str(), nodes.len()).is_some() {
            return Err(wrong("there is another of this name"));
        }
        nodes.push(balances(&host.numa).map_err(wrong)?);
    }
    let mut vms = Vec::new();
    for record in &record.vm_instance {
        let wrong = |what| ("VM", record.instance_id.as_str(), what);
        if !(1..=NAME).contains(&record.instance_id.len()) {
            return Err(wrong("its name has not from 1 to 253 bytes"));
        }
        let host = *numbers.get(record.host_id.as_str()).ok_or(wrong("its host is not there"))?;
        vms.push(vm(record, host, &mut nodes[host]).map_err(wrong)?);
    }
    let mut hosts = Vec::new();
    for (host, nodes) in record.host_info.iter().zip(nodes) {
        let nodes: Result<_, _> = nodes.iter().map(Balance::free).collect();
        hosts.push(Host { nodes: nodes.map_err(|what| ("host", host.node_id.as_str(), what))? });
    }
    Ok(Cluster {
        hosts,
        host_names: record.host_info.iter().map(|host| host.node_id.clone()).collect(),
        vms,
        vm_names: record.vm_instance.iter().map(|vm| vm.instance_id.clone()).collect(),
    })
}

/// The nodes of a host in the order of their numbers, which are those from 0 on.
fn balances(records: &[NodeRecord]) -> Result<Vec<Balance>, &'static str> {
    if !(1..=NODES).contains(&records.len()) {
        return Err("it has not from 1 to 64 NUMA nodes");
    }
    let mut sorted: Vec<_> = records.iter().collect();
    sorted.sort_by_key(|record| record.node);
    let mut balances = Vec::new();
    for (number, record) in sorted.into_iter().enumerate() {
        if record.node != number {
            return Err("its NUMA nodes are not numbered from 0 on");
        }
        balances.push(Balance {
            total: part(record.total_cpu, record.memory_huge_total_mb)?,
            stated: part(record.free_cpu, record.memory_huge_free_mb)?,
            used: Part { cpu: MilliCores(0), memory: Bytes(0) },
        });
    }
    Ok(balances)
}

fn vm(record: &VmRecord, host: usize, nodes: &mut [Balance]) -> Result<Vm, &'static str> {
    if !(1..=nodes.len()).contains(&record.numa.len()) {
        return Err("it is not on from 1 to all NUMA nodes of its host");
    }
    let (mut parts, mut at) = (Vec::new(), Vec::new());
    for one in &record.numa {
        if at.contains(&one.node) {
            return Err("it is on a NUMA node twice");
        }
        let part = part(one.cpu, one.mem_mb)?;
        let node = nodes.get_mut(one.node).ok_or("its NUMA node is not there")?;
        // Each is below 2^50, and there are fewer than 2^13 of them or this fails before long.
        node.used.cpu = MilliCores(node.used.cpu.0.saturating_add(part.cpu.0));
        node.used.memory = Bytes(node.used.memory.0.saturating_add(part.memory.0));
        parts.push(part);
        at.push(one.node);
    }
    Ok(Vm { parts, place: Place { host, nodes: at }, may_move: record.allow_migration })
}

impl Balance {
    fn free(&self) -> Result<Node, &'static str> {
        let left = self.total.cpu.0.checked_sub(self.used.cpu.0);
        let left = left.ok_or("its VMs take more CPU of a NUMA node than there is")?;
        if self.stated.cpu.0 > left {
            return Err("more CPU of a NUMA node is stated as free than its VMs leave");
        }
        let memory = self.total.memory.0.checked_sub(self.used.memory.0);
        let memory = memory.ok_or("its VMs take more memory of a NUMA node than there is")?;
        let free_memory = Bytes(memory.min(self.stated.memory.0));
        Ok(Node { free_cpu: self.stated.cpu, free_memory })
    }
}

/// Cores to the thousandth, and MB.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "numbers in small ranges, and casts of floats saturate"
)]
fn part(cores: f64, mb: f64) -> Result<Part, &'static str> {
    if !(0.0..=CORES).contains(&cores) {
        return Err("cores are not a number from 0 to 1000000");
    }
    if !(0.0..=MB).contains(&mb) {
        return Err("memory is not a number of MB from 0 to 1000000000");
    }
    let cpu = MilliCores((cores * 1000.0).round() as u64);
    Ok(Part { cpu, memory: Bytes((mb * 1_048_576.0).round() as u64) })
}

//! The published experiment on Alibaba's GPU cluster: how much of its accelerators a policy gets
//! allocated when more is asked for than there is.
//!
//! The pods are shuffled with a seed and random copies of them are appended until they ask for a
//! given multiple of the cluster's accelerators. They are submitted one by one; none leaves; what
//! fits nowhere is dropped (Weng et al., *Beware of Fragmentation: Scheduling GPU-Sharing Workloads
//! with Fragmentation Gradient Descent*, ATC'23). As there, the seed also numbers the nodes anew,
//! which is what decides between equal ones, and the policy knows how often which pod comes, but
//! not when.

use std::time::Instant;

use plimsoll_model::{Bytes, MilliCores, Policy, Resources};
use plimsoll_placement::{AnyModel, Cluster, OccupyError, TypicalRequest, Workload};
use rand::{Rng as _, SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use thiserror::Error;

use crate::cluster;
pub use crate::readers::openb::{Node, Pod};

/// A mean and the ends of a range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

/// What a policy made of the pods. The names of these fields are those of the JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The policy.
    pub policy: Policy,
    /// The list of pods, as the user named it.
    pub pods: String,
    /// How many orders of arrival were tried.
    pub seeds: u32,
    /// Accelerators allocated in the end in % of all, over the seeds.
    pub allocated_percent: Spread,
    /// Accelerators that are free in the end and of no use to the pods of the list, in % of all;
    /// the mean over the seeds.
    pub fragmented_percent: f64,
    /// How long it took.
    pub seconds: f64,
}

/// Why an experiment cannot be made.
#[derive(Debug, Error)]
pub enum OpenbError {
    /// There is nothing to allocate.
    #[error("none of the nodes has an accelerator")]
    NoAccelerators,
    /// There is nothing to allocate it to.
    #[error("none of the pods asks for an accelerator")]
    NoPods,
    /// A decision could not be made a fact.
    #[error("cannot place a pod")]
    Place(#[source] OccupyError),
}

/// How far an experiment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The seed, from 1.
    pub seed: u32,
    /// How many seeds there are.
    pub seeds: u32,
    /// Pods of this seed that have come.
    pub done: usize,
    /// Pods of this seed that will come.
    pub of: usize,
}

/// Nodes, pods, and how much they are to ask for.
#[derive(Clone, Debug)]
pub struct Experiment {
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    capacity_milli: u64,
    factor: f64,
}

/// The order in which pods arrive, as indexes into `pods`: a shuffle, then random copies, until
/// together they ask for `factor` times `capacity_milli` (thousandths of accelerators). The pod
/// with which they do is the last. Empty if no pod asks for an accelerator.
#[must_use]
pub fn arrivals(pods: &[Pod], capacity_milli: u64, seed: u64, factor: f64) -> Vec<usize> {
    if pods.iter().all(|pod| pod.gpu_milli_total() == 0) {
        return Vec::new();
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut shuffled: Vec<usize> = (0..pods.len()).collect();
    shuffled.shuffle(&mut random);
    let target = as_float(capacity_milli) * factor;
    let mut asked = 0.0;
    let mut order = Vec::with_capacity(pods.len());
    let mut shuffled = shuffled.into_iter();
    while asked < target {
        let index = shuffled.next().unwrap_or_else(|| random.random_range(0..pods.len()));
        asked += as_float(pods[index].gpu_milli_total());
        order.push(index);
    }
    order
}

/// What the nodes have of accelerators in all, in thousandths.
#[must_use]
pub fn capacity_milli(nodes: &[Node]) -> u64 {
    nodes.iter().map(|node| u64::from(node.gpus) * 1000).sum()
}

#[expect(clippy::cast_precision_loss, reason = "sums of a trace are far below 2^53")]
const fn as_float(amount: u64) -> f64 {
    amount as f64
}

impl Experiment {
    /// An experiment in which pods ask for `factor` times the accelerators of the nodes.
    ///
    /// # Errors
    /// There are no accelerators, or none is asked for.
    pub fn new(nodes: Vec<Node>, pods: Vec<Pod>, factor: f64) -> Result<Self, OpenbError> {
        let capacity_milli = capacity_milli(&nodes);
        if capacity_milli == 0 {
            return Err(OpenbError::NoAccelerators);
        }
        if pods.iter().all(|pod| pod.gpu_milli_total() == 0) {
            return Err(OpenbError::NoPods);
        }
        Ok(Self { nodes, pods, capacity_milli, factor })
    }

    /// Tries a policy on so many orders of arrival, of the seeds from 1 on. `name` is what the
    /// outcome calls the pods.
    ///
    /// # Errors
    /// A decision could not be made a fact.
    pub fn run(
        &self,
        policy: Policy,
        name: &str,
        seeds: u32,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Outcome, OpenbError> {
        let start = Instant::now();
        let workload = self.workload();
        let (mut allocated, mut fragmented) = (Vec::new(), Vec::new());
        let percent = |devices: f64| 100.0 * 1000.0 * devices / as_float(self.capacity_milli);
        for seed in 1..=seeds {
            let order = arrivals(&self.pods, self.capacity_milli, seed.into(), self.factor);
            let mut cluster = self.cluster(seed.into());
            cluster.set_workload(Some(workload.clone()));
            let mut milli = 0;
            for (done, pod) in order.iter().map(|at| &self.pods[*at]).enumerate() {
                if done % REPORTED == 0 {
                    progress(Progress { seed, seeds, done, of: order.len() });
                }
                if place(&mut cluster, policy, done as u64, pod)? {
                    milli += pod.gpu_milli_total();
                }
            }
            allocated.push(percent(as_float(milli) / 1000.0));
            fragmented.push(percent(cluster.fragmented()));
        }
        Ok(Outcome {
            policy,
            pods: name.to_owned(),
            seeds,
            allocated_percent: Spread::of(&allocated),
            fragmented_percent: Spread::of(&fragmented).mean,
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    /// How often which pod comes.
    fn workload(&self) -> Workload {
        Workload::new(self.pods.iter().map(|pod| {
            let (demand, accelerator) = asks_for(pod);
            TypicalRequest { demand, accelerator, weight: 1 }
        }))
    }

    /// The nodes in an order drawn with the seed, with nothing on them.
    fn cluster(&self, seed: u64) -> Cluster {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        // Another stream than that of the arrivals.
        random.set_stream(1);
        let mut order: Vec<&Node> = self.nodes.iter().collect();
        order.shuffle(&mut random);
        let mut cluster = Cluster::new();
        for (number, node) in (1..).zip(order) {
            let mut capacity = Resources {
                cpu: MilliCores(node.cpu_milli),
                memory: Bytes::mib(node.memory_mib),
                ..Resources::default()
            };
            if let (Some(model), 1..) = (&node.model, node.gpus) {
                capacity.accelerators.0.insert(model.clone(), u64::from(node.gpus) * 1000);
            }
            cluster.upsert_host(cluster::host(number, capacity));
        }
        cluster
    }
}

/// The pods between two reports of progress.
const REPORTED: usize = 256;

impl Spread {
    fn of(values: &[f64]) -> Self {
        let count = as_float(values.len() as u64);
        Self {
            mean: values.iter().sum::<f64>() / count,
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

/// What a pod asks for: of whichever model will do, all that it asks of accelerators.
fn asks_for(pod: &Pod) -> (Resources, Option<AnyModel>) {
    let demand = Resources {
        cpu: MilliCores(pod.cpu_milli),
        memory: Bytes::mib(pod.memory_mib),
        ..Resources::default()
    };
    let thousandths = pod.gpu_milli_total();
    let models = pod.models.iter().cloned().collect();
    (demand, (thousandths > 0).then_some(AnyModel { models, thousandths }))
}

/// Places a pod if it fits anywhere.
fn place(
    cluster: &mut Cluster,
    policy: Policy,
    number: u64,
    pod: &Pod,
) -> Result<bool, OpenbError> {
    let (demand, accelerator) = asks_for(pod);
    let mut request = cluster::request(number, demand);
    request.accelerator = accelerator;
    let Some(choice) = cluster.find(&request, policy) else { return Ok(false) };
    cluster
        .occupy_devices(choice.host, &request, &choice.devices)
        .map_err(OpenbError::Place)
        .map(|_| true)
}

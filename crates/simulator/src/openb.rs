//! The published experiment on Alibaba's GPU cluster: how much of its accelerators a policy gets
//! allocated when more is asked for than there is.
//!
//! The pods are shuffled with a seed and random copies of them are appended until they ask for a
//! given multiple of the cluster's accelerators. They are submitted one by one; none leaves; what
//! fits nowhere is dropped (Weng et al., *Beware of Fragmentation: Scheduling GPU-Sharing Workloads
//! with Fragmentation Gradient Descent*, ATC'23).

use rand::{Rng as _, SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;

pub use crate::readers::openb::{Node, Pod};

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

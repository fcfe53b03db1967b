//! "64 cores and 256 GiB in all": a total becomes VMs that can be placed.

use plimsoll_model::{Element, Policy, Resources};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{cluster::Cluster, group::GroupRefusal, request::Request};

/// The most VMs into which one total is split.
pub const MAX_SPLIT: u32 = 128;

/// What the VMs of a split may be like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitLimits {
    /// At least so many VMs; 0 is taken as 1.
    pub min_vms: u32,
    /// At most so many VMs, and never more than [`MAX_SPLIT`].
    pub max_vms: u32,
    /// No VM gets less than this of an element that the total asks for.
    pub min_per_vm: Resources,
    /// No VM gets more than this; an element that is zero here is not limited.
    pub max_per_vm: Resources,
}

impl Default for SplitLimits {
    fn default() -> Self {
        Self {
            min_vms: 1,
            max_vms: MAX_SPLIT,
            min_per_vm: Resources::default(),
            max_per_vm: Resources::default(),
        }
    }
}

/// A total that cannot be split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum SplitRefusal {
    /// The total asks for nothing.
    #[error("the total asks for nothing")]
    Empty,
    /// All hosts together have too little free, in the element's base unit.
    #[error(
        "insufficient {element} in the whole cluster: needs {}, {} free",
        element.print(*need), element.print(*free)
    )]
    Insufficient {
        /// The element.
        element: Element,
        /// The total.
        need: u64,
        /// What is free on all hosts that take VMs.
        free: u64,
    },
    /// No number of VMs meets the limits.
    #[error("no number of VMs from {min_vms} to {max_vms} meets the limits for one VM")]
    Limits {
        /// At least so many VMs.
        min_vms: u32,
        /// At most so many VMs.
        max_vms: u32,
    },
    /// No number of VMs that meets the limits can be placed.
    #[error("no split into {from} to {to} VMs can be placed")]
    NoPlace {
        /// The fewest VMs tried.
        from: u32,
        /// The most VMs tried.
        to: u32,
        /// Why the last could not be placed.
        #[source]
        last: GroupRefusal,
    },
}

impl Cluster {
    /// Splits a total into the fewest VMs of (nearly) equal size that can all be placed with the
    /// template's constraints, and says how much each gets. The template's own demand and id do
    /// not matter. `docs/algorithms.md` says how; the cluster is as before afterwards.
    ///
    /// # Errors
    /// There is no such split.
    pub fn split_total(
        &mut self,
        total: &Resources,
        limits: &SplitLimits,
        template: &Request,
        policy: Policy,
    ) -> Result<Vec<Resources>, SplitRefusal> {
        let _ = (total, limits, template, policy);
        todo!()
    }
}

//! All or nothing: places for a whole group of VMs.

use plimsoll_model::{Policy, VmId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    cluster::Cluster,
    explanation::{Choice, Refusals},
    request::Request,
};

/// A group that cannot be placed as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
#[error("{placed} of {of} VMs of the group can be placed, then none of the hosts is left for {vm}")]
pub struct GroupRefusal {
    /// The index in the group of the VM for which no host is left.
    pub index: usize,
    /// That VM.
    pub vm: VmId,
    /// How many of the group found a place before it.
    pub placed: usize,
    /// How many the group has.
    pub of: usize,
    /// Why no host could hold it, beside those placed before it.
    #[source]
    pub refusals: Refusals,
}

impl Cluster {
    /// Chooses hosts for all of the requests, or for none. The choices come in the order of the
    /// requests, and hold together: each is to be stated with [`Self::occupy_devices`] and its
    /// devices. The cluster is as before afterwards, whatever comes of it (it is mutable only to
    /// try places without a copy). A VM that is placed already is decided about as if it had left.
    ///
    /// # Errors
    /// No way was found: the first VM that found no place when they were tried in the policy's
    /// order.
    pub fn decide_group(
        &mut self,
        requests: &[Request],
        policy: Policy,
    ) -> Result<Vec<Choice>, GroupRefusal> {
        let _ = (requests, policy);
        todo!()
    }
}

//! The facts and the questions.

use std::collections::BTreeMap;

use plimsoll_model::{Element, HostId, Policy, Resources, VmId};
use thiserror::Error;

use crate::{
    devices::Devices,
    explanation::{Choice, Explanation, Refusals},
    request::{HostState, Request},
};

/// A placed VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its host.
    pub host: HostId,
    /// What it was placed with.
    pub request: Request,
    /// The accelerator devices that it has.
    pub devices: Devices,
}

/// What came of stating that a VM is on a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Occupied {
    /// The accelerator devices that it has.
    pub devices: Devices,
    /// The elements of which more is now committed than the host has; empty when all is well.
    pub over: Vec<Over>,
}

/// An element of which more is committed than a host has, in the element's base unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Over {
    /// The element.
    pub element: Element,
    /// What is committed, saturating.
    pub committed: u64,
    /// What the host has.
    pub capacity: u64,
}

/// A fact that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OccupyError {
    /// There is no such host.
    #[error("cannot place {vm}: there is no {host}")]
    UnknownHost {
        /// The VM.
        vm: VmId,
        /// The host.
        host: HostId,
    },
    /// The VM is placed already; release it first.
    #[error("cannot place {vm}: it is on {host}")]
    AlreadyPlaced {
        /// The VM.
        vm: VmId,
        /// Where it is.
        host: HostId,
    },
}

/// A host that cannot be removed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RemoveHostError {
    /// There is no such host.
    #[error("cannot remove {host}: there is no such host")]
    Unknown {
        /// The host.
        host: HostId,
    },
    /// VMs are placed there; release them first.
    #[error("cannot remove {host}: {vms} VMs are placed on it")]
    Occupied {
        /// The host.
        host: HostId,
        /// How many VMs.
        vms: usize,
    },
}

/// The hosts, and which VM is promised what on which of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cluster {
    hosts: BTreeMap<HostId, HostState>,
}

impl Cluster {
    /// A cluster without hosts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// States what a host is: a new one, or what changed about a known one. Its VMs stay placed,
    /// even where they no longer fit.
    pub fn upsert_host(&mut self, state: HostState) {
        let _ = state;
        todo!()
    }

    /// States that a host is gone for good.
    ///
    /// # Errors
    /// It is unknown, or VMs are placed on it.
    pub fn remove_host(&mut self, host: HostId) -> Result<HostState, RemoveHostError> {
        let _ = host;
        todo!()
    }

    /// A host.
    #[must_use]
    pub fn host(&self, host: HostId) -> Option<&HostState> {
        self.hosts.get(&host)
    }

    /// Every host, by id.
    pub fn hosts(&self) -> impl Iterator<Item = &HostState> {
        self.hosts.values()
    }

    /// Where a VM is placed, with what.
    #[must_use]
    pub fn placed(&self, vm: VmId) -> Option<&Placed> {
        let _ = vm;
        todo!()
    }

    /// The VMs placed on a host, by id.
    pub fn vms_on(&self, host: HostId) -> impl Iterator<Item = VmId> {
        let _ = host;
        std::iter::empty()
    }

    /// What is committed of a host; nothing for an unknown one.
    #[must_use]
    pub fn committed(&self, host: HostId) -> Resources {
        let _ = host;
        todo!()
    }

    /// What is free of a host: capacity minus what is committed, never below zero.
    #[must_use]
    pub fn free(&self, host: HostId) -> Resources {
        let _ = host;
        todo!()
    }

    /// States that a VM is on a host, when loading or after a decision was committed. A fact is
    /// taken as it is, whether the VM fits or not: what is then over capacity is reported.
    /// Accelerator devices are chosen by best fit.
    ///
    /// # Errors
    /// The host is unknown, or the VM is placed already; nothing has changed then.
    pub fn occupy(&mut self, host: HostId, request: &Request) -> Result<Occupied, OccupyError> {
        let _ = (host, request);
        todo!()
    }

    /// Like [`Self::occupy`], with the accelerator devices of an earlier choice or from the store.
    ///
    /// # Errors
    /// As for [`Self::occupy`].
    pub fn occupy_devices(
        &mut self,
        host: HostId,
        request: &Request,
        devices: &Devices,
    ) -> Result<Occupied, OccupyError> {
        let _ = (host, request, devices);
        todo!()
    }

    /// States that a VM has left its place: the exact inverse of [`Self::occupy`]. None when it has
    /// no place.
    pub fn release(&mut self, vm: VmId) -> Option<Placed> {
        let _ = vm;
        todo!()
    }

    /// Chooses a host. A VM that is placed already is decided about as if it had left its place.
    ///
    /// # Errors
    /// Every host is refused: for what, with numbers.
    pub fn decide(&self, request: &Request, policy: Policy) -> Result<Choice, Refusals> {
        let _ = (request, policy);
        todo!()
    }

    /// How every host does in the decision that [`Self::decide`] makes.
    #[must_use]
    pub fn explain(&self, request: &Request, policy: Policy) -> Explanation {
        let _ = (request, policy);
        todo!()
    }
}

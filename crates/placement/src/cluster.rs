//! The facts: hosts, and which VM is where.

use std::{collections::BTreeMap, sync::Arc};

use plimsoll_model::{Element, HostId, Resources, VmId};
use thiserror::Error;

use crate::{
    devices::Devices,
    fragmentation::{Expected, Measure, Workload},
    request::{HostState, Request},
    row::Row,
    topology::{Groups, Topology},
};

/// A placed VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its host.
    pub host: HostId,
    /// What it was placed with; what it was promised of an accelerator of several models is in its
    /// demand, under the model that it got.
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
    /// The elements of the VM's demand of which more is now committed than the host has, or than a
    /// device of the VM has; empty when all is well.
    pub over: Vec<Over>,
}

/// An element of which more is committed than there is, in the element's base unit.
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
    /// By id, so that the first of equals has the lowest.
    rows: Vec<Row>,
    placed: BTreeMap<VmId, Placed>,
    topology: Topology,
    groups: Groups,
    workload: Expected,
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
        match self.find(state.id) {
            Err(at) => {
                let domains = self.topology.domains(&state, None);
                self.rows.insert(at, Row::new(state, domains));
            }
            Ok(at) => {
                let row = &self.rows[at];
                let domains = self.topology.domains(&state, Some(&row.domains));
                if domains == row.domains && state.capacity == row.detail.state.capacity {
                    self.rows[at].set_state(state);
                    return;
                }
                let vms = row.detail.vms.clone();
                let moved: Vec<_> = vms.into_iter().filter_map(|vm| self.release(vm)).collect();
                self.rows[at] = Row::new(state, domains);
                for placed in moved {
                    let _ = self.put(at, placed);
                }
            }
        }
    }

    /// States that a host is gone for good.
    ///
    /// # Errors
    /// It is unknown, or VMs are placed on it.
    pub fn remove_host(&mut self, host: HostId) -> Result<HostState, RemoveHostError> {
        let at = self.find(host).map_err(|_| RemoveHostError::Unknown { host })?;
        match self.rows[at].detail.vms.len() {
            0 => Ok(self.rows.remove(at).detail.state),
            vms => Err(RemoveHostError::Occupied { host, vms }),
        }
    }

    /// A host.
    #[must_use]
    pub fn host(&self, host: HostId) -> Option<&HostState> {
        self.row(host).map(|row| &row.detail.state)
    }

    /// Every host, by id.
    pub fn hosts(&self) -> impl Iterator<Item = &HostState> {
        self.rows.iter().map(|row| &row.detail.state)
    }

    /// Where a VM is placed, with what.
    #[must_use]
    pub fn placed(&self, vm: VmId) -> Option<&Placed> {
        self.placed.get(&vm)
    }

    /// The VMs placed on a host, by id.
    pub fn vms_on(&self, host: HostId) -> impl Iterator<Item = VmId> {
        self.row(host).into_iter().flat_map(|row| row.detail.vms.iter().copied())
    }

    /// What is committed of a host; nothing for an unknown one.
    #[must_use]
    pub fn committed(&self, host: HostId) -> Resources {
        self.row(host).map(Row::committed).unwrap_or_default()
    }

    /// What is free of a host: capacity minus what is committed, never below zero; nothing for an
    /// unknown one.
    #[must_use]
    pub fn free(&self, host: HostId) -> Resources {
        self.row(host).map(Row::free).unwrap_or_default()
    }

    /// States that a VM is on a host, when loading or after a decision was committed. A fact is
    /// taken as it is, whether the VM fits or not: what is then over capacity is reported.
    /// Accelerator devices are chosen by best fit.
    ///
    /// # Errors
    /// The host is unknown, or the VM is placed already; nothing has changed then.
    pub fn occupy(&mut self, host: HostId, request: &Request) -> Result<Occupied, OccupyError> {
        let at = self.find_for(host, request.vm)?;
        let request = self.rows[at].settle(request, None);
        let devices = self.rows[at].choose_devices(&request.demand);
        Ok(self.put(at, Placed { host, request, devices }))
    }

    /// Like [`Self::occupy`], with the accelerator devices of an earlier choice or from the store.
    /// Devices of models that the request does not ask for are left out, and no share is more than
    /// its device.
    ///
    /// # Errors
    /// As for [`Self::occupy`].
    pub fn occupy_devices(
        &mut self,
        host: HostId,
        request: &Request,
        devices: &Devices,
    ) -> Result<Occupied, OccupyError> {
        let at = self.find_for(host, request.vm)?;
        let request = self.rows[at].settle(request, Some(devices));
        let devices = devices.asked_for(&request.demand.accelerators);
        Ok(self.put(at, Placed { host, request, devices }))
    }

    /// States what is usually asked for, by which [`Policy::Fgd`] and [`Policy::LeastStranding`]
    /// judge hosts. None, as in a new cluster: it is estimated from the VMs that are placed.
    ///
    /// [`Policy::Fgd`]: plimsoll_model::Policy::Fgd
    /// [`Policy::LeastStranding`]: plimsoll_model::Policy::LeastStranding
    pub fn set_workload(&mut self, workload: Option<Workload>) {
        self.workload.state(workload);
    }

    /// What was stated to be usually asked for.
    #[must_use]
    pub fn workload(&self) -> Option<&Workload> {
        self.workload.stated()
    }

    /// How much of the free accelerators the requests that are expected could not use, in devices:
    /// the fragments of Weng et al. 2023, summed over the hosts.
    #[must_use]
    pub fn fragmented(&self) -> f64 {
        let measure = self.workload.measure(None, &self.placed);
        self.rows.iter().map(|row| measure.fragments(row)).sum()
    }

    /// What hosts are judged by when a VM is decided about.
    pub(crate) fn measure(&self, vm: VmId) -> Arc<Measure> {
        self.workload.measure(Some(vm), &self.placed)
    }

    /// States that a VM has left its place: the exact inverse of [`Self::occupy`], which
    /// [`Self::occupy_devices`] with what is returned undoes. None when it has no place.
    pub fn release(&mut self, vm: VmId) -> Option<Placed> {
        let placed = self.placed.remove(&vm)?;
        if let Ok(at) = self.find(placed.host) {
            self.rows[at].remove(&placed);
            self.groups.remove(&placed.request, &self.rows[at].domains);
        }
        Some(placed)
    }

    /// Puts back what [`Self::release`] took, exactly.
    pub(crate) fn restore(&mut self, placed: Placed) {
        if let Ok(at) = self.find(placed.host) {
            let _ = self.put(at, placed);
        }
    }

    fn put(&mut self, at: usize, placed: Placed) -> Occupied {
        let row = &mut self.rows[at];
        row.add(&placed);
        self.groups.add(&placed.request, &row.domains);
        let over = row.over(&placed);
        let devices = placed.devices.clone();
        self.placed.insert(placed.request.vm, placed);
        Occupied { devices, over }
    }

    fn find(&self, host: HostId) -> Result<usize, usize> {
        self.rows.binary_search_by_key(&host, |row| row.id)
    }

    fn find_for(&self, host: HostId, vm: VmId) -> Result<usize, OccupyError> {
        if let Some(placed) = self.placed.get(&vm) {
            return Err(OccupyError::AlreadyPlaced { vm, host: placed.host });
        }
        self.find(host).map_err(|_| OccupyError::UnknownHost { vm, host })
    }

    pub(crate) fn row(&self, host: HostId) -> Option<&Row> {
        self.find(host).ok().map(|at| &self.rows[at])
    }

    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }

    pub(crate) const fn groups(&self) -> &Groups {
        &self.groups
    }
}

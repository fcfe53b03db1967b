//! The facts: hosts, and which VM is where.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use plimsoll_model::{Element, HostId, ProjectId, Resources, VmId};
use thiserror::Error;

use crate::{
    devices::Devices,
    fragmentation::{Expected, Measure, Workload},
    glance::{Amounts, Glances, Stop},
    index::Index,
    interval::Span,
    request::{HostState, Request},
    row::{Row, SCALARS, is_keeper},
    topology::{Domains, Groups, Topology},
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
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// By slot, which a host keeps as long as it is there.
    rows: Vec<Row>,
    /// The slots of hosts that are gone.
    vacant: Vec<u32>,
    slots: BTreeMap<HostId, u32>,
    /// The capacities of hosts, one for all that are alike.
    shapes: BTreeSet<Arc<[u64; SCALARS]>>,
    /// Of each element, the sum over the hosts that have any of it, and how many they are.
    capacity: BTreeMap<Element, (u128, u32)>,
    placed: BTreeMap<VmId, Placed>,
    topology: Topology,
    groups: Groups,
    /// How many placed VMs of a project require to be alone in some way.
    keepers: BTreeMap<ProjectId, u32>,
    workload: Expected,
    index: Index,
    glances: Glances,
    /// The slots of the hosts where VMs have a begin or an end, by host.
    timed: BTreeMap<HostId, u32>,
}

/// Two clusters are equal when the same facts are known of them and their hosts came in the same
/// order, for their slots are compared too; how they are searched is not.
impl PartialEq for Cluster {
    fn eq(&self, other: &Self) -> bool {
        let rows = |cluster: &Self| cluster.slots.values().map(|slot| *slot as usize).collect();
        let (mine, others): (Vec<_>, Vec<_>) = (rows(self), rows(other));
        mine.len() == others.len()
            && mine
                .iter()
                .zip(&others)
                .all(|(mine, theirs)| self.rows[*mine] == other.rows[*theirs])
            && self.placed == other.placed
            && self.topology == other.topology
            && self.groups == other.groups
            && self.workload == other.workload
    }
}

/// What a cluster takes in memory, in bytes; VMs are not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// What decisions read and search: the numbers of the hosts, and the index over them.
    pub search: usize,
    /// What is kept of each host beside: names, labels, exact sums.
    pub inventory: usize,
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
        let id = state.id;
        if let Some(slot) = self.slots.get(&id).copied() {
            self.change_host(slot, state);
            return;
        }
        let labels_crossed = self.index.add_labels(&state.labels);
        let slot = self.vacant.pop().unwrap_or_else(|| number(self.rows.len()));
        let domains = self.topology.domains(&state, slot);
        self.topology.join(id, &domains);
        self.count_capacity(&state.capacity);
        let capacity = self.shape(&state);
        let row = Row::new(state, domains, capacity);
        if slot as usize == self.rows.len() {
            self.rows.push(row);
        } else {
            self.rows[slot as usize] = row;
        }
        self.slots.insert(id, slot);
        self.enroll(slot);
        if labels_crossed {
            self.index_anew();
        }
    }

    fn change_host(&mut self, slot: u32, state: HostState) {
        let at = slot as usize;
        self.index.remove(slot, &self.rows[at]);
        self.index.dismiss(self.rows[at].stratum);
        // Both are counted, whatever the first says.
        let crossed = self.index.add_labels(&state.labels)
            | self.index.remove_labels(&self.rows[at].detail.state.labels);
        let domains = self.topology.domains(&state, slot);
        let row = &mut self.rows[at];
        let vms = if domains == row.domains && state.capacity == row.detail.state.capacity {
            row.set_state(state);
            Vec::new()
        } else {
            self.replace_host(slot, state, domains)
        };
        self.enroll(slot);
        for placed in vms {
            let _ = self.put(slot, placed);
        }
        if crossed {
            self.index_anew();
        }
    }

    /// Makes a host with other capacity or in another place of a known one, which is not in the
    /// index; its VMs are to be put back.
    fn replace_host(&mut self, slot: u32, state: HostState, domains: Domains) -> Vec<Placed> {
        let at = slot as usize;
        let vms = self.rows[at].detail.vms.clone();
        let moved: Vec<_> = vms.into_iter().filter_map(|vm| self.placed.remove(&vm)).collect();
        for placed in &moved {
            self.groups.remove(&placed.request, &self.rows[at].domains);
            self.uncount_keeper(&placed.request);
        }
        self.topology.leave(state.id, &self.rows[at].domains);
        self.topology.join(state.id, &domains);
        self.uncount_capacity(at);
        self.count_capacity(&state.capacity);
        let capacity = self.shape(&state);
        self.rows[at] = Row::new(state, domains, capacity);
        self.note_timed(slot);
        moved
    }

    /// States that a host is gone for good.
    ///
    /// # Errors
    /// It is unknown, or VMs are placed on it.
    pub fn remove_host(&mut self, host: HostId) -> Result<HostState, RemoveHostError> {
        let slot = *self.slots.get(&host).ok_or(RemoveHostError::Unknown { host })?;
        let at = slot as usize;
        let vms = self.rows[at].detail.vms.len();
        if vms > 0 {
            return Err(RemoveHostError::Occupied { host, vms });
        }
        self.index.remove(slot, &self.rows[at]);
        self.index.dismiss(self.rows[at].stratum);
        self.topology.leave(host, &self.rows[at].domains);
        self.uncount_capacity(at);
        self.slots.remove(&host);
        self.vacant.push(slot);
        self.glances.clear(slot);
        let state = HostState::clone(&self.rows[at].detail.state);
        if self.index.remove_labels(&state.labels) {
            self.index_anew();
        }
        Ok(state)
    }

    fn index_anew(&mut self) {
        self.index.clear();
        let slots: Vec<_> = self.slots.values().copied().collect();
        for slot in slots {
            self.enroll(slot);
        }
    }

    /// Adds a host to the index.
    fn enroll(&mut self, slot: u32) {
        let at = slot as usize;
        self.rows[at].stratum = self.index.enroll(&self.rows[at]);
        self.file(slot);
    }

    /// Files an enrolled host in its present state.
    fn file(&mut self, slot: u32) {
        self.index.insert(slot, &self.rows);
        self.glances.set(slot, &self.rows[slot as usize]);
    }

    fn shape(&mut self, state: &HostState) -> Arc<[u64; SCALARS]> {
        let scalars = state.capacity.scalars();
        if let Some(shape) = self.shapes.get(&scalars) {
            return Arc::clone(shape);
        }
        let shape = Arc::new(scalars);
        self.shapes.insert(Arc::clone(&shape));
        shape
    }

    fn count_capacity(&mut self, capacity: &Resources) {
        for (element, amount) in capacity.elements().filter(|(_, amount)| *amount > 0) {
            let (sum, hosts) = self.capacity.entry(element).or_default();
            *sum += u128::from(amount);
            *hosts += 1;
        }
    }

    fn uncount_capacity(&mut self, at: usize) {
        let capacity = &self.rows[at].detail.state.capacity;
        for (element, amount) in capacity.elements().filter(|(_, amount)| *amount > 0) {
            if let Some((sum, hosts)) = self.capacity.get_mut(&element) {
                *sum -= u128::from(amount);
                *hosts -= 1;
            }
        }
        self.capacity.retain(|_, (_, hosts)| *hosts > 0);
    }

    /// Whether any host has accelerators.
    pub(crate) fn has_accelerators(&self) -> bool {
        self.capacity.keys().any(|element| matches!(element, Element::Accelerator(_)))
    }

    /// The mean capacity of the hosts that have any of an element.
    pub(crate) fn mean_capacity(&self, element: &Element) -> Option<f64> {
        self.capacity.get(element).map(|(sum, hosts)| *sum as f64 / f64::from(*hosts))
    }

    /// What it takes in memory.
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        let slots = self.slots.len() * (size_of::<HostId>() + size_of::<u32>()) * 3 / 2;
        Footprint {
            search: self.rows.capacity() * size_of::<Row>()
                + slots
                + self.index.bytes()
                + self.glances.bytes(),
            inventory: self.rows().map(Row::inventory_bytes).sum(),
        }
    }

    /// A host.
    #[must_use]
    pub fn host(&self, host: HostId) -> Option<&HostState> {
        self.row(host).map(|row| &*row.detail.state)
    }

    /// Every host, by id.
    pub fn hosts(&self) -> impl Iterator<Item = &HostState> {
        self.rows().map(|row| &*row.detail.state)
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

    /// What is committed of a host; where VMs have a begin or an end, of each element the most at any
    /// instant. Nothing for an unknown one.
    #[must_use]
    pub fn committed(&self, host: HostId) -> Resources {
        self.row(host).map(Row::committed).unwrap_or_default()
    }

    /// What is free of a host at all times: capacity minus what is committed, never below zero;
    /// nothing for an unknown one.
    #[must_use]
    pub fn free(&self, host: HostId) -> Resources {
        self.row(host).map(Row::free).unwrap_or_default()
    }

    /// States that a VM is on a host, when loading or after a decision was committed. A fact is
    /// taken as it is, whether the VM fits or not: what is then over capacity, at some instant of its
    /// interval, is reported.
    /// Accelerator devices are chosen by best fit.
    ///
    /// # Errors
    /// The host is unknown, or the VM is placed already; nothing has changed then.
    pub fn occupy(&mut self, host: HostId, request: &Request) -> Result<Occupied, OccupyError> {
        let slot = self.find_for(host, request.vm)?;
        let row = self.view(slot, request);
        let request = row.settle(request, None);
        let devices = row.choose_devices(&request.demand);
        Ok(self.put(slot, Placed { host, request, devices }))
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
        let slot = self.find_for(host, request.vm)?;
        let request = self.view(slot, request).settle(request, Some(devices));
        let devices = devices.asked_for(&request.demand.accelerators);
        Ok(self.put(slot, Placed { host, request, devices }))
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
        self.rows().map(|row| measure.fragments(row)).sum()
    }

    /// What hosts are judged by when a VM is decided about.
    pub(crate) fn measure(&self, vm: VmId) -> Arc<Measure> {
        self.workload.measure(Some(vm), &self.placed)
    }

    /// States that a VM has left its place: the exact inverse of [`Self::occupy`], which
    /// [`Self::occupy_devices`] with what is returned undoes. None when it has no place.
    pub fn release(&mut self, vm: VmId) -> Option<Placed> {
        let placed = self.placed.remove(&vm)?;
        if let Some(slot) = self.slots.get(&placed.host).copied() {
            let at = slot as usize;
            self.index.remove(slot, &self.rows[at]);
            self.rows[at].remove(&placed);
            self.file(slot);
            self.note_timed(slot);
            self.groups.remove(&placed.request, &self.rows[at].domains);
            self.uncount_keeper(&placed.request);
        }
        Some(placed)
    }

    /// Puts back what [`Self::release`] took, exactly.
    pub(crate) fn restore(&mut self, placed: Placed) {
        if let Some(slot) = self.slots.get(&placed.host).copied() {
            let _ = self.put(slot, placed);
        }
    }

    fn put(&mut self, slot: u32, placed: Placed) -> Occupied {
        let at = slot as usize;
        self.index.remove(slot, &self.rows[at]);
        let row = &mut self.rows[at];
        row.add(&placed);
        self.groups.add(&placed.request, &row.domains);
        if is_keeper(&placed.request) {
            *self.keepers.entry(placed.request.project).or_insert(0) += 1;
        }
        let over = row.over(&placed);
        self.file(slot);
        self.note_timed(slot);
        let devices = placed.devices.clone();
        self.placed.insert(placed.request.vm, placed);
        Occupied { devices, over }
    }

    /// Keeps the list of the hosts where VMs have a begin or an end.
    fn note_timed(&mut self, slot: u32) {
        let row = &self.rows[slot as usize];
        if row.is_timed() {
            self.timed.insert(row.id, slot);
        } else if !self.timed.is_empty() {
            self.timed.remove(&row.id);
        }
    }

    /// The hosts where VMs have a begin or an end, by id.
    pub(crate) fn timed(&self) -> impl ExactSizeIterator<Item = &Row> {
        self.timed.values().map(|slot| &self.rows[*slot as usize])
    }

    fn uncount_keeper(&mut self, request: &Request) {
        if is_keeper(request)
            && let Some(count) = self.keepers.get_mut(&request.project)
        {
            *count -= 1;
            if *count == 0 {
                self.keepers.remove(&request.project);
            }
        }
    }

    /// Whether VMs of the project require to be alone in some way.
    pub(crate) fn has_keepers(&self, project: ProjectId) -> bool {
        self.keepers.contains_key(&project)
    }

    /// The host as it is at the time for which a request asks.
    fn view(&self, slot: u32, request: &Request) -> Cow<'_, Row> {
        let row = &self.rows[slot as usize];
        if row.is_timed() && !request.interval.is_always() {
            return Cow::Owned(row.during(&Span::of(request)));
        }
        Cow::Borrowed(row)
    }

    fn find_for(&self, host: HostId, vm: VmId) -> Result<u32, OccupyError> {
        if let Some(placed) = self.placed.get(&vm) {
            return Err(OccupyError::AlreadyPlaced { vm, host: placed.host });
        }
        self.slots.get(&host).copied().ok_or(OccupyError::UnknownHost { vm, host })
    }

    pub(crate) fn row(&self, host: HostId) -> Option<&Row> {
        self.slots.get(&host).map(|slot| &self.rows[*slot as usize])
    }

    pub(crate) fn row_at(&self, slot: u32) -> &Row {
        &self.rows[slot as usize]
    }

    /// Every host, by id.
    pub(crate) fn rows(&self) -> impl ExactSizeIterator<Item = &Row> {
        self.slots.values().map(|slot| &self.rows[*slot as usize])
    }

    /// The id of the host in a slot, which costs less than a look at its row.
    pub(crate) fn id_at(&self, slot: u32) -> u32 {
        self.glances.id(slot)
    }

    /// The first host by id that may have room; see [`Glances::find`].
    pub(crate) fn find_by_id(
        &self,
        requested: Amounts,
        from: u32,
        end: Option<u32>,
        effort: &mut u64,
    ) -> Stop {
        self.glances.find(&self.slots, requested, from, end, effort)
    }

    /// Every host, in the order in which they lie in memory.
    pub(crate) fn rows_in_memory(&self) -> impl Iterator<Item = &Row> {
        let all = self.vacant.is_empty();
        let is_there = |row: &Row| self.slots.get(&row.id) == Some(&row.domains[0]);
        self.rows.iter().filter(move |row| all || is_there(row))
    }

    pub(crate) const fn groups(&self) -> &Groups {
        &self.groups
    }

    pub(crate) const fn topology(&self) -> &Topology {
        &self.topology
    }

    pub(crate) const fn index(&self) -> &Index {
        &self.index
    }
}

/// Hosts are fewer than their ids, which are 32 bits wide.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

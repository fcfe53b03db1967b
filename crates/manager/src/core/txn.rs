//! One command's view of the cluster: it reads and changes a private copy of the state and
//! placement's books with it. If the command fails, or the store refuses, both are as before.

use std::{collections::BTreeSet, sync::Arc};

use plimsoll_model::{
    Event, EventKind, EventSequence, HostId, HostPhase, ImageId, Network, NetworkId, ProjectId,
    Severity, StoragePool, Subject, Timestamp, TokenId, VmId,
};
use plimsoll_placement::{Cluster, HostState, Placed, Request, Unschedulable};
use plimsoll_store::{Batch, Kind, StoreError, StoredEvent};
use rand::{RngCore, rngs::StdRng};
use serde::Serialize;

use crate::core::{
    record::{
        Claim, HostRecord, ImageRecord, JoinTokenRecord, ProjectRecord, SettingsRecord,
        TokenRecord, VmRecord,
    },
    state::State,
};

/// A record that a commit writes or removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Vm(VmId),
    Host(HostId),
    Project(ProjectId),
    Network(NetworkId),
    Image(ImageId),
    Token(TokenId),
    JoinToken(TokenId),
    Settings,
}

/// How to take back a change of placement's books.
enum Undo {
    Occupied(VmId),
    Released(Box<Placed>),
    HostChanged(Box<HostState>),
    HostAdded(HostId),
}

/// What runs when the outcome of a commit is known and published, whatever it is.
type Hook = Box<dyn FnOnce() + Send>;

/// See the module's documentation.
pub(crate) struct Txn<'a> {
    pub(crate) state: State,
    pub(crate) now: Timestamp,
    /// Who asked for the changes.
    pub(crate) actor: Option<TokenId>,
    /// The revision that the commit will make.
    pub(crate) revision: u64,
    cluster: &'a mut Cluster,
    random: &'a mut StdRng,
    dirty: Vec<Key>,
    undo: Vec<Undo>,
    hooks: Vec<Hook>,
    first_event: u64,
    based_on: u64,
}

/// Where a command began.
pub(crate) struct Mark {
    state: State,
    dirty: usize,
    undo: usize,
}

impl<'a> Txn<'a> {
    pub(crate) fn begin(
        state: &State,
        cluster: &'a mut Cluster,
        random: &'a mut StdRng,
        now: Timestamp,
    ) -> Self {
        let mut state = state.clone();
        state.touched.clear();
        Self {
            first_event: state.next_event(),
            based_on: state.revision,
            revision: state.revision + 1,
            state,
            now,
            actor: None,
            cluster,
            random,
            dirty: Vec::new(),
            undo: Vec::new(),
            hooks: Vec::new(),
        }
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark { state: self.state.clone(), dirty: self.dirty.len(), undo: self.undo.len() }
    }

    /// Takes back everything since the mark.
    pub(crate) fn roll_back(&mut self, mark: Mark) {
        self.state = mark.state;
        self.dirty.truncate(mark.dirty);
        self.undo_cluster(mark.undo);
    }

    /// Takes back what placement's books were told since they had so many changes.
    pub(crate) fn undo_cluster(&mut self, keep: usize) {
        const SAME_ORDER: &str = "undone in reverse order, so the books are as they were then";
        while self.undo.len() > keep {
            match self.undo.pop() {
                Some(Undo::Occupied(vm)) => {
                    self.cluster.release(vm);
                }
                Some(Undo::Released(placed)) => {
                    let Placed { host, request, devices } = *placed;
                    let _ =
                        self.cluster.occupy_devices(host, &request, &devices).expect(SAME_ORDER);
                }
                Some(Undo::HostChanged(host)) => self.cluster.upsert_host(*host),
                Some(Undo::HostAdded(host)) => {
                    self.cluster.remove_host(host).expect(SAME_ORDER);
                }
                None => break,
            }
        }
    }

    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || self.state.next_event() != self.first_event
    }

    pub(crate) fn changes(&self) -> usize {
        self.dirty.len()
    }

    pub(crate) fn into_parts(self) -> (State, Vec<Hook>) {
        (self.state, self.hooks)
    }

    /// Runs `hook` once the outcome is known and published, whatever it is.
    pub(crate) fn afterwards(&mut self, hook: impl FnOnce() + Send + 'static) {
        self.hooks.push(Box::new(hook));
    }

    /// What is to be written. `keep_events` bounds the log.
    pub(crate) fn batch(&mut self, keep_events: usize) -> Result<Batch, StoreError> {
        let mut batch = Batch { based_on: self.based_on, ..Batch::default() };
        let keys: BTreeSet<Key> = self.dirty.iter().copied().collect();
        for key in keys {
            self.encode(key, &mut batch)?;
        }
        let count = usize::try_from(self.state.next_event() - self.first_event).unwrap_or(0);
        let before = self.state.events.len().saturating_sub(count);
        // Of the vector: an iterator would go over all that came before.
        for event in &self.state.events.skip(before) {
            let sequence = event.sequence.0;
            let body = serde_json::to_string(&**event)
                .map_err(|source| StoreError::DecodeEvent { sequence, source })?;
            batch.events.push(StoredEvent { sequence, body });
        }
        // In large steps, so that few commits pay for it.
        let slack = (keep_events / 10).max(1);
        if self.state.events.len() > keep_events + slack {
            let drop = self.state.events.len() - keep_events;
            let last = self.state.events.get(drop - 1).map(|event| event.sequence.0);
            batch.drop_events_through = last;
            self.state.events = self.state.events.skip(drop);
        }
        Ok(batch)
    }

    fn encode(&self, key: Key, batch: &mut Batch) -> Result<(), StoreError> {
        fn body<T: Serialize>(
            kind: Kind,
            id: String,
            value: Option<&T>,
            batch: &mut Batch,
        ) -> Result<(), StoreError> {
            match value {
                Some(value) => match serde_json::to_string(value) {
                    Ok(body) => batch.puts.push((kind, id, body)),
                    Err(source) => return Err(StoreError::Encode { kind, id, source }),
                },
                None => batch.deletes.push((kind, id)),
            }
            Ok(())
        }
        let state = &self.state;
        match key {
            Key::Vm(id) => body(Kind::Vm, id.to_string(), state.vms.get(&id).map(|r| &**r), batch),
            Key::Host(id) => {
                body(Kind::Host, id.to_string(), state.hosts.get(&id).map(|r| &**r), batch)
            }
            Key::Project(id) => {
                body(Kind::Project, id.to_string(), state.projects.get(&id).map(|r| &**r), batch)
            }
            Key::Network(id) => {
                body(Kind::Network, id.to_string(), state.networks.get(&id).map(|r| &**r), batch)
            }
            Key::Image(id) => {
                body(Kind::Image, id.to_string(), state.images.get(&id).map(|r| &**r), batch)
            }
            Key::Token(id) => {
                body(Kind::Token, id.to_string(), state.tokens.get(&id).map(|r| &**r), batch)
            }
            Key::JoinToken(id) => {
                let record = state.join_tokens.get(&id).map(|r| &**r);
                body(Kind::JoinToken, id.to_string(), record, batch)
            }
            Key::Settings => body(Kind::Settings, "cluster".into(), Some(&*state.settings), batch),
        }
    }

    /// Placement's books, to ask.
    pub(crate) fn cluster(&self) -> &Cluster {
        self.cluster
    }

    /// Placement's books, for its questions that try places: they leave it as it was.
    pub(crate) fn cluster_to_try(&mut self) -> &mut Cluster {
        self.cluster
    }

    /// A new id: the time and 74 random bits (RFC 9562, version 7). Records made together lie
    /// together in the store, so that a commit writes few of its pages.
    pub(crate) fn uuid(&mut self) -> uuid::Uuid {
        let mut bytes = [0; 10];
        self.random.fill_bytes(&mut bytes);
        let now = u64::try_from(self.now.as_millisecond()).unwrap_or(0);
        uuid::Builder::from_unix_timestamp_millis(now, &bytes).into_uuid()
    }

    /// Writes a VM: the record, its project's charge and placement's books.
    pub(crate) fn put_vm(&mut self, mut record: VmRecord) {
        let id = record.vm.id;
        let old = self.state.vms.get(&id).cloned();
        if let Some(old) = &old {
            if **old == record {
                return;
            }
            if old.vm.phase != record.vm.phase {
                record.vm.phase_since = self.now;
            }
        }
        if record.claim == Claim::Disk {
            record.devices = plimsoll_placement::Devices::default();
        }
        let before = old.as_ref().map(|old| old.held()).unwrap_or_default();
        if before != record.held() {
            self.settle(record.vm.project);
        }
        self.books(old.as_deref(), Some(&mut record));
        self.dirty.push(Key::Vm(id));
        self.state.put_vm(id, Some(&Arc::new(record)), self.revision);
    }

    /// Removes a VM's record and frees its name and addresses.
    pub(crate) fn remove_vm(&mut self, id: VmId) {
        if let Some(old) = self.state.vms.get(&id).cloned() {
            self.settle(old.vm.project);
            self.books(Some(&*old), None);
            self.dirty.push(Key::Vm(id));
            self.state.put_vm(id, None, self.revision);
        }
    }

    /// A VM has left a host, or holds something else: nobody knows yet what those that stay will use.
    /// Until that is reckoned the host is promised no more than their minimums leave.
    fn lower_loan(&mut self, old: Option<&VmRecord>, host: HostId) {
        let (Some(old), Some(record)) = (old, self.state.hosts.get(&host)) else { return };
        let loan = record.loan.saturating_sub(old.yielding());
        if loan != record.loan {
            let record = HostRecord { loan, ..(**record).clone() };
            self.put_host(record);
        }
    }

    fn books(&mut self, old: Option<&VmRecord>, new: Option<&mut VmRecord>) {
        let before = old.and_then(VmRecord::entry);
        let after = new.as_ref().and_then(|record| record.entry());
        let arrival = old.and_then(VmRecord::arrival_entry);
        let arrives = new.as_ref().and_then(|record| record.arrival_entry());
        let (moved, arrival_changed) = (before != after, arrival != arrives);
        // All that is given up first: a VM that has arrived takes the room that was held for it. No
        // loan was reckoned with what it would not use there.
        if let Some((_, request)) = arrival.filter(|_| arrival_changed) {
            self.release(request.vm);
        }
        if moved {
            if let Some(old) = old {
                self.release(old.vm.id);
            }
            if let Some((host, _)) = before {
                self.lower_loan(old, host);
            }
        }
        if let Some((host, request)) = arrives.filter(|_| arrival_changed) {
            let _ = self.occupy(host, &request, &plimsoll_placement::Devices::default());
        }
        let Some(record) = new.filter(|_| moved) else { return };
        record.devices = match after {
            Some((host, request)) => {
                let devices = std::mem::take(&mut record.devices);
                self.occupy(host, &request, &devices).unwrap_or(devices)
            }
            None => plimsoll_placement::Devices::default(),
        };
    }

    fn release(&mut self, vm: VmId) {
        if let Some(placed) = self.cluster.release(vm) {
            self.undo.push(Undo::Released(Box::new(placed)));
            self.state.room_changed = self.revision;
        }
    }

    /// States an entry of the books; the devices that it got.
    fn occupy(
        &mut self,
        host: HostId,
        request: &Request,
        devices: &plimsoll_placement::Devices,
    ) -> Option<plimsoll_placement::Devices> {
        let occupied = if devices.is_empty() {
            self.cluster.occupy(host, request)
        } else {
            self.cluster.occupy_devices(host, request, devices)
        };
        match occupied {
            Ok(occupied) => {
                self.undo.push(Undo::Occupied(request.vm));
                Some(occupied.devices)
            }
            // A record can only name a host that exists: removal of a host is refused before.
            Err(error) => {
                tracing::error!(vm = %request.vm, %error, "placement's books differ");
                None
            }
        }
    }

    /// Charges a project for what it has held up to now.
    pub(crate) fn settle(&mut self, id: ProjectId) {
        let Some(record) = self.state.projects.get(&id).cloned() else { return };
        let Some(credits) = record.project.credits else { return };
        let elapsed = self.now.duration_since(record.charged_until).as_millis();
        let Ok(elapsed @ 1..) = u64::try_from(elapsed) else { return };
        let held = self.state.usage(id).held;
        let charge = self.state.settings().prices.charge(&held, elapsed);
        let mut record = (*record).clone();
        record.charged_until = self.now;
        let left = plimsoll_model::Credits(credits.0.saturating_sub(charge.0));
        record.project.credits = Some(left);
        let name = record.project.name.clone();
        self.put_project(record);
        if credits.0 > 0 && left.0 <= 0 {
            self.event(
                Severity::Warning,
                EventKind::ProjectOutOfCredits,
                Subject::Project { id, name },
                Some(id),
                "no credits left: what runs goes on, nothing new starts".to_owned(),
            );
        }
    }

    pub(crate) fn put_host(&mut self, record: HostRecord) {
        let id = record.host.id;
        if self.state.hosts.get(&id).is_some_and(|old| **old == record) {
            return;
        }
        let new = host_state(&record);
        match self.cluster.host(id) {
            Some(old) if *old == new => {}
            Some(old) => {
                self.undo.push(Undo::HostChanged(Box::new(old.clone())));
                self.cluster.upsert_host(new);
                self.state.room_changed = self.revision;
            }
            None => {
                self.undo.push(Undo::HostAdded(id));
                self.cluster.upsert_host(new);
                self.state.room_changed = self.revision;
            }
        }
        self.dirty.push(Key::Host(id));
        self.state.put_host(id, Some(&Arc::new(record)), self.revision);
    }

    /// Removes a host on which nothing is placed.
    pub(crate) fn remove_host(&mut self, id: HostId) {
        match self.cluster.remove_host(id) {
            Ok(old) => {
                self.undo.push(Undo::HostChanged(Box::new(old)));
                self.dirty.push(Key::Host(id));
                self.state.put_host(id, None, self.revision);
            }
            Err(error) => tracing::error!(host = %id, %error, "host is still in use"),
        }
    }

    pub(crate) fn put_project(&mut self, record: ProjectRecord) {
        let id = record.project.id;
        self.dirty.push(Key::Project(id));
        self.state.put_project(id, Some(Arc::new(record)));
    }

    pub(crate) fn remove_project(&mut self, id: ProjectId) {
        self.dirty.push(Key::Project(id));
        self.state.put_project(id, None);
    }

    pub(crate) fn put_network(&mut self, network: Network) {
        let id = network.id;
        self.dirty.push(Key::Network(id));
        self.state.put_network(id, Some(Arc::new(network)));
    }

    pub(crate) fn remove_network(&mut self, id: NetworkId) {
        self.dirty.push(Key::Network(id));
        self.state.put_network(id, None);
    }

    pub(crate) fn put_image(&mut self, record: ImageRecord) {
        let id = record.image.id;
        self.dirty.push(Key::Image(id));
        self.state.put_image(id, Some(Arc::new(record)));
    }

    pub(crate) fn remove_image(&mut self, id: ImageId) {
        self.dirty.push(Key::Image(id));
        self.state.put_image(id, None);
    }

    pub(crate) fn put_token(&mut self, record: TokenRecord) {
        let id = record.id;
        self.dirty.push(Key::Token(id));
        self.state.put_token(id, Some(Arc::new(record)));
    }

    pub(crate) fn remove_token(&mut self, id: TokenId) {
        self.dirty.push(Key::Token(id));
        self.state.put_token(id, None);
    }

    pub(crate) fn put_join_token(&mut self, record: JoinTokenRecord) {
        let id = record.id;
        self.dirty.push(Key::JoinToken(id));
        self.state.put_join_token(id, Some(Arc::new(record)));
    }

    pub(crate) fn remove_join_token(&mut self, id: TokenId) {
        self.dirty.push(Key::JoinToken(id));
        self.state.put_join_token(id, None);
    }

    /// The settings and counters, to change.
    pub(crate) fn settings_mut(&mut self) -> &mut SettingsRecord {
        self.dirty.push(Key::Settings);
        Arc::make_mut(&mut self.state.settings)
    }

    /// Adds a line to the log.
    pub(crate) fn event(
        &mut self,
        severity: Severity,
        kind: EventKind,
        subject: Subject,
        project: Option<ProjectId>,
        message: String,
    ) {
        let event = Event {
            sequence: EventSequence(self.state.next_event()),
            at: self.now,
            severity,
            kind,
            subject,
            project,
            actor: self.actor,
            message,
        };
        self.state.put_event(event);
    }

    /// Adds a line about a VM to the log.
    pub(crate) fn vm_event(
        &mut self,
        severity: Severity,
        kind: EventKind,
        record: &VmRecord,
        message: impl Into<String>,
    ) {
        let vm = &record.vm;
        let subject = Subject::Vm { id: vm.id, name: vm.name.clone() };
        self.event(severity, kind, subject, Some(vm.project), message.into());
    }

    /// Adds a line about a host to the log.
    pub(crate) fn host_event(
        &mut self,
        severity: Severity,
        kind: EventKind,
        record: &HostRecord,
        message: impl Into<String>,
    ) {
        let subject = Subject::Host { id: record.host.id, name: record.host.name.clone() };
        self.event(severity, kind, subject, None, message.into());
    }
}

/// A host as placement sees it.
pub(crate) fn host_state(record: &HostRecord) -> HostState {
    let host = &record.host;
    HostState {
        id: host.id,
        name: host.name.clone(),
        rack: host.spec.rack.clone(),
        zone: host.spec.zone.clone(),
        labels: host.spec.labels.clone(),
        capacity: record.capacity_with_loan(),
        pool: match &host.spec.storage {
            StoragePool::Local => None,
            StoragePool::Shared { pool } => Some(pool.clone()),
        },
        unschedulable: match host.phase {
            HostPhase::Up if host.schedulable => None,
            HostPhase::Up => Some(Unschedulable::Draining),
            HostPhase::Unreachable => Some(Unschedulable::Unreachable),
            HostPhase::Dead => Some(Unschedulable::Dead),
            HostPhase::Fenced => Some(Unschedulable::Fenced),
        },
    }
}

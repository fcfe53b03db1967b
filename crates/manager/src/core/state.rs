//! The cluster's state in memory: persistent maps, so that a copy costs nothing. Each commit
//! publishes a new [`State`]; readers keep theirs as long as they like, without locks.
//!
//! The indices are functions of the records, kept in step by [`State::put_vm`] and its like, and
//! checked against a rebuild in the tests. [`State::desired_generation`] is the revision at which
//! what a host should do changed last; it is not stored: at its start the manager makes a commit and
//! gives every host that revision, which is higher than any it gave before.

use std::{net::Ipv4Addr, sync::Arc};

use imbl::{HashMap, OrdMap, OrdSet, Vector};
use jiff::SignedDuration;
use plimsoll_api::v1::Settings;
use plimsoll_model::{
    Event, HostId, ImageId, Name, Network, NetworkId, Project, ProjectId, Resources, Timestamp,
    TokenId, VmId, VmPhase,
};

use crate::core::migration::Migration;
use crate::core::record::{
    HostRecord, ImageRecord, JoinTokenRecord, ProjectRecord, SettingsRecord, TokenRecord, VmRecord,
};

/// What a project has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// VMs.
    pub vms: u32,
    /// What counts against its quota.
    pub used: Resources,
    /// What it holds of hosts, and is charged for.
    pub held: Resources,
}

/// Everything that is known durably. See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(crate) revision: u64,
    pub(crate) vms: OrdMap<VmId, Arc<VmRecord>>,
    pub(crate) hosts: OrdMap<HostId, Arc<HostRecord>>,
    pub(crate) projects: OrdMap<ProjectId, Arc<ProjectRecord>>,
    pub(crate) networks: OrdMap<NetworkId, Arc<Network>>,
    pub(crate) images: OrdMap<ImageId, Arc<ImageRecord>>,
    pub(crate) tokens: OrdMap<TokenId, Arc<TokenRecord>>,
    pub(crate) join_tokens: OrdMap<TokenId, Arc<JoinTokenRecord>>,
    pub(crate) settings: Arc<SettingsRecord>,
    pub(crate) events: Vector<Arc<Event>>,

    pub(crate) vm_names: OrdMap<(ProjectId, Name), VmId>,
    pub(crate) project_names: OrdMap<Name, ProjectId>,
    pub(crate) host_names: OrdMap<Name, HostId>,
    pub(crate) network_names: OrdMap<(ProjectId, Name), NetworkId>,
    pub(crate) image_names: OrdMap<(Option<ProjectId>, Name), ImageId>,
    pub(crate) token_hashes: HashMap<String, TokenId>,
    pub(crate) join_token_hashes: HashMap<String, TokenId>,
    /// VMs that a host holds or must clean up.
    pub(crate) host_vms: OrdMap<HostId, OrdSet<VmId>>,
    pub(crate) addresses: OrdMap<(NetworkId, Ipv4Addr), VmId>,
    /// The last address given out, for the same reason as `last_vni`.
    pub(crate) address_cursors: OrdMap<NetworkId, Ipv4Addr>,
    /// How many placed VMs of a network a host has.
    pub(crate) network_hosts: OrdMap<(NetworkId, HostId), u32>,
    pub(crate) usage: OrdMap<ProjectId, Usage>,
    pub(crate) pending: OrdSet<VmId>,
    /// Those that move to another host.
    pub(crate) migrating: OrdSet<VmId>,
    /// By start.
    pub(crate) bookings: OrdSet<(Timestamp, VmId)>,
    /// The revision at which a host last had more room, or was another: only then can a booking be
    /// moved. Not stored.
    pub(crate) room_changed: u64,
    pub(crate) ends: OrdSet<(Timestamp, VmId)>,
    pub(crate) phases: OrdMap<VmPhase, u32>,
    pub(crate) vnis: OrdMap<u32, NetworkId>,
    pub(crate) desired: OrdMap<HostId, u64>,
    /// The hosts whose desired state the commit under way has changed.
    pub(crate) touched: OrdSet<HostId>,
}

impl State {
    /// The revision of the last commit.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// The cluster's settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings.settings
    }

    /// A project.
    #[must_use]
    pub fn project(&self, id: ProjectId) -> Option<&Project> {
        self.projects.get(&id).map(|record| &record.project)
    }

    /// A project by name.
    #[must_use]
    pub fn project_by_name(&self, name: &Name) -> Option<&Project> {
        self.project_names.get(name).and_then(|id| self.project(*id))
    }

    /// A VM.
    #[must_use]
    pub fn vm(&self, id: VmId) -> Option<&Arc<VmRecord>> {
        self.vms.get(&id)
    }

    /// A VM by name.
    #[must_use]
    pub fn vm_by_name(&self, project: ProjectId, name: &Name) -> Option<&Arc<VmRecord>> {
        self.vm_names.get(&(project, name.clone())).and_then(|id| self.vms.get(id))
    }

    /// A host.
    #[must_use]
    pub fn host(&self, id: HostId) -> Option<&Arc<HostRecord>> {
        self.hosts.get(&id)
    }

    /// A host by name.
    #[must_use]
    pub fn host_by_name(&self, name: &Name) -> Option<&Arc<HostRecord>> {
        self.host_names.get(name).and_then(|id| self.hosts.get(id))
    }

    /// A network by name.
    #[must_use]
    pub fn network_by_name(&self, project: ProjectId, name: &Name) -> Option<&Arc<Network>> {
        self.network_names.get(&(project, name.clone())).and_then(|id| self.networks.get(id))
    }

    /// An image by name: of the project, or public.
    #[must_use]
    pub fn image_by_name(
        &self,
        project: Option<ProjectId>,
        name: &Name,
    ) -> Option<&Arc<ImageRecord>> {
        self.image_names.get(&(project, name.clone())).and_then(|id| self.images.get(id))
    }

    /// The image that a VM of the project means by this name: its own before a public one.
    #[must_use]
    pub fn image_for_vm(&self, project: ProjectId, name: &Name) -> Option<&Arc<ImageRecord>> {
        self.image_by_name(Some(project), name).or_else(|| self.image_by_name(None, name))
    }

    /// What a project has.
    #[must_use]
    pub fn usage(&self, project: ProjectId) -> Usage {
        self.usage.get(&project).cloned().unwrap_or_default()
    }

    /// The VMs that a host holds or must clean up.
    pub fn vms_of_host(&self, host: HostId) -> impl Iterator<Item = &Arc<VmRecord>> {
        self.host_vms
            .get(&host)
            .into_iter()
            .flat_map(|ids| ids.iter())
            .filter_map(|id| self.vms.get(id))
    }

    /// The revision at which what the host should do changed last.
    #[must_use]
    pub fn desired_generation(&self, host: HostId) -> u64 {
        self.desired.get(&host).copied().unwrap_or(self.revision)
    }

    /// When whoever must know is told of an end: users by an event, the guest by its agent.
    #[must_use]
    pub fn warn_at(&self, end: Timestamp) -> Timestamp {
        let warning = SignedDuration::from_secs(self.settings().end_warning_s.into());
        end.checked_sub(warning).unwrap_or(Timestamp::MIN)
    }

    /// The next event's place in the log.
    #[must_use]
    pub fn next_event(&self) -> u64 {
        self.settings.last_event + 1
    }

    pub(crate) fn touch(&mut self, host: HostId, revision: u64) {
        if self.hosts.contains_key(&host) {
            self.desired.insert(host, revision);
            self.touched.insert(host);
        }
    }

    /// All ends are warned of at another time: their hosts are to know.
    pub(crate) fn touch_ends(&mut self, revision: u64) {
        let vms = self.ends.iter().filter_map(|(_, id)| self.vms.get(id));
        let hosts: OrdSet<HostId> =
            vms.flat_map(|record| record.host().into_iter().chain(record.destination())).collect();
        for host in hosts {
            self.touch(host, revision);
        }
    }

    /// Writes or removes a VM with all indices; what its hosts should do is of this revision then.
    pub(crate) fn put_vm(&mut self, id: VmId, new: Option<&Arc<VmRecord>>, revision: u64) {
        let old = match new {
            Some(record) => self.vms.insert(id, Arc::clone(record)),
            None => self.vms.remove(&id),
        };
        let hosts = |record: Option<&Arc<VmRecord>>| -> Vec<HostId> {
            record
                .into_iter()
                .flat_map(|r| {
                    let held = r.host().into_iter().chain(r.destination());
                    held.chain(r.cleanups.keys().copied())
                })
                .collect()
        };
        if let Some(record) = &old {
            self.index_vm(record, false);
        }
        if let Some(record) = new {
            self.index_vm(record, true);
        }
        self.index_networks(old.as_deref(), new.map(|record| &**record), revision);
        for host in hosts(old.as_ref()) {
            if let Some(vms) = self.host_vms.get_mut(&host) {
                vms.remove(&id);
                if vms.is_empty() {
                    self.host_vms.remove(&host);
                }
            }
        }
        for host in hosts(new) {
            self.host_vms.entry(host).or_default().insert(id);
        }
        if changes_desired(old.as_deref(), new.map(|record| &**record)) {
            for host in hosts(old.as_ref()).into_iter().chain(hosts(new)) {
                self.touch(host, revision);
            }
        }
    }

    fn index_vm(&mut self, record: &VmRecord, add: bool) {
        let vm = &record.vm;
        let key = (vm.project, vm.name.clone());
        if add {
            self.vm_names.insert(key, vm.id);
        } else {
            self.vm_names.remove(&key);
        }
        for interface in &vm.interfaces {
            let key = (interface.network, interface.address);
            if add {
                self.addresses.insert(key, vm.id);
                self.address_cursors.insert(interface.network, interface.address);
            } else {
                self.addresses.remove(&key);
            }
        }
        let usage = self.usage.entry(vm.project).or_default();
        let (used, held) = (record.used(), record.held());
        if add {
            usage.vms += 1;
            usage.used = usage.used.plus(&used);
            usage.held = usage.held.plus(&held);
        } else {
            usage.vms = usage.vms.saturating_sub(1);
            usage.used = usage.used.minus(&used);
            usage.held = usage.held.minus(&held);
            if usage.vms == 0 {
                self.usage.remove(&vm.project);
            }
        }
        if vm.phase == VmPhase::Pending {
            if add {
                self.pending.insert(vm.id);
            } else {
                self.pending.remove(&vm.id);
            }
        }
        if record.migration.is_some() {
            if add {
                self.migrating.insert(vm.id);
            } else {
                self.migrating.remove(&vm.id);
            }
        }
        if let Some(booking) = &record.booking {
            if add {
                self.bookings.insert((booking.from, vm.id));
            } else {
                self.bookings.remove(&(booking.from, vm.id));
            }
        }
        if let Some(end) = vm.spec.end_at.filter(|_| vm.phase != VmPhase::Deleting) {
            if add {
                self.ends.insert((end, vm.id));
            } else {
                self.ends.remove(&(end, vm.id));
            }
        }
        let count = self.phases.get(&vm.phase).copied().unwrap_or(0);
        match if add { count + 1 } else { count.saturating_sub(1) } {
            0 => self.phases.remove(&vm.phase),
            count => self.phases.insert(vm.phase, count),
        };
    }

    /// The new places are counted before the old ones are taken away, so that a VM that stays where
    /// it is changes nothing for the other hosts.
    fn index_networks(&mut self, old: Option<&VmRecord>, new: Option<&VmRecord>, revision: u64) {
        let places = |record: Option<&VmRecord>| -> Vec<(NetworkId, HostId)> {
            let interfaces = record.into_iter().flat_map(|record| &record.vm.interfaces);
            // The host to which it moves belongs to its networks from the beginning, so that all is
            // in place when the VM arrives.
            let hosts = |record: &VmRecord| record.host().into_iter().chain(record.destination());
            interfaces
                .flat_map(|i| record.into_iter().flat_map(hosts).map(|host| (i.network, host)))
                .collect()
        };
        let (old, new) = (places(old), places(new));
        if old != new {
            for (network, host) in new {
                self.count_network(network, host, true, revision);
            }
            for (network, host) in old {
                self.count_network(network, host, false, revision);
            }
        }
    }

    /// The hosts of a network know each other: when one joins or leaves, all are told.
    fn count_network(&mut self, network: NetworkId, host: HostId, add: bool, revision: u64) {
        let key = (network, host);
        let before = self.network_hosts.get(&key).copied().unwrap_or(0);
        let after = if add { before + 1 } else { before.saturating_sub(1) };
        if after == 0 {
            self.network_hosts.remove(&key);
        } else {
            self.network_hosts.insert(key, after);
        }
        if (before == 0) != (after == 0) {
            let hosts: Vec<HostId> = self.hosts_of_network(network).collect();
            for host in hosts {
                self.touch(host, revision);
            }
        }
    }

    /// The hosts with VMs on a network, by id.
    pub fn hosts_of_network(&self, network: NetworkId) -> impl Iterator<Item = HostId> + '_ {
        self.network_hosts
            .range((network, HostId(0))..=(network, HostId(u32::MAX)))
            .map(|((_, host), _)| *host)
    }

    pub(crate) fn put_host(&mut self, id: HostId, new: Option<&Arc<HostRecord>>, revision: u64) {
        let old = match new {
            Some(record) => self.hosts.insert(id, Arc::clone(record)),
            None => self.hosts.remove(&id),
        };
        if let Some(record) = &old {
            self.host_names.remove(&record.host.name);
        }
        match new {
            Some(record) => {
                self.host_names.insert(record.host.name.clone(), id);
                if old.is_none() {
                    self.desired.insert(id, revision);
                }
            }
            None => {
                self.desired.remove(&id);
            }
        }
        let underlay = |record: Option<&Arc<HostRecord>>| {
            record.map(|record| record.host.spec.underlay_address)
        };
        if underlay(old.as_ref()) != underlay(new) {
            let networks: Vec<NetworkId> = self
                .networks
                .keys()
                .copied()
                .filter(|network| self.network_hosts.contains_key(&(*network, id)))
                .collect();
            for network in networks {
                let hosts: Vec<HostId> = self.hosts_of_network(network).collect();
                for host in hosts {
                    self.touch(host, revision);
                }
            }
        }
    }

    pub(crate) fn put_project(&mut self, id: ProjectId, new: Option<Arc<ProjectRecord>>) {
        let old = match &new {
            Some(record) => self.projects.insert(id, Arc::clone(record)),
            None => self.projects.remove(&id),
        };
        if let Some(record) = old {
            self.project_names.remove(&record.project.name);
        }
        match new {
            Some(record) => {
                self.project_names.insert(record.project.name.clone(), id);
            }
            None => {
                self.usage.remove(&id);
            }
        }
    }

    pub(crate) fn put_network(&mut self, id: NetworkId, new: Option<Arc<Network>>) {
        let old = match &new {
            Some(network) => self.networks.insert(id, Arc::clone(network)),
            None => self.networks.remove(&id),
        };
        if let Some(network) = old {
            self.network_names.remove(&(network.project, network.name.clone()));
            self.vnis.remove(&network.vni);
        }
        match new {
            Some(network) => {
                self.network_names.insert((network.project, network.name.clone()), id);
                self.vnis.insert(network.vni, id);
            }
            None => {
                self.address_cursors.remove(&id);
            }
        }
    }

    pub(crate) fn put_image(&mut self, id: ImageId, new: Option<Arc<ImageRecord>>) {
        let old = match &new {
            Some(record) => self.images.insert(id, Arc::clone(record)),
            None => self.images.remove(&id),
        };
        if let Some(record) = old {
            self.image_names.remove(&(record.image.project, record.image.name.clone()));
        }
        if let Some(record) = new {
            self.image_names.insert((record.image.project, record.image.name.clone()), id);
        }
    }

    pub(crate) fn put_token(&mut self, id: TokenId, new: Option<Arc<TokenRecord>>) {
        let old = match &new {
            Some(record) => self.tokens.insert(id, Arc::clone(record)),
            None => self.tokens.remove(&id),
        };
        if let Some(record) = old {
            self.token_hashes.remove(&record.hash);
        }
        if let Some(record) = new {
            self.token_hashes.insert(record.hash.clone(), id);
        }
    }

    pub(crate) fn put_join_token(&mut self, id: TokenId, new: Option<Arc<JoinTokenRecord>>) {
        let old = match &new {
            Some(record) => self.join_tokens.insert(id, Arc::clone(record)),
            None => self.join_tokens.remove(&id),
        };
        if let Some(record) = old {
            self.join_token_hashes.remove(&record.hash);
        }
        if let Some(record) = new {
            self.join_token_hashes.insert(record.hash.clone(), id);
        }
    }

    pub(crate) fn put_event(&mut self, event: Event) {
        Arc::make_mut(&mut self.settings).last_event = event.sequence.0;
        self.events.push_back(Arc::new(event));
    }
}

/// Whether what hosts should do differs between two states of a VM.
fn changes_desired(old: Option<&VmRecord>, new: Option<&VmRecord>) -> bool {
    let (Some(old), Some(new)) = (old, new) else { return true };
    let deleting = |record: &VmRecord| record.vm.phase == VmPhase::Deleting;
    let wish = |record: &VmRecord| record.migration.as_ref().map(Migration::wish);
    old.host() != new.host()
        || old.vm.incarnation != new.vm.incarnation
        || old.vm.generation != new.vm.generation
        || old.vm.power != new.vm.power
        || old.vm.reboots != new.vm.reboots
        || old.vm.disk != new.vm.disk
        || old.vm.interfaces != new.vm.interfaces
        || old.cleanups != new.cleanups
        || old.fenced_by_lease != new.fenced_by_lease
        || old.shutdown_grace_ms != new.shutdown_grace_ms
        || deleting(old) != deleting(new)
        || wish(old) != wish(new)
}

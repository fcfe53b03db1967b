//! Which hosts are near to each other, and how many of a placement group are where.
//!
//! A *domain* is one host, one rack or one zone, as a small number. Each host lies in one domain
//! per scope; a host without a rack is the only one in its rack, hosts without a zone share one.
//! A host's own domain is its slot, by which it is found again.
//! Rules about groups are then answered by counts per domain, without looking at single VMs.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_model::{HostId, Label, Name, ProjectId, Rule, Scope, Strength};

use crate::request::{HostState, Request};

/// One host, rack or zone.
pub(crate) type Domain = u32;

/// A host's domain in each scope, by [`index`].
pub(crate) type Domains = [Domain; 3];

/// The place of a scope in [`Domains`].
pub(crate) const fn index(scope: Scope) -> usize {
    match scope {
        Scope::Host => 0,
        Scope::Rack => 1,
        Scope::Zone => 2,
    }
}

/// Marks the number of a rack; below are the slots of hosts that are each a rack of their own.
const RACK: Domain = 1 << 31;

/// Numbers the domains, and knows the hosts of each rack.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Topology {
    numbers: BTreeMap<(Option<Label>, Label), Domain>,
    racks: Vec<Rack>,
    zones: BTreeMap<Option<Label>, Domain>,
}

/// The hosts of one rack.
#[derive(Clone, Debug, Default, PartialEq)]
struct Rack {
    /// With their slots, by id.
    members: BTreeSet<(HostId, u32)>,
    /// Their ids as runs without gaps, as long as can be: the last id of each by its first.
    runs: BTreeMap<u32, u32>,
}

impl Rack {
    fn join(&mut self, host: HostId, slot: u32) {
        if !self.members.insert((host, slot)) {
            return;
        }
        let HostId(id) = host;
        let before = self.runs.range(..id).next_back().map(|(first, last)| (*first, *last));
        let first = before.filter(|(_, last)| last + 1 == id).map_or(id, |(first, _)| first);
        let after = id.checked_add(1).and_then(|next| self.runs.remove(&next));
        self.runs.insert(first, after.unwrap_or(id));
    }

    fn leave(&mut self, host: HostId, slot: u32) {
        if !self.members.remove(&(host, slot)) {
            return;
        }
        let HostId(id) = host;
        let Some((first, last)) = self.run_of(id) else { return };
        self.runs.remove(&first);
        if first < id {
            self.runs.insert(first, id - 1);
        }
        if id < last {
            self.runs.insert(id + 1, last);
        }
    }

    /// The run that has this id.
    fn run_of(&self, id: u32) -> Option<(u32, u32)> {
        let (first, last) = self.runs.range(..=id).next_back()?;
        (id <= *last).then_some((*first, *last))
    }
}

impl Topology {
    /// The domains of the host in a slot.
    pub(crate) fn domains(&mut self, state: &HostState, slot: u32) -> Domains {
        let rack = state.rack.as_ref().map_or(slot, |rack| {
            let next = RACK | number(self.numbers.len());
            *self.numbers.entry((state.zone.clone(), rack.clone())).or_insert(next)
        });
        let next = number(self.zones.len());
        let zone = *self.zones.entry(state.zone.clone()).or_insert(next);
        [slot, rack, zone]
    }

    /// Every zone that was ever named.
    pub(crate) fn zones(&self) -> impl Iterator<Item = Domain> + '_ {
        self.zones.values().copied()
    }

    /// States that a host is in its rack.
    pub(crate) fn join(&mut self, host: HostId, domains: &Domains) {
        if let Some(rack) = rack(domains[1]) {
            if self.racks.len() <= rack {
                self.racks.resize_with(rack + 1, Rack::default);
            }
            self.racks[rack].join(host, domains[0]);
        }
    }

    /// The inverse of [`Self::join`].
    pub(crate) fn leave(&mut self, host: HostId, domains: &Domains) {
        if let Some(rack) = rack(domains[1]).and_then(|rack| self.racks.get_mut(rack)) {
            rack.leave(host, domains[0]);
        }
    }

    /// The slots of the hosts of a host or rack domain, by id.
    pub(crate) fn slots(&self, domain: Domain) -> impl Iterator<Item = u32> + '_ {
        let members = rack(domain).and_then(|rack| self.racks.get(rack)).map(|rack| &rack.members);
        let single = rack(domain).is_none().then_some(domain);
        single.into_iter().chain(members.into_iter().flatten().map(|(_, slot)| *slot))
    }

    /// How many hosts a host or rack domain has.
    pub(crate) fn hosts_in(&self, domain: Domain) -> usize {
        let rack = rack(domain).and_then(|rack| self.racks.get(rack));
        rack.map_or(1, |rack| rack.members.len())
    }

    /// The ids of a rack's hosts from `start` to `end`, as runs without gaps from a first to a last
    /// id; the outermost may reach beyond. None for a domain of a single host.
    pub(crate) fn runs(
        &self,
        domain: Domain,
        start: u32,
        end: u32,
    ) -> Option<impl Iterator<Item = (u32, u32)> + '_> {
        let rack = self.racks.get(rack(domain)?);
        Some(rack.into_iter().flat_map(move |rack| {
            let first = rack.run_of(start).map_or(start, |(first, _)| first);
            rack.runs.range(first..=end).map(|(first, last)| (*first, *last))
        }))
    }
}

/// The place of a numbered rack.
const fn rack(domain: Domain) -> Option<usize> {
    if domain & RACK == 0 { None } else { Some((domain & !RACK) as usize) }
}

/// There are no more racks and zones than hosts, whose ids are 32 bits wide.
fn number(count: usize) -> Domain {
    Domain::try_from(count).unwrap_or(Domain::MAX) & !RACK
}

/// How many of something are in each domain of one scope.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    total: u32,
    at: BTreeMap<Domain, u32>,
    /// Has the bit of every domain in `at`: most look-ups are of domains that are not there, and
    /// end here.
    mask: u64,
}

impl Counts {
    pub(crate) const fn total(&self) -> u32 {
        self.total
    }

    /// The domains in which there are any, with how many.
    pub(crate) fn domains(&self) -> impl ExactSizeIterator<Item = (Domain, u32)> + '_ {
        self.at.iter().map(|(domain, count)| (*domain, *count))
    }

    pub(crate) fn at(&self, domain: Domain) -> u32 {
        if self.mask & bit(domain) == 0 {
            return 0;
        }
        self.at.get(&domain).copied().unwrap_or(0)
    }

    fn add(&mut self, domain: Domain) {
        self.total += 1;
        *self.at.entry(domain).or_insert(0) += 1;
        self.mask = if self.at.len() > MASKED { u64::MAX } else { self.mask | bit(domain) };
    }

    fn remove(&mut self, domain: Domain) {
        if let Some(count) = self.at.get_mut(&domain) {
            *count -= 1;
            self.total -= 1;
            if *count == 0 {
                self.at.remove(&domain);
                self.mask = if self.at.len() > MASKED {
                    u64::MAX
                } else {
                    self.at.keys().fold(0, |mask, domain| mask | bit(*domain))
                };
            }
        }
    }
}

/// With more domains than this the mask of [`Counts`] is not worth keeping exact.
const MASKED: usize = 64;

const fn bit(domain: Domain) -> u64 {
    1 << (domain % 64)
}

/// What is known of one placement group of one project, by scope.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Group {
    /// Its placed members.
    pub(crate) members: [Counts; 3],
    /// Placed VMs that require to be near to its members.
    pub(crate) near: [Counts; 3],
    /// Placed VMs that require to be away from its members.
    pub(crate) apart: [Counts; 3],
}

impl Group {
    fn is_empty(&self) -> bool {
        [&self.members, &self.near, &self.apart]
            .into_iter()
            .all(|counts| counts.iter().all(|count| count.total == 0))
    }
}

/// Every placement group of which a member, or a VM with a rule about it, is placed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Groups(BTreeMap<ProjectId, BTreeMap<Name, Group>>);

impl Groups {
    pub(crate) fn get(&self, project: ProjectId, group: &Name) -> Option<&Group> {
        self.0.get(&project)?.get(group)
    }

    /// Counts a VM that comes to the host with these domains.
    pub(crate) fn add(&mut self, request: &Request, domains: &Domains) {
        self.change(request, |counts, scope| counts.add(domains[scope]));
    }

    /// The inverse of [`Self::add`].
    pub(crate) fn remove(&mut self, request: &Request, domains: &Domains) {
        self.change(request, |counts, scope| counts.remove(domains[scope]));
        if let Some(groups) = self.0.get_mut(&request.project) {
            groups.retain(|name, group| !concerns(request, name) || !group.is_empty());
            if groups.is_empty() {
                self.0.remove(&request.project);
            }
        }
    }

    fn change(&mut self, request: &Request, mut change: impl FnMut(&mut Counts, usize)) {
        if request.groups.is_empty() && request.constraints.is_empty() {
            return;
        }
        let groups = self.0.entry(request.project).or_default();
        for name in &request.groups {
            let group = entry(groups, name);
            for (scope, counts) in group.members.iter_mut().enumerate() {
                change(counts, scope);
            }
        }
        for (kind, name, scope) in required_group_rules(request) {
            let group = entry(groups, name);
            let counts = match kind {
                Kind::Near => &mut group.near,
                Kind::Apart => &mut group.apart,
            };
            change(&mut counts[index(scope)], index(scope));
        }
        if groups.is_empty() {
            self.0.remove(&request.project);
        }
    }
}

fn entry<'a>(groups: &'a mut BTreeMap<Name, Group>, name: &Name) -> &'a mut Group {
    if !groups.contains_key(name) {
        groups.insert(name.clone(), Group::default());
    }
    groups.get_mut(name).expect("it was inserted above")
}

/// Whether a VM is counted in a group.
fn concerns(request: &Request, group: &Name) -> bool {
    request.groups.contains(group)
        || required_group_rules(request).any(|(_, name, _)| name == group)
}

/// The direction of a rule about a group.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Near,
    Apart,
}

/// A VM's required rules about groups; a rule that is stated twice counts once.
pub(crate) fn required_group_rules(
    request: &Request,
) -> impl Iterator<Item = (Kind, &Name, Scope)> {
    let all = &request.constraints;
    all.iter()
        .enumerate()
        .filter(|(i, rule)| {
            rule.strength == Strength::Required && !all[..*i].iter().any(|other| other == *rule)
        })
        .filter_map(|(_, constraint)| match &constraint.rule {
            Rule::Affinity { group, scope } => Some((Kind::Near, group, *scope)),
            Rule::AntiAffinity { group, scope } => Some((Kind::Apart, group, *scope)),
            Rule::Exclusive { .. } | Rule::HostLabel { .. } => None,
        })
}

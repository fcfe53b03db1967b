//! Which hosts can hold a request: a fixed list of filters, each of which says with numbers why
//! not. The same code answers `decide`, which stops at the first reason and does not put it into
//! words, and `explain`, which collects all of them.

use std::{borrow::Cow, cell::OnceCell, ops::ControlFlow};

use plimsoll_model::{
    Constraint, Element, ExclusiveAgainst, Label, Name, Policy, Resources, Rule, Scope, Strength,
};

use crate::{
    cluster::{Cluster, Placed},
    devices::{Devices, demanded},
    explanation::Refusal,
    fragmentation::Judge,
    index::{Dim, Goal, HostKind, KEPT, MAX_DIMS, SHARED, Stratum, Traits, in_zone},
    interval::Span,
    request::Request,
    row::{Company, MAY_BE_UNACCOUNTED, Row, SCALARS, share},
    topology::{Counts, Domain, Domains, Group, Kind, index, required_group_rules},
};

/// A request with everything looked up that is the same for every host.
pub(crate) struct Asked<'a> {
    pub(crate) request: &'a Request,
    cluster: &'a Cluster,
    judge: OnceCell<Judge>,
    pub(crate) need: [u64; SCALARS],
    accelerators: Vec<(&'a Label, u64)>,
    required: Vec<Clause<'a>>,
    preferred: Vec<(Clause<'a>, &'a Constraint)>,
    /// Required rules of placed VMs about groups to which this VM belongs.
    of_placed: Vec<GroupClause<'a>>,
    alone: bool,
    /// Where the VM is now: that host as it would be without it.
    own: Option<Box<Row>>,
    /// For a request with a begin or an end: the hosts where VMs have such too, by id.
    timed: Vec<View<'a>>,
}

/// A host that is another over the time of the request than over all time.
struct View<'a> {
    /// As it is in the books.
    row: &'a Row,
    /// As it is over the time of the request, and without the VM itself.
    then: OnceCell<Box<Row>>,
}

/// One rule of the request.
enum Clause<'a> {
    Group(GroupClause<'a>),
    Exclusive(ExclusiveAgainst),
    HostLabel {
        key: &'a Label,
        values: &'a [Label],
        /// Whether the index tells hosts apart by this key.
        indexed: bool,
    },
}

/// A rule about a group, with the counts that answer it.
struct GroupClause<'a> {
    kind: Kind,
    group: &'a Name,
    scope: Scope,
    counts: &'a Counts,
    /// The domain in which the VM itself is among those counted.
    own: Option<Domain>,
}

impl GroupClause<'_> {
    /// How many are in a domain.
    fn here(&self, domain: Domain) -> u32 {
        self.counts.at(domain) - u32::from(self.own == Some(domain))
    }

    fn total(&self) -> u32 {
        self.counts.total() - u32::from(self.own.is_some())
    }

    /// How many stand against this host; it breaks the rule if there are any.
    fn against(&self, row: &Row) -> u32 {
        self.against_domain(row.domains[index(self.scope)])
    }

    fn against_domain(&self, domain: Domain) -> u32 {
        match self.kind {
            Kind::Near => self.total() - self.here(domain),
            Kind::Apart => self.here(domain),
        }
    }
}

impl GroupClause<'_> {
    /// The only domain in which nobody stands against a host; none when there is none. For rules
    /// to be near.
    fn only_domain(&self) -> Option<Domain> {
        let own = |domain| u32::from(self.own == Some(domain));
        let all = self.total();
        self.counts
            .domains()
            .find(|(domain, count)| count - own(*domain) == all)
            .map(|(domain, _)| domain)
    }
}

impl Clause<'_> {
    /// Whether every host of a kind breaks the rule.
    fn leaves_out(&self, kind: &HostKind) -> bool {
        match self {
            Self::HostLabel { key, values, indexed } => {
                *indexed && !kind.labels.get(*key).is_some_and(|has| values.contains(has))
            }
            Self::Group(_) | Self::Exclusive(_) => false,
        }
    }

    fn is_broken(&self, asked: &Asked<'_>, row: &Row) -> bool {
        match self {
            Self::Group(clause) => clause.against(row) > 0,
            Self::Exclusive(against) => asked.company(row).others(*against) > 0,
            Self::HostLabel { key, values, .. } => {
                !row.detail.state.labels.get(*key).is_some_and(|has| values.contains(has))
            }
        }
    }
}

impl<'a> Asked<'a> {
    pub(crate) fn new(cluster: &'a Cluster, request: &'a Request) -> Self {
        let own = cluster.placed(request.vm).and_then(|placed| {
            let mut row = Box::new(cluster.row(placed.host)?.clone());
            row.remove(placed);
            Some((placed, row))
        });
        let known = own.as_ref().map(|(placed, row)| (*placed, row.domains));
        let mut asked = Self {
            request,
            cluster,
            judge: OnceCell::new(),
            need: request.demand.scalars(),
            accelerators: demanded(&request.demand.accelerators).collect(),
            required: Vec::new(),
            preferred: Vec::new(),
            of_placed: Vec::new(),
            alone: false,
            own: None,
            timed: Vec::new(),
        };
        if !request.interval.is_always() {
            let view = |row| View { row, then: OnceCell::new() };
            asked.timed = cluster.timed().map(view).collect();
        }
        for constraint in &request.constraints {
            let clause = match &constraint.rule {
                Rule::Affinity { group, scope } => {
                    cluster.members(request, known, Kind::Near, group, *scope)
                }
                Rule::AntiAffinity { group, scope } => {
                    cluster.members(request, known, Kind::Apart, group, *scope)
                }
                Rule::Exclusive { against } => Some(Clause::Exclusive(*against)),
                Rule::HostLabel { key, values } => {
                    let indexed = cluster.index().is_common(key);
                    Some(Clause::HostLabel { key, values, indexed })
                }
            };
            match (clause, constraint.strength) {
                (Some(clause), Strength::Required) => {
                    asked.alone |= matches!(clause, Clause::Exclusive(_));
                    asked.required.push(clause);
                }
                (Some(clause), Strength::Preferred) => asked.preferred.push((clause, constraint)),
                (None, _) => {}
            }
        }
        for name in &request.groups {
            if let Some(group) = cluster.groups().get(request.project, name) {
                asked.add_placed(known, name, group);
            }
        }
        asked.own = own.map(|(_, row)| row);
        asked
    }

    fn add_placed(&mut self, known: Option<(&Placed, Domains)>, name: &'a Name, group: &'a Group) {
        for (kind, all) in [(Kind::Near, &group.near), (Kind::Apart, &group.apart)] {
            for scope in [Scope::Host, Scope::Rack, Scope::Zone] {
                let counted = |placed: &Placed| {
                    placed.request.project == self.request.project
                        && required_group_rules(&placed.request)
                            .any(|rule| rule == (kind, name, scope))
                };
                let own = known
                    .filter(|(placed, _)| counted(placed))
                    .map(|(_, domains)| domains[index(scope)]);
                let counts = &all[index(scope)];
                let clause = GroupClause { kind, group: name, scope, counts, own };
                if clause.total() > 0 {
                    self.of_placed.push(clause);
                }
            }
        }
    }

    /// What it asks for on a host: the model of accelerator is the host's if several will do.
    pub(crate) fn demand_on(&self, row: &Row) -> Cow<'a, Resources> {
        match row.model_for(self.request) {
            None => Cow::Borrowed(&self.request.demand),
            model => Cow::Owned(self.request.demand_with(model)),
        }
    }

    /// What hosts are judged by where the workload counts.
    pub(crate) fn judge(&self) -> &Judge {
        self.judge
            .get_or_init(|| Judge::new(self.cluster.measure(self.request.vm), &self.request.demand))
    }

    /// The devices that it gets on a host.
    pub(crate) fn devices(&self, policy: Policy, row: &Row) -> Devices {
        let demand = self.demand_on(row);
        match policy {
            Policy::Fgd | Policy::LeastStranding if !demand.accelerators.is_empty() => {
                self.judge().devices(policy, row, &demand)
            }
            _ => row.choose_devices(&demand),
        }
    }

    /// The host as it is over the time of the request, and as it would be without the VM itself.
    pub(crate) fn view<'r>(&'r self, row: &'r Row) -> &'r Row {
        if self.timed.is_empty() {
            return self.left(row);
        }
        match self.timed.binary_search_by_key(&row.id, |view| view.row.id) {
            Ok(at) => self.then(&self.timed[at]),
            Err(_) => self.left(row),
        }
    }

    fn then<'r>(&'r self, view: &'r View<'a>) -> &'r Row {
        let make = || Box::new(self.left(view.row).during(&Span::of(self.request)));
        view.then.get_or_init(make)
    }

    /// The host as it would be without the VM itself.
    pub(crate) fn left<'r>(&'r self, row: &'r Row) -> &'r Row {
        match &self.own {
            Some(own) if own.id == row.id => own,
            _ => row,
        }
    }

    /// Who on a host is foreign to the VM, at whatever time.
    fn company(&self, row: &Row) -> Company {
        let at = self.timed.binary_search_by_key(&row.id, |view| view.row.id);
        let row = at.map_or(row, |at| self.left(self.timed[at].row));
        row.company(self.request)
    }

    /// Whether there are hosts that the index does not know as they are to the request.
    pub(crate) fn has_views(&self) -> bool {
        self.own.is_some() || !self.timed.is_empty()
    }

    /// Whether [`Self::views`] has the host, as the index does not know it.
    pub(crate) fn is_viewed(&self, row: &Row) -> bool {
        self.own.as_ref().is_some_and(|own| own.id == row.id) || self.is_timed(row)
    }

    /// The hosts that are another to this request than to the index, as they are to it. Those that
    /// take no VMs may be missing.
    pub(crate) fn views(&self) -> impl Iterator<Item = &Row> {
        let own = self.own.as_deref().filter(|own| !self.is_timed(own));
        // Whether it takes VMs is the same at all times, and is asked before the host is looked at.
        let timed = self.timed.iter().filter(|view| view.row.open);
        own.into_iter().chain(timed.map(|view| self.then(view)))
    }

    fn is_timed(&self, row: &Row) -> bool {
        self.timed.binary_search_by_key(&row.id, |view| view.row.id).is_ok()
    }

    /// Whether the host can hold the request.
    pub(crate) fn admits(&self, row: &Row) -> bool {
        check(self, row, &mut stop).is_continue()
    }

    /// Whether the host has room for the request.
    pub(crate) fn has_room(&self, row: &Row) -> bool {
        capacity(self, row, &mut stop).is_continue()
    }

    /// Whether nothing but a lack of room speaks against the host, and it breaks none of these
    /// preferred rules.
    pub(crate) fn allows(&self, row: &Row, kept: Kept) -> bool {
        outer(self, row, &mut stop).is_continue()
            && rules(self, row, &mut stop).is_continue()
            && !self.kept(kept).any(|clause| clause.is_broken(self, row))
    }

    fn kept(&self, kept: Kept) -> impl Iterator<Item = &Clause<'a>> {
        let preferred = self.preferred.iter().enumerate();
        preferred.filter(move |(i, _)| kept >> i & 1 == 1).map(|(_, (clause, _))| clause)
    }

    pub(crate) fn preferences(&self) -> usize {
        self.preferred.len()
    }

    /// The rules about groups that a host must keep.
    fn group_rules(&self, kept: Kept) -> impl Iterator<Item = &GroupClause<'a>> {
        let own = self.required.iter().chain(self.kept(kept));
        let own = own.filter_map(|clause| match clause {
            Clause::Group(clause) => Some(clause),
            Clause::Exclusive(_) | Clause::HostLabel { .. } => None,
        });
        own.chain(&self.of_placed)
    }

    /// Whether no host of a kind can do.
    pub(crate) fn leaves_out(&self, kind: &HostKind, kept: Kept) -> bool {
        !kind.open
            || self.request.pool.is_some() && self.request.pool != kind.pool
            || self.required.iter().chain(self.kept(kept)).any(|clause| clause.leaves_out(kind))
    }

    /// The traits that a host must have: to be in a zone that the rules allow, and not to be kept
    /// for another project.
    pub(crate) fn traits(&self, cluster: &Cluster, kept: Kept) -> [Traits; 2] {
        let mut zones = Traits::MAX;
        if self.group_rules(kept).any(|clause| clause.scope == Scope::Zone) {
            zones = cluster
                .topology()
                .zones()
                .filter(|zone| {
                    !self.group_rules(kept).any(|clause| {
                        clause.scope == Scope::Zone && clause.against_domain(*zone) > 0
                    })
                })
                .fold(0, |zones, zone| zones | in_zone(zone));
        }
        let kept = if cluster.has_keepers(self.request.project) { KEPT } else { 0 };
        [zones, SHARED | kept]
    }

    /// Where hosts that keep the rules to be near can be.
    pub(crate) fn reach(&self, kept: Kept) -> Reach {
        let mut reach = Reach::Everywhere;
        for clause in self.group_rules(kept).filter(|clause| clause.kind == Kind::Near) {
            match (clause.only_domain(), clause.scope) {
                (None, _) => return Reach::Nowhere,
                (Some(_), Scope::Zone) => {}
                (Some(domain), Scope::Host) => reach = Reach::Domain(domain),
                (Some(domain), Scope::Rack) => {
                    if reach == Reach::Everywhere {
                        reach = Reach::Domain(domain);
                    }
                }
            }
        }
        reach
    }

    /// The rules to be apart that refuse single hosts and racks.
    fn apart(&self, kept: Kept) -> impl Iterator<Item = &GroupClause<'a>> {
        self.group_rules(kept)
            .filter(|clause| clause.kind == Kind::Apart && clause.scope != Scope::Zone)
    }

    /// Whether the host, or its rack, is one to be avoided.
    pub(crate) fn avoids(&self, row: &Row, kept: Kept) -> bool {
        self.apart(kept).any(|clause| clause.against(row) > 0)
    }

    /// How many refusals of hosts and racks to be avoided cost as much as to list all of them. A
    /// rack is worth the price sooner than a host: it is a run of hosts.
    pub(crate) fn price_of_avoided(&self, kept: Kept) -> usize {
        let price = |clause: &GroupClause<'_>| {
            let domains = clause.counts.domains().len();
            if clause.scope == Scope::Host { domains / 2 } else { domains / 4 }
        };
        self.apart(kept).map(price).sum()
    }

    /// Whether so few hosts are to be avoided that it costs least to meet them one by one.
    pub(crate) fn avoids_few(&self, kept: Kept) -> bool {
        const HOSTS: usize = 256;
        const HOSTS_IN_RACKS: usize = 64;
        let (mut hosts, mut in_racks) = (0, 0);
        self.apart(kept).all(|clause| {
            let mut domains = clause.counts.domains();
            if clause.scope == Scope::Host {
                hosts += domains.len();
                return hosts <= HOSTS;
            }
            domains.all(|(domain, _)| {
                in_racks += self.cluster.topology().hosts_in(domain);
                in_racks <= HOSTS_IN_RACKS
            })
        })
    }

    /// The hosts and racks to be avoided.
    pub(crate) fn avoided(&self, kept: Kept) -> Vec<Domain> {
        let domains = self.apart(kept).flat_map(|clause| {
            clause.counts.domains().map(|(domain, _)| domain).filter(|d| clause.here(*d) > 0)
        });
        domains.collect()
    }

    /// What is wanted of the hosts of a stratum, from an id on; none when they can never hold the
    /// request.
    pub(crate) fn goal(
        &self,
        stratum: &Stratum,
        policy: Policy,
        traits: [Traits; 2],
        floor: u32,
    ) -> Option<Goal> {
        let scalars = self.need.iter().enumerate().filter(|(_, need)| **need > 0);
        for (i, _) in scalars.filter(|(i, _)| !MAY_BE_UNACCOUNTED[*i]) {
            if !stratum.dims.contains(&Dim::Scalar(i)) {
                return None;
            }
        }
        for (model, _) in &self.accelerators {
            let has = |dim: &Dim| matches!(dim, Dim::Model(has) if has == *model);
            if !stratum.partial && !stratum.dims.iter().any(has) {
                return None;
            }
        }
        if let Some(any) = self.request.accelerator.as_ref().filter(|any| any.thousandths > 0) {
            let accepts = |dim: &Dim| matches!(dim, Dim::Model(model) if any.accepts(model));
            if !stratum.partial && !stratum.dims.iter().any(accepts) {
                return None;
            }
        }
        let mut shares = [(0.0, 0.0); MAX_DIMS];
        let dims = stratum.dims.iter().zip(&stratum.capacity);
        for (range, (dim, (smallest, largest))) in shares.iter_mut().zip(dims) {
            let need = match dim {
                Dim::Scalar(i) => self.need[*i],
                Dim::Model(model) => self.request.demand.accelerators.get(model),
            };
            // Of a model that may be the one of several, it asks for no more than both together.
            let any = self.request.accelerator.as_ref();
            let more = any.filter(|any| matches!(dim, Dim::Model(model) if any.accepts(model)));
            let most = need.saturating_add(more.map_or(0, |any| any.thousandths));
            *range = (share(need, *largest), share(most, *smallest));
        }
        Some(Goal::new(policy, &shares[..stratum.dims.len()], stratum.partial, traits, floor))
    }

    /// The first reason why the host cannot hold the request.
    pub(crate) fn first_refusal(&self, row: &Row) -> Option<Refusal> {
        let mut first = None;
        let _ = check(self, row, &mut |refusal: Words<'_>| {
            first = Some(refusal());
            ControlFlow::Break(())
        });
        first
    }

    /// Every reason why the host cannot hold the request.
    pub(crate) fn refusals(&self, row: &Row) -> Vec<Refusal> {
        let mut all = Vec::new();
        let _ = check(self, row, &mut |refusal: Words<'_>| {
            all.push(refusal());
            ControlFlow::Continue(())
        });
        all
    }

    /// How many preferred rules the host breaks.
    pub(crate) fn broken(&self, row: &Row) -> u32 {
        let broken = self.preferred.iter().filter(|(clause, _)| clause.is_broken(self, row));
        broken.fold(0, |count, _| count + 1)
    }

    /// The preferred rules that the host breaks.
    pub(crate) fn broken_rules(&self, row: &Row) -> Vec<Constraint> {
        let broken = self.preferred.iter().filter(|(clause, _)| clause.is_broken(self, row));
        broken.map(|(_, constraint)| (*constraint).clone()).collect()
    }
}

impl Cluster {
    /// The clause of a rule about a group's members; none when no other member is placed.
    fn members<'a>(
        &'a self,
        request: &'a Request,
        known: Option<(&Placed, Domains)>,
        kind: Kind,
        group: &'a Name,
        scope: Scope,
    ) -> Option<Clause<'a>> {
        let counts = &self.groups().get(request.project, group)?.members[index(scope)];
        let own = known
            .filter(|(placed, _)| {
                placed.request.project == request.project && placed.request.groups.contains(group)
            })
            .map(|(_, domains)| domains[index(scope)]);
        let clause = GroupClause { kind, group, scope, counts, own };
        (clause.total() > 0).then_some(Clause::Group(clause))
    }
}

/// Which of the preferred rules a search must keep, one bit each.
pub(crate) type Kept = u32;

/// Where hosts can be that keep the rules to be near.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    Everywhere,
    /// Only in this host or rack, if there.
    Domain(Domain),
    Nowhere,
}

/// Puts a reason into words; called only by who wants to read it.
type Words<'a> = &'a dyn Fn() -> Refusal;

/// Every filter, in the order in which reasons are given: what an operator did, what the machine
/// is, what is left of it, what rules say. Each calls `refuse` for each reason that it finds, until
/// that breaks.
fn check(
    asked: &Asked<'_>,
    row: &Row,
    refuse: &mut impl FnMut(Words<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    outer(asked, row, refuse)?;
    capacity(asked, row, refuse)?;
    rules(asked, row, refuse)
}

/// Content with the first reason, whatever it is.
fn stop(_: Words<'_>) -> ControlFlow<()> {
    ControlFlow::Break(())
}

/// The filters before capacity.
fn outer(
    asked: &Asked<'_>,
    row: &Row,
    refuse: &mut impl FnMut(Words<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    schedulable(row, refuse)?;
    pinned(asked, row, refuse)?;
    excluded(asked, row, refuse)?;
    pool(asked, row, refuse)
}

/// The filters after capacity.
fn rules(
    asked: &Asked<'_>,
    row: &Row,
    refuse: &mut impl FnMut(Words<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    host_label(asked, row, refuse)?;
    group(asked, row, Kind::Near, refuse)?;
    group(asked, row, Kind::Apart, refuse)?;
    exclusive(asked, row, refuse)
}

fn schedulable(
    row: &Row,
    refuse: &mut impl FnMut(Words<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    if row.open {
        return ControlFlow::Continue(());
    }
    match row.detail.state.unschedulable {
        Some(state) => refuse(&|| Refusal::Unschedulable { state }),
        None => ControlFlow::Continue(()),
    }
}

fn pinned(
    asked: &Asked<'_>,
    row: &Row,
    refuse: &mut impl FnMut(Words<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    match asked.request.pinned_host {
        Some(to) if to != row.id => refuse(&|| Refusal::Pinned { to }),
        _ => ControlFlow::Continue(()),
    }
}

fn excluded(
    asked: &Asked<'_>,
    row: &Row,
    refuse: &mut impl FnMut(Words<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    match asked.request.excluded_host {
        Some(host) if host == row.id => refuse(&|| Refusal::Excluded),
        _ => ControlFlow::Continue(()),
    }
}

fn pool(
    asked: &Asked<'_>,
    row: &Row,
    refuse: &mut impl FnMut(Words<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let Some(need) = &asked.request.pool else { return ControlFlow::Continue(()) };
    let has = &row.detail.state.pool;
    if has.as_ref() == Some(need) {
        return ControlFlow::Continue(());
    }
    refuse(&|| Refusal::Pool { need: need.clone(), has: has.clone() })
}

fn host_label(
    asked: &Asked<'_>,
    row: &Row,
    refuse: &mut impl FnMut(Words<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    for clause in &asked.required {
        if let Clause::HostLabel { key, values, .. } = clause
            && clause.is_broken(asked, row)
        {
            refuse(&|| Refusal::HostLabel {
                key: (*key).clone(),
                values: values.to_vec(),
                has: row.detail.state.labels.get(*key).cloned(),
            })?;
        }
    }
    ControlFlow::Continue(())
}

fn capacity(
    asked: &Asked<'_>,
    row: &Row,
    refuse: &mut impl FnMut(Words<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    for i in 0..SCALARS {
        if asked.need[i] > row.free[i] && row.accounts(i) {
            refuse(&|| Refusal::Insufficient {
                element: Element::SCALARS[i].clone(),
                need: asked.need[i],
                free: row.free[i],
                capacity: row.capacity[i],
            })?;
        }
    }
    for (model, need) in &asked.accelerators {
        let pool = row.pool(model);
        if pool.is_some_and(|pool| pool.fits(*need)) {
            continue;
        }
        let (free, largest, capacity) =
            pool.map_or((0, 0, 0), |pool| (pool.free(), pool.largest(), pool.capacity));
        refuse(&|| {
            let (model, need) = ((*model).clone(), *need);
            if need > free {
                Refusal::Insufficient { element: Element::Accelerator(model), need, free, capacity }
            } else {
                Refusal::Fragmented { model, need, free, largest }
            }
        })?;
    }
    any_model(asked, row, refuse)
}

/// An accelerator of whichever model: of those that will do, the host's numbers are those of the
/// model that the request would get.
fn any_model(
    asked: &Asked<'_>,
    row: &Row,
    refuse: &mut impl FnMut(Words<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let Some(any) = asked.request.accelerator.as_ref().filter(|any| any.thousandths > 0) else {
        return ControlFlow::Continue(());
    };
    let model = row.model_for(asked.request).cloned().unwrap_or_else(|| any.missing());
    let pool = row.pool(&model);
    let own = asked.request.demand.accelerators.get(&model);
    let need = own.saturating_add(any.thousandths);
    if pool.is_some_and(|pool| pool.fits(need)) {
        return ControlFlow::Continue(());
    }
    let (free, largest, capacity) =
        pool.map_or((0, 0, 0), |pool| (pool.free(), pool.largest(), pool.capacity));
    refuse(&|| {
        let model = model.clone();
        if need > free {
            Refusal::Insufficient { element: Element::Accelerator(model), need, free, capacity }
        } else {
            Refusal::Fragmented { model, need, free, largest }
        }
    })
}

fn group(
    asked: &Asked<'_>,
    row: &Row,
    kind: Kind,
    refuse: &mut impl FnMut(Words<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    for clause in &asked.required {
        if let Clause::Group(clause) = clause
            && clause.kind == kind
            && clause.against(row) > 0
        {
            refuse(&|| {
                let (group, scope, count) =
                    (clause.group.clone(), clause.scope, clause.against(row));
                match kind {
                    Kind::Near => Refusal::Affinity { group, scope, elsewhere: count },
                    Kind::Apart => Refusal::AntiAffinity { group, scope, members: count },
                }
            })?;
        }
    }
    for clause in asked.of_placed.iter().filter(|clause| clause.kind == kind) {
        if clause.against(row) > 0 {
            refuse(&|| {
                let (group, scope, count) =
                    (clause.group.clone(), clause.scope, clause.against(row));
                match kind {
                    Kind::Near => Refusal::AffinityOfPlaced { group, scope, elsewhere: count },
                    Kind::Apart => Refusal::AntiAffinityOfPlaced { group, scope, vms: count },
                }
            })?;
        }
    }
    ControlFlow::Continue(())
}

fn exclusive(
    asked: &Asked<'_>,
    row: &Row,
    refuse: &mut impl FnMut(Words<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    if !asked.alone && row.keepers == 0 {
        return ControlFlow::Continue(());
    }
    let company = asked.company(row);
    for clause in &asked.required {
        if let Clause::Exclusive(against) = clause
            && company.others(*against) > 0
        {
            let (against, others) = (*against, company.others(*against));
            refuse(&|| Refusal::Exclusive { against, others })?;
        }
    }
    for (against, vms) in [
        (ExclusiveAgainst::OtherProjects, company.project_keepers),
        (ExclusiveAgainst::OtherApplications, company.application_keepers),
    ] {
        if vms > 0 {
            refuse(&|| Refusal::ExclusiveOfPlaced { against, vms })?;
        }
    }
    ControlFlow::Continue(())
}

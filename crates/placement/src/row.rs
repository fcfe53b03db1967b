//! One host as decisions read it: numbers first, the rest behind a pointer, so that a scan over
//! many hosts touches little memory.

use std::{collections::BTreeSet, sync::Arc};

use plimsoll_model::{
    Element, ExclusiveAgainst, HostId, Label, Name, ProjectId, Resources, Rule, Strength,
    Timestamp, VmId,
};

use crate::{
    cluster::{Over, Placed},
    devices::{DevicePool, Devices, demanded},
    interval::Span,
    profile::{Holdings, Profile},
    request::{HostState, Request},
    topology::Domains,
};

/// How many scalar elements there are.
pub(crate) const SCALARS: usize = Element::SCALARS.len();

/// Elements of which a zero capacity means that the host does not account for them: anything may
/// be asked of them. In the order of [`Element::SCALARS`]: the bandwidths and I/O rates.
pub(crate) const MAY_BE_UNACCOUNTED: [bool; SCALARS] = [false, false, false, true, true, true];

/// A host.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) id: HostId,
    pub(crate) domains: Domains,
    /// Its stratum in the index.
    pub(crate) stratum: u32,
    /// How many models of accelerators are in `detail`: most hosts have none, and a look at many
    /// hosts should not have to go there to see it.
    pub(crate) models: u32,
    /// Whether it takes new VMs.
    pub(crate) open: bool,
    /// VMs here that require to be alone in some way.
    pub(crate) keepers: u32,
    /// Shared by hosts of the same shape.
    pub(crate) capacity: Arc<[u64; SCALARS]>,
    pub(crate) free: [u64; SCALARS],
    /// The mean free share over all elements of which the host has a capacity.
    pub(crate) mean_free: f64,
    pub(crate) detail: Box<Detail>,
}

/// What decisions seldom read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Detail {
    /// Shared with the views of the host at some time.
    pub(crate) state: Arc<HostState>,
    /// What is promised. Where VMs have a begin or an end, the most at any instant.
    pub(crate) held: Holdings,
    /// Where VMs have a begin or an end: what is committed when.
    pub(crate) profile: Option<Box<Profile>>,
    /// By project and application.
    tenants: Vec<Tenant>,
    pub(crate) vms: BTreeSet<VmId>,
}

/// The VMs of one application (or of none) of one project on one host.
#[derive(Clone, Debug, PartialEq)]
struct Tenant {
    project: ProjectId,
    application: Option<Name>,
    vms: u32,
    /// Of them, how many require that no other project is here.
    project_keepers: u32,
    /// Of them, how many require that no other application is here.
    application_keepers: u32,
}

/// Who on a host is foreign to a VM.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Company {
    /// VMs of other projects.
    pub(crate) other_projects: u32,
    /// VMs of other applications.
    pub(crate) other_applications: u32,
    /// VMs that do not tolerate its project.
    pub(crate) project_keepers: u32,
    /// VMs that do not tolerate its application.
    pub(crate) application_keepers: u32,
}

impl Company {
    pub(crate) const fn others(&self, against: ExclusiveAgainst) -> u32 {
        match against {
            ExclusiveAgainst::OtherProjects => self.other_projects,
            ExclusiveAgainst::OtherApplications => self.other_applications,
        }
    }
}

/// Whether a VM requires to be alone.
pub(crate) fn requires_alone(request: &Request, against: ExclusiveAgainst) -> bool {
    request.constraints.iter().any(|constraint| {
        constraint.strength == Strength::Required && constraint.rule == Rule::Exclusive { against }
    })
}

impl Row {
    /// A host with no VMs; `capacity` are the scalars of its capacity.
    pub(crate) fn new(state: HostState, domains: Domains, capacity: Arc<[u64; SCALARS]>) -> Self {
        let pools = demanded(&state.capacity.accelerators)
            .map(|(model, capacity)| DevicePool::new(model.clone(), capacity))
            .collect();
        let mut row = Self {
            id: state.id,
            domains,
            stratum: 0,
            models: 0,
            open: state.unschedulable.is_none(),
            keepers: 0,
            capacity,
            free: [0; SCALARS],
            mean_free: 0.0,
            detail: Box::new(Detail {
                state: Arc::new(state),
                held: Holdings { committed: [0; SCALARS], pools },
                profile: None,
                tenants: Vec::new(),
                vms: BTreeSet::new(),
            }),
        };
        row.refresh();
        row
    }

    /// States anew what the host is; its capacity is as before.
    pub(crate) fn set_state(&mut self, state: HostState) {
        self.open = state.unschedulable.is_none();
        self.detail.state = Arc::new(state);
    }

    /// Whether VMs here have a begin or an end.
    pub(crate) fn is_timed(&self) -> bool {
        self.detail.profile.is_some()
    }

    /// The host as it is over some time: what is committed is the most at any instant of it. It does
    /// not know who is here.
    pub(crate) fn during(&self, span: &Span) -> Self {
        let held = &self.detail.held;
        let profile = self.detail.profile.as_ref();
        self.holding(profile.map_or_else(|| held.clone(), |profile| profile.peak(span)))
    }

    /// The host as it would be if only those VMs were here that have neither begin nor end: at
    /// every instant at least so much is committed.
    pub(crate) fn without_timed(&self) -> Self {
        let profile = self.detail.profile.as_ref();
        self.holding(profile.map_or(&self.detail.held, |profile| &profile.base).clone())
    }

    /// The instants after this one at which a VM ends, in order.
    pub(crate) fn ends_after(&self, instant: Timestamp) -> impl Iterator<Item = Timestamp> {
        self.detail.profile.iter().flat_map(move |profile| profile.ends_after(instant))
    }

    /// When the last VM ends that has an end.
    pub(crate) fn last_end(&self) -> Option<Timestamp> {
        self.detail.profile.as_ref().and_then(|profile| profile.last_end())
    }

    /// The host if this were committed of it.
    fn holding(&self, held: Holdings) -> Self {
        let detail = Detail {
            state: Arc::clone(&self.detail.state),
            held,
            profile: None,
            tenants: Vec::new(),
            vms: BTreeSet::new(),
        };
        let mut row =
            Self { capacity: Arc::clone(&self.capacity), detail: Box::new(detail), ..*self };
        row.refresh();
        row
    }

    /// The free share of a scalar element; 0 where the capacity is 0.
    pub(crate) fn free_share(&self, element: usize) -> f64 {
        match self.capacity[element] {
            0 => 0.0,
            capacity => share(self.free[element], capacity),
        }
    }

    /// Whether no decision can tell two hosts of the same kind apart but by their ids and by who
    /// is on them.
    pub(crate) fn is_in_the_same_state_as(&self, other: &Self) -> bool {
        let mut pools = self.pools().iter().zip(other.pools());
        self.free == other.free
            && self.capacity == other.capacity
            && self.models == other.models
            && pools.all(|(a, b)| a.is_in_the_same_state_as(b))
    }

    /// The devices that a demand gets here, by best fit.
    pub(crate) fn choose_devices(&self, demand: &Resources) -> Devices {
        let chosen = demanded(&demand.accelerators).filter_map(|(model, need)| {
            let shares = self.pool(model)?.choose(need);
            (!shares.is_empty()).then(|| (model.clone(), shares))
        });
        Devices(chosen.collect())
    }

    /// Its accelerators, by model.
    pub(crate) fn pools(&self) -> &[DevicePool] {
        if self.models == 0 { &[] } else { &self.detail.held.pools }
    }

    /// The model that a request for one of several gets here: the first by name that has room, or
    /// else the first that would do at all.
    pub(crate) fn model_for(&self, request: &Request) -> Option<&Label> {
        let any = request.accelerator.as_ref()?;
        let mut pools = self.pools().iter();
        let own = |pool: &DevicePool| request.demand.accelerators.get(&pool.model);
        let acceptable = |pool: &&DevicePool| pool.capacity > 0 && any.accepts(&pool.model);
        let fits = |pool: &&DevicePool| pool.fits(own(pool).saturating_add(any.thousandths));
        pools
            .find(|pool| acceptable(pool) && fits(pool))
            .or_else(|| self.pools().iter().find(acceptable))
            .map(|pool| &pool.model)
    }

    /// The request as it is here, with what it asks for of several models under the model that it
    /// gets: the one of these devices, if they are of one that will do.
    pub(crate) fn settle(&self, request: &Request, devices: Option<&Devices>) -> Request {
        let Some(any) = &request.accelerator else { return request.clone() };
        let given = devices.into_iter().flat_map(|devices| devices.0.keys());
        let spare = |model: &&Label| request.demand.accelerators.get(model) == 0;
        let mut given = given.filter(|model| any.accepts(model));
        let model = given.clone().find(spare).or_else(|| given.next());
        let model = model.or_else(|| self.model_for(request)).cloned();
        let model = model.unwrap_or_else(|| any.missing());
        Request { demand: request.demand_with(Some(&model)), accelerator: None, ..request.clone() }
    }

    pub(crate) fn pool(&self, model: &Label) -> Option<&DevicePool> {
        let pools = self.pools();
        pools.binary_search_by(|pool| pool.model.cmp(model)).ok().map(|i| &pools[i])
    }

    /// Adds a VM, whether it fits or not.
    pub(crate) fn add(&mut self, placed: &Placed) {
        let request = &placed.request;
        let detail = &mut *self.detail;
        detail.commit(placed);
        let at = detail.find_tenant(request).unwrap_or_else(|at| {
            let tenant = Tenant {
                project: request.project,
                application: request.application.clone(),
                vms: 0,
                project_keepers: 0,
                application_keepers: 0,
            };
            detail.tenants.insert(at, tenant);
            at
        });
        let (project, application) = keeper(request);
        let tenant = &mut detail.tenants[at];
        tenant.vms += 1;
        tenant.project_keepers += project;
        tenant.application_keepers += application;
        self.keepers += project + application;
        detail.vms.insert(request.vm);
        self.refresh();
    }

    /// The inverse of [`Self::add`].
    pub(crate) fn remove(&mut self, placed: &Placed) {
        let request = &placed.request;
        let detail = &mut *self.detail;
        if !detail.vms.remove(&request.vm) {
            return;
        }
        detail.uncommit(placed);
        if let Ok(at) = detail.find_tenant(request) {
            let (project, application) = keeper(request);
            let tenant = &mut detail.tenants[at];
            tenant.vms -= 1;
            tenant.project_keepers -= project;
            tenant.application_keepers -= application;
            self.keepers -= project + application;
            if tenant.vms == 0 {
                detail.tenants.remove(at);
            }
        }
        self.refresh();
    }

    /// What is kept of the host beside the row, in bytes, without its VMs.
    pub(crate) fn inventory_bytes(&self) -> usize {
        let state = &self.detail.state;
        let labels = state.labels.iter().flat_map(|(key, value)| [key, value]);
        let labels = labels.chain(&state.rack).chain(&state.zone).map(Label::as_str);
        let texts = labels.chain([&state.name].into_iter().chain(&state.pool).map(Name::as_str));
        let profile = self.detail.profile.as_ref();
        size_of::<Detail>()
            + size_of::<HostState>()
            + profile.map_or(0, |profile| size_of::<Profile>() + profile.bytes())
            + texts.map(str::len).sum::<usize>()
            + self.detail.held.pools.capacity() * size_of::<DevicePool>()
            + self.detail.tenants.capacity() * size_of::<Tenant>()
    }

    /// What of this VM's demand is over the host's capacity, at some instant of its time.
    pub(crate) fn over(&self, placed: &Placed) -> Vec<Over> {
        if placed.request.interval.is_always() {
            return self.over_at_peak(placed);
        }
        self.during(&Span::of(&placed.request)).over_at_peak(placed)
    }

    fn over_at_peak(&self, placed: &Placed) -> Vec<Over> {
        let demand = &placed.request.demand;
        let mut over = Vec::new();
        for (i, (element, need)) in Element::SCALARS.into_iter().zip(demand.scalars()).enumerate() {
            let (committed, capacity) = (self.detail.held.committed[i], self.capacity[i]);
            if need > 0 && self.accounts(i) && committed > u128::from(capacity) {
                over.push(Over { element, committed: clamp(committed), capacity });
            }
        }
        for (model, need) in demanded(&demand.accelerators) {
            if let Some(pool) = self.pool(model)
                && pool.is_over(need, placed.devices.of(model))
            {
                over.push(Over {
                    element: Element::Accelerator(model.clone()),
                    committed: clamp(pool.committed),
                    capacity: pool.capacity,
                });
            }
        }
        over
    }

    /// Whether the host accounts for a scalar element.
    pub(crate) fn accounts(&self, element: usize) -> bool {
        self.capacity[element] > 0 || !MAY_BE_UNACCOUNTED[element]
    }

    /// What a request can get of an element: anything, where the host does not account for it.
    pub(crate) fn free_for(&self, element: &Element) -> u64 {
        if let Element::Accelerator(model) = element {
            return self.pool(model).map_or(0, DevicePool::free);
        }
        let scalar = Element::SCALARS.iter().position(|scalar| scalar == element);
        scalar.map_or(0, |i| if self.accounts(i) { self.free[i] } else { u64::MAX })
    }

    /// Who here is foreign to a VM.
    pub(crate) fn company(&self, request: &Request) -> Company {
        let mut company = Company::default();
        for tenant in &self.detail.tenants {
            let other_project = tenant.project != request.project;
            if other_project {
                company.other_projects += tenant.vms;
                company.project_keepers += tenant.project_keepers;
            }
            // A VM without an application is an application of its own.
            if other_project
                || tenant.application.is_none()
                || tenant.application != request.application
            {
                company.other_applications += tenant.vms;
                company.application_keepers += tenant.application_keepers;
            }
        }
        company
    }

    pub(crate) fn committed(&self) -> Resources {
        let mut committed = Resources::from_scalars(self.detail.held.committed.map(clamp));
        for pool in self.detail.held.pools.iter().filter(|pool| pool.committed > 0) {
            committed.accelerators.0.insert(pool.model.clone(), clamp(pool.committed));
        }
        committed
    }

    pub(crate) fn free(&self) -> Resources {
        let mut free = Resources::from_scalars(self.free);
        for pool in &self.detail.held.pools {
            if pool.free() > 0 {
                free.accelerators.0.insert(pool.model.clone(), pool.free());
            }
        }
        free
    }

    /// Recomputes what is derived. Always from the exact sums, so that taking a VM back restores
    /// the same floating-point numbers.
    fn refresh(&mut self) {
        self.models = u32::try_from(self.detail.held.pools.len()).unwrap_or(u32::MAX);
        let (mut sum, mut elements) = (0.0, 0_u32);
        for i in 0..SCALARS {
            self.free[i] = self.capacity[i].saturating_sub(clamp(self.detail.held.committed[i]));
            if self.capacity[i] > 0 {
                sum += self.free_share(i);
                elements += 1;
            }
        }
        for pool in self.detail.held.pools.iter().filter(|pool| pool.capacity > 0) {
            sum += share(pool.free(), pool.capacity);
            elements += 1;
        }
        self.mean_free = if elements == 0 { 0.0 } else { sum / f64::from(elements) };
    }
}

impl Detail {
    fn commit(&mut self, placed: &Placed) {
        let (request, devices) = (&placed.request, &placed.devices);
        match &mut self.profile {
            None if request.interval.is_always() => {
                self.held.add(&request.demand, devices);
                return;
            }
            Some(profile) if request.interval.is_always() => {
                profile.base.add(&request.demand, devices);
            }
            profile => {
                let base = &self.held;
                let profile = profile.get_or_insert_with(|| Box::new(Profile::new(base.clone())));
                profile.insert(placed);
            }
        }
        self.take_peak();
    }

    /// The inverse of [`Self::commit`].
    fn uncommit(&mut self, placed: &Placed) {
        let (request, devices) = (&placed.request, &placed.devices);
        match &mut self.profile {
            None => self.held.remove(&request.demand, devices),
            Some(profile) if request.interval.is_always() => {
                profile.base.remove(&request.demand, devices);
            }
            Some(profile) => profile.remove(request.vm),
        }
        self.take_peak();
    }

    /// Brings what is committed in step with the profile, if there is one.
    fn take_peak(&mut self) {
        let Some(mut profile) = self.profile.take() else { return };
        profile.refresh();
        let plain = profile.is_plain();
        self.held = if plain { profile.base.clone() } else { profile.peak(&Span::ALWAYS) };
        if !plain {
            self.profile = Some(profile);
        }
    }

    fn find_tenant(&self, request: &Request) -> Result<usize, usize> {
        self.tenants.binary_search_by(|tenant| {
            let order = tenant.project.cmp(&request.project);
            order.then_with(|| tenant.application.cmp(&request.application))
        })
    }
}

/// Whether a VM keeps other projects, and other applications, away.
fn keeper(request: &Request) -> (u32, u32) {
    (
        u32::from(requires_alone(request, ExclusiveAgainst::OtherProjects)),
        u32::from(requires_alone(request, ExclusiveAgainst::OtherApplications)),
    )
}

/// Whether a VM requires to be alone in some way.
pub(crate) fn is_keeper(request: &Request) -> bool {
    keeper(request) != (0, 0)
}

/// One amount as a share of another that is not zero. Both are rounded to 53 bits first, which
/// every machine does alike.
pub(crate) fn share(amount: u64, of: u64) -> f64 {
    amount as f64 / of as f64
}

fn clamp(amount: u128) -> u64 {
    u64::try_from(amount).unwrap_or(u64::MAX)
}

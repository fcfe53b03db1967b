//! A model of placement written from the mission's words, with no thought of speed: it looks at
//! every pair of VMs, sums demands anew each time, and shares no code with the crate.

use std::collections::BTreeMap;

use plimsoll_model::{
    Constraint, Element, ExclusiveAgainst, HostId, Label, Policy, Rule, Scope, Strength,
};
use plimsoll_placement::{AnyModel, Devices, HostState, Request, TypicalRequest};

/// Hosts, and the VMs placed on them.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub(crate) hosts: BTreeMap<HostId, HostState>,
    pub(crate) placed: Vec<(HostId, Request, Devices)>,
    /// What was stated to be usually asked for.
    pub(crate) workload: Option<Vec<TypicalRequest>>,
}

/// Why a host will not do, as far as the naive model tells reasons apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    Schedulable,
    Pinned,
    Excluded,
    Pool,
    Room,
    HostLabel,
    Near,
    Apart,
    Alone,
}

impl World {
    pub(crate) fn others<'a>(
        &'a self,
        request: &'a Request,
    ) -> impl Iterator<Item = (&'a HostState, &'a Request)> {
        self.placed
            .iter()
            .filter(|(_, placed, _)| placed.vm != request.vm)
            .map(|(host, placed, _)| (&self.hosts[host], placed))
    }

    fn promised(&self, host: &HostState, element: &Element, but: &Request) -> u64 {
        self.others(but)
            .filter(|(at, _)| at.id == host.id)
            .map(|(_, placed)| placed.demand.get(element))
            .sum()
    }

    /// Capacity minus what is promised to other VMs.
    pub(crate) fn free(&self, host: &HostState, element: &Element, but: &Request) -> u64 {
        if let Element::Accelerator(model) = element {
            return self.free_devices(host, model, but).iter().sum();
        }
        host.capacity.get(element).saturating_sub(self.promised(host, element, but))
    }

    /// What is free on each device of a model.
    pub(crate) fn free_devices(&self, host: &HostState, model: &Label, but: &Request) -> Vec<u64> {
        let mut left = host.capacity.accelerators.get(model);
        let mut free = Vec::new();
        while left > 0 {
            free.push(left.min(1000));
            left -= left.min(1000);
        }
        for (at, placed, devices) in &self.placed {
            if *at == host.id && placed.vm != but.vm {
                for share in devices.0.get(model).into_iter().flatten() {
                    if let Some(free) = free.get_mut(share.device as usize) {
                        *free = free.saturating_sub(share.thousandths);
                    }
                }
            }
        }
        free
    }

    /// The model that a request for one of several gets.
    fn model(&self, host: &HostState, request: &Request) -> Option<Label> {
        let any = request.accelerator.as_ref()?;
        host.capacity
            .accelerators
            .0
            .keys()
            .find(|model| {
                accepts(any, model) && {
                    let free = self.free_devices(host, model, request);
                    has_devices(free, request.demand.accelerators.get(model) + any.thousandths)
                }
            })
            .cloned()
    }

    /// The request with all that it gets on a host in its demand.
    pub(crate) fn settled(&self, host: &HostState, request: &Request) -> Request {
        let mut settled = request.clone();
        if let (Some(any), Some(model)) = (&request.accelerator, self.model(host, request)) {
            *settled.demand.accelerators.0.entry(model).or_insert(0) += any.thousandths;
            settled.accelerator = None;
        }
        settled
    }

    fn room(&self, host: &HostState, request: &Request) -> bool {
        let any = request.accelerator.is_some();
        (!any || self.model(host, request).is_some()) && self.room_for_demand(host, request)
    }

    fn room_for_demand(&self, host: &HostState, request: &Request) -> bool {
        request.demand.elements().all(|(element, need)| {
            if let Element::Accelerator(model) = &element {
                return has_devices(self.free_devices(host, model, request), need);
            }
            let accounted =
                !matches!(element, Element::DiskBandwidth | Element::DiskIops | Element::Network)
                    || host.capacity.get(&element) > 0;
            !accounted || need <= self.free(host, &element, request)
        })
    }

    /// Every kind of reason against a host; none when it can hold the request.
    pub(crate) fn reasons(&self, host: &HostState, request: &Request) -> Vec<Reason> {
        let mut reasons = Vec::new();
        if host.unschedulable.is_some() {
            reasons.push(Reason::Schedulable);
        }
        if request.pinned_host.is_some_and(|to| to != host.id) {
            reasons.push(Reason::Pinned);
        }
        if request.excluded_host == Some(host.id) {
            reasons.push(Reason::Excluded);
        }
        if request.pool.is_some() && request.pool != host.pool {
            reasons.push(Reason::Pool);
        }
        if !self.room(host, request) {
            reasons.push(Reason::Room);
        }
        for constraint in required(request) {
            if !self.holds(&constraint.rule, host, request) {
                reasons.push(kind(&constraint.rule));
            }
        }
        for (at, placed) in self.others(request) {
            for constraint in required(placed) {
                if !tolerates(&constraint.rule, (at, placed), (host, request)) {
                    reasons.push(kind(&constraint.rule));
                }
            }
        }
        reasons.sort();
        reasons.dedup();
        reasons
    }

    /// Whether a rule of a VM holds on a host, among all that are placed.
    pub(crate) fn holds(&self, rule: &Rule, host: &HostState, request: &Request) -> bool {
        if let Rule::HostLabel { key, values } = rule {
            return host.labels.get(key).is_some_and(|value| values.contains(value));
        }
        self.others(request).all(|other| tolerates(rule, (host, request), other))
    }

    pub(crate) fn broken(&self, host: &HostState, request: &Request) -> Vec<Constraint> {
        request
            .constraints
            .iter()
            .filter(|c| c.strength == Strength::Preferred && !self.holds(&c.rule, host, request))
            .cloned()
            .collect()
    }

    /// Shares requested and available, of the elements of which the host has any.
    fn vectors(&self, host: &HostState, request: &Request) -> Vec<(f64, f64)> {
        host.capacity
            .elements()
            .filter(|(_, capacity)| *capacity > 0)
            .map(|(element, capacity)| {
                let capacity = capacity as f64;
                (
                    request.demand.get(&element) as f64 / capacity,
                    self.free(host, &element, request) as f64 / capacity,
                )
            })
            .collect()
    }

    /// The mission's formula, negated where the highest wins.
    pub(crate) fn cost(&self, policy: Policy, host: &HostState, request: &Request) -> f64 {
        let request = &self.settled(host, request);
        let vectors = self.vectors(host, request);
        let mean = if vectors.is_empty() {
            0.0
        } else {
            vectors.iter().map(|(_, a)| a).sum::<f64>() / vectors.len() as f64
        };
        match policy {
            Policy::FirstFit | Policy::FfdProd | Policy::FfdSum => f64::from(host.id.0),
            Policy::MostFree => -mean,
            Policy::LeastFree => mean,
            Policy::Cosine => {
                let product: f64 = vectors.iter().map(|(r, a)| r * a).sum();
                let r: f64 = vectors.iter().map(|(r, _)| r.powi(2)).sum::<f64>().sqrt();
                let a: f64 = vectors.iter().map(|(_, a)| a.powi(2)).sum::<f64>().sqrt();
                if r * a == 0.0 { 0.0 } else { -product / (r * a) }
            }
            Policy::DotProduct => -vectors.iter().map(|(r, a)| r * a).sum::<f64>(),
            Policy::Fgd | Policy::LeastStranding => self.outlook(policy, host, request),
            Policy::L2Diff => vectors.iter().map(|(r, a)| (r - a).powi(2)).sum(),
            Policy::L2Ratio => {
                -vectors.iter().filter(|(r, _)| *r > 0.0).map(|(r, a)| r / a).sum::<f64>()
            }
        }
    }

    /// The host that the mission's table names: the fewest broken preferences, then the best
    /// score, then the lowest id. Scores nearer than 1e-10 are the same number.
    pub(crate) fn pick(&self, policy: Policy, request: &Request) -> Option<HostId> {
        let mut best: Option<(usize, f64, HostId)> = None;
        for host in self.hosts.values() {
            if !self.reasons(host, request).is_empty() {
                continue;
            }
            let broken = self.broken(host, request).len();
            let cost = self.cost(policy, host, request);
            let better = best.is_none_or(|(least, lowest, _)| {
                broken < least || (broken == least && cost < lowest - 1e-10)
            });
            if better {
                best = Some((broken, cost, host.id));
            }
        }
        best.map(|(.., host)| host)
    }

    /// Panics unless no host is over its capacity, no device is over itself, and every required
    /// rule of every placed VM holds.
    pub(crate) fn check(&self) {
        for (at, request, devices) in &self.placed {
            let host = &self.hosts[at];
            for (element, _) in request.demand.elements() {
                let promised =
                    self.promised(host, &element, request) + request.demand.get(&element);
                let capacity = host.capacity.get(&element);
                let unaccounted = capacity == 0
                    && matches!(
                        element,
                        Element::DiskBandwidth | Element::DiskIops | Element::Network
                    );
                assert!(unaccounted || promised <= capacity, "{at} is over its {element}");
            }
            for constraint in required(request) {
                assert!(
                    self.holds(&constraint.rule, host, request),
                    "{} of {} is broken on {at}",
                    constraint.rule,
                    request.vm
                );
            }
            for (model, need) in &request.demand.accelerators.0 {
                let shares = devices.0.get(model).map_or(&[][..], Vec::as_slice);
                let sum: u64 = shares.iter().map(|share| share.thousandths).sum();
                assert_eq!(sum, *need, "devices do not add up");
                assert!(*need >= 1000 || shares.len() <= 1, "a share sits on one device");
                let free = self.free_devices(host, model, request);
                for share in shares {
                    assert!(share.thousandths <= free[share.device as usize], "device is over");
                }
            }
        }
    }
}

fn accepts(any: &AnyModel, model: &Label) -> bool {
    any.models.is_empty() || any.models.contains(model)
}

/// Whether whole devices are untouched, and one more has room for the rest.
pub(crate) fn has_devices(mut free: Vec<u64>, need: u64) -> bool {
    free.sort_unstable();
    for _ in 0..need / 1000 {
        if free.pop() != Some(1000) {
            return false;
        }
    }
    need.is_multiple_of(1000) || free.iter().any(|free| *free >= need % 1000)
}

fn required(request: &Request) -> impl Iterator<Item = &Constraint> {
    request.constraints.iter().filter(|c| c.strength == Strength::Required)
}

const fn kind(rule: &Rule) -> Reason {
    match rule {
        Rule::Affinity { .. } => Reason::Near,
        Rule::AntiAffinity { .. } => Reason::Apart,
        Rule::Exclusive { .. } => Reason::Alone,
        Rule::HostLabel { .. } => Reason::HostLabel,
    }
}

/// Whether two hosts are in the same host, rack or zone.
fn near(scope: Scope, a: &HostState, b: &HostState) -> bool {
    match scope {
        Scope::Host => a.id == b.id,
        Scope::Rack => a.id == b.id || (a.rack.is_some() && a.rack == b.rack && a.zone == b.zone),
        Scope::Zone => a.zone == b.zone,
    }
}

/// Whether a rule of one VM is content with where another is.
fn tolerates(rule: &Rule, one: (&HostState, &Request), other: (&HostState, &Request)) -> bool {
    let ((host, vm), (other_host, other)) = (one, other);
    let same_project = vm.project == other.project;
    match rule {
        Rule::Affinity { group, scope } => {
            !(same_project && other.groups.contains(group)) || near(*scope, host, other_host)
        }
        Rule::AntiAffinity { group, scope } => {
            !(same_project && other.groups.contains(group) && near(*scope, host, other_host))
        }
        Rule::Exclusive { against } => {
            let same = match against {
                ExclusiveAgainst::OtherProjects => same_project,
                ExclusiveAgainst::OtherApplications => {
                    same_project && vm.application.is_some() && vm.application == other.application
                }
            };
            host.id != other_host.id || same
        }
        Rule::HostLabel { .. } => true,
    }
}

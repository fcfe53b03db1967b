//! Runs a scenario, once for each policy, and writes down what is seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

use plimsoll_model::{Element, HostId, Policy, Resources};
use plimsoll_placement::{Choice, Cluster, Placed, Refusal, Request, Verdict};
use thiserror::Error;

use super::{
    Flavor, Scenario,
    draw::float,
    gauge::{Gauge, empty_holds},
};
use crate::{
    engine::{self, Observer, RunError, SimTime},
    report::{
        ElementInfo, Fragmented, Measured, PolicyReport, Reason, Reference, References, Report,
        ScenarioInfo, Series, Totals, percent,
    },
};

/// How many verdicts about a host a policy's run may cost for the reasons of rejections, so that
/// explaining does not take longer than deciding.
const LOOKS: u64 = 20_000_000;

/// A scenario that cannot be run to its end.
#[derive(Debug, Error)]
pub enum SimulateError {
    /// The engine refuses the workload.
    #[error("cannot simulate with policy {policy}")]
    Run {
        /// With this policy.
        policy: Policy,
        /// Why.
        #[source]
        source: RunError,
    },
}

/// How far a simulation is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// The policy that is tried now.
    pub policy: Policy,
    /// Its place among the policies, from 0.
    pub policy_index: usize,
    /// How many policies there are.
    pub policies: usize,
    /// How far simulated time is in this policy's run.
    pub at: SimTime,
    /// How much of all runs is done, from 0 to 1.
    pub done: f64,
    /// VMs placed in this policy's run, so far.
    pub placed: u64,
    /// VMs rejected in this policy's run, so far.
    pub rejected: u64,
}

/// Runs a scenario with each of its policies; `progress` is called a few hundred times for each.
///
/// # Errors
/// The engine refuses the workload.
pub fn simulate(
    scenario: &Scenario,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, SimulateError> {
    let elements = watched(scenario);
    let references = references(scenario);
    let mut at_seconds = Vec::new();
    let mut policies = Vec::new();
    for (policy_index, policy) in scenario.policies.iter().copied().enumerate() {
        let mut cluster = Cluster::new();
        for host in scenario.hosts() {
            cluster.upsert_host(host);
        }
        let mut watch = Watch {
            scenario,
            policy,
            policy_index,
            progress,
            references: &references,
            gauge: Gauge::new(scenario.hosts(), &elements),
            before: SimTime::default(),
            next_sample: 0,
            at_seconds: Vec::new(),
            series: Series::new(elements.len()),
            counts: Counts::default(),
            reasons: BTreeMap::new(),
            looks: 0,
            version: 0,
            last: None,
        };
        let horizon = Some(scenario.duration.after_start());
        let totals = engine::run(&mut cluster, policy, scenario.workload(), horizon, &mut watch)
            .map_err(|source| SimulateError::Run { policy, source })?;
        at_seconds.clone_from(&watch.at_seconds);
        policies.push(watch.report(&totals, &elements));
    }
    let infos = elements.iter().map(|element| {
        let capacity = scenario
            .shapes
            .iter()
            .map(|shape| shape.count as u128 * u128::from(shape.capacity.get(element)));
        ElementInfo::new(element, capacity.sum())
    });
    Ok(Report {
        scenario: ScenarioInfo {
            name: scenario.name.clone(),
            description: scenario.description.clone(),
            seed: scenario.seed,
            duration_seconds: scenario.duration.0 / 1000,
            warm_up_seconds: scenario.warm_up.0 / 1000,
            hosts: scenario.host_count(),
            host_shapes: scenario.shapes.len(),
            workloads: scenario.workloads.len(),
            source: scenario.source.clone(),
        },
        elements: infos.collect(),
        references,
        at_seconds,
        policies,
        notes: notes(scenario),
    })
}

/// The elements that are shown: CPU and memory, and what else hosts have and VMs ask for.
fn watched(scenario: &Scenario) -> Vec<Element> {
    let flavors = || scenario.workloads.iter().flat_map(|workload| &workload.flavors);
    let asked: BTreeSet<Element> = flavors()
        .flat_map(|flavor| flavor.most().elements().map(|(e, _)| e).collect::<Vec<_>>())
        .collect();
    let had: BTreeSet<Element> = scenario
        .shapes
        .iter()
        .flat_map(|shape| shape.capacity.elements().map(|(e, _)| e).collect::<Vec<_>>())
        .collect();
    let always = [Element::Cpu, Element::Memory];
    let mut elements: Vec<_> = asked.intersection(&had).cloned().chain(always).collect();
    elements.sort();
    elements.dedup();
    elements
}

/// The flavours against which fragmentation is measured: the one that comes most often, and the
/// largest by the sum of its shares of all that the cluster has.
fn references(scenario: &Scenario) -> References {
    let total = scenario
        .shapes
        .iter()
        .fold(Resources::default(), |sum, shape| sum.plus(&shape.capacity.times(shape.count)));
    let size = |demand: &Resources| -> f64 {
        let shares = demand.elements().map(|(element, need)| {
            let has = total.get(&element);
            if has == 0 { 0.0 } else { float(need) / float(has) }
        });
        shares.sum()
    };
    let mut typical: Option<(f64, Reference)> = None;
    let mut largest: Option<(f64, Reference)> = None;
    for workload in &scenario.workloads {
        let weights: f64 = workload.flavors.iter().map(|flavor| flavor.weight).sum();
        for flavor in workload.flavors.iter().filter(|flavor| flavor.weight > 0.0) {
            let reference = |resources| Reference {
                workload: workload.name.to_string(),
                flavor: flavor.name.to_string(),
                resources,
            };
            let share = workload.expected_vms() * flavor.weight / weights;
            if typical.as_ref().is_none_or(|(best, _)| share > *best) {
                typical = Some((share, reference(flavor.middle())));
            }
            let share = size(&flavor.most());
            if largest.as_ref().is_none_or(|(best, _)| share > *best) {
                largest = Some((share, reference(flavor.most())));
            }
        }
    }
    // A scenario has a workload, and that a flavour of a weight above zero: checked.
    let known = |found: Option<(f64, Reference)>| found.map(|(_, reference)| reference);
    References {
        typical: known(typical).unwrap_or_default(),
        largest: known(largest).unwrap_or_default(),
    }
}

/// What a reader must know to judge the numbers.
fn notes(scenario: &Scenario) -> Vec<String> {
    let never = |flavor: &&Flavor| {
        let least = flavor.least();
        !scenario.shapes.iter().any(|shape| empty_holds(&shape.capacity, &least))
    };
    scenario
        .workloads
        .iter()
        .flat_map(|workload| {
            workload.flavors.iter().filter(never).map(move |flavor| {
                format!(
                    "Flavor `{}` of workload `{}` fits no host, not even an empty one: all its VMs \
                     are rejected.",
                    flavor.name, workload.name
                )
            })
        })
        .collect()
}

/// VMs since the warm-up.
#[derive(Default)]
struct Counts {
    placed: u64,
    rejected: u64,
    departed: u64,
    placed_in_warm_up: u64,
    rejected_in_warm_up: u64,
}

/// Why the last rejected VM was, for the next that is like it.
struct LastReason {
    version: u64,
    request: Request,
    reason: String,
}

struct Watch<'a, 'p> {
    scenario: &'a Scenario,
    policy: Policy,
    policy_index: usize,
    progress: &'p mut dyn FnMut(Progress),
    references: &'a References,
    gauge: Gauge,
    before: SimTime,
    next_sample: u64,
    at_seconds: Vec<f64>,
    series: Series,
    counts: Counts,
    reasons: BTreeMap<String, u64>,
    looks: u64,
    /// Grows with each VM that comes or goes.
    version: u64,
    last: Option<LastReason>,
}

/// The place of a host in the list of hosts.
const fn index(host: HostId) -> usize {
    host.0.saturating_sub(1) as usize
}

impl Watch<'_, '_> {
    fn is_warm(&self, at: SimTime) -> bool {
        at.0 >= self.scenario.warm_up.0
    }

    fn sample(&mut self, at: u64) {
        self.at_seconds.push(float(at) / 1000.0);
        for (series, percent) in
            self.series.committed_percent.iter_mut().zip(self.gauge.committed_percent())
        {
            series.push(percent);
        }
        self.series.hosts_in_use.push(self.gauge.hosts_in_use);
        self.series.vms.push(self.gauge.vms);
        self.series.rejected.push(self.counts.rejected);
        let Fragmented { typical, largest } = &mut self.series.fragmented_percent;
        typical.push(self.gauge.fragmented_percent(&self.references.typical.resources));
        largest.push(self.gauge.fragmented_percent(&self.references.largest.resources));
        let duration = float(self.scenario.duration.0);
        let policies = self.scenario.policies.len();
        (self.progress)(Progress {
            policy: self.policy,
            policy_index: self.policy_index,
            policies,
            at: SimTime(at),
            done: (float(self.policy_index as u64) + float(at) / duration) / float(policies as u64),
            placed: self.counts.placed + self.counts.placed_in_warm_up,
            rejected: self.counts.rejected + self.counts.rejected_in_warm_up,
        });
    }

    fn reason(&mut self, request: &Request, cluster: &Cluster) -> String {
        let like = |last: &LastReason| {
            last.version == self.version
                && last.request.demand == request.demand
                && last.request.groups == request.groups
                && last.request.constraints == request.constraints
                && last.request.project == request.project
        };
        if let Some(last) = self.last.as_ref().filter(|last| like(last)) {
            return last.reason.clone();
        }
        self.looks += self.scenario.host_count();
        if self.looks > LOOKS {
            return "not looked into".to_owned();
        }
        let reason = why(request, self.policy, cluster);
        self.last = Some(LastReason {
            version: self.version,
            request: request.clone(),
            reason: reason.clone(),
        });
        reason
    }

    fn mean_fragmented(&self) -> f64 {
        let warm_up = float(self.scenario.warm_up.0) / 1000.0;
        let samples = self.at_seconds.iter().zip(&self.series.fragmented_percent.typical);
        let (sum, count) = samples
            .filter(|(at, _)| **at >= warm_up)
            .fold((0.0, 0_u64), |(sum, count), (_, percent)| (sum + percent, count + 1));
        percent(sum / float(count.max(1)))
    }

    fn report(self, totals: &engine::Totals, elements: &[Element]) -> PolicyReport {
        let Counts { placed, rejected, departed, placed_in_warm_up, rejected_in_warm_up } =
            self.counts;
        let arrived = placed + rejected;
        let seconds = totals.deciding.as_secs_f64();
        let decisions = float(totals.placed + totals.rejected);
        let mean = |wanted: &Element| {
            let mut means = elements.iter().zip(self.gauge.mean_percent());
            means.find(|(element, _)| *element == wanted).map_or(0.0, |(_, percent)| percent)
        };
        let mut reasons: Vec<_> = self
            .reasons
            .iter()
            .map(|(reason, vms)| Reason { reason: reason.clone(), vms: *vms })
            .collect();
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.vms));
        PolicyReport {
            policy: self.policy,
            totals: Totals {
                arrived,
                placed,
                rejected,
                rejected_percent: if arrived == 0 {
                    0.0
                } else {
                    percent(100.0 * float(rejected) / float(arrived))
                },
                departed,
                placed_in_warm_up,
                rejected_in_warm_up,
                peak_hosts: self.gauge.peak_hosts,
                mean_hosts: percent(self.gauge.mean_hosts()),
                peak_vms: self.gauge.peak_vms,
                mean_cpu_percent: mean(&Element::Cpu),
                mean_memory_percent: mean(&Element::Memory),
                mean_percent: self.gauge.mean_percent().collect(),
                mean_fragmented_percent: self.mean_fragmented(),
            },
            rejected_for: reasons,
            series: self.series,
            measured: Measured {
                seconds,
                decisions_per_second: if seconds > 0.0 { decisions / seconds } else { 0.0 },
            },
        }
    }
}

impl Observer for Watch<'_, '_> {
    fn advanced(&mut self, to: SimTime, _: &Cluster) -> ControlFlow<()> {
        // Nothing has changed since `before`: what is due in between sees the same.
        while self.next_sample <= to.0 {
            self.sample(self.next_sample);
            let end = self.scenario.duration.0;
            self.next_sample = match self.next_sample.saturating_add(self.scenario.sample_every.0) {
                // The last sample is at the end, and then there is none.
                next if next > end && self.next_sample < end => end,
                next if next > end => u64::MAX,
                next => next,
            };
            if self.next_sample == u64::MAX {
                break;
            }
        }
        let from = self.before.0.max(self.scenario.warm_up.0);
        if to.0 > from {
            self.gauge.passes(to.0 - from);
        }
        self.before = to;
        ControlFlow::Continue(())
    }

    fn placed(&mut self, at: SimTime, request: &Request, choice: &Choice) -> ControlFlow<()> {
        self.version += 1;
        self.gauge.came(index(choice.host), &request.demand, &choice.devices);
        if self.is_warm(at) {
            self.counts.placed += 1;
            self.gauge.peak();
        } else {
            self.counts.placed_in_warm_up += 1;
        }
        ControlFlow::Continue(())
    }

    fn rejected(&mut self, at: SimTime, request: &Request, cluster: &Cluster) -> ControlFlow<()> {
        if self.is_warm(at) {
            self.counts.rejected += 1;
            let reason = self.reason(request, cluster);
            *self.reasons.entry(reason).or_default() += 1;
        } else {
            self.counts.rejected_in_warm_up += 1;
        }
        ControlFlow::Continue(())
    }

    fn departed(&mut self, at: SimTime, placed: &Placed) -> ControlFlow<()> {
        self.version += 1;
        self.gauge.left(index(placed.host), &placed.request.demand, &placed.devices);
        if self.is_warm(at) {
            self.counts.departed += 1;
        }
        ControlFlow::Continue(())
    }
}

/// The kind of a reason, in the order in which ties are broken.
fn kind(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Insufficient { element, .. } => format!("too little {element} free"),
        Refusal::Fragmented { model, .. } => format!("accelerator {model} fragmented"),
        Refusal::HostLabel { .. } => "host label".to_owned(),
        Refusal::Affinity { .. } | Refusal::AffinityOfPlaced { .. } => "affinity".to_owned(),
        Refusal::AntiAffinity { .. } | Refusal::AntiAffinityOfPlaced { .. } => {
            "anti-affinity".to_owned()
        }
        Refusal::Exclusive { .. } | Refusal::ExclusiveOfPlaced { .. } => "exclusive".to_owned(),
        Refusal::Unschedulable { .. } => "host not schedulable".to_owned(),
        Refusal::Pinned { .. } => "pinned to another host".to_owned(),
        Refusal::Excluded => "host to be left".to_owned(),
        Refusal::Pool { .. } => "storage pool".to_owned(),
    }
}

/// Whether it stays, whatever leaves.
fn is_lasting(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::Insufficient { need, capacity, .. } => need > capacity,
        Refusal::HostLabel { .. }
        | Refusal::Pool { .. }
        | Refusal::Pinned { .. }
        | Refusal::Excluded => true,
        _ => false,
    }
}

/// Why a VM found no place: what stood in its way on the hosts that came nearest to holding it.
/// Those are the hosts that could hold it were they empty, and of them those with the fewest
/// reasons; the most frequent of these reasons it is.
fn why(request: &Request, policy: Policy, cluster: &Cluster) -> String {
    let explanation = cluster.explain(request, policy);
    if explanation.choice.is_some() {
        return "no room for its whole group".to_owned();
    }
    let refused = || {
        explanation.hosts.iter().filter_map(|host| match &host.verdict {
            Verdict::Refused { reasons } => Some(reasons),
            Verdict::Possible { .. } => None,
        })
    };
    let near = || refused().filter(|reasons| !reasons.iter().any(is_lasting));
    let Some(fewest) = near().map(Vec::len).min() else {
        let labels = refused().any(|reasons| {
            let mut lasting = reasons.iter().filter(|reason| is_lasting(reason));
            lasting.all(|reason| matches!(reason, Refusal::HostLabel { .. }))
        });
        let text = if labels { "no large host has the label" } else { "larger than any host" };
        return text.to_owned();
    };
    let mut counts: Vec<(String, u64)> = Vec::new();
    for refusal in near().filter(|reasons| reasons.len() == fewest).flatten() {
        let kind = kind(refusal);
        match counts.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => counts.push((kind, 1)),
        }
    }
    // Of equals the first that was met: hosts come by id.
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts.into_iter().next().map_or_else(|| "unknown".to_owned(), |(kind, _)| kind)
}

//! From the file to a scenario that can be run: bounds, and what contradicts itself.

use std::{collections::BTreeSet, ops::Range};

use plimsoll_model::{
    Constraint, InvalidAccelerator, Label, Name, Policy, ProjectId, Resources, Rule, Strength,
};
use thiserror::Error;
use toml::Spanned;
use uuid::Uuid;

use super::{
    Arrivals, Flavor, HostShape, Lifetime, Scenario, Workload,
    file::{
        ArrivalsEntry, ConstraintEntry, FileEntry, FlavorEntry, GroupPer, HostEntry, LifetimeEntry,
        LognormalEntry, UniformEntry, WorkloadEntry,
    },
    values::{Amount, Domains, Period},
};

/// The most hosts.
pub const MOST_HOSTS: u64 = 1_000_000;
/// The most VMs that are expected to arrive.
pub const MOST_VMS: u64 = 10_000_000;
const MOST_SAMPLES: u64 = 5000;
const MOST_BATCH: u64 = 10_000;
const MOST_TOGETHER: u64 = 1000;
const MOST_BURST: u64 = 100_000;
const MOST_ENTRIES: usize = 1000;
const LONGEST_TITLE: usize = 200;
const LONGEST_DESCRIPTION: usize = 2000;
/// Leaves room for a number behind it.
const LONGEST_NAME: usize = 50;
const CENTURY: Period = Period(100 * 365 * 86_400_000);
const SECOND: Period = Period(1000);

/// What is wrong with a scenario that is well-formed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// A number or a period out of its bounds.
    #[error("`{key}` must be from {least} to {most}, not {is}")]
    Bounds {
        /// The key.
        key: &'static str,
        /// The least.
        least: String,
        /// The most.
        most: String,
        /// What it is.
        is: String,
    },
    /// A text that is empty, too long, or has characters that are none.
    #[error("`{key}` must have 1 to {most} characters, on one line")]
    Text {
        /// The key.
        key: &'static str,
        /// How many.
        most: usize,
    },
    /// Nothing where something is needed, or far too much.
    #[error("there must be 1 to {most} of `{key}`, not {is}")]
    Entries {
        /// The key.
        key: &'static str,
        /// How many.
        most: usize,
        /// How many there are.
        is: usize,
    },
    /// One name, two things.
    #[error("the {kind} `{name}` is there twice")]
    Twice {
        /// Of what kind.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A name too long to be numbered.
    #[error("`{name}` is too long: at most {LONGEST_NAME} characters")]
    LongName {
        /// The name.
        name: Name,
    },
    /// Nothing of what every host and every VM needs.
    #[error("`{key}` must be above zero")]
    Zero {
        /// The key.
        key: &'static str,
    },
    /// Parts of devices as a host's capacity.
    #[error("a host has 1 to 1024 whole devices of accelerator {model}")]
    Devices {
        /// The model.
        model: Label,
    },
    /// Accelerators that no VM can have.
    #[error("no VM can have these accelerators")]
    Accelerators(#[source] InvalidAccelerator),
    /// More or fewer than one rule.
    #[error("a constraint has exactly one of affinity, anti_affinity, exclusive, host_label")]
    Rules,
    /// No flavour can ever be drawn.
    #[error("no flavor has a weight above zero")]
    Weights,
    /// It ends before it begins.
    #[error("`{later}` ({is}) must be after `{earlier}` ({than})")]
    Order {
        /// The key that must be later.
        later: &'static str,
        /// What it is.
        is: Period,
        /// The key that must be earlier.
        earlier: &'static str,
        /// What that is.
        than: Period,
    },
    /// More hosts or VMs than can be simulated.
    #[error("the scenario has about {is} {what}; at most {most} can be simulated")]
    TooMany {
        /// Hosts or VMs.
        what: &'static str,
        /// How many.
        is: u64,
        /// How many can be.
        most: u64,
    },
}

/// A problem and where it is, in bytes of the text.
pub(super) struct Wrong {
    pub(super) span: Range<usize>,
    pub(super) problem: Problem,
}

type Checked<T> = Result<T, Wrong>;

fn wrong<T>(span: Range<usize>, problem: Problem) -> Checked<T> {
    Err(Wrong { span, problem })
}

fn bounds<T: PartialOrd + ToString>(
    key: &'static str,
    span: Range<usize>,
    is: T,
    (least, most): (T, T),
) -> Checked<T> {
    // A number that cannot be compared is out of bounds too.
    if is >= least && is <= most {
        return Ok(is);
    }
    let (least, most, is) = (least.to_string(), most.to_string(), is.to_string());
    wrong(span, Problem::Bounds { key, least, most, is })
}

fn entries(key: &'static str, span: Range<usize>, is: usize, most: usize) -> Checked<()> {
    if (1..=most).contains(&is) { Ok(()) } else { wrong(span, Problem::Entries { key, most, is }) }
}

fn text(key: &'static str, entry: &Spanned<String>, most: usize) -> Checked<String> {
    let text = entry.get_ref().trim();
    let fits = (1..=most).contains(&text.chars().count());
    if fits && !text.chars().any(char::is_control) {
        Ok(text.to_owned())
    } else {
        wrong(entry.span(), Problem::Text { key, most })
    }
}

fn short(name: &Name, span: Range<usize>) -> Checked<()> {
    if name.as_str().len() <= LONGEST_NAME {
        Ok(())
    } else {
        wrong(span, Problem::LongName { name: name.clone() })
    }
}

/// Checks a file; `text` is what it was read from, kept for the report.
pub(super) fn check(file: FileEntry, source: &str) -> Checked<Scenario> {
    let name = text("name", &file.name, LONGEST_TITLE)?;
    let description = file
        .description
        .as_ref()
        .map(|entry| text("description", entry, LONGEST_DESCRIPTION))
        .transpose()?;
    let duration =
        bounds("duration", file.duration.span(), *file.duration.get_ref(), (SECOND, CENTURY))?;
    let warm_up = match &file.warm_up {
        Some(entry) if *entry.get_ref() >= duration => {
            let (is, than) = (duration, *entry.get_ref());
            let problem = Problem::Order { later: "duration", is, earlier: "warm_up", than };
            return wrong(entry.span(), problem);
        }
        Some(entry) => *entry.get_ref(),
        None => Period(0),
    };
    let sample_every = match &file.sample_every {
        Some(entry) => {
            let least = Period(duration.0.div_ceil(MOST_SAMPLES)).max(SECOND);
            bounds("sample_every", entry.span(), *entry.get_ref(), (least, duration))?
        }
        None => usual_sampling(duration),
    };
    let policies = policies(&file.policies)?;
    let cluster_span = file.cluster.span();
    let shapes = shapes(file.cluster.into_inner().hosts, cluster_span)?;
    let workloads = workloads(file.workloads, duration)?;
    Ok(Scenario {
        name,
        description,
        seed: file.seed,
        duration,
        warm_up,
        sample_every,
        policies,
        shapes,
        workloads,
        source: source.to_owned(),
    })
}

/// The shortest round period that makes no more samples than a screen can show.
fn usual_sampling(duration: Period) -> Period {
    const SECONDS: [u64; 15] =
        [1, 5, 10, 30, 60, 300, 600, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 604_800];
    let fits = |period: &Period| duration.0 / period.0 <= 340;
    SECONDS
        .into_iter()
        .map(|seconds| Period(seconds * 1000))
        .find(fits)
        .unwrap_or(Period(duration.0.div_ceil(340)))
}

fn policies(entry: &Spanned<Vec<Spanned<Policy>>>) -> Checked<Vec<Policy>> {
    let list = entry.get_ref();
    entries("policies", entry.span(), list.len(), Policy::ALL.len())?;
    let mut policies = Vec::new();
    for policy in list {
        if policies.contains(policy.get_ref()) {
            let name = policy.get_ref().to_string();
            return wrong(policy.span(), Problem::Twice { kind: "policy", name });
        }
        policies.push(*policy.get_ref());
    }
    Ok(policies)
}

fn shapes(hosts: Vec<Spanned<HostEntry>>, cluster: Range<usize>) -> Checked<Vec<HostShape>> {
    entries("[[cluster.host]]", cluster.clone(), hosts.len(), MOST_ENTRIES)?;
    let mut names = BTreeSet::new();
    let mut shapes = Vec::new();
    for host in hosts {
        let span = host.span();
        let HostEntry { name, count, capacity, racks, zones, labels } = host.into_inner();
        short(&name, span.clone())?;
        if !names.insert(name.clone()) {
            return wrong(span, Problem::Twice { kind: "host shape", name: name.to_string() });
        }
        let count = bounds("count", count.span(), *count.get_ref(), (1, MOST_HOSTS))?;
        let at = capacity.span();
        let capacity = capacity.into_inner();
        usable(&capacity, at)?;
        shapes.push(HostShape {
            name,
            count,
            capacity,
            racks: domains("racks", "rack", racks)?,
            zones: domains("zones", "zone", zones)?,
            labels,
        });
    }
    let is = shapes.iter().map(|shape| shape.count).sum();
    if is > MOST_HOSTS {
        return wrong(cluster, Problem::TooMany { what: "hosts", is, most: MOST_HOSTS });
    }
    Ok(shapes)
}

fn usable(capacity: &Resources, span: Range<usize>) -> Checked<()> {
    if capacity.cpu.0 == 0 {
        return wrong(span, Problem::Zero { key: "cpu" });
    }
    if capacity.memory.0 == 0 {
        return wrong(span, Problem::Zero { key: "memory" });
    }
    for (model, amount) in &capacity.accelerators.0 {
        if *amount == 0 || !amount.is_multiple_of(1000) || *amount > 1_024_000 {
            return wrong(span, Problem::Devices { model: model.clone() });
        }
    }
    Ok(())
}

fn domains(
    key: &'static str,
    prefix: &str,
    entry: Option<Spanned<Domains>>,
) -> Checked<Vec<Label>> {
    let Some(entry) = entry else { return Ok(Vec::new()) };
    let span = entry.span();
    match entry.into_inner() {
        Domains::Names(names) => {
            entries(key, span, names.len(), MOST_ENTRIES)?;
            Ok(names)
        }
        Domains::Count(count) => {
            bounds(key, span, count, (1, 10_000))?;
            let label = |number: u32| {
                format!("{prefix}-{number}").parse().expect("a short word and a number are a label")
            };
            Ok((1..=count).map(label).collect())
        }
    }
}

fn workloads(list: Vec<Spanned<WorkloadEntry>>, duration: Period) -> Checked<Vec<Workload>> {
    entries("[[workload]]", 0..0, list.len(), MOST_ENTRIES)?;
    let mut names = BTreeSet::new();
    let mut projects: Vec<Name> = Vec::new();
    let mut workloads: Vec<Workload> = Vec::new();
    let mut expected = 0.0;
    for entry in list {
        let span = entry.span();
        let entry = entry.into_inner();
        if !names.insert(entry.name.clone()) {
            let name = entry.name.to_string();
            return wrong(span, Problem::Twice { kind: "workload", name });
        }
        let project = entry.project.clone().unwrap_or_else(|| entry.name.clone());
        let number = projects.iter().position(|known| *known == project).unwrap_or_else(|| {
            projects.push(project);
            projects.len() - 1
        });
        let project = ProjectId(Uuid::from_u128(1 + number as u128));
        let workload = workload(entry, &span, project, duration)?;
        expected += workload.expected_vms();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "casts of floats saturate; it is a text for people"
        )]
        let is = expected as u64;
        if is > MOST_VMS {
            return wrong(span, Problem::TooMany { what: "VMs", is, most: MOST_VMS });
        }
        workloads.push(workload);
    }
    Ok(workloads)
}

fn workload(
    entry: WorkloadEntry,
    span: &Range<usize>,
    project: ProjectId,
    duration: Period,
) -> Checked<Workload> {
    let start = entry.start.unwrap_or_default();
    let end = match &entry.end {
        Some(end) if *end.get_ref() <= start => {
            let (is, than) = (*end.get_ref(), start);
            let problem = Problem::Order { later: "end", is, earlier: "start", than };
            return wrong(end.span(), problem);
        }
        Some(end) => (*end.get_ref()).min(duration),
        None => duration,
    };
    let batch = match entry.batch {
        None => Amount::Fixed(1),
        Some(batch) => {
            let most = if entry.all_or_nothing { MOST_TOGETHER } else { MOST_BATCH };
            within("batch", &batch, (1, most))?
        }
    };
    entries("[[workload.flavor]]", span.clone(), entry.flavors.len(), MOST_ENTRIES)?;
    let mut names = BTreeSet::new();
    let mut flavors = Vec::new();
    for entry in entry.flavors {
        let at = entry.span();
        let flavor = flavor(entry.into_inner(), &at)?;
        if !names.insert(flavor.name.clone()) {
            let name = flavor.name.to_string();
            return wrong(at, Problem::Twice { kind: "flavor", name });
        }
        flavors.push(flavor);
    }
    if flavors.iter().all(|flavor| flavor.weight <= 0.0) {
        return wrong(span.clone(), Problem::Weights);
    }
    if entry.group_per == GroupPer::Batch {
        for group in &entry.groups {
            short(group, span.clone())?;
        }
    }
    if entry.groups.len() > 20 {
        let is = entry.groups.len();
        return wrong(span.clone(), Problem::Entries { key: "groups", most: 20, is });
    }
    if entry.constraints.len() > 20 {
        let is = entry.constraints.len();
        return wrong(span.clone(), Problem::Entries { key: "constraints", most: 20, is });
    }
    let constraints = entry.constraints.into_iter().map(constraint).collect::<Checked<_>>()?;
    Ok(Workload {
        application: entry.application.unwrap_or_else(|| entry.name.clone()),
        name: entry.name,
        project,
        arrivals: arrivals(entry.arrivals)?,
        start,
        end,
        batch,
        all_or_nothing: entry.all_or_nothing,
        lifetime: lifetime(entry.lifetime)?,
        flavors,
        groups: entry.groups,
        group_per: entry.group_per,
        constraints,
    })
}

fn within(
    key: &'static str,
    entry: &Spanned<Amount<u64>>,
    range: (u64, u64),
) -> Checked<Amount<u64>> {
    let amount = *entry.get_ref();
    let (from, to) = amount.ends();
    bounds(key, entry.span(), from, range)?;
    bounds(key, entry.span(), to, range)?;
    Ok(amount)
}

fn arrivals(entry: Spanned<ArrivalsEntry>) -> Checked<Arrivals> {
    let span = entry.span();
    Ok(match entry.into_inner() {
        ArrivalsEntry::Poisson(rate) => Arrivals::Poisson(rate),
        ArrivalsEntry::Constant(rate) => Arrivals::Constant(rate),
        ArrivalsEntry::Bursts(bursts) => {
            let (from, to) = bursts.size.ends();
            bounds("size", span.clone(), from, (1, MOST_BURST))?;
            bounds("size", span.clone(), to, (1, MOST_BURST))?;
            bounds("over", span, bursts.over, (Period(0), CENTURY))?;
            Arrivals::Bursts { rate: bursts.rate, size: bursts.size, over: bursts.over }
        }
        ArrivalsEntry::Diurnal(diurnal) => {
            bounds("swing", span.clone(), diurnal.swing, (0.0, 1.0))?;
            bounds("peak", span.clone(), diurnal.peak, (Period(0), CENTURY))?;
            bounds("period", span, diurnal.period, (Period(60_000), CENTURY))?;
            Arrivals::Diurnal {
                rate: diurnal.rate,
                swing: diurnal.swing,
                peak: diurnal.peak,
                period: diurnal.period,
            }
        }
        ArrivalsEntry::Once(count) => Arrivals::Once(bounds("once", span, count, (1, MOST_VMS))?),
    })
}

fn lifetime(entry: Spanned<LifetimeEntry>) -> Checked<Lifetime> {
    let span = entry.span();
    let positive =
        |key: &'static str, period: Period| bounds(key, span.clone(), period, (Period(1), CENTURY));
    Ok(match entry.into_inner() {
        LifetimeEntry::Forever => Lifetime::Forever,
        LifetimeEntry::Fixed(period) => Lifetime::Fixed(positive("fixed", period)?),
        LifetimeEntry::Exponential(mean) => Lifetime::Exponential(positive("exponential", mean)?),
        LifetimeEntry::Lognormal(LognormalEntry { median, sigma }) => {
            bounds("sigma", span.clone(), sigma, (0.0, 10.0))?;
            Lifetime::Lognormal { median: positive("median", median)?, sigma }
        }
        LifetimeEntry::Uniform(UniformEntry { from, to }) => {
            positive("to", to)?;
            bounds("from", span, from, (Period(0), to))?;
            Lifetime::Uniform { from, to }
        }
    })
}

fn flavor(entry: FlavorEntry, span: &Range<usize>) -> Checked<Flavor> {
    let drawn = entry.resources;
    let elements = [
        drawn.cpu.map(|x| x.0),
        drawn.memory.map(|x| x.0),
        drawn.disk.map(|x| x.0),
        drawn.disk_bandwidth.map(|x| x.0),
        drawn.disk_iops.map(|x| x.0),
        drawn.network.map(|x| x.0),
    ];
    for (key, element) in ["cpu", "memory"].into_iter().zip(&elements) {
        if element.ends().0 == 0 {
            return wrong(span.clone(), Problem::Zero { key });
        }
    }
    if let Err(source) = drawn.accelerators.check_request() {
        return wrong(span.clone(), Problem::Accelerators(source));
    }
    let weight =
        bounds("weight", span.clone(), entry.weight.unwrap_or(1.0), (0.0, 1_000_000_000.0))?;
    Ok(Flavor { name: entry.name, weight, elements, accelerators: drawn.accelerators })
}

fn constraint(entry: Spanned<ConstraintEntry>) -> Checked<Constraint> {
    let span = entry.span();
    let entry = entry.into_inner();
    let strength: Strength = entry.strength;
    let rules = [
        entry.affinity.map(|rule| Rule::Affinity { group: rule.group, scope: rule.scope }),
        entry.anti_affinity.map(|rule| Rule::AntiAffinity { group: rule.group, scope: rule.scope }),
        entry.exclusive.map(|rule| Rule::Exclusive { against: rule.against }),
        entry.host_label.map(|rule| Rule::HostLabel { key: rule.key, values: rule.values }),
    ];
    let mut rules = rules.into_iter().flatten();
    match (rules.next(), rules.next()) {
        (Some(Rule::HostLabel { values, .. }), None) if values.is_empty() || values.len() > 100 => {
            wrong(span, Problem::Entries { key: "values", most: 100, is: values.len() })
        }
        (Some(rule), None) => Ok(Constraint { strength, rule }),
        _ => wrong(span, Problem::Rules),
    }
}

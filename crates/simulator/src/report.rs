//! What a simulated scenario came to: for programs as JSON, for people as a table and as one page
//! of HTML with charts.
//!
//! Everything but [`Measured`] follows from the scenario and its seed: the same give the same bytes.

mod html;
mod table;

use plimsoll_model::{Element, Policy, Resources};
use serde::Serialize;

/// A whole report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// What was simulated.
    pub scenario: ScenarioInfo,
    /// The elements that are watched; lists named `committed_percent` and `mean_percent` are in
    /// this order.
    pub elements: Vec<ElementInfo>,
    /// Against what fragmentation is measured.
    pub references: References,
    /// When samples were taken, in seconds after the start; every series is in this order.
    pub at_seconds: Vec<f64>,
    /// What each policy came to.
    pub policies: Vec<PolicyReport>,
    /// What a reader must know to judge the numbers.
    pub notes: Vec<String>,
}

/// What was simulated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScenarioInfo {
    /// What it is called.
    pub name: String,
    /// What it is about.
    pub description: Option<String>,
    /// What the random numbers began with.
    pub seed: u64,
    /// How much time was simulated.
    pub duration_seconds: u64,
    /// How much of the beginning the totals leave out.
    pub warm_up_seconds: u64,
    /// How many hosts there are.
    pub hosts: u64,
    /// Of how many shapes.
    pub host_shapes: usize,
    /// How many workloads there are.
    pub workloads: usize,
    /// The file's text.
    pub source: String,
}

/// An element of the resource vector.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ElementInfo {
    /// Its key in scenario files, such as `cpu` or `accelerators.a100`.
    pub key: String,
    /// What people call it.
    pub title: String,
    /// What the cluster has of it, as people write it.
    pub capacity: String,
}

impl ElementInfo {
    /// An element of which the cluster has so much, in its base unit.
    #[must_use]
    pub fn new(element: &Element, capacity: u128) -> Self {
        let (key, title) = match element {
            Element::Cpu => ("cpu".to_owned(), "CPU".to_owned()),
            Element::Memory => ("memory".to_owned(), "Memory".to_owned()),
            Element::Disk => ("disk".to_owned(), "Disk space".to_owned()),
            Element::DiskBandwidth => ("disk_bandwidth".to_owned(), "Disk bandwidth".to_owned()),
            Element::DiskIops => ("disk_iops".to_owned(), "Disk operations".to_owned()),
            Element::Network => ("network".to_owned(), "Network bandwidth".to_owned()),
            Element::Accelerator(model) => {
                (format!("accelerators.{model}"), format!("Accelerators {model}"))
            }
        };
        let capacity = element.print(u64::try_from(capacity).unwrap_or(u64::MAX));
        Self { key, title, capacity }
    }
}

/// The flavours against which fragmentation is measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct References {
    /// The flavour of which most VMs are expected; of a range its middle.
    pub typical: Reference,
    /// The largest flavour; of a range its upper end.
    pub largest: Reference,
}

/// A flavour of a workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Reference {
    /// The workload.
    pub workload: String,
    /// The flavour.
    pub flavor: String,
    /// What it asks for.
    pub resources: Resources,
}

/// What one policy came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyReport {
    /// The policy.
    pub policy: Policy,
    /// Sums and means since the warm-up.
    #[serde(flatten)]
    pub totals: Totals,
    /// Why VMs were rejected since the warm-up, most frequent first.
    pub rejected_for: Vec<Reason>,
    /// What was seen over time.
    pub series: Series,
    /// What depends on the machine.
    pub measured: Measured,
}

/// Sums and means since the warm-up.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Totals {
    /// VMs that asked for a place.
    pub arrived: u64,
    /// VMs that found one.
    pub placed: u64,
    /// VMs that found none.
    pub rejected: u64,
    /// Of those that asked.
    pub rejected_percent: f64,
    /// VMs that left, also of those that came before.
    pub departed: u64,
    /// VMs that found a place during the warm-up.
    pub placed_in_warm_up: u64,
    /// VMs that found none during the warm-up.
    pub rejected_in_warm_up: u64,
    /// The most hosts that had a VM at the same time.
    pub peak_hosts: u32,
    /// How many had one in the mean over time.
    pub mean_hosts: f64,
    /// The most VMs at the same time.
    pub peak_vms: u64,
    /// CPU committed, of all CPU, in the mean over time.
    pub mean_cpu_percent: f64,
    /// The same of memory.
    pub mean_memory_percent: f64,
    /// The same of every watched element.
    pub mean_percent: Vec<f64>,
    /// Free capacity on hosts without room for one more VM of the typical flavour, in the mean over
    /// the samples.
    pub mean_fragmented_percent: f64,
}

/// A reason and how many VMs were rejected for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// What stood in the way on the hosts that came nearest.
    pub reason: String,
    /// How many VMs.
    pub vms: u64,
}

/// What was seen over time; each list has a value for each sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Series {
    /// For each watched element, how much is committed of what the cluster has.
    pub committed_percent: Vec<Vec<f64>>,
    /// Hosts that have a VM.
    pub hosts_in_use: Vec<u32>,
    /// VMs that have a place.
    pub vms: Vec<u64>,
    /// VMs rejected since the warm-up.
    pub rejected: Vec<u64>,
    /// Free capacity that is of no use.
    pub fragmented_percent: Fragmented,
}

impl Series {
    /// Nothing yet, of so many elements.
    #[must_use]
    pub fn new(elements: usize) -> Self {
        Self { committed_percent: vec![Vec::new(); elements], ..Self::default() }
    }
}

/// How much of what is free lies on hosts without room for one more VM of a flavour.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Fragmented {
    /// Of the flavour that comes most often.
    pub typical: Vec<f64>,
    /// Of the largest one.
    pub largest: Vec<f64>,
}

/// What depends on the machine and on what else it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Measured {
    /// Time spent in deciding and in keeping the cluster's books, in seconds.
    pub seconds: f64,
    /// VMs placed or rejected in a second of it.
    pub decisions_per_second: f64,
}

/// Rounded to a thousandth, so that reports are short and the last bits of floats are not in them.
#[must_use]
pub fn percent(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

impl Report {
    /// The same without what depends on the machine.
    #[must_use]
    pub fn without_measurements(mut self) -> Self {
        for policy in &mut self.policies {
            policy.measured = Measured::default();
        }
        self
    }

    /// What was simulated, in one sentence.
    #[must_use]
    pub fn summary(&self) -> String {
        let ScenarioInfo {
            duration_seconds,
            warm_up_seconds,
            hosts,
            host_shapes,
            workloads,
            seed,
            ..
        } = &self.scenario;
        let arrived = self.policies.first().map_or(0, |policy| {
            let totals = &policy.totals;
            totals.arrived + totals.placed_in_warm_up + totals.rejected_in_warm_up
        });
        let plural = |count: u64, one: &str| {
            let s = if count == 1 { "" } else { "s" };
            format!("{} {one}{s}", thousands(count))
        };
        let policies = match self.policies.len() {
            1 => "one policy".to_owned(),
            count => format!("{count} policies side by side"),
        };
        let warm_up = match warm_up_seconds {
            0 => String::new(),
            seconds => format!("; the first {} warm up", period(*seconds)),
        };
        format!(
            "{} of {} ask for a place on {} of {} over {}; {policies}, seed {seed}{warm_up}.",
            plural(arrived, "VM"),
            plural(*workloads as u64, "workload"),
            plural(*hosts, "host"),
            plural(*host_shapes as u64, "shape"),
            period(*duration_seconds),
        )
    }

    /// Which policy did best, in one sentence: fewest rejected, then fewest hosts.
    #[must_use]
    pub fn verdict(&self) -> Option<String> {
        if self.policies.len() < 2 {
            return None;
        }
        let key = |policy: &&PolicyReport| (policy.totals.rejected, policy.totals.peak_hosts);
        let best = self.policies.iter().min_by_key(key)?;
        let worst = self.policies.iter().max_by_key(key)?;
        let equal: Vec<&str> = self
            .policies
            .iter()
            .filter(|policy| key(policy) == key(&best))
            .map(|policy| policy.policy.as_str())
            .collect();
        if equal.len() == self.policies.len() {
            return Some(
                "All policies rejected equally many VMs on equally many hosts.".to_owned(),
            );
        }
        let names = equal.join(" and ");
        let (least, most) = (&best.totals, &worst.totals);
        Some(if least.rejected == most.rejected {
            format!(
                "All rejected equally many; {names} needed fewest hosts: {} at the peak, {} with {}.",
                thousands(u64::from(least.peak_hosts)),
                thousands(u64::from(most.peak_hosts)),
                worst.policy
            )
        } else {
            format!(
                "{names} rejected fewest: {:.2} % of the VMs, {:.2} % with {}.",
                least.rejected_percent, most.rejected_percent, worst.policy
            )
        })
    }
}

/// A period in words: `14 days`, `2 days 12 hours`.
pub(crate) fn period(seconds: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1)];
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (unit, size) in UNITS {
        match rest / size {
            0 => {}
            1 => parts.push(format!("1 {unit}")),
            count => parts.push(format!("{} {unit}s", thousands(count))),
        }
        rest %= size;
    }
    if parts.is_empty() { "no time".to_owned() } else { parts.join(" ") }
}

/// A number with its thousands apart.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

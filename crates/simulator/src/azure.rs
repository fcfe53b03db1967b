//! VMs of Microsoft Azure, one tenant's batch after the other, come and go on hosts that are all
//! alike: how many hosts a policy needs for all, how full they are, and how many VMs it rejects
//! where there are fewer.
//!
//! The cluster is empty when the trace begins. VMs of a batch are placed one by one, in the trace's
//! order (the `ffd` policies sort each batch); one that fits nowhere is dropped. The run ends one
//! interval after the trace's last line; VMs that ran on when the trace was cut never leave.
//! Policies that judge by what is usually asked for are told how often the trace asks for which
//! flavour.

use std::{collections::BTreeMap, fmt, ops::ControlFlow, str::FromStr};

use plimsoll_model::{Bytes, HostId, MilliCores, Policy, Resources};
use plimsoll_placement::{Choice, Cluster, Placed, Request, TypicalRequest, Workload};
use serde::Serialize;
use thiserror::Error;

use crate::{
    cluster,
    engine::{self, Arrival, EventQueue, Newcomer, Observer, RunError, SimTime, Totals},
    readers::{
        ReadError,
        azure::{Asked, Flavor, Lifetime, Moment},
    },
};

/// The most hosts of an experiment.
pub const MAX_HOSTS: u32 = 1_000_000;

/// Hosts that are all alike: `64c256gx1000` is 1,000 of 64 cores and 256 GiB, `64c256g` as many as
/// are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hosts {
    /// Cores of each.
    pub cpu: MilliCores,
    /// Memory of each.
    pub memory: Bytes,
    /// How many; none for as many as are needed.
    pub count: Option<u32>,
}

/// A text that describes no hosts.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{text}` describes no hosts: write cores and GiB such as `64c256g`, and for a number of hosts \
     from 1 to {MAX_HOSTS} `64c256gx1000`"
)]
pub struct InvalidHosts {
    text: String,
}

impl FromStr for Hosts {
    type Err = InvalidHosts;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (shape, count) = match text.split_once('x') {
                Some((shape, count)) => (shape, Some(count.trim().parse().ok()?)),
                None => (text, None),
            };
            let (cpu, memory) = shape.trim().strip_suffix('g')?.split_once('c')?;
            let hosts = Self {
                cpu: amount(cpu, "")?.parse().ok()?,
                memory: amount(memory, "GiB")?.parse().ok()?,
                count,
            };
            let some = hosts.cpu.0 > 0 && hosts.memory.0 > 0;
            (some && count.is_none_or(|count| (1..=MAX_HOSTS).contains(&count))).then_some(hosts)
        };
        parse().ok_or_else(|| InvalidHosts { text: text.chars().take(64).collect() })
    }
}

/// Digits with a unit behind them.
fn amount(digits: &str, unit: &str) -> Option<String> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    (plain && digits.len() <= 12).then(|| format!("{digits}{unit}"))
}

impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cores and {}", self.cpu, self.memory)
    }
}

/// What a policy made of the trace. The names of these fields are those of the JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The policy.
    pub policy: Policy,
    /// VMs that were placed.
    pub placed: u64,
    /// VMs that fitted nowhere.
    pub rejected: u64,
    /// The most hosts that had a VM at the same time.
    pub peak_hosts: u32,
    /// Cores of placed VMs in % of those of all hosts, the mean over time.
    pub mean_cpu_percent: f64,
    /// The same of memory.
    pub mean_memory_percent: f64,
    /// Placed VMs by the time that was spent in deciding (those in vain too), and in stating who
    /// came and who left.
    pub placements_per_second: f64,
    /// How many hosts there were.
    #[serde(skip)]
    pub hosts: u32,
}

/// Why an experiment cannot be made.
#[derive(Debug, Error)]
pub enum AzureError {
    /// The trace could not be read.
    #[error("cannot read the trace")]
    Read(#[source] ReadError),
    /// The trace has no VMs.
    #[error("there is no VM in the trace")]
    Empty,
    /// Not even an empty host can hold a VM.
    #[error(
        "no number of hosts is enough: a VM of {cpu} cores and {memory} is larger than a host of {hosts}"
    )]
    TooLarge {
        /// The VM's cores.
        cpu: MilliCores,
        /// Its memory.
        memory: Bytes,
        /// A host.
        hosts: Hosts,
    },
    /// More hosts would be needed than there can be.
    #[error("{policy} needs more than {MAX_HOSTS} hosts for all VMs")]
    TooMany {
        /// The policy.
        policy: Policy,
    },
    /// The engine found a contradiction.
    #[error("cannot run the trace")]
    Run(#[source] RunError),
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The policy that is tried.
    pub policy: Policy,
    /// With so many hosts.
    pub hosts: u32,
    /// VMs that have come.
    pub done: u64,
    /// VMs that will come.
    pub of: u64,
}

/// A whole trace, read once and run as often as is wanted.
#[derive(Clone, Debug)]
pub struct Trace {
    moments: Vec<Moment>,
    vms: u64,
    /// The most cores and the most memory that running VMs have at the same time.
    peak: [u128; 2],
    /// What is asked for, and how often.
    workload: Workload,
}

/// The trace's interval: when it ends after its last line.
const INTERVAL: u64 = 300;

impl Trace {
    /// Reads a trace.
    ///
    /// # Errors
    /// The first thing that is wrong, or that there are no VMs.
    pub fn read(
        moments: impl IntoIterator<Item = Result<Moment, ReadError>>,
    ) -> Result<Self, AzureError> {
        let moments: Vec<_> =
            moments.into_iter().collect::<Result<_, _>>().map_err(AzureError::Read)?;
        let mut trace = Self { moments, vms: 0, peak: [0; 2], workload: Workload::default() };
        let mut leaving = EventQueue::new();
        let mut running = [0_u128; 2];
        for moment in &trace.moments {
            let now = SimTime::seconds(moment.at_seconds);
            while let Some((_, flavor)) = leaving.pop_until(now) {
                let flavor: Flavor = flavor;
                running[0] -= u128::from(flavor.cpu.0);
                running[1] -= u128::from(flavor.memory.0);
            }
            for asked in moment.batches.iter().flatten() {
                trace.vms += 1;
                running[0] += u128::from(asked.flavor.cpu.0);
                running[1] += u128::from(asked.flavor.memory.0);
                if let Lifetime::Seconds(seconds) = asked.lifetime {
                    leaving.push(now.after(seconds * 1000), asked.flavor);
                }
            }
            trace.peak = [trace.peak[0].max(running[0]), trace.peak[1].max(running[1])];
        }
        trace.workload = trace.usual();
        if trace.vms == 0 { Err(AzureError::Empty) } else { Ok(trace) }
    }

    /// How many VMs are asked for in all.
    #[must_use]
    pub const fn vms(&self) -> u64 {
        self.vms
    }

    /// What is asked for, and how often.
    fn usual(&self) -> Workload {
        let mut flavors = BTreeMap::new();
        for asked in self.moments.iter().flat_map(|moment| moment.batches.iter().flatten()) {
            let Flavor { cpu, memory } = asked.flavor;
            *flavors.entry((cpu, memory)).or_insert(0) += 1;
        }
        Workload::new(flavors.into_iter().map(|((cpu, memory), weight)| TypicalRequest {
            demand: Resources { cpu, memory, ..Resources::default() },
            accelerator: None,
            weight,
        }))
    }

    /// The VMs of a flavour that fits into no host.
    fn too_large(&self, hosts: &Hosts) -> Option<Flavor> {
        let flavors = self.moments.iter().flat_map(|moment| moment.batches.iter().flatten());
        flavors
            .map(|asked| asked.flavor)
            .find(|flavor| flavor.cpu > hosts.cpu || flavor.memory > hosts.memory)
    }

    fn arrivals(&self) -> impl Iterator<Item = Arrival> {
        let start = self.moments.first().map_or(0, |moment| moment.at_seconds);
        let mut number = 0;
        self.moments
            .iter()
            .flat_map(|moment| moment.batches.iter().map(move |batch| (moment.at_seconds, batch)))
            .map(move |(at, batch)| Arrival {
                at: SimTime::seconds(at - start),
                vms: batch
                    .iter()
                    .map(|asked| {
                        number += 1;
                        newcomer(number, asked)
                    })
                    .collect(),
                all_or_nothing: false,
            })
    }

    fn horizon(&self) -> SimTime {
        let (first, last) = match (self.moments.first(), self.moments.last()) {
            (Some(first), Some(last)) => (first.at_seconds, last.at_seconds),
            _ => (0, 0),
        };
        SimTime::seconds(last - first + INTERVAL)
    }

    /// Tries a policy. Without a number of hosts it is the least with which none is rejected:
    /// starting from what the cores and the memory alone need, more are tried until it is enough,
    /// then the gap is halved until it is closed.
    ///
    /// # Errors
    /// No number of hosts is enough.
    pub fn run(
        &self,
        policy: Policy,
        hosts: &Hosts,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Outcome, AzureError> {
        if let Some(count) = hosts.count {
            return self.attempt(policy, hosts, count, false, progress);
        }
        if let Some(Flavor { cpu, memory }) = self.too_large(hosts) {
            return Err(AzureError::TooLarge { cpu, memory, hosts: *hosts });
        }
        let [cpu, memory] = self.peak;
        let least = cpu.div_ceil(hosts.cpu.0.into()).max(memory.div_ceil(hosts.memory.0.into()));
        let too_many = || AzureError::TooMany { policy };
        let mut too_few = u32::try_from(least.max(1) - 1).map_err(|_| too_many())?;
        let mut step = too_few / 100 + 1;
        let mut enough = loop {
            let count = too_few.saturating_add(step);
            if count > MAX_HOSTS {
                return Err(too_many());
            }
            let outcome = self.attempt(policy, hosts, count, true, progress)?;
            if outcome.rejected == 0 {
                break outcome;
            }
            too_few = count;
            step = step.saturating_mul(2);
        };
        while enough.hosts - too_few > 1 {
            let count = too_few + (enough.hosts - too_few) / 2;
            let outcome = self.attempt(policy, hosts, count, true, progress)?;
            if outcome.rejected == 0 { enough = outcome } else { too_few = count }
        }
        Ok(enough)
    }

    fn attempt(
        &self,
        policy: Policy,
        hosts: &Hosts,
        count: u32,
        for_all: bool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Outcome, AzureError> {
        let mut cluster = Cluster::new();
        let capacity = Resources { cpu: hosts.cpu, memory: hosts.memory, ..Resources::default() };
        for number in 1..=count {
            cluster.upsert_host(cluster::host(number, capacity.clone()));
        }
        cluster.set_workload(Some(self.workload.clone()));
        let mut watch = Watch {
            on_host: vec![0; count as usize + 1],
            in_use: 0,
            peak: 0,
            committed: [0; 2],
            at: SimTime::default(),
            sums: [0; 2],
            for_all,
            progress,
            state: Progress { policy, hosts: count, done: 0, of: self.vms },
        };
        let horizon = self.horizon();
        let totals = engine::run(&mut cluster, policy, self.arrivals(), Some(horizon), &mut watch)
            .map_err(AzureError::Run)?;
        let [cpu, memory] = watch.sums;
        let percent = |sum, capacity| {
            let whole = float(u128::from(capacity)) * f64::from(count) * float(horizon.0.into());
            100.0 * float(sum) / whole
        };
        Ok(Outcome {
            policy,
            placed: totals.placed,
            rejected: totals.rejected,
            peak_hosts: watch.peak,
            mean_cpu_percent: percent(cpu, hosts.cpu.0),
            mean_memory_percent: percent(memory, hosts.memory.0),
            placements_per_second: per_second(&totals),
            hosts: count,
        })
    }
}

/// The most VMs between two reports of progress.
const REPORTED: u64 = 1024;

fn newcomer(number: u64, asked: &Asked) -> Newcomer {
    let demand =
        Resources { cpu: asked.flavor.cpu, memory: asked.flavor.memory, ..Resources::default() };
    let lifetime_ms = match asked.lifetime {
        Lifetime::Seconds(seconds) => Some(seconds * 1000),
        Lifetime::Running => None,
    };
    Newcomer { request: cluster::request(number, demand), lifetime_ms }
}

#[expect(clippy::cast_precision_loss, reason = "shares are rounded anyway")]
const fn float(amount: u128) -> f64 {
    amount as f64
}

fn per_second(totals: &Totals) -> f64 {
    let seconds = totals.deciding.as_secs_f64();
    if seconds > 0.0 { float(totals.placed.into()) / seconds } else { 0.0 }
}

/// Adds up what the outcome says.
struct Watch<'a> {
    /// How many VMs each host has, by its number.
    on_host: Vec<u32>,
    in_use: u32,
    peak: u32,
    /// Thousandths of cores and bytes of memory that are placed now.
    committed: [u128; 2],
    at: SimTime,
    /// The same, times milliseconds.
    sums: [u128; 2],
    /// Whether one rejection is enough to know that there are too few hosts.
    for_all: bool,
    progress: &'a mut dyn FnMut(Progress),
    state: Progress,
}

impl Watch<'_> {
    fn arrived(&mut self) {
        self.state.done += 1;
        if self.state.done.is_multiple_of(REPORTED) || self.state.done == self.state.of {
            (self.progress)(self.state);
        }
    }

    fn vms_on(&mut self, host: HostId) -> &mut u32 {
        &mut self.on_host[host.0 as usize]
    }
}

impl Observer for Watch<'_> {
    fn advanced(&mut self, to: SimTime, _: &Cluster) -> ControlFlow<()> {
        let passed = u128::from(to.0 - self.at.0);
        for (sum, committed) in self.sums.iter_mut().zip(self.committed) {
            *sum += committed * passed;
        }
        self.at = to;
        ControlFlow::Continue(())
    }

    fn placed(&mut self, _: SimTime, request: &Request, choice: &Choice) -> ControlFlow<()> {
        let vms = self.vms_on(choice.host);
        *vms += 1;
        if *vms == 1 {
            self.in_use += 1;
            self.peak = self.peak.max(self.in_use);
        }
        self.committed[0] += u128::from(request.demand.cpu.0);
        self.committed[1] += u128::from(request.demand.memory.0);
        self.arrived();
        ControlFlow::Continue(())
    }

    fn rejected(&mut self, _: SimTime, _: &Request, _: &Cluster) -> ControlFlow<()> {
        self.arrived();
        if self.for_all { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn departed(&mut self, _: SimTime, placed: &Placed) -> ControlFlow<()> {
        let vms = self.vms_on(placed.host);
        *vms -= 1;
        if *vms == 0 {
            self.in_use -= 1;
        }
        self.committed[0] -= u128::from(placed.request.demand.cpu.0);
        self.committed[1] -= u128::from(placed.request.demand.memory.0);
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        data,
        readers::{Limits, azure},
    };

    fn trace() -> Option<Trace> {
        let folder = data::folder("azure")?;
        let limits = Limits::default();
        let flavors = azure::flavors(&folder.join("flav_map.txt"), &limits).unwrap();
        let intervals = azure::intervals(&folder.join("v1.interval_map.txt.xz"), &limits).unwrap();
        let requests = folder.join("v1.dev.txt.xz");
        let lifetimes = folder.join("v1.dev.c2100000.txt.xz");
        let moments = azure::requests(&requests, &lifetimes, flavors, intervals, &limits).unwrap();
        Some(Trace::read(moments).unwrap())
    }

    #[test]
    fn the_published_part_is_read_whole() {
        let Some(trace) = trace() else { return };
        assert_eq!(trace.vms(), 259_159);
        let all = || trace.moments.iter().flat_map(|moment| moment.batches.iter().flatten());
        assert_eq!(all().map(|asked| asked.flavor.cpu.0).sum::<u64>(), 557_907_000);
        let mib: u64 = all().map(|asked| asked.flavor.memory.0 >> 20).sum();
        assert_eq!((mib + 512) / 1024, 1_034_614);
    }

    #[test]
    fn hosts_are_written_as_cores_and_gib() {
        let hosts: Hosts = "64c256gx1000".parse().unwrap();
        assert_eq!(hosts.cpu, MilliCores::cores(64));
        assert_eq!((hosts.memory, hosts.count), (Bytes::gib(256), Some(1000)));
        assert_eq!("64c256g x1000".parse(), Ok(hosts));
        assert_eq!("64c256g".parse::<Hosts>().unwrap().count, None);
        for text in [
            "",
            "64c",
            "256g",
            "c g",
            "0c1g",
            "1c0g",
            "1c1gx0",
            "1c1gx",
            "1c1gx2000000",
            "-1c1g",
            "1c1gx1x1",
        ] {
            assert!(text.parse::<Hosts>().is_err(), "{text}");
        }
    }

    /// A VM of half a host every 300 s for 600 s: three at a time.
    fn small() -> Trace {
        let flavor = Flavor { cpu: MilliCores::cores(2), memory: Bytes::gib(1) };
        let asked = Asked { flavor, lifetime: Lifetime::Seconds(750) };
        let moment = |at_seconds| Ok(Moment { at_seconds, batches: vec![vec![asked]] });
        Trace::read((0..10).map(|n| moment(n * 300))).unwrap()
    }

    #[test]
    fn as_many_hosts_as_are_needed_are_found() {
        let trace = small();
        for policy in Policy::ALL {
            let outcome = trace.run(policy, &"4c4g".parse().unwrap(), &mut |_| {}).unwrap();
            assert_eq!((outcome.hosts, outcome.placed, outcome.rejected), (2, 10, 0));
        }
        let outcome = trace.run(Policy::MostFree, &"4c4gx5".parse().unwrap(), &mut |_| {}).unwrap();
        assert_eq!((outcome.peak_hosts, outcome.rejected), (3, 0));
        // 1.5 hosts' worth of cores once all have come, less at both ends: 20 of 40 thousand.
        let expected = 100.0 * (10.0 * 750.0 - 450.0 - 150.0) * 2.0 / (3000.0 * 5.0 * 4.0);
        assert!((outcome.mean_cpu_percent - expected).abs() < 1e-9, "{outcome:?}");
        let outcome = trace.run(Policy::FirstFit, &"4c4gx1".parse().unwrap(), &mut |_| {}).unwrap();
        assert_eq!((outcome.peak_hosts, outcome.placed + outcome.rejected), (1, 10));
        assert!(outcome.rejected > 0);
        let error = trace.run(Policy::FirstFit, &"1c4g".parse().unwrap(), &mut |_| {}).unwrap_err();
        assert!(matches!(error, AzureError::TooLarge { .. }));
    }
}

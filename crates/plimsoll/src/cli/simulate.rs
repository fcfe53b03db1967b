//! `plimsoll simulate`.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Subcommand};
use plimsoll_model::{Bytes, Fraction, MilliCores, Policy};
use plimsoll_simulator::{azure::Hosts, consolidation, overcommit};

use super::values;

/// Experiments without a cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum SimulateCommand {
    /// A scenario of your own: a cluster and its workloads in a file, several policies side by side
    #[command(after_help = "\
The file (TOML) says which hosts there are, which VMs come when and for how long, and which policies
are tried. All policies get the very same requests. The same file and seed give the same result.

Examples:
  plimsoll simulate run examples/cluster.toml
  plimsoll simulate run examples/cluster.toml --html report.html     a page with charts
  plimsoll simulate run examples/cluster.toml --policy cosine --seed 8 --json")]
    Run(RunArgs),
    /// How many bins a policy needs for published vector bin packing instances
    #[command(after_help = "\
Each file is an instance in the `.vbp` format: dimensions, capacities, number of items, then a line
for each item with its sizes and how many there are of it. The JSON is one object a line.

Examples:
  plimsoll simulate pack class1_20_3_0.vbp --policy ffd-sum
  plimsoll simulate pack instances.tar.xz --policy best --time-limit 1 --json
  plimsoll simulate pack instances.tar.xz/panigrahy      a folder inside an archive")]
    Pack(PackArgs),
    /// How much of a GPU cluster a policy gets allocated when more is asked for than there is
    #[command(after_help = "\
The published experiment on Alibaba's traces (cluster-trace-gpu-v2023): the pods are shuffled and
random copies are appended until they ask for `--arrivals` times the accelerators of the nodes; they
are placed one by one, none leaves, and what fits nowhere is dropped.

Examples:
  plimsoll simulate openb --nodes openb_node_list_gpu_node.csv --pods openb_pod_list_default.csv
  plimsoll simulate openb --nodes nodes.csv.xz --pods pods.csv.xz --policy least-free --seeds 10 --json")]
    Openb(OpenbArgs),
    /// VMs of Azure come and go: how many hosts a policy needs, and how full they are
    #[command(after_help = "\
The files are those of trace_generation_rnn. VMs come in the batches of tenants and leave when their
lifetime ends; one that fits nowhere is rejected. Without a number of hosts the least is found with
which none is. Placements per second count the time spent in deciding and in noting who came and
who left, and nothing else.

Examples:
  plimsoll simulate azure --requests v1.dev.txt.xz --flavors flav_map.txt \\
    --intervals v1.interval_map.txt.xz --hosts 64c256gx700 --policy all
  plimsoll simulate azure --requests v1.dev.txt --lifetimes v1.dev.c2100000.txt \\
    --flavors flav_map.txt --intervals v1.interval_map.txt --hosts 64c256g --policy least-free --json")]
    Azure(AzureArgs),
    /// VMs on fewer hosts than they were promised: how many are needed, how often they are short
    #[command(after_help = "\
The folder has vms.csv, cpu_mhz.csv and mem_mb.csv, plain or compressed with xz: what VMs of the Grid
Workloads Archive's Bitbrains traces used in every slot of five minutes. Hosts are filled in the order
of VM ids by the first week; then the rest is replayed, with a decision before every slot that knows
nothing of the slot itself. Density is hosts needed without overcommitment by hosts used at most.

Policies: none; fixed:X (X times what a host has is promised); p95, peak (VMs booked with the 95th
percentile or the most of their last week, looked at every hour; p95:1.1 books 1.1 times that);
plimsoll (what a host's VMs will ask for together is predicted, at the stated risk).

Examples:
  plimsoll simulate overcommit --format bitbrains traces/bitbrains --host-cores 32 \\
    --host-memory 256GiB --policy all
  plimsoll simulate overcommit --format bitbrains traces/bitbrains --host-cores 32 \\
    --host-memory 256GiB --policy plimsoll --risk-cpu 1% --risk-memory 0.1% --json")]
    Overcommit(OvercommitArgs),
    /// VMs packed onto few hosts while they run: the energy, the moves, and what VMs lose by them
    #[command(after_help = "\
The published experiment of CloudSim on a day of PlanetLab: 800 hosts of two kinds, four kinds of VMs,
a decision every five minutes that knows the demand up to then. The file has one line for each VM: its
name, then its CPU use in % every five minutes.

Policies: thr-mmt, iqr-mmt, mad-mmt, lr-mmt (CloudSim's, by Beloglazov and Buyya); plimsoll. SLATAH is
the share of hosts' active time in which VMs have less CPU than they ask for, PDM the share of CPU that
VMs do not have since they are moved, SLAV their product, ESV that times the energy.

As in CloudSim, memory says how long a move takes and does not limit how many VMs a host has, unless
--memory enforced. CloudSim ends VMs for good that ask for nothing for five minutes; here they stay,
unless --idle ends.

Examples:
  plimsoll simulate consolidate --format planetlab 20110303.csv.xz --policy all
  plimsoll simulate consolidate --format planetlab 20110303.csv.xz --policy all --idle ends
  plimsoll simulate consolidate --format planetlab 20110303.csv --policy plimsoll --json")]
    Consolidate(ConsolidateArgs),
    /// A whole cluster is put in order: what it costs before and after, as published problems say
    #[command(after_help = "\
roadef: machine reassignment problems of the ROADEF/EURO challenge 2012; FILES are a model and its
initial assignment, plain, compressed with xz, or inside an archive. Cost is load above safety
capacities, free resources that lack others beside them, and moves. All of the time is used. The new
assignment is read back from its file and checked by code that the search has no part in.

bytedance: a production cluster with NUMA nodes (FILES is one JSON file, plain or compressed with xz;
--cluster says which one in it). With at most --moves moves, less of the free CPU is to be in fragments
too small for a VM with 16 cores on a NUMA node. Each move has room when it is made; the moves are
made again one by one before they are shown. The JSON has them in `plan`, --out writes them to a file.

Examples:
  plimsoll simulate rebalance --format roadef model_a1_2.txt assignment_a1_2.txt --time-limit 300
  plimsoll simulate rebalance --format roadef A.tar.xz/A/model_a2_5.txt \\
    A.tar.xz/A/assignment_a2_5.txt --time-limit 60s --out new_a2_5.txt --seed 2 --threads 1 --json
  plimsoll simulate rebalance --format bytedance reset_vm_pm_id_clear2.json.xz --cluster 0 --moves 25")]
    Rebalance(RebalanceArgs),
}

/// Simulates a scenario.
#[derive(Clone, Debug, Args)]
pub(crate) struct RunArgs {
    /// The scenario, a TOML file
    #[arg(value_name = "SCENARIO")]
    pub(crate) scenario: PathBuf,
    /// Also write a page with charts to this file; it needs no network and no other file
    #[arg(long, value_name = "OUT")]
    pub(crate) html: Option<PathBuf>,
    /// Policies in place of the scenario's, with commas between them, or `all`
    #[arg(long, value_name = "POLICY")]
    pub(crate) policy: Option<Policies>,
    /// The seed in place of the scenario's
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

/// Packs instances.
#[derive(Clone, Debug, Args)]
pub(crate) struct PackArgs {
    /// `.vbp` files, directories of them, and `.tar` or `.tar.xz` archives of them
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// The policy, or `best` for the best that is found within the time limit
    #[arg(long, value_name = "POLICY", default_value = "best", value_parser = packer)]
    pub(crate) policy: PackPolicy,
    /// Seconds for each instance, with `--policy best`
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(crate) time_limit: Duration,
    /// What the random choices of `--policy best` start from
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// How many instances at once; by default as many as there are cores
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) jobs: Option<u16>,
}

/// How to pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PackPolicy {
    Policy(Policy),
    Best,
}

/// Allocates accelerators.
#[derive(Clone, Debug, Args)]
pub(crate) struct OpenbArgs {
    /// The list of nodes, a CSV file, plain or compressed with xz
    #[arg(long, value_name = "FILE")]
    pub(crate) nodes: PathBuf,
    /// The list of pods, the same
    #[arg(long, value_name = "FILE")]
    pub(crate) pods: PathBuf,
    /// Policies, with commas between them, or `all`
    #[arg(long, value_name = "POLICY", default_value = "all")]
    pub(crate) policy: Policies,
    /// How many orders of arrival to try
    #[arg(long, value_name = "N", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) seeds: u32,
    /// How many times the accelerators of the nodes the pods ask for
    #[arg(long, value_name = "FACTOR", default_value = "1.3", value_parser = factor)]
    pub(crate) arrivals: f64,
}

/// Replays VMs.
#[derive(Clone, Debug, Args)]
pub(crate) struct AzureArgs {
    /// The requests, plain or compressed with xz
    #[arg(long, value_name = "FILE")]
    pub(crate) requests: PathBuf,
    /// The lifetimes; by default the file beside the requests with the instant of the cut in its name
    #[arg(long, value_name = "FILE")]
    pub(crate) lifetimes: Option<PathBuf>,
    /// The flavours: what the letters stand for
    #[arg(long, value_name = "FILE")]
    pub(crate) flavors: PathBuf,
    /// The intervals: what the bins of lifetimes stand for
    #[arg(long, value_name = "FILE")]
    pub(crate) intervals: PathBuf,
    /// The hosts: cores, GiB and how many, as 64c256gx1000; without a number as many as are needed
    #[arg(long, value_name = "SHAPE[xN]")]
    pub(crate) hosts: Hosts,
    /// Policies, with commas between them, or `all`
    #[arg(long, value_name = "POLICY", default_value = "all")]
    pub(crate) policy: Policies,
}

/// Overcommits.
#[derive(Clone, Debug, Args)]
pub(crate) struct OvercommitArgs {
    /// The folder with what VMs used
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
    /// The format of the files
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: UsageFormat,
    /// Cores of a host
    #[arg(long, value_name = "CORES", value_parser = cores)]
    pub(crate) host_cores: MilliCores,
    /// Memory of a host
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub(crate) host_memory: Bytes,
    /// The clock of a host's cores in MHz, by which the trace's MHz are cores
    #[arg(long, value_name = "MHZ", default_value_t = 2600,
          value_parser = clap::value_parser!(u32).range(100..=100_000))]
    pub(crate) host_mhz: u32,
    /// Policies, with commas between them, or `all`
    #[arg(long, value_name = "POLICY", default_value = "all")]
    pub(crate) policy: OvercommitPolicies,
    /// In which share of slots a host may be short of CPU, such as 1% or 0.01
    #[arg(long, value_name = "SHARE", default_value = "1%", value_parser = values::share)]
    pub(crate) risk_cpu: Fraction,
    /// The same of memory
    #[arg(long, value_name = "SHARE", default_value = "0.1%", value_parser = values::share)]
    pub(crate) risk_memory: Fraction,
}

/// Rebalances.
#[derive(Clone, Debug, Args)]
pub(crate) struct RebalanceArgs {
    /// The files of the problem
    #[arg(value_name = "FILES", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// The format of the files
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: ClusterFormat,
    /// How long to search, in seconds or with a unit; 60s by default, 5s for bytedance
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    pub(crate) time_limit: Option<Duration>,
    /// What random choices start from
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Which cluster of the file, from 0 (bytedance)
    #[arg(long, value_name = "I")]
    pub(crate) cluster: Option<usize>,
    /// How many moves at most (bytedance); 25 by default, as published
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) moves: Option<u32>,
    /// How many searches go on side by side; one for each core by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Write the new assignment, or the moves, to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

/// How a cluster is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ClusterFormat {
    /// ROADEF/EURO challenge 2012: machine reassignment
    Roadef,
    /// A production cluster of ByteDance: fragments of free CPU on NUMA nodes
    Bytedance,
}

/// How it is recorded what VMs used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum UsageFormat {
    /// GWA-T-12 Bitbrains, as matrices
    Bitbrains,
}

/// One policy of overcommitment or several.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OvercommitPolicies(pub(crate) Vec<overcommit::Policy>);

impl FromStr for OvercommitPolicies {
    type Err = overcommit::InvalidPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "all" {
            return Ok(Self(overcommit::Policy::ALL.to_vec()));
        }
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// Consolidates.
#[derive(Clone, Debug, Args)]
pub(crate) struct ConsolidateArgs {
    /// What VMs used in a day, plain or compressed with xz
    #[arg(value_name = "DAY")]
    pub(crate) day: PathBuf,
    /// The format of the file
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: DayFormat,
    /// Policies, with commas between them, or `all`
    #[arg(long, value_name = "POLICY", default_value = "all")]
    pub(crate) policy: ConsolidationPolicies,
    /// Whether memory limits how many VMs a host has; CloudSim's policies know nothing of it
    #[arg(long, value_name = "HOW", default_value = "ignored")]
    pub(crate) memory: MemoryRule,
    /// What becomes of a VM that asks for nothing for five minutes
    #[arg(long, value_name = "WHAT", default_value = "stays")]
    pub(crate) idle: IdleRule,
}

/// How a day is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DayFormat {
    /// A line for each VM: its name, then its CPU use in % by five minutes
    Planetlab,
}

/// Whether memory limits how many VMs a host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum MemoryRule {
    /// Only when VMs are placed at first
    Ignored,
    /// Always
    Enforced,
}

impl From<MemoryRule> for consolidation::Memory {
    fn from(rule: MemoryRule) -> Self {
        match rule {
            MemoryRule::Ignored => Self::Ignored,
            MemoryRule::Enforced => Self::Enforced,
        }
    }
}

/// What becomes of a VM that asks for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum IdleRule {
    /// It is there all day
    Stays,
    /// It ends for good
    Ends,
}

impl From<IdleRule> for consolidation::Idle {
    fn from(rule: IdleRule) -> Self {
        match rule {
            IdleRule::Stays => Self::Stays,
            IdleRule::Ends => Self::Ends,
        }
    }
}

/// One policy of consolidation or several.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ConsolidationPolicies(pub(crate) Vec<consolidation::Policy>);

impl FromStr for ConsolidationPolicies {
    type Err = consolidation::InvalidPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "all" {
            return Ok(Self(consolidation::Policy::ALL.to_vec()));
        }
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// One policy or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Policies(pub(crate) Vec<Policy>);

impl FromStr for Policies {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self(Policy::ALL.to_vec()));
        }
        let policies = text
            .split(',')
            .map(|name| name.parse::<Policy>().map_err(|error| format!("{error}, or all")));
        policies.collect::<Result<_, _>>().map(Self)
    }
}

fn packer(text: &str) -> Result<PackPolicy, String> {
    if text == "best" {
        return Ok(PackPolicy::Best);
    }
    text.parse().map(PackPolicy::Policy).map_err(|error| format!("{error}, or best"))
}

/// A number of seconds, or a duration with a unit.
fn seconds(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(86_400);
    let duration = match text.parse() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds)
            .map_err(|_| format!("`{text}` is not a number of seconds"))?,
        Err(_) => values::duration(text)?,
    };
    if duration > LONGEST { Err("use at most a day".to_owned()) } else { Ok(duration) }
}

fn factor(text: &str) -> Result<f64, String> {
    let factor = text.parse().ok().filter(|factor| (0.01..=100.0).contains(factor));
    factor.ok_or_else(|| format!("`{text}` is not a number from 0.01 to 100"))
}

/// Cores of a host, from 1 to a million.
fn cores(text: &str) -> Result<MilliCores, String> {
    let cores: MilliCores = text.parse().map_err(|error| format!("{error}"))?;
    let some = (1000..=1_000_000_000).contains(&cores.0);
    some.then_some(cores).ok_or_else(|| "a host has from 1 to 1000000 cores".to_owned())
}

/// Memory of a host, from 1 MiB to 1 PiB.
fn memory(text: &str) -> Result<Bytes, String> {
    let memory: Bytes = text.parse().map_err(|error| format!("{error}"))?;
    let some = (1 << 20..=1 << 50).contains(&memory.0);
    some.then_some(memory).ok_or_else(|| "a host has from 1MiB to 1024TiB of memory".to_owned())
}

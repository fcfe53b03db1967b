//! `plimsoll server`, `agent`, `doctor`, `host`, `events`, `settings`, `status`, `whoami`, `bench`,
//! `completion`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use plimsoll_model::{
    BitsPerSecond, Bytes, BytesPerSecond, Fraction, IoPerSecond, Label, MilliCores, Name, Policy,
};
use plimsoll_simulator::churn::Rules;
use serde::Serialize;

use super::{
    migrate::DrainArgs,
    values::{duration, share},
};

/// Runs the manager.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Options go over what the file says. At the first start the cluster's CA and an admin token are
made; the token lies in the data directory, readable only by the manager's user.

Examples:
  plimsoll server --data-dir /var/lib/plimsoll/manager --listen 0.0.0.0:7700
  plimsoll server --config /etc/plimsoll/server.toml")]
pub(crate) struct ServerArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where the cluster's state is kept
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where users are served, over TLS
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Where agents are served, over mutual TLS
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) cluster_listen: Option<SocketAddr>,
    /// The address by which agents reach the manager
    #[arg(long, value_name = "HOST")]
    pub(crate) advertise: Option<String>,
    /// A unix socket on which users are served too
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

/// Runs the agent.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The join token is needed once: it is good for one host and a short time. Without --join or
--join-file the variable PLIMSOLL_JOIN_TOKEN is read; other users of the machine can see the
arguments of a command, but neither its files nor its environment.

Examples:
  plimsoll agent --join-file join.token
  plimsoll join-token create | plimsoll agent --join -
  plimsoll agent --config /etc/plimsoll/agent.toml")]
pub(crate) struct AgentArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Join the cluster of this token, unless this host has joined; `-` reads standard input
    #[arg(long, value_name = "TOKEN", conflicts_with = "join_file")]
    pub(crate) join: Option<String>,
    /// The file with the join token
    #[arg(long, value_name = "FILE")]
    pub(crate) join_file: Option<PathBuf>,
    /// The host's name in the cluster; by default the machine's
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<Name>,
    /// Where everything that must survive a reboot is kept
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where the agent listens for the manager
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// The rack
    #[arg(long, value_name = "LABEL")]
    pub(crate) rack: Option<Label>,
    /// The zone
    #[arg(long, value_name = "LABEL")]
    pub(crate) zone: Option<Label>,
    /// Cores that the host is said to have; by default measured
    #[arg(long, value_name = "CORES", help_heading = "Capacity")]
    pub(crate) cpu: Option<MilliCores>,
    /// Memory that the host is said to have
    #[arg(long, value_name = "SIZE", help_heading = "Capacity")]
    pub(crate) memory: Option<Bytes>,
    /// Disk space that the host is said to have
    #[arg(long, value_name = "SIZE", help_heading = "Capacity")]
    pub(crate) disk: Option<Bytes>,
    /// Disk bandwidth that the host is said to have
    #[arg(long, value_name = "RATE", help_heading = "Capacity")]
    pub(crate) disk_bandwidth: Option<BytesPerSecond>,
    /// Disk operations per second that the host is said to have
    #[arg(long, value_name = "IOPS", help_heading = "Capacity")]
    pub(crate) disk_iops: Option<IoPerSecond>,
    /// Network bandwidth that the host is said to have
    #[arg(long, value_name = "RATE", help_heading = "Capacity")]
    pub(crate) network: Option<BitsPerSecond>,
}

/// Looks at this machine.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Each thing is tried, not looked up: a line says what was seen and what would help.
The exit code is 1 if something is missing without which no VM can run.

Examples:
  plimsoll doctor
  plimsoll doctor --json")]
pub(crate) struct DoctorArgs {
    /// The agent's configuration file, for its directories and its QEMU
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// Hosts.
#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// List the hosts
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  plimsoll host list"
    )]
    List,
    /// Show a host in full
    #[command(after_help = "\
Examples:
  plimsoll host show host-1")]
    Show(HostArgs),
    /// Empty a host: place nothing new there, and move its VMs away
    #[command(after_help = "\
What becomes of each VM is said first: where it moves, or why it stays. What fails to move is tried
again, until the host is undrained. VMs that do not run stay where they are if their disk is there.

Examples:
  plimsoll host drain host-1
  plimsoll host drain host-1 --max-parallel 4 --bandwidth 200MiB/s --no-wait
  plimsoll host drain host-1 --cordon-only    (nothing moves)")]
    Drain(DrainArgs),
    /// Place VMs on a host again; those that have moved away stay away
    #[command(after_help = "\
Examples:
  plimsoll host undrain host-1")]
    Undrain(HostArgs),
    /// Say that a silent host is known to run nothing: its VMs may be restarted elsewhere
    #[command(after_help = "\
Only say so if it is true, such as because its power is off: otherwise VMs would run twice.

Examples:
  plimsoll host fence host-3 --yes")]
    Fence(HostConfirmArgs),
    /// Remove a host that holds no VM from the cluster
    #[command(after_help = "\
Examples:
  plimsoll host remove host-3")]
    Remove(HostConfirmArgs),
}

/// A host.
#[derive(Clone, Debug, Args)]
pub(crate) struct HostArgs {
    /// The host
    #[arg(value_name = "HOST")]
    pub(crate) name: Name,
}

/// A host, to which something is done that is asked about.
#[derive(Clone, Debug, Args)]
pub(crate) struct HostConfirmArgs {
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub(crate) yes: bool,
}

/// Prints events.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
With --project (or PLIMSOLL_PROJECT) only that project's. With --follow and --json one object a line.

Examples:
  plimsoll events --follow
  plimsoll events --project shop --vm web-1
  plimsoll events --after 1200 --limit 500 --json")]
pub(crate) struct EventsArgs {
    /// Go on with those that come, until interrupted
    #[arg(long, short = 'f')]
    pub(crate) follow: bool,
    /// Only those after this place in the log
    #[arg(long, value_name = "SEQUENCE")]
    pub(crate) after: Option<u64>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) limit: u32,
    /// Only those of this VM of the project
    #[arg(long, value_name = "VM", requires = "project")]
    pub(crate) vm: Option<Name>,
}

/// Settings.
#[derive(Debug, Subcommand)]
pub(crate) enum SettingsCommand {
    /// Show the settings
    #[command(after_help = "\
Examples:
  plimsoll settings show")]
    Show,
    /// Change settings; what is not given stays
    #[command(after_help = "\
Examples:
  plimsoll settings set --policy least-free
  plimsoll settings set --dead-after 60s --lease 30s
  plimsoll settings set --risk-cpu 1% --risk-memory 0.1%
  plimsoll settings set --balance automatic --balance-threshold 75%")]
    Set(Box<SettingsArgs>),
}

/// Changes settings.
#[derive(Clone, Debug, Args)]
#[group(id = "setting", required = true, multiple = true, args = [
    "policy", "unreachable_after", "dead_after", "lease", "vm_memory_overhead", "end_warning",
    "risk_cpu", "risk_memory", "slot",
    "balance", "balance_threshold", "balance_cooldown", "balance_moves",
    "price_core", "price_memory", "price_disk", "price_network", "price_accelerator"])]
pub(crate) struct SettingsArgs {
    /// The placement policy
    #[arg(long, value_name = "POLICY")]
    pub(crate) policy: Option<Policy>,
    /// A host that has been silent for so long is unreachable
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) unreachable_after: Option<Duration>,
    /// And after so long, dead
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) dead_after: Option<Duration>,
    /// How long a host's lease lasts; 0s: hosts have none
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) lease: Option<Duration>,
    /// Memory that a VM costs its host beside its own
    #[arg(long, value_name = "SIZE")]
    pub(crate) vm_memory_overhead: Option<Bytes>,
    /// How long before a VM's end its guest is warned
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) end_warning: Option<Duration>,
    /// In which share of slots a host may be short of CPU, such as 1%; 0 promises no more than
    /// there is
    #[arg(long, value_name = "SHARE", value_parser = share, help_heading = "Overcommitment")]
    pub(crate) risk_cpu: Option<Fraction>,
    /// In which share of slots a host may be short of memory. No more is promised than memory and
    /// swap hold
    #[arg(long, value_name = "SHARE", value_parser = share, help_heading = "Overcommitment")]
    pub(crate) risk_memory: Option<Fraction>,
    /// The length of a slot [default: 5m]; changing it forgets what was learnt
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = "Overcommitment")]
    pub(crate) slot: Option<Duration>,
    /// What is done about hosts that run hot: off, advise or automatic
    #[arg(long, value_name = "MODE", help_heading = "Balancing")]
    pub(crate) balance: Option<plimsoll_api::v1::BalanceMode>,
    /// A host is hot when it is asked for more than this of what it has [default: 75%]
    #[arg(long, value_name = "SHARE", value_parser = percent, help_heading = "Balancing")]
    pub(crate) balance_threshold: Option<u8>,
    /// A VM that has moved is not moved again for so long [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = "Balancing")]
    pub(crate) balance_cooldown: Option<Duration>,
    /// How many VMs move at the same time [default: 4]
    #[arg(long, value_name = "N", help_heading = "Balancing")]
    pub(crate) balance_moves: Option<u32>,
    /// Millionths of a credit for a core for an hour
    #[arg(long, value_name = "PRICE", help_heading = "Prices")]
    pub(crate) price_core: Option<u64>,
    /// Millionths of a credit for a GiB of memory for an hour
    #[arg(long, value_name = "PRICE", help_heading = "Prices")]
    pub(crate) price_memory: Option<u64>,
    /// Millionths of a credit for a GiB of disk for an hour
    #[arg(long, value_name = "PRICE", help_heading = "Prices")]
    pub(crate) price_disk: Option<u64>,
    /// Millionths of a credit for a Gbit/s of network for an hour
    #[arg(long, value_name = "PRICE", help_heading = "Prices")]
    pub(crate) price_network: Option<u64>,
    /// Millionths of a credit for an accelerator for an hour
    #[arg(long, value_name = "PRICE", help_heading = "Prices")]
    pub(crate) price_accelerator: Option<u64>,
}

/// Shows the cluster in numbers.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  plimsoll status
  plimsoll status --tasks")]
pub(crate) struct StatusArgs {
    /// Show each reconciler's last result too
    #[arg(long)]
    pub(crate) tasks: bool,
}

/// Shows who asks.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  plimsoll whoami")]
pub(crate) struct WhoamiArgs {}

/// Benchmarks.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Durable creations of VMs through the REST API, with fake agents
    #[command(after_help = "\
A manager of its own is started on this machine, with its store on disk, and ended afterwards.

Examples:
  plimsoll bench manager --hosts 1000 --vms 20000 --json
  plimsoll bench manager --hosts 5000 --vms 50000 --constraints anti")]
    Manager(BenchManagerArgs),
    /// Decisions of placement, beside a look at every host
    #[command(after_help = "\
Hosts of five shapes are filled to 70 % by VMs that come and go. Then each policy places the requests,
one after the other; a VM leaves after each. What is timed is the decision and stating it.

Examples:
  plimsoll bench placement --hosts 100000 --policy cosine
  plimsoll bench placement --hosts 1000000 --mix arbitrary --policy l2-diff --verify 2000 --json
  plimsoll bench placement --policy first-fit,most-free,least-free --constraints anti")]
    Placement(BenchPlacementArgs),
    /// Plans of who gives back how much on one host
    #[command(after_help = "\
The VMs of all classes are promised more than the host has. Their loads change from round to round,
and they follow the plans. What is timed is a plan for all of them.

Examples:
  plimsoll bench reclaim --vms 1000 --json
  plimsoll bench reclaim --vms 100 --promised-percent 400")]
    Reclaim(BenchReclaimArgs),
    /// Plans against all hotspots of a cluster
    #[command(after_help = "\
Hosts are promised more CPU than they have; some of them run hot, and a tenth of the VMs must be apart.
What is timed is a plan for all of it, with no limit on moves at once. The plans are not carried out.

Examples:
  plimsoll bench balance --hosts 10000 --vms 100000 --json
  plimsoll bench balance --hosts 500 --vms 8000 --hot-percent 20")]
    Balance(BenchBalanceArgs),
    /// Throughput of real VMs that lose half of their memory, by the cascade and by swap alone
    #[command(after_help = "\
On a lab of its own, with swap space of its own, two VMs are deflated under a load and inflated again:
one that serves files, and one that keeps all of its memory in use. It takes minutes, and tells little
on a machine that is busy with other things. The lab is gone afterwards.

Examples:
  plimsoll bench cascade
  plimsoll bench cascade --swap zram --rounds 1 --json")]
    Cascade(BenchCascadeArgs),
    /// How long a VM stands still when it moves, and how long that takes: Plimsoll against bare QEMU
    #[command(after_help = "\
Needs root and the image `tiny`. A lab of two hosts with disks of their own comes up, and a VM that
rewrites its memory is moved to and fro; in turn the same machine is moved by QEMU's monitor alone,
without TLS. What is printed are medians.

Examples:
  plimsoll bench migrate
  plimsoll bench migrate --writes 50MiB/s --rounds 9 --json")]
    Migrate(BenchMigrateArgs),
}

/// Measures moves.
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchMigrateArgs {
    /// How often each is moved, by turns
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// What the VM has
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    pub(crate) memory: Bytes,
    /// What it rewrites of its memory in a second
    #[arg(long, value_name = "SIZE", default_value = "10MiB/s")]
    pub(crate) writes: plimsoll_model::BytesPerSecond,
    /// The most that is sent in a second, memory and disk each; by default the 1 Gbit/s that hosts of
    /// a lab are said to have
    #[arg(long, value_name = "SIZE", default_value = "119MiB/s")]
    pub(crate) bandwidth: plimsoll_model::BytesPerSecond,
    /// The directory of the image `tiny`, which has the load in it
    #[arg(long, value_name = "DIR", default_value = ".build/images/tiny")]
    pub(crate) image: PathBuf,
    /// Where the lab's data lies; by default below /var/lib/plimsoll/labs
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
}

/// What is swapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BenchSwap {
    /// A file on the machine's disk
    File,
    /// Compressed memory
    Zram,
}

/// Measures deflation.
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchCascadeArgs {
    /// What is swapped to
    #[arg(long, value_name = "KIND", default_value = "file")]
    pub(crate) swap: BenchSwap,
    /// How often each is measured, by turns
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// How long each measurement takes, in seconds
    #[arg(long, value_name = "S", default_value_t = 6,
          value_parser = clap::value_parser!(u64).range(2..=600))]
    pub(crate) seconds: u64,
    /// What each VM has
    #[arg(long, value_name = "SIZE", default_value = "512MiB")]
    pub(crate) memory: Bytes,
    /// The directory of the image `tiny`, which has the loads in it
    #[arg(long, value_name = "DIR", default_value = ".build/images/tiny")]
    pub(crate) image: PathBuf,
    /// Where the lab's data lies, on a disk; by default below /var/lib/plimsoll/labs
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
}

/// The sizes of the VMs of a benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BenchMix {
    /// Catalogue sizes: few distinct states of hosts
    Catalog,
    /// Drawn from continuous ranges: nearly all hosts differ
    Arbitrary,
}

/// The rules of the VMs of a benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BenchRules {
    /// No rules
    None,
    /// Groups (of 100) prefer other racks than the rest of their group
    Spread,
    /// Groups (of 100) must be on other hosts than the rest of their group
    Anti,
}

impl From<BenchRules> for Rules {
    fn from(rules: BenchRules) -> Self {
        match rules {
            BenchRules::None => Self::None,
            BenchRules::Spread => Self::Spread,
            BenchRules::Anti => Self::Anti,
        }
    }
}

impl BenchRules {
    /// In words.
    pub(crate) const fn describe(self) -> &'static str {
        match self {
            Self::None => "no rules",
            Self::Spread => "groups spread over racks",
            Self::Anti => "groups apart",
        }
    }
}

/// Measures placement.
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchPlacementArgs {
    /// How many hosts
    #[arg(long, value_name = "N", default_value_t = 100_000,
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) hosts: u32,
    /// The sizes of the VMs
    #[arg(long, value_enum, default_value = "catalog")]
    pub(crate) mix: BenchMix,
    /// The policy; of several, separated by commas, each is measured
    #[arg(long, value_name = "P", value_delimiter = ',', default_value = "most-free")]
    pub(crate) policy: Vec<Policy>,
    /// The rules of the VMs that are measured
    #[arg(long, value_enum, default_value = "none")]
    pub(crate) constraints: BenchRules,
    /// How many placements are measured
    #[arg(long, value_name = "M", default_value_t = 20_000,
          value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub(crate) requests: u32,
    /// Compare so many more decisions with a look at every host
    #[arg(long, value_name = "K", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) verify: u32,
    /// What the VMs are drawn with
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
}

/// Measures plans for one host.
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchReclaimArgs {
    /// How many VMs the host runs
    #[arg(long, value_name = "N", default_value_t = 1000,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) vms: u32,
    /// How many plans are measured
    #[arg(long, value_name = "M", default_value_t = 2000,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) rounds: u32,
    /// How much of the host's memory is promised, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 200,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) promised_percent: u32,
    /// What the VMs and their loads are drawn with
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
}

/// Measures plans against hotspots.
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchBalanceArgs {
    /// How many hosts the cluster has
    #[arg(long, value_name = "N", default_value_t = 10_000,
          value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    pub(crate) hosts: u32,
    /// How many VMs it runs
    #[arg(long, value_name = "M", default_value_t = 100_000,
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) vms: u32,
    /// How many of the hosts run hot, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) hot_percent: u32,
    /// How many plans are measured
    #[arg(long, value_name = "K", default_value_t = 20,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) rounds: u32,
    /// What the VMs and their loads are drawn with
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
}

/// Measures the manager.
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchManagerArgs {
    /// How many fake agents
    #[arg(long, value_name = "N", default_value_t = 1000,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) hosts: u32,
    /// How many VMs to create
    #[arg(long, value_name = "N", default_value_t = 20_000,
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) vms: u32,
    /// How many VMs in one request
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) batch: u32,
    /// How many requests at once
    #[arg(long, value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) parallel: u32,
    /// The rules of the VMs; a request is a group
    #[arg(long, value_enum, default_value = "none")]
    pub(crate) constraints: BenchRules,
    /// Kill the manager in the middle, and count what is lost of what it had acknowledged
    #[arg(long)]
    pub(crate) kill: bool,
    /// Where the manager keeps its state meanwhile; by default a temporary directory
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
}

/// Prints a completion script.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  plimsoll completion bash > /etc/bash_completion.d/plimsoll
  plimsoll completion zsh > ~/.zfunc/_plimsoll")]
pub(crate) struct CompletionArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

/// Guards one VM.
#[derive(Clone, Debug, Args)]
pub(crate) struct GuardArgs {
    /// The VM's directory
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: PathBuf,
}

/// Carries a VM that moves.
#[derive(Clone, Debug, Args)]
pub(crate) struct TunnelArgs {
    /// The VM's directory
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: PathBuf,
}

/// Moving VMs off hosts that run hot.
#[derive(Debug, Subcommand)]
pub(crate) enum BalanceCommand {
    /// How busy hosts are, what is planned, and why nothing more is
    #[command(after_help = "\
Examples:
  plimsoll balance status
  plimsoll balance status --json")]
    Status,
    /// Make a plan on what is known now, and carry nothing out
    #[command(after_help = "\
A plan needs samples: with `settings set --balance advise` hosts are looked at all the time.

Examples:
  plimsoll balance plan")]
    Plan,
    /// Make a plan, and begin its steps
    #[command(after_help = "\
Steps that wait for others are not begun: plan again when the first are over. To have all of this done
by itself: plimsoll settings set --balance automatic

Examples:
  plimsoll balance apply")]
    Apply,
}

/// A share in whole percent: `75%` or `75`.
fn percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    number.parse().map_err(|_| format!("`{text}` is no percentage, such as 75%"))
}

//! `plimsoll vm`, `apply` and `explain`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use plimsoll_model::{
    BitsPerSecond, Bytes, BytesPerSecond, IoPerSecond, MilliCores, Name, OnHostFailure, Policy,
    RestartPolicy, deflation::MAX_DEFLATION_PERCENT, elasticity::MAX_SHARES,
};
use serde::{Deserialize, Serialize};

use super::migrate::MigrateArgs;
use super::values::{ConstraintArgs, Instant, ModelAmount, WaitArgs, duration, snake};

fn restart(text: &str) -> Result<RestartPolicy, String> {
    snake(text, "on-failure, always, never")
}

fn on_host_failure(text: &str) -> Result<OnHostFailure, String> {
    snake(text, "restart, recreate, wait")
}

fn class(text: &str) -> Result<Class, String> {
    snake(text, "guaranteed, burstable, deflatable")
}

/// Reservations.
#[derive(Debug, Subcommand)]
pub(crate) enum ReservationCommand {
    /// List what is booked, and what is held until an end
    #[command(
        visible_alias = "ls",
        after_help = "\
VMs that have not begun come first, by their start. `plimsoll vm create` books with --start-after,
--duration and --deadline; `plimsoll vm delete` gives a booking up. When room is released, later
bookings move up, but never before their --start-after.

Examples:
  plimsoll reservation list
  plimsoll reservation list --json"
    )]
    List,
}

/// Virtual machines.
#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Create a VM, so many equal ones, or VMs that add up to a total
    #[command(after_help = "\
Examples:
  plimsoll vm create web --image tiny --cpu 500m --memory 128MiB --network shop
  plimsoll vm create web --count 3 --image tiny --memory 128MiB --group web --anti-affinity web
  plimsoll vm create batch --total --cpu 8 --memory 8GiB --disk 40GiB --split-max 4 --image tiny
  plimsoll vm create pay --image tiny --memory 128MiB --exclusive other-projects --end-at +8h
  plimsoll vm create night --image tiny --memory 2GiB --duration 2h --deadline 2030-01-31T06:00:00Z
  plimsoll vm create demo --image tiny --memory 1GiB --start-after +3h --duration 30m
  plimsoll vm create cache --image tiny --memory 1GiB --class burstable --min-memory 256MiB")]
    Create(Box<CreateArgs>),
    /// List the project's VMs
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  plimsoll vm list
  plimsoll vm list --all-projects --json"
    )]
    List(ListArgs),
    /// Show a VM in full
    #[command(after_help = "\
Examples:
  plimsoll vm show web-1")]
    Show(NameArgs),
    /// Change a VM while it runs
    #[command(after_help = "\
Examples:
  plimsoll vm set web-1 --cpu 250m
  plimsoll vm set web-1 --memory 1GiB
  plimsoll vm set db-1 --disk-bandwidth 10MiB/s --disk-iops 100
  plimsoll vm set db-1 --network-bandwidth 0    (0 takes the limit away)")]
    Set(Box<SetArgs>),
    /// Take a part of what a running VM has, until it is inflated again
    #[command(after_help = "\
Its applications are asked first (by the hooks in /etc/plimsoll/deflate.d of the guest), then its
kernel; what neither gives in time the host takes without asking, by writing pages to swap and by
giving less CPU time. A guest is not asked for memory that it needs itself. What the VM is promised
stays promised: its room is not given to others.

Examples:
  plimsoll vm deflate web-1 --memory 40%
  plimsoll vm deflate web-1 --memory 40% --cpu 50% --within 5s --json")]
    Deflate(DeflateArgs),
    /// Move a running VM to another host
    #[command(after_help = "\
The VM runs on while its memory (and its disk, unless that is in a shared pool) is copied, and stands
still only for the last of it. If it writes faster than can be copied, the rest follows after the
switch, or, with --no-post-copy, the move fails at the deadline. On any failure the VM stays where it
is.

Examples:
  plimsoll vm migrate web-1
  plimsoll vm migrate web-1 --to host-2 --max-downtime 50ms --deadline 60s
  plimsoll vm migrate web-1 --dry-run
  plimsoll vm migrate web-1 --cancel")]
    Migrate(MigrateArgs),
    /// Measure how well a VM performs with less, and keep the curve for its host's decisions
    #[command(after_help = "\
The workload runs in the guest, first with all that the VM is promised, then with less from step to
step; at the end the VM gets back what was taken. It may print a last line of JSON with `per_second`
and `p99_us`, as plimsoll-workload does; otherwise its time counts. The curve of a deflatable VM is
stored: its host takes from it where that costs the least.

Examples:
  plimsoll vm profile web-1 --resource memory --workload 'plimsoll-workload files --size 256M'
  plimsoll vm profile db-1 --resource memory --from host --workload 'plimsoll-workload store' --html db.html
  plimsoll vm profile job-1 --resource cpu --metric latency --workload 'plimsoll-workload spin' --json")]
    Profile(Box<ProfileArgs>),
    /// Give VMs back what was taken from them
    #[command(after_help = "\
Examples:
  plimsoll vm inflate web-1")]
    Inflate(NamesArgs),
    /// Start VMs
    #[command(after_help = "\
Examples:
  plimsoll vm start web-1 web-2")]
    Start(NamesArgs),
    /// Shut VMs down; their disks are kept
    #[command(after_help = "\
Examples:
  plimsoll vm stop web-1
  plimsoll vm stop web-1 --grace 0s    (at once, as if the power were cut)")]
    Stop(StopArgs),
    /// Restart the guests of VMs
    #[command(after_help = "\
Examples:
  plimsoll vm reboot web-1")]
    Reboot(NamesArgs),
    /// Delete VMs with their disks
    #[command(
        visible_alias = "rm",
        after_help = "\
Examples:
  plimsoll vm delete web-3
  plimsoll vm delete web-1 web-2 --yes"
    )]
    Delete(DeleteArgs),
    /// Run a program in a VM, through its guest agent
    #[command(after_help = "\
The exit code is the program's own; 128 + N if signal N ended it, 124 if its time was over.
If it could not be run at all, it is 1, 2 or 3 as everywhere, with an `error:` on standard error.

Examples:
  plimsoll vm exec web-1 -- uname -r
  plimsoll vm exec web-1 --stdin -- sh -s < script.sh")]
    Exec(ExecArgs),
    /// Print what a VM's guest wrote to its console, or what QEMU wrote
    #[command(after_help = "\
Examples:
  plimsoll vm logs web-1 --follow
  plimsoll vm logs web-1 --source qemu")]
    Logs(LogsArgs),
    /// Attach to a VM's serial console; Ctrl-] leaves
    #[command(after_help = "\
Examples:
  plimsoll vm console web-1")]
    Console(NameArgs),
    /// Say why a VM is where it is: every host's refusal, or its score
    #[command(after_help = "\
Examples:
  plimsoll vm explain web-1")]
    Explain(NameArgs),
}

/// One VM.
#[derive(Clone, Debug, Args)]
pub(crate) struct NameArgs {
    /// The VM
    #[arg(value_name = "VM")]
    pub(crate) name: Name,
}

/// Some VMs.
#[derive(Clone, Debug, Args)]
pub(crate) struct NamesArgs {
    /// The VMs
    #[arg(value_name = "VM", required = true)]
    pub(crate) names: Vec<Name>,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

/// Which VMs.
#[derive(Clone, Debug, Args)]
pub(crate) struct ListArgs {
    /// Those of every project that the token may see
    #[arg(long, short = 'A')]
    pub(crate) all_projects: bool,
}

/// What is asked for.
#[derive(Clone, Debug, Args)]
pub(crate) struct RequestArgs {
    /// The VM's name; with --count or --total the first part of NAME-1, NAME-2, ...
    #[arg(value_name = "NAME")]
    pub(crate) name: Name,
    /// The image it boots from
    #[arg(long, value_name = "NAME")]
    pub(crate) image: Name,
    /// Cores: `2` or `500m`
    #[arg(long, value_name = "CORES", default_value = "1", help_heading = "Resources")]
    pub(crate) cpu: MilliCores,
    /// Memory: `512MiB`
    #[arg(long, value_name = "SIZE", default_value = "256MiB", help_heading = "Resources")]
    pub(crate) memory: Bytes,
    /// Disk space; by default as much as the image's disk has
    #[arg(long, value_name = "SIZE", required_if_eq("total", "true"), help_heading = "Resources")]
    pub(crate) disk: Option<Bytes>,
    /// Disk bandwidth: `100MiB/s`; by default not limited
    #[arg(
        long,
        value_name = "RATE",
        default_value = "0",
        hide_default_value = true,
        help_heading = "Resources"
    )]
    pub(crate) disk_bandwidth: BytesPerSecond,
    /// Disk operations per second; by default not limited
    #[arg(
        long,
        value_name = "IOPS",
        default_value = "0",
        hide_default_value = true,
        help_heading = "Resources"
    )]
    pub(crate) disk_iops: IoPerSecond,
    /// Network bandwidth in each direction: `20Mbit/s`; by default not limited
    #[arg(
        long,
        value_name = "RATE",
        default_value = "0",
        hide_default_value = true,
        help_heading = "Resources"
    )]
    pub(crate) network_bandwidth: BitsPerSecond,
    /// Accelerators of a model: whole ones, or a share of one
    #[arg(long, value_name = "MODEL=AMOUNT", help_heading = "Resources")]
    pub(crate) accelerator: Vec<ModelAmount>,
    /// So many equal VMs
    #[arg(long, value_name = "N", conflicts_with = "total",
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) count: Option<u32>,
    /// The resources are a total, to be split into VMs
    #[arg(long)]
    pub(crate) total: bool,
    /// Split the total into at least so many VMs
    #[arg(long, value_name = "N", default_value_t = 1, requires = "total",
          value_parser = clap::value_parser!(u32).range(1..=128))]
    pub(crate) split_min: u32,
    /// Split the total into at most so many VMs
    #[arg(long, value_name = "N", default_value_t = 64, requires = "total",
          value_parser = clap::value_parser!(u32).range(1..=128))]
    pub(crate) split_max: u32,
    /// A network of the project; repeated: one interface each
    #[arg(long, value_name = "NAME")]
    pub(crate) network: Vec<Name>,
    /// The application of which it is a part
    #[arg(long, value_name = "NAME")]
    pub(crate) application: Option<Name>,
    /// A placement group to which it belongs
    #[arg(long, value_name = "NAME")]
    pub(crate) group: Vec<Name>,
    #[command(flatten)]
    pub(crate) constraints: ConstraintArgs,
    /// The file with cloud-init user data
    #[arg(long, value_name = "FILE")]
    pub(crate) user_data: Option<PathBuf>,
    /// A file with SSH public keys
    #[arg(long, value_name = "FILE")]
    pub(crate) ssh_key: Vec<PathBuf>,
    /// Do not start it before: 2030-01-31T12:00:00Z, or +2h from now. Room is booked for it
    #[arg(long, value_name = "WHEN", help_heading = "Time")]
    pub(crate) start_after: Option<Instant>,
    /// Run it for so long, such as 2h, then stop it. Without room at present it is booked
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = "Time")]
    pub(crate) duration: Option<Duration>,
    /// Refuse it, unless all of its duration can be over by then
    #[arg(long, value_name = "WHEN", requires = "duration", help_heading = "Time")]
    pub(crate) deadline: Option<Instant>,
    /// When to stop it: 2030-01-31T12:00:00Z, or +2h from now
    #[arg(long, value_name = "WHEN", conflicts_with = "duration", help_heading = "Time")]
    pub(crate) end_at: Option<Instant>,
    /// When QEMU ends unexpectedly: on-failure, always or never start it again
    #[arg(long, value_name = "WHEN", default_value = "on-failure", value_parser = restart)]
    pub(crate) restart: RestartPolicy,
    /// When its host is lost: restart it elsewhere, recreate it (a new disk if need be), or wait
    #[arg(long, value_name = "WHAT", default_value = "restart", value_parser = on_host_failure)]
    pub(crate) on_host_failure: OnHostFailure,
    #[command(flatten)]
    pub(crate) elasticity: ElasticityArgs,
    /// The placement policy; by default the cluster's
    #[arg(long, value_name = "POLICY")]
    pub(crate) policy: Option<Policy>,
}

/// How far a VM gives back what it is promised.
#[derive(Clone, Debug, Args)]
pub(crate) struct ElasticityArgs {
    /// Who gives when the host is short: guaranteed (never), burstable (by shares and by how much
    /// lies idle), deflatable (where it costs the least performance)
    #[arg(long, value_name = "CLASS", value_parser = class, help_heading = "Elasticity")]
    pub(crate) class: Option<Class>,
    /// The memory that it always has; by default half of what it is promised
    #[arg(long, value_name = "SIZE", help_heading = "Elasticity")]
    pub(crate) min_memory: Option<Bytes>,
    /// The cores that it always gets when it wants them; by default half of what it is promised
    #[arg(long, value_name = "CORES", help_heading = "Elasticity")]
    pub(crate) min_cpu: Option<MilliCores>,
    /// Its weight against others, from 1 to 10000 [default: 100]
    #[arg(long, value_name = "N", help_heading = "Elasticity",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_SHARES)))]
    pub(crate) shares: Option<u32>,
}

/// A class of VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Class {
    Guaranteed,
    Burstable,
    Deflatable,
}

/// Creates VMs.
#[derive(Clone, Debug, Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    pub(crate) request: RequestArgs,
    /// Create as many as can be had, in place of all or none
    #[arg(long)]
    pub(crate) partial: bool,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

/// Tries a request.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Nothing is created. `plimsoll vm explain` does the same for a VM that exists.

Examples:
  plimsoll explain huge --image tiny --cpu 64 --memory 256GiB
  plimsoll explain web --image tiny --memory 128MiB --anti-affinity web --policy least-free")]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    pub(crate) request: RequestArgs,
}

/// Changes a VM.
#[derive(Clone, Debug, Args)]
#[group(id = "change", required = true, multiple = true, args = [
    "cpu", "memory", "disk", "disk_bandwidth", "disk_iops", "network_bandwidth", "end_at",
    "class", "min_memory", "min_cpu", "shares",
    "restart", "on_host_failure", "no_constraints", "affinity", "anti_affinity", "exclusive",
    "host_label", "prefer_affinity", "prefer_anti_affinity", "prefer_host_label"])]
pub(crate) struct SetArgs {
    /// The VM
    #[arg(value_name = "VM")]
    pub(crate) name: Name,
    /// Cores: `2` or `500m`
    #[arg(long, value_name = "CORES", help_heading = "Resources")]
    pub(crate) cpu: Option<MilliCores>,
    /// Memory; while it runs at most what `vm show` tells under `limits now`
    #[arg(long, value_name = "SIZE", help_heading = "Resources")]
    pub(crate) memory: Option<Bytes>,
    /// Disk space; only more
    #[arg(long, value_name = "SIZE", help_heading = "Resources")]
    pub(crate) disk: Option<Bytes>,
    /// Disk bandwidth; 0: not limited
    #[arg(long, value_name = "RATE", help_heading = "Resources")]
    pub(crate) disk_bandwidth: Option<BytesPerSecond>,
    /// Disk operations per second; 0: not limited
    #[arg(long, value_name = "IOPS", help_heading = "Resources")]
    pub(crate) disk_iops: Option<IoPerSecond>,
    /// Network bandwidth in each direction; 0: not limited
    #[arg(long, value_name = "RATE", help_heading = "Resources")]
    pub(crate) network_bandwidth: Option<BitsPerSecond>,
    /// When to stop it
    #[arg(long, value_name = "WHEN")]
    pub(crate) end_at: Option<Instant>,
    /// When QEMU ends unexpectedly: on-failure, always or never start it again
    #[arg(long, value_name = "WHEN", value_parser = restart)]
    pub(crate) restart: Option<RestartPolicy>,
    /// When its host is lost: restart, recreate or wait
    #[arg(long, value_name = "WHAT", value_parser = on_host_failure)]
    pub(crate) on_host_failure: Option<OnHostFailure>,
    #[command(flatten)]
    pub(crate) elasticity: ElasticityArgs,
    /// Take all constraints away. Options for constraints replace all that it has
    #[arg(long, help_heading = "Constraints", conflicts_with_all = [
        "affinity", "anti_affinity", "exclusive", "host_label", "prefer_affinity",
        "prefer_anti_affinity", "prefer_host_label"])]
    pub(crate) no_constraints: bool,
    #[command(flatten)]
    pub(crate) constraints: ConstraintArgs,
    /// Only if the VM's generation is still this one
    #[arg(long, value_name = "N")]
    pub(crate) if_generation: Option<u64>,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

/// Deflates a VM.
#[derive(Clone, Debug, Args)]
pub(crate) struct DeflateArgs {
    /// The VM
    #[arg(value_name = "VM")]
    pub(crate) name: Name,
    /// How much of its memory: up to 90%
    #[arg(long, value_name = "PERCENT", value_parser = percent, required_unless_present = "cpu")]
    pub(crate) memory: Option<u8>,
    /// How much of its CPU: up to 90%
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub(crate) cpu: Option<u8>,
    /// By when; half of it is for the applications
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub(crate) within: Duration,
    /// The highest level that is asked; `host` takes without the guest's help
    #[arg(long, value_name = "LEVEL", default_value = "application")]
    pub(crate) from: DeflateFrom,
}

/// The level at which a deflation begins.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DeflateFrom {
    /// Applications in the guest, by their hooks; then the others
    Application,
    /// The guest's kernel; then the host
    Guest,
    /// The host alone
    Host,
}

impl From<DeflateFrom> for plimsoll_model::Level {
    fn from(from: DeflateFrom) -> Self {
        match from {
            DeflateFrom::Application => Self::Application,
            DeflateFrom::Guest => Self::Guest,
            DeflateFrom::Host => Self::Host,
        }
    }
}

/// Profiles a VM.
#[derive(Clone, Debug, Args)]
pub(crate) struct ProfileArgs {
    /// The VM
    #[arg(value_name = "VM")]
    pub(crate) name: Name,
    /// What is taken from it
    #[arg(long, value_name = "RESOURCE")]
    pub(crate) resource: ProfiledResource,
    /// What it does: a command line for the guest's shell
    #[arg(long, value_name = "COMMAND")]
    pub(crate) workload: String,
    /// The highest level that is asked: `guest` for explicit, `host` for transparent deflation
    #[arg(long, value_name = "LEVEL", default_value = "guest")]
    pub(crate) from: DeflateFrom,
    /// What is measured
    #[arg(long, value_name = "METRIC", default_value = "throughput")]
    pub(crate) metric: Metric,
    /// In how many steps
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub(crate) steps: u8,
    /// What is left at the last step, in percent
    #[arg(long, value_name = "PERCENT", default_value = "25%", value_parser = least)]
    pub(crate) least: u8,
    /// Runs at each step, of which the best counts
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) rounds: u8,
    /// By when a step must have been taken
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub(crate) within: Duration,
    /// By when a run must have ended: at most 10m
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Draw it as a page of HTML too
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Store nothing
    #[arg(long)]
    pub(crate) no_store: bool,
}

fn least(text: &str) -> Result<u8, String> {
    let percent = percent(text)?;
    let some = 100_u8.checked_sub(percent).is_some_and(|taken| taken <= MAX_DEFLATION_PERCENT);
    some.then_some(percent)
        .ok_or_else(|| format!("at least {} % are left", 100 - MAX_DEFLATION_PERCENT))
}

/// What is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProfiledResource {
    /// Its memory
    Memory,
    /// Its CPU time and vCPUs
    Cpu,
}

impl ProfiledResource {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "CPU",
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// Operations in a second
    Throughput,
    /// The time that one in a hundred operations exceeds
    Latency,
}

/// Stops VMs.
#[derive(Clone, Debug, Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    pub(crate) vms: NamesArgs,
    /// How long the guest may take to shut down before it is ended
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub(crate) grace: Duration,
}

/// Deletes VMs.
#[derive(Clone, Debug, Args)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    pub(crate) vms: NamesArgs,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub(crate) yes: bool,
}

/// Runs a program in a VM.
#[derive(Clone, Debug, Args)]
pub(crate) struct ExecArgs {
    /// The VM
    #[arg(value_name = "VM")]
    pub(crate) name: Name,
    /// Give it what comes on standard input, at most 256 KiB
    #[arg(long, short = 'i')]
    pub(crate) stdin: bool,
    /// End it after this time: at most 10m
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// The program and its arguments
    #[arg(value_name = "PROGRAM", required = true, last = true)]
    pub(crate) argv: Vec<String>,
}

/// Prints a log.
#[derive(Clone, Debug, Args)]
pub(crate) struct LogsArgs {
    /// The VM
    #[arg(value_name = "VM")]
    pub(crate) name: Name,
    /// Which log
    #[arg(long, value_name = "LOG", default_value = "console", value_parser = ["console", "qemu"])]
    pub(crate) source: String,
    /// The last so many bytes, such as 4KiB: at most 4MiB
    #[arg(long, value_name = "SIZE", default_value = "64KiB")]
    pub(crate) tail: Bytes,
    /// Go on with what is written, until interrupted
    #[arg(long, short = 'f')]
    pub(crate) follow: bool,
}

/// Applies a file.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The plan is printed first: `+` creates, `~` changes, `-` deletes. On a terminal it asks before it
acts. What the file does not name is not touched, but for VMs of a `count` beyond it.

Examples:
  plimsoll apply -f examples/webshop.toml
  plimsoll apply -f examples/webshop.toml --plan      only print what would be done
  plimsoll apply -f examples/webshop.toml --delete    remove all that the file describes")]
pub(crate) struct ApplyArgs {
    /// The file; `-` reads standard input
    #[arg(long, short = 'f', value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Only print the plan
    #[arg(long)]
    pub(crate) plan: bool,
    /// Remove all that the file describes
    #[arg(long, conflicts_with = "replace")]
    pub(crate) delete: bool,
    /// Delete and create anew what cannot be changed; its disk is lost
    #[arg(long)]
    pub(crate) replace: bool,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

/// A part of what a VM has: `40%`.
fn percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse::<u8>().ok();
    number
        .filter(|percent| (1..=MAX_DEFLATION_PERCENT).contains(percent))
        .ok_or_else(|| format!("`{text}` is not from 1% to {MAX_DEFLATION_PERCENT}%"))
}

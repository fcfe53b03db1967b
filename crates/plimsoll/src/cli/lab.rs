//! `plimsoll lab`.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use plimsoll_agent::config::{DeduplicationMode, SwapConfig};
use plimsoll_model::{BitsPerSecond, Bytes, BytesPerSecond, IoPerSecond, MilliCores, Name};
use serde::Serialize;

use super::values::duration;

/// A cluster on this machine.
#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Bring a lab up, or heal what is dead in it
    #[command(after_help = "\
Everything that has an address lives in network namespaces of the lab. The first time a context of
the lab's name is written to your configuration file, so that other commands find the lab.

Examples:
  plimsoll lab up
  plimsoll lab up --hosts 5 --cpu 8 --memory 16GiB --image .build/images/tiny
  plimsoll lab up --memory 8GiB                 (its hosts have less now; VMs run on)
  plimsoll lab up --name second --directory /srv/second")]
    Up(Box<LabUpArgs>),
    /// End every process of a lab; its data stays, unless purged
    #[command(after_help = "\
VMs are powered off as if the power were cut; `lab up` brings them back with their disks.

Examples:
  plimsoll lab down
  plimsoll lab down --purge --yes    (delete its data too)")]
    Down(LabDownArgs),
    /// Show each process of a lab, alive or not
    #[command(after_help = "\
Examples:
  plimsoll lab status")]
    Status(LabNameArgs),
    /// Kill the manager or a host's agent at once (SIGKILL); `lab up` starts it again
    #[command(after_help = "\
Examples:
  plimsoll lab kill manager
  plimsoll lab kill host-2")]
    Kill(LabTargetArgs),
    /// Cut a host off: its link goes down
    #[command(after_help = "\
Examples:
  plimsoll lab cut host-2")]
    Cut(LabTargetArgs),
    /// Mend the link of a host that was cut off
    #[command(after_help = "\
Examples:
  plimsoll lab heal host-2")]
    Heal(LabTargetArgs),
    /// Attack a VM from another one, on a lab that is made for it and deleted afterwards
    #[command(subcommand)]
    Attack(AttackCommand),
}

/// What is shown to be possible, and to be impossible by default.
#[derive(Debug, Subcommand)]
pub(crate) enum AttackCommand {
    /// Find out from inside a guest what another project's guest holds in memory
    #[command(after_help = "\
Two guests of two projects run on one host. For each trial a coin decides whether the victim holds a
set of pages; the attacker loads the same pages, waits for the kernel to merge equal ones, times one
write to each page, and says whether the victim holds them. Twenty-five trials, each with contents and a
coin of its own, are made between two rounds of loading. This is done with merging forced between projects,
and then as hosts are configured by default: merging goes on, but never between projects.

It needs root, a kernel with KSM that no other agent of the machine sets, and the image tiny.

Examples:
  plimsoll lab attack dedup
  plimsoll lab attack dedup --trials 50 --only forced --json")]
    Dedup(AttackArgs),
}

/// The attack by page deduplication.
#[derive(Clone, Debug, Args)]
pub(crate) struct AttackArgs {
    /// How many trials with each configuration
    #[arg(long, value_name = "N", default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) trials: u32,
    /// Only with merging forced between projects, or only with the default
    #[arg(long, value_name = "WHICH")]
    pub(crate) only: Option<AttackHalf>,
    /// How long the attacker waits for the pages to be merged
    #[arg(long, value_name = "TIME", default_value = "12s", value_parser = attack_wait)]
    pub(crate) wait: Duration,
    /// Decides the coins
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub(crate) seed: u64,
    /// The directory of the image tiny
    #[arg(long, value_name = "DIR", default_value_os_t = crate::lab::attack::default_image())]
    pub(crate) image: PathBuf,
    /// Where the lab's data lies meanwhile; by default /var/lib/plimsoll/labs/dedup-attack
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
}

/// How the host is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AttackHalf {
    /// Pages are merged between projects.
    Forced,
    /// Pages are merged within one project.
    Default,
}

impl AttackHalf {
    /// The name as typed.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Forced => "forced",
            Self::Default => "by default",
        }
    }

    /// The same for a table.
    pub(crate) const fn describe(self) -> &'static str {
        match self {
            Self::Forced => "between projects (forced)",
            Self::Default => "within one project (default)",
        }
    }
}

fn attack_wait(text: &str) -> Result<Duration, String> {
    let wait = duration(text)?;
    let allowed = Duration::from_secs(1)..=Duration::from_secs(300);
    if allowed.contains(&wait) { Ok(wait) } else { Err("use 1s to 5m".to_owned()) }
}

/// A lab.
#[derive(Clone, Debug, Args)]
pub(crate) struct LabNameArgs {
    /// The lab's name: several coexist
    #[arg(long, value_name = "NAME", default_value = "lab")]
    pub(crate) name: Name,
    /// Where its data lies; by default /var/lib/plimsoll/labs/NAME
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
}

/// Brings a lab up.
#[derive(Clone, Debug, Args)]
pub(crate) struct LabUpArgs {
    #[command(flatten)]
    pub(crate) lab: LabNameArgs,
    /// How many hosts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) hosts: Option<u8>,
    /// What each host is said to have: cores [default: 4]
    #[arg(long, value_name = "CORES", help_heading = "Capacity of each host")]
    pub(crate) cpu: Option<MilliCores>,
    /// Memory [default: 4GiB]
    #[arg(long, value_name = "SIZE", help_heading = "Capacity of each host")]
    pub(crate) memory: Option<Bytes>,
    /// Disk space [default: 20GiB]
    #[arg(long, value_name = "SIZE", help_heading = "Capacity of each host")]
    pub(crate) disk: Option<Bytes>,
    /// Disk bandwidth [default: 400MiB/s]
    #[arg(long, value_name = "RATE", help_heading = "Capacity of each host")]
    pub(crate) disk_bandwidth: Option<BytesPerSecond>,
    /// Disk operations per second [default: 20000]
    #[arg(long, value_name = "IOPS", help_heading = "Capacity of each host")]
    pub(crate) disk_iops: Option<IoPerSecond>,
    /// Network bandwidth [default: 1Gbit/s]
    #[arg(long, value_name = "RATE", help_heading = "Capacity of each host")]
    pub(crate) network: Option<BitsPerSecond>,
    /// The directory of an image to import, unless the cluster has it
    #[arg(long, value_name = "DIR")]
    pub(crate) image: Vec<PathBuf>,
    /// Keep disks on each host, in place of a pool that all share
    #[arg(long)]
    pub(crate) local_disks: bool,
    /// Swap space that each host's agent adds to the machine's: `file:SIZE`, `zram:SIZE` or `none`
    #[arg(long, value_name = "KIND:SIZE", value_parser = swap)]
    pub(crate) swap: Option<SwapConfig>,
    /// Write no context
    #[arg(long)]
    pub(crate) no_context: bool,
    /// Whose equal pages are merged.
    #[arg(skip)]
    pub(crate) deduplication: DeduplicationMode,
}

/// Reads `file:1GiB`.
pub(crate) fn swap(text: &str) -> Result<SwapConfig, String> {
    if text == "none" {
        return Ok(SwapConfig::None {});
    }
    let (kind, size) = text.split_once(':').ok_or("give `file:SIZE`, `zram:SIZE` or `none`")?;
    let size: Bytes = size.parse().map_err(|error| format!("{error}"))?;
    match kind {
        "zram" => Ok(SwapConfig::Zram { size }),
        "file" => Ok(SwapConfig::File { size, directory: None }),
        _ => Err(format!("`{kind}` is neither `file` nor `zram`")),
    }
}

/// Takes a lab down.
#[derive(Clone, Debug, Args)]
pub(crate) struct LabDownArgs {
    #[command(flatten)]
    pub(crate) lab: LabNameArgs,
    /// Delete the lab's data: state, images and disks
    #[arg(long)]
    pub(crate) purge: bool,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub(crate) yes: bool,
}

/// A part of a lab.
#[derive(Clone, Debug, Args)]
pub(crate) struct LabTargetArgs {
    /// `manager`, or a host
    #[arg(value_name = "TARGET")]
    pub(crate) target: Name,
    #[command(flatten)]
    pub(crate) lab: LabNameArgs,
}

/// Enters a namespace and becomes another command.
#[derive(Clone, Debug, Args)]
pub(crate) struct LabProcessArgs {
    /// The network namespace's file
    #[arg(long)]
    pub(crate) netns: PathBuf,
    /// The arguments of the new command, after the program's own name
    #[arg(required = true, last = true)]
    pub(crate) argv: Vec<OsString>,
}

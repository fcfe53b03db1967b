//! `plimsoll lab`.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Subcommand};
use plimsoll_model::{BitsPerSecond, Bytes, BytesPerSecond, IoPerSecond, MilliCores, Name};

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
    /// Write no context
    #[arg(long)]
    pub(crate) no_context: bool,
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

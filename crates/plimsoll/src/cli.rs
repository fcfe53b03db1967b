//! The command line: exactly what can be typed, its help and its examples. Nothing here acts.
//!
//! Values are parsed into the model's types as they are typed, so that a misspelt unit is a usage
//! error (exit code 2) that names the option, before anything is asked of the manager.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use plimsoll_model::Name;

pub(crate) mod cluster;
pub(crate) mod image;
pub(crate) mod lab;
pub(crate) mod migrate;
pub(crate) mod project;
pub(crate) mod simulate;
pub(crate) mod values;
pub(crate) mod vm;

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 it failed, 2 the command line is wrong, 3 the manager or host cannot be reached
(`plimsoll vm exec`: the exit code of the program in the VM).

Examples:
  plimsoll lab up                            a manager and three hosts on this machine
  plimsoll apply -f examples/webshop.toml    the VMs that the file describes, the plan first
  plimsoll vm list                           who runs where, and why
  plimsoll vm exec web-1 -- uname -r         a program in a VM
  plimsoll vm set web-1 --cpu 250m           change a running VM
  plimsoll lab down";

/// Runs more virtual machines on fewer servers, safely
#[derive(Debug, Parser)]
#[command(
    name = "plimsoll",
    version,
    after_help = AFTER_HELP,
    disable_help_subcommand = true,
    infer_subcommands = false,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct GlobalArgs {
    /// Print JSON: a list is an array of objects
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) json: bool,
    /// The project that is meant
    #[arg(
        long,
        short = 'p',
        global = true,
        value_name = "NAME",
        env = "PLIMSOLL_PROJECT",
        hide_env_values = true,
        help_heading = "Everywhere"
    )]
    pub(crate) project: Option<Name>,
    /// The manager: `unix:PATH` or `https://HOST:PORT`
    #[arg(
        long,
        global = true,
        value_name = "WHERE",
        env = "PLIMSOLL_SERVER",
        hide_env_values = true,
        help_heading = "Everywhere"
    )]
    pub(crate) server: Option<String>,
    /// The cluster's CA certificate, in PEM (with `https://`)
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "PLIMSOLL_CA",
        hide_env_values = true,
        help_heading = "Everywhere"
    )]
    pub(crate) ca: Option<PathBuf>,
    /// The file with the token that says who asks
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "PLIMSOLL_TOKEN_FILE",
        hide_env_values = true,
        help_heading = "Everywhere"
    )]
    pub(crate) token_file: Option<PathBuf>,
    /// The context of the configuration file to use, in place of its current one
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "PLIMSOLL_CONTEXT",
        hide_env_values = true,
        help_heading = "Everywhere"
    )]
    pub(crate) context: Option<Name>,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the manager: the cluster's state, its decisions and its REST API
    Server(cluster::ServerArgs),
    /// Run the agent of this host
    Agent(Box<cluster::AgentArgs>),
    /// Say what this machine can and cannot do, and why
    Doctor(cluster::DoctorArgs),
    /// A whole cluster on this machine: a manager and hosts in namespaces of their own
    #[command(subcommand)]
    Lab(lab::LabCommand),
    /// Projects: tenants with quota and credits
    #[command(subcommand)]
    Project(project::ProjectCommand),
    /// Hosts of the cluster
    #[command(subcommand)]
    Host(cluster::HostCommand),
    /// Images that VMs boot from
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Networks of a project
    #[command(subcommand)]
    Network(project::NetworkCommand),
    /// Virtual machines
    #[command(subcommand)]
    Vm(vm::VmCommand),
    /// What is booked for later, or held until an end
    #[command(subcommand)]
    Reservation(vm::ReservationCommand),
    /// Make a project what a file says it is
    Apply(vm::ApplyArgs),
    /// Try a request without making it: every host's refusal, or its score
    Explain(Box<vm::ExplainArgs>),
    /// What happened in the cluster
    Events(cluster::EventsArgs),
    /// Tokens of users
    #[command(subcommand)]
    Token(project::TokenCommand),
    /// Tokens with which hosts join
    #[command(subcommand)]
    JoinToken(project::JoinTokenCommand),
    /// Settings of the cluster
    #[command(subcommand)]
    Settings(cluster::SettingsCommand),
    /// The cluster in numbers
    Status(cluster::StatusArgs),
    /// Who the manager takes you for
    Whoami(cluster::WhoamiArgs),
    /// Clusters that this user knows
    #[command(subcommand)]
    Context(project::ContextCommand),
    /// Measure
    #[command(subcommand)]
    Bench(cluster::BenchCommand),
    /// Try placement policies on recorded and invented workloads, without a cluster
    #[command(subcommand)]
    Simulate(simulate::SimulateCommand),
    /// Print the completion script of a shell
    Completion(cluster::CompletionArgs),
    /// Guards one VM (started by the agent)
    #[command(hide = true)]
    VmGuard(cluster::GuardArgs),
    /// Enters a namespace and becomes another command (started by `lab up`)
    #[command(hide = true)]
    LabProcess(lab::LabProcessArgs),
}

//! `plimsoll project`, `network`, `token`, `join-token` and `context`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use plimsoll_model::{
    BitsPerSecond, Bytes, BytesPerSecond, Cidr, Credits, IoPerSecond, MilliCores, Name, Quota,
    Role, TokenId,
};

use super::values::{duration, snake};

fn role(text: &str) -> Result<Role, String> {
    snake(text, "viewer, operator, admin")
}

/// Credits as people write them: `12.5`.
fn credits(text: &str) -> Result<Credits, String> {
    let wrong = || format!("`{text}` is not a number of credits such as 12.5");
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let digits_only = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || part.len() > 6 || !digits_only(whole) || !digits_only(part) {
        return Err(wrong());
    }
    let whole: i64 = whole.parse().map_err(|_| wrong())?;
    let part: i64 = format!("{part:0<6}").parse().map_err(|_| wrong())?;
    whole
        .checked_mul(Credits::ONE)
        .and_then(|value| value.checked_add(part))
        .map(|value| Credits(sign * value))
        .ok_or_else(wrong)
}

/// Projects.
#[derive(Debug, Subcommand)]
pub(crate) enum ProjectCommand {
    /// Create a project
    #[command(after_help = "\
Examples:
  plimsoll project create shop --max-vms 20 --max-cpu 16 --max-memory 64GiB
  plimsoll project create guests --credits 100")]
    Create(ProjectCreateArgs),
    /// List the projects
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  plimsoll project list"
    )]
    List,
    /// Show a project
    #[command(after_help = "\
Examples:
  plimsoll project show shop")]
    Show(ProjectNameArgs),
    /// Change a project's quota or credits
    #[command(after_help = "\
Examples:
  plimsoll project set shop --max-cpu 32        (other limits stay)
  plimsoll project set shop --no-quota
  plimsoll project set guests --add-credits 50")]
    Set(ProjectSetArgs),
    /// Delete a project, which must be empty
    #[command(
        visible_alias = "rm",
        after_help = "\
Examples:
  plimsoll project delete guests --yes"
    )]
    Delete(ProjectDeleteArgs),
}

/// A project.
#[derive(Clone, Debug, Args)]
pub(crate) struct ProjectNameArgs {
    /// The project
    #[arg(value_name = "PROJECT")]
    pub(crate) name: Name,
}

/// Limits of a project.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct QuotaArgs {
    /// At most so many VMs
    #[arg(long, value_name = "N", help_heading = "Quota")]
    pub(crate) max_vms: Option<u32>,
    /// At most so many cores
    #[arg(long, value_name = "CORES", help_heading = "Quota")]
    pub(crate) max_cpu: Option<MilliCores>,
    /// At most so much memory
    #[arg(long, value_name = "SIZE", help_heading = "Quota")]
    pub(crate) max_memory: Option<Bytes>,
    /// At most so much disk space
    #[arg(long, value_name = "SIZE", help_heading = "Quota")]
    pub(crate) max_disk: Option<Bytes>,
    /// At most so much disk bandwidth
    #[arg(long, value_name = "RATE", help_heading = "Quota")]
    pub(crate) max_disk_bandwidth: Option<BytesPerSecond>,
    /// At most so many disk operations per second
    #[arg(long, value_name = "IOPS", help_heading = "Quota")]
    pub(crate) max_disk_iops: Option<IoPerSecond>,
    /// At most so much network bandwidth
    #[arg(long, value_name = "RATE", help_heading = "Quota")]
    pub(crate) max_network_bandwidth: Option<BitsPerSecond>,
    /// At most so many accelerators
    #[arg(long, value_name = "AMOUNT", help_heading = "Quota")]
    pub(crate) max_accelerators: Option<MilliCores>,
}

impl QuotaArgs {
    /// `quota` with what was typed in its place.
    pub(crate) fn over(&self, quota: &Quota) -> Quota {
        Quota {
            vms: self.max_vms.or(quota.vms),
            cpu: self.max_cpu.or(quota.cpu),
            memory: self.max_memory.or(quota.memory),
            disk: self.max_disk.or(quota.disk),
            disk_bandwidth: self.max_disk_bandwidth.or(quota.disk_bandwidth),
            disk_iops: self.max_disk_iops.or(quota.disk_iops),
            network: self.max_network_bandwidth.or(quota.network),
            accelerators: self.max_accelerators.or(quota.accelerators),
        }
    }

    /// Whether anything was typed.
    pub(crate) fn any(&self) -> bool {
        self.over(&Quota::default()) != Quota::default()
    }
}

/// Creates a project.
#[derive(Clone, Debug, Args)]
pub(crate) struct ProjectCreateArgs {
    #[command(flatten)]
    pub(crate) project: ProjectNameArgs,
    #[command(flatten)]
    pub(crate) quota: QuotaArgs,
    /// Charge it, beginning with so many credits
    #[arg(long, value_name = "CREDITS", value_parser = credits)]
    pub(crate) credits: Option<Credits>,
}

/// Changes a project.
#[derive(Clone, Debug, Args)]
pub(crate) struct ProjectSetArgs {
    #[command(flatten)]
    pub(crate) project: ProjectNameArgs,
    #[command(flatten)]
    pub(crate) quota: QuotaArgs,
    /// Take all limits away before those that are given are set
    #[arg(long, help_heading = "Quota")]
    pub(crate) no_quota: bool,
    /// Add credits; a negative number takes them
    #[arg(long, value_name = "CREDITS", value_parser = credits, allow_hyphen_values = true,
          conflicts_with = "uncharged")]
    pub(crate) add_credits: Option<Credits>,
    /// Charge it no longer
    #[arg(long)]
    pub(crate) uncharged: bool,
}

/// Deletes a project.
#[derive(Clone, Debug, Args)]
pub(crate) struct ProjectDeleteArgs {
    #[command(flatten)]
    pub(crate) project: ProjectNameArgs,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub(crate) yes: bool,
}

/// Networks.
#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// Create a network
    #[command(after_help = "\
Examples:
  plimsoll network create shop
  plimsoll network create dmz --cidr 10.20.0.0/24 --outside")]
    Create(NetworkCreateArgs),
    /// List the project's networks
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  plimsoll network list"
    )]
    List,
    /// Show a network
    #[command(after_help = "\
Examples:
  plimsoll network show shop")]
    Show(NetworkNameArgs),
    /// Delete a network that no VM uses
    #[command(
        visible_alias = "rm",
        after_help = "\
Examples:
  plimsoll network delete dmz"
    )]
    Delete(NetworkDeleteArgs),
}

/// A network.
#[derive(Clone, Debug, Args)]
pub(crate) struct NetworkNameArgs {
    /// The network
    #[arg(value_name = "NETWORK")]
    pub(crate) name: Name,
}

/// Creates a network.
#[derive(Clone, Debug, Args)]
pub(crate) struct NetworkCreateArgs {
    #[command(flatten)]
    pub(crate) network: NetworkNameArgs,
    /// Its addresses; by default a /24 is chosen
    #[arg(long, value_name = "ADDRESSES")]
    pub(crate) cidr: Option<Cidr>,
    /// Let guests reach the outside through their host
    #[arg(long)]
    pub(crate) outside: bool,
}

/// Deletes a network.
#[derive(Clone, Debug, Args)]
pub(crate) struct NetworkDeleteArgs {
    #[command(flatten)]
    pub(crate) network: NetworkNameArgs,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub(crate) yes: bool,
}

/// Tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token; it is shown this once
    #[command(after_help = "\
Examples:
  plimsoll -p shop token create --role operator --note ci --out ci.token
  plimsoll token create --cluster --role viewer --lifetime 30d")]
    Create(TokenCreateArgs),
    /// List tokens, without their secrets
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  plimsoll token list"
    )]
    List,
    /// Revoke a token
    #[command(after_help = "\
Examples:
  plimsoll token revoke token-0190b3e2c5a57d31a6d5b8e7c9f01234")]
    Revoke(TokenRevokeArgs),
}

/// Makes a token.
#[derive(Clone, Debug, Args)]
pub(crate) struct TokenCreateArgs {
    /// What its holder may do: viewer, operator or admin
    #[arg(long, value_name = "ROLE", value_parser = role)]
    pub(crate) role: Role,
    /// In the whole cluster, in place of one project
    #[arg(long)]
    pub(crate) cluster: bool,
    /// What it is for
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) note: String,
    /// How long it lasts; by default until it is revoked
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) lifetime: Option<Duration>,
    /// Write it to a new file that only you can read, in place of printing it
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

/// Revokes a token.
#[derive(Clone, Debug, Args)]
pub(crate) struct TokenRevokeArgs {
    /// Its id
    #[arg(value_name = "ID")]
    pub(crate) id: TokenId,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub(crate) yes: bool,
}

/// Join tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum JoinTokenCommand {
    /// Make a token with which one host joins, once
    #[command(after_help = "\
Examples:
  plimsoll join-token create
  plimsoll join-token create --lifetime 10m --out join.token")]
    Create(JoinTokenCreateArgs),
}

/// Makes a join token.
#[derive(Clone, Debug, Args)]
pub(crate) struct JoinTokenCreateArgs {
    /// How long it is good: 1m to 24h
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    pub(crate) lifetime: Duration,
    /// Write it to a new file that only you can read, in place of printing it
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

/// Contexts of the configuration file.
#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// List the contexts; `*` marks the current one
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  plimsoll context list"
    )]
    List,
    /// Write a context, from the options --server, --ca, --token-file and --project
    #[command(after_help = "\
Examples:
  plimsoll context set prod --server https://manager:7700 --ca ca.pem --token-file ~/prod.token")]
    Set(ContextNameArgs),
    /// Make a context the current one
    #[command(after_help = "\
Examples:
  plimsoll context use lab")]
    Use(ContextNameArgs),
    /// Forget a context
    #[command(
        visible_alias = "rm",
        after_help = "\
Examples:
  plimsoll context delete lab"
    )]
    Delete(ContextNameArgs),
}

/// A context.
#[derive(Clone, Debug, Args)]
pub(crate) struct ContextNameArgs {
    /// The context
    #[arg(value_name = "CONTEXT")]
    pub(crate) name: Name,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credits_are_decimal() {
        assert_eq!(credits("12.5"), Ok(Credits(12_500_000)));
        assert_eq!(credits("-1"), Ok(Credits(-1_000_000)));
        assert_eq!(credits("0.000001"), Ok(Credits(1)));
        for text in ["", "x", ".5", "1.0000001", "--1", "1e3", "99999999999999999999", "+1"] {
            assert!(credits(text).is_err(), "{text}");
        }
    }
}

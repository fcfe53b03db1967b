//! What moves: `plimsoll vm migrate` and `host drain`.

use std::time::Duration;

use clap::Args;
use plimsoll_api::migration::MigrationLimits;
use plimsoll_model::{BytesPerSecond, Name};

use super::values::{duration, milliseconds};

/// What a move may cost.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct LimitArgs {
    /// How long a VM may stand still: 1ms to 10s
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = duration)]
    pub(crate) max_downtime: Duration,
    /// By when a move must be over: 1s to 1day
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub(crate) deadline: Duration,
    /// The most that is sent, disk and memory each; 0: no limit
    #[arg(long, value_name = "AMOUNT", default_value = "1GiB/s")]
    pub(crate) bandwidth: BytesPerSecond,
    /// Never run a VM before all of its memory is there: the move fails at the deadline instead
    #[arg(long)]
    pub(crate) no_post_copy: bool,
}

impl From<LimitArgs> for MigrationLimits {
    fn from(args: LimitArgs) -> Self {
        Self {
            max_downtime_ms: milliseconds(args.max_downtime),
            deadline_ms: milliseconds(args.deadline),
            bandwidth: args.bandwidth,
            post_copy: !args.no_post_copy,
        }
    }
}

/// Moves a VM.
#[derive(Clone, Debug, Args)]
pub(crate) struct MigrateArgs {
    /// The VM
    #[arg(value_name = "VM")]
    pub(crate) name: Name,
    /// Where to; by default where the VM's policy would have it
    #[arg(long, value_name = "HOST")]
    pub(crate) to: Option<Name>,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    /// Give up the move that is under way, as long as that is possible
    #[arg(long, conflicts_with_all = ["to", "dry_run"])]
    pub(crate) cancel: bool,
    /// Only say where it would go, and why
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not wait until it is there
    #[arg(long, help_heading = "Waiting")]
    pub(crate) no_wait: bool,
}

/// Empties a host.
#[derive(Clone, Debug, Args)]
pub(crate) struct DrainArgs {
    /// The host
    #[arg(value_name = "HOST")]
    pub(crate) name: Name,
    /// Only place nothing new there; its VMs stay
    #[arg(long)]
    pub(crate) cordon_only: bool,
    /// How many VMs move at once: 1 to 64
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) max_parallel: u32,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    /// Do not wait until it is empty
    #[arg(long, conflicts_with = "timeout", help_heading = "Waiting")]
    pub(crate) no_wait: bool,
    /// Wait at most so long
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "1h",
        value_parser = duration,
        help_heading = "Waiting"
    )]
    pub(crate) timeout: Duration,
}

//! `plimsoll settings`, `status` and `whoami`.

use std::time::Duration;

use plimsoll_api::v1::SetSettingsRequest;
use plimsoll_model::Prices;

use crate::{
    cli::cluster::{SettingsArgs, SettingsCommand, StatusArgs},
    config::Connection,
    failure::{OrFail as _, Outcome},
    output::{self, Output},
};

/// Runs what was typed about settings.
pub(crate) async fn run(
    command: SettingsCommand,
    connection: &Connection,
    output: Output,
) -> Outcome {
    let settings = match command {
        SettingsCommand::Show => {
            connection.client.settings().await.or_fail(|| "cannot show the settings".to_owned())?
        }
        SettingsCommand::Set(args) => set(&args, connection).await?,
    };
    output.show(&settings, output::cluster::settings)
}

async fn set(args: &SettingsArgs, connection: &Connection) -> Outcome<plimsoll_api::v1::Settings> {
    let what = || "cannot change the settings".to_owned();
    let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
    let any_price = [
        args.price_core,
        args.price_memory,
        args.price_disk,
        args.price_network,
        args.price_accelerator,
    ]
    .iter()
    .any(Option::is_some);
    let prices = if any_price {
        let now = connection.client.settings().await.or_fail(what)?.prices;
        Some(Prices {
            core_hour: args.price_core.unwrap_or(now.core_hour),
            memory_gib_hour: args.price_memory.unwrap_or(now.memory_gib_hour),
            disk_gib_hour: args.price_disk.unwrap_or(now.disk_gib_hour),
            network_gbit_hour: args.price_network.unwrap_or(now.network_gbit_hour),
            accelerator_hour: args.price_accelerator.unwrap_or(now.accelerator_hour),
        })
    } else {
        None
    };
    let request = SetSettingsRequest {
        policy: args.policy,
        prices,
        unreachable_after_ms: args.unreachable_after.map(milliseconds),
        dead_after_ms: args.dead_after.map(milliseconds),
        lease_ms: args.lease.map(milliseconds),
        vm_memory_overhead: args.vm_memory_overhead,
        end_warning_s: args.end_warning.map(seconds),
        risk_cpu: args.risk_cpu,
        risk_memory: args.risk_memory,
        slot_s: args.slot.map(seconds),
        balance_mode: args.balance,
        balance_threshold_percent: args.balance_threshold,
        balance_cooldown_s: args.balance_cooldown.map(seconds),
        balance_moves_at_once: args.balance_moves,
    };
    connection.client.set_settings(&request).await.or_fail(what)
}

/// The cluster in numbers.
pub(crate) async fn status(args: &StatusArgs, connection: &Connection, output: Output) -> Outcome {
    let status = connection
        .client
        .status()
        .await
        .or_fail(|| "cannot show the cluster's status".to_owned())?;
    let now = jiff::Timestamp::now();
    output.show(&status, |output, status| output::cluster::status(output, status, args.tasks, now))
}

/// Who asks.
pub(crate) async fn whoami(connection: &Connection, output: Output) -> Outcome {
    let who = connection
        .client
        .whoami()
        .await
        .or_fail(|| "cannot ask the manager who you are".to_owned())?;
    output.show(&who, output::cluster::whoami)
}

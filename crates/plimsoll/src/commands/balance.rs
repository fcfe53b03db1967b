//! `plimsoll balance`.

use crate::{
    cli::cluster::BalanceCommand,
    config::Connection,
    failure::{OrFail as _, Outcome},
    output::{self, Output},
};

/// Runs what was typed.
pub(crate) async fn run(
    command: &BalanceCommand,
    connection: &Connection,
    output: Output,
) -> Outcome {
    let client = &connection.client;
    let view = match command {
        BalanceCommand::Status => client.balance().await,
        BalanceCommand::Plan => client.plan_balance().await,
        BalanceCommand::Apply => client.apply_balance().await,
    };
    let view = view.or_fail(|| "cannot tell how balanced the cluster is".to_owned())?;
    output.show(&view, output::balance::view)
}

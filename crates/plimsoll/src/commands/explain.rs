//! `plimsoll explain` and `plimsoll vm explain`.

use plimsoll_api::v1::ExplainRequest;
use plimsoll_model::Name;

use crate::{
    cli::vm::ExplainArgs,
    config::Connection,
    failure::{OrFail as _, Outcome},
    output::{Output, explain::explanation},
};

/// A request that is only tried.
pub(crate) async fn tried(args: &ExplainArgs, connection: &Connection, output: Output) -> Outcome {
    let project = connection.project()?;
    let request = super::request::build(&args.request, connection, &project).await?;
    let explained = connection
        .client
        .explain(&project, &ExplainRequest { request, policy: args.request.policy })
        .await
        .or_fail(|| format!("cannot try vm `{}`", args.request.name))?;
    output.show(&explained, explanation)
}

/// A VM that exists.
pub(crate) async fn of_vm(name: &Name, connection: &Connection, output: Output) -> Outcome {
    let project = connection.project()?;
    let explained = connection
        .client
        .explain_vm(&project, name)
        .await
        .or_fail(|| format!("cannot explain vm `{name}`"))?;
    output.show(&explained, explanation)
}

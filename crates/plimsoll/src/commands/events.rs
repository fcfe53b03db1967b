//! `plimsoll events`.

use std::time::Duration;

use plimsoll_api::v1::EventQuery;
use plimsoll_model::EventSequence;

use crate::{
    cli::{GlobalArgs, cluster::EventsArgs},
    config::Connection,
    failure::{Failure, OrFail as _, Outcome},
    output::{self, Output},
};

/// How long one request waits for news.
const LONG_POLL_MS: u64 = 25_000;
/// Between tries while the manager is away.
const RETRY: Duration = Duration::from_secs(1);

/// Prints events. Only a project that is named for this command narrows them: a context's project
/// would hide what hosts do.
pub(crate) async fn run(
    args: &EventsArgs,
    global: &GlobalArgs,
    connection: &Connection,
    output: Output,
) -> Outcome {
    let mut query = EventQuery {
        after: args.after.map(EventSequence),
        limit: Some(args.limit),
        project: global.project.clone(),
        vm: args.vm.clone(),
        wait_ms: None,
    };
    let what = || "cannot read events".to_owned();
    let events = connection.client.events(&query).await.or_fail(what)?;
    if !args.follow {
        return output.show(&events, |output, events| {
            events.iter().map(|event| output::cluster::event(output, event)).collect()
        });
    }
    let mut events = events;
    query.wait_ms = Some(LONG_POLL_MS);
    loop {
        for event in &events {
            if output.is_json() {
                output.json_line(event)?;
            } else {
                output.data(&output::cluster::event(&output, event))?;
            }
            query.after = Some(event.sequence);
        }
        if query.after.is_none() {
            // Nothing has happened yet: follow from the beginning.
            query.after = Some(EventSequence(0));
        }
        let next = tokio::select! {
            next = connection.client.events(&query) => next.map_err(Failure::from),
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        events = match next {
            Ok(events) => events,
            // A manager that restarts is no reason to stop looking.
            Err(failure) if failure.is_passing() => {
                tokio::time::sleep(RETRY).await;
                Vec::new()
            }
            Err(failure) => return Err(failure).or_fail(what),
        };
    }
}

//! Does what time and failures ask for, again and again.
//!
//! Each reconciler looks at the newest state, takes no arguments and does no retries of its own: what
//! it could not do it finds again. All run on a timer and on a nudge, and note their last result for
//! `status`. Decisions are made anew inside the transaction that carries them out.

use std::time::Duration;

use tokio::task::JoinSet;

use crate::{app::AppError, core::Core};

pub(crate) mod balance;
pub(crate) mod credits;
pub(crate) mod draining;
pub(crate) mod ending;
pub(crate) mod failover;
pub(crate) mod fencing;
pub(crate) mod hosts;
pub(crate) mod migration;
pub(crate) mod overcommit;
pub(crate) mod pending;
pub(crate) mod reservations;
pub(crate) mod tokens;

pub use fencing::FencingCommand;

/// The reconcilers at work; dropping it ends them.
#[derive(Debug)]
#[must_use = "dropping it ends the reconcilers"]
pub struct Reconcilers {
    _tasks: JoinSet<()>,
}

/// Starts the reconcilers, on the current tokio runtime.
pub fn spawn(core: &Core) -> Reconcilers {
    let every = core.config().reconcile_every;
    let slowly = every.saturating_mul(10);
    let mut tasks = JoinSet::new();
    tasks.spawn(repeat(core.clone(), "hosts", every, hosts::reconcile));
    tasks.spawn(repeat(core.clone(), "migration", every, migration::reconcile));
    tasks.spawn(repeat(core.clone(), "failover", every, failover::reconcile));
    tasks.spawn(repeat(core.clone(), "draining", every, draining::reconcile));
    tasks.spawn(repeat(core.clone(), "pending", every, pending::reconcile));
    tasks.spawn(repeat(core.clone(), "reservations", every, reservations::reconcile));
    tasks.spawn(repeat(core.clone(), "ending", every, ending::reconcile));
    tasks.spawn(repeat(core.clone(), "credits", slowly, credits::reconcile));
    tasks.spawn(repeat(core.clone(), "tokens", slowly, tokens::reconcile));
    let balance = |core: Core| async move { core.balance().reconcile(core.clone()).await };
    tasks.spawn(repeat(core.clone(), "balance", every, balance));
    let overcommitter = std::sync::Arc::new(overcommit::Overcommitter::default());
    let reckon = move |core| {
        let overcommitter = std::sync::Arc::clone(&overcommitter);
        async move { overcommitter.reconcile(core).await }
    };
    tasks.spawn(repeat(core.clone(), "overcommit", every, reckon));
    if let Some(command) = core.config().fencing.clone() {
        let fencer = std::sync::Arc::new(fencing::Fencer::new(command));
        let reconcile = move |core| {
            let fencer = std::sync::Arc::clone(&fencer);
            async move { fencer.reconcile(core).await }
        };
        tasks.spawn(repeat(core.clone(), "fencing", every, reconcile));
    }
    Reconcilers { _tasks: tasks }
}

async fn repeat<F, R>(core: Core, name: &'static str, every: Duration, reconcile: F)
where
    F: Fn(Core) -> R + Send,
    R: Future<Output = Result<String, AppError>> + Send,
{
    loop {
        let nudged = core.nudged().notified();
        tokio::pin!(nudged);
        nudged.as_mut().enable();
        match reconcile(core.clone()).await {
            Ok(result) => core.note_task(name, format!("{result} at {}", core.now())),
            Err(error) => {
                tracing::warn!(reconciler = name, %error, "reconciling failed");
                core.note_task(name, format!("failed at {}: {error}", core.now()));
            }
        }
        let _ = tokio::time::timeout(every, nudged).await;
    }
}

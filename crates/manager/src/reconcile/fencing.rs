//! The configured fencing command: asks the outside world (IPMI, a power switch, a cloud's API) to
//! make sure that a dead host runs nothing.

use std::{collections::HashMap, process::Stdio, time::Duration};

use futures_util::future::join_all;
use parking_lot::Mutex;
use plimsoll_model::{EventKind, Fencing, Host, HostId, HostPhase, Power, Severity, VmPhase};
use thiserror::Error;
use tokio::process::Command;

use crate::{
    app::{AppError, host},
    core::{Core, State},
    reconcile::failover,
};

/// The pause after a failure doubles from the first of these to the second.
const FIRST_PAUSE: Duration = Duration::from_secs(15);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// How many run at once.
const AT_ONCE: usize = 16;
/// How much of what the command says goes into the event.
const MAX_SAID: usize = 500;

/// A command that fences a host, IPMI-style: when it succeeds, the host runs nothing any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FencingCommand {
    /// The program and its arguments; `{host}` stands for the host's name and `{id}` for its id.
    pub argv: Vec<String>,
    /// It is killed, and has failed, after this time.
    pub timeout: Duration,
}

/// A fencing that did not succeed.
#[derive(Debug, Error)]
pub enum FencingError {
    /// No program is configured.
    #[error("the fencing command is empty")]
    Empty,
    /// It cannot be started.
    #[error("the fencing command cannot be started")]
    Start(#[source] std::io::Error),
    /// It took too long.
    #[error("the fencing command did not end within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// It said no.
    #[error("the fencing command ended with {status}: {said}")]
    Failed {
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What it wrote, cut off.
        said: String,
    },
}

impl FencingCommand {
    /// Runs the command for a host.
    ///
    /// # Errors
    /// It did not succeed: nothing is known about the host then.
    pub async fn run(&self, host: &Host) -> Result<(), FencingError> {
        let mut words = self.argv.iter().map(|word| {
            word.replace("{host}", host.name.as_str()).replace("{id}", &host.id.to_string())
        });
        let program = words.next().ok_or(FencingError::Empty)?;
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::null()).kill_on_drop(true);
        let output = match tokio::time::timeout(self.timeout, command.output()).await {
            Err(_) => return Err(FencingError::TimedOut(self.timeout)),
            Ok(Err(source)) => return Err(FencingError::Start(source)),
            Ok(Ok(output)) => output,
        };
        if output.status.success() {
            return Ok(());
        }
        let said = [output.stderr, output.stdout].concat();
        let said = String::from_utf8_lossy(&said);
        let said = said.trim().replace(|c: char| c.is_control(), " ");
        let said = said.chars().take(MAX_SAID).collect();
        Err(FencingError::Failed { status: output.status, said })
    }
}

/// When a host may be tried again, and the pause after the next failure.
#[derive(Clone, Copy, Debug)]
struct Pause {
    until: Duration,
    next: Duration,
}

/// Fences dead hosts with the command.
#[derive(Debug)]
pub(crate) struct Fencer {
    command: FencingCommand,
    pauses: Mutex<HashMap<HostId, Pause>>,
}

impl Fencer {
    pub(crate) fn new(command: FencingCommand) -> Self {
        Self { command, pauses: Mutex::default() }
    }

    pub(crate) async fn reconcile(&self, core: Core) -> Result<String, AppError> {
        let state = core.snapshot();
        let now = core.monotonic();
        let due: Vec<Host> = state
            .hosts
            .values()
            .map(|record| &record.host)
            .filter(|host| needs_fencing(&state, host))
            .filter(|host| self.pauses.lock().get(&host.id).is_none_or(|pause| pause.until <= now))
            .take(AT_ONCE)
            .cloned()
            .collect();
        let tried = due.len();
        let results = join_all(due.iter().map(|host| self.fence(&core, host))).await;
        let mut done = 0;
        for result in results {
            done += usize::from(result?);
        }
        if done > 0 {
            core.nudge();
        }
        Ok(format!("{done} of {tried} hosts fenced"))
    }

    async fn fence(&self, core: &Core, host: &Host) -> Result<bool, AppError> {
        let id = host.id;
        match self.command.run(host).await {
            Ok(()) => {
                self.pauses.lock().remove(&id);
                let inner = core.clone();
                core.submit(None, move |txn| {
                    let Some(record) = txn.state.host(id).cloned() else { return Ok(false) };
                    // It may have come back meanwhile, powered on again by the command.
                    if !matches!(record.host.phase, HostPhase::Dead | HostPhase::Fenced)
                        || !host::begin_fencing(&inner, txn, id, None, None)
                    {
                        return Ok(false);
                    }
                    host::fence(txn, &record, Fencing::Command)?;
                    Ok(true)
                })
                .await
            }
            Err(error) => {
                let mut message = error.to_string();
                if let Some(source) = std::error::Error::source(&error) {
                    message = format!("{message}: {source}");
                }
                self.pause(core, id);
                core.submit(None, move |txn| {
                    if let Some(record) = txn.state.host(id).cloned() {
                        let kind = EventKind::HostFencingFailed;
                        txn.host_event(Severity::Error, kind, &record, message);
                    }
                    Ok(false)
                })
                .await
            }
        }
    }

    fn pause(&self, core: &Core, host: HostId) {
        let mut pauses = self.pauses.lock();
        let length = pauses.get(&host).map_or(FIRST_PAUSE, |pause| pause.next);
        let next = length.saturating_mul(2).min(LONGEST_PAUSE);
        pauses.insert(host, Pause { until: core.monotonic().saturating_add(length), next });
    }
}

/// A dead host with VMs, or one fenced by its lease with VMs that the lease does not cover.
fn needs_fencing(state: &State, host: &Host) -> bool {
    let mut vms = state.vms_of_host(host.id).filter(|vm| {
        // What moves to it may run there already.
        (vm.host() == Some(host.id) || vm.destination() == Some(host.id))
            && vm.vm.phase != VmPhase::Deleting
            && vm.vm.power == Power::Running
            && failover::movable(vm)
    });
    match (host.phase, host.fencing) {
        (HostPhase::Dead, _) => vms.next().is_some(),
        (HostPhase::Fenced, Some(Fencing::Lease)) => {
            vms.any(|vm| !failover::covered_on(vm, host.id, Fencing::Lease))
        }
        _ => false,
    }
}

//! Waits until what was asked for is true, with a limit.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use plimsoll_api::{Client, ClientError, v1::VmView};
use plimsoll_model::{Name, RestartPolicy, VmPhase};

use crate::{
    config::Connection,
    failure::{Failure, OrFail as _, Outcome},
    output::progress::Progress,
};

/// How often the manager is asked; more often in the beginning, for what is done at once.
const POLL: Duration = Duration::from_millis(400);
const FIRST_POLL: Duration = Duration::from_millis(25);
/// How long a VM may be failed before that is believed: its host may be starting it again.
const DOUBT: Duration = Duration::from_secs(6);
/// How long the manager may be away meanwhile, such as when it is restarted.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a VM is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// It runs, and its guest agent answers if its image has one.
    Running,
    /// It does not run.
    Stopped,
    /// This generation is carried out.
    Generation(u64),
    /// This generation is carried out, and it runs as with `Running`.
    RunningGeneration(u64),
}

/// How far a VM is.
enum Verdict {
    Done,
    /// Not yet, for this reason.
    Waiting(String),
    /// It is failed.
    Failed(String),
}

fn judge(vm: &VmView, wanted: Wanted, has_agent: bool) -> Verdict {
    let said = || vm.message.clone().unwrap_or_else(|| "no reason is known".to_owned());
    match (wanted, vm.state) {
        (_, VmPhase::Failed) => Verdict::Failed(said()),
        (Wanted::Running, VmPhase::Running) if has_agent && vm.guest.is_none() => {
            Verdict::Waiting("its guest is booting".to_owned())
        }
        (Wanted::Running, VmPhase::Running) | (Wanted::Stopped, VmPhase::Stopped) => Verdict::Done,
        // What is booked, or has a start in the future, is as it should be while it waits.
        (Wanted::Running, VmPhase::Pending) if waits_for_its_start(vm) => Verdict::Done,
        (Wanted::RunningGeneration(generation), _) if vm.observed_generation >= generation => {
            judge(vm, Wanted::Running, has_agent)
        }
        (Wanted::Generation(generation), phase) => {
            if vm.observed_generation >= generation
                || matches!(phase, VmPhase::Pending | VmPhase::Stopped)
            {
                Verdict::Done
            } else {
                Verdict::Waiting(vm.message.clone().unwrap_or_else(|| phase.to_string()))
            }
        }
        (_, phase) => Verdict::Waiting(match &vm.message {
            Some(message) => format!("{phase}: {message}"),
            None => phase.to_string(),
        }),
    }
}

fn waits_for_its_start(vm: &VmView) -> bool {
    vm.booking.is_some() || vm.spec.start_after.is_some_and(|at| at > jiff::Timestamp::now())
}

/// Asks; a manager that is away for a moment is waited for.
pub(crate) async fn patiently<T>(
    deadline: Instant,
    ask: impl AsyncFn() -> Result<T, ClientError>,
) -> Outcome<T> {
    let patience = deadline.min(Instant::now() + PATIENCE);
    loop {
        match ask().await.map_err(Failure::from) {
            Err(failure) if failure.is_passing() && Instant::now() < patience => {
                tokio::time::sleep(POLL).await;
            }
            other => return other,
        }
    }
}

/// Asks for the project's VMs.
async fn vms(client: &Client, project: &Name, deadline: Instant) -> Outcome<Vec<VmView>> {
    let vms = patiently(deadline, async || client.vms(project).await).await;
    vms.or_fail(|| "cannot see how far it is".to_owned())
}

/// Waits until every VM is as wanted; the VMs, in that order, are the answer.
pub(crate) async fn until_true(
    connection: &Connection,
    project: &Name,
    wanted: &[(Name, Wanted)],
    deadline: Instant,
    progress: &Progress,
) -> Outcome<Vec<VmView>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let client = &connection.client;
    let agents = images_with_agent(client, project).await?;
    let mut failed_since: BTreeMap<Name, Instant> = BTreeMap::new();
    let mut poll = FIRST_POLL;
    loop {
        let views: BTreeMap<Name, VmView> = vms(client, project, deadline)
            .await?
            .into_iter()
            .map(|vm| (vm.name.clone(), vm))
            .collect();
        let mut waiting = Vec::new();
        for (name, wanted) in wanted {
            let Some(vm) = views.get(name) else {
                return Err(Failure::new(format!("vm `{name}` was deleted meanwhile")));
            };
            let has_agent = agents.contains(&vm.spec.image);
            if vm.state != VmPhase::Failed {
                failed_since.remove(name);
            }
            match judge(vm, *wanted, has_agent) {
                Verdict::Done => {}
                Verdict::Waiting(why) => waiting.push((name.clone(), why)),
                Verdict::Failed(why)
                    if vm.spec.restart != RestartPolicy::Never
                        && failed_since
                            .entry(name.clone())
                            .or_insert_with(Instant::now)
                            .elapsed()
                            < DOUBT =>
                {
                    waiting.push((name.clone(), why));
                }
                Verdict::Failed(why) => {
                    return Err(Failure::new(why)
                        .context(format!("vm `{name}` has failed"))
                        .hint(format!("`plimsoll vm logs {name} --source qemu` may say more")));
                }
            }
        }
        if waiting.is_empty() {
            return Ok(wanted.iter().filter_map(|(name, _)| views.get(name).cloned()).collect());
        }
        if Instant::now() >= deadline {
            return Err(too_late(&waiting));
        }
        let (name, why) = &waiting[0];
        progress.set(format!(
            "{} of {} are ready; vm {name}: {why}",
            wanted.len() - waiting.len(),
            wanted.len()
        ));
        tokio::time::sleep(poll).await;
        poll = (poll * 3 / 2).min(POLL);
    }
}

fn too_late(waiting: &[(Name, String)]) -> Failure {
    let failure = Failure::new("it is not done within the time limit")
        .hint("it goes on in the background; --timeout waits longer");
    waiting
        .iter()
        .take(10)
        .fold(failure, |failure, (name, why)| failure.detail(format!("vm {name}"), why.clone()))
}

/// The images whose VMs have a guest agent.
async fn images_with_agent(client: &Client, project: &Name) -> Outcome<Vec<Name>> {
    let mut images = client.images(Some(project)).await?;
    images.extend(client.images(None).await?);
    Ok(images.into_iter().filter(|image| image.guest_agent).map(|image| image.name).collect())
}

/// Waits until none of the VMs is there any more.
pub(crate) async fn until_gone(
    client: &Client,
    project: &Name,
    names: &[Name],
    deadline: Instant,
    progress: &Progress,
) -> Outcome {
    loop {
        let left: Vec<(Name, String)> = vms(client, project, deadline)
            .await?
            .into_iter()
            .filter(|vm| names.contains(&vm.name))
            .map(|vm| (vm.name, vm.message.unwrap_or_else(|| vm.state.to_string())))
            .collect();
        let Some((name, why)) = left.first() else { return Ok(()) };
        if Instant::now() >= deadline {
            return Err(too_late(&left));
        }
        progress.set(format!(
            "{} of {} are gone; vm {name}: {why}",
            names.len() - left.len(),
            names.len()
        ));
        tokio::time::sleep(POLL).await;
    }
}

//! Carries a plan out, step by step, and waits until it is true.

use std::time::Instant;

use plimsoll_api::{ErrorCode, v1::VmView};
use plimsoll_model::Name;

use super::plan::{Observed, Plan, Step};
use crate::{
    cli::values::WaitArgs,
    commands::wait::{Wanted, until_gone, until_true},
    config::Connection,
    failure::{Failure, OrFail as _, Outcome},
    output::progress::Progress,
};

/// What the manager says there is.
pub(crate) async fn observe(connection: &Connection, project: &Name) -> Outcome<Observed> {
    let client = &connection.client;
    let mut observed = Observed::default();
    match client.project(project).await {
        Ok(view) => {
            observed.project = Some(view);
            observed.networks = client.networks(project).await?;
            observed.vms = client.vms(project).await?;
            observed.images = client.images(Some(project)).await?;
        }
        Err(error) if error.code() == Some(ErrorCode::NotFound) => {}
        Err(error) => return Err(error).or_fail(|| format!("cannot look at project `{project}`")),
    }
    for image in client.images(None).await? {
        if !observed.images.iter().any(|known| known.id == image.id) {
            observed.images.push(image);
        }
    }
    Ok(observed)
}

/// Carries the plan out. Whatever was done before a step failed stays; the next `apply` goes on.
pub(crate) async fn execute(
    connection: &Connection,
    project: &Name,
    plan: &Plan,
    wait: WaitArgs,
) -> Outcome<Vec<VmView>> {
    let deadline = Instant::now() + wait.timeout;
    let progress = Progress::new(format!("applying to project {project}"));
    let client = &connection.client;
    let deleted: Vec<Name> = plan
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::DeleteVm { name, .. } => Some(name.clone()),
            _ => None,
        })
        .collect();
    let mut gone = deleted.is_empty();
    let mut changed: Vec<(Name, Wanted)> = Vec::new();
    for step in &plan.steps {
        // VMs that are replaced must be gone before their names are free again, and networks can
        // only be deleted when nobody is on them.
        if !gone && needs_deleted(step, &deleted) {
            until_gone(client, project, &deleted, deadline, &progress).await?;
            gone = true;
        }
        progress.set(describe(step));
        changed.extend(carry_out(connection, project, step).await?);
    }
    if wait.no_wait {
        return Ok(Vec::new());
    }
    if !gone {
        until_gone(client, project, &deleted, deadline, &progress).await?;
    }
    until_true(connection, project, &changed, deadline, &progress).await
}

/// Whether a step can only be taken when these VMs are gone.
fn needs_deleted(step: &Step, deleted: &[Name]) -> bool {
    match step {
        Step::DeleteNetwork { .. } | Step::DeleteProject { .. } => true,
        Step::CreateVms { request } => request.requests.iter().any(|request| {
            let prefix = format!("{}-", request.name);
            deleted.iter().any(|name| {
                *name == request.name
                    || (request.split.is_some() && name.as_str().starts_with(&prefix))
            })
        }),
        _ => false,
    }
}

fn describe(step: &Step) -> String {
    match step {
        Step::CreateProject { request } => format!("creating project {}", request.name),
        Step::SetProject { name, .. } => format!("changing project {name}"),
        Step::CreateNetwork { request } => format!("creating network {}", request.name),
        Step::SetVm { name, .. } => format!("changing vm {name}"),
        Step::DeleteVm { name, .. } => format!("deleting vm {name}"),
        Step::CreateVms { .. } => "placing VMs".to_owned(),
        Step::DeleteNetwork { name } => format!("deleting network {name}"),
        Step::DeleteProject { name } => format!("deleting project {name}"),
    }
}

/// Takes one step, and says which VMs are to become what by it.
async fn carry_out(
    connection: &Connection,
    project: &Name,
    step: &Step,
) -> Outcome<Vec<(Name, Wanted)>> {
    let client = &connection.client;
    let failed = || format!("failed at {}", describe(step));
    match step {
        Step::CreateProject { request } => {
            client.create_project(request).await.or_fail(failed)?;
        }
        Step::SetProject { name, request, .. } => {
            client.set_project(name, request).await.or_fail(failed)?;
        }
        Step::CreateNetwork { request } => {
            client.create_network(project, request).await.or_fail(failed)?;
        }
        Step::SetVm { name, request, .. } => {
            let vm =
                client.set_vm(project, name, request).await.or_fail(failed).map_err(not_live)?;
            return Ok(vec![(name.clone(), Wanted::Generation(vm.generation))]);
        }
        Step::DeleteVm { name, .. } => {
            gone(client.delete_vm(project, name).await).or_fail(failed)?;
        }
        Step::CreateVms { request } => {
            let created = client.create_vms(project, request).await.or_fail(failed)?;
            return Ok(created.vms.into_iter().map(|vm| (vm.name, Wanted::Running)).collect());
        }
        Step::DeleteNetwork { name } => {
            gone(client.delete_network(project, name).await).or_fail(failed)?;
        }
        Step::DeleteProject { name } => {
            gone(client.delete_project(name).await).or_fail(failed)?;
        }
    }
    Ok(Vec::new())
}

/// A change that the manager or agent cannot make on the VM as it runs.
fn not_live(failure: Failure) -> Failure {
    match failure.code() {
        Some(ErrorCode::WrongState | ErrorCode::InvalidValue | ErrorCode::Unsupported) => failure
            .hint(
                "a VM that is stopped takes more changes; or change it in the file and --replace",
            ),
        _ => failure,
    }
}

/// What is not there any more need not be deleted.
pub(crate) fn gone(
    result: Result<(), plimsoll_api::ClientError>,
) -> Result<(), plimsoll_api::ClientError> {
    match result {
        Err(error) if error.code() == Some(ErrorCode::NotFound) => Ok(()),
        other => other,
    }
}

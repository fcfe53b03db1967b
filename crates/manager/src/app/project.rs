//! Projects.

use std::collections::BTreeMap;

use plimsoll_api::{
    deduplication::ProjectDeduplication,
    v1::{CreateProjectRequest, ProjectView, SetProjectRequest},
};
use plimsoll_model::{Credits, EventKind, Name, Project, ProjectId, Role, Severity, Subject};

use crate::{
    app::{AppError, Caller, Noun},
    core::{Core, State, record::ProjectRecord, txn::Txn},
};

/// Creates a project.
///
/// # Errors
/// The name is taken, or the caller is not an admin of the cluster.
pub async fn project_create(
    core: &Core,
    caller: &Caller,
    request: CreateProjectRequest,
) -> Result<ProjectView, AppError> {
    caller.in_cluster(Role::Admin)?;
    core.submit(Some(caller.token), move |txn| {
        let name = request.name;
        if txn.state.project_by_name(&name).is_some() {
            return Err(AppError::AlreadyExists { what: Noun::Project, name: name.to_string() });
        }
        let project = Project {
            id: ProjectId(txn.uuid()),
            name,
            quota: request.quota,
            credits: request.credits,
            created_at: txn.now,
        };
        log(txn, &project, EventKind::ProjectCreated, "created");
        let shown = view(&txn.state, &project, ProjectDeduplication::default());
        txn.put_project(ProjectRecord { project, charged_until: txn.now });
        Ok(shown)
    })
    .await
}

/// The projects that the caller may see, by name.
///
/// # Errors
/// None at present.
pub fn project_list(core: &Core, caller: &Caller) -> Result<Vec<ProjectView>, AppError> {
    let state = core.snapshot();
    let merged = deduplication(core, &state);
    Ok(state
        .project_names
        .values()
        .filter(|id| caller.project.is_none_or(|own| own == **id))
        .filter_map(|id| state.project(*id))
        .map(|project| view(&state, project, merged.get(&project.id).copied().unwrap_or_default()))
        .collect())
}

/// One project.
///
/// # Errors
/// There is none of that name for the caller.
pub fn project_show(core: &Core, caller: &Caller, project: &Name) -> Result<ProjectView, AppError> {
    let state = core.snapshot();
    let project = caller.project(&state, project)?;
    let merged = deduplication(core, &state);
    Ok(view(&state, project, merged.get(&project.id).copied().unwrap_or_default()))
}

/// Changes a project's quota or credits. A quota below what the project holds stops nothing.
///
/// # Errors
/// There is none of that name, or the caller is not an admin of the cluster.
pub async fn project_set(
    core: &Core,
    caller: &Caller,
    project: &Name,
    request: SetProjectRequest,
) -> Result<ProjectView, AppError> {
    let (core_, caller_, name) = (core.clone(), caller.clone(), project.clone());
    let shown = core
        .submit(Some(caller.token), move |txn| {
            let id = caller_.project(&txn.state, &name)?.id;
            caller_.in_cluster(Role::Admin)?;
            txn.settle(id);
            let record = txn.state.projects.get(&id).cloned();
            let mut record =
                (*record.ok_or_else(|| AppError::not_found(Noun::Project, &name))?).clone();
            let mut changes = Vec::new();
            if let Some(quota) = request.quota {
                record.project.quota = quota;
                changes.push("quota changed".to_owned());
            }
            if request.uncharged {
                record.project.credits = None;
                changes.push("no longer charged".to_owned());
            }
            if let Some(add) = request.add_credits {
                if request.uncharged {
                    return Err(AppError::invalid(
                        "add_credits",
                        "together with `uncharged`",
                        "use one of the two",
                    ));
                }
                let left = record.project.credits.unwrap_or_default().0.saturating_add(add.0);
                if record.project.credits.is_none() {
                    record.charged_until = txn.now;
                }
                record.project.credits = Some(Credits(left));
                changes.push(format!("{add} credits added"));
            }
            if !changes.is_empty() {
                log(txn, &record.project, EventKind::ProjectChanged, &changes.join(", "));
                txn.put_project(record);
            }
            let state = &txn.state;
            let project =
                state.project(id).ok_or_else(|| AppError::not_found(Noun::Project, id))?;
            let merged = deduplication(&core_, state);
            Ok(view(state, project, merged.get(&id).copied().unwrap_or_default()))
        })
        .await;
    core.nudge();
    shown
}

/// Deletes an empty project with its tokens.
///
/// # Errors
/// It has VMs, networks or images, or the caller is not an admin of the cluster.
pub async fn project_delete(core: &Core, caller: &Caller, project: &Name) -> Result<(), AppError> {
    let (caller_, name) = (caller.clone(), project.clone());
    core.submit(Some(caller.token), move |txn| {
        let project = caller_.project(&txn.state, &name)?.clone();
        caller_.in_cluster(Role::Admin)?;
        let vms = txn.state.usage(project.id).vms as usize;
        let networks = txn.state.networks.values().filter(|n| n.project == project.id).count();
        let images =
            txn.state.images.values().filter(|i| i.image.project == Some(project.id)).count();
        let in_use = [(vms, "VMs"), (networks, "networks"), (images, "images")];
        if let Some((count, what)) = in_use.into_iter().find(|(count, _)| *count > 0) {
            return Err(AppError::InUse {
                what: Noun::Project,
                name: name.to_string(),
                by: format!("{count} {what}"),
                hint: "delete its VMs, networks and images first",
            });
        }
        let tokens: Vec<_> = txn
            .state
            .tokens
            .values()
            .filter(|token| token.project == Some(project.id))
            .map(|token| token.id)
            .collect();
        for token in tokens {
            txn.remove_token(token);
        }
        log(txn, &project, EventKind::ProjectDeleted, "deleted");
        txn.remove_project(project.id);
        Ok(())
    })
    .await
}

fn log(txn: &mut Txn<'_>, project: &Project, kind: EventKind, message: &str) {
    let subject = Subject::Project { id: project.id, name: project.name.clone() };
    txn.event(Severity::Info, kind, subject, Some(project.id), message.to_owned());
}

/// What merging equal pages does for every project, as its VMs' hosts reported last.
fn deduplication(core: &Core, state: &State) -> BTreeMap<ProjectId, ProjectDeduplication> {
    core.telemetry().deduplication(|host, observed| {
        let record = state.vm(observed.vm)?;
        let there = record.host() == Some(host) && record.vm.incarnation == observed.incarnation;
        there.then_some(record.vm.project)
    })
}

fn view(state: &State, project: &Project, deduplication: ProjectDeduplication) -> ProjectView {
    let usage = state.usage(project.id);
    ProjectView {
        id: project.id,
        name: project.name.clone(),
        quota: project.quota.clone(),
        used: usage.used,
        vms: usage.vms,
        credits: project.credits,
        created_at: project.created_at,
        deduplication,
    }
}

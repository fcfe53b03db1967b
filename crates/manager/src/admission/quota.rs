//! Quota and credits.

use plimsoll_model::{Element, Project, Quota, Resources};

use crate::{app::AppError, core::State};

/// Checks that a project which gives up `released` may have `added` more, of `vms` more VMs. Only
/// what grows is checked: who is over quota already may still shrink.
///
/// # Errors
/// The first element of which it would have too much.
pub(crate) fn check_quota(
    state: &State,
    project: &Project,
    released: &Resources,
    added: &Resources,
    vms: u32,
) -> Result<(), AppError> {
    let usage = state.usage(project.id);
    let quota = &project.quota;
    if let Some(limit) = quota.vms {
        let would = u64::from(usage.vms) + u64::from(vms);
        if vms > 0 && would > u64::from(limit) {
            let (project, limit) = (project.name.clone(), limit.into());
            return Err(AppError::QuotaOfVms { project, would, limit });
        }
    }
    let would = usage.used.minus(released).plus(added);
    for (element, limit) in limits(quota) {
        let (now, then) = (usage.used.get(&element), would.get(&element));
        if then > limit && then > now {
            let project = project.name.clone();
            return Err(AppError::Quota { project, element, would: then, limit });
        }
    }
    let devices = |resources: &Resources| -> u64 { resources.accelerators.0.values().sum() };
    if let Some(limit) = quota.accelerators {
        let (now, then) = (devices(&usage.used), devices(&would));
        if then > limit.0 && then > now {
            let project = project.name.clone();
            let model = added.accelerators.0.keys().next().cloned();
            if let Some(model) = model {
                let element = Element::Accelerator(model);
                return Err(AppError::Quota { project, element, would: then, limit: limit.0 });
            }
        }
    }
    Ok(())
}

fn limits(quota: &Quota) -> impl Iterator<Item = (Element, u64)> {
    let limits = [
        quota.cpu.map(|x| x.0),
        quota.memory.map(|x| x.0),
        quota.disk.map(|x| x.0),
        quota.disk_bandwidth.map(|x| x.0),
        quota.disk_iops.map(|x| x.0),
        quota.network.map(|x| x.0),
    ];
    Element::SCALARS.into_iter().zip(limits).filter_map(|(element, limit)| Some((element, limit?)))
}

/// Checks that something new may start.
///
/// # Errors
/// The project has no credits left.
pub(crate) fn check_credits(project: &Project) -> Result<(), AppError> {
    match project.credits {
        Some(credits) if credits.0 <= 0 => {
            Err(AppError::NoCredits { project: project.name.clone() })
        }
        _ => Ok(()),
    }
}

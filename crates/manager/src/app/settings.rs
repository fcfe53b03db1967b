//! The cluster's settings.

use plimsoll_api::v1::{BalanceSettings, SetSettingsRequest, Settings};

use plimsoll_model::{EventKind, Fraction, Role, Severity, Subject};

use crate::{
    admission::place,
    app::{AppError, Caller},
    core::{Core, txn::Txn},
};

/// Durations are between a tenth of a second and a day.
const MIN_MS: u64 = 100;
const MAX_MS: u64 = 86_400_000;
/// A host that is short half of the time is no risk but a plan.
const MAX_RISK: Fraction = Fraction::millionths(500_000);

/// The settings.
///
/// # Errors
/// The caller's token is bound to a project.
pub fn settings_show(core: &Core, caller: &Caller) -> Result<Settings, AppError> {
    caller.in_cluster(Role::Viewer)?;
    Ok(core.snapshot().settings().clone())
}

/// Changes settings.
///
/// # Errors
/// A value is not allowed, or the caller is not an admin of the cluster.
pub async fn settings_set(
    core: &Core,
    caller: &Caller,
    request: SetSettingsRequest,
) -> Result<Settings, AppError> {
    caller.in_cluster(Role::Admin)?;
    let shown = core
        .submit(Some(caller.token), move |txn| {
            let old = txn.state.settings().clone();
            let mut new = old.clone();
            apply(&mut new, &request);
            check(&new)?;
            if new == old {
                return Ok(new);
            }
            if new.prices != old.prices {
                // What was held until now costs the old prices.
                let projects: Vec<_> = txn.state.projects.keys().copied().collect();
                for project in projects {
                    txn.settle(project);
                }
            }
            txn.settings_mut().settings = new.clone();
            if new.lease_ms != old.lease_ms {
                change_lease(txn, old.lease_ms, new.lease_ms);
            }
            if new.end_warning_s != old.end_warning_s {
                txn.state.touch_ends(txn.revision);
            }
            let message = differences(&old, &new);
            txn.event(Severity::Info, EventKind::SettingsChanged, Subject::Cluster, None, message);
            Ok(new)
        })
        .await;
    core.nudge();
    shown
}

fn apply(new: &mut Settings, request: &SetSettingsRequest) {
    new.policy = request.policy.unwrap_or(new.policy);
    new.prices = request.prices.unwrap_or(new.prices);
    new.unreachable_after_ms = request.unreachable_after_ms.unwrap_or(new.unreachable_after_ms);
    new.dead_after_ms = request.dead_after_ms.unwrap_or(new.dead_after_ms);
    new.lease_ms = request.lease_ms.unwrap_or(new.lease_ms);
    new.vm_memory_overhead = request.vm_memory_overhead.unwrap_or(new.vm_memory_overhead);
    new.end_warning_s = request.end_warning_s.unwrap_or(new.end_warning_s);
    new.slot_s = request.slot_s.unwrap_or(new.slot_s);
    new.risk_cpu = request.risk_cpu.unwrap_or(new.risk_cpu);
    new.risk_memory = request.risk_memory.unwrap_or(new.risk_memory);
    let balance = &mut new.balance;
    balance.mode = request.balance_mode.unwrap_or(balance.mode);
    balance.threshold_percent =
        request.balance_threshold_percent.unwrap_or(balance.threshold_percent);
    balance.cooldown_s = request.balance_cooldown_s.unwrap_or(balance.cooldown_s);
    balance.moves_at_once = request.balance_moves_at_once.unwrap_or(balance.moves_at_once);
}

fn check(settings: &Settings) -> Result<(), AppError> {
    let allowed = MIN_MS..=MAX_MS;
    for (field, value) in [
        ("unreachable_after_ms", settings.unreachable_after_ms),
        ("dead_after_ms", settings.dead_after_ms),
    ] {
        if !allowed.contains(&value) {
            return Err(AppError::invalid(field, format!("{value} ms"), "use 100 ms to one day"));
        }
    }
    if settings.dead_after_ms < settings.unreachable_after_ms {
        return Err(AppError::invalid(
            "dead_after_ms",
            format!("before a host is unreachable, at {} ms", settings.unreachable_after_ms),
            "a host is first unreachable, then dead",
        ));
    }
    if settings.lease_ms != 0 && !(1000..=MAX_MS).contains(&settings.lease_ms) {
        return Err(AppError::invalid(
            "lease_ms",
            format!("{} ms", settings.lease_ms),
            "use 1 second to one day, or 0 for no lease",
        ));
    }
    if settings.vm_memory_overhead.0 > 1 << 40 {
        return Err(AppError::invalid(
            "vm_memory_overhead",
            settings.vm_memory_overhead.to_string(),
            "use at most 1TiB",
        ));
    }
    if settings.end_warning_s > 86_400 {
        return Err(AppError::invalid(
            "end_warning_s",
            format!("{} s", settings.end_warning_s),
            "use at most one day",
        ));
    }
    if !(1..=3600).contains(&settings.slot_s) {
        return Err(AppError::invalid(
            "slot_s",
            format!("{} s", settings.slot_s),
            "use 1 second to one hour",
        ));
    }
    check_balance(&settings.balance)?;
    for (field, risk) in [("risk_cpu", settings.risk_cpu), ("risk_memory", settings.risk_memory)] {
        if risk > MAX_RISK {
            return Err(AppError::invalid(field, risk.to_string(), "use 0 to 0.5, such as 0.01"));
        }
    }
    Ok(())
}

fn check_balance(balance: &BalanceSettings) -> Result<(), AppError> {
    let BalanceSettings { threshold_percent, cooldown_s, moves_at_once, .. } = *balance;
    if !(20..=95).contains(&threshold_percent) {
        return Err(AppError::invalid(
            "balance_threshold_percent",
            format!("{threshold_percent} %"),
            "use 20 to 95 percent",
        ));
    }
    if cooldown_s > 86_400 {
        return Err(AppError::invalid(
            "balance_cooldown_s",
            format!("{cooldown_s} s"),
            "use at most one day",
        ));
    }
    if !(1..=100).contains(&moves_at_once) {
        return Err(AppError::invalid(
            "balance_moves_at_once",
            moves_at_once.to_string(),
            "use 1 to 100",
        ));
    }
    Ok(())
}

/// Before any host hears of the new lease it is on disk what that may come to: how long the longest
/// lease may be, that a host without one must first be seen to hold one, and which VMs' guards must
/// first have heard that they are to act.
fn change_lease(txn: &mut Txn<'_>, old_ms: u64, new_ms: u64) {
    let hosts: Vec<_> = txn.state.hosts.values().cloned().collect();
    for record in hosts {
        let mut new = (*record).clone();
        new.longest_lease_ms = new.longest_lease_ms.max(new_ms);
        new.lease_armed &= new_ms > 0;
        txn.put_host(new);
    }
    if (old_ms == 0) != (new_ms == 0) {
        let vms: Vec<_> =
            txn.state.vms.values().filter(|vm| vm.host().is_some()).cloned().collect();
        for record in vms {
            let mut new = (*record).clone();
            place::mark_fencing(&txn.state, &mut new, false);
            txn.put_vm(new);
        }
    }
}

fn differences(old: &Settings, new: &Settings) -> String {
    let mut changes = Vec::new();
    if old.policy != new.policy {
        changes.push(format!("policy {} -> {}", old.policy, new.policy));
    }
    if old.prices != new.prices {
        changes.push("prices".to_owned());
    }
    for (name, was, is) in [
        ("unreachable_after_ms", old.unreachable_after_ms, new.unreachable_after_ms),
        ("dead_after_ms", old.dead_after_ms, new.dead_after_ms),
        ("lease_ms", old.lease_ms, new.lease_ms),
        ("end_warning_s", old.end_warning_s.into(), new.end_warning_s.into()),
        ("slot_s", old.slot_s.into(), new.slot_s.into()),
    ] {
        if was != is {
            changes.push(format!("{name} {was} -> {is}"));
        }
    }
    for (name, was, is) in [
        ("risk_cpu", old.risk_cpu, new.risk_cpu),
        ("risk_memory", old.risk_memory, new.risk_memory),
    ] {
        if was != is {
            changes.push(format!("{name} {was} -> {is}"));
        }
    }
    if old.vm_memory_overhead != new.vm_memory_overhead {
        changes.push(format!(
            "vm_memory_overhead {} -> {}",
            old.vm_memory_overhead, new.vm_memory_overhead
        ));
    }
    changes.join(", ")
}

//! To which host a running VM can move, and the beginning of its move.
//!
//! Placement decides as for a new VM, but never for the host that the VM is on: constraints, room
//! and policy are the same. What it does not know is whether the other host's QEMU can go on with
//! what this one's has begun; that is asked here. Both hosts hold room for the VM until the move is
//! over ([`crate::core::migration`]).

use plimsoll_api::{migration::MigrationLimits, v1::MigrationCause};
use plimsoll_model::{
    DiskLocation, EventKind, Host, HostId, HostPhase, Name, Power, Severity, StoragePool, VmId,
    VmPhase,
};
use plimsoll_placement::{Choice, Refusals, Request, Verdict};
use thiserror::Error;

use crate::{
    app::{AppError, Noun, change::wrong_state},
    core::{
        desired,
        migration::Migration,
        record::{HostRecord, VmRecord},
        txn::Txn,
    },
};

/// Why a host that would have room cannot take a VM that runs elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MigrationRefusal {
    /// It is there.
    #[error("the VM is on that host")]
    OwnHost,
    /// Another kind of processor virtualisation.
    #[error("its VMs run under {has}, and this one under {need}")]
    Accelerator {
        /// What the VM runs under.
        need: String,
        /// What the host has.
        has: String,
    },
    /// It may not understand the state that it is sent.
    #[error("its QEMU {has} is older than the {need} with which the VM runs")]
    OlderQemu {
        /// The version on the VM's host.
        need: String,
        /// The host's.
        has: String,
    },
    /// It may not know all that a newer agent asks of it.
    #[error("its agent {has} is older than the {need} of the VM's host")]
    OlderAgent {
        /// The version on the VM's host.
        need: String,
        /// The host's.
        has: String,
    },
    /// The disk of the VM is on its host, and this one keeps disks elsewhere.
    #[error("the VM's disk is on its host, and this one keeps disks in pool {pool}")]
    Storage {
        /// The host's pool.
        pool: Name,
    },
    /// It has not removed what it had of the VM.
    #[error("it still has to remove what it had of the VM")]
    Remains,
}

impl MigrationRefusal {
    /// What would help.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::OwnHost => "name another host, or none",
            Self::Accelerator { .. } => "stop the VM: it can start on such a host",
            Self::OlderQemu { .. } => "install the newer QEMU on that host",
            Self::OlderAgent { .. } => "install the newer Plimsoll on that host",
            Self::Storage { .. } => "name a host that keeps disks on itself",
            Self::Remains => "try again in a moment",
        }
    }
}

/// Where a VM can go.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) choice: Choice,
    pub(crate) copy_disk: bool,
}

/// What is asked of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    /// The only host that will do.
    pub(crate) to: Option<HostId>,
    pub(crate) limits: MigrationLimits,
    pub(crate) cause: MigrationCause,
}

/// Whether a VM can move at all, wherever to.
fn check_vm(txn: &Txn<'_>, record: &VmRecord) -> Result<std::sync::Arc<HostRecord>, AppError> {
    if record.migration.is_some() {
        return Err(AppError::WrongState {
            action: "move",
            what: Noun::Vm,
            name: record.vm.name.to_string(),
            state: "moving to another host".to_owned(),
            hint: "wait until it is there, or end the move with `plimsoll vm migrate NAME --cancel`",
        });
    }
    if record.vm.phase != VmPhase::Running || record.vm.power != Power::Running {
        let hint = "only a VM that runs is moved; another one is placed anew when it starts, if its \
                    disk is in a shared pool";
        return Err(wrong_state("move", record, hint));
    }
    let host = record.host().and_then(|id| txn.state.host(id)).cloned();
    let host = host.ok_or_else(|| AppError::not_found(Noun::Host, "of the VM"))?;
    if host.host.phase != HostPhase::Up {
        return Err(AppError::Unreachable { host: host.host.name.clone() });
    }
    if !record.devices.is_empty() || !record.vm.spec.resources.accelerators.0.is_empty() {
        return Err(AppError::Unsupported {
            what: format!(
                "VM `{}` has accelerator devices of its host: their state cannot be moved",
                record.vm.name
            ),
            hint: "stop it: it is placed anew when it starts".to_owned(),
        });
    }
    let last = record.last_migration.as_ref().map(|last| last.from);
    let unfinished = last.filter(|from| record.cleanups.contains_key(from));
    let reports = |id: HostId| txn.state.host(id).is_some_and(|h| h.host.phase == HostPhase::Up);
    if unfinished.is_some_and(reports) {
        return Err(AppError::WrongState {
            action: "move",
            what: Noun::Vm,
            name: record.vm.name.to_string(),
            state: "in the tail of its last move".to_owned(),
            hint: "try again in a moment: the host that it has left still has to be done with it",
        });
    }
    if record.vm.disk.is_none() {
        return Err(wrong_state("move", record, "its host has not reported its disk yet"));
    }
    Ok(host)
}

/// Whether the other host's QEMU and agent can go on with the VM.
fn fits(record: &VmRecord, from: &Host, to: &Host) -> Result<(), MigrationRefusal> {
    let (is, other) = (&from.spec, &to.spec);
    if from.id == to.id {
        return Err(MigrationRefusal::OwnHost);
    }
    if is.accelerator != other.accelerator {
        let (need, has) = (is.accelerator.clone(), other.accelerator.clone());
        return Err(MigrationRefusal::Accelerator { need, has });
    }
    if is_older(&other.qemu_version, &is.qemu_version) {
        let (need, has) = (is.qemu_version.clone(), other.qemu_version.clone());
        return Err(MigrationRefusal::OlderQemu { need, has });
    }
    if is_older(&other.agent_version, &is.agent_version) {
        let (need, has) = (is.agent_version.clone(), other.agent_version.clone());
        return Err(MigrationRefusal::OlderAgent { need, has });
    }
    if let (Some(DiskLocation::Host { .. }), StoragePool::Shared { pool }) =
        (&record.vm.disk, &other.storage)
    {
        return Err(MigrationRefusal::Storage { pool: pool.clone() });
    }
    if record.cleanups.contains_key(&to.id) {
        return Err(MigrationRefusal::Remains);
    }
    Ok(())
}

/// Whether a version is older than another: their numbers, one after the other.
fn is_older(version: &str, than: &str) -> bool {
    let numbers = |version: &str| -> Vec<u64> {
        let numbers = version.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
        numbers.map(|part| part.parse().unwrap_or(u64::MAX)).take(3).collect()
    };
    numbers(version) < numbers(than)
}

/// Where a VM would go, on the state as it is.
///
/// # Errors
/// It cannot move now, or no host can take it, or not the one that is asked for.
pub(crate) fn plan(txn: &Txn<'_>, record: &VmRecord, to: Option<HostId>) -> Result<Plan, AppError> {
    let host = check_vm(txn, record)?;
    let settings = txn.state.settings();
    let policy = record.vm.policy.unwrap_or(settings.policy);
    let copy_disk = matches!(record.vm.disk, Some(DiskLocation::Host { .. }));
    let mut request = Request {
        excluded_host: Some(host.host.id),
        ..record.request(record.demand(settings.vm_memory_overhead))
    };
    if let Some(DiskLocation::Pool { pool }) = &record.vm.disk {
        request.pool = Some(pool.clone());
    }
    let vm = || record.vm.name.clone();
    let fits = |id: HostId| match txn.state.host(id) {
        Some(other) => fits(record, &host.host, &other.host),
        None => Err(MigrationRefusal::OwnHost),
    };
    let no_capacity = |refusals| AppError::NoCapacity { vm: vm(), refusals };
    if let Some(to) = to {
        if let Err(refusal) = fits(to) {
            let host = txn.state.host(to).map(|host| host.host.name.clone());
            let host = host.ok_or_else(|| AppError::not_found(Noun::Host, to))?;
            return Err(AppError::NoMigrationTo { vm: vm(), host, refusal });
        }
        request.pinned_host = Some(to);
        let choice = txn.cluster().decide(&request, policy);
        let choice = choice.map_err(|refusals| no_capacity(only_of(refusals, to)))?;
        return Ok(Plan { choice, copy_disk });
    }
    match txn.cluster().decide(&request, policy) {
        Ok(choice) if fits(choice.host).is_ok() => return Ok(Plan { choice, copy_disk }),
        Ok(_) => {}
        Err(refusals) => {
            return Err(AppError::NoMigration { vm: vm(), unfit: Vec::new(), refusals });
        }
    }
    // The best will not do: the others, best first.
    let explanation = txn.cluster().explain(&request, policy);
    let mut possible: Vec<(u32, HostId)> = Vec::new();
    for verdict in &explanation.hosts {
        if let Verdict::Possible { rank, .. } = verdict.verdict {
            possible.push((rank, verdict.host));
        }
    }
    possible.sort_unstable();
    let mut unfit = Vec::new();
    for (_, id) in possible {
        match fits(id) {
            Ok(()) => {
                request.pinned_host = Some(id);
                let choice = txn.cluster().decide(&request, policy).map_err(no_capacity)?;
                return Ok(Plan { choice, copy_disk });
            }
            Err(refusal) => {
                let name = txn.state.host(id).map(|host| host.host.name.clone());
                unfit.extend(name.map(|name| (name, refusal)));
            }
        }
    }
    Err(AppError::NoMigration { vm: vm(), unfit, refusals: explanation.refusals() })
}

/// Of the reasons against all hosts those against the one that was asked for.
fn only_of(mut refusals: Refusals, host: HostId) -> Refusals {
    if refusals.counts.iter().any(|count| count.example.host == host) {
        refusals.counts.retain(|count| count.example.host == host);
        refusals.hosts = 1;
    }
    refusals
}

/// Begins a move: from now on both hosts hold room for the VM, and are told what to do.
///
/// # Errors
/// See [`plan`].
pub(crate) fn begin(txn: &mut Txn<'_>, record: &VmRecord, wish: Wish) -> Result<(), AppError> {
    let Plan { choice, copy_disk } = plan(txn, record, wish.to)?;
    let settings = txn.state.settings();
    let (overhead, lease_ms) = (settings.vm_memory_overhead, settings.lease_ms);
    let Some(target) = txn.state.host(choice.host).cloned() else {
        return Err(AppError::not_found(Noun::Host, choice.host));
    };
    let mut new = record.clone();
    if copy_disk {
        new.vm.disk = Some(DiskLocation::Host { host: choice.host });
    }
    let fenced_by_lease = desired::fenced_by_lease(lease_ms, &new, &target);
    new.vm.disk.clone_from(&record.vm.disk);
    new.migration = Some(Migration {
        id: txn.uuid(),
        to: choice.host,
        incarnation: record.vm.incarnation + 1,
        reservation: VmId(txn.uuid()),
        overhead,
        limits: wish.limits,
        copy_disk,
        fenced_by_lease,
        policy: choice.policy,
        reason: choice.reason(),
        cause: wish.cause,
        begun_at: txn.now,
        cancel: false,
        target_lost: false,
        dropped: false,
        predicted: None,
        message: None,
    });
    let name = |host: Option<HostId>| {
        let host = host.and_then(|id| txn.state.host(id));
        host.map(|host| host.host.name.to_string()).unwrap_or_default()
    };
    let disk = if copy_disk { ", with its disk" } else { "" };
    let (from, to) = (name(record.host()), &target.host.name);
    let message = format!("from {from} to {to}{disk}: {}", choice.reason());
    txn.vm_event(Severity::Info, EventKind::VmMigrating, &new, message);
    txn.put_vm(new);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(is_older("9.2.4", "10.0.2"));
        assert!(is_older("10.0.2", "10.0.10"));
        assert!(is_older("7.2.0 (Debian 1:7.2+dfsg-7)", "7.2.1"));
        assert!(!is_older("10.0.2", "10.0.2"));
        assert!(!is_older("10.1", "10.0.9"));
    }
}

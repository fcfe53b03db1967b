//! What agents ask: reports of what they observe, and what they should do.

use std::{borrow::Cow, sync::Arc, time::Duration};

use plimsoll_api::cluster::{
    AgentReport, DesiredHost, HostUsage, MemoryState, ObservedPhase, ReportReply,
};
use plimsoll_api::guest::to_printable;
use plimsoll_api::v1::{BalanceMode, MigrationOutcome};
use plimsoll_model::{
    EventKind, HostEvent, HostId, HostPhase, Severity, Subject, Timestamp, VmEvent, VmId, VmPhase,
};

use crate::{
    admission::validate,
    app::{AppError, Noun},
    core::{
        Core, State,
        desired::desired_host,
        observe::{Context, Observation, observe},
        record::{HostRecord, VmRecord},
        telemetry::{NotTaken, Notice, REPLIES_TO_ARM, Seen},
        txn::Txn,
    },
    reconcile::balance,
};

/// The most VMs that one report may name.
const MAX_REPORTED: usize = 10_000;
/// Longer messages are cut off.
const MAX_MESSAGE_CHARS: usize = 1000;
/// More reasons for a VM's share, and longer ones, are cut off.
const MAX_REASONS: usize = 16;
const MAX_REASON_BYTES: usize = 300;
/// An answer waits no longer for what the report changes to be durable.
const MAX_NOTING: Duration = Duration::from_secs(2);
/// Reports of all hosts together, as far as what must not run out allows.
const REPORTS_PER_SECOND: u64 = 500;
/// No host is asked to be silent for longer.
const LONGEST_INTERVAL_MS: u64 = 30_000;
/// The longest wait for a new desired state.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Takes a host's report and renews its lease. The answer counts for the lease, so it is to be
/// sent at once.
///
/// # Errors
/// The host is unknown, the report is not valid or older than one already taken, or the host is just
/// being fenced; the lease is not renewed then.
pub async fn agent_report(
    core: &Core,
    host: HostId,
    report: AgentReport,
) -> Result<ReportReply, AppError> {
    let mut report = report;
    check(&mut report)?;
    let (state, now, monotonic) = (core.snapshot(), core.now(), core.monotonic());
    let record = state.host(host).ok_or_else(|| AppError::not_found(Noun::Host, host))?;
    // A fenced host gets no lease before it has confirmed that it holds nothing of what was moved:
    // its agent must not start it again from what it heard before.
    let settings = state.settings();
    let granted_ms = match (settings.lease_ms, record.host.phase) {
        (0, _) => None,
        (_, HostPhase::Fenced) => Some(0),
        (lease_ms, _) => Some(lease_ms),
    };
    let lease = granted_ms.map(Duration::from_millis);
    let (armable, notices) = core
        .telemetry()
        .with(host, |telemetry| {
            telemetry
                .take(&report, monotonic, now, lease)
                .map(|notices| (telemetry.leased_replies > REPLIES_TO_ARM, notices))
        })
        .map_err(|error| match error {
            NotTaken::Stale => AppError::StaleReport,
            NotTaken::BeingFenced => AppError::BeingFenced,
        })?;
    let mut interval_ms =
        interval_ms(settings.lease_ms, settings.unreachable_after_ms, state.hosts.len());
    if settings.balance.mode != BalanceMode::Off {
        // Never more seldom than what must not run out allows, nor all hosts together too often.
        let hosts = u64::try_from(state.hosts.len()).unwrap_or(u64::MAX);
        let fresh = hosts.saturating_mul(1000) / REPORTS_PER_SECOND;
        interval_ms = interval_ms.min(balance::REPORT_MS.max(fresh));
    }
    let report = Arc::new(report);
    let taken = Taken { host, report, notices, armable, now, monotonic };
    let state = if taken.changes(core, &state) {
        note(core, taken).await;
        core.snapshot()
    } else {
        state
    };
    let fenced = state.host(host).is_some_and(|record| record.host.phase == HostPhase::Fenced);
    Ok(ReportReply {
        lease_ms: if fenced { granted_ms.map(|_| 0) } else { granted_ms },
        interval_ms,
        desired_generation: state.desired_generation(host),
    })
}

/// What the host should do: as soon as it is newer than `after`, or when `wait` is over. While very
/// many hosts are to be told, each waits for its turn, and hears of what has come until then.
///
/// # Errors
/// The host is unknown.
pub async fn agent_desired(
    core: &Core,
    host: HostId,
    after: u64,
    wait: Duration,
) -> Result<DesiredHost, AppError> {
    let deadline = tokio::time::Instant::now() + wait.min(MAX_WAIT);
    loop {
        let changed = core.published().host_changed(host);
        let changed = changed.notified();
        tokio::pin!(changed);
        // Registered before the look, so that a change between look and wait is not missed.
        changed.as_mut().enable();
        let state = core.snapshot();
        if state.host(host).is_none() {
            return Err(AppError::not_found(Noun::Host, host));
        }
        if state.desired_generation(host) > after {
            drop(state);
            core.pace().turn().await;
            return desired_host(&core.snapshot(), host)
                .ok_or_else(|| AppError::not_found(Noun::Host, host));
        }
        if tokio::time::timeout_at(deadline, changed).await.is_err() {
            return desired_host(&state, host).ok_or_else(|| AppError::not_found(Noun::Host, host));
        }
    }
}

/// Writes down what the report changes. Whether that succeeds has nothing to do with the lease: a
/// manager that cannot write starts nothing elsewhere, and must not let what runs be ended. The next
/// report says it all again.
async fn note(core: &Core, taken: Taken) {
    let (host, inner) = (taken.host, core.clone());
    let written = core.submit(None, move |txn| taken.apply(&inner, txn));
    match tokio::time::timeout(MAX_NOTING, written).await {
        Ok(Ok(applied)) => {
            let moves = &core.config().moves;
            applied.over.into_iter().for_each(|outcome| moves.over(outcome));
            applied.stood_still.into_iter().for_each(|time| moves.stood_still(time));
            if applied.stirs {
                core.nudge();
            }
        }
        Ok(Err(error)) => {
            tracing::warn!(%host, %error, "what a host reports could not be written");
        }
        Err(_) => tracing::warn!(%host, "what a host reports is not written yet"),
    }
}

/// A quarter of what must not run out, so that a few lost reports do no harm. Never more seldom than
/// every five seconds, so that what is shown is fresh; in a large cluster every host may take
/// longer, so that all of them together send no more than [`REPORTS_PER_SECOND`].
fn interval_ms(lease_ms: u64, unreachable_after_ms: u64, hosts: usize) -> u64 {
    let shortest = match lease_ms {
        0 => unreachable_after_ms,
        lease_ms => lease_ms.min(unreachable_after_ms),
    };
    let hosts = u64::try_from(hosts).unwrap_or(u64::MAX);
    let fresh = hosts.saturating_mul(1000) / REPORTS_PER_SECOND;
    (shortest / 4).clamp(100, fresh.clamp(5_000, LONGEST_INTERVAL_MS))
}

/// What no machine can use counts as not measured. A counter that is wrong must not cost a host its
/// lease, which renews with the report.
fn leave_out_the_absurd(report: &mut AgentReport) {
    let boot_id = &report.boot_id;
    if let Err(error) = report.usage.check() {
        tracing::warn!(boot_id, %error, "what a host uses cannot be, and is left out");
        report.usage = HostUsage::default();
    }
    report.vm_usage.retain(|used| match used.check() {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(vm = %used.vm, %error, "what a VM uses cannot be, and is left out");
            false
        }
    });
}

fn check(report: &mut AgentReport) -> Result<(), AppError> {
    if report.vms.len() > MAX_REPORTED {
        return Err(AppError::invalid(
            "vms",
            format!("{} VMs", report.vms.len()),
            "a host reports at most 10000",
        ));
    }
    report.vm_usage.truncate(MAX_REPORTED);
    validate::line(&report.boot_id, "boot_id", 128)?;
    validate::host_spec(&report.spec)?;
    leave_out_the_absurd(report);
    for vm in &mut report.vms {
        if let Some(message) = &mut vm.message
            && message.len() > MAX_MESSAGE_CHARS
        {
            *message = message.chars().take(MAX_MESSAGE_CHARS).collect();
        }
        if let Some(share) = &mut vm.share {
            share.reasons.truncate(MAX_REASONS);
            for reason in &mut share.reasons {
                *reason = to_printable(reason, MAX_REASON_BYTES);
            }
        }
    }
    Ok(())
}

/// Puts into the log what a report tells.
fn log(txn: &mut Txn<'_>, host: &HostRecord, notice: &Notice) {
    match notice {
        Notice::Memory { was, is } => {
            let severity = match is {
                MemoryState::High | MemoryState::Soft => Severity::Info,
                MemoryState::Hard | MemoryState::Low => Severity::Warning,
            };
            let message = format!("its memory is {is} (was {was})");
            txn.host_event(severity, EventKind::HostMemory, host, message);
        }
        Notice::Reclaimed { vm, share } => {
            let Some(record) = txn.state.vm(*vm).cloned() else { return };
            let reasons = share.reasons.join("; ");
            let message = format!("has {} for now, {} less: {reasons}", share.memory, share.taken);
            txn.vm_event(Severity::Info, EventKind::VmReclaimed, &record, message);
        }
        Notice::Restored { vm } => {
            let Some(record) = txn.state.vm(*vm).cloned() else { return };
            let message = "has all of its memory again";
            txn.vm_event(Severity::Info, EventKind::VmRestored, &record, message);
        }
    }
}

/// What a report has changed.
#[derive(Debug, Default)]
struct Applied {
    /// Something that waits, or a failure, may be dealt with now.
    stirs: bool,
    /// Moves that are over.
    over: Vec<MigrationOutcome>,
    /// How long VMs stood still that were moved.
    stood_still: Vec<Duration>,
}

impl Applied {
    fn count_move(&mut self, old: &VmRecord, new: &VmRecord) {
        if let Some(last) = new.last_migration.as_ref() {
            let before = old.last_migration.as_ref().filter(|before| before.id == last.id);
            if before.is_none() {
                self.over.push(last.outcome);
            }
            if let (Some(figures), None) = (last.figures, before.and_then(|old| old.figures)) {
                self.stood_still.push(Duration::from_millis(figures.downtime_ms));
            }
        }
    }
}

/// A report that was taken.
struct Taken {
    host: HostId,
    report: Arc<AgentReport>,
    notices: Vec<Notice>,
    /// Enough replies with a lease have reached the host.
    armable: bool,
    now: Timestamp,
    monotonic: Duration,
}

impl Taken {
    /// Whether the report changes anything durable.
    fn changes(&self, core: &Core, state: &State) -> bool {
        let Some(record) = state.host(self.host) else { return false };
        let (new, booted) = self.host_after(state, record);
        booted
            || matches!(new, Cow::Owned(_))
            || !self.observations(core, state, &new, state.revision() + 1).is_empty()
            || !self.notices.is_empty()
            || !self.unclaimed(core, state).is_empty()
            || self.comes_up(state, &new)
    }

    /// The host's record as the report has it, but for its phase, a new one only where something
    /// differs; and whether it was rebooted.
    fn host_after<'a>(&self, state: &State, record: &'a HostRecord) -> (Cow<'a, HostRecord>, bool) {
        let boot_id = record.host.boot_id.as_ref();
        let booted = boot_id.is_some_and(|old| *old != self.report.boot_id);
        let lease_ms = state.settings().lease_ms;
        let lease_armed = record.lease_armed || (self.armable && lease_ms > 0);
        let longest_lease_ms = record.longest_lease_ms.max(lease_ms);
        let mut after = Cow::Borrowed(record);
        if boot_id != Some(&self.report.boot_id)
            || record.host.spec != self.report.spec
            || (record.lease_armed, record.longest_lease_ms) != (lease_armed, longest_lease_ms)
        {
            let new = after.to_mut();
            new.host.spec.clone_from(&self.report.spec);
            new.host.boot_id = Some(self.report.boot_id.clone());
            (new.lease_armed, new.longest_lease_ms) = (lease_armed, longest_lease_ms);
        }
        (after, booted)
    }

    /// A silent host that reports is up; a fenced one once it has nothing more to clean up.
    fn comes_up(&self, state: &State, record: &HostRecord) -> bool {
        match record.host.phase {
            HostPhase::Up => false,
            HostPhase::Unreachable | HostPhase::Dead => true,
            HostPhase::Fenced => {
                // What has moved here while it was given up is not to run here either.
                !state.vms_of_host(self.host).any(|vm| {
                    vm.cleanups.contains_key(&self.host)
                        || vm.migration.as_ref().is_some_and(|migration| {
                            migration.to == self.host && migration.is_withdrawn()
                        })
                })
            }
        }
    }

    fn observations(
        &self,
        core: &Core,
        state: &State,
        host: &HostRecord,
        revision: u64,
    ) -> Vec<Observation> {
        let name_of = |id| {
            let host: Option<&Arc<HostRecord>> = state.host(id);
            host.map_or_else(|| id.to_string(), |host| host.host.name.to_string())
        };
        let context = Context {
            name_of: &name_of,
            host,
            working_on: self.report.desired_generation,
            revision,
            now: self.now,
            monotonic: self.monotonic,
        };
        self.report
            .vms
            .iter()
            .filter_map(|observed| {
                let record = state.vm(observed.vm)?;
                let since =
                    core.telemetry().since(self.host, observed.vm).unwrap_or(self.monotonic);
                let seen = Seen { observed: observed.clone(), since };
                observe(record, &seen, &context)
            })
            .collect()
    }

    /// VMs of which the manager knows nothing, not reported before: they are left alone.
    fn unclaimed(&self, core: &Core, state: &State) -> Vec<VmId> {
        let unknown: Vec<VmId> = self
            .report
            .vms
            .iter()
            .filter(|observed| observed.phase != ObservedPhase::Absent)
            .map(|observed| observed.vm)
            .filter(|vm| state.vm(*vm).is_none())
            .collect();
        core.telemetry().with(self.host, |telemetry| telemetry.not_announced(&unknown))
    }

    /// Writes down what the report changes. That a VM has started stirs nobody else.
    fn apply(&self, core: &Core, txn: &mut Txn<'_>) -> Result<Applied, AppError> {
        let host = self.host;
        let record =
            txn.state.host(host).cloned().ok_or_else(|| AppError::not_found(Noun::Host, host))?;
        let (new, booted) = self.host_after(&txn.state, &record);
        let mut applied = Applied { stirs: booted, ..Applied::default() };
        if new.host.spec != record.host.spec && record.host.boot_id.is_some() {
            txn.host_event(Severity::Info, EventKind::HostChanged, &new, "has changed");
        }
        for Observation { record, gone, events } in
            self.observations(core, &txn.state, &new, txn.revision)
        {
            applied.stirs |= gone || record.vm.phase != VmPhase::Running;
            if let Some(old) = txn.state.vm(record.vm.id) {
                applied.count_move(old, &record);
            }
            for (severity, kind, message) in events {
                txn.vm_event(severity, kind, &record, message);
            }
            if gone {
                txn.vm_event(Severity::Info, EventKind::VmDeleted, &record, "deleted");
                txn.remove_vm(record.vm.id);
            } else {
                txn.put_vm(record);
            }
        }
        if booted {
            self.lose_running(txn);
        }
        let comes_up = self.comes_up(&txn.state, &new);
        if comes_up || matches!(new, Cow::Owned(_)) {
            applied.stirs = true;
            let mut new = new.into_owned();
            if comes_up {
                come_up(txn, &mut new, booted);
            }
            txn.put_host(new);
        }
        for notice in &self.notices {
            log(txn, &record, notice);
        }
        for vm in self.unclaimed(core, &txn.state) {
            let message = format!("reports {vm}, which this cluster does not know; left alone");
            let subject = Subject::Host { id: host, name: record.host.name.clone() };
            txn.event(Severity::Warning, EventKind::VmUnclaimed, subject, None, message);
            core.telemetry().with(host, |telemetry| telemetry.announce(vm));
        }
        Ok(applied)
    }

    /// Nothing from before a reboot runs: what is not reported as running again may or may not.
    fn lose_running(&self, txn: &mut Txn<'_>) {
        let running: Vec<_> = txn
            .state
            .vms_of_host(self.host)
            .filter(|vm| vm.host() == Some(self.host) && vm.vm.phase == VmPhase::Running)
            .filter(|vm| {
                !self.report.vms.iter().any(|observed| {
                    observed.vm == vm.vm.id && observed.phase == ObservedPhase::Running
                })
            })
            .cloned()
            .collect();
        for record in running {
            let mut new = (*record).clone();
            if let Ok(phase) = new.vm.phase.next(VmEvent::Lost) {
                new.vm.phase = phase;
                let message = "its host was rebooted";
                txn.vm_event(Severity::Warning, EventKind::VmLost, &new, message);
                txn.put_vm(new);
            }
        }
    }
}

/// A host is up again.
fn come_up(txn: &mut Txn<'_>, record: &mut HostRecord, booted: bool) {
    let host = &mut record.host;
    host.phase = host.phase.next(HostEvent::Report).unwrap_or(HostPhase::Up);
    host.phase_since = txn.now;
    host.fencing = None;
    let message = if booted { "reports, after a reboot" } else { "reports" };
    txn.host_event(Severity::Info, EventKind::HostUp, record, message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_report_often_enough_for_the_lease_and_for_people() {
        // Of a small cluster: a quarter of what must not run out, at most five seconds.
        assert_eq!(interval_ms(8_000, 30_000, 3), 2_000);
        assert_eq!(interval_ms(0, 8_000, 3), 2_000);
        assert_eq!(interval_ms(60_000, 60_000, 3), 5_000);
        // Of a large one: all together 500 a second, but never so seldom that a lease is at risk.
        assert_eq!(interval_ms(60_000, 60_000, 5_000), 10_000);
        assert_eq!(interval_ms(20_000, 60_000, 5_000), 5_000);
        assert_eq!(interval_ms(0, 600_000, 1_000_000), LONGEST_INTERVAL_MS);
    }
}

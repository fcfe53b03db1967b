//! Tells the manager what is observed, and keeps the lease by its answers.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use plimsoll_api::{
    ClientError, ClusterClient, ErrorChain,
    cluster::{AgentReport, ObservedPhase, ReportReply},
};
use plimsoll_model::HostSpec;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use uuid::Uuid;

use super::{Shared, VmSet, backoff::Backoff, state::LinkState};
use crate::{
    lease::{Contact, LeaseRenewer, Renewal},
    telemetry::UsageSampler,
    vm::BootTime,
};

/// Between two reports: changes in quick succession go out together.
pub(crate) const SHORTEST_PERIOD: Duration = Duration::from_millis(200);
/// Before the manager has said how often it wants a report.
const FIRST_PERIOD: Duration = Duration::from_secs(1);
const LONGEST_PERIOD: Duration = Duration::from_secs(60);
/// An answer is a transaction of the manager at most.
const LONGEST_ANSWER: Duration = Duration::from_secs(10);
const SHORTEST_ANSWER: Duration = Duration::from_millis(500);

/// What is wanted comes within milliseconds, or its transfer is slow; after so long it is asked anew.
const LONGEST_LAG: Duration = Duration::from_secs(15);

pub(super) struct Reporter {
    pub(super) client: ClusterClient,
    pub(super) vms: Arc<dyn VmSet>,
    pub(super) spec: watch::Receiver<HostSpec>,
    pub(super) usage: UsageSampler,
    pub(super) shared: Arc<Shared>,
    pub(super) state: Arc<Mutex<LinkState>>,
    pub(super) lease: LeaseRenewer,
    pub(super) boot_id: String,
    /// What the manager's generation went back to, if it did.
    pub(super) went_back: Option<u64>,
    /// Since when the manager has something newer than what was handed on.
    pub(super) behind_since: Option<Instant>,
}

impl Reporter {
    pub(super) async fn run(mut self) {
        let session = Uuid::new_v4();
        let mut sequence = 0;
        let mut backoff = Backoff::default();
        let mut period = FIRST_PERIOD;
        let mut in_touch = true;
        let mut vm_changes = self.vms.changes();
        let mut applied_changes = self.shared.applied.subscribe();
        loop {
            // Marked as seen before the report is made: what changes meanwhile makes another one.
            vm_changes.mark_unchanged();
            applied_changes.mark_unchanged();
            self.spec.mark_unchanged();
            sequence += 1;
            let report = self.report(session, sequence);
            let sent_at = BootTime::now();
            let began = Instant::now();
            let result = self.client.report(&report, self.answer_limit()).await;
            self.renew(sent_at, Contact::of(&result));
            match result {
                Ok(reply) => {
                    if !in_touch {
                        tracing::info!("the manager answers again");
                    }
                    in_touch = true;
                    backoff.succeeded();
                    period = self.answered(&report, &reply);
                    sleep_until(began + SHORTEST_PERIOD).await;
                    tokio::select! {
                        () = sleep_until(began + period) => {}
                        Ok(()) = vm_changes.changed() => {}
                        Ok(()) = applied_changes.changed() => {}
                        Ok(()) = self.spec.changed() => {}
                        () = self.usage.division_changed() => {}
                    }
                }
                Err(error) => {
                    log_failure(&error, in_touch);
                    in_touch = false;
                    sleep(backoff.failed(period, rand::random())).await;
                }
            }
        }
    }

    fn report(&mut self, session: Uuid, sequence: u64) -> AgentReport {
        let desired_generation = *self.shared.applied.borrow();
        let vms = self.vms.observed();
        let running = vms.iter().filter(|vm| is_running(vm.phase)).count();
        let usage = self.usage.sample(u32::try_from(running).unwrap_or(u32::MAX));
        AgentReport {
            boot_id: self.boot_id.clone(),
            session,
            sequence,
            spec: self.spec.borrow().clone(),
            desired_generation,
            vms,
            usage,
            vm_usage: self.usage.vms(),
        }
    }

    fn renew(&mut self, sent_at: BootTime, contact: Contact) {
        match self.lease.report(sent_at, contact) {
            Ok(Renewal::Begun) => {
                tracing::info!("the host has a lease; asking anew what is wanted");
                self.shared.refetch.send_modify(|count| *count += 1);
            }
            Ok(Renewal::Renewed | Renewal::Left) => {}
            Err(error) => {
                tracing::error!(error = %ErrorChain(&error), "cannot keep the host's lease");
            }
        }
    }

    /// Takes note of an answer, and tells how long to wait at most before the next report.
    fn answered(&mut self, report: &AgentReport, reply: &ReportReply) -> Duration {
        if let Err(error) = self.state.lock().keep_reply(reply) {
            tracing::warn!(error = %ErrorChain(&error), "cannot remember the manager's answer");
        }
        if reply.desired_generation >= report.desired_generation {
            self.went_back = None;
        } else if self.went_back.replace(reply.desired_generation) != Some(reply.desired_generation)
        {
            // The manager's state went back, as from a backup: its long poll would never answer.
            tracing::warn!(
                ours = report.desired_generation,
                theirs = reply.desired_generation,
                "the manager wants less than before; asking anew"
            );
            self.shared.refetch.send_modify(|count| *count += 1);
        }
        self.notice_lag(report, reply);
        let asked = Duration::from_millis(reply.interval_ms);
        // Three attempts within the lease, whatever the interval says.
        let lease = reply.lease_ms.map_or(LONGEST_PERIOD, |ms| Duration::from_millis(ms) / 3);
        asked.min(lease).clamp(SHORTEST_PERIOD, LONGEST_PERIOD)
    }

    /// A long poll that hangs, as after a lost connection, must not hide what is wanted for longer
    /// than this.
    fn notice_lag(&mut self, report: &AgentReport, reply: &ReportReply) {
        if reply.desired_generation <= report.desired_generation {
            self.behind_since = None;
        } else if self.behind_since.get_or_insert_with(Instant::now).elapsed() >= LONGEST_LAG {
            self.behind_since = None;
            self.shared.refetch.send_modify(|count| *count += 1);
        }
    }

    /// Well below the lease, so that an answer that got lost leaves time for another.
    fn answer_limit(&self) -> Duration {
        match self.lease.granted() {
            Some(Some(lease_ms)) => {
                (Duration::from_millis(lease_ms) / 3).clamp(SHORTEST_ANSWER, LONGEST_ANSWER)
            }
            _ => LONGEST_ANSWER,
        }
    }
}

const fn is_running(phase: ObservedPhase) -> bool {
    matches!(phase, ObservedPhase::Running | ObservedPhase::Stopping)
}

/// Once when contact is lost, then only for those who look closely.
fn log_failure(error: &ClientError, was_in_touch: bool) {
    let error = ErrorChain(error);
    if was_in_touch {
        tracing::warn!(%error, "the manager does not answer; everything goes on");
    } else {
        tracing::debug!(%error, "the manager still does not answer");
    }
}

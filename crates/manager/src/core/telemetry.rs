//! What hosts report: kept in memory with the time of its arrival, never in the store. Leases are
//! reckoned here, on the monotonic clock.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use parking_lot::Mutex;
use plimsoll_api::{
    cluster::{AgentReport, HostUsage, MemoryState, ObservedPhase, ObservedVm, VmShare, VmUsage},
    deduplication::ProjectDeduplication,
};
use plimsoll_model::{Bytes, HostId, ProjectId, Timestamp, VmId};
use uuid::Uuid;

/// So many sessions of an agent are remembered, to know late reports of an earlier one.
const REMEMBERED_SESSIONS: usize = 16;

/// Replies with a lease, each followed by another report, after which the host is taken to hold one.
pub(crate) const REPLIES_TO_ARM: u32 = 3;

/// What is known of one host since the manager started.
#[derive(Debug, Default)]
pub(crate) struct HostTelemetry {
    session: Option<Uuid>,
    past_sessions: VecDeque<Uuid>,
    sequence: u64,
    pub(crate) received_at: Option<Timestamp>,
    /// When the last report came, or the manager started.
    pub(crate) received: Duration,
    /// No lease that the host holds ends later.
    pub(crate) lease_until: Duration,
    /// Reports in a row that were answered with a lease.
    pub(crate) leased_replies: u32,
    /// While it is being fenced no report is taken, so that no lease is renewed.
    pub(crate) being_fenced: bool,
    pub(crate) usage: HostUsage,
    pub(crate) vm_usage: Vec<VmUsage>,
    /// VMs unknown to the manager that were put on record.
    announced: BTreeSet<VmId>,
    pub(crate) vms: HashMap<VmId, Seen>,
}

/// A VM as last reported.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) observed: ObservedVm,
    /// Since when it has been reported in this phase and generation.
    pub(crate) since: Duration,
}

/// Why a report is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    Stale,
    BeingFenced,
}

/// What every host reported last.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    hosts: Mutex<BTreeMap<HostId, HostTelemetry>>,
}

impl Telemetry {
    /// Counts a host as just seen.
    pub(crate) fn begin(&self, host: HostId, now: Duration, longest_lease: Duration) {
        let telemetry = HostTelemetry {
            received: now,
            lease_until: now.saturating_add(longest_lease),
            ..HostTelemetry::default()
        };
        self.hosts.lock().insert(host, telemetry);
    }

    pub(crate) fn forget(&self, host: HostId) {
        self.hosts.lock().remove(&host);
    }

    /// What is known of a host.
    pub(crate) fn with<T>(&self, host: HostId, f: impl FnOnce(&mut HostTelemetry) -> T) -> T {
        f(self.hosts.lock().entry(host).or_default())
    }

    /// Since when a VM is reported as it is.
    pub(crate) fn since(&self, host: HostId, vm: VmId) -> Option<Duration> {
        self.hosts.lock().get(&host).and_then(|host| host.vms.get(&vm)).map(|seen| seen.since)
    }

    /// What a VM uses, as its host reported it last.
    pub(crate) fn usage_of(&self, host: HostId, vm: VmId) -> Option<VmUsage> {
        let hosts = self.hosts.lock();
        hosts.get(&host)?.vm_usage.iter().find(|usage| usage.vm == vm).copied()
    }

    /// What merging equal pages does for the VMs that `owner` knows to be on that host, by owner.
    pub(crate) fn deduplication(
        &self,
        owner: impl Fn(HostId, &ObservedVm) -> Option<ProjectId>,
    ) -> BTreeMap<ProjectId, ProjectDeduplication> {
        let mut sums: BTreeMap<ProjectId, ProjectDeduplication> = BTreeMap::new();
        for (host, telemetry) in self.hosts.lock().iter() {
            for seen in telemetry.vms.values() {
                let part = seen.observed.deduplication.filter(|part| part.merging.is_allowed());
                let owner = part.and_then(|_| owner(*host, &seen.observed));
                if let (Some(part), Some(project)) = (part, owner) {
                    let sum = sums.entry(project).or_default();
                    sum.vms = sum.vms.saturating_add(1);
                    sum.saved = sum.saved.saturating_add(part.saved);
                    sum.overhead = sum.overhead.saturating_add(part.overhead);
                }
            }
        }
        sums
    }

    /// A VM as its host reported it last.
    pub(crate) fn seen(&self, host: HostId, vm: VmId) -> Option<Seen> {
        self.hosts.lock().get(&host).and_then(|host| host.vms.get(&vm)).cloned()
    }
}

impl HostTelemetry {
    /// Takes a report: notes it, and renews the lease that the answer will grant (`None`: it grants
    /// none).
    pub(crate) fn take(
        &mut self,
        report: &AgentReport,
        now: Duration,
        received_at: Timestamp,
        lease: Option<Duration>,
    ) -> Result<Vec<Notice>, NotTaken> {
        if self.being_fenced {
            return Err(NotTaken::BeingFenced);
        }
        if self.session == Some(report.session) {
            if report.sequence <= self.sequence {
                return Err(NotTaken::Stale);
            }
        } else {
            if self.past_sessions.contains(&report.session) {
                return Err(NotTaken::Stale);
            }
            if let Some(past) = self.session.replace(report.session) {
                self.past_sessions.push_front(past);
                self.past_sessions.truncate(REMEMBERED_SESSIONS);
            }
        }
        self.sequence = report.sequence;
        self.received = now;
        self.received_at = Some(received_at);
        match lease {
            Some(lease) => {
                self.lease_until = self.lease_until.max(now.saturating_add(lease));
                self.leased_replies = self.leased_replies.saturating_add(1);
            }
            None => self.leased_replies = 0,
        }
        let mut notices = Vec::new();
        let state = |usage: &HostUsage| usage.division.map(|division| division.state);
        let (was, is) = (state(&self.usage).unwrap_or_default(), state(&report.usage));
        if let Some(is) = is.filter(|is| *is != was) {
            notices.push(Notice::Memory { was, is });
        }
        self.usage = report.usage.clone();
        self.vm_usage.clone_from(&report.vm_usage);
        let mut before = std::mem::take(&mut self.vms);
        self.vms.reserve(report.vms.len());
        for observed in &report.vms {
            let known = before.get(&observed.vm).and_then(|seen| seen.observed.share.as_ref());
            notices.extend(share_notice(observed, known));
            let seen = match before.remove(&observed.vm) {
                Some(seen) if seen.observed == *observed => seen,
                seen => Seen::new(observed, seen.as_ref(), now),
            };
            self.vms.insert(observed.vm, seen);
        }
        Ok(notices)
    }
}

/// Something that a report tells and that belongs into the log, though nothing else keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// How short of memory the host is has changed.
    Memory { was: MemoryState, is: MemoryState },
    /// Its host began to take memory from a VM.
    Reclaimed { vm: VmId, share: VmShare },
    /// And has given all of it back.
    Restored { vm: VmId },
}

fn share_notice(observed: &ObservedVm, known: Option<&VmShare>) -> Option<Notice> {
    let was_taken = known.is_some_and(|share| share.taken > Bytes::ZERO);
    match &observed.share {
        Some(share) if share.taken > Bytes::ZERO => {
            (!was_taken).then(|| Notice::Reclaimed { vm: observed.vm, share: share.clone() })
        }
        _ => was_taken.then_some(Notice::Restored { vm: observed.vm }),
    }
}

impl Seen {
    fn new(observed: &ObservedVm, before: Option<&Self>, now: Duration) -> Self {
        let same = |seen: &&Self| {
            let old = &seen.observed;
            (old.incarnation, old.generation, old.phase)
                == (observed.incarnation, observed.generation, observed.phase)
        };
        let since = before.filter(same).map_or(now, |seen| seen.since);
        Self { observed: observed.clone(), since }
    }
}

impl HostTelemetry {
    /// Those of the VMs that were not put on record yet.
    pub(crate) fn not_announced(&self, vms: &[VmId]) -> Vec<VmId> {
        vms.iter().filter(|vm| !self.announced.contains(vm)).copied().collect()
    }

    /// The VM was put on record.
    pub(crate) fn announce(&mut self, vm: VmId) {
        self.announced.insert(vm);
    }
}

/// Whether no QEMU of the VM runs, as observed.
pub(crate) const fn runs_not(phase: ObservedPhase) -> bool {
    matches!(phase, ObservedPhase::Stopped | ObservedPhase::Failed | ObservedPhase::Absent)
}

//! A simulated host: it does what the contract asks of agents and guards.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use plimsoll_api::cluster::{
    AgentReport, DesiredHost, DesiredPresent, DiskOrigin, HostRates, HostUsage, ObservedPhase,
    ObservedVm, VmRates, VmUsage, Wanted,
};
use plimsoll_model::{Amount, Bytes, HostId, HostSpec, Power, StoragePool, VmId};

use super::moving::{Part, Turn};
use crate::{app, core::Core};

/// A VM on a simulated host.
#[derive(Clone, Debug)]
pub(crate) struct SimVm {
    pub(crate) incarnation: u64,
    pub(crate) running: bool,
    pub(crate) powered_off: bool,
    pub(super) generation: u64,
    pub(super) disk: bool,
    pub(super) present: Option<DesiredPresent>,
    gone: bool,
    pub(crate) part: Option<Part>,
}

/// A host that does what the contract asks of agents and guards, one step at a time.
#[derive(Clone, Debug)]
pub(crate) struct SimHost {
    pub(crate) id: HostId,
    pub(crate) spec: HostSpec,
    pub(crate) boot_id: String,
    session: uuid::Uuid,
    sequence: u64,
    /// When the lease ends; `Some(None)`: it has none to keep.
    lease: Option<Option<Duration>>,
    pub(crate) desired: DesiredHost,
    /// What was heard before a gap in the lease starts nothing that the lease fences.
    stale: bool,
    pub(crate) vms: BTreeMap<VmId, SimVm>,
    pub(crate) highest_generation: u64,
    /// What each of its running VMs uses, by its own word.
    pub(crate) each_uses: Amount,
    /// What each of them does, and the host itself.
    pub(crate) each_does: VmRates,
    pub(crate) does: HostRates,
    pub(crate) swap: Bytes,
}

impl SimHost {
    pub(super) fn new(id: HostId, spec: HostSpec) -> Self {
        Self {
            id,
            spec,
            boot_id: "boot-1".to_owned(),
            session: uuid::Uuid::from_u128(u128::from(id.0)),
            sequence: 0,
            lease: None,
            desired: DesiredHost::default(),
            stale: true,
            vms: BTreeMap::new(),
            highest_generation: 0,
            each_uses: Amount::default(),
            each_does: VmRates::default(),
            does: HostRates::default(),
            swap: Bytes::ZERO,
        }
    }

    /// Guards: a marked VM does not outlive the lease.
    pub(crate) fn guard(&mut self, now: Duration) {
        if matches!(self.lease, Some(Some(end)) if now >= end) {
            self.stale = true;
            for vm in self.vms.values_mut() {
                if vm.present.as_ref().is_some_and(|present| present.fenced_by_lease) {
                    vm.running = false;
                    vm.lose_arrival();
                }
            }
        }
    }

    /// Whether a VM that the lease fences may start, as of the guards' last look.
    pub(super) const fn may_start_fenced(&self) -> bool {
        !self.stale && self.lease.is_some()
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = VmId> + '_ {
        self.vms.iter().filter(|(_, vm)| vm.running).map(|(id, _)| *id)
    }

    pub(crate) fn report(&mut self) -> AgentReport {
        self.sequence += 1;
        let vms = self
            .vms
            .iter()
            .map(|(id, vm)| ObservedVm {
                vm: *id,
                incarnation: vm.incarnation,
                generation: vm.generation,
                phase: match vm {
                    SimVm { gone: true, .. } => ObservedPhase::Absent,
                    SimVm { running: true, .. } => ObservedPhase::Running,
                    SimVm { powered_off: true, .. } => ObservedPhase::Stopped,
                    SimVm { present: Some(present), .. } if present.power == Power::Running => {
                        ObservedPhase::Starting
                    }
                    _ => ObservedPhase::Stopped,
                },
                message: None,
                restarts: 0,
                disk_exists: vm.disk,
                guest: None,
                limits: None,
                deflation: None,
                share: None,
                deduplication: None,
                migration: vm.observed_part(),
            })
            .collect();
        let Amount { cpu, memory } = self.each_uses;
        let usage = |vm| VmUsage { vm, cpu, memory, resident: memory, rates: self.each_does };
        let vm_usage = self.running().map(usage).collect();
        AgentReport {
            boot_id: self.boot_id.clone(),
            session: self.session,
            sequence: self.sequence,
            spec: self.spec.clone(),
            desired_generation: self.desired.generation,
            vms,
            usage: HostUsage { swap: self.swap, rates: self.does, ..HostUsage::default() },
            vm_usage,
        }
    }

    /// Sends a report; the answer may be lost.
    pub(crate) async fn send(&mut self, core: &Core, answer_arrives: bool) -> bool {
        let sent = core.monotonic();
        let report = self.report();
        let Ok(reply) = app::agent_report(core, self.id, report).await else { return false };
        if answer_arrives {
            let end = reply.lease_ms.map(|ms| sent + Duration::from_millis(ms));
            self.lease = Some(end);
        }
        answer_arrives
    }

    /// Fetches the desired state.
    pub(crate) async fn fetch(&mut self, core: &Core) {
        let after = self.desired.generation;
        let Ok(desired) = app::agent_desired(core, self.id, after, Duration::ZERO).await else {
            return;
        };
        assert!(desired.generation >= self.highest_generation, "generations never go back");
        self.highest_generation = desired.generation;
        self.desired = desired;
        self.stale = false;
    }

    /// Makes the desired state so.
    pub(crate) fn act(&mut self, now: Duration) {
        self.guard(now);
        let stale = self.stale;
        let lease_over =
            matches!(self.lease, Some(Some(end)) if now >= end) || self.lease.is_none();
        let listed: BTreeSet<VmId> = self.desired.vms.iter().map(|vm| vm.vm).collect();
        self.vms.retain(|id, vm| !vm.gone || listed.contains(id));
        for desired in self.desired.vms.clone() {
            let vm = self.vms.entry(desired.vm).or_insert(SimVm {
                incarnation: desired.incarnation,
                running: false,
                powered_off: false,
                generation: 0,
                disk: false,
                present: None,
                gone: false,
                part: None,
            });
            if desired.incarnation < vm.incarnation {
                continue;
            }
            if desired.incarnation > vm.incarnation {
                // After a move that failed it is only called otherwise. Whatever other part it had
                // in a move of an earlier one is over.
                if !vm.part.take().is_some_and(Part::stays) {
                    vm.generation = 0;
                    vm.powered_off = false;
                }
            }
            vm.incarnation = desired.incarnation;
            match desired.wanted {
                Wanted::Absent { delete_disk } => {
                    vm.running = false;
                    vm.gone = true;
                    vm.present = None;
                    vm.part = None;
                    vm.disk &= !delete_disk;
                }
                Wanted::Present(present) => {
                    vm.gone = false;
                    let shared = matches!(self.spec.storage, StoragePool::Shared { .. });
                    assert!(
                        vm.disk || shared || present.disk == DiskOrigin::Image,
                        "told to use a disk that is not here"
                    );
                    let newer = present.generation > vm.generation;
                    let turn = vm.take_part(&present);
                    match present.power {
                        _ if turn == Turn::Waits => {}
                        Power::Stopped => {
                            vm.running = false;
                            vm.powered_off = false;
                            vm.generation = present.generation;
                        }
                        Power::Running
                            if present.fenced_by_lease && !vm.running && (stale || lease_over) => {}
                        Power::Running if vm.powered_off && !newer => {}
                        Power::Running => {
                            vm.powered_off = false;
                            vm.running = true;
                            vm.disk = true;
                            vm.generation = present.generation;
                        }
                    }
                    vm.present = Some(*present);
                }
            }
        }
    }

    /// A whole round: report, fetch, act, report.
    pub(crate) async fn exchange(&mut self, core: &Core) {
        self.guard(core.monotonic());
        self.send(core, true).await;
        self.fetch(core).await;
        self.act(core.monotonic());
        self.send(core, true).await;
    }

    /// The guest shuts itself down.
    pub(crate) fn power_off(&mut self, vm: VmId) {
        if let Some(vm) = self.vms.get_mut(&vm)
            && vm.running
        {
            vm.running = false;
            vm.powered_off = true;
        }
    }

    /// The machine is reset: nothing runs.
    pub(crate) fn reboot(&mut self, boot_id: &str) {
        self.boot_id = boot_id.to_owned();
        self.restart_agent();
        for vm in self.vms.values_mut() {
            vm.running = false;
            vm.lose_arrival();
        }
    }

    /// The agent is killed and started again; VMs go on.
    pub(crate) fn restart_agent(&mut self) {
        self.session = uuid::Uuid::from_u128(self.session.as_u128() + (1 << 64));
        self.sequence = 0;
        self.stale = true;
        self.desired = DesiredHost::default();
    }
}

//! What reports tell the decider of VMs and hosts beside CPU time and memory.
//!
//! A host's use of a resource is what its VMs use, and is not measured where it is not measured of
//! all of them. What it can do counts only where it is known: what an agent assumes of disks and
//! networks is good for placing VMs by, and no reason to move one.

use plimsoll_api::{
    cluster::{HostRates, VmRates, VmUsage},
    guest::Pressure as GuestPressure,
};
use plimsoll_balance::{GuestWord, Permille, Pressure, Usage};
use plimsoll_model::{
    Amount, BitsPerSecond, Bytes, BytesPerSecond, IoPerSecond, MilliCores, Resources, VmId,
};

use crate::core::{Core, State, record::HostRecord};

/// From this share of what a VM may use on, its own limit counts as what holds it back.
const HELD_BACK: f64 = 0.05;

/// What a VM uses that may use so much. While it moves, what its process reads and writes is the
/// move's.
pub(super) fn of_vm(used: &VmUsage, has: Amount, moves: bool) -> Usage {
    let rates = &used.rates;
    let disk = sum(rates.disk_read, rates.disk_written);
    Usage {
        cpu_used: Some(used.cpu),
        cpu_wanted: rates.cpu_wait.map(|wait| wanted(used.cpu, wait, has.cpu)),
        memory_used: Some(used.memory),
        memory_pressure: None,
        swap: rates.swapped_in,
        disk: disk.filter(|_| !moves),
        disk_operations: None,
        network: rates.sent.zip(rates.received).map(|(sent, received)| sent.max(received)),
    }
}

/// What it would use if it had to wait for nobody. More than it may use it could not, whatever it
/// waits: its own limit is no reason to move it.
fn wanted(used: MilliCores, wait: MilliCores, may: MilliCores) -> MilliCores {
    used.saturating_add(wait).min(may).max(used)
}

fn sum(one: Option<BytesPerSecond>, other: Option<BytesPerSecond>) -> Option<BytesPerSecond> {
    Some(one?.saturating_add(other?))
}

/// What the VMs of a host use together.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostSum {
    usage: Usage,
    sent: Option<BitsPerSecond>,
    received: Option<BitsPerSecond>,
}

impl HostSum {
    /// Without VMs nothing is used: that is known.
    pub(super) fn nothing() -> Self {
        let usage = Usage {
            cpu_used: Some(MilliCores(0)),
            cpu_wanted: Some(MilliCores(0)),
            memory_used: Some(Bytes::ZERO),
            disk: Some(BytesPerSecond::ZERO),
            ..Usage::default()
        };
        Self { usage, sent: Some(BitsPerSecond::ZERO), received: Some(BitsPerSecond::ZERO) }
    }

    /// Adds what a VM uses, and what went by its network.
    pub(super) fn add(&mut self, used: &Usage, rates: &VmRates) {
        let sum = &mut self.usage;
        sum.cpu_used = sum.cpu_used.zip(used.cpu_used).map(|(a, b)| a.saturating_add(b));
        // Of one whose wait is not measured the use is what is known of its wish.
        let wanted = used.cpu_wanted.or(used.cpu_used);
        sum.cpu_wanted = sum.cpu_wanted.zip(wanted).map(|(a, b)| a.saturating_add(b));
        sum.memory_used = sum.memory_used.zip(used.memory_used).map(|(a, b)| a.saturating_add(b));
        sum.disk = self::sum(sum.disk, used.disk);
        self.sent = self.sent.zip(rates.sent).map(|(a, b)| a.saturating_add(b));
        self.received = self.received.zip(rates.received).map(|(a, b)| a.saturating_add(b));
    }

    /// What the host uses; of itself it knows how short of memory it is.
    pub(super) fn with(self, host: &HostRates) -> Usage {
        let stall = host.memory_stall.map(|stall| Pressure {
            some: Permille(stall.some_permille.into()),
            full: Permille(stall.full_permille.into()),
        });
        Usage {
            memory_pressure: stall,
            swap: sum(host.swapped_in, host.swapped_out),
            network: self.sent.zip(self.received).map(|(sent, received)| sent.max(received)),
            ..self.usage
        }
    }
}

/// What a host has, as far as it is known; none of what is only assumed.
pub(super) fn known(capacity: &Resources, rates: &HostRates) -> Resources {
    Resources {
        network: rates.network_capacity.unwrap_or_default(),
        disk_bandwidth: rates.disk_capacity.unwrap_or_default(),
        disk_iops: IoPerSecond::ZERO,
        ..capacity.clone()
    }
}

/// What a guest's kernel says of work that stands still.
pub(super) fn stalls(word: GuestWord, cpu: GuestPressure, memory: GuestPressure) -> GuestWord {
    let share = |pressure: GuestPressure| Some(Permille(pressure.some_avg10.0 / 10));
    GuestWord { cpu_pressure: share(cpu), memory_pressure: share(memory), ..word }
}

/// Whether a VM's own limit holds back enough CPU to be worth a word.
fn is_held_back(throttled: MilliCores, may: MilliCores) -> bool {
    throttled.0 as f64 > may.0 as f64 * HELD_BACK
}

/// VMs whose own limit holds CPU back, and how much.
pub(crate) fn held_back(core: &Core, state: &State) -> Vec<(VmId, MilliCores)> {
    let mut held = Vec::new();
    for (vm, record) in &state.vms {
        let Some(host) = record.host() else { continue };
        let used = core.telemetry().usage_of(host, *vm);
        let throttled = used.and_then(|used| used.rates.cpu_throttled);
        if let Some(cpu) = throttled.filter(|cpu| is_held_back(*cpu, super::has(record).cpu)) {
            held.push((*vm, cpu));
        }
    }
    held
}

/// Shares of what a host can do; `None` where they are not known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shares {
    pub(crate) cpu_wait: Option<f64>,
    pub(crate) disk: Option<f64>,
    pub(crate) network: Option<f64>,
}

/// How much of its disks and its network a host's VMs use, and how much CPU they wait for.
pub(crate) fn shares_of(core: &Core, state: &State, record: &HostRecord) -> Shares {
    let id = record.host.id;
    let (rates, used) =
        core.telemetry().with(id, |telemetry| (telemetry.usage.rates, telemetry.vm_usage.clone()));
    let (mut sum, mut wait) = (HostSum::nothing(), Some(MilliCores(0)));
    for used in &used {
        let Some(vm) = state.vm(used.vm).filter(|vm| vm.host() == Some(id)) else { continue };
        sum.add(&of_vm(used, super::has(vm), vm.migration.is_some()), &used.rates);
        wait = wait.zip(used.rates.cpu_wait).map(|(sum, wait)| sum.saturating_add(wait));
    }
    let capacity = known(&record.host.spec.capacity, &rates);
    let usage = sum.with(&rates);
    let share = |used: u64, has: u64| (has > 0).then(|| used as f64 / has as f64);
    Shares {
        cpu_wait: wait.and_then(|wait| share(wait.0, capacity.cpu.0)),
        disk: usage.disk.and_then(|disk| share(disk.0, capacity.disk_bandwidth.0)),
        network: usage.network.and_then(|network| share(network.0, capacity.network.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(cpu: u64, rates: VmRates) -> VmUsage {
        let vm = VmId(uuid::Uuid::from_u128(1));
        VmUsage { vm, cpu: MilliCores(cpu), memory: Bytes(1), resident: Bytes(1), rates }
    }

    const HAS: Amount = Amount { memory: Bytes(1 << 30), cpu: MilliCores(1000) };

    #[test]
    fn who_waits_for_others_wants_more_and_who_waits_for_its_own_limit_does_not() {
        let waits = |cpu, wait| {
            let rates = VmRates { cpu_wait: Some(MilliCores(wait)), ..VmRates::default() };
            of_vm(&used(cpu, rates), HAS, false).cpu_wanted
        };
        assert_eq!(waits(500, 400), Some(MilliCores(900)));
        assert_eq!(waits(500, 4000), Some(MilliCores(1000)), "it may not use more");
        assert_eq!(waits(1200, 0), Some(MilliCores(1200)), "QEMU's own work is work");
        let held = VmRates { cpu_throttled: Some(MilliCores(700)), ..VmRates::default() };
        let held = used(1000, held);
        assert_eq!(of_vm(&held, HAS, false).cpu_wanted, None);
        assert!(is_held_back(MilliCores(700), HAS.cpu));
        assert!(!is_held_back(MilliCores(700), MilliCores(100_000)));
    }

    #[test]
    fn what_is_not_measured_of_one_vm_is_not_measured_of_its_host() {
        let rates = VmRates {
            disk_read: Some(BytesPerSecond(10)),
            disk_written: Some(BytesPerSecond(20)),
            sent: Some(BitsPerSecond(300)),
            received: Some(BitsPerSecond(100)),
            ..VmRates::default()
        };
        let vm = of_vm(&used(100, rates), HAS, false);
        assert_eq!((vm.disk, vm.network), (Some(BytesPerSecond(30)), Some(BitsPerSecond(300))));
        assert_eq!(of_vm(&used(100, rates), HAS, true).disk, None, "the move's, not its own");
        let mut sum = HostSum::nothing();
        let other =
            VmRates { sent: Some(BitsPerSecond(0)), received: Some(BitsPerSecond(250)), ..rates };
        sum.add(&vm, &rates);
        sum.add(&of_vm(&used(100, other), HAS, false), &other);
        let host = sum.with(&HostRates::default());
        assert_eq!((host.disk, host.network), (Some(BytesPerSecond(60)), Some(BitsPerSecond(350))));
        assert_eq!((host.cpu_wanted, host.swap), (Some(MilliCores(200)), None));
        sum.add(&of_vm(&used(100, VmRates::default()), HAS, false), &VmRates::default());
        let host = sum.with(&HostRates::default());
        assert_eq!((host.disk, host.network), (None, None));
        assert_eq!(host.cpu_wanted, Some(MilliCores(300)));
    }

    #[test]
    fn what_is_assumed_of_a_host_is_not_known() {
        let assumed = Resources {
            cpu: MilliCores(8000),
            network: BitsPerSecond(1_000_000_000),
            disk_bandwidth: BytesPerSecond(1 << 20),
            disk_iops: IoPerSecond(100),
            ..Resources::default()
        };
        let nothing = known(&assumed, &HostRates::default());
        assert_eq!(nothing, Resources { cpu: MilliCores(8000), ..Resources::default() });
        let rates = HostRates { network_capacity: Some(BitsPerSecond(7)), ..HostRates::default() };
        assert_eq!(known(&assumed, &rates).network, BitsPerSecond(7));
    }
}

//! From whom `reclaim` would take memory, by what both guests say of themselves.

use std::time::Duration;

use plimsoll_api::v1::VmView as Vm;
use plimsoll_model::{Amount, Bytes, Elasticity, MilliCores};
use plimsoll_reclaim::{
    DEFAULT_IDLE_TAX, GuestView, HostView, Memory, Pressure, VmView, WorkingSet, plan,
};
use serde::Serialize;
use tokio::time::sleep;

use super::{Guest, LEAST_PART};
use crate::failure::{Failure, Outcome};

/// Guests tell about themselves every ten seconds.
const FACTS: Duration = Duration::from_secs(12);
/// Plans take memory in steps: so many are enough for all of it.
const PLANS: u32 = 240;
/// For so many seconds a guest is seen like this.
const SEEN: u32 = 60;
/// What a VM costs its host beside its own memory.
const OVERHEAD: Bytes = Bytes::mib(96);

/// What would be taken from whom.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Choice {
    /// How much the host needs.
    pub(super) needed: Bytes,
    /// What the guest `files` could do without, by its own numbers.
    pub(super) files_available: Bytes,
    /// What the guest `store` could.
    pub(super) store_available: Bytes,
    /// What is taken from `files`, in whole mebibytes: a little more than is needed all in all, for the
    /// host is to have some memory free again.
    pub(super) files: Bytes,
    /// What is taken from `store`, in whole mebibytes.
    pub(super) store: Bytes,
}

/// A guest that does as it is asked, from what a real one said.
struct Seen {
    vm: plimsoll_model::VmId,
    elasticity: Elasticity,
    promised: Amount,
    allocated: Bytes,
    guest: GuestView,
    resident: Bytes,
    working_set: WorkingSet,
}

impl Seen {
    fn of(vm: &Vm) -> Outcome<Self> {
        let facts = vm.guest.as_ref();
        let facts = facts.ok_or_else(|| Failure::new(format!("vm {} says nothing", vm.name)))?;
        let promised = Amount { memory: vm.resources.memory, cpu: vm.resources.cpu };
        let some = facts.pressure.map_or(0, |pressure| pressure.memory.some_avg10.0 / 10);
        let full = facts.pressure.map_or(0, |pressure| pressure.memory.full_avg10.0 / 10);
        let guest = GuestView {
            total: promised.memory,
            free: Bytes(facts.memory.free_bytes),
            available: Bytes(facts.memory.available_bytes),
            active_file: Bytes::ZERO,
            pressure: Pressure {
                some: u16::try_from(some).unwrap_or(1000),
                full: u16::try_from(full).unwrap_or(1000),
            },
            starved: false,
        };
        // What is still in swap space from the measurements is the VM's as well.
        let held = vm.limits.as_ref().map_or(promised.memory, |limits| {
            let held = [limits.memory_resident, limits.memory_swapped].into_iter().flatten();
            held.sum::<Bytes>().saturating_sub(OVERHEAD)
        });
        let elasticity = Elasticity::Burstable {
            memory_min: Bytes(promised.memory.get() / LEAST_PART),
            cpu_min: MilliCores(100),
            shares: plimsoll_model::elasticity::DEFAULT_SHARES,
        };
        let mut working_set = WorkingSet::default();
        for _ in 0..SEEN {
            working_set.observe(Some(&guest), None, 1000);
        }
        let resident = held.min(promised.memory);
        let allocated = promised.memory;
        Ok(Self { vm: vm.id, elasticity, promised, allocated, guest, resident, working_set })
    }

    fn view(&self) -> VmView<'_> {
        VmView {
            vm: self.vm,
            elasticity: &self.elasticity,
            promised: self.promised,
            allocated: Amount { memory: self.allocated, cpu: self.promised.cpu },
            resident: self.resident,
            guest: Some(self.guest),
            working_set: self.working_set.estimate(),
            growing: false,
            asked: Amount::default(),
        }
    }

    /// Gives what is asked for: free memory first, then caches.
    fn follow(&mut self, target: Bytes) {
        let given = self.allocated.saturating_sub(target);
        self.allocated = target;
        self.guest.total = target;
        self.guest.available = self.guest.available.saturating_sub(given);
        self.guest.free = self.guest.free.min(self.guest.available);
        self.resident = self.resident.min(target);
        self.working_set.observe(Some(&self.guest), None, 1000);
    }
}

impl Choice {
    /// Asks for a host that lacks `needed` of what the two hold.
    pub(super) async fn of(files: &Guest, store: &Guest, needed: Bytes) -> Outcome<Self> {
        sleep(FACTS).await;
        let (files, store) = (files.view().await?, store.view().await?);
        Ok(Self::by(Seen::of(&files)?, Seen::of(&store)?, needed))
    }

    fn by(files: Seen, store: Seen, needed: Bytes) -> Self {
        let (files_available, store_available) = (files.guest.available, store.guest.available);
        let overhead = Bytes(OVERHEAD.get() * 2);
        let mut seen = [files, store];
        let held: Bytes = seen.iter().map(|seen| seen.resident).sum();
        let wanted = held.saturating_sub(needed);
        let mut remembered = Memory::default();
        for _ in 0..PLANS {
            let resident: Bytes = seen.iter().map(|seen| seen.resident).sum();
            let host = HostView {
                memory: wanted.saturating_add(overhead),
                overhead,
                available: wanted.saturating_sub(resident),
                swap_free: held,
                cpu: MilliCores::cores(2),
                pressure: Pressure::default(),
                idle_tax: DEFAULT_IDLE_TAX,
            };
            let views: Vec<VmView<'_>> = seen.iter().map(Seen::view).collect();
            let (plan, next) = plan(&host, &views, &remembered);
            remembered = next;
            for (seen, target) in seen.iter_mut().zip(&plan.targets) {
                seen.follow(target.memory);
            }
        }
        let taken = |seen: Seen| seen.promised.memory.saturating_sub(seen.allocated).get() >> 20;
        let [files, store] = seen.map(|seen| Bytes::mib(taken(seen)));
        Self { needed, files_available, store_available, files, store }
    }
}

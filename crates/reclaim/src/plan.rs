//! The plan for one host: who holds how much from now on.
//!
//! Each round divides a *budget*: what VMs hold and what is free, less what is to stay free. What
//! they hold and want beyond it is *needed*, and taken in this order:
//!
//! 1. what lies unused in guests, from all alike;
//! 2. used pages that guests can give (their caches, by the balloon's pressure), cheapest first;
//! 3. when the host pages out: used pages, cheapest first, down to the minimums.
//!
//! Where nothing is needed, what is left of the budget goes back to those whose size was cut, dearest
//! pages first. As the division depends on what VMs use, and not on how the last one came about, it
//! settles under a constant load. The steps on
//! its way there are limited, so that a guest can tell that it hurts before it hurts much.

mod division;
mod memory;
mod reasons;

use plimsoll_model::{Bytes, MilliCores, VmId};
use serde::Serialize;

pub use memory::Memory;
pub(crate) use memory::Trace;

use crate::{
    account::Account,
    cpu,
    fill::in_proportion,
    price::{self, Worth, clamp},
    reason::Reason,
    state::{self, State},
    view::{HostView, VmView},
};
use division::Division;

/// What one VM is to have from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Target {
    /// The VM.
    pub vm: VmId,
    /// The size of its memory, by explicit means: from its minimum to what it was promised.
    pub memory: Bytes,
    /// By transparent means: how much of it the host goes on holding when the guest has given what
    /// its size says; the rest is paged out. `None` where nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resident: Option<Bytes>,
    /// Its CPU: what it was promised, less what its user wants to be taken.
    pub cpu: MilliCores,
    /// Its weight against the other VMs when all want CPU, from 1 to 10,000.
    pub cpu_weight: u16,
    /// Why; empty where it has what it wants.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
}

/// Who holds how much from now on, and how that came about. All of memory:
/// `needed = unused + used + withheld + deferred + shortfall`, to the byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// How short of memory the host is.
    pub state: State,
    /// What is free of what VMs may have.
    pub free: Bytes,
    /// What VMs may hold together.
    pub budget: Bytes,
    /// By how much what VMs hold, and would hold in addition, exceeds the budget.
    pub needed: Bytes,
    /// Taken of what lies unused.
    pub unused: Bytes,
    /// Taken of what is used.
    pub used: Bytes,
    /// Of all that is taken, what the host pages out.
    pub paged_out: Bytes,
    /// Growth for which there is no room at a VM's price.
    pub withheld: Bytes,
    /// What can be taken, but not in this round: it is taken in steps, and what is too little to ask
    /// for is left while there is no hurry.
    pub deferred: Bytes,
    /// What cannot be taken by the means of this state.
    pub shortfall: Bytes,
    /// By how much VMs may grow again.
    pub given: Bytes,
    /// Where used pages are taken: what is dearer, in thousandths of a share per part of a promise,
    /// was left to whoever has it, but for steps and floors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price: Option<u64>,
    /// By how much the minimums exceed the host's CPU.
    pub cpu_shortfall: MilliCores,
    /// One for each VM, in the order of the views.
    pub targets: Vec<Target>,
}

/// What there is to divide.
struct Supply {
    state: State,
    free: u64,
    /// What VMs may hold together.
    budget: u128,
    /// What they may hold together when something is given back.
    giving: u128,
    swap: u64,
    /// The level of the last division.
    near: u64,
}

impl Supply {
    fn new(host: &HostView, vms: &[VmView<'_>], accounts: &[Account], memory: &Memory) -> Self {
        let per_mille = |part| u128::from(host.memory.0) * u128::from(part) / 1000;
        let resident: u128 = vms.iter().map(|vm| u128::from(vm.resident.0)).sum();
        let held: u128 = accounts.iter().map(|account| u128::from(account.held)).sum();
        let others = u128::from(host.overhead.0) + resident;
        let free = u128::from(host.memory.0).saturating_sub(others).min(host.available.0.into());
        let state = memory.state().next(clamp(free), host.memory.0, host.pressure);
        let all = resident + free;
        let giving = all.saturating_sub(per_mille(state::GOAL));
        // While enough is free, nothing is taken only to have more free: what is held stays held.
        let budget = match state {
            State::High => held.min(all.saturating_sub(per_mille(state::LEAST))).max(giving),
            _ => giving,
        };
        Self {
            state,
            free: clamp(free),
            budget,
            giving,
            swap: host.swap_free.0,
            near: memory.levels().0,
        }
    }
}

/// Plans for one host, from what is seen of it and what the plan before remembered; the first time
/// with [`Memory::default`]. To be called about once a second: steps and pauses are counted in calls.
///
/// Every VM gets a target. Its size is never below its minimum nor above what it was promised,
/// whatever is needed; [`Plan::shortfall`] says what is lacking.
#[must_use]
pub fn plan(host: &HostView, vms: &[VmView<'_>], memory: &Memory) -> (Plan, Memory) {
    let mut accounts: Vec<Account> =
        vms.iter().map(|view| Account::read(view, memory.trace(view.vm))).collect();
    let mut supply = Supply::new(host, vms, &accounts, memory);
    page_out_as_asked(&mut supply, vms, &mut accounts);
    if supply.state.stops_growth() {
        accounts.iter_mut().for_each(Account::stop_growth);
    }
    let worths: Vec<Worth> = (vms.iter().zip(&accounts))
        .map(|(view, account)| account.worth(view.elasticity, host.idle_tax))
        .collect();
    let division = Division::new(&supply, &accounts, &worths);
    let cpu = cpu::divide(host, vms, memory.levels().1);
    let mut plan = Plan {
        state: supply.state,
        free: Bytes(supply.free),
        budget: Bytes(clamp(supply.budget)),
        needed: Bytes(clamp(division.needed)),
        unused: Bytes::ZERO,
        used: Bytes::ZERO,
        paged_out: Bytes::ZERO,
        withheld: Bytes::ZERO,
        deferred: Bytes::ZERO,
        shortfall: Bytes(clamp(division.shortfall)),
        given: Bytes::ZERO,
        price: division.level.map(price::price),
        cpu_shortfall: MilliCores(cpu.shortfall),
        targets: Vec::with_capacity(vms.len()),
    };
    let mut covered = division.shortfall;
    for (index, (view, account)) in vms.iter().zip(&accounts).enumerate() {
        let share = &division.shares[index];
        let taken = share.taken(account);
        covered += u128::from(taken.unused) + u128::from(taken.used) + u128::from(taken.withheld);
        let paged_out = share.paged_out(view.resident.0);
        for (sum, part) in [
            (&mut plan.unused, taken.unused),
            (&mut plan.used, taken.used),
            (&mut plan.withheld, taken.withheld),
            (&mut plan.paged_out, paged_out),
            (&mut plan.given, share.size.saturating_sub(account.allocated)),
        ] {
            *sum = sum.saturating_add(Bytes(part));
        }
        let (quota, weight) = cpu.of(index);
        let resident = (paged_out > 0).then_some(Bytes(share.grant));
        plan.targets.push(Target {
            vm: view.vm,
            memory: Bytes(share.size),
            resident,
            cpu: quota,
            cpu_weight: weight,
            reasons: reasons::of(&supply, view, account, &worths[index], share, &division),
        });
    }
    plan.deferred = Bytes(clamp(division.needed.saturating_sub(covered)));
    let levels = (division.level.unwrap_or(supply.near), cpu.level);
    let memory = memory.next(supply.state, levels, vms, &accounts);
    (plan, memory)
}

/// What users want to be taken and guests cannot give is paged out whatever the state; where there
/// is not room for all of it, in proportion.
fn page_out_as_asked(supply: &mut Supply, vms: &[VmView<'_>], accounts: &mut [Account]) {
    let wishes: Vec<u64> = vms
        .iter()
        .zip(&*accounts)
        .map(|(vm, account)| account.asked_too_much(vm.resident.0))
        .collect();
    let wished: u128 = wishes.iter().map(|wish| u128::from(*wish)).sum();
    if wished == 0 {
        return;
    }
    let room = wished.min(supply.swap.into());
    supply.swap -= clamp(room);
    let paged_out = in_proportion(&wishes, room);
    for ((account, view), paged_out) in accounts.iter_mut().zip(vms).zip(paged_out) {
        account.page_out_as_asked(view.resident.0, paged_out);
    }
}

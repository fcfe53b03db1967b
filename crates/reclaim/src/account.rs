//! What one VM holds, would hold and must keep, in bytes of host memory.
//!
//! Memory is counted where it costs: on the host. A guest's size (boot memory less the balloon) and
//! what the host holds of it differ by what is *absent*: pages of the guest that are in use but
//! paged out or merged. A VM that has the size of its promise holds what is resident; one whose size
//! was cut may grow back to that size at any instant, so all of it counts as held.
//!
//! ```text
//!      0        least          need             held       wanted        ceiling
//!      |----------|--------------|-----------------|-----------|-------------|
//!                 | used pages,  | lies unused in  | growth    | what it may
//!                 | by price     | the guest       | to come   | have at most
//! ```

use plimsoll_model::{Bytes, Elasticity};

use crate::{
    plan::Trace,
    price::{TYPICAL_MEMORY, Worth},
    view::{GuestView, VmView},
};

const MIB: u64 = 1 << 20;

/// Free memory that is left to a guest: 32 MiB, or 3 % of what it was promised.
pub(crate) const fn reserve(promised: u64) -> u64 {
    let share = promised / 100 * 3;
    if share < 32 * MIB { 32 * MIB } else { share }
}

/// The least change of a target that is worth asking a guest: 16 MiB, or 2 %.
pub(crate) const fn dead_band(size: u64) -> u64 {
    let share = size / 50;
    if share < 16 * MIB { 16 * MIB } else { share }
}

/// From this much pressure on, per mille, a guest is short of memory.
pub(crate) const SHORT: u16 = 100;

/// What one VM holds, would hold and must keep. Bytes of host memory, unless said otherwise.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    pub(crate) guaranteed: bool,
    /// What is remembered of it.
    pub(crate) trace: Trace,
    /// Its guest answers and does as it is asked.
    pub(crate) follows: bool,
    /// Its guest does not do as it is asked: it still has what was to be taken.
    pub(crate) lags: bool,
    /// Its size is below its ceiling, by an earlier plan.
    pub(crate) restrained: bool,
    /// It would use more than it has.
    pub(crate) hungry: bool,
    /// It waits for memory.
    pub(crate) short: bool,
    pub(crate) promised: u64,
    pub(crate) minimum: u64,
    pub(crate) shares: u32,
    /// How much it uses, for its price.
    pub(crate) active: u64,
    /// Guest size: the target in force.
    pub(crate) allocated: u64,
    /// Guest size: no target is above it.
    pub(crate) ceiling: u64,
    /// Guest size: no target goes below it that is not there yet. What the guest cannot do without,
    /// and its minimum.
    pub(crate) size_floor: u64,
    /// What its user wants it to be cut to: as `ceiling`, but that may be more for want of means.
    pub(crate) asked_ceiling: u64,
    /// Of what its user wants to be taken, what the host pages out.
    pub(crate) asked_of_host: u64,
    /// Used by the guest, but not held by the host.
    pub(crate) absent: u64,
    /// What it holds, or may hold before anybody can do anything about it.
    pub(crate) held: u64,
    /// What it would hold if nothing was taken: not below `held`, but where its user asked.
    pub(crate) wanted: u64,
    /// Of that, what does not lie unused.
    pub(crate) need: u64,
    /// What it keeps by explicit means, whatever its price.
    pub(crate) floor: u64,
    /// What its guest uses of what it holds, caches included.
    pub(crate) used: u64,
    /// Guest size: what the guest uses and could not give back without swapping.
    pub(crate) required: u64,
}

impl Account {
    /// Reads a view; what cannot be is cut to what can.
    pub(crate) fn read(view: &VmView<'_>, trace: Trace) -> Self {
        let promised = view.promised.memory.0;
        let (Bytes(minimum), _) = view.elasticity.minimum(Bytes(promised), view.promised.cpu);
        let guaranteed = matches!(view.elasticity, Elasticity::Guaranteed);
        let asked_ceiling = promised.saturating_sub(view.asked.memory.0).max(minimum);
        let lags = trace.lags();
        let mut account = Self {
            guaranteed,
            trace,
            lags,
            promised,
            minimum,
            shares: view.elasticity.shares(),
            allocated: view.allocated.memory.0.min(promised),
            asked_ceiling,
            ..Self::default()
        };
        match view.guest.filter(|_| !lags) {
            Some(guest) => account.read_guest(view, &guest),
            None => account.read_silent(view),
        }
        let estimate =
            view.working_set.map_or(account.used, |all| all.0.saturating_sub(account.absent));
        let hurt = trace.hurt(account.required);
        account.active = estimate.max(hurt).min(promised);
        account
    }

    /// A guest that does not answer, or does not do what it is asked: it has what the host sees,
    /// and all of it counts as used.
    fn read_silent(&mut self, view: &VmView<'_>) {
        self.restrained = self.allocated < self.promised;
        self.held = view.resident.0.min(self.promised);
        self.ceiling = self.promised;
        self.size_floor = self.allocated.max(self.minimum);
        let growth = if self.guaranteed && view.growing { self.held / 4 } else { 0 };
        self.wanted = self.held.saturating_add(growth).min(self.promised);
        self.need = self.wanted;
        self.floor = self.held;
        self.used = self.held;
        self.required = self.held;
    }

    fn read_guest(&mut self, view: &VmView<'_>, guest: &GuestView) {
        self.follows = true;
        let resident = view.resident.0;
        let total = guest.total.0.min(self.promised);
        let in_use = total.saturating_sub(guest.free.0);
        self.required = total.saturating_sub(guest.available.0.max(guest.free.0));
        let reserve = reserve(self.promised);
        self.short = guest.starved || guest.pressure.some >= SHORT;
        let full = guest.free.0.min(total) < reserve / 2;
        self.hungry = view.growing || self.short || full;
        self.absent = in_use.saturating_sub(resident);
        self.used = in_use - self.absent;

        self.size_floor =
            self.required.saturating_add(reserve).min(self.promised).max(self.minimum);
        self.ceiling = self.asked_ceiling.max(self.size_floor);
        self.restrained = self.allocated < self.promised;
        let most = self.ceiling.saturating_sub(self.absent);
        self.held = if self.restrained {
            self.allocated.saturating_sub(self.absent)
        } else {
            resident.min(self.allocated)
        };
        let growth = if self.hungry { in_use / 4 } else { 0 };
        let goal = self.used.saturating_add(reserve).saturating_add(growth);
        let wanted = if self.hungry { self.held.max(goal) } else { self.held };
        self.wanted = wanted.min(most);
        self.floor = self.size_floor.saturating_sub(self.absent).min(self.held).min(self.wanted);
        self.need = if self.guaranteed { self.wanted } else { goal.clamp(self.floor, self.wanted) };
    }

    /// Nobody may grow: it wants no more than it has, or its minimum.
    pub(crate) fn stop_growth(&mut self) {
        if !self.guaranteed {
            self.wanted = self.wanted.min(self.held.max(self.minimum));
            self.need = self.need.min(self.wanted);
        }
    }

    /// What its user wants to be taken and its guest cannot give.
    pub(crate) fn asked_too_much(&self, resident: u64) -> u64 {
        self.wanted.min(resident).saturating_sub(self.asked_ceiling)
    }

    /// So much of that is paged out.
    pub(crate) fn page_out_as_asked(&mut self, resident: u64, paged_out: u64) {
        if paged_out > 0 {
            self.asked_of_host = paged_out;
            self.wanted = self.wanted.min(resident).saturating_sub(paged_out);
            self.need = self.need.min(self.wanted);
            self.floor = self.floor.min(self.wanted);
        }
    }

    /// The size of its guest, when it holds so much.
    pub(crate) fn sized(&self, grant: u64, may_grow: bool) -> u64 {
        if self.guaranteed {
            return self.ceiling;
        }
        if self.lags {
            return self.allocated.max(self.minimum);
        }
        if may_grow && !self.restrained && grant >= self.wanted && self.follows {
            return self.ceiling;
        }
        let least = self.size_floor.min(self.allocated).max(self.minimum);
        grant.saturating_add(self.absent).max(least).min(self.ceiling.max(self.minimum))
    }

    /// What it keeps whatever its price: `by_host` when the host pages out, else when only the
    /// guest is asked. Not above its need.
    pub(crate) fn kept(&self, by_host: bool) -> u64 {
        if self.guaranteed || !(self.follows || by_host) {
            return self.need;
        }
        let floor = if by_host { 0 } else { self.floor };
        self.minimum.max(floor).min(self.need)
    }

    /// What its bytes are worth to it.
    pub(crate) fn worth(&self, elasticity: &Elasticity, idle_tax: u16) -> Worth {
        let idle_worth = 1000 - u64::from(idle_tax.min(crate::view::MAX_IDLE_TAX));
        let (promised, shares, active) = (self.promised, self.shares, self.active);
        match elasticity {
            Elasticity::Deflatable { utility, .. } => {
                let curve = utility.as_ref().and_then(|curves| curves.memory.as_ref());
                Worth::by_curve(curve, &TYPICAL_MEMORY, promised, shares, active, idle_worth)
            }
            _ => Worth::Shares { promised, shares, active, idle_worth },
        }
    }
}

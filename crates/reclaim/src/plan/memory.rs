//! What one plan leaves to the next: little, as plans depend on what is seen.

use std::collections::BTreeMap;

use plimsoll_model::VmId;
use serde::{Deserialize, Serialize};

use crate::{
    account::{Account, dead_band},
    state::State,
    view::VmView,
};

/// A guest that has not given for so many rounds what it was asked for is not waited for.
const PATIENCE: u8 = 5;
/// For so many rounds it is remembered how much a guest had when it had too little. After ten
/// minutes without another such time less is tried again.
const REMEMBERED: u16 = 600;

/// What one plan leaves to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    state: State,
    /// The levels to which memory and CPU were divided: the next ones are found sooner near to them.
    levels: (u64, u64),
    /// Only VMs of which there is something to remember.
    vms: BTreeMap<VmId, Trace>,
}

/// What is remembered of one VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trace {
    /// For how many rounds its guest has had more than it was to have.
    late: u8,
    /// It waited for memory when it held so much ...
    hurt: u64,
    /// ... and could not do without so much ...
    required: u64,
    /// ... and this is forgotten after so many rounds.
    rounds: u16,
}

impl Trace {
    /// Its guest does not do as it is asked.
    pub(crate) fn lags(&self) -> bool {
        self.late >= PATIENCE
    }

    /// How much was too little for it, as long as it does the same: a guest that requires an eighth
    /// less than then has another load.
    pub(crate) fn hurt(&self, required: u64) -> u64 {
        let same = required >= self.required - self.required / 8;
        if self.rounds > 0 && same { self.hurt } else { 0 }
    }

    fn next(mut self, view: &VmView<'_>, account: &Account) -> Self {
        let allowed = account.allocated.saturating_add(dead_band(account.allocated));
        let is_late = !account.guaranteed && view.resident.0 > allowed;
        self.late = if is_late { self.late.saturating_add(1).min(PATIENCE) } else { 0 };
        self.rounds = self.rounds.saturating_sub(1);
        if account.short {
            self.hurt = self.hurt(account.required).max(account.held);
            self.required = account.required;
            self.rounds = REMEMBERED;
        }
        if self.rounds == 0 {
            (self.hurt, self.required) = (0, 0);
        }
        self
    }
}

impl Memory {
    /// The state of the host, as the last plan found it.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    pub(crate) fn trace(&self, vm: VmId) -> Trace {
        self.vms.get(&vm).copied().unwrap_or_default()
    }

    pub(crate) fn levels(&self) -> (u64, u64) {
        self.levels
    }

    pub(crate) fn next(
        &self,
        state: State,
        levels: (u64, u64),
        vms: &[VmView<'_>],
        accounts: &[Account],
    ) -> Self {
        let traces = vms.iter().zip(accounts).filter_map(|(view, account)| {
            let trace = account.trace.next(view, account);
            (trace != Trace::default()).then_some((view.vm, trace))
        });
        Self { state, levels, vms: traces.collect() }
    }
}

//! What one plan leaves to the next: little, as plans depend on what is seen.

use std::collections::BTreeMap;

use plimsoll_model::VmId;
use serde::{Deserialize, Serialize};

use crate::{
    account::{Account, dead_band},
    plan::Target,
    state::State,
    view::VmView,
};

/// A guest that has not given for so many rounds what it was asked for is not waited for.
const PATIENCE: u8 = 5;
/// For so many rounds it is remembered how much a guest had when it had too little. After ten
/// minutes without another such time less is tried again.
const REMEMBERED: u16 = 600;
/// Swings are counted up to this many.
const MOST_SWINGS: u8 = 4;

/// What one plan leaves to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    state: State,
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
    /// Whether its size last grew; none when it did not change for long.
    grew: Option<bool>,
    /// For how many rounds it has kept its size.
    kept: u16,
    /// How often it shrank after it grew, or grew after it shrank.
    swings: u8,
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

    /// How often its size has swung to and fro lately: what it uses depends on what it has, and with
    /// that its price, so that a division can undo the one before it. Each time makes a change that
    /// nobody is in a hurry for half as likely to be worth asking for.
    pub(crate) fn swings(&self) -> u8 {
        self.swings
    }

    fn moved(&mut self, from: u64, to: u64) {
        if from == to {
            self.kept = self.kept.saturating_add(1);
            if self.kept >= REMEMBERED {
                (self.grew, self.swings, self.kept) = (None, 0, 0);
            }
            return;
        }
        let grew = to > from;
        if self.grew.is_some_and(|before| before != grew) {
            self.swings = self.swings.saturating_add(1).min(MOST_SWINGS);
        }
        (self.grew, self.kept) = (Some(grew), 0);
    }

    fn next(mut self, view: &VmView<'_>, account: &Account, size: u64) -> Self {
        self.moved(account.allocated, size);
        if self.grew.is_none() {
            self.kept = 0;
        }
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

    pub(crate) fn trace(&self, vm: VmId) -> Option<&Trace> {
        if self.vms.is_empty() { None } else { self.vms.get(&vm) }
    }

    pub(crate) fn next(
        &self,
        state: State,
        vms: &[VmView<'_>],
        accounts: &[Account],
        targets: &[Target],
    ) -> Self {
        let all = vms.iter().zip(accounts).zip(targets);
        let traces = all.filter_map(|((view, account), target)| {
            let trace = self.trace(view.vm).copied().unwrap_or_default();
            let trace = trace.next(view, account, target.memory.0);
            (trace != Trace::default()).then_some((view.vm, trace))
        });
        Self { state, vms: traces.collect() }
    }
}

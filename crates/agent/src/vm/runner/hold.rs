//! What the host takes of a VM's memory without its help, and keeps from coming back.
//!
//! In a memory group the kernel is given a limit: it writes out what was not used for longest, and
//! keeps the VM below. Without one, pages are written out once ([`crate::pageout`]), and what the
//! guest touches comes back. Either wants swap space; a limit also wants it for all that the VM may
//! yet want above the limit ([`least_limit`]), and is raised when that gets short.

use std::time::Duration;

use plimsoll_api::ErrorChain;
use plimsoll_api::cluster::ActualLimits;
use plimsoll_model::{Bytes, VmId};
use tokio_util::task::AbortOnDropHandle;

use super::live::Outstanding;
use crate::limits::memory::{MemoryGroups, OVERHEAD, least_limit};
use crate::limits::{LimitsError, memory::MemoryInForce};
use crate::pageout::{PageOutError, page_out, swap_free};
use crate::vm::guard::record::GuardRecord;

/// Swap space that a limit leaves to the host.
const SWAP_RESERVE: Bytes = Bytes::mib(64);
/// A limit is not changed for less: what is free of swap space changes all the time.
const STEP: u64 = 8 << 20;
/// How long a VM may stand still at its limit.
const RELIEF_PERIOD: Duration = Duration::from_millis(250);

/// What the host is to keep out of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// Nothing: there is no limit.
    Nothing,
    /// What it keeps out now.
    AsItIs,
    /// `taken` of the `wants` that the guest may use by its own kernel's leave.
    Back { wants: Bytes, taken: Bytes },
}

/// What was taken without the guest's help.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub amount: Bytes,
    /// Whether it stays out.
    pub holds: bool,
    /// What there is to say about it.
    pub note: Option<String>,
}

impl Taken {
    pub(super) fn nothing(note: String) -> Self {
        Self { note: Some(note), ..Self::default() }
    }
}

/// One VM's memory on its host.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    groups: Option<MemoryGroups>,
    vm: VmId,
    qemu: u32,
}

impl Holder {
    pub(super) fn new(groups: Option<MemoryGroups>, vm: VmId, record: &GuardRecord) -> Self {
        Self { groups, vm, qemu: u32::try_from(record.qemu.pid).unwrap_or(0) }
    }

    /// Takes `amount` of the `wants` that the guest may use. Blocks while it is written out.
    ///
    /// # Errors
    /// There is no swap space, or nothing could be written out.
    pub(super) fn take(&self, wants: Bytes, amount: Bytes) -> Result<Taken, PageOutError> {
        match &self.groups {
            Some(groups) if groups.holds(self.vm, self.qemu) => self.limit(groups, wants, amount),
            _ => {
                let note = Some("nothing keeps it out: it has no memory cgroup".to_owned());
                page_out(self.qemu, amount).map(|amount| Taken { amount, holds: false, note })
            }
        }
    }

    fn limit(
        &self,
        groups: &MemoryGroups,
        wants: Bytes,
        amount: Bytes,
    ) -> Result<Taken, PageOutError> {
        let free = swap_free()?;
        let failed = |error: LimitsError| PageOutError::Limit(Box::new(error));
        let now = groups.in_force(self.vm).map_err(failed)?;
        let limit = limit_of(wants, amount, &now, free);
        let most = wants.saturating_add(OVERHEAD);
        if limit >= most {
            return Err(PageOutError::NoSwap { free });
        }
        let in_force = match groups.limit(self.vm, Some(limit)) {
            // Pages that are in use all the time make the kernel give up; told which, it does not.
            Err(LimitsError::StillInUse { usage, .. }) => {
                page_out(self.qemu, usage.saturating_sub(limit))?;
                groups.limit(self.vm, Some(limit))
            }
            other => other,
        }
        .map_err(failed)?;
        let out = in_force.swapped.saturating_sub(now.swapped);
        let short = match limit.saturating_sub(most.saturating_sub(amount)) {
            Bytes::ZERO => String::new(),
            short => format!("; {short} more would need more swap space than {free}"),
        };
        Ok(Taken {
            amount: most.saturating_sub(limit),
            holds: true,
            note: Some(format!("{out} paged out; it is held to {limit}{short}")),
        })
    }

    /// Lets the VM go on whenever it stands still at its limit, for as long as the handle lives. A task
    /// of its own: QEMU answers nobody meanwhile.
    pub(super) fn relieve(&self) -> Option<AbortOnDropHandle<()>> {
        let (groups, vm) = (self.groups.clone()?, self.vm);
        Some(AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                tokio::time::sleep(RELIEF_PERIOD).await;
                match groups.relieve(vm) {
                    Ok(None) => {}
                    Ok(Some(limit)) => {
                        tracing::warn!(%vm, %limit, "it stood still at its memory limit, which rises");
                    }
                    Err(error) => {
                        tracing::debug!(%vm, error = %ErrorChain(&error), "no look at its memory");
                    }
                }
            }
        })))
    }

    /// Sees to it that the limit is what it should be, and reads back what is.
    pub(super) async fn keep(
        &self,
        hold: Hold,
        actual: &mut ActualLimits,
        outstanding: &mut Outstanding,
    ) {
        let Some(groups) = self.groups.clone().filter(|groups| groups.holds(self.vm, self.qemu))
        else {
            return;
        };
        let vm = self.vm;
        // A limit that is lowered is waited for.
        let kept = tokio::task::spawn_blocking(move || keep(&groups, vm, hold)).await;
        match kept {
            Ok(Ok(memory)) => {
                actual.memory_resident = Some(whole(memory.usage));
                actual.memory_swapped = Some(whole(memory.swapped));
                actual.memory_held = memory.limit;
            }
            Ok(Err(error)) => outstanding.failed("cannot hold its memory", &error),
            Err(error) => outstanding.failed("cannot hold its memory", &error),
        }
    }
}

fn keep(groups: &MemoryGroups, vm: VmId, hold: Hold) -> Result<MemoryInForce, LimitsError> {
    let now = groups.in_force(vm)?;
    match hold {
        Hold::AsItIs => Ok(now),
        Hold::Nothing => groups.limit(vm, None),
        Hold::Back { wants, taken } => {
            // Without an answer about swap space there is none.
            let limit = limit_of(wants, taken, &now, swap_free().unwrap_or(Bytes::ZERO));
            let near = |is: Bytes| is.get().abs_diff(limit.get()) < STEP;
            if now.limit.is_some_and(near) { Ok(now) } else { groups.limit(vm, Some(limit)) }
        }
    }
}

/// The limit by which `taken` of what the guest wants is kept out, as far as there is swap space.
fn limit_of(wants: Bytes, taken: Bytes, now: &MemoryInForce, free: Bytes) -> Bytes {
    let most = wants.saturating_add(OVERHEAD);
    let free = free.saturating_sub(SWAP_RESERVE);
    most.saturating_sub(taken).max(least_limit(most, now.swapped, free))
}

/// In whole mebibytes: a report for every page would be one too many.
fn whole(amount: Bytes) -> Bytes {
    const MIB: u64 = 1 << 20;
    Bytes(amount.get().div_ceil(MIB) * MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_kept_out_as_far_as_there_is_swap_space() {
        let mib = Bytes::mib;
        let now = |swapped| MemoryInForce { swapped: mib(swapped), ..MemoryInForce::default() };
        let limit = |swapped, free| limit_of(mib(512), mib(256), &now(swapped), mib(free));
        assert_eq!(limit(0, 1000), mib(512 + 96 - 256));
        // What is out already needs no more room; with less than is to go, less goes.
        assert_eq!(limit(256, 64), mib(512 + 96 - 256));
        assert_eq!(limit(0, 164), mib(512 + 96 - 100));
        assert_eq!(limit(0, 0), mib(512 + 96));
    }
}

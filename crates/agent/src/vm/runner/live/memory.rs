//! The size of a running guest's memory: elastic memory above what it booted with, the balloon
//! below.
//!
//! ```text
//!   0 ........ what it has ........ boot memory ........ plus elastic memory ........ most
//!              <---- balloon takes ----|<--- virtio-mem: blocks come and go --->|
//! ```
//!
//! Elastic memory (virtio-mem) really goes: its pages are the host's again, and the guest's page
//! tables with them. But a guest gives a block back only when all of its pages can be moved, so
//! what it does not give within [`GIVE_LIMIT`] is left to the balloon. The two must never be after
//! the same bytes, or they are taken twice: elastic memory is settled first. QEMU's balloon knows
//! nothing of elastic memory: what it leaves is counted without.

use std::time::Duration;

use plimsoll_api::cluster::ActualLimits;
use plimsoll_api::guest::{Answer, Call};
use plimsoll_model::Bytes;
use plimsoll_qmp::QmpError;
use tokio::time::Instant;

use super::{Live, Outstanding};
use crate::vm::argv::{ELASTIC_BLOCK, ELASTIC_ID, ELASTIC_PATH};
use crate::vm::runner::record::LaunchedMachine;

/// A guest that has given nothing more back for so long holds on to the rest.
const GIVE_LIMIT: Duration = Duration::from_secs(2);
/// It is asked again for what it holds on to after this time.
const ASK_ELASTIC_AGAIN: Duration = Duration::from_secs(60);
/// A guest that has not taken elastic memory by then has no driver for it.
const TAKE_LIMIT: Duration = Duration::from_secs(30);
/// How long a guest may take to tell how much memory it has.
const FACTS_LIMIT: Duration = Duration::from_secs(5);
/// The balloon leaves at least a part in so many of what the machine booted with.
const LEAST_PART: u64 = 10;
/// The balloon's wish is repeated so often while the guest has not followed.
const ASK_BALLOON_AGAIN: Duration = Duration::from_secs(10);
/// What a guest's kernel does not count as its memory.
const KERNEL_SHARE: u64 = 64 << 20;

/// What was last asked of a guest, and when.
#[derive(Debug, Default)]
pub(in crate::vm::runner) struct Asked {
    balloon: Option<(u64, Instant)>,
    elastic: Option<Elasticity>,
    /// What the guest's kernel had when all that it was given last was plugged in.
    used: Option<(u64, u64)>,
    /// What the balloon left when it had done as it was asked.
    reached: Option<u64>,
    /// How often the guest took memory back by itself.
    taken_back: u64,
}

impl Asked {
    /// Whether the balloon leaves the guest more than it had come to leave it.
    pub(in crate::vm::runner) fn is_more_than_asked(&self, leaves: u64) -> bool {
        self.reached.is_some_and(|reached| leaves > reached)
    }

    /// How often the guest took memory back by itself (`deflate-on-oom`).
    pub(super) const fn times_taken_back(&self) -> u64 {
        self.taken_back
    }

    /// Takes note of what the balloon leaves, and is to leave.
    fn look(&mut self, leaves: u64, target: u64) {
        let asked = self.balloon.map(|(asked, _)| asked);
        if asked == Some(target) && self.is_more_than_asked(leaves) {
            self.taken_back += 1;
        }
        self.reached = (leaves == target).then_some(leaves);
    }
}

/// What was asked of a guest's elastic memory, and how far it has come.
#[derive(Clone, Copy, Debug)]
struct Elasticity {
    wanted: u64,
    size: u64,
    /// When it last moved.
    moved: Instant,
}

/// Elastic memory as it is, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Elastic {
    /// What the guest has of it.
    size: u64,
    /// What the guest is to have.
    requested: u64,
}

impl Live {
    /// Takes the guest's memory towards what is wanted, as far as it goes at once, and tells where
    /// it is.
    pub(super) async fn size_memory(
        &mut self,
        wanted: Bytes,
        machine: &LaunchedMachine,
        actual: &mut ActualLimits,
        outstanding: &mut Outstanding,
    ) -> Result<(), QmpError> {
        let wanted = wanted.get();
        actual.memory_max = Some(machine.max_memory);
        if wanted > machine.max_memory.get() {
            let most = machine.max_memory;
            outstanding.add(format!("more memory than {most} needs a reboot"));
        }
        let target = wanted.min(machine.max_memory.get());
        let (elastic, settled) = self.size_elastic(target, machine, outstanding).await?;
        let mut is = self.qmp.query_balloon().await?.actual;
        let boot = machine.memory.get();
        let leave = target.saturating_sub(elastic).clamp(boot / LEAST_PART, boot);
        self.memory.look(is, leave);
        if settled || is < leave {
            is = self.size_balloon(is, leave).await?;
        }
        let is = is.saturating_add(elastic);
        if is != target {
            let (is, target) = (Bytes(is), Bytes(target));
            outstanding.add(format!("the guest has {is} of memory on its way to {target}"));
        }
        if elastic > 0 && is == target && !self.uses(is).await {
            outstanding.add("the guest does not use all of the memory that it was given");
        }
        actual.memory = Some(Bytes(is));
        Ok(())
    }

    /// The memory that the guest has at present.
    pub(super) async fn memory_now(&self) -> Result<Bytes, QmpError> {
        let left = self.qmp.query_balloon().await?.actual;
        Ok(Bytes(left.saturating_add(self.elastic().await?.size)))
    }

    /// Takes elastic memory towards `target`. Tells how much there is, and whether the guest gives no
    /// more of it back.
    async fn size_elastic(
        &mut self,
        target: u64,
        machine: &LaunchedMachine,
        outstanding: &mut Outstanding,
    ) -> Result<(u64, bool), QmpError> {
        let boot = machine.memory.get();
        if machine.max_memory.get() <= boot {
            return Ok((0, true));
        }
        let mut elastic = self.elastic().await?;
        let wanted = target.saturating_sub(boot).next_multiple_of(ELASTIC_BLOCK);
        let now = Instant::now();
        let seen = self.memory.elastic.filter(|seen| seen.wanted == wanted);
        let idle = seen.map_or(Duration::ZERO, |seen| now.duration_since(seen.moved));
        let again = elastic.size > wanted && idle > ASK_ELASTIC_AGAIN;
        if (seen.is_none() || again) && elastic.requested != wanted {
            self.qmp.qom_set(ELASTIC_PATH, "requested-size", &wanted).await?;
            elastic = self.elastic().await?;
        }
        if seen.is_none_or(|seen| seen.size != elastic.size || again) {
            self.memory.elastic = Some(Elasticity { wanted, size: elastic.size, moved: now });
        }
        let mut settled = elastic.size <= wanted;
        if !settled && idle > GIVE_LIMIT && !again {
            // What it has not given by now is the balloon's: no block may go behind its back.
            if elastic.requested != elastic.size {
                self.qmp.qom_set(ELASTIC_PATH, "requested-size", &elastic.size).await?;
            }
            settled = true;
        }
        if elastic.size < wanted && idle > TAKE_LIMIT {
            outstanding.add("the guest does not take more memory: it has no virtio-mem driver");
        }
        Ok((elastic.size, settled))
    }

    /// Whether the guest's kernel uses what it was given: it can see memory and leave it alone, and
    /// it keeps a part for itself.
    async fn uses(&mut self, given: u64) -> bool {
        let enough = given - given / 8 - KERNEL_SHARE.min(given / 2);
        if self.memory.used.is_some_and(|(asked, used)| asked == given && used >= enough) {
            return true;
        }
        match self.guest.call(Call::Facts, FACTS_LIMIT).await {
            Ok(Answer::Facts(facts)) => {
                self.memory.used = Some((given, facts.memory.total_bytes));
                facts.memory.total_bytes >= enough
            }
            // Who cannot be asked is not accused.
            _ => true,
        }
    }

    async fn elastic(&self) -> Result<Elastic, QmpError> {
        let devices = self.qmp.query_memory_devices().await?;
        let device = devices.iter().find(|device| device.id.as_deref() == Some(ELASTIC_ID));
        Ok(device.map_or_else(Elastic::default, |device| Elastic {
            size: device.size_bytes,
            requested: device.requested_bytes.unwrap_or(device.size_bytes),
        }))
    }

    /// Asks the balloon, which leaves the guest `is` bytes, to leave it `target`. Tells what it
    /// leaves now.
    async fn size_balloon(&mut self, is: u64, target: u64) -> Result<u64, QmpError> {
        let now = Instant::now();
        let asked = self.memory.balloon.is_some_and(|(asked, at)| {
            asked == target && now.duration_since(at) < ASK_BALLOON_AGAIN
        });
        if is == target || asked {
            return Ok(is);
        }
        self.qmp.balloon(target).await?;
        self.memory.balloon = Some((target, now));
        Ok(self.qmp.query_balloon().await?.actual)
    }
}

//! What is seen of a host and of its VMs. All of it may be wrong: whatever the numbers are, a plan
//! comes of them and no promise is broken.

use plimsoll_model::{Amount, Bytes, Elasticity, MilliCores, VmId};
use serde::{Deserialize, Serialize};

/// The idle-memory tax of Waldspurger (OSDI'02, 5.2), per mille.
pub const DEFAULT_IDLE_TAX: u16 = 750;
/// The highest tax, per mille: at 1,000 an idle page would be worth nothing whatever the shares.
pub const MAX_IDLE_TAX: u16 = 990;

/// How much of the last ten seconds was lost waiting for memory, as the kernel's pressure stall
/// information tells it. Per mille of the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pressure {
    /// Some task waited.
    pub some: u16,
    /// All tasks waited.
    pub full: u16,
}

/// What is seen of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostView {
    /// What VMs may have of the machine's memory, their overhead included.
    pub memory: Bytes,
    /// What the VMs' processes hold beside their guests' memory.
    pub overhead: Bytes,
    /// What the kernel could hand out at present without paging out: `MemAvailable`.
    pub available: Bytes,
    /// What can still be paged out.
    pub swap_free: Bytes,
    /// What VMs may have of the machine's CPU.
    pub cpu: MilliCores,
    /// The machine's own pressure.
    pub pressure: Pressure,
    /// The idle-memory tax, per mille, at most [`MAX_IDLE_TAX`]: at 750 an idle page costs its VM
    /// four times as much as a page in use.
    pub idle_tax: u16,
}

/// What a guest says of itself. It is not trusted: a guest that claims to use all that it has is
/// asked for nothing, and the host pages out what it needs when memory is short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestView {
    /// What the machine has at present: boot memory and what is plugged in, less the balloon. The
    /// guest's kernel keeps a part of it, which counts as used.
    pub total: Bytes,
    /// Of it, in use for nothing.
    pub free: Bytes,
    /// Of it, what could be used for something new without swapping: free, and caches that can go.
    pub available: Bytes,
    /// Cached pages of files that were used again lately; zero if unknown.
    pub active_file: Bytes,
    /// The guest's own pressure.
    pub pressure: Pressure,
    /// Whether, since the last plan, its kernel killed a process for want of memory or took memory
    /// back from the balloon by itself.
    pub starved: bool,
}

/// What is seen of one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmView<'a> {
    /// The VM. No VM may be in a plan twice.
    pub vm: VmId,
    /// Its class.
    pub elasticity: &'a Elasticity,
    /// What it was promised: its most.
    pub promised: Amount,
    /// The targets in force. For a VM that was never given any: what it was promised.
    pub allocated: Amount,
    /// The guest's memory that the host holds at present.
    pub resident: Bytes,
    /// What its guest says; `None` when it does not answer.
    pub guest: Option<GuestView>,
    /// How much of its memory it uses, by [`crate::WorkingSet`]; without, all that is not free.
    pub working_set: Option<Bytes>,
    /// Whether more memory is being plugged into it, or its use rises: it is not asked for used
    /// pages and gets room to grow.
    pub growing: bool,
    /// What its user wants to be taken from it, at least, of what it was promised.
    pub asked: Amount,
}

//! Whether a host can take one more VM at the stated risk, and always honour what it promised.
//!
//! Two tests, after ESX Server's admission (Waldspurger, OSDI'02, section 5.3), with the predicted
//! peak in place of the configured minimums: what VMs will ask for at most fits into the host, and
//! all memory that was promised has a place to be: the host's memory, its swap, or free memory of
//! other hosts to move to. CPU needs no such place: who waits for a core loses time, not data.

use plimsoll_model::{Amount, Bytes, MilliCores};
use thiserror::Error;

/// What a host has for its VMs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Its cores and its memory.
    pub capacity: Amount,
    /// Where memory can go beside that: its swap, and what is kept free for it on other hosts.
    pub refuge: Bytes,
}

/// Why a host cannot take a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// At the stated risk more CPU would be asked for than there is.
    #[error("{peak} cores would be asked for at the stated risk, and the host has {capacity}")]
    Cpu {
        /// With the newcomer.
        peak: MilliCores,
        /// What the host has.
        capacity: MilliCores,
    },
    /// At the stated risk more memory would be in use than there is.
    #[error("{peak} of memory would be in use at the stated risk, and the host has {capacity}")]
    Memory {
        /// With the newcomer.
        peak: Bytes,
        /// What the host has.
        capacity: Bytes,
    },
    /// Promised memory would have no place to be, should all of it be asked for.
    #[error(
        "{committed} of memory would be promised, and the host has {capacity} and a place for \
         {refuge} more"
    )]
    Refuge {
        /// With the newcomer.
        committed: Bytes,
        /// What the host has.
        capacity: Bytes,
        /// What can be put elsewhere.
        refuge: Bytes,
    },
}

/// What a host can be promised beyond its capacity: what its VMs were promised (`committed`), less
/// what they will ask for at most at the stated risk (`peak`) or always have (`minimum`),
/// whichever is more. Memory only as far as there is a place for it.
///
/// So a newcomer that fits into capacity and loan is one that [`admit`] takes, counted with all that
/// it is promised; and the minimums of all fit into the capacity.
#[must_use]
pub fn loan(room: &Room, committed: Amount, minimum: Amount, peak: Amount) -> Amount {
    let asked = Amount { cpu: peak.cpu.max(minimum.cpu), memory: peak.memory.max(minimum.memory) };
    let spare = committed.saturating_sub(asked);
    Amount { memory: spare.memory.min(room.refuge), cpu: spare.cpu }
}

/// Whether a host can have VMs that were promised `committed` in all and will ask for `peak` at
/// most.
///
/// # Errors
/// The first reason why it cannot.
pub fn admit(room: &Room, committed: Amount, peak: Amount) -> Result<(), Refusal> {
    let Room { capacity, refuge } = *room;
    if peak.cpu > capacity.cpu {
        return Err(Refusal::Cpu { peak: peak.cpu, capacity: capacity.cpu });
    }
    if peak.memory > capacity.memory {
        return Err(Refusal::Memory { peak: peak.memory, capacity: capacity.memory });
    }
    if committed.memory > capacity.memory.saturating_add(refuge) {
        let committed = committed.memory;
        return Err(Refusal::Refuge { committed, capacity: capacity.memory, refuge });
    }
    Ok(())
}

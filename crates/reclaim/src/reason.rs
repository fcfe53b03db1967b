//! Why a VM gets what it gets.

use std::fmt;

use plimsoll_model::{Bytes, Fraction, MilliCores};
use serde::{Deserialize, Serialize};

/// One reason for a target, with its numbers. Memory is of the host, and per round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Reason {
    /// Its user wants it to have less.
    Asked {
        /// Of the memory that was promised.
        memory: Bytes,
        /// Of the CPU that was promised.
        cpu: MilliCores,
    },
    /// Memory that lies unused in the guest is taken.
    Unused {
        /// How much.
        memory: Bytes,
    },
    /// Used pages are taken: nobody's are cheaper.
    Cheapest {
        /// How much.
        memory: Bytes,
        /// Shares per part of the promise that the last of them cost, in thousandths.
        price: u64,
        /// How much of what it holds it uses.
        active: Fraction,
    },
    /// Used pages are taken: nowhere does that cost less performance.
    LeastLoss {
        /// How much.
        memory: Bytes,
        /// The last of them cost so many shares of performance per part of the promise, in
        /// thousandths.
        price: u64,
    },
    /// The host pages out.
    PagedOut {
        /// How much.
        memory: Bytes,
    },
    /// It would grow, but all there is is worth more to others.
    Withheld {
        /// By how much it would grow.
        memory: Bytes,
    },
    /// The host is so short that nobody may grow.
    GrowthStopped,
    /// It may grow.
    Grows {
        /// By how much.
        memory: Bytes,
    },
    /// Its guest waits for memory.
    Waits {
        /// How much of the time, per mille.
        some: u16,
    },
    /// Its guest waits for memory since some was taken: less is taken at a time, and nothing while
    /// there is no hurry.
    Spared,
    /// It has its minimum, of which nothing is taken.
    AtMinimum,
    /// It has what its guest cannot do without.
    AtFloor,
    /// Its guest does not answer: it is asked for nothing.
    Silent,
    /// Its guest has not given what it was asked for.
    Lags,
    /// It would change by too little to ask for.
    Steady,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked { memory, cpu } => {
                f.write_str("its user asked for")?;
                match (*memory, *cpu) {
                    (memory, MilliCores::ZERO) => write!(f, " {} less", Size(memory)),
                    (Bytes::ZERO, cpu) => write!(f, " {cpu} cores less"),
                    (memory, cpu) => write!(f, " {} and {cpu} cores less", Size(memory)),
                }
            }
            Self::Unused { memory } => write!(f, "unused: {} free in the guest", Size(*memory)),
            Self::Cheapest { memory, price, active } => write!(
                f,
                "lowest price: {} at {} shares, {} % of its memory in use",
                Size(*memory),
                Thousandths(*price),
                active.get() / 10_000
            ),
            Self::LeastLoss { memory, price } => {
                write!(f, "least loss: {} at {} shares", Size(*memory), Thousandths(*price))
            }
            Self::PagedOut { memory } => write!(f, "paged out by the host: {}", Size(*memory)),
            Self::Withheld { memory } => {
                write!(f, "would grow by {}, for which it bids too little", Size(*memory))
            }
            Self::GrowthStopped => f.write_str("the host is so short that nobody may grow"),
            Self::Grows { memory } => write!(f, "may grow by {}", Size(*memory)),
            Self::Waits { some } => {
                write!(f, "waits for memory {}.{} % of the time", some / 10, some % 10)
            }
            Self::Spared => f.write_str("waits since memory was taken: spared as far as can be"),
            Self::AtMinimum => f.write_str("has its minimum"),
            Self::AtFloor => f.write_str("has what its guest cannot do without"),
            Self::Silent => f.write_str("its guest does not answer: it is asked for nothing"),
            Self::Lags => f.write_str("its guest has not given what it was asked for"),
            Self::Steady => f.write_str("would change by too little to ask for"),
        }
    }
}

/// Memory as people read it: in whole MiB, or tenths of a GiB.
struct Size(Bytes);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const GIB: u64 = Bytes::gib(1).0;
        let bytes = self.0.0;
        if bytes >= 10 * GIB {
            write!(f, "{}.{} GiB", bytes / GIB, bytes % GIB * 10 / GIB)
        } else if bytes >= Bytes::mib(1).0 {
            write!(f, "{} MiB", bytes >> 20)
        } else {
            write!(f, "{} KiB", bytes.div_ceil(1 << 10))
        }
    }
}

struct Thousandths(u64);

impl fmt::Display for Thousandths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 100)
    }
}

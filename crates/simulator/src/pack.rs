//! Published packing instances: how many bins a policy, or the strong mode, needs for each.

use std::time::{Duration, Instant};

use plimsoll_model::Policy;
use plimsoll_placement::packing::{self, Method, WrongPacking};
use serde::Serialize;
use thiserror::Error;

use crate::readers::vbp::Named;

/// What packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packer {
    /// A policy, one item after the other.
    Policy(Policy),
    /// The best that is found in this time.
    Best {
        /// The time for one instance.
        limit: Duration,
        /// What the search's random choices start from.
        seed: u64,
    },
}

impl Packer {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Policy(policy) => policy.as_str(),
            Self::Best { .. } => "best",
        }
    }
}

/// What came of an instance. The names of these fields are those of the JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Its file.
    pub file: String,
    /// How many items it has, each of several alike counted.
    pub items: usize,
    /// How many sizes an item has.
    pub dimensions: usize,
    /// How many bins were needed.
    pub bins: u32,
    /// How many bins there must be at least.
    pub lower_bound: u32,
    /// How long it took.
    pub seconds: f64,
    /// What packed.
    pub policy: &'static str,
}

/// A packing that is none: a mistake of ours.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{file}: the packing of `{policy}` is wrong")]
pub struct PackError {
    file: String,
    policy: &'static str,
    #[source]
    source: WrongPacking,
}

/// Packs an instance and checks the packing.
///
/// # Errors
/// The packing is wrong.
pub fn pack(named: &Named, packer: Packer) -> Result<Outcome, PackError> {
    let Named { file, instance } = named;
    let policy = packer.name();
    let start = Instant::now();
    let packing = match packer {
        Packer::Policy(policy) => packing::pack(instance, Method::Policy(policy), &mut || true),
        Packer::Best { limit, seed } => {
            packing::pack(instance, Method::Best { seed }, &mut || start.elapsed() < limit)
        }
    };
    let seconds = start.elapsed().as_secs_f64();
    packing.verify(instance).map_err(|source| PackError { file: file.clone(), policy, source })?;
    Ok(Outcome {
        file: file.clone(),
        items: instance.len(),
        dimensions: instance.capacity().len(),
        bins: packing.bins,
        lower_bound: packing.lower_bound,
        seconds,
        policy,
    })
}

//! CPU: weights, by which those who want more than there is share it.
//!
//! CPU that lies unused needs no taking: the host's scheduler lends it to whoever wants it, and
//! takes it back at once. What is decided is how it is divided while *all* want what they were
//! promised: the same water-filling as for memory, from the minimums to the promises, by shares or
//! utility. Weights in proportion to what each then has keep every minimum: whoever wants less
//! leaves the rest to the others in the same proportions.
//!
//! A limit (vCPUs taken offline, a quota) is set only where a VM's user asks for less.

use plimsoll_model::{Elasticity, MilliCores};

use crate::{
    fill::{Claim, fill},
    price::{TYPICAL_CPU, Worth, clamp},
    view::{HostView, VmView},
};

/// The highest weight of a cgroup.
const MAX_WEIGHT: u16 = 10_000;

/// How CPU is divided.
pub(crate) struct Cpu {
    /// By how much the minimums exceed the host.
    pub(crate) shortfall: u64,
    /// The level of the division.
    pub(crate) level: u64,
    vms: Vec<(MilliCores, u16)>,
}

impl Cpu {
    /// A VM's limit and its weight.
    pub(crate) fn of(&self, index: usize) -> (MilliCores, u16) {
        self.vms[index]
    }
}

/// Divides the host's CPU.
pub(crate) fn divide(host: &HostView, vms: &[VmView<'_>], near: u64) -> Cpu {
    let worths: Vec<Worth> = vms.iter().map(worth).collect();
    let claims: Vec<Claim<'_>> = (vms.iter().zip(&worths))
        .map(|(view, worth)| {
            let (_, MilliCores(least)) =
                view.elasticity.minimum(view.promised.memory, view.promised.cpu);
            let most = view.promised.cpu.0.saturating_sub(view.asked.cpu.0).max(least);
            Claim { least, most, worth, held: least, shares: view.elasticity.shares() }
        })
        .collect();
    let filled = fill(&claims, host.cpu.0.into(), near);
    let highest = filled.grants.iter().copied().max().unwrap_or(0).max(1);
    let weight = |grant: u64| {
        let weight = u128::from(grant) * u128::from(MAX_WEIGHT) / u128::from(highest);
        u16::try_from(weight).unwrap_or(MAX_WEIGHT).max(1)
    };
    let least: u128 = claims.iter().map(|claim| u128::from(claim.least)).sum();
    Cpu {
        shortfall: clamp(least.saturating_sub(host.cpu.0.into())),
        level: filled.level,
        vms: (claims.iter().zip(filled.grants))
            .map(|(claim, grant)| (MilliCores(claim.most), weight(grant)))
            .collect(),
    }
}

/// What a thousandth of a core is worth to a VM that wants all: nothing of it is idle.
fn worth(view: &VmView<'_>) -> Worth {
    let (promised, shares) = (view.promised.cpu.0, view.elasticity.shares());
    match view.elasticity {
        Elasticity::Deflatable { utility, .. } => {
            let curve = utility.as_ref().and_then(|curves| curves.cpu.as_ref());
            Worth::by_curve(curve, &TYPICAL_CPU, promised, shares, promised, 1000)
        }
        _ => Worth::Shares { promised, shares, active: promised, idle_worth: 1000 },
    }
}

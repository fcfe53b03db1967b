//! Divides the budget: how much each VM holds, and of which size its guest is to be.

use crate::{
    account::{Account, dead_band},
    fill::{Claim, fill, in_proportion},
    plan::Supply,
    price::Worth,
    state::State,
};

const MIB: u64 = 1 << 20;

/// How a VM fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// What it holds of the host's memory when all has been done.
    pub(super) grant: u64,
    /// The size of its guest.
    pub(super) size: u64,
    /// What the guest cannot give and the host is to page out.
    pub(super) by_host: u64,
    /// Its size would change, but by too little to ask for while there is no hurry.
    pub(super) steady: bool,
}

/// What is taken from a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) unused: u64,
    pub(super) used: u64,
    pub(super) withheld: u64,
}

impl Share {
    /// What is taken now, by kind: together all that the VM wanted and does not get, but for what is
    /// too little to ask for.
    pub(super) fn taken(&self, account: &Account) -> Taken {
        let unused = account.wanted - self.grant.clamp(account.need, account.wanted);
        let least = self.grant.min(account.need);
        let kept = account.held.clamp(least, account.need);
        let (used, withheld) = (kept - least, account.need - kept);
        if self.steady {
            Taken { withheld, ..Taken::default() }
        } else {
            Taken { unused, used, withheld }
        }
    }

    /// How much of what is resident the host pages out.
    pub(super) fn paged_out(&self, resident: u64) -> u64 {
        self.by_host.min(resident.saturating_sub(self.grant))
    }
}

/// How everybody fares.
pub(super) struct Division {
    /// By how much what is wanted exceeds the budget.
    pub(super) needed: u128,
    /// What no step can take by the means of this state.
    pub(super) shortfall: u128,
    /// The level of the used pages that were taken from guests; none where none had to be.
    pub(super) level: Option<u64>,
    pub(super) shares: Vec<Share>,
}

impl Division {
    pub(super) fn new(supply: &Supply, accounts: &[Account], worths: &[Worth]) -> Self {
        let shares = accounts.iter().map(|account| Share {
            grant: account.wanted,
            by_host: account.asked_of_host,
            ..Share::default()
        });
        let wanted = sum(accounts, |account| account.wanted);
        let mut division = Self {
            needed: wanted.saturating_sub(supply.budget),
            shortfall: 0,
            level: None,
            shares: shares.collect(),
        };
        if division.needed > 0 {
            division.take(supply, accounts, worths);
        } else {
            division.give_back(supply, accounts, worths);
        }
        division
    }

    /// Gives what is left of the budget to those whose size was cut, dearest pages first.
    fn give_back(&mut self, supply: &Supply, accounts: &[Account], worths: &[Worth]) {
        let may_grow = !supply.state.stops_growth();
        let mut grants: Vec<u64> = accounts.iter().map(|account| account.wanted).collect();
        if supply.state == State::High && accounts.iter().any(|account| account.restrained) {
            let claims: Vec<Claim<'_>> = (accounts.iter().zip(worths))
                .map(|(account, worth)| {
                    let most = account.ceiling.saturating_sub(account.absent);
                    let gets_back = account.restrained && !account.lags;
                    let most = if gets_back { most.max(account.wanted) } else { account.wanted };
                    let (least, shares) = (account.wanted, account.shares);
                    Claim { least, most, worth, held: least, shares }
                })
                .collect();
            grants = fill(&claims, supply.giving, supply.near).grants;
        }
        for ((share, account), grant) in self.shares.iter_mut().zip(accounts).zip(grants) {
            share.size = account.sized(grant, may_grow);
            if is_steady(account, share.size) && share.size != account.ceiling {
                share.steady = share.size != account.allocated;
                share.size = account.allocated;
            }
        }
    }

    fn take(&mut self, supply: &Supply, accounts: &[Account], worths: &[Worth]) {
        let may_grow = !supply.state.stops_growth();
        let solved = solve(accounts, worths, supply);
        self.level = solved.level;
        for ((share, account), grant) in self.shares.iter_mut().zip(accounts).zip(solved.grants) {
            share.grant = grant;
            share.size = account.sized(grant, may_grow);
            if supply.state == State::High && is_steady(account, share.size) {
                share.steady = share.size != account.allocated;
                share.size = account.allocated;
            }
        }
        let swap = if supply.state.pages_out() { u128::from(supply.swap) } else { 0 };
        self.shortfall = self.needed.saturating_sub(possible(accounts, swap));
        if swap > 0 {
            self.page_out(supply, accounts, worths, swap);
        }
    }

    /// What guests could not give is paged out by the host, cheapest pages first.
    fn page_out(&mut self, supply: &Supply, accounts: &[Account], worths: &[Worth], swap: u128) {
        let granted: u128 = self.shares.iter().map(|share| u128::from(share.grant)).sum();
        let rest = granted.saturating_sub(supply.budget).min(swap);
        if rest == 0 {
            return;
        }
        let claims: Vec<Claim<'_>> = (accounts.iter().zip(&self.shares).zip(worths))
            .map(|((account, share), worth)| {
                let least = limit(account, supply.state).max(account.kept(true));
                let most = share.grant;
                Claim { least: least.min(most), most, worth, held: most, shares: account.shares }
            })
            .collect();
        let filled = fill(&claims, granted - rest, supply.near);
        for (share, grant) in self.shares.iter_mut().zip(filled.grants) {
            share.by_host += share.grant - grant;
            share.grant = grant;
        }
    }
}

fn sum(accounts: &[Account], get: impl Fn(&Account) -> u64) -> u128 {
    accounts.iter().map(|account| u128::from(get(account))).sum()
}

/// Whether the size in force is as good as another: near to it, and within what the VM is promised
/// and its user asked for.
fn is_steady(account: &Account, size: u64) -> bool {
    let allocated = account.allocated;
    !account.guaranteed
        && size.abs_diff(allocated) < dead_band(allocated)
        && (account.minimum..=account.ceiling.max(account.minimum)).contains(&allocated)
}

/// What a VM keeps in this round at least, as used pages are taken in steps, so that a guest can
/// tell that it hurts before it hurts much. From one that waits for memory since some was taken,
/// no more is taken while there is no hurry, and then little at a time.
fn limit(account: &Account, state: State) -> u64 {
    let held = account.held.min(account.need);
    let step = (64 * MIB).max(held / 8);
    let hurts = account.short && account.restrained;
    let step = match state {
        State::High if hurts => 0,
        State::Soft if hurts => step / 8,
        State::High | State::Soft => step,
        State::Hard => step.saturating_mul(2),
        State::Low => held,
    };
    held - step.min(held)
}

/// The most that all rounds together could take by the means of the state.
fn possible(accounts: &[Account], swap: u128) -> u128 {
    let kept = sum(accounts, |account| account.kept(false));
    let by_host = sum(accounts, |account| account.kept(true).min(account.kept(false)));
    sum(accounts, |account| account.wanted) - kept + (kept - by_host).min(swap)
}

/// What each VM holds, and the level of the used pages that were taken.
struct Solved {
    grants: Vec<u64>,
    level: Option<u64>,
}

/// What lies unused from all alike; then, of what is used, the cheapest.
fn solve(accounts: &[Account], worths: &[Worth], supply: &Supply) -> Solved {
    let unused: Vec<u64> = accounts.iter().map(|account| account.wanted - account.need).collect();
    let all_unused: u128 = unused.iter().map(|unused| u128::from(*unused)).sum();
    let needed = sum(accounts, |account| account.wanted).saturating_sub(supply.budget);
    if needed <= all_unused {
        let taken = in_proportion(&unused, needed);
        let grants = accounts.iter().zip(taken).map(|(account, taken)| account.wanted - taken);
        return Solved { grants: grants.collect(), level: None };
    }
    let claims: Vec<Claim<'_>> = (accounts.iter().zip(worths))
        .map(|(account, worth)| {
            let least = limit(account, supply.state).max(account.kept(false)).min(account.need);
            let (held, shares) = (account.held, account.shares);
            Claim { least, most: account.need, worth, held, shares }
        })
        .collect();
    let filled = fill(&claims, supply.budget, supply.near);
    Solved { grants: filled.grants, level: Some(filled.level) }
}

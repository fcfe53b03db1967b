//! The reasons of one target.

use plimsoll_model::{Amount, Bytes, Elasticity, Fraction};

use crate::{
    account::Account,
    plan::{
        Supply,
        division::{Division, Share},
    },
    price::Worth,
    reason::Reason,
    view::VmView,
};

pub(super) fn of(
    supply: &Supply,
    view: &VmView<'_>,
    account: &Account,
    worth: &Worth,
    share: &Share,
    division: &Division,
) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if view.asked != Amount::default() {
        reasons.push(Reason::Asked { memory: view.asked.memory, cpu: view.asked.cpu });
    }
    let taken = share.taken(account);
    let paged_out = share.paged_out(view.resident.0);
    if taken.unused > 0 {
        reasons.push(Reason::Unused { memory: Bytes(taken.unused) });
    }
    if taken.used > 0 {
        reasons.push(bought(view, account, worth, share, taken.used));
    }
    if paged_out > 0 {
        reasons.push(Reason::PagedOut { memory: Bytes(paged_out) });
    }
    if taken.withheld > 0 && !share.steady {
        reasons.push(Reason::Withheld { memory: Bytes(taken.withheld) });
    }
    if share.size > account.allocated {
        reasons.push(Reason::Grows { memory: Bytes(share.size - account.allocated) });
    }
    if account.short {
        let some = view.guest.map_or(0, |guest| guest.pressure.some);
        reasons.push(Reason::Waits { some });
    }
    if supply.state.stops_growth() && !account.guaranteed && account.hungry {
        reasons.push(Reason::GrowthStopped);
    }
    if share.steady {
        reasons.push(Reason::Steady);
    }
    if division.needed > 0 && !account.guaranteed && share.size <= account.allocated {
        reasons.extend(stop(account, share));
    }
    reasons
}

/// Why used pages are taken from this one.
fn bought(
    view: &VmView<'_>,
    account: &Account,
    worth: &Worth,
    share: &Share,
    taken: u64,
) -> Reason {
    let (memory, price) = (Bytes(taken), worth.price(share.grant.saturating_add(1)));
    match view.elasticity {
        Elasticity::Deflatable { .. } => Reason::LeastLoss { memory, price },
        _ => {
            let active = Fraction::of(account.active, account.held);
            Reason::Cheapest { memory, price, active }
        }
    }
}

/// What keeps a VM from giving more.
fn stop(account: &Account, share: &Share) -> Option<Reason> {
    if account.lags {
        Some(Reason::Lags)
    } else if !account.follows {
        Some(Reason::Silent)
    } else if account.short && account.restrained {
        Some(Reason::Spared)
    } else if share.grant <= account.minimum {
        Some(Reason::AtMinimum)
    } else if share.grant <= account.floor {
        Some(Reason::AtFloor)
    } else {
        None
    }
}

//! Hosts whose VMs fit elsewhere are emptied, if that is worth its price.

use plimsoll_model::Bytes;

use super::{Constraints, Reason, books::Books};

/// Tries hosts from the emptiest on. A host is emptied as a whole or not at all: half of it saves
/// nothing.
pub(super) fn empty(books: &mut Books<'_>, constraints: &mut dyn Constraints) {
    let mut hosts: Vec<_> = (0..books.hosts.len())
        .filter(|host| books.is_used(*host) && !books.has_taken_or_given(*host))
        .map(|host| (books.mean_on(host) / watts(books, host), host))
        .collect();
    // By what they do for their power: least first.
    hosts.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    for (_, host) in hosts {
        if books.may_give(host) && books.has_moves_left() {
            try_empty(books, constraints, host);
        }
    }
}

fn watts(books: &Books<'_>, host: usize) -> f64 {
    books.watts_of(host).max(1.0)
}

fn try_empty(books: &mut Books<'_>, constraints: &mut dyn Constraints, host: usize) {
    let memory: Bytes = books.vms_of(host).iter().map(|vm| books.vms[*vm].memory).sum();
    let saves = |watts: f64| watts * books.aim.horizon_hours;
    let price = gib(memory) * books.aim.watt_hours_per_gib;
    // No plan saves more than all of it.
    if saves(books.watts_of(host)) <= price {
        return;
    }
    let mut leaving = books.vms_of(host).to_vec();
    if leaving.iter().any(|vm| books.is_cooling(*vm)) {
        return;
    }
    leaving.sort_by(|a, b| books.mean_of(*b).total_cmp(&books.mean_of(*a)).then(a.cmp(b)));
    let before = books.watts();
    let mark = books.mark();
    let reason = Reason::Empty { watts: 0.0, memory };
    for vm in leaving {
        let to = books
            .has_moves_left()
            .then(|| books.tightest(vm, constraints, |to| to != host && books.is_used(to)))
            .flatten();
        let Some(to) = to else {
            books.take_back(&mark, constraints);
            return;
        };
        books.apply(vm, to, reason, constraints);
    }
    let watts = before - books.watts();
    if watts * books.aim.horizon_hours > price {
        books.explain(&mark, Reason::Empty { watts, memory });
    } else {
        books.take_back(&mark, constraints);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a price is rounded anyway")]
fn gib(memory: Bytes) -> f64 {
    memory.0 as f64 / f64::from(1 << 30)
}

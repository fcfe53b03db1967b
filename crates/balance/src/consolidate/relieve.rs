//! Hosts that will be short give VMs away.

use super::{
    Constraints, Reason,
    books::{Books, cpu},
};

/// Relieves the hosts with the largest excess first; those for which there is no way are `stuck`.
pub(super) fn relieve(
    books: &mut Books<'_>,
    constraints: &mut dyn Constraints,
    stuck: &mut Vec<usize>,
) {
    let mut hot: Vec<_> = (0..books.hosts.len())
        .map(|host| (books.excess(host), host))
        .filter(|(excess, _)| *excess > 0.0)
        .collect();
    hot.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    for (_, host) in &hot {
        while books.excess(*host) > 0.0 && books.has_moves_left() {
            let cool = |other: usize| !hot.iter().any(|(_, one)| *one == other);
            let Some((vm, to)) = way_out(books, constraints, *host, cool) else {
                stuck.push(*host);
                break;
            };
            let reason = Reason::Overload {
                level: cpu(books.level(*host, books.aim.deviations_at_least)),
                capacity: books.hosts[*host].cpu,
            };
            books.apply(vm, to, reason, constraints);
        }
    }
    stuck.sort_unstable();
}

/// The VM that goes, and where to. Of those without which the host is relieved the one with the least
/// demand is taken: it finds a place most easily, and leaves the host well filled. If none is enough
/// alone, it is the one that takes most away.
fn way_out(
    books: &Books<'_>,
    constraints: &dyn Constraints,
    host: usize,
    cool: impl Fn(usize) -> bool,
) -> Option<(usize, usize)> {
    let mut going: Vec<_> =
        books.vms_of(host).iter().map(|vm| (*vm, books.excess_without(host, *vm))).collect();
    going.sort_by(|(a, left_a), (b, left_b)| {
        let key = |vm: usize, left: f64| {
            let enough = left <= 0.0;
            (books.is_cooling(vm), !enough, if enough { -left } else { left })
        };
        let (a_key, b_key) = (key(*a, *left_a), key(*b, *left_b));
        a_key
            .0
            .cmp(&b_key.0)
            .then(a_key.1.cmp(&b_key.1))
            .then(a_key.2.total_cmp(&b_key.2))
            .then(a.cmp(b))
    });
    let to_used = going.iter().find_map(|(vm, _)| {
        let to = books.tightest(*vm, constraints, |to| books.is_used(to) && cool(to))?;
        Some((*vm, to))
    });
    // A single VM gains nothing by being alone on another host, unless that gives it more.
    let alone = books.vms_of(host).len() < 2;
    to_used.or_else(|| {
        let &(vm, _) = going.first()?;
        let to = books.most_efficient_unused(vm, constraints)?;
        (!alone || books.hosts[to].cpu > books.hosts[host].cpu).then_some((vm, to))
    })
}

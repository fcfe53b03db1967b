//! An order in which each move is feasible when it is made.

use plimsoll_model::{Bytes, MilliCores};

use super::{Move, Node, Place, Problem, problem::Part};

/// Orders moves so that the target has room, with the VM counted on both sides while it moves. Of those
/// that can be made, one that leaves the most room where others want to go is made first. None if no
/// order was found.
pub(super) fn order(problem: &Problem, moves: &[Move]) -> Option<Vec<Move>> {
    let mut free = problem.free.clone();
    let mut left: Vec<&Move> = moves.iter().collect();
    let mut ordered = Vec::with_capacity(moves.len());
    while !left.is_empty() {
        let mut best: Option<(i64, usize)> = None;
        for (at, one) in left.iter().enumerate() {
            if !fits(problem, &free, one) {
                continue;
            }
            let wanted = wanted_by_others(problem, &left, at);
            if best.is_none_or(|(most, _)| wanted > most) {
                best = Some((wanted, at));
            }
        }
        let one = left.remove(best?.1);
        change(problem, &mut free, one);
        ordered.push(one.clone());
    }
    Some(ordered)
}

/// Leaves moves out without which the rest can be made and as many units fit.
pub(super) fn without_needless(problem: &Problem, moves: Vec<Move>, units: u64) -> Vec<Move> {
    let mut kept = moves;
    let mut at = kept.len();
    while at > 0 {
        at -= 1;
        let mut fewer = kept.clone();
        fewer.remove(at);
        // Where VMs may be was asked when the moves were found.
        let after = problem.after(&fewer, &|_, _| true);
        if after.is_ok_and(|free| problem.units_in(&free) >= units) {
            kept = fewer;
            at = kept.len();
        }
    }
    kept
}

fn nodes<'a>(
    problem: &'a Problem,
    vm: usize,
    place: &'a Place,
) -> impl Iterator<Item = (usize, &'a Part)> {
    let begin = problem.begins[place.host];
    place.nodes.iter().map(move |node| begin + node).zip(&problem.vms[vm].parts)
}

fn fits(problem: &Problem, free: &[Node], one: &Move) -> bool {
    nodes(problem, one.vm, &one.to).all(|(node, part)| {
        part.cpu <= free[node].free_cpu && part.memory <= free[node].free_memory
    })
}

fn change(problem: &Problem, free: &mut [Node], one: &Move) {
    for (node, part) in nodes(problem, one.vm, &one.to) {
        let of = &mut free[node];
        of.free_cpu = MilliCores(of.free_cpu.0.saturating_sub(part.cpu.0));
        of.free_memory = Bytes(of.free_memory.0.saturating_sub(part.memory.0));
    }
    for (node, part) in nodes(problem, one.vm, &one.from) {
        free[node].free_cpu.0 += part.cpu.0;
        free[node].free_memory.0 += part.memory.0;
    }
}

/// How many of the others go to where this one leaves, less those that go to where it goes.
fn wanted_by_others(problem: &Problem, left: &[&Move], at: usize) -> i64 {
    let mut wanted = 0;
    for (other, them) in left.iter().enumerate() {
        if other == at {
            continue;
        }
        for (node, _) in nodes(problem, them.vm, &them.to) {
            let is = |place| nodes(problem, left[at].vm, place).any(|(one, _)| one == node);
            wanted += i64::from(is(&left[at].from)) - i64::from(is(&left[at].to));
        }
    }
    wanted
}

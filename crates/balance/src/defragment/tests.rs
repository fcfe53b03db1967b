//! Plans on small clusters.

use std::collections::BTreeSet;

use plimsoll_model::{Bytes, MilliCores};
use proptest::prelude::{Strategy, prop, prop_assert, prop_assert_eq, proptest};

use super::{Host, InvalidProblem, Move, Node, Part, Place, Problem, Solution, Vm, solve};

fn node(cores: u64) -> Node {
    Node { free_cpu: MilliCores::cores(cores), free_memory: Bytes::gib(64) }
}

fn hosts(free: &[&[u64]]) -> Vec<Host> {
    free.iter()
        .map(|nodes| Host { nodes: nodes.iter().map(|cores| node(*cores)).collect() })
        .collect()
}

fn vm(host: usize, parts: &[(usize, u64)]) -> Vm {
    let part = |(_, cores): &(usize, u64)| Part {
        cpu: MilliCores::cores(*cores),
        memory: Bytes::gib(*cores),
    };
    Vm {
        parts: parts.iter().map(part).collect(),
        place: Place { host, nodes: parts.iter().map(|(node, _)| *node).collect() },
        may_move: true,
    }
}

fn problem(free: &[&[u64]], vms: Vec<Vm>) -> Problem {
    Problem::new(MilliCores::cores(16), &hosts(free), vms).unwrap()
}

fn solved(problem: &Problem, most_moves: usize, seed: u64) -> Solution {
    solve(problem, most_moves, seed, &|_, _| true, &mut |at| at.steps < 20_000)
}

fn to(place: &Move) -> (usize, usize, &[usize]) {
    (place.vm, place.to.host, &place.to.nodes)
}

#[test]
fn fragments_are_what_no_typical_vm_can_use() {
    assert!((problem(&[&[12, 20], &[40]], vec![]).fragment_rate() - 24.0 / 72.0).abs() < 1e-9);
    assert!(problem(&[&[0]], vec![]).fragment_rate().abs() < 1e-9);
    assert!(problem(&[&[16, 32]], vec![]).fragment_rate().abs() < 1e-9);
}

#[test]
fn one_move_makes_a_node_whole() {
    // 12 free beside a VM of 4, and a hole of 4 elsewhere.
    let problem = problem(&[&[12], &[4]], vec![vm(0, &[(0, 4)]), vm(1, &[(0, 8)])]);
    let found = solved(&problem, 5, 1);
    assert_eq!(found.moves.iter().map(to).collect::<Vec<_>>(), [(0, 1, &[0][..])]);
    assert!((found.initial - 1.0).abs() < 1e-9 && found.reached.abs() < 1e-9);
    // No search is needed when no more can fit.
    assert_eq!(found.at_least, found.reached);
    assert_eq!(solved(&problem, 0, 1).moves, []);
}

#[test]
fn moves_that_gain_together_are_made_in_an_order_in_which_each_has_room() {
    // The VM of 8 must leave node 1 of host 0 for a hole of 8; only a VM of 4 in its way makes it one.
    let vms = vec![vm(0, &[(0, 8)]), vm(1, &[(0, 4)]), vm(2, &[(0, 4)])];
    let problem = problem(&[&[8], &[4], &[4]], vms);
    let found = solved(&problem, 2, 3);
    assert_eq!(found.moves.len(), 2);
    assert!(found.reached.abs() < 1e-9);
    assert!(problem.replay(&found.moves, &|_, _| true).unwrap().abs() < 1e-9);
    let mut backwards = found.moves.clone();
    backwards.reverse();
    let error = problem.replay(&backwards, &|_, _| true).unwrap_err();
    assert_eq!(error.to_string(), "move 0 cannot be made: a NUMA node has no room");
}

#[test]
fn vms_that_may_not_move_or_not_go_there_stay() {
    let fixed = Vm { may_move: false, ..vm(0, &[(0, 4)]) };
    assert_eq!(solved(&problem(&[&[12], &[4]], vec![fixed]), 5, 1).moves, []);
    let free = problem(&[&[12], &[4]], vec![vm(0, &[(0, 4)])]);
    let nowhere = solve(&free, 5, 1, &|_, host| host != 1, &mut |at| at.steps < 20_000);
    assert_eq!((nowhere.moves, nowhere.reached), (vec![], nowhere.initial));
    // Memory counts too.
    let mut full = hosts(&[&[12], &[4]]);
    full[1].nodes[0].free_memory = Bytes::gib(3);
    let full = Problem::new(MilliCores::cores(16), &full, vec![vm(0, &[(0, 4)])]).unwrap();
    assert_eq!(solved(&full, 5, 1).moves, []);
}

#[test]
fn a_vm_on_two_nodes_stays_on_two_nodes() {
    let vms = vec![vm(0, &[(0, 4), (1, 4)])];
    let found = solved(&problem(&[&[12, 12], &[8], &[4, 4]], vms), 5, 1);
    assert_eq!(found.moves.len(), 1);
    assert_eq!((found.moves[0].to.host, found.moves[0].to.nodes.len()), (2, 2));
}

#[test]
fn what_is_no_problem_is_refused() {
    let new = |vms| Problem::new(MilliCores::cores(16), &hosts(&[&[1, 1]]), vms).map(|_| ());
    for wrong in [vm(1, &[(0, 1)]), vm(0, &[(2, 1)]), vm(0, &[]), vm(0, &[(1, 1), (1, 1)])] {
        assert_eq!(new(vec![wrong]), Err(InvalidProblem::Place { vm: 0 }));
    }
    let mut huge = vm(0, &[(0, 1)]);
    huge.parts[0].cpu = MilliCores(u64::MAX);
    assert_eq!(new(vec![vm(0, &[(0, 1)]), huge]), Err(InvalidProblem::TooMuch { vm: 1 }));
    let no_unit = Problem::new(MilliCores(0), &[], vec![]).map(|_| ());
    assert_eq!(no_unit, Err(InvalidProblem::NoUnit));
    let bare = Problem::new(MilliCores(1), &[Host { nodes: vec![] }], vec![]).map(|_| ());
    assert_eq!(bare, Err(InvalidProblem::Nodes { host: 0 }));
    let node = Node { free_cpu: MilliCores(u64::MAX), free_memory: Bytes(0) };
    let much = Problem::new(MilliCores(1), &[Host { nodes: vec![node; 2] }], vec![]).map(|_| ());
    assert_eq!(much, Err(InvalidProblem::TooMuchFree));
}

type Scene = (Vec<Vec<u64>>, Vec<(usize, usize, Vec<u64>, bool)>, usize, u64);

fn scene() -> impl Strategy<Value = Scene> {
    let one =
        (0..6_usize, 0..3_usize, prop::collection::vec(1..33_u64, 1..3), prop::bool::weighted(0.9));
    (
        prop::collection::vec(prop::collection::vec(0..25_u64, 1..4), 1..6),
        prop::collection::vec(one, 0..25),
        0..8_usize,
        0..1000_u64,
    )
}

proptest! {
    #[test]
    fn every_step_is_feasible_and_a_plan_never_makes_it_worse(scene in scene()) {
        let (free, vms, most_moves, seed) = scene;
        let free: Vec<_> = free.iter().map(|nodes| &nodes[..]).collect();
        let vms = vms.iter().map(|(host, node, parts, may_move)| {
            let host = host % free.len();
            let nodes = free[host].len();
            let parts: Vec<_> =
                parts.iter().take(nodes).enumerate().map(|(at, c)| ((node + at) % nodes, *c)).collect();
            Vm { may_move: *may_move, ..vm(host, &parts) }
        });
        let problem = problem(&free, vms.collect());
        let may_hold = |vm: usize, host: usize| !(vm + host).is_multiple_of(5);
        let solved =
            || solve(&problem, most_moves, seed, &may_hold, &mut |at| at.steps < 5_000);
        let found = solved();
        prop_assert_eq!(&found, &solved());
        prop_assert!(found.moves.len() <= most_moves);
        let once: BTreeSet<_> = found.moves.iter().map(|one| one.vm).collect();
        prop_assert_eq!(once.len(), found.moves.len());
        let reached = problem.replay(&found.moves, &may_hold).unwrap();
        prop_assert!((reached - found.reached).abs() < 1e-12);
        prop_assert!(found.reached <= found.initial && found.at_least <= found.reached);
        prop_assert_eq!(found.initial, problem.fragment_rate());
        if found.moves.is_empty() {
            prop_assert_eq!(found.reached, found.initial);
        }
    }
}

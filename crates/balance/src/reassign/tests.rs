//! The search and the order of moves against the definition, on small problems of every kind.

use std::collections::BTreeSet;

use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

use super::{
    Balance, InvalidProblem, Machine, MachineId, Parts, Problem, Process, Resource, Service, Step,
    Violation, Weights, order, solve, state::State,
};

/// A problem, in which capacities are what the initial assignment uses and a little more.
fn problems() -> impl Strategy<Value = Problem> {
    let sizes = (1..4_usize, 2..7_usize, 1..7_usize, 1..15_usize);
    let parts = sizes.prop_flat_map(|(resources, machines, services, processes)| {
        let list = |most: u64, length| prop::collection::vec(0..=most, length);
        let resource = (any::<bool>(), 0..4_u64);
        let machine = (0..3_u32, 0..3_u32, list(12, resources), list(20, resources));
        let service = (0..3_u32, prop::collection::vec(0..u32::try_from(services).unwrap(), 0..3));
        let process = (list(9, resources), 0..5_u64);
        let at = 0..u32::try_from(machines).unwrap();
        let balance = (0..resources, 0..resources, 0..3_u64, 0..4_u64);
        (
            prop::collection::vec(resource, resources),
            prop::collection::vec(machine, machines),
            prop::collection::vec(service, services),
            prop::collection::vec((0..services, process, at), processes),
            prop::collection::vec(balance, 0..3),
            prop::option::of(prop::collection::vec(0..4_u32, machines * machines)),
            (0..3_u64, 0..30_u64, 0..3_u64),
        )
    });
    parts.prop_map(|(resources, machines, services, processes, balances, between, weights)| {
        let mut parts = Parts {
            resources: resources
                .into_iter()
                .map(|(transient, load_weight)| Resource { transient, load_weight })
                .collect(),
            machines: machines
                .into_iter()
                .map(|(neighbourhood, location, capacity, safety)| Machine {
                    neighbourhood,
                    location,
                    capacity,
                    safety,
                })
                .collect(),
            between,
            services: Vec::new(),
            processes: Vec::new(),
            balances: balances
                .into_iter()
                .map(|(of, against, target, weight)| Balance { of, against, target, weight })
                .collect(),
            weights: Weights { process: weights.0, service: weights.1, machine: weights.2 },
            initial: Vec::new(),
        };
        settle(&mut parts, services, processes);
        Problem::new(parts).unwrap()
    })
}

type DrawnProcess = (usize, (Vec<u64>, u64), MachineId);

/// Makes the constraints such that the initial assignment keeps them.
fn settle(parts: &mut Parts, services: Vec<(u32, Vec<u32>)>, processes: Vec<DrawnProcess>) {
    let mut taken = BTreeSet::new();
    for (service, (requirement, move_cost), machine) in processes {
        if !taken.insert((service, machine)) {
            continue;
        }
        for (capacity, need) in
            parts.machines[machine as usize].capacity.iter_mut().zip(&requirement)
        {
            *capacity += need;
        }
        let service = u32::try_from(service).unwrap();
        parts.processes.push(Process { service, requirement, move_cost });
        parts.initial.push(machine);
    }
    let places = |service: usize, of: fn(&Machine) -> u32| {
        let on = taken.iter().filter(|(other, _)| *other == service);
        on.map(|(_, machine)| of(&parts.machines[*machine as usize])).collect::<BTreeSet<_>>()
    };
    for (id, (spread, depends_on)) in services.into_iter().enumerate() {
        let locations = u32::try_from(places(id, |machine| machine.location).len()).unwrap();
        let near = places(id, |machine| machine.neighbourhood);
        let met =
            |other: &u32| near.is_subset(&places(*other as usize, |machine| machine.neighbourhood));
        let depends_on = depends_on.into_iter().filter(met).collect();
        parts.services.push(Service { spread_min: spread.min(locations), depends_on });
    }
}

fn steps(number: u64) -> impl FnMut(super::Progress) -> f64 {
    move |at| {
        u32::try_from(at.steps).map_or(1.0, f64::from)
            / u32::try_from(number).map_or(1.0, f64::from)
    }
}

/// The use of all machines while a step is taken: what moves counts on both.
fn is_feasible(problem: &Problem, at: &[MachineId], step: Option<Step>) -> bool {
    let parts = problem.parts();
    let moves = |process: usize| step.is_some_and(|step| step.process as usize == process);
    (0..).zip(&parts.machines).all(|(id, machine): (MachineId, _)| {
        machine.capacity.iter().enumerate().all(|(resource, capacity)| {
            let counts = |process: usize| {
                at[process] == id
                    || (parts.resources[resource].transient && parts.initial[process] == id)
                    || (moves(process) && step.is_some_and(|step| step.to == id))
            };
            let on = (0..at.len()).filter(|process| counts(*process));
            on.map(|process| parts.processes[process].requirement[resource]).sum::<u64>()
                <= *capacity
        })
    })
}

proptest! {
    #[test]
    fn a_solution_is_allowed_costs_what_it_says_and_never_more_than_before(
        problem in problems(), seed in 0..4_u64,
    ) {
        let before = problem.cost(problem.initial()).unwrap().total();
        let solution = solve(&problem, problem.initial(), seed, &mut steps(40_000)).unwrap();
        prop_assert_eq!(problem.cost(&solution.assignment).unwrap().total(), solution.cost);
        prop_assert!(solution.cost <= before);
        let again = solve(&problem, problem.initial(), seed, &mut steps(40_000)).unwrap();
        prop_assert_eq!(solution, again);
    }

    #[test]
    fn what_may_be_done_and_what_it_costs_are_as_the_definition_says(
        problem in problems(),
        changes in prop::collection::vec((any::<u32>(), any::<u32>(), any::<bool>()), 1..60),
    ) {
        let mut state = State::new(&problem, problem.initial());
        let count = |length: usize| u32::try_from(length).unwrap();
        let processes = count(problem.parts().processes.len());
        let machines = count(problem.parts().machines.len());
        for (process, other, swap) in changes {
            let process = process % processes;
            let mut wanted = state.assignment().to_vec();
            let found = if swap {
                let other = other % processes;
                wanted.swap(process as usize, other as usize);
                let found = state.try_swap(process, other, f64::INFINITY);
                found.inspect(|delta| state.apply_swap(process, other, *delta))
            } else {
                let to = other % machines;
                wanted[process as usize] = to;
                let found = state.try_shift(process, to, f64::INFINITY);
                prop_assert_eq!(
                    found.is_some(),
                    problem.cost(&wanted).is_ok() && wanted != state.assignment()
                );
                found.inspect(|delta| state.apply_shift(process, to, *delta))
            };
            if found.is_some() {
                prop_assert_eq!(&wanted[..], state.assignment());
            }
            prop_assert_eq!(problem.cost(state.assignment()).unwrap().total(), state.cost());
            prop_assert_eq!(State::new(&problem, state.assignment()).cost(), state.cost());
        }
    }

    #[test]
    fn every_step_of_a_plan_may_be_taken_when_its_turn_comes(
        problem in problems(), seed in 0..4_u64,
    ) {
        let before = problem.cost(problem.initial()).unwrap().total();
        let solution = solve(&problem, problem.initial(), seed, &mut steps(20_000)).unwrap();
        let plan = order(&problem, &solution.assignment).unwrap();
        let mut at = problem.initial().to_vec();
        for step in &plan.steps {
            prop_assert_eq!(at[step.process as usize], step.from);
            prop_assert!(step.from != step.to && is_feasible(&problem, &at, Some(*step)));
            at[step.process as usize] = step.to;
            prop_assert!(is_feasible(&problem, &at, None));
            prop_assert!(problem.cost(&at).is_ok());
        }
        prop_assert_eq!(&at, &plan.assignment);
        prop_assert_eq!(problem.cost(&at).unwrap(), plan.cost);
        prop_assert!(plan.cost.total() <= before);
        prop_assert_eq!(plan.dropped.is_empty(), at == solution.assignment);
        prop_assert_eq!(&plan, &order(&problem, &solution.assignment).unwrap());
    }

    #[test]
    fn no_parts_make_it_panic(
        resources in 0..3_usize, machines in 0..3_usize, short in 0..3_usize,
        amount in prop::sample::select(vec![1, u64::MAX]), service in 0..3_u32, at in 0..4_u32,
    ) {
        let list = vec![amount; resources];
        let short = vec![amount; short];
        let machine = |it: &Vec<u64>| Machine {
            neighbourhood: 7, location: at, capacity: list.clone(), safety: it.clone(),
        };
        let parts = Parts {
            resources: vec![Resource { transient: true, load_weight: amount }; resources],
            machines: (0..machines).map(|_| machine(&short)).collect(),
            between: None,
            services: vec![Service { spread_min: service, depends_on: vec![service] }],
            processes: vec![Process { service, requirement: list.clone(), move_cost: amount }],
            balances: vec![Balance { of: 0, against: at as usize, target: amount, weight: amount }],
            weights: Weights { process: amount, service: amount, machine: amount },
            initial: vec![at],
        };
        if let Ok(problem) = Problem::new(parts) {
            let solution = solve(&problem, problem.initial(), 1, &mut steps(8192)).unwrap();
            prop_assert!(order(&problem, &solution.assignment).is_ok());
        }
    }
}

/// Machines of one resource and so much capacity; processes of a service each.
fn plain(capacities: &[u64], processes: &[(u64, MachineId)]) -> Parts {
    Parts {
        resources: vec![Resource { transient: false, load_weight: 1 }],
        machines: capacities
            .iter()
            .map(|capacity| Machine {
                neighbourhood: 0,
                location: 0,
                capacity: vec![*capacity],
                safety: vec![0],
            })
            .collect(),
        services: vec![Service::default(); processes.len()],
        processes: (0..)
            .zip(processes)
            .map(|(service, (need, _))| Process { service, requirement: vec![*need], move_cost: 0 })
            .collect(),
        initial: processes.iter().map(|(_, machine)| *machine).collect(),
        ..Parts::default()
    }
}

#[test]
fn a_ring_is_broken_by_a_detour() {
    let problem = Problem::new(plain(&[4, 4, 4], &[(3, 0), (3, 1)])).unwrap();
    let plan = order(&problem, &[1, 0]).unwrap();
    assert_eq!(plan.steps.len(), 3);
    assert_eq!((plan.assignment, plan.dropped), (vec![1, 0], vec![]));
}

#[test]
fn a_ring_that_cannot_be_broken_stays() {
    let problem = Problem::new(plain(&[4, 4], &[(3, 0), (3, 1)])).unwrap();
    let plan = order(&problem, &[1, 0]).unwrap();
    assert_eq!((plan.steps, plan.dropped), (vec![], vec![0, 1]));
}

#[test]
fn what_is_wrong_with_a_problem_is_said() {
    let wrong = |change: fn(&mut Parts)| {
        let mut parts = plain(&[4, 4], &[(3, 0), (3, 1)]);
        change(&mut parts);
        Problem::new(parts).unwrap_err().to_string()
    };
    assert_eq!(wrong(|parts| parts.machines.clear()), "there is no machine");
    assert_eq!(
        wrong(|parts| parts.machines[1].safety.push(1)),
        "machine 1 has 2 safety capacities in place of 1"
    );
    assert_eq!(
        wrong(|parts| parts.between = Some(vec![0; 3])),
        "matrix 0 has 3 costs between machines in place of 4"
    );
    assert_eq!(
        wrong(|parts| parts.services[1].depends_on.push(2)),
        "service 1 names service 2, and there are 2"
    );
    assert_eq!(wrong(|parts| parts.initial[0] = 2), "process 0 names machine 2, and there are 2");
    assert_eq!(
        wrong(|parts| parts.machines[0].capacity[0] = u64::MAX),
        "a resource of all machines may come to more than 2^61"
    );
    assert_eq!(
        wrong(|parts| parts.weights.service = u64::MAX),
        "the cost may come to more than 2^61"
    );
    let mut parts = plain(&[4, 4], &[(3, 0), (3, 0)]);
    parts.machines[0].safety[0] = 9;
    let violation = Violation::Capacity { machine: 0, resource: 0, capacity: 4, used: 6 };
    assert_eq!(Problem::new(parts).unwrap_err(), InvalidProblem::Initial { source: violation });
}

//! Machine reassignment problems of the ROADEF/EURO challenge 2012.
//!
//! Both files are whole numbers with white space between them; where lines end means nothing. The
//! model has, each kind after its count: the resources (transient or not, load weight), machines
//! (neighbourhood, location, capacities, safety capacities, move costs to every machine), services
//! (least spread, how many they depend on, those), processes (service, requirements, move cost) and
//! balance objectives (two resources, the target, the weight); then the weights of process, service
//! and machine moves. The assignment is the machine of each process.

use std::{
    io::{BufRead, BufReader},
    ops::ControlFlow,
    path::Path,
};

use plimsoll_balance::reassign::{
    Balance, Machine, MachineId, Parts, Problem, Process, Resource, Service, Weights,
};

use super::{Limits, Lines, ReadError, archive, source};

/// The most balance objectives: one for each pair of resources that anybody has thought of.
const BALANCES: usize = 1 << 12;

/// The greatest number that is read for capacities, requirements and weights.
const AMOUNT: u64 = 1 << 60;

/// Reads a problem. Either file may be plain, compressed with xz, or inside an archive
/// (`A.tar.xz/A/model_a1_1.txt`).
///
/// # Errors
/// The first thing that is wrong.
pub fn read(model: &Path, assignment: &Path, limits: &Limits) -> Result<Problem, ReadError> {
    let parts = model_of(model, limits)?;
    let initial = assignment_of(assignment, &parts, limits)?;
    Problem::new(Parts { initial, ..parts })
        .map_err(|source| ReadError::Reassignment { file: model.display().to_string(), source })
}

/// Reads a model, and no initial assignment.
///
/// # Errors
/// The first thing that is wrong.
pub fn model_of(path: &Path, limits: &Limits) -> Result<Parts, ReadError> {
    opened(path, limits, "model", &mut |lines| model(lines, limits))
}

/// Reads an assignment of a model's processes.
///
/// # Errors
/// The first thing that is wrong. Whether the assignment keeps the constraints is not looked at.
pub fn assignment_of(
    path: &Path,
    parts: &Parts,
    limits: &Limits,
) -> Result<Vec<MachineId>, ReadError> {
    opened(path, limits, "assignment", &mut |lines| assignment(lines, parts))
}

/// What reads the lines of a file.
type Reading<'a, T> = dyn FnMut(&mut Lines<Box<dyn BufRead + '_>>) -> Result<T, ReadError> + 'a;

/// Reads a file, or one inside an archive.
fn opened<T>(
    path: &Path,
    limits: &Limits,
    wanted: &'static str,
    read: &mut Reading<'_, T>,
) -> Result<T, ReadError> {
    let file = path.display().to_string();
    let Some((archive, Some(inside))) = archive::archive_of(path) else {
        let source: Box<dyn BufRead> = Box::new(source::Source::open(path, limits)?);
        return read(&mut Lines::new(file, source, limits));
    };
    let mut found = None;
    let (name, source) = (archive.display().to_string(), source::Source::open(&archive, limits)?);
    archive::members(&name, source, limits, &mut |member, bytes| {
        if member != inside {
            return Ok(ControlFlow::Continue(()));
        }
        let bytes: Box<dyn BufRead + '_> = Box::new(BufReader::new(bytes));
        found = Some(read(&mut Lines::new(file.clone(), bytes, limits))?);
        Ok(ControlFlow::Break(()))
    })?;
    found.ok_or(ReadError::Nothing { file, wanted })
}

/// The numbers of a file, one after the other.
struct Numbers<'a, R> {
    lines: &'a mut Lines<R>,
}

impl<R: BufRead> Numbers<'_, R> {
    /// A number from 0 to `most`; `what` says of what.
    fn number(&mut self, what: &str, most: u64) -> Result<u64, ReadError> {
        self.lines.expect_word(what)?.number(what, 0, most)
    }

    fn narrow(&mut self, what: &str, most: u32) -> Result<u32, ReadError> {
        self.number(what, u64::from(most)).map(|number| u32::try_from(number).unwrap_or(most))
    }

    /// How many of something follow.
    fn count(&mut self, what: &'static str, limit: usize) -> Result<usize, ReadError> {
        let word = self.lines.expect_word(what)?;
        let count = word.number(what, 0, u64::MAX)?;
        usize::try_from(count)
            .ok()
            .filter(|count| *count <= limit)
            .ok_or_else(|| word.too_much(what, limit))
    }

    /// The index of one of so many things.
    fn index(&mut self, what: &str, count: usize) -> Result<u32, ReadError> {
        let word = self.lines.expect_word(what)?;
        let index = word.text.parse().ok().filter(|index| (*index as usize) < count);
        index.ok_or_else(|| word.unexpected(format!("{what}, below {count}")))
    }

    fn amounts(&mut self, what: &str, count: usize) -> Result<Vec<u64>, ReadError> {
        (0..count).map(|_| self.number(what, AMOUNT)).collect()
    }

    fn end(&mut self) -> Result<(), ReadError> {
        match self.lines.next_word()? {
            Some(word) => Err(word.unexpected("the end of the file")),
            None => Ok(()),
        }
    }
}

/// Reads a model. No list is made longer than what was read for it: a count may lie.
fn model<R: BufRead>(lines: &mut Lines<R>, limits: &Limits) -> Result<Parts, ReadError> {
    let mut numbers = Numbers { lines };
    let mut parts = Parts::default();
    let resources = numbers.count("resources", limits.dimensions)?;
    for _ in 0..resources {
        let transient = numbers.narrow("whether a resource is transient", 1)? == 1;
        let load_weight = numbers.number("a load weight", AMOUNT)?;
        parts.resources.push(Resource { transient, load_weight });
    }
    machines(&mut numbers, &mut parts, limits)?;
    let services = numbers.count("services", limits.records)?;
    let mut dependencies = 0;
    for _ in 0..services {
        let spread_min = numbers.narrow("the least spread of a service", u32::MAX)?;
        let count = numbers.count("dependencies", limits.records - dependencies)?;
        dependencies += count;
        let depends_on = (0..count).map(|_| numbers.index("a service", services));
        let depends_on = depends_on.collect::<Result<_, _>>()?;
        parts.services.push(Service { spread_min, depends_on });
    }
    for _ in 0..numbers.count("processes", limits.records)? {
        let service = numbers.index("the service of a process", services)?;
        let requirement = numbers.amounts("a requirement", resources)?;
        let move_cost = numbers.number("the move cost of a process", AMOUNT)?;
        parts.processes.push(Process { service, requirement, move_cost });
    }
    for _ in 0..numbers.count("balance objectives", BALANCES)? {
        let of = numbers.index("a resource", resources)? as usize;
        let against = numbers.index("a resource", resources)? as usize;
        let target = numbers.number("a target", AMOUNT)?;
        let weight = numbers.number("the weight of a balance", AMOUNT)?;
        parts.balances.push(Balance { of, against, target, weight });
    }
    parts.weights = Weights {
        process: numbers.number("the weight of process moves", AMOUNT)?,
        service: numbers.number("the weight of service moves", AMOUNT)?,
        machine: numbers.number("the weight of machine moves", AMOUNT)?,
    };
    numbers.end()?;
    Ok(parts)
}

fn machines<R: BufRead>(
    numbers: &mut Numbers<'_, R>,
    parts: &mut Parts,
    limits: &Limits,
) -> Result<(), ReadError> {
    let count = numbers.count("machines", limits.hosts)?;
    let resources = parts.resources.len();
    let mut between = Vec::new();
    for _ in 0..count {
        let neighbourhood = numbers.narrow("a neighbourhood", u32::MAX)?;
        let location = numbers.narrow("a location", u32::MAX)?;
        let capacity = numbers.amounts("a capacity", resources)?;
        let safety = numbers.amounts("a safety capacity", resources)?;
        parts.machines.push(Machine { neighbourhood, location, capacity, safety });
        for _ in 0..count {
            between.push(numbers.narrow("a move cost between machines", u32::MAX)?);
        }
    }
    parts.between = Some(between);
    Ok(())
}

/// Reads an assignment of a model's processes.
fn assignment<R: BufRead>(
    lines: &mut Lines<R>,
    parts: &Parts,
) -> Result<Vec<MachineId>, ReadError> {
    let mut numbers = Numbers { lines };
    let machine = |_| numbers.index("the machine of a process", parts.machines.len());
    let machines = (0..parts.processes.len()).map(machine).collect::<Result<_, _>>()?;
    numbers.end()?;
    Ok(machines)
}

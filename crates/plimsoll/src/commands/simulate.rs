//! `plimsoll simulate`: experiments that need no manager.

use std::{
    collections::BTreeMap,
    num::NonZero,
    ops::ControlFlow,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

mod consolidate;
mod overcommit;
mod rebalance;
mod scenario;

use comfy_table::Table;
use plimsoll_simulator::{
    azure, openb,
    pack::{self, PackError, Packer},
    readers::{
        self, Limits, ReadError,
        vbp::{self, Named},
    },
};

use crate::{
    cli::simulate::{AzureArgs, OpenbArgs, PackArgs, PackPolicy, SimulateCommand},
    failure::{Failure, OrFail as _, Outcome},
    output::{Output, Tone, progress::Work},
};

/// Runs an experiment.
pub(crate) fn run(command: SimulateCommand, output: Output) -> Outcome {
    match command {
        SimulateCommand::Run(args) => scenario::run(args, output),
        SimulateCommand::Pack(args) => pack(&args, output),
        SimulateCommand::Openb(args) => openb(&args, output),
        SimulateCommand::Azure(args) => azure(&args, output),
        SimulateCommand::Overcommit(args) => overcommit::run(&args, output),
        SimulateCommand::Consolidate(args) => consolidate::run(&args, output),
        SimulateCommand::Rebalance(args) => rebalance::run(&args, output),
    }
}

/// Instances that are read ahead of those that are packed.
const AHEAD: usize = 1024;

/// Packs files: one thread reads, some pack, this one shows the results in the order of the files.
fn pack(args: &PackArgs, output: Output) -> Outcome {
    let packer = match args.policy {
        PackPolicy::Policy(policy) => Packer::Policy(policy),
        PackPolicy::Best => Packer::Best { limit: args.time_limit, seed: args.seed },
    };
    let jobs = args
        .jobs
        .map_or_else(|| thread::available_parallelism().map_or(1, NonZero::get), usize::from);
    let limits = Limits::default();
    let seen = AtomicU64::new(0);
    let mut shown = Shown::new(output);
    thread::scope(|scope| {
        let (work, queue) = mpsc::sync_channel::<(u64, Named)>(AHEAD);
        let (finished, results) = mpsc::channel();
        let queue = std::sync::Arc::new(Mutex::new(queue));
        for _ in 0..jobs {
            let (queue, finished) = (queue.clone(), finished.clone());
            scope.spawn(move || {
                loop {
                    // The lock is held while waiting: whoever has it takes the next one.
                    let next = queue.lock().map(|queue| queue.recv());
                    let Ok(Ok((number, named))) = next else { break };
                    if finished.send((number, pack::pack(&named, packer))).is_err() {
                        break;
                    }
                }
            });
        }
        drop((queue, finished));
        let reading = scope.spawn(|| read(&args.files, &limits, &seen, work));
        for (number, result) in results {
            shown.add(number, result, seen.load(Ordering::Relaxed))?;
        }
        match reading.join() {
            Ok(read) => read.or_usage(|| "cannot read an instance".to_owned()),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    shown.finish()
}

/// Reads all files and hands on what is in them, numbered.
#[expect(clippy::needless_pass_by_value, reason = "who packs ends when this sender is dropped")]
fn read(
    files: &[std::path::PathBuf],
    limits: &Limits,
    seen: &AtomicU64,
    work: mpsc::SyncSender<(u64, Named)>,
) -> Result<(), ReadError> {
    for file in files {
        vbp::for_each(file, limits, &mut |named| {
            let number = seen.fetch_add(1, Ordering::Relaxed);
            match work.send((number, named)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?;
    }
    Ok(())
}

/// What was packed, in the order of the files.
struct Shown {
    output: Output,
    progress: Work,
    table: Table,
    next: u64,
    waiting: BTreeMap<u64, pack::Outcome>,
    done: u64,
    items: usize,
    bins: u64,
    lower_bound: u64,
}

impl Shown {
    fn new(output: Output) -> Self {
        let mut table =
            output.table(&["FILE", "ITEMS", "DIMENSIONS", "BINS", "AT LEAST", "SECONDS"]);
        right(&mut table, 1);
        Self {
            output,
            progress: Work::new(),
            table,
            next: 0,
            waiting: BTreeMap::new(),
            done: 0,
            items: 0,
            bins: 0,
            lower_bound: 0,
        }
    }

    fn add(&mut self, number: u64, result: Result<pack::Outcome, PackError>, of: u64) -> Outcome {
        let outcome = result?;
        self.done += 1;
        self.progress.set(self.done, of, || outcome.file.clone());
        self.waiting.insert(number, outcome);
        while let Some(outcome) = self.waiting.remove(&self.next) {
            self.next += 1;
            self.items += outcome.items;
            self.bins += u64::from(outcome.bins);
            self.lower_bound += u64::from(outcome.lower_bound);
            if self.output.is_json() {
                self.output.json_line(&outcome)?;
            } else {
                self.table.add_row([
                    outcome.file,
                    outcome.items.to_string(),
                    outcome.dimensions.to_string(),
                    outcome.bins.to_string(),
                    outcome.lower_bound.to_string(),
                    format!("{:.3}", outcome.seconds),
                ]);
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Outcome {
        if self.output.is_json() {
            return Ok(());
        }
        if self.done > 1 {
            self.table.add_row([
                format!("{} in all", self.done),
                self.items.to_string(),
                String::new(),
                self.bins.to_string(),
                self.lower_bound.to_string(),
            ]);
        }
        let Self { output, table, .. } = self;
        output.data(&output.finish(table))
    }
}

fn openb(args: &OpenbArgs, output: Output) -> Outcome {
    let limits = Limits::default();
    let nodes = readers::openb::nodes(&args.nodes, &limits)
        .or_usage(|| "cannot read the list of nodes".to_owned())?;
    let pods = readers::openb::pods(&args.pods, &limits)
        .or_usage(|| "cannot read the list of pods".to_owned())?;
    let experiment = openb::Experiment::new(nodes, pods, args.arrivals)
        .or_usage(|| "there is nothing to try".to_owned())?;
    let name = args.pods.display().to_string();
    let mut outcomes = Vec::new();
    for policy in &args.policy.0 {
        let work = Work::new();
        let outcome = experiment.run(*policy, &name, args.seeds, &mut |at| {
            let (done, of) = (at.done as u64, at.of as u64);
            let done = u64::from(at.seed - 1) * of + done;
            work.set(done, u64::from(at.seeds) * of, || format!("{policy}, seed {}", at.seed));
        })?;
        outcomes.push(outcome);
    }
    show(&outcomes, output, openb_table)
}

fn azure(args: &AzureArgs, output: Output) -> Outcome {
    let limits = Limits::default();
    let (requests, lifetimes) = match &args.lifetimes {
        Some(lifetimes) => (args.requests.clone(), lifetimes.clone()),
        None => readers::azure::pair(&args.requests).ok_or_else(|| no_pair(&args.requests))?,
    };
    let flavors = readers::azure::flavors(&args.flavors, &limits)
        .or_usage(|| "cannot read the flavours".to_owned())?;
    let intervals = readers::azure::intervals(&args.intervals, &limits)
        .or_usage(|| "cannot read the intervals".to_owned())?;
    let moments = readers::azure::requests(&requests, &lifetimes, flavors, intervals, &limits)
        .or_usage(|| "cannot read the requests".to_owned())?;
    let trace = azure::Trace::read(moments).or_usage(|| "cannot use the requests".to_owned())?;
    let mut outcomes = Vec::new();
    for policy in &args.policy.0 {
        let work = Work::new();
        let outcome = trace.run(*policy, &args.hosts, &mut |at| {
            work.set(at.done, at.of, || format!("{} on {} hosts", at.policy, at.hosts));
        })?;
        outcomes.push(outcome);
    }
    show(&outcomes, output, azure_table)
}

fn no_pair(requests: &Path) -> Failure {
    if let Err(error) = fs_err::metadata(requests) {
        return Failure::usage("cannot read the requests").detail("requests", error.to_string());
    }
    Failure::usage(format!("the lifetimes of {} are not beside it", requests.display()))
        .hint("name their file with --lifetimes")
}

/// One outcome is an object, several are a list; a table in any case for people.
fn show<T: serde::Serialize>(
    outcomes: &[T],
    output: Output,
    table: impl FnOnce(&Output, &[T]) -> Table,
) -> Outcome {
    match (output.is_json(), outcomes) {
        (true, [outcome]) => output.json(outcome),
        (true, outcomes) => output.json(outcomes),
        (false, outcomes) => output.data(&output.finish(table(&output, outcomes))),
    }
}

fn openb_table(output: &Output, outcomes: &[openb::Outcome]) -> Table {
    let mut table = output.table(&[
        "POLICY",
        "ALLOCATED %",
        "LEAST",
        "MOST",
        "FRAGMENTED %",
        "SEEDS",
        "SECONDS",
    ]);
    right(&mut table, 1);
    for outcome in outcomes {
        let allocated = outcome.allocated_percent;
        table.add_row([
            output.cell(outcome.policy, Tone::Plain),
            output.cell(format!("{:.2}", allocated.mean), Tone::Good),
            output.cell(format!("{:.2}", allocated.min), Tone::Plain),
            output.cell(format!("{:.2}", allocated.max), Tone::Plain),
            output.cell(format!("{:.2}", outcome.fragmented_percent), Tone::Plain),
            output.cell(outcome.seeds, Tone::Plain),
            output.cell(format!("{:.1}", outcome.seconds), Tone::Plain),
        ]);
    }
    table
}

fn azure_table(output: &Output, outcomes: &[azure::Outcome]) -> Table {
    let mut table = output.table(&[
        "POLICY",
        "HOSTS",
        "PLACED",
        "REJECTED",
        "HOSTS IN USE",
        "CPU %",
        "MEMORY %",
        "PLACED/S",
    ]);
    right(&mut table, 1);
    for outcome in outcomes {
        let rejected = if outcome.rejected > 0 { Tone::Attention } else { Tone::Plain };
        table.add_row([
            output.cell(outcome.policy, Tone::Plain),
            output.cell(outcome.hosts, Tone::Plain),
            output.cell(outcome.placed, Tone::Plain),
            output.cell(outcome.rejected, rejected),
            output.cell(outcome.peak_hosts, Tone::Plain),
            output.cell(format!("{:.2}", outcome.mean_cpu_percent), Tone::Plain),
            output.cell(format!("{:.2}", outcome.mean_memory_percent), Tone::Plain),
            output.cell(format!("{:.0}", outcome.placements_per_second), Tone::Plain),
        ]);
    }
    table
}

/// Numbers stand to the right, from this column on.
fn right(table: &mut Table, from: usize) {
    for column in table.column_iter_mut().skip(from) {
        column.set_cell_alignment(comfy_table::CellAlignment::Right);
    }
}

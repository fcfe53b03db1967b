//! `plimsoll simulate rebalance`: a whole cluster is put in order.

mod defragment;

use std::{num::NonZero, path::Path, thread, time::Duration};

use comfy_table::Table;
use plimsoll_simulator::{
    readers::{Limits, roadef},
    reassignment::{self, Effort, Outcome as Rebalanced},
};

use super::{right, show};
use crate::{
    cli::simulate::{ClusterFormat, RebalanceArgs},
    failure::{Failure, OrFail as _, Outcome},
    output::{Output, Tone, progress::Work},
};

/// Rebalances a cluster.
pub(super) fn run(args: &RebalanceArgs, output: Output) -> Outcome {
    match args.format {
        ClusterFormat::Roadef => roadef(args, output),
        ClusterFormat::Bytedance => defragment::run(args, output),
    }
}

/// For how long a problem of the challenge is searched by default.
const LIMIT: Duration = Duration::from_secs(60);

fn roadef(args: &RebalanceArgs, output: Output) -> Outcome {
    if args.cluster.is_some() || args.moves.is_some() {
        return Err(Failure::usage("--cluster and --moves are for --format bytedance"));
    }
    let [model, assignment] = &args.files[..] else {
        let found = args.files.len();
        return Err(Failure::usage(format!(
            "a model and an assignment are two files, not {found}"
        ))
        .hint("see `plimsoll simulate rebalance --help`"));
    };
    let limits = Limits::default();
    let problem = roadef::read(model, assignment, &limits)
        .or_usage(|| "cannot read the problem".to_owned())?;
    let limit = args.time_limit.unwrap_or(LIMIT);
    let effort = Effort { limit, seed: args.seed, threads: threads(args) };
    let work = Work::new();
    let found = reassignment::rebalance(&problem, effort, &mut |spent, at| {
        work.set(milliseconds(spent), milliseconds(effort.limit), || format!("cost {}", at.best));
    })?;
    drop(work);
    let read_back = match &args.out {
        Some(out) => {
            let failed = || format!("cannot write {}", out.display());
            fs_err::write(out, found.written()).or_fail(failed)?;
            roadef::assignment_of(out, problem.parts(), &limits)
                .or_fail(|| format!("cannot read back {}", out.display()))?
        }
        None => found.assignment().to_vec(),
    };
    let outcome = found.checked(&problem, instance(model), &read_back)?;
    show(&[outcome], output, table)
}

fn threads(args: &RebalanceArgs) -> usize {
    args.threads
        .map_or_else(|| thread::available_parallelism().map_or(1, NonZero::get), usize::from)
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// `a1_2` of `A.tar.xz/A/model_a1_2.txt`.
fn instance(model: &Path) -> String {
    let name = model.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_prefix("model_").unwrap_or(&name);
    let ends = [".xz", ".txt"];
    ends.iter().fold(name, |name, end| name.strip_suffix(end).unwrap_or(name)).to_owned()
}

fn table(output: &Output, outcomes: &[Rebalanced]) -> Table {
    let mut table = output.table(&["INSTANCE", "COST BEFORE", "AFTER", "MOVED", "SECONDS"]);
    right(&mut table, 1);
    for outcome in outcomes {
        table.add_row([
            output.cell(&outcome.instance, Tone::Plain),
            output.cell(outcome.initial_cost, Tone::Plain),
            output.cell(outcome.cost, Tone::Good),
            output.cell(outcome.moved, Tone::Plain),
            output.cell(format!("{:.1}", outcome.seconds), Tone::Plain),
        ]);
    }
    table
}

//! `--format bytedance`: fragments of free CPU are put together.

use std::{io::Write as _, time::Duration};

use comfy_table::Table;
use fs_err::File;
use plimsoll_simulator::{
    defragmentation::{self, Spot, Task},
    readers::{Limits, bytedance},
};

use super::{milliseconds, right, show, threads};
use crate::{
    cli::simulate::RebalanceArgs,
    failure::{Failure, OrFail as _, Outcome},
    output::{Output, Tone, progress::Work},
};

/// For how long is searched, and how many moves are made at most, by default.
const LIMIT: Duration = Duration::from_secs(5);
const MOVES: u32 = 25;

/// Defragments one cluster.
pub(super) fn run(args: &RebalanceArgs, output: Output) -> Outcome {
    let [file] = &args.files[..] else {
        let found = args.files.len();
        return Err(Failure::usage(format!("clusters are in one file, not in {found}"))
            .hint("see `plimsoll simulate rebalance --help`"));
    };
    let number = args.cluster.unwrap_or(0);
    let cluster = bytedance::read(file, number, &Limits::default())
        .or_usage(|| "cannot read the cluster".to_owned())?;
    let task = Task {
        most_moves: args.moves.unwrap_or(MOVES) as usize,
        limit: args.time_limit.unwrap_or(LIMIT),
        most_steps: u64::MAX,
        seed: args.seed,
        threads: threads(args),
    };
    let work = Work::new();
    let outcome = defragmentation::run(&cluster, number, &task, &mut |at, spent| {
        work.set(milliseconds(spent), milliseconds(task.limit), || {
            format!("room for {} of the typical size", at.units)
        });
    })?;
    drop(work);
    if let Some(out) = &args.out {
        let failed = || format!("cannot write {}", out.display());
        let mut file = File::create(out).or_fail(failed)?;
        let text = serde_json::to_string_pretty(&outcome.plan).or_fail(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.write_all(b"\n")).or_fail(failed)?;
    }
    let plan = outcome.plan.clone();
    show(&[outcome], output, table)?;
    if output.is_json() || plan.is_empty() { Ok(()) } else { output.data(&steps(output, &plan)) }
}

fn table(output: &Output, outcomes: &[defragmentation::Outcome]) -> Table {
    let mut table = output.table(&[
        "CLUSTER",
        "HOSTS",
        "VMS",
        "FRAGMENTS",
        "AFTER",
        "AT LEAST",
        "MOVES",
        "SECONDS",
    ]);
    right(&mut table, 1);
    for outcome in outcomes {
        table.add_row([
            output.cell(outcome.cluster, Tone::Plain),
            output.cell(outcome.hosts, Tone::Plain),
            output.cell(outcome.vms, Tone::Plain),
            output.cell(format!("{:.4}", outcome.initial), Tone::Plain),
            output.cell(format!("{:.4}", outcome.reached), Tone::Good),
            output.cell(format!("{:.4}", outcome.at_least), Tone::Plain),
            output.cell(outcome.moves, Tone::Plain),
            output.cell(format!("{:.1}", outcome.seconds), Tone::Plain),
        ]);
    }
    table
}

/// The moves, for people.
fn steps(output: Output, plan: &[defragmentation::Step]) -> String {
    let mut table = output.table(&["MOVE", "VM", "FROM", "TO"]);
    for (number, step) in plan.iter().enumerate() {
        table.add_row([
            output.cell(number + 1, Tone::Plain),
            output.cell(&step.vm, Tone::Plain),
            output.cell(spot(&step.from), Tone::Plain),
            output.cell(spot(&step.to), Tone::Plain),
        ]);
    }
    output.finish(table)
}

fn spot(spot: &Spot) -> String {
    let nodes: Vec<_> = spot.numa.iter().map(usize::to_string).collect();
    format!("{} numa {}", spot.host, nodes.join(","))
}

//! `plimsoll simulate overcommit`: VMs on fewer hosts than they were promised.

use comfy_table::Table;
use plimsoll_model::Amount;
use plimsoll_reclaim::predict::Risk;
use plimsoll_simulator::{
    overcommit::{self, Experiment, Host},
    readers::{Limits, bitbrains},
};

use super::{right, show};
use crate::{
    cli::simulate::{OvercommitArgs, UsageFormat},
    failure::{OrFail as _, Outcome},
    output::{Output, Tone, progress::Work},
};

/// Replays a trace with each policy.
pub(super) fn run(args: &OvercommitArgs, output: Output) -> Outcome {
    let recorded = match args.format {
        UsageFormat::Bitbrains => bitbrains::read(&args.folder, &Limits::default())
            .or_usage(|| "cannot read the trace".to_owned())?,
    };
    let capacity = Amount { cpu: args.host_cores, memory: args.host_memory };
    let experiment = Experiment::new(&recorded, Host { capacity, mhz: args.host_mhz })
        .or_usage(|| "there is nothing to try".to_owned())?;
    let risk = Risk { cpu: args.risk_cpu.as_f64(), memory: args.risk_memory.as_f64() };
    let mut outcomes = Vec::new();
    for policy in &args.policy.0 {
        let work = Work::new();
        outcomes.push(experiment.run(*policy, risk, &mut |at| {
            work.set(at.done, at.of, || format!("{policy}, {} hosts", at.hosts));
        }));
    }
    show(&outcomes, output, |output, outcomes| table(output, outcomes, risk))
}

fn table(output: &Output, outcomes: &[overcommit::Outcome], risk: Risk) -> Table {
    let mut table = output.table(&[
        "POLICY",
        "HOSTS",
        "MEAN",
        "DENSITY",
        "CPU SHORT %",
        "MEMORY SHORT %",
        "CPU UNMET %",
        "MEMORY UNMET %",
        "RESIZES",
        "MIGRATIONS",
        "BY VM AND DAY",
    ]);
    right(&mut table, 1);
    let short = |percent: f64, risk: f64| {
        let tone = if percent > 100.0 * risk { Tone::Attention } else { Tone::Plain };
        output.cell(format!("{percent:.3}"), tone)
    };
    for outcome in outcomes {
        table.add_row([
            output.cell(outcome.policy, Tone::Plain),
            output.cell(outcome.hosts, Tone::Plain),
            output.cell(format!("{:.2}", outcome.mean_hosts), Tone::Plain),
            output.cell(format!("{:.2}", outcome.density), Tone::Good),
            short(outcome.cpu_short_percent, risk.cpu),
            short(outcome.memory_short_percent, risk.memory),
            output.cell(format!("{:.3}", outcome.unmet_cpu_percent), Tone::Plain),
            output.cell(format!("{:.3}", outcome.unmet_memory_percent), Tone::Plain),
            output.cell(outcome.resizes, Tone::Plain),
            output.cell(outcome.migrations, Tone::Plain),
            output.cell(format!("{:.4}", outcome.migrations_per_vm_day), Tone::Plain),
        ]);
    }
    table
}

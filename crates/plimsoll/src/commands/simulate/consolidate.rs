//! `plimsoll simulate consolidate`: VMs packed onto few hosts while they run.

use comfy_table::Table;
use plimsoll_simulator::{
    consolidation::{self, Aim, Experiment, Memory, Policy},
    readers::{Limits, planetlab},
};

use super::{right, show};
use crate::{
    cli::simulate::{ConsolidateArgs, DayFormat, MemoryRule},
    failure::{Failure, OrFail as _, Outcome},
    output::{Output, Tone, progress::Work},
};

/// Replays a day with each policy.
pub(super) fn run(args: &ConsolidateArgs, output: Output) -> Outcome {
    let policies = &args.policy.0;
    if args.memory == MemoryRule::Enforced && policies.iter().any(|one| *one != Policy::Plimsoll) {
        return Err(Failure::usage("only the policy plimsoll counts memory")
            .hint("use --policy plimsoll with --memory enforced"));
    }
    let recorded = match args.format {
        DayFormat::Planetlab => planetlab::read(&args.day, &Limits::default())
            .or_usage(|| "cannot read the day".to_owned())?,
    };
    let experiment = Experiment::new(&recorded, Memory::from(args.memory), args.idle.into())
        .or_usage(|| "there is nothing to try".to_owned())?;
    let mut outcomes = Vec::new();
    for policy in policies {
        let work = Work::new();
        let outcome = experiment.run(*policy, &Aim::default(), &mut |at| {
            work.set(at.done, at.of, || format!("{policy}, {} hosts", at.hosts));
        });
        outcomes.push(outcome.or_usage(|| "there is nothing to try".to_owned())?);
    }
    show(&outcomes, output, table)
}

fn table(output: &Output, outcomes: &[consolidation::Outcome]) -> Table {
    let mut table = output.table(&[
        "POLICY",
        "KWH",
        "MIGRATIONS",
        "SLATAH %",
        "PDM %",
        "SLAV %",
        "ESV",
        "MEAN HOSTS",
        "UNMET %",
        "MOVED GB",
    ]);
    right(&mut table, 1);
    for outcome in outcomes {
        table.add_row([
            output.cell(outcome.policy, Tone::Plain),
            output.cell(format!("{:.2}", outcome.energy_kwh), Tone::Good),
            output.cell(outcome.migrations, Tone::Plain),
            output.cell(format!("{:.2}", outcome.slatah_percent), Tone::Plain),
            output.cell(format!("{:.4}", outcome.pdm_percent), Tone::Plain),
            output.cell(format!("{:.5}", outcome.slav_percent), Tone::Plain),
            output.cell(format!("{:.4}", outcome.esv), Tone::Plain),
            output.cell(format!("{:.1}", outcome.mean_hosts), Tone::Plain),
            output.cell(format!("{:.3}", outcome.unmet_percent), Tone::Plain),
            output.cell(format!("{:.0}", outcome.moved_gb), Tone::Plain),
        ]);
    }
    table
}

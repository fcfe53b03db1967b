//! `plimsoll bench balance`: how long a plan against all hotspots of a cluster takes.
//!
//! What is timed is [`Balancer::plan`] alone, and beside it what the balancer takes to remember one
//! sample of everything. What is seen is made up beforehand ([`Scene`]); plans are not carried out, so
//! that each of them has all hotspots before it.
//!
//! [`Balancer::plan`]: plimsoll_balance::Balancer::plan

mod scene;

use std::time::Instant;

use plimsoll_balance::{Action, Plan};
use scene::Scene;
use serde::Serialize;

use super::{milliseconds, quantile};
use crate::{
    cli::cluster::BenchBalanceArgs,
    failure::{Failure, Outcome},
    output::{Output, progress::Work},
};

/// What was measured; the counts are of the last plan.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Report {
    hosts: u32,
    vms: u32,
    rounds: u32,
    hot_percent: u32,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    /// Remembering one sample of every host and VM.
    observe_p50_ms: f64,
    hotspots: usize,
    moves: usize,
    /// Of the moves those that wait for another: one for each swap of two.
    waiting: usize,
    resizes: usize,
    unmet: usize,
    /// What hosts are overloaded by in all: 1000 is one host.
    overload_before_permille: u32,
    overload_after_permille: u32,
    /// Whether a plan ended since it had taken as many looks as it may.
    cut_short: bool,
}

/// Measures, and prints the report.
pub(crate) fn balance(args: &BenchBalanceArgs, output: Output) -> Outcome {
    let report = measure(args)?;
    output.show(&report, people)
}

fn measure(args: &BenchBalanceArgs) -> Result<Report, Failure> {
    let work = Work::new();
    let mut scene = Scene::new(args, &mut |done, of| {
        work.set(done, of, || "filling the hosts".into());
    })
    .map_err(|error| Failure::new(error.to_string()).context("cannot make up a cluster"))?;
    for _ in 0..scene::SAMPLES {
        scene.observe();
    }
    let (mut times, mut observed) = (Vec::new(), Vec::new());
    let mut last = Plan::default();
    for round in 0..args.rounds {
        scene.live();
        let begin = Instant::now();
        scene.observe();
        observed.push(begin.elapsed());
        let begin = Instant::now();
        last = scene.plan();
        times.push(begin.elapsed());
        work.set(round.into(), args.rounds.into(), || "planning".into());
    }
    times.sort_unstable();
    observed.sort_unstable();
    let is_move = |action: &Action| matches!(action, Action::Move { .. });
    let moves = last.steps.iter().filter(|step| is_move(&step.action)).count();
    Ok(Report {
        hosts: args.hosts,
        vms: args.vms,
        rounds: args.rounds,
        hot_percent: args.hot_percent,
        p50_ms: milliseconds(quantile(&times, 50)),
        p99_ms: milliseconds(quantile(&times, 99)),
        max_ms: milliseconds(quantile(&times, 100)),
        observe_p50_ms: milliseconds(quantile(&observed, 50)),
        hotspots: last.hotspots.len(),
        moves,
        waiting: last.steps.iter().filter(|step| !step.after.is_empty()).count(),
        resizes: last.steps.len() - moves,
        unmet: last.unmet.len(),
        overload_before_permille: last.overload_before.0,
        overload_after_permille: last.overload_after.0,
        cut_short: last.cut_short,
    })
}

fn people(output: &Output, report: &Report) -> String {
    let Report { p50_ms, p99_ms, max_ms, moves, resizes, unmet, .. } = report;
    let before = f64::from(report.overload_before_permille) / 1000.0;
    let after = f64::from(report.overload_after_permille) / 1000.0;
    output.facts(&[
        ("cluster", format!("{} hosts, {} VMs", report.hosts, report.vms)),
        ("a plan", format!("p50 {p50_ms:.1} ms, p99 {p99_ms:.1} ms, at most {max_ms:.1} ms")),
        ("a sample", format!("{:.1} ms for all of them", report.observe_p50_ms)),
        ("hotspots", format!("{}, of which {unmet} are not, or not wholly, met", report.hotspots)),
        (
            "steps",
            format!(
                "{moves} moves, {} of them in swaps' second part; {resizes} limits",
                report.waiting
            ),
        ),
        ("overload", format!("{before:.1} hosts before, {after:.1} after")),
    ])
}

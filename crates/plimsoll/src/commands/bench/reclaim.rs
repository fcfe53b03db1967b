//! `plimsoll bench reclaim`: how long a plan for one host takes.
//!
//! What is timed is [`plan`] alone; what the VMs are seen to do is made up beforehand ([`Guests`]).

mod guests;

use std::time::{Duration, Instant};

use guests::Guests;
use plimsoll_model::Bytes;
use plimsoll_reclaim::{Memory, Plan, State, plan};
use serde::Serialize;

use super::{microseconds, quantile};
use crate::{
    cli::cluster::BenchReclaimArgs,
    failure::Outcome,
    output::{Output, progress::Work},
};

/// What was measured.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Report {
    vms: u32,
    rounds: u32,
    promised_percent: u32,
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
    /// How many rounds found the host in each state.
    high: u32,
    soft: u32,
    hard: u32,
    low: u32,
    /// In how many rounds something was needed, and in how many of them used pages were taken.
    needed: u32,
    used: u32,
    /// In how many rounds not all that was needed could be had.
    short: u32,
    /// How many sizes changed in a round, in the mean.
    changed: f64,
}

/// Measures, and prints the report.
pub(crate) fn reclaim(args: &BenchReclaimArgs, output: Output) -> Outcome {
    output.show(&measure(args), people)
}

fn measure(args: &BenchReclaimArgs) -> Report {
    let work = Work::new();
    let mut guests = Guests::new(args.vms, args.promised_percent, args.seed);
    let mut memory = Memory::default();
    let warm_up = args.rounds / 10;
    let mut report = Report {
        vms: args.vms,
        rounds: args.rounds,
        promised_percent: args.promised_percent,
        ..Report::default()
    };
    let (mut times, mut changed) = (Vec::new(), 0);
    for round in 0..warm_up + args.rounds {
        guests.live();
        let (host, vms) = (guests.host(), guests.views());
        let begin = Instant::now();
        let (plan, next) = plan(&host, &vms, &memory);
        let took = begin.elapsed();
        let sizes = vms.iter().zip(&plan.targets);
        let changes = sizes.filter(|(vm, target)| vm.allocated.memory != target.memory).count();
        memory = next;
        guests.follow(&plan.targets);
        if round >= warm_up {
            times.push(took);
            changed += changes;
            report.count(&plan);
        }
        work.set(round.into(), (warm_up + args.rounds).into(), || "planning".into());
    }
    times.sort_unstable();
    report.time(&times, changed);
    report
}

impl Report {
    fn count(&mut self, plan: &Plan) {
        *match plan.state {
            State::High => &mut self.high,
            State::Soft => &mut self.soft,
            State::Hard => &mut self.hard,
            State::Low => &mut self.low,
        } += 1;
        self.needed += u32::from(plan.needed > Bytes::ZERO);
        self.used += u32::from(plan.used > Bytes::ZERO);
        self.short += u32::from(plan.shortfall > Bytes::ZERO);
    }

    fn time(&mut self, sorted: &[Duration], changed: usize) {
        self.p50_us = microseconds(quantile(sorted, 50));
        self.p99_us = microseconds(quantile(sorted, 99));
        self.max_us = microseconds(quantile(sorted, 100));
        self.changed = changed as f64 / f64::from(self.rounds);
    }
}

fn people(output: &Output, report: &Report) -> String {
    let Report { high, soft, hard, low, .. } = report;
    output.facts(&[
        ("VMs", format!("{}, promised {} % of the memory", report.vms, report.promised_percent)),
        (
            "a plan",
            format!(
                "p50 {:.0} us, p99 {:.0} us, at most {:.0} us",
                report.p50_us, report.p99_us, report.max_us
            ),
        ),
        ("rounds", format!("{}: {high} high, {soft} soft, {hard} hard, {low} low", report.rounds)),
        (
            "taken",
            format!(
                "in {} rounds memory was needed, in {} used pages were taken, in {} some lacked",
                report.needed, report.used, report.short
            ),
        ),
        ("changed", format!("{:.1} sizes a round", report.changed)),
    ])
}

//! `plimsoll bench placement`: how long one placement takes, beside a look at every host.
//!
//! What is timed as a placement is the decision and stating it: the index pays for its upkeep. The
//! scan is timed for the decision alone.

use std::time::{Duration, Instant};

use plimsoll_model::Policy;
use plimsoll_simulator::churn::{Churn, Mix};
use serde::Serialize;

use super::{microseconds, quantile};
use crate::{
    cli::cluster::{BenchMix, BenchPlacementArgs, BenchRules},
    failure::{Failure, Outcome},
    output::{Output, progress::Work},
};

/// What was measured of one policy.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    hosts: u32,
    mix: BenchMix,
    policy: Policy,
    constraints: BenchRules,
    requests: u32,
    p50_us: f64,
    p99_us: f64,
    /// Placements and departures together, in placements a second.
    per_second: f64,
    scan_p50_us: Option<f64>,
    speedup_p50: Option<f64>,
    /// What decisions read and search.
    bytes_per_host: usize,
    /// Names, labels and exact sums; VMs are not counted.
    inventory_bytes_per_host: usize,
    vms: usize,
    /// Requests for which no host had room.
    refused: u32,
    verified: u32,
    mismatches: u32,
}

/// Measures, and prints a report for each policy.
pub(crate) fn placement(args: &BenchPlacementArgs, output: Output) -> Outcome {
    let work = Work::new();
    let mix = match args.mix {
        BenchMix::Catalog => Mix::Catalog,
        BenchMix::Arbitrary => Mix::Arbitrary,
    };
    let (mut cluster, mut churn) = Churn::fill(args.hosts, mix, args.seed, &mut |done, of| {
        work.set(done, of, || "filling the hosts".into());
    });
    let mut mismatches = 0;
    for policy in &args.policy {
        let report = measure(args, *policy, &mut cluster, &mut churn, &work);
        mismatches += report.mismatches;
        if output.is_json() && args.policy.len() > 1 {
            output.json_line(&report)?;
        } else {
            output.show(&report, people)?;
        }
    }
    match mismatches {
        0 => Ok(()),
        some => Err(Failure::new(format!("{some} decisions differ from those of the scan"))),
    }
}

/// What was timed.
#[derive(Default)]
struct Times {
    placements: Vec<Duration>,
    scans: Vec<Duration>,
    departures: Duration,
    refused: u32,
    mismatches: u32,
}

fn measure(
    args: &BenchPlacementArgs,
    policy: Policy,
    cluster: &mut plimsoll_placement::Cluster,
    churn: &mut Churn,
    work: &Work,
) -> Report {
    let rules = args.constraints.into();
    // The policy makes itself at home first. What is verified comes last: each scan sweeps the
    // caches, which placements in a row share.
    let warm_up = args.requests / 4;
    let all = warm_up + args.requests + args.verify;
    let mut times = Times::default();
    for number in 0..all {
        let request = churn.request(rules);
        let scanned = (number >= warm_up + args.requests).then(|| {
            let begin = Instant::now();
            let scanned = cluster.find_by_scan(&request, policy);
            times.scans.push(begin.elapsed());
            scanned
        });
        let begin = Instant::now();
        let choice = cluster.find(&request, policy);
        if let Some(choice) = &choice {
            // It cannot fail: the host is there and the VM is new.
            let _ = cluster.occupy_devices(choice.host, &request, &choice.devices);
        }
        let placed = begin.elapsed();
        if choice.is_some() {
            churn.arrived(&request);
        }
        let begin = Instant::now();
        churn.depart(cluster);
        if let Some(scanned) = scanned {
            times.mismatches += u32::from(scanned != choice);
        } else if number >= warm_up {
            times.departures += begin.elapsed();
            times.placements.push(placed);
            times.refused += u32::from(choice.is_none());
        }
        work.set(number.into(), all.into(), || policy.to_string());
    }
    report(args, policy, cluster, churn, times)
}

fn report(
    args: &BenchPlacementArgs,
    policy: Policy,
    cluster: &plimsoll_placement::Cluster,
    churn: &Churn,
    mut times: Times,
) -> Report {
    let busy = times.placements.iter().sum::<Duration>() + times.departures;
    times.placements.sort_unstable();
    times.scans.sort_unstable();
    let p50_us = microseconds(quantile(&times.placements, 50));
    let p99_us = microseconds(quantile(&times.placements, 99));
    let scan_p50_us = (!times.scans.is_empty()).then(|| microseconds(quantile(&times.scans, 50)));
    let footprint = cluster.footprint();
    let hosts = usize::try_from(args.hosts).unwrap_or(1);
    Report {
        hosts: args.hosts,
        mix: args.mix,
        policy,
        constraints: args.constraints,
        requests: args.requests,
        p50_us,
        p99_us,
        per_second: f64::from(args.requests) / busy.as_secs_f64().max(f64::MIN_POSITIVE),
        scan_p50_us,
        speedup_p50: scan_p50_us.map(|scan| scan / p50_us.max(f64::MIN_POSITIVE)),
        bytes_per_host: footprint.search / hosts,
        inventory_bytes_per_host: footprint.inventory / hosts,
        vms: churn.vms(),
        refused: times.refused,
        verified: u32::try_from(times.scans.len()).unwrap_or(u32::MAX),
        mismatches: times.mismatches,
    }
}

fn people(output: &Output, report: &Report) -> String {
    let mut facts = vec![
        ("policy", format!("{}, {}", report.policy, report.constraints.describe())),
        ("hosts", format!("{} with {} VMs", report.hosts, report.vms)),
        ("a placement", format!("p50 {:.1} us, p99 {:.1} us", report.p50_us, report.p99_us)),
        ("with departures", format!("{:.0} placements a second", report.per_second)),
        (
            "memory",
            format!(
                "{} bytes a host for the search, {} for the inventory",
                report.bytes_per_host, report.inventory_bytes_per_host
            ),
        ),
    ];
    if let (Some(scan), Some(speedup)) = (report.scan_p50_us, report.speedup_p50) {
        facts.push(("a scan", format!("p50 {scan:.1} us, {speedup:.0} times as long")));
        facts.push((
            "verified",
            format!("{} decisions, {} differ from the scan", report.verified, report.mismatches),
        ));
    }
    output.facts(&facts)
}

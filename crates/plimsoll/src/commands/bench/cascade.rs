//! `plimsoll bench cascade`: what is left of a guest's throughput when half of its memory is taken, by
//! the cascade and by swap alone.
//!
//! On a lab of its own, with swap space that its agent sets up, two real VMs run the loads of
//! `plimsoll-workload`: `files`, most of whose memory is page cache, and `store`, all of whose memory
//! is in use. Each is deflated by turns, once by the cascade and once by the host alone, and measured
//! before and after: turn and turn about, so that a machine that is busy for a while is so for both.
//! What counts is the median over the rounds of *after* against the *before* next to it.
//!
//! Then `reclaim` is asked, with the numbers of both guests, from whom it would take as much.

mod choice;

use std::time::Duration;

use plimsoll_agent::config::{DeduplicationMode, SwapConfig};
use plimsoll_api::{
    Client,
    cluster::DeflationOutcome,
    v1::{CreateProjectRequest, CreateVmsRequest, VmRequest},
};
use plimsoll_model::{Bytes, Level, MilliCores, Name, Quota, Resources, VmSpec};
use serde::Serialize;

use self::choice::Choice;
use super::guest::Guest;
use crate::{
    cli::{
        cluster::{BenchCascadeArgs, BenchSwap},
        lab::{LabNameArgs, LabUpArgs},
    },
    failure::{Failure, OrFail as _, Outcome},
    image::LocalImage,
    lab::{down, layout::Lab, up},
    output::{Output, progress::Progress},
};

/// How much of its memory is taken of a VM, in percent.
const TAKEN: u8 = 50;
/// A VM has a minimum above which it may be cut: this part of what it was promised.
const LEAST_PART: u64 = 4;

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// What was swapped to.
    swap: BenchSwap,
    /// What each VM has.
    memory: Bytes,
    taken_percent: u8,
    rounds: u32,
    loads: Vec<LoadReport>,
    /// From whom `reclaim` would take as much.
    choice: Choice,
}

/// One load.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LoadReport {
    load: &'static str,
    /// Operations a second with all memory; the median.
    before_per_second: f64,
    cascade: Way,
    swap_alone: Way,
}

/// One way to take memory.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Way {
    /// Operations a second afterwards; the median.
    per_second: f64,
    /// That against what was just before, in percent; the median.
    kept_percent: f64,
    /// What the guest gave, in the last round.
    guest_gave: Bytes,
    /// What the host took without asking, in the last round.
    host_took: Bytes,
    /// What lay in swap space after the measurement, in the last round.
    swapped: Bytes,
}

/// Measures, and prints the report.
pub(crate) async fn cascade(args: &BenchCascadeArgs, output: Output) -> Outcome {
    crate::commands::lab::need_root()?;
    let report = measure(args).await?;
    output.show(&report, people)
}

fn people(output: &Output, report: &Report) -> String {
    let swap = match report.swap {
        BenchSwap::File => "a file on disk",
        BenchSwap::Zram => "zram",
    };
    let mut facts = vec![
        ("taken", format!("{} % of {}", report.taken_percent, report.memory)),
        ("swap space", swap.to_owned()),
        ("rounds", report.rounds.to_string()),
    ];
    for load in &report.loads {
        facts.push((load.load, format!("{:.1} operations/s before", load.before_per_second)));
        for (name, way) in [("  cascade", &load.cascade), ("  swap alone", &load.swap_alone)] {
            let Way { per_second, kept_percent, guest_gave, host_took, swapped } = way;
            facts.push((
                name,
                format!(
                    "{kept_percent:.1} % kept: {per_second:.1}/s; guest gave {guest_gave}, host took \
                     {host_took}, {swapped} in swap"
                ),
            ));
        }
    }
    let Choice { needed, files, store, .. } = &report.choice;
    facts.push(("reclaim", format!("of {needed}, {files} from `files` and {store} from `store`")));
    output.facts(&facts)
}

/// The lab's names.
fn lab_args(args: &BenchCascadeArgs) -> Outcome<LabUpArgs> {
    let size = Bytes(args.memory.get().saturating_mul(4));
    Ok(LabUpArgs {
        lab: LabNameArgs { name: "bench-cascade".parse()?, directory: args.directory.clone() },
        hosts: Some(1),
        cpu: None,
        memory: Some(Bytes(args.memory.get().saturating_mul(4))),
        disk: None,
        disk_bandwidth: None,
        disk_iops: None,
        network: None,
        image: vec![args.image.clone()],
        local_disks: false,
        swap: Some(match args.swap {
            BenchSwap::File => SwapConfig::File { size, directory: None },
            BenchSwap::Zram => SwapConfig::Zram { size },
        }),
        no_context: true,
        deduplication: DeduplicationMode::default(),
    })
}

async fn measure(args: &BenchCascadeArgs) -> Outcome<Report> {
    let progress = Progress::new("bringing a lab up");
    let image = LocalImage::name_in(&args.image).or_fail(|| {
        format!("{} is no image: build it with `images/build tiny`", args.image.display())
    })?;
    let wanted = lab_args(args)?;
    let lab = Lab::hold(&wanted.lab, true)?;
    if lab.load()?.is_some() {
        // Left by a run that was cut off.
        take_down(&lab, &progress)?;
    }
    let measured = async {
        up::up(&lab, &wanted, &progress).await?;
        let client = up::connect(&lab).await?;
        run(args, client, image, &progress).await
    }
    .await;
    let down = take_down(&lab, &progress);
    let report = measured?;
    down.map(|()| report)
}

pub(super) fn take_down(lab: &Lab, progress: &Progress) -> Outcome {
    down::down(lab, progress)?;
    down::purge(lab)
}

async fn run(
    args: &BenchCascadeArgs,
    client: Client,
    image: Name,
    progress: &Progress,
) -> Outcome<Report> {
    let project: Name = "bench".parse()?;
    let request =
        CreateProjectRequest { name: project.clone(), quota: Quota::default(), credits: None };
    client.create_project(&request).await?;
    let mut guests = Vec::new();
    for load in ["files", "store"] {
        progress.set(format!("booting the VM {load}"));
        let name: Name = load.parse()?;
        client.create_vms(&project, &vm_request(args, name.clone(), image.clone())).await?;
        guests.push(Guest::new(client.clone(), project.clone(), name));
    }
    let [files, store] = guests.as_slice() else { return Err(Failure::new("two VMs")) };
    let (memory, mut loads) = (args.memory.get(), Vec::new());
    let mib = |bytes: u64| format!("{}M", bytes >> 20);
    for (load, guest, arguments) in [
        // Many times what the cache can hold: it is full, and turns over.
        ("files", files, ["--size".to_owned(), mib(memory * 4)]),
        // Nearly all that a guest of this size has.
        ("store", store, ["--size".to_owned(), mib(memory / 4 * 3)]),
    ] {
        progress.set(format!("preparing {load}"));
        guest.begin(load, &arguments).await?;
        loads.push(measure_load(args, load, guest, progress).await?);
        if load == "files" {
            guest.pause().await?;
        }
    }
    files.resume().await?;
    progress.set("asking reclaim");
    let needed = Bytes(memory * u64::from(TAKEN) / 100);
    let choice = Choice::of(files, store, needed).await?;
    Ok(Report {
        swap: args.swap,
        memory: args.memory,
        taken_percent: TAKEN,
        rounds: args.rounds,
        loads,
        choice,
    })
}

fn vm_request(args: &BenchCascadeArgs, name: Name, image: Name) -> CreateVmsRequest {
    let resources = Resources {
        cpu: MilliCores::cores(1),
        memory: args.memory,
        disk: Bytes(args.memory.get().saturating_mul(6)),
        ..Resources::default()
    };
    let spec = VmSpec::new(resources, image);
    let request = VmRequest { name, count: None, split: None, spec };
    CreateVmsRequest { requests: vec![request], all_or_nothing: true, policy: None }
}

/// What came of one way in one round.
struct Sample {
    before: f64,
    after: f64,
    outcome: DeflationOutcome,
    swapped: Bytes,
}

async fn measure_load(
    args: &BenchCascadeArgs,
    load: &'static str,
    guest: &Guest,
    progress: &Progress,
) -> Outcome<LoadReport> {
    let window = Duration::from_secs(args.seconds);
    let (mut cascade, mut swap_alone) = (Vec::new(), Vec::new());
    for round in 1..=args.rounds {
        for (what, from, samples) in [
            ("the cascade", Level::Application, &mut cascade),
            ("swap alone", Level::Host, &mut swap_alone),
        ] {
            progress.set(format!("{load}, round {round} of {}: {what}", args.rounds));
            guest.settle(window).await;
            let before = guest.throughput(window).await?;
            let outcome = guest.deflate(TAKEN, from).await?;
            guest.settle(window / 2).await;
            let after = guest.throughput(window).await?;
            let swapped = guest.swapped().await?;
            guest.inflate().await?;
            samples.push(Sample { before, after, outcome, swapped });
        }
    }
    let befores = cascade.iter().chain(&swap_alone).map(|sample| sample.before).collect();
    Ok(LoadReport {
        load,
        before_per_second: rounded(median(befores)),
        cascade: way(&cascade),
        swap_alone: way(&swap_alone),
    })
}

fn way(samples: &[Sample]) -> Way {
    let Some(last) = samples.last() else { return Way::default() };
    let by = |wanted: Level| {
        let level = last.outcome.levels.iter().find(|level| level.level == wanted);
        level.map_or(Bytes::ZERO, |level| level.gave.memory)
    };
    let kept = |sample: &Sample| sample.after / sample.before.max(f64::MIN_POSITIVE) * 100.0;
    Way {
        per_second: rounded(median(samples.iter().map(|sample| sample.after).collect())),
        kept_percent: rounded(median(samples.iter().map(kept).collect())),
        guest_gave: by(Level::Guest),
        host_took: by(Level::Host),
        swapped: last.swapped,
    }
}

/// The middle value; of two, their mean.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle.wrapping_sub(1)), values.get(middle)) {
        (Some(below), Some(value)) if values.len().is_multiple_of(2) => {
            f64::midpoint(*below, *value)
        }
        (_, Some(value)) => *value,
        _ => 0.0,
    }
}

pub(super) fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_found() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!((median(vec![7.0]) - 7.0).abs() < 1e-9);
        assert!(median(Vec::new()).abs() < 1e-9);
    }
}

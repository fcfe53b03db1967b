//! `plimsoll vm profile`: how well a VM performs with less, measured.
//!
//! ```text
//!   all that it is promised --run--> 85 % --run--> 70 % --run--> ... least --> inflated again
//! ```
//!
//! Each step is a deflation like a user's own, and the workload is run in the guest by its agent. The
//! curve is what [`plimsoll_model::UtilityCurve`] allows: it never falls as the allocation rises, so
//! a step at which the VM did better than with more counts no more than that one did.

mod page;

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use fs_err as fs;
use plimsoll_api::{
    agent::ExecRequest,
    v1::{DeflateVmRequest, SetVmRequest, VmView},
};
use plimsoll_model::{
    Amount, Elasticity, Fraction, Level, Name, UtilityCurve, UtilityCurves, UtilityPoint, VmPhase,
};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    cli::{
        values::milliseconds,
        vm::{Metric, ProfileArgs, ProfiledResource},
    },
    config::Connection,
    failure::{Failure, OrFail as _, Outcome},
    output::{self, Output, Tone, progress::Progress},
};

/// What giving back what was taken may take.
const INFLATE_LIMIT: Duration = Duration::from_secs(60);

/// One measurement.
#[derive(Clone, Copy, Debug, Serialize)]
struct Step {
    /// Of what is promised.
    allocation: Fraction,
    /// Operations in a second, or microseconds of one in a hundred operations.
    measured: f64,
    /// Of the best.
    utility: Fraction,
}

/// All of them.
#[derive(Debug, Serialize)]
struct Profile {
    vm: Name,
    resource: ProfiledResource,
    from: Level,
    metric: Metric,
    workload: String,
    steps: Vec<Step>,
    curve: UtilityCurve,
    /// Whether the curve is part of the VM's class now.
    stored: bool,
    /// Why the steps end before the least, or why nothing was stored.
    note: Option<String>,
}

/// Measures a VM, and keeps its curve.
pub(crate) async fn profile(
    args: &ProfileArgs,
    connection: &Connection,
    output: Output,
) -> Outcome {
    let project = connection.project()?;
    let name = &args.name;
    let vm = connection.client.vm(&project, name).await;
    let vm = vm.or_fail(|| format!("cannot profile vm `{name}`"))?;
    if vm.state != VmPhase::Running {
        return Err(Failure::new(format!("vm `{name}` does not run"))
            .hint(format!("start it with `plimsoll vm start {name}`")));
    }
    if vm.deflation.is_some() {
        return Err(Failure::new(format!("vm `{name}` is deflated already"))
            .hint(format!("give it back what was taken with `plimsoll vm inflate {name}`")));
    }
    let bench = Bench { args, connection, project: &project };
    let progress = Progress::new(format!("profiling vm {name}"));
    let measured = tokio::select! {
        measured = bench.measure(&vm, &progress) => measured,
        _ = tokio::signal::ctrl_c() => Err(Failure::new("interrupted")),
    };
    // Whatever came of it, the VM gets back what was taken.
    progress.set(format!("inflating vm {name}"));
    bench.inflate(&progress).await?;
    drop(progress);
    let (measurements, note) = measured?;
    let mut profile = evaluate(args, measurements, note)?;
    if !args.no_store {
        bench.store(&vm, &mut profile).await?;
    }
    if let Some(path) = &args.html {
        fs::write(path, page::html(&profile)).or_fail(|| "cannot write the page".to_owned())?;
    }
    output.show(&profile, print)
}

/// A VM under measurement.
struct Bench<'a> {
    args: &'a ProfileArgs,
    connection: &'a Connection,
    project: &'a Name,
}

impl Bench<'_> {
    /// Pairs of an allocation and what was measured with it, from all that is promised down; and
    /// why there are no more.
    async fn measure(
        &self,
        vm: &VmView,
        progress: &Progress,
    ) -> Outcome<(Vec<(Fraction, f64)>, Option<String>)> {
        let args = self.args;
        let mut measured = vec![(Fraction::ONE, self.best_of_runs(progress, 100).await?)];
        for step in 1..=args.steps {
            let taken = u32::from(100 - args.least) * u32::from(step) / u32::from(args.steps);
            let percent = u8::try_from(taken).unwrap_or(u8::MAX);
            progress.set(format!("taking {percent} % of its {}", args.resource.as_str()));
            let left = self.deflate(vm, percent).await?;
            if measured.last().is_some_and(|(before, _)| left >= *before) {
                let note = format!("no more than {} % could be taken", percent_of(left, true));
                return Ok((measured, Some(note)));
            }
            let done = self.best_of_runs(progress, percent_of(left, false)).await?;
            measured.push((left, done));
        }
        Ok((measured, None))
    }

    /// Deflates the VM, and tells the share that it has left.
    async fn deflate(&self, vm: &VmView, percent: u8) -> Outcome<Fraction> {
        let args = self.args;
        let (memory_percent, cpu_percent) = match args.resource {
            ProfiledResource::Memory => (percent, 0),
            ProfiledResource::Cpu => (0, percent),
        };
        let request = DeflateVmRequest {
            memory_percent,
            cpu_percent,
            within_ms: milliseconds(args.within),
            from: args.from.into(),
        };
        let progress = Progress::new(String::new());
        let outcome =
            super::vm::deflated(self.connection, self.project, &vm.name, &request, &progress)
                .await?;
        let Amount { memory, cpu } = outcome.wanted.saturating_sub(outcome.missing);
        Ok(match args.resource {
            ProfiledResource::Memory => {
                let promised = vm.resources.memory;
                Fraction::of(promised.saturating_sub(memory).get(), promised.get())
            }
            ProfiledResource::Cpu => {
                let promised = vm.resources.cpu;
                Fraction::of(promised.saturating_sub(cpu).get(), promised.get())
            }
        })
    }

    /// Runs the workload as often as asked for: whatever else the machine does only makes it worse.
    async fn best_of_runs(&self, progress: &Progress, percent: u32) -> Outcome<f64> {
        let mut best: Option<f64> = None;
        for run in 1..=self.args.rounds {
            progress.set(format!("{percent} %, run {run} of {}", self.args.rounds));
            let done = self.run().await?;
            best = Some(match (best, self.args.metric) {
                (None, _) => done,
                (Some(best), Metric::Throughput) => best.max(done),
                (Some(best), Metric::Latency) => best.min(done),
            });
        }
        best.ok_or_else(|| Failure::usage("--rounds 0 measures nothing"))
    }

    async fn run(&self) -> Outcome<f64> {
        let Self { args, connection, project } = self;
        let argv = ["sh", "-c", &args.workload].map(str::to_owned).to_vec();
        let request =
            ExecRequest { argv, stdin: String::new(), timeout_ms: milliseconds(args.timeout) };
        let began = Instant::now();
        let failed = || format!("cannot run the workload in vm `{}`", args.name);
        let response =
            connection.client.exec(project, &args.name, &request).await.or_fail(failed)?;
        let took = began.elapsed();
        if response.timed_out || response.exit_code != Some(0) {
            let how = match (response.timed_out, response.exit_code, response.signal) {
                (true, ..) => format!("did not end within {:?}", args.timeout),
                (_, Some(code), _) => format!("ended with {code}"),
                (_, None, signal) => format!("was ended by signal {}", signal.unwrap_or(0)),
            };
            let errors = STANDARD.decode(&response.stderr).unwrap_or_default();
            let errors = String::from_utf8_lossy(&errors);
            let failure = Failure::new(format!("the workload {how}"));
            return Err(match errors.lines().last() {
                Some(line) => failure.detail("it wrote", output::tame(line)),
                None => failure,
            });
        }
        let text = STANDARD.decode(&response.stdout).unwrap_or_default();
        reading(&String::from_utf8_lossy(&text), args.metric, took)
    }

    async fn inflate(&self, progress: &Progress) -> Outcome {
        let name = &self.args.name;
        let what = || format!("cannot inflate vm `{name}`");
        let vm = self.connection.client.inflate_vm(self.project, name).await.or_fail(what)?;
        let wanted = [(name.clone(), super::wait::Wanted::Generation(vm.generation))];
        let deadline = std::time::Instant::now() + INFLATE_LIMIT;
        super::wait::until_true(self.connection, self.project, &wanted, deadline, progress).await?;
        Ok(())
    }

    /// Makes the curve part of the VM's class, if that has any.
    async fn store(&self, vm: &VmView, profile: &mut Profile) -> Outcome {
        let Elasticity::Deflatable { memory_min, cpu_min, shares, utility } =
            vm.spec.elasticity.clone()
        else {
            profile.note = Some(format!(
                "not stored: vm `{0}` is {1}, and only a deflatable one is cut by its curves \
                 (`plimsoll vm set {0} --class deflatable`)",
                vm.name,
                vm.spec.elasticity.class()
            ));
            return Ok(());
        };
        let mut curves: UtilityCurves = utility.unwrap_or_default();
        match profile.resource {
            ProfiledResource::Memory => curves.memory = Some(profile.curve.clone()),
            ProfiledResource::Cpu => curves.cpu = Some(profile.curve.clone()),
        }
        let utility = Some(curves);
        let elasticity = Elasticity::Deflatable { memory_min, cpu_min, shares, utility };
        let request = SetVmRequest { elasticity: Some(elasticity), ..SetVmRequest::default() };
        let what = || format!("cannot store the curve of vm `{}`", vm.name);
        self.connection.client.set_vm(self.project, &vm.name, &request).await.or_fail(what)?;
        profile.stored = true;
        Ok(())
    }
}

/// A share in whole percent; with `taken`, what is missing from the whole.
fn percent_of(share: Fraction, taken: bool) -> u32 {
    let percent = share.get() / 10_000;
    if taken { 100 - percent.min(100) } else { percent }
}

/// What a workload says of itself in its last line of JSON: `per_second` and `p99_us`, as
/// `plimsoll-workload` prints them. One that says nothing has done one operation in all its time.
fn reading(text: &str, metric: Metric, took: Duration) -> Outcome<f64> {
    let last = text.lines().rev().find_map(|line| {
        serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(line).ok()
    });
    let key = match metric {
        Metric::Throughput => "per_second",
        Metric::Latency => "p99_us",
    };
    let said = last.as_ref().and_then(|line| line.get(key)).and_then(serde_json::Value::as_f64);
    let seconds = took.as_secs_f64().max(1e-6);
    let measured = match (said, metric) {
        (Some(said), _) => said,
        (None, Metric::Throughput) => 1.0 / seconds,
        (None, Metric::Latency) => seconds * 1e6,
    };
    if measured.is_finite() && measured > 0.0 {
        return Ok(measured);
    }
    Err(Failure::new(format!("the workload says that its {key} is {measured}"))
        .hint("a profile needs a number above 0"))
}

/// From measurements, the one with all that is promised first, to a curve.
fn evaluate(
    args: &ProfileArgs,
    measurements: Vec<(Fraction, f64)>,
    note: Option<String>,
) -> Outcome<Profile> {
    let best = measurements.first().map_or(1.0, |(_, measured)| *measured);
    let mut ceiling = Fraction::ONE;
    let mut steps = Vec::with_capacity(measurements.len());
    for (allocation, measured) in measurements {
        let share = match args.metric {
            Metric::Throughput => measured / best,
            Metric::Latency => best / measured,
        };
        let share = Fraction::try_from(share.clamp(0.0, 1.0)).unwrap_or(Fraction::ZERO);
        ceiling = ceiling.min(share);
        steps.push(Step { allocation, measured, utility: ceiling });
    }
    let points = steps
        .iter()
        .rev()
        .map(|step| UtilityPoint { allocation: step.allocation, utility: step.utility });
    let curve = UtilityCurve::new(points.collect()).map_err(|error| {
        Failure::new("the measurements make no curve")
            .context(error.to_string())
            .hint("with --from host pages go to swap: `plimsoll doctor` tells whether there is any")
    })?;
    Ok(Profile {
        vm: args.name.clone(),
        resource: args.resource,
        from: args.from.into(),
        metric: args.metric,
        workload: args.workload.clone(),
        steps,
        curve,
        stored: false,
        note,
    })
}

/// A profile for people: a line for each step, with a bar as long as the VM is useful.
fn print(output: &Output, profile: &Profile) -> String {
    const WIDTH: u32 = 40;
    let measured = match profile.metric {
        Metric::Throughput => "PER SECOND",
        Metric::Latency => "P99 US",
    };
    let mut table = output.table(&["ALLOCATION", measured, "UTILITY", ""]);
    for step in &profile.steps {
        let bar = "█".repeat(usize::try_from(step.utility.get() * WIDTH / 1_000_000).unwrap_or(0));
        table.add_row([
            output.cell(format!("{} %", percent_of(step.allocation, false)), Tone::Plain),
            output.cell(format!("{:.1}", step.measured), Tone::Plain),
            output.cell(format!("{} %", percent_of(step.utility, false)), Tone::Plain),
            output.cell(bar, Tone::Good),
        ]);
    }
    let mut text = output.finish(table);
    if profile.stored {
        text.push_str("\nIts host cuts it by this curve from now on.\n");
    }
    if let Some(note) = &profile.note {
        text.push_str(&format!("\n{note}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::vm::DeflateFrom;

    fn args(metric: Metric) -> ProfileArgs {
        ProfileArgs {
            name: "db".parse().unwrap(),
            resource: ProfiledResource::Memory,
            workload: "run <it>".to_owned(),
            from: DeflateFrom::Guest,
            metric,
            steps: 3,
            least: 25,
            rounds: 1,
            within: Duration::from_secs(5),
            timeout: Duration::from_secs(60),
            html: None,
            no_store: true,
        }
    }

    fn share(percent: u32) -> Fraction {
        Fraction::millionths(percent * 10_000)
    }

    #[test]
    fn measurements_become_a_curve_that_never_falls() {
        let measured =
            vec![(share(100), 50.0), (share(75), 48.0), (share(50), 49.0), (share(25), 10.0)];
        let profile = evaluate(&args(Metric::Throughput), measured, None).unwrap();
        let utilities: Vec<u32> =
            profile.curve.points().iter().map(|point| point.utility.get() / 10_000).collect();
        assert_eq!(utilities, [20, 96, 96, 100]);
        assert_eq!(profile.curve.at(share(50)), share(96));
        let text = print(&Output::plain(), &profile);
        assert!(text.contains("75 %") && text.contains("48.0") && text.contains("96 %"), "{text}");

        let measured = vec![(share(100), 2.0), (share(50), 4.0)];
        let profile = evaluate(&args(Metric::Latency), measured, None).unwrap();
        assert_eq!(profile.curve.at(share(50)), share(50), "twice as slow");
        let page = page::html(&profile);
        assert!(page.contains("run &lt;it&gt;") && !page.contains("<it>"), "{page}");

        evaluate(&args(Metric::Latency), vec![(share(100), 1.0)], None).unwrap_err();
    }

    #[test]
    fn a_workload_is_read_by_its_last_line_or_by_its_time() {
        let text =
            "noise\n{\"per_second\": 3}\n{\"event\":\"done\",\"per_second\":12.5,\"p99_us\":80}\n";
        let second = Duration::from_secs(2);
        assert!((reading(text, Metric::Throughput, second).unwrap() - 12.5).abs() < 1e-9);
        assert!((reading(text, Metric::Latency, second).unwrap() - 80.0).abs() < 1e-9);
        assert!((reading("", Metric::Throughput, second).unwrap() - 0.5).abs() < 1e-9);
        assert!((reading("[1]", Metric::Latency, second).unwrap() - 2e6).abs() < 1e-3);
        for text in ["{\"per_second\": 0}", "{\"per_second\": -1}"] {
            assert!(reading(text, Metric::Throughput, second).is_err(), "{text}");
        }
    }
}

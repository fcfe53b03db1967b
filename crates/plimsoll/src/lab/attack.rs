//! Shows the side channel of page deduplication on a lab of its own, and that it is closed by default.
//!
//! Two real guests of two projects on one host. The victim holds some sets of pages and others not,
//! by a coin for each; the attacker, from inside its own guest and with nothing but its own memory,
//! says of each set whether the victim holds it (`plimsoll-workload probe`). Each set is a trial, with
//! contents of its own: several are tried between two passes of the scanner. Once with merging forced
//! between projects, once as hosts are configured by default.
//!
//! Whatever ends the command, the lab is taken down and deleted.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use plimsoll_agent::{config::DeduplicationMode, ksm};
use plimsoll_api::{
    Client,
    agent::ExecRequest,
    deduplication::Merging,
    v1::{CreateProjectRequest, CreateVmsRequest, VmRequest, VmView},
};
use plimsoll_model::{Bytes, MilliCores, Name, Quota, Resources, VmSpec};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    down,
    layout::Lab,
    up::{self, connect},
};
use crate::{
    cli::lab::{AttackArgs, AttackHalf, LabNameArgs, LabUpArgs},
    commands::wait::{Wanted, until_true},
    config::Connection,
    failure::{Failure, OrFail as _, Outcome},
    image::LocalImage,
    output::{Output, Tone, progress::Progress},
};

/// The lab's name: one attack at a time on a machine.
const LAB: &str = "dedup-attack";
/// Trials between two rounds of loading.
const TRIALS_OF_A_ROUND: u32 = 25;
/// What a set holds, in bytes.
const SET: u64 = 128 << 10;
/// What the attacker loads besides: more than its guest has lying free that the host has given it
/// already, so that its VM grows and the scanner begins to look.
const BALLAST: u64 = 96 << 20;
/// How long two guests may take to boot on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// What the guests' programs may take beside the waiting.
const PROGRAM_LIMIT: Duration = Duration::from_secs(90);

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Attack {
    seed: u64,
    pages_of_a_set: u64,
    trials_of_a_round: u32,
    /// How long the attacker waits for the scanner, in seconds.
    wait_s: u64,
    halves: Vec<Half>,
}

/// What came of it with one configuration of the host.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Half {
    half: AttackHalf,
    /// Whether each VM was merged, and if not, why.
    victim: Merging,
    attacker: Merging,
    trials: u32,
    /// Trials in which the victim held the set.
    held: u32,
    /// Trials in which the attacker was right.
    right: u32,
    accuracy_percent: f64,
    /// The median of what a write took, in nanoseconds: to sets that the victim held, to those that it
    /// did not, and to pages that nobody else could have.
    held_ns: Option<u64>,
    not_held_ns: Option<u64>,
    own_ns: Option<u64>,
    /// What the host saved by merging at the end: that it merges is no question in either half.
    saved: Bytes,
    seconds: f64,
}

/// A line of what the attacker's program says.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    Ready,
    Set { seed: u64, held: bool, median_ns: u64 },
    Done { own_ns: u64 },
}

/// One trial.
#[derive(Clone, Copy, Debug)]
struct Trial {
    held: bool,
    guess: bool,
    ns: u64,
}

/// Runs the attack.
pub(crate) async fn run(args: &AttackArgs, output: Output) -> Outcome {
    let name: Name = LAB.parse()?;
    let args_of_lab = LabNameArgs { name, directory: args.directory.clone() };
    require(args)?;
    let halves = match args.only {
        Some(half) => vec![half],
        None => vec![AttackHalf::Forced, AttackHalf::Default],
    };
    let mut attack = Attack {
        seed: args.seed,
        pages_of_a_set: SET / 4096,
        trials_of_a_round: TRIALS_OF_A_ROUND,
        wait_s: args.wait.as_secs(),
        halves: Vec::new(),
    };
    for half in halves {
        let progress = Progress::new(format!("merging {}: bringing a lab up", half.as_str()));
        let lab = Lab::hold(&args_of_lab, true)?;
        // What a command that was killed has left.
        clear(&lab)?;
        let result = tokio::select! {
            result = attempt(&lab, &args_of_lab, args, half, &progress) => result,
            _ = tokio::signal::ctrl_c() => Err(Failure::new("interrupted")),
        };
        progress.set(format!("merging {}: taking the lab down", half.as_str()));
        let cleared = clear(&lab);
        let half = result?;
        cleared?;
        progress.say(&format!(
            "merging {}: right in {} of {} trials",
            half.half.as_str(),
            half.right,
            half.trials
        ));
        attack.halves.push(half);
    }
    output.show(&attack, render)
}

/// Refuses where it could not show anything.
fn require(args: &AttackArgs) -> Outcome {
    let what = || "cannot show the attack on this machine".to_owned();
    ksm::require_free(&ksm::Place::of_this_machine()).or_fail(what).map_err(|failure| {
        failure.hint("`plimsoll doctor` says what this machine has; other agents on it must end")
    })?;
    LocalImage::name_in(&args.image).map(|_| ())
}

/// Takes the lab down, if there is one, and deletes all of it.
fn clear(lab: &Lab) -> Outcome {
    if lab.load()?.is_some() {
        down::down(lab, &Progress::new("taking the lab down"))?;
    }
    down::purge(lab)
}

async fn attempt(
    lab: &Lab,
    name: &LabNameArgs,
    args: &AttackArgs,
    half: AttackHalf,
    progress: &Progress,
) -> Outcome<Half> {
    std::fs::create_dir_all(&lab.directory)?;
    let up_args = LabUpArgs {
        lab: name.clone(),
        hosts: Some(1),
        cpu: None,
        memory: None,
        disk: None,
        disk_bandwidth: None,
        disk_iops: None,
        network: None,
        image: vec![args.image.clone()],
        local_disks: true,
        swap: None,
        no_context: true,
        deduplication: match half {
            AttackHalf::Forced => DeduplicationMode::ForcedAcrossProjects,
            AttackHalf::Default => DeduplicationMode::Project,
        },
    };
    up::up(lab, &up_args, progress).await?;
    let client = connect(lab).await?;
    let image = LocalImage::name_in(&args.image)?;
    progress.set(format!("merging {}: starting the guests", half.as_str()));
    // The victim first: its project is the one that is merged by default.
    let victim = Guest::start(&client, "victim", &image, progress).await?;
    let attacker = Guest::start(&client, "attacker", &image, progress).await?;
    let mergings = (victim.merging().await?, attacker.merging().await?);
    let expected = match half {
        AttackHalf::Forced => (Merging::AcrossProjects, Merging::AcrossProjects),
        AttackHalf::Default => (Merging::WithinProject, Merging::OtherProject),
    };
    if mergings != expected {
        return Err(Failure::new("the VMs are not merged as they should be")
            .detail("victim", mergings.0.to_string())
            .detail("attacker", mergings.1.to_string()));
    }
    let began = Instant::now();
    let (trials, own) = rounds(&victim, &attacker, args, half, progress).await?;
    let hosts = client.hosts().await?.into_iter();
    let saved = hosts.filter_map(|host| Some(host.usage?.deduplication?.saved)).max();
    let time = began.elapsed();
    Ok(Half { saved: saved.unwrap_or_default(), ..Half::of(half, mergings, &trials, own, time) })
}

/// All rounds: the trials, and what a write to the attacker's own pages took in each round.
async fn rounds(
    victim: &Guest<'_>,
    attacker: &Guest<'_>,
    args: &AttackArgs,
    half: AttackHalf,
    progress: &Progress,
) -> Outcome<(Vec<Trial>, Vec<u64>)> {
    // The same coins with either configuration, and contents that were never there before.
    let mut coins = ChaCha8Rng::seed_from_u64(args.seed);
    let (mut trials, mut own) = (Vec::new(), Vec::new());
    let mut left = args.trials;
    while left > 0 {
        let count = left.min(TRIALS_OF_A_ROUND);
        left -= count;
        let first: u64 = coins.random::<u64>() >> 1;
        let held: Vec<bool> = (0..count).map(|_| coins.random()).collect();
        let seeds = (first..).zip(&held).filter_map(|(seed, held)| held.then_some(seed));
        progress.set(format!(
            "merging {}: trial {} of {}",
            half.as_str(),
            trials.len() + 1,
            args.trials
        ));
        victim.hold(&seeds.collect::<Vec<_>>()).await?;
        let (guesses, own_ns) = attacker.probe(first, count, args.wait).await?;
        victim.release().await?;
        own.push(own_ns);
        trials.extend(held.iter().zip(guesses).map(|(held, (guess, ns))| Trial {
            held: *held,
            guess,
            ns,
        }));
        let right = trials.iter().filter(|trial| trial.held == trial.guess).count();
        progress.say(&format!(
            "merging {}: {} trials, right in {right}",
            half.as_str(),
            trials.len()
        ));
    }
    Ok((trials, own))
}

impl Half {
    fn of(
        half: AttackHalf,
        (victim, attacker): (Merging, Merging),
        trials: &[Trial],
        own: Vec<u64>,
        time: Duration,
    ) -> Self {
        let count = |condition: &dyn Fn(&Trial) -> bool| {
            u32::try_from(trials.iter().filter(|trial| condition(trial)).count())
                .unwrap_or(u32::MAX)
        };
        let times = |held: bool| {
            median(trials.iter().filter(|trial| trial.held == held).map(|trial| trial.ns).collect())
        };
        let (all, right) = (count(&|_| true), count(&|trial| trial.held == trial.guess));
        Self {
            half,
            victim,
            attacker,
            trials: all,
            held: count(&|trial| trial.held),
            right,
            accuracy_percent: f64::from(right * 1000 / all.max(1)) / 10.0,
            held_ns: times(true),
            not_held_ns: times(false),
            own_ns: median(own),
            saved: Bytes::ZERO,
            seconds: (time.as_secs_f64() * 10.0).round() / 10.0,
        }
    }
}

fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

/// One of the two VMs.
struct Guest<'a> {
    client: &'a Client,
    /// Its own name and its project's.
    name: Name,
}

impl<'a> Guest<'a> {
    /// Makes a project with one VM, and waits until that has booted.
    async fn start(
        client: &'a Client,
        name: &str,
        image: &Name,
        progress: &Progress,
    ) -> Outcome<Self> {
        let name: Name = name.parse()?;
        let project =
            CreateProjectRequest { name: name.clone(), quota: Quota::default(), credits: None };
        client.create_project(&project).await?;
        let resources = Resources {
            cpu: MilliCores::cores(1),
            memory: Bytes::mib(256),
            disk: Bytes::gib(1),
            ..Resources::default()
        };
        let request = VmRequest {
            name: name.clone(),
            count: None,
            split: None,
            spec: VmSpec::new(resources, image.clone()),
        };
        let request =
            CreateVmsRequest { requests: vec![request], all_or_nothing: true, policy: None };
        client.create_vms(&name, &request).await?;
        let wanted = [(name.clone(), Wanted::Running)];
        let deadline = Instant::now() + BOOT_LIMIT;
        until_true(&Connection::of(client.clone()), &name, &wanted, deadline, progress).await?;
        Ok(Self { client, name })
    }

    /// How it is merged, as soon as its host has said so.
    async fn merging(&self) -> Outcome<Merging> {
        let deadline = Instant::now() + PROGRAM_LIMIT;
        loop {
            let vm: VmView = self.client.vm(&self.name, &self.name).await?;
            if let Some(part) = vm.deduplication {
                return Ok(part.merging);
            }
            if Instant::now() >= deadline {
                return Err(Failure::new(format!("its host says nothing about VM {}", self.name)));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Runs a shell command in it, and returns what that wrote.
    async fn shell(&self, command: String, limit: Duration) -> Outcome<String> {
        let request = ExecRequest {
            argv: vec!["sh".to_owned(), "-c".to_owned(), command],
            stdin: String::new(),
            timeout_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        };
        let what = || format!("the program in the guest of the {} failed", self.name);
        let answer = self.client.exec(&self.name, &self.name, &request).await.or_fail(what)?;
        let text = |text: &str| {
            STANDARD.decode(text).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        let (stdout, stderr) = (text(&answer.stdout)?, text(&answer.stderr)?);
        if answer.exit_code == Some(0) {
            return Ok(stdout);
        }
        let complaint: String = stderr.chars().filter(|c| !c.is_control()).take(300).collect();
        let failure = Failure::new(format!("it ended with {:?}: {complaint}", answer.exit_code));
        Err(failure.context(what()).hint("an image that was built before has no such program"))
    }

    /// Loads the sets of these seeds and keeps them.
    async fn hold(&self, seeds: &[u64]) -> Outcome {
        let seeds: Vec<String> = seeds.iter().map(ToString::to_string).collect();
        let command = format!(
            "for seed in {0}; do plimsoll-workload hold --seed $seed --size {SET} --seconds 0 \
             > /tmp/hold-$seed 2>&1 & done; \
             for seed in {0}; do until grep -q ready /tmp/hold-$seed; do sleep 0.1; done; done",
            seeds.join(" ")
        );
        self.shell(command, PROGRAM_LIMIT).await.map(|_| ())
    }

    /// Lets go of all sets.
    async fn release(&self) -> Outcome {
        let command = "killall plimsoll-workload; rm -f /tmp/hold-*; true".to_owned();
        self.shell(command, PROGRAM_LIMIT).await.map(|_| ())
    }

    /// Asks about so many sets: for each the guess and the time of a write, and the time of a write
    /// to its own pages.
    async fn probe(
        &self,
        first: u64,
        count: u32,
        wait: Duration,
    ) -> Outcome<(Vec<(bool, u64)>, u64)> {
        let command = format!(
            "plimsoll-workload probe --seed {first} --sets {count} --size {SET} \
             --ballast {BALLAST} --seconds {}",
            wait.as_secs()
        );
        let said = self.shell(command, wait + PROGRAM_LIMIT).await?;
        let (mut guesses, mut own) = (Vec::new(), 0);
        for line in said.lines() {
            match serde_json::from_str(line).or_fail(|| format!("the attacker said `{line}`"))? {
                Line::Set { seed, held, median_ns } if seed == first + guesses.len() as u64 => {
                    guesses.push((held, median_ns));
                }
                Line::Set { seed, .. } => {
                    return Err(Failure::new(format!("the attacker spoke of set {seed}")));
                }
                Line::Done { own_ns } => own = own_ns,
                Line::Ready => {}
            }
        }
        if guesses.len() != count as usize {
            return Err(Failure::new(format!("the attacker spoke of {} sets", guesses.len())));
        }
        Ok((guesses, own))
    }
}

fn render(output: &Output, attack: &Attack) -> String {
    let mut table = output.table(&[
        "MERGING",
        "TRIALS",
        "HELD",
        "RIGHT",
        "ACCURACY",
        "WRITE IF HELD",
        "IF NOT",
        "OWN PAGE",
        "HOST SAVES",
    ]);
    let time = |ns: Option<u64>| ns.map_or_else(|| "-".to_owned(), |ns| format!("{ns} ns"));
    for half in &attack.halves {
        let told = half.accuracy_percent >= 75.0;
        table.add_row([
            output.cell(half.half.describe(), Tone::Plain),
            output.cell(half.trials, Tone::Plain),
            output.cell(half.held, Tone::Plain),
            output.cell(half.right, Tone::Plain),
            output.cell(
                format!("{:.1} %", half.accuracy_percent),
                if told { Tone::Bad } else { Tone::Good },
            ),
            output.cell(time(half.held_ns), Tone::Plain),
            output.cell(time(half.not_held_ns), Tone::Plain),
            output.cell(time(half.own_ns), Tone::Plain),
            output.cell(Bytes::mib(half.saved.get() >> 20), Tone::Plain),
        ]);
    }
    format!(
        "{}\na guest that learns nothing is right as often as the coin falls on one side; \
         each set has {} pages, the attacker waits {} s\n",
        output.finish(table),
        attack.pages_of_a_set,
        attack.wait_s
    )
}

/// Where `images/build tiny` puts the image, seen from the repository.
pub(crate) fn default_image() -> PathBuf {
    ".build/images/tiny".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trials(outcomes: &[(bool, bool, u64)]) -> Vec<Trial> {
        outcomes
            .iter()
            .map(|(held, guess, ns)| Trial { held: *held, guess: *guess, ns: *ns })
            .collect()
    }

    #[test]
    fn accuracy_is_the_share_of_right_guesses() {
        let forced = Half::of(
            AttackHalf::Forced,
            (Merging::AcrossProjects, Merging::AcrossProjects),
            &trials(&[
                (true, true, 2000),
                (false, false, 90),
                (true, true, 2200),
                (false, true, 900),
            ]),
            vec![88, 91, 90],
            Duration::from_millis(61_234),
        );
        assert_eq!((forced.trials, forced.held, forced.right), (4, 2, 3));
        assert!((forced.accuracy_percent - 75.0).abs() < 1e-9);
        assert_eq!(
            (forced.held_ns, forced.not_held_ns, forced.own_ns),
            (Some(2200), Some(900), Some(90))
        );
        let none = Half::of(
            AttackHalf::Default,
            (Merging::WithinProject, Merging::OtherProject),
            &[],
            Vec::new(),
            Duration::ZERO,
        );
        assert_eq!((none.trials, none.held_ns), (0, None));
        let attack = Attack {
            seed: 1,
            pages_of_a_set: 32,
            trials_of_a_round: 25,
            wait_s: 10,
            halves: vec![forced, none],
        };
        insta::assert_snapshot!(render(&Output::plain(), &attack));
    }

    #[test]
    fn what_the_attacker_says_is_understood() {
        let line = r#"{"event":"set","load":"probe","seed":7,"held":true,"median_ns":1510}"#;
        let line: Line = serde_json::from_str(line).unwrap();
        assert!(matches!(line, Line::Set { seed: 7, held: true, median_ns: 1510 }));
        for line in [
            r#"{"event":"ready","load":"probe","seconds":1.5}"#,
            r#"{"event":"done","load":"probe","seconds":9.5,"own_ns":80,"pages":32}"#,
        ] {
            assert!(serde_json::from_str::<Line>(line).is_ok(), "{line}");
        }
    }
}

//! Whoever takes part in a move is killed at each of its steps, on a lab with a real guest.
//!
//! `PLIMSOLL_DEATHS` says how many of the cases are tried, in an order that the printed seed gives.

use std::time::{Duration, Instant};

use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

use super::{
    lab::Lab,
    migration::{PROJECT, sh, until_speaking},
    observer::{self, Observer, Run},
};

/// All is as it should be again within this.
const LIMIT: Duration = Duration::from_secs(60);
const VM: &str = "mover";
const STEPS: [&str; 5] = ["preparing", "copying_disk", "copying_memory", "switching", "arrived"];

const DESCRIPTION: &str = r#"
project = "ring"
[[vm]]
name = "mover"
image = "tiny"
resources = { cpu = "1", memory = "128MiB", disk = "64MiB" }
"#;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Manager,
    SourceAgent,
    TargetAgent,
    SourceQemu,
    TargetQemu,
}

const VICTIMS: [Victim; 5] = [
    Victim::Manager,
    Victim::SourceAgent,
    Victim::TargetAgent,
    Victim::SourceQemu,
    Victim::TargetQemu,
];

/// A move that is under way.
struct Move<'a> {
    lab: &'a Lab,
    observer: &'a Observer,
    vm: &'a str,
    from: String,
    to: &'static str,
}

impl Move<'_> {
    /// Its step now; the last one once it is over.
    fn step(&self) -> usize {
        let stage = self.lab.vm(PROJECT, VM)["migration"]["stage"].clone();
        match stage.as_str() {
            Some("preparing" | "waiting") => 0,
            Some("copying_disk") => 1,
            Some("copying_memory") => 2,
            Some("switching" | "post_copy") => 3,
            _ => STEPS.len() - 1,
        }
    }

    fn qemu(&self, host: &str) -> Option<Run> {
        let here = |run: &Run| run.vm == self.vm && run.host == host;
        self.observer.alive().into_iter().find(here)
    }

    /// Kills a QEMU as soon as it is there; none is once the move is over.
    fn kill_qemu(&self, host: &str) -> bool {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            if let Some(run) = self.qemu(host) {
                let since = observer::started(run.pid);
                return since.is_some_and(|since| observer::kill(run.pid, since));
            }
            if self.step() == STEPS.len() - 1 {
                break;
            }
        }
        false
    }

    fn kill(&self, victim: Victim) -> bool {
        match victim {
            Victim::Manager => self.lab.kill("manager"),
            Victim::SourceAgent => self.lab.kill(&self.from),
            Victim::TargetAgent => self.lab.kill(self.to),
            Victim::SourceQemu => return self.kill_qemu(&self.from),
            Victim::TargetQemu => return self.kill_qemu(self.to),
        }
        self.lab.heal();
        true
    }

    /// Whether one copy runs, where the manager says, and nothing else is left.
    fn is_over(&self) -> bool {
        let seen = self.lab.run(&["--json", "-p", PROJECT, "vm", "show", VM]);
        if seen.code != Some(0) {
            return false;
        }
        let seen = seen.json();
        let host = seen["host"].as_str().unwrap_or_default();
        let other = if host == self.from { self.to } else { &self.from };
        let qemus: Vec<Run> = self.observer.alive();
        let left = self.lab.directory().join("hosts").join(other).join("vms").join(self.vm);
        seen["migration"].is_null()
            && seen["state"] == "running"
            && !seen["guest"].is_null()
            && qemus.len() == 1
            && qemus[0].host == host
            && !left.exists()
            && tunnels(self.lab) == 0
    }
}

/// How many ends of tunnels the lab has.
pub(super) fn tunnels(lab: &Lab) -> usize {
    let listed = std::process::Command::new("pgrep").args(["-f", "vm-tunnel"]).output().unwrap();
    let pids = String::from_utf8_lossy(&listed.stdout).into_owned();
    let directory = lab.directory();
    let ours = |pid: &&str| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(directory.to_str().unwrap())
    };
    pids.lines().filter(ours).count()
}

fn boot(lab: &Lab) -> String {
    sh(lab, VM, "cat /proc/sys/kernel/random/boot_id")
}

#[test]
fn one_copy_runs_whoever_dies_and_whenever() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let count = number("PLIMSOLL_DEATHS").unwrap_or(5);
    let seed = number("PLIMSOLL_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let Some(lab) = Lab::start_with(2, &["--local-disks"]) else { return };
    lab.apply(DESCRIPTION);
    until_speaking(&lab, 1);
    sh(&lab, VM, "head -c 16777216 /dev/urandom > /data/a; md5sum /data/a > /data/sum; sync");
    let vm = lab.vm(PROJECT, VM)["id"].as_str().unwrap().to_owned();
    let observer = Observer::start(&lab, 4096);
    observer.expect_moves();
    let mut cases: Vec<(Victim, usize)> = VICTIMS
        .into_iter()
        .flat_map(|victim| (0..STEPS.len()).map(move |step| (victim, step)))
        .collect();
    println!("seed {seed}");
    cases.shuffle(&mut StdRng::seed_from_u64(seed));
    cases.truncate(usize::try_from(count).unwrap());
    for (victim, wanted) in cases {
        let before = boot(&lab);
        let from = lab.vm(PROJECT, VM)["host"].as_str().unwrap().to_owned();
        let to = if from == "host-1" { "host-2" } else { "host-1" };
        let limits = ["--bandwidth", "16MiB/s", "--no-wait"];
        let wish = [&["-p", PROJECT, "vm", "migrate", VM, "--to", to][..], &limits].concat();
        lab.ok(&wish);
        let moving = Move { lab: &lab, observer: &observer, vm: &vm, from: from.clone(), to };
        let deadline = Instant::now() + LIMIT;
        let mut step = moving.step();
        while step < wanted {
            assert!(Instant::now() < deadline, "it does not come to {}", STEPS[wanted]);
            step = moving.step();
        }
        let killed = moving.kill(victim);
        let began = Instant::now();
        lab.wait(&format!("{victim:?} killed at {}", STEPS[step]), LIMIT, || moving.is_over());
        let seen = lab.vm(PROJECT, VM);
        let outcome = &seen["last_migration"]["outcome"];
        println!(
            "{victim:?} {} at {}: {outcome}, whole again after {:.1} s",
            if killed { "killed" } else { "was gone" },
            STEPS[step],
            began.elapsed().as_secs_f64()
        );
        let stayed = seen["host"] == from.as_str();
        let its_own = match victim {
            Victim::SourceQemu => true,
            Victim::TargetQemu => !stayed,
            _ => false,
        };
        if !its_own {
            assert_eq!(boot(&lab), before, "it was booted anew");
        }
        assert_eq!(sh(&lab, VM, "md5sum -c -s /data/sum && echo whole"), "whole");
    }
    observer.assert_clean();
}

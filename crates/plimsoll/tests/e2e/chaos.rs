//! Users create, change and delete VMs while the manager and the agents are killed at random
//! instants: nothing is lost, nothing runs twice, nothing is left over.
//!
//! Each round has twelve users, each with one VM and a script of its own, and one thread that sends
//! SIGKILL. What was acknowledged must be true when the dust has settled; what was not may be true
//! or not, and the list tells. `PLIMSOLL_CHAOS_ROUNDS` says how many rounds, `PLIMSOLL_SEED` repeats
//! what was drawn (not how the threads interleave).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::Value;

use super::{
    lab::{Lab, Ran},
    observer::{self, Observer},
};

const USERS: usize = 12;
const PARTS: [&str; 4] = ["manager", "host-1", "host-2", "host-3"];
const HOST_MEMORY_MIB: u64 = 1536;
const PROJECT: &str = "chaos";
/// Within this everything must be as it was acknowledged.
const CONVERGES: Duration = Duration::from_secs(60);

/// What is known of something that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Known<T> {
    Is(T),
    /// The last request about it was not answered.
    Unknown,
}

impl<T: PartialEq> Known<T> {
    fn allows(&self, value: &T) -> bool {
        match self {
            Self::Is(known) => known == value,
            Self::Unknown => true,
        }
    }
}

/// One user's VM, as far as the user knows.
#[derive(Clone, Debug)]
struct Slot {
    name: String,
    group: Option<&'static str>,
    network: Option<&'static str>,
    exists: Known<bool>,
    id: Option<String>,
    power: Known<&'static str>,
    cpu: Known<&'static str>,
    told: Vec<String>,
    /// Requests that were acknowledged, refused, and not answered.
    answers: [usize; 3],
}

impl Slot {
    fn new(round: u32, user: usize) -> Self {
        let group = match user {
            0..=2 => Some("front"),
            3 | 4 => Some("data"),
            _ => None,
        };
        let network = match user % 3 {
            0 => Some("blue"),
            1 => Some("green"),
            _ => None,
        };
        Self {
            name: format!("r{round}-{user}"),
            group,
            network,
            exists: Known::Is(false),
            id: None,
            power: Known::Is("running"),
            cpu: Known::Is("500m"),
            told: Vec::new(),
            answers: [0; 3],
        }
    }

    /// Runs a command about the VM. True: acknowledged; false: refused; none: nobody knows.
    fn ask(&mut self, lab: &Lab, arguments: &[&str]) -> (Option<bool>, Ran) {
        let arguments: Vec<_> =
            ["--json", "-p", PROJECT, "vm"].iter().chain(arguments).copied().collect();
        let ran = lab.run(&arguments);
        let answer = match ran.code {
            Some(0) => Some(true),
            // The manager's own word that it did nothing.
            Some(1) if !ran.stderr.contains("internal") => Some(false),
            _ => None,
        };
        self.answers[answer.map_or(2, |done| usize::from(!done))] += 1;
        let last = ran.stderr.lines().take(2).collect::<Vec<_>>().join(" / ");
        self.told.push(format!("{}: {:?} {last}", arguments[4..].join(" "), ran.code));
        (answer, ran)
    }

    fn create(&mut self, lab: &Lab, observer: &Observer) {
        let name = self.name.clone();
        let mut arguments = vec!["create", &name, "--image", "tiny", "--memory", "128MiB"];
        arguments.extend(["--cpu", "500m", "--no-wait"]);
        if let Some(network) = self.network {
            arguments.extend(["--network", network]);
        }
        if let Some(group) = self.group {
            arguments.extend(["--group", group, "--anti-affinity", group]);
        }
        // Asked again until it is known, as users do.
        for _ in 0..40 {
            let (answer, ran) = self.ask(lab, &arguments);
            match answer {
                Some(true) => {
                    let id = ran.json()["vms"][0]["id"].as_str().unwrap().to_owned();
                    if let Some(group) = self.group {
                        observer.keep_apart(&id, group);
                    }
                    self.id = Some(id);
                    self.exists = Known::Is(true);
                    return;
                }
                Some(false) if ran.stderr.contains("exists") => {
                    self.exists = Known::Is(true);
                    return;
                }
                Some(false) => return,
                None => self.exists = Known::Unknown,
            }
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    /// Changes something, if there is something.
    fn change(&mut self, lab: &Lab, random: &mut StdRng) {
        if self.exists != Known::Is(true) {
            return;
        }
        let name = self.name.clone();
        match random.random_range(0..10) {
            0..4 => {
                let cpu = *["250m", "500m", "750m", "1"].choose(random).unwrap();
                match self.ask(lab, &["set", &name, "--cpu", cpu, "--no-wait"]).0 {
                    Some(true) => self.cpu = Known::Is(cpu),
                    Some(false) => {}
                    None => self.cpu = Known::Unknown,
                }
            }
            4..6 => self.power(lab, "stopped", &["stop", &name, "--grace", "1s", "--no-wait"]),
            6..9 => self.power(lab, "running", &["start", &name, "--no-wait"]),
            _ => {
                self.ask(lab, &["reboot", &name, "--no-wait"]);
            }
        }
    }

    fn power(&mut self, lab: &Lab, power: &'static str, arguments: &[&str]) {
        match self.ask(lab, arguments).0 {
            Some(true) => self.power = Known::Is(power),
            Some(false) => {}
            None => self.power = Known::Unknown,
        }
    }

    fn delete(&mut self, lab: &Lab) {
        let name = self.name.clone();
        match self.ask(lab, &["delete", &name, "--yes", "--no-wait"]).0 {
            Some(true) => self.exists = Known::Is(false),
            Some(false) => {}
            None => self.exists = Known::Unknown,
        }
    }

    /// Why the VM is not as it was acknowledged.
    fn complaint(&self, listed: Option<&Value>) -> Option<String> {
        let say =
            |what: &str| Some(format!("{}: {what}: {listed:?}\n  {:?}", self.name, self.told));
        let Some(vm) = listed else {
            return if self.exists.allows(&false) { None } else { say("lost") };
        };
        if !self.exists.allows(&true) {
            return say("deleted, but there");
        }
        if self.id.as_ref().is_some_and(|id| vm["id"] != id.as_str()) {
            return say("is another one");
        }
        let power = vm["power"].as_str().unwrap();
        if !self.power.allows(&power) {
            return say("another power than was acknowledged");
        }
        if vm["state"] != power {
            return say("not in the state that its power asks for");
        }
        let cpu = vm["resources"]["cpu"].as_str().unwrap();
        if !self.cpu.allows(&cpu) {
            return say("other resources than were acknowledged");
        }
        if power == "running" && vm["limits"]["cpu"] != cpu {
            return say("its limit is not in force");
        }
        if vm["generation"] != vm["observed_generation"] {
            return say("its host has not made everything true");
        }
        None
    }
}

#[test]
fn nothing_is_lost_doubled_or_left_over_while_everything_is_killed() {
    let rounds: u32 = std::env::var("PLIMSOLL_CHAOS_ROUNDS")
        .map_or(3, |rounds| rounds.parse().expect("PLIMSOLL_CHAOS_ROUNDS is a number"));
    let seed: u64 = std::env::var("PLIMSOLL_SEED")
        .map_or_else(|_| rand::random(), |seed| seed.parse().expect("PLIMSOLL_SEED is a number"));
    println!("PLIMSOLL_SEED={seed} PLIMSOLL_CHAOS_ROUNDS={rounds}");
    let memory = format!("{HOST_MEMORY_MIB}MiB");
    let Some(lab) = Lab::start_with(3, &["--cpu", "3", "--memory", &memory]) else { return };
    lab.ok(&["project", "create", PROJECT]);
    for network in ["blue", "green"] {
        lab.ok(&["-p", PROJECT, "network", "create", network]);
    }
    let observer = Observer::start(&lab, HOST_MEMORY_MIB);
    let mut random = StdRng::seed_from_u64(seed);
    for round in 1..=rounds {
        let began = Instant::now();
        let (slots, kills) = turmoil(&lab, &observer, round, &mut random);
        let converged = until_none(|| complaints(&lab, &observer, &slots));
        observer.assert_clean();
        delete_all(&lab, &mut random);
        observer.assert_clean();
        let sum = |kind: usize| slots.iter().map(|slot| slot.answers[kind]).sum::<usize>();
        println!(
            "round {round}: {kills} kills; {} requests done, {} refused, {} unanswered; {} QEMUs; \
             converged in {:.1} s, took {:.1} s; {} looks at /proc",
            sum(0),
            sum(1),
            sum(2),
            observer.all_runs().len(),
            converged.as_secs_f64(),
            began.elapsed().as_secs_f64(),
            observer.looks(),
        );
    }
}

/// Looks until there is nothing to complain about; tells how long that took.
#[track_caller]
fn until_none(mut complaints: impl FnMut() -> Vec<String>) -> Duration {
    let began = Instant::now();
    let mut last: Vec<String> = Vec::new();
    loop {
        let complaints = complaints();
        if complaints.is_empty() {
            let last: String = last.join("; ").chars().take(200).collect();
            println!("in {:.1} s; what took longest: {last}", began.elapsed().as_secs_f64());
            return began.elapsed();
        }
        last.clone_from(&complaints);
        assert!(began.elapsed() < CONVERGES, "not in {CONVERGES:?}:\n{}", complaints.join("\n"));
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Users at work, and SIGKILL.
fn turmoil(lab: &Lab, observer: &Observer, round: u32, random: &mut StdRng) -> (Vec<Slot>, usize) {
    let done = AtomicBool::new(false);
    let mut seeds: Vec<u64> = (0..=USERS).map(|_| random.random()).collect();
    std::thread::scope(|scope| {
        let users: Vec<_> = (0..USERS)
            .map(|user| {
                let mut random = StdRng::seed_from_u64(seeds.pop().unwrap());
                scope.spawn(move || use_vm(lab, observer, Slot::new(round, user), &mut random))
            })
            .collect();
        let mut random = StdRng::seed_from_u64(seeds.pop().unwrap());
        let done = &done;
        let killer = scope.spawn(move || {
            let mut kills = 0;
            while !done.load(Ordering::Relaxed) {
                kills += kill_and_heal(lab, &mut random);
            }
            kills
        });
        let slots = users.into_iter().map(|user| user.join().unwrap()).collect();
        done.store(true, Ordering::Relaxed);
        let kills = killer.join().unwrap();
        heal(lab);
        (slots, kills)
    })
}

fn pause(random: &mut StdRng, range: std::ops::Range<u64>) {
    std::thread::sleep(Duration::from_millis(random.random_range(range)));
}

fn use_vm(lab: &Lab, observer: &Observer, mut slot: Slot, random: &mut StdRng) -> Slot {
    pause(random, 0..3000);
    slot.create(lab, observer);
    for _ in 0..random.random_range(2..5) {
        pause(random, 200..4000);
        slot.change(lab, random);
    }
    if random.random_bool(0.35) {
        pause(random, 0..2000);
        slot.delete(lab);
    }
    slot
}

/// Kills some of the parts at random instants, and has the dead started again: now and then while
/// the starting is under way.
fn kill_and_heal(lab: &Lab, random: &mut StdRng) -> usize {
    pause(random, 200..2500);
    let count = random.random_range(1..4);
    let mut kills = 0;
    for part in PARTS.choose_multiple(random, count).collect::<Vec<_>>() {
        kills += usize::from(kill(lab, part));
        pause(random, 0..400);
    }
    pause(random, 0..1500);
    if random.random_bool(0.3) {
        let mut up = lab.spawn(&up(lab).iter().map(String::as_str).collect::<Vec<_>>());
        pause(random, 100..900);
        kills += usize::from(kill(lab, PARTS.choose(random).unwrap()));
        // It may have failed: what it was waiting for has died.
        up.wait().unwrap();
    }
    lab.run(&up(lab).iter().map(String::as_str).collect::<Vec<_>>());
    kills
}

fn up(lab: &Lab) -> Vec<String> {
    let directory = lab.directory().to_str().unwrap().to_owned();
    let name = lab.status()["name"].as_str().unwrap().to_owned();
    ["lab", "up", "--name", &name, "--directory", &directory].map(str::to_owned).to_vec()
}

fn heal(lab: &Lab) {
    let up = up(lab);
    lab.wait("the lab is up", Duration::from_secs(60), || {
        lab.run(&up.iter().map(String::as_str).collect::<Vec<_>>()).code == Some(0)
    });
}

/// SIGKILL, by what the lab has written down of its processes.
pub(super) fn kill(lab: &Lab, part: &str) -> bool {
    let Ok(text) = std::fs::read(lab.directory().join("lab.json")) else { return false };
    let Ok(state) = serde_json::from_slice::<Value>(&text) else { return false };
    let process = &state["processes"][part];
    let (Some(pid), Some(since)) = (process["pid"].as_i64(), process["started"].as_u64()) else {
        return false;
    };
    observer::kill(pid.try_into().unwrap(), since)
}

/// All that is not as it must be once the dust has settled.
fn complaints(lab: &Lab, observer: &Observer, slots: &[Slot]) -> Vec<String> {
    let listed = lab.vms(PROJECT);
    let by_name: BTreeMap<&str, &Value> =
        listed.iter().map(|vm| (vm["name"].as_str().unwrap(), vm)).collect();
    let mut complaints: Vec<String> = slots
        .iter()
        .filter_map(|slot| slot.complaint(by_name.get(slot.name.as_str()).copied()))
        .collect();
    let ours: BTreeSet<&str> = slots.iter().map(|slot| slot.name.as_str()).collect();
    complaints.extend(
        by_name.keys().filter(|name| !ours.contains(*name)).map(|name| format!("{name}: whose?")),
    );
    complaints.extend(truth(lab, observer, &listed));
    complaints.extend(hosts(lab));
    complaints.extend(together(slots, &by_name));
    complaints
}

/// Members of a group that share a host, by the manager's books.
fn together(slots: &[Slot], by_name: &BTreeMap<&str, &Value>) -> Vec<String> {
    let mut places = BTreeSet::new();
    let mut complaints = Vec::new();
    for slot in slots {
        let Some(vm) = by_name.get(slot.name.as_str()).filter(|vm| vm["power"] == "running") else {
            continue;
        };
        if let (Some(group), Some(host)) = (slot.group, vm["host"].as_str())
            && !places.insert((group, host.to_owned()))
        {
            complaints.push(format!("{}: not alone of {group} on {host}", slot.name));
        }
    }
    complaints
}

/// Hosts that are not up, or were promised away beyond what they have.
fn hosts(lab: &Lab) -> Vec<String> {
    let mut complaints = Vec::new();
    for host in lab.json(&["host", "list"]).as_array().unwrap() {
        let millis = |value: &Value| {
            let text = value.as_str().unwrap();
            text.strip_suffix('m').map_or_else(
                || text.parse::<u64>().unwrap() * 1000,
                |millis| millis.parse().unwrap(),
            )
        };
        let (committed, capacity) = (&host["committed"], &host["spec"]["capacity"]);
        if host["state"] != "up" || millis(&committed["cpu"]) > millis(&capacity["cpu"]) {
            complaints.push(format!("{} is {} with {committed}", host["name"], host["state"]));
        }
    }
    complaints
}

/// What is really there must be what is listed: QEMUs, guards, directories, disks, cgroups, taps.
fn truth(lab: &Lab, observer: &Observer, listed: &[Value]) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let here = |vm: &Value| (text(&vm["host"]), text(&vm["id"]));
    let all: BTreeSet<_> = listed.iter().map(here).collect();
    let running: BTreeSet<_> =
        listed.iter().filter(|vm| vm["power"] == "running").map(here).collect();
    let networked: BTreeSet<_> = listed
        .iter()
        .filter(|vm| vm["power"] == "running" && !vm["addresses"].as_array().unwrap().is_empty())
        .map(|vm| (text(&vm["host"]), text(&vm["id"])[text(&vm["id"]).len() - 10..].to_owned()))
        .collect();
    let mut complaints = Vec::new();
    let mut compare = |what: &str, is: &BTreeSet<(String, String)>, should: &BTreeSet<_>| {
        if is != should {
            let more: Vec<_> = is.difference(should).collect();
            let less: Vec<_> = should.difference(is).collect();
            complaints.push(format!("{what}: too many {more:?}, missing {less:?}"));
        }
    };
    let qemus = observer.alive().into_iter().map(|run| (run.host, run.vm)).collect();
    compare("QEMUs", &qemus, &running);
    compare("guards", &guards(lab), &running);
    compare("directories", &directories(lab), &all);
    compare("cgroups", &cgroups(lab), &running);
    compare("taps", &links(lab, "plt"), &networked);
    let pool: BTreeSet<_> = names(&lab.directory().join("pool")).into_iter().collect();
    // One that was stopped before it ever began has none yet.
    let vms = |places: &BTreeSet<(String, String)>| -> BTreeSet<String> {
        places.iter().map(|(_, vm)| vm.clone()).collect()
    };
    if !pool.is_subset(&vms(&all)) || !vms(&running).is_subset(&pool) {
        complaints.push(format!("disks {pool:?} of {running:?} and others, in all {all:?}"));
    }
    // A stopped VM keeps its host, and its host the VM's network.
    for (host, bridge) in links(lab, "plb") {
        let here = |vm: &&Value| vm["host"] == host.as_str() && vm["addresses"][0].is_string();
        if !listed.iter().any(|vm| here(&vm)) {
            complaints.push(format!("bridge {bridge} of an unused network on {host}"));
        }
    }
    complaints
}

/// What a directory holds.
pub(super) fn names(path: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn directories(lab: &Lab) -> BTreeSet<(String, String)> {
    let of = |host: &&str| {
        let path = lab.directory().join("hosts").join(host).join("vms");
        let host = (*host).to_owned();
        names(&path).into_iter().map(move |vm| (host.clone(), vm)).collect::<Vec<_>>()
    };
    PARTS[1..].iter().flat_map(of).collect()
}

/// By the directory in the guards' arguments.
fn guards(lab: &Lab) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for process in names("/proc".as_ref()).iter().filter(|name| name.parse::<i32>().is_ok()) {
        let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let mut arguments = line.split('\0').skip(1);
        if arguments.next() != Some("vm-guard") {
            continue;
        }
        let Some(directory) = arguments.nth(1) else { continue };
        if let Ok(rest) = std::path::Path::new(directory).strip_prefix(lab.directory()) {
            let parts: Vec<_> = rest.iter().map(|part| part.to_string_lossy()).collect();
            found.insert((parts[1].to_string(), parts[3].to_string()));
        }
    }
    found
}

fn cgroups(lab: &Lab) -> BTreeSet<(String, String)> {
    let name = lab.status()["name"].as_str().unwrap().to_owned();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mut found = BTreeSet::new();
    for line in mounts.lines() {
        let fields: Vec<_> = line.split(' ').collect();
        if !matches!(fields[2], "cgroup" | "cgroup2") {
            continue;
        }
        for host in &PARTS[1..] {
            let path = std::path::Path::new(fields[1]).join(format!("plimsoll-{name}-{host}"));
            let groups = names(&path).into_iter().filter(|name| name.starts_with("vm-"));
            found.extend(groups.map(|vm| ((*host).to_owned(), vm)));
        }
    }
    found
}

/// Links of this kind: the host, and what tells them apart.
fn links(lab: &Lab, kind: &str) -> BTreeSet<(String, String)> {
    let name = lab.status()["name"].as_str().unwrap().to_owned();
    let mut found = BTreeSet::new();
    for host in &PARTS[1..] {
        let output = std::process::Command::new("ip")
            .args(["-n", &format!("plimsoll-{name}-{host}"), "-brief", "link"])
            .output()
            .unwrap();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let link = line.split([' ', '@']).next().unwrap_or_default();
            if let Some(rest) = link.strip_prefix(kind) {
                // A tap's name ends in the number of the interface.
                let rest = if kind == "plt" { &rest[..rest.len() - 2] } else { rest };
                found.insert(((*host).to_owned(), rest.to_owned()));
            }
        }
    }
    found
}

/// Deletes what is left, with one more kill in the middle, and waits until nothing is.
fn delete_all(lab: &Lab, random: &mut StdRng) {
    let listed = lab.vms(PROJECT);
    let names: Vec<_> = listed.iter().map(|vm| vm["name"].as_str().unwrap()).collect();
    let half = names.len() / 2;
    for (part, names) in [names[..half].to_vec(), names[half..].to_vec()].iter().enumerate() {
        if !names.is_empty() {
            let mut arguments = vec!["-p", PROJECT, "vm", "delete", "--yes", "--no-wait"];
            arguments.extend(names);
            lab.ok(&arguments);
        }
        if part == 0 {
            let target = PARTS.choose(random).unwrap();
            kill(lab, target);
            pause(random, 0..500);
            heal(lab);
        }
    }
    until_none(|| left(lab));
}

fn left(lab: &Lab) -> Vec<String> {
    let mut left: Vec<String> = lab.vms(PROJECT).iter().map(Value::to_string).collect();
    for (what, found) in [
        ("guard", guards(lab)),
        ("directory", directories(lab)),
        ("cgroup", cgroups(lab)),
        ("tap", links(lab, "plt")),
        ("bridge", links(lab, "plb")),
        ("tunnel", links(lab, "plx")),
    ] {
        left.extend(found.into_iter().map(|found| format!("{what} {found:?}")));
    }
    left.extend(names(&lab.directory().join("pool")));
    let status = lab.status();
    let qemus = status["parts"].as_array().unwrap().iter().map(|part| part["vms"].as_u64());
    left.extend(qemus.filter(|count| *count != Some(0)).map(|_| "a QEMU".to_owned()));
    left
}

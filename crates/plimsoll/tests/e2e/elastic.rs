//! Elastic VMs on a host that is promised more than it has: what lies unused comes back by itself,
//! who needs memory gets it from those who do not, and no guest is harmed.
//!
//! `PLIMSOLL_STORM_STEPS` and `PLIMSOLL_IDLE_VMS` say how long a storm is and how many VMs idle,
//! `PLIMSOLL_PEAK_ROUNDS` and `PLIMSOLL_PEAK_PERCENT` how often VMs that share are measured and how
//! much of their throughput they must keep; `PLIMSOLL_SEED` repeats what was drawn.

use std::{
    process::Child,
    time::{Duration, Instant},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;

use super::{lab::Lab, observer::Observer};

const PROJECT: &str = "elastic";
const MIB: u64 = 1 << 20;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn vms(count: u64, memory: &str, elasticity: &str) -> String {
    format!(
        "project = \"{PROJECT}\"\n[[vm]]\nname = \"vm\"\ncount = {count}\nimage = \"tiny\"\n\
         resources = {{ cpu = \"1\", memory = \"{memory}\" }}\n{elasticity}\n"
    )
}

fn name(number: u64) -> String {
    format!("vm-{number}")
}

/// An amount of memory as the API writes it, in bytes.
fn bytes(value: &Value) -> u64 {
    let text = value.as_str().unwrap_or_else(|| panic!("no amount: {value}"));
    let amount: plimsoll_model::Bytes = text.parse().unwrap();
    amount.get()
}

/// What a process holds of the machine's memory for itself, in bytes.
fn anonymous(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// User and system time of a process, in seconds.
fn processor_time(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// The agents of all guests answer.
fn until_speaking(lab: &Lab, count: usize) {
    lab.wait("every guest speaks", Duration::from_secs(60), || {
        lab.vms(PROJECT).iter().filter(|vm| !vm["guest"].is_null()).count() == count
    });
}

/// A load in a guest, run by `plimsoll vm exec` in the background.
fn load(lab: &Lab, vm: &str, arguments: &[&str]) -> Child {
    let before = ["-p", PROJECT, "vm", "exec", vm, "--", "plimsoll-workload"];
    let arguments: Vec<&str> = before.iter().chain(arguments).copied().collect();
    lab.spawn(&arguments)
}

/// The last line of a load that has ended well.
fn last_line(load: Child) -> Value {
    let output = load.wait_with_output().unwrap();
    let (text, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{:?}\n{text}\n{errors}", output.status);

    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[test]
fn what_guests_free_comes_back_by_itself_and_the_agent_costs_little() {
    let count = number("PLIMSOLL_IDLE_VMS", 8);
    let Some(lab) = Lab::start_with(1, &["--memory", "16GiB", "--cpu", "64"]) else { return };
    let observer = Observer::start(&lab, 16 << 10);
    lab.apply(&vms(count, "256MiB", ""));
    let held = || observer.alive().iter().map(|run| anonymous(run.pid)).sum::<u64>();
    // What booting used and freed has to come back first.
    let mut before = u64::MAX;
    lab.wait("the VMs are at rest", Duration::from_secs(60), || {
        let now = held();
        let at_rest = now >= before - before / 100;
        before = before.min(now);
        std::thread::sleep(Duration::from_secs(3));
        at_rest && observer.alive().len() as u64 == count
    });
    let fill = ["hold", "--size", "128M", "--seconds", "1"];
    let loads: Vec<Child> = (1..=8).map(|number| load(&lab, &name(number), &fill)).collect();
    let mut most = 0;
    lab.wait("half of each guest is filled", Duration::from_secs(60), || {
        most = most.max(held());
        most > before + 8 * 100 * MIB
    });
    loads.into_iter().for_each(|load| drop(last_line(load)));
    let freed = Instant::now();
    let enough = before + before / 10;
    lab.wait("what was freed is the host's again", Duration::from_secs(10), || held() <= enough);
    eprintln!(
        "{} MiB held before, {} MiB filled, {} MiB {:.1} s after it was freed",
        before / MIB,
        most / MIB,
        held() / MIB,
        freed.elapsed().as_secs_f64()
    );

    let status = lab.status();
    let parts = status["parts"].as_array().unwrap();
    let agent = parts.iter().find(|part| part["name"] == "host-1").unwrap();
    let agent = i32::try_from(agent["pid"].as_i64().unwrap()).unwrap();
    std::thread::sleep(Duration::from_secs(5));
    let (began, used) = (Instant::now(), processor_time(agent));
    std::thread::sleep(Duration::from_secs(10));
    let percent = (processor_time(agent) - used) / began.elapsed().as_secs_f64() * 100.0;
    let memory = anonymous(agent);
    eprintln!("the agent of {count} VMs: {percent:.2} % of a core, {} MiB", memory / MIB);
    assert!(percent < 2.0, "the agent uses {percent:.2} % of a core");
    assert!(memory < 60 * MIB, "the agent holds {} MiB", memory / MIB);
}

/// Peaks of three VMs in turn: each uses most of its memory while the others use little of theirs. Returns
/// what each has done, and checks meanwhile that none has less than its minimum and that whoever has
/// less than it is promised has a reason.
fn peaks(lab: &Lab, minimum: u64) -> Vec<f64> {
    let peak = ["store", "--size", "400M", "--seconds", "6"];
    (1..=3)
        .map(|number| {
            let mut running = load(lab, &name(number), &peak);
            while running.try_wait().unwrap().is_none() {
                for vm in lab.vms(PROJECT) {
                    let has = bytes(&vm["limits"]["memory"]);
                    assert!(has >= minimum, "{} has {} MiB", vm["name"], has / MIB);
                    let share = &vm["share"];
                    if !share.is_null() && bytes(&share["taken"]) > 0 {
                        assert!(!share["reasons"].as_array().unwrap().is_empty(), "{vm}");
                    }
                }
                std::thread::sleep(Duration::from_millis(500));
            }
            let done = last_line(running);
            eprintln!("{}: {done}", name(number));
            done["operations"].as_f64().unwrap()
        })
        .collect()
}

#[test]
fn three_vms_that_peak_in_turn_share_half_of_what_they_are_promised() {
    const MINIMUM: u64 = 96 * MIB;
    // Rates of guests differ by a third from second to second on a busy machine: the long rounds ask
    // for the whole, the short ones for what no noise explains.
    let rounds = number("PLIMSOLL_PEAK_ROUNDS", 2);
    let percent = u32::try_from(number("PLIMSOLL_PEAK_PERCENT", 70)).unwrap();
    let least = f64::from(percent) / 100.0;
    let Some(lab) = Lab::start_with(1, &["--memory", "3GiB"]) else { return };
    lab.apply(&vms(
        3,
        "640MiB",
        "elasticity = { class = \"burstable\", memory_min = \"96MiB\", cpu_min = \"200m\" }",
    ));
    until_speaking(&lab, 3);
    let best = |best: &mut Vec<f64>, now: Vec<f64>| {
        best.resize(now.len(), 0.0);
        best.iter_mut().zip(now).for_each(|(best, now)| *best = best.max(now));
    };
    let (mut with_room, mut shared) = (Vec::new(), Vec::new());
    let mut ratio = 0.0;
    for round in 1..=rounds {
        lab.change(&["--memory", "3GiB"]);
        until_speaking(&lab, 3);
        best(&mut with_room, peaks(&lab, MINIMUM));
        // Three times 640 MiB and what a VM costs beside that: twice of this.
        lab.change(&["--memory", "1104MiB"]);
        until_speaking(&lab, 3);
        best(&mut shared, peaks(&lab, MINIMUM));
        ratio = shared.iter().sum::<f64>() / with_room.iter().sum::<f64>();
        eprintln!("round {round}: {ratio:.3} of what they do with room for all");
        // Whatever else this machine does only makes a load slower: it is measured again.
        if ratio >= 0.95 {
            break;
        }
    }
    let host = lab.json(&["host", "show", "host-1"]);
    let (committed, capacity) =
        (bytes(&host["committed"]["memory"]), bytes(&host["spec"]["capacity"]["memory"]));
    assert!(committed >= 2 * capacity, "{committed} of {capacity}");
    assert!(ratio >= least, "{ratio:.3} of what they do with room for all");
    let events = lab.ok(&["events"]).stdout;
    assert!(events.contains("vm_reclaimed") && events.contains("host_memory"), "{events}");
    let explained = lab.ok(&["-p", PROJECT, "vm", "explain", "vm-1"]).stdout;
    assert!(explained.contains("less than it is promised"), "{explained}");
}

/// A guest as a storm finds it.
struct Guest {
    name: String,
    boot: String,
    kills: u64,
    /// Hogs that the guest's kernel ended.
    hogs: u64,
}

impl Guest {
    fn new(lab: &Lab, name: String) -> Self {
        let boot = lab.exec(PROJECT, &name, &["cat", "/proc/sys/kernel/random/boot_id"]);
        let kills = kills(lab, &name);
        // Checks what it reads, and says how it ended.
        let witness = "(plimsoll-workload hold --size 24M --touch 256K --seconds 0; \
                       echo $? >/tmp/ended) >/dev/null 2>&1 &";
        lab.exec(PROJECT, &name, &["setsid", "sh", "-c", witness]);
        Self { name, boot, kills, hogs: 0 }
    }

    fn assert_unharmed(&self, lab: &Lab) {
        let name = &self.name;
        let boot = lab.exec(PROJECT, name, &["cat", "/proc/sys/kernel/random/boot_id"]);
        assert_eq!(boot, self.boot, "{name} booted again");
        assert_eq!(lab.vm(PROJECT, name)["restarts"], 0, "{name}");
        let look = "cat /tmp/ended 2>/dev/null || pidof plimsoll-workload >/dev/null && echo lives";
        assert_eq!(lab.exec(PROJECT, name, &["sh", "-c", look]), "lives", "{name}'s witness");
        let kills = kills(lab, name) - self.kills;
        assert_eq!(kills, self.hogs, "{name}: others than the hog were killed for want of memory");
    }
}

/// Processes that the guest's kernel killed for want of memory.
fn kills(lab: &Lab, vm: &str) -> u64 {
    let text = lab.exec(PROJECT, vm, &["sh", "-c", "grep '^oom_kill ' /proc/vmstat"]);
    text.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn no_guest_is_harmed_by_a_storm_of_sizes_and_hogs() {
    let steps = number("PLIMSOLL_STORM_STEPS", 30);
    let seed = number("PLIMSOLL_SEED", rand::random());
    eprintln!("PLIMSOLL_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let Some(lab) = Lab::start_with(1, &["--memory", "2GiB"]) else { return };
    lab.apply(&vms(
        3,
        "384MiB",
        "elasticity = { class = \"burstable\", memory_min = \"96MiB\", cpu_min = \"100m\" }",
    ));
    // From now on they are promised nearly twice what there is.
    lab.change(&["--memory", "900MiB"]);
    until_speaking(&lab, 3);
    let mut guests: Vec<Guest> = (1..=3).map(|number| Guest::new(&lab, name(number))).collect();
    for step in 0..steps {
        let guest = random.random_range(0..guests.len());
        let vm = guests[guest].name.clone();
        let vm = vm.as_str();
        match random.random_range(0..5) {
            0 => {
                let mib = random.random_range(24..=48) * 8;
                eprintln!("{step}: {vm} {mib} MiB");
                // What it was promised may have no room any more; then it is refused.
                let memory = format!("{mib}MiB");
                lab.run(&["-p", PROJECT, "vm", "set", vm, "--memory", &memory]);
            }
            1 => {
                let cpu = ["1", "750m", "2"][random.random_range(0..3)];
                eprintln!("{step}: {vm} {cpu} cores");
                lab.run(&["-p", PROJECT, "vm", "set", vm, "--cpu", cpu]);
            }
            2 => {
                let memory = format!("{}%", random.random_range(1..=7) * 10);
                eprintln!("{step}: {vm} deflated by {memory}");
                let arguments =
                    ["-p", PROJECT, "vm", "deflate", vm, "--memory", &memory, "--within", "3s"];
                lab.run(&arguments);
            }
            3 => {
                eprintln!("{step}: {vm} inflated");
                lab.run(&["-p", PROJECT, "vm", "inflate", vm, "--timeout", "5s"]);
            }
            _ => {
                let size = random.random_range(40..=400);
                let ended = hog(&lab, vm, size);
                guests[guest].hogs += u64::from(ended == 137);
                eprintln!("{step}: a hog of {size} MiB in {vm} ended with {ended}");
            }
        }
        guests[guest].assert_unharmed(&lab);
    }
    for guest in &guests {
        lab.run(&["-p", PROJECT, "vm", "inflate", &guest.name]);
        guest.assert_unharmed(&lab);
    }
    assert!(!lab.log("host-1").contains("panicked"), "the agent panicked");
    assert!(!lab.log("manager").contains("panicked"), "the manager panicked");
}

/// Fills memory in a guest, which its kernel may end: of all its processes this one first.
fn hog(lab: &Lab, vm: &str, mib: u64) -> i32 {
    let script = format!(
        "echo 1000 >/proc/self/oom_score_adj; plimsoll-workload hold --size {mib}M --seconds 2 >/dev/null"
    );
    let ran = lab.try_exec(PROJECT, vm, &["sh", "-c", &script]);
    let code = ran.code.unwrap_or(-1);
    // It had its memory, was ended for it, or was refused it.
    assert!(matches!(code, 0 | 134 | 137), "{code}: {}{}", ran.stdout, ran.stderr);
    code
}

#[test]
fn a_profile_is_measured_and_stored_and_the_vm_is_as_it_was() {
    let Some(lab) = Lab::start_with(1, &["--memory", "2GiB"]) else { return };
    lab.apply(&vms(
        1,
        "320MiB",
        "elasticity = { class = \"deflatable\", memory_min = \"96MiB\", cpu_min = \"100m\" }",
    ));
    until_speaking(&lab, 1);
    let page = lab.directory().join("profile.html");
    let profile = |more: &[&str]| {
        let before =
            ["-p", PROJECT, "vm", "profile", "vm-1", "--resource", "memory", "--steps", "2"];
        let arguments: Vec<&str> = before.iter().chain(more).copied().collect();
        arguments.iter().map(|argument| (*argument).to_owned()).collect::<Vec<_>>()
    };
    let run = |arguments: Vec<String>| {
        lab.run(&arguments.iter().map(String::as_str).chain(["--json"]).collect::<Vec<_>>())
    };
    let load = "plimsoll-workload store --size 32M --seconds 1";
    let measured = run(profile(&["--workload", load, "--html", page.to_str().unwrap()]));
    let measured = measured.succeeded().json();
    let steps = measured["steps"].as_array().unwrap();
    assert_eq!((steps.len(), &measured["stored"]), (3, &Value::Bool(true)), "{measured}");
    assert!(steps.iter().all(|step| step["measured"].as_f64().unwrap() > 0.0), "{measured}");
    assert!(std::fs::read_to_string(page).unwrap().contains("<svg"));

    // A workload that fails is no measurement, and what was taken comes back all the same.
    let failed = run(profile(&["--workload", "echo oh no >&2; exit 3"]));
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    assert!(failed.stderr.contains("ended with 3") && failed.stderr.contains("oh no"));
    let vm = lab.vm(PROJECT, "vm-1");
    assert_eq!(vm["spec"]["elasticity"]["utility"]["memory"], measured["curve"]);
    assert!(vm["deflation"].is_null(), "{vm}");
    assert_eq!(vm["limits"]["memory"], "320MiB");
}

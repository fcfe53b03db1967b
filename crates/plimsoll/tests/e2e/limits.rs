//! Every limit of a VM, changed while it runs, as its guest feels it.
//!
//! Rates are measured inside the guest by its own clock, which a quota does not slow down, and
//! compared with what the same guest did before. What disturbs the machine meanwhile only makes a
//! guest slower, or lets two unlimited measurements disagree: both are measured again.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::lab::Lab;

const PROJECT: &str = "bench";
const PAIR: &str = r#"
project = "bench"

[[network]]
name = "wire"

[[vm]]
name = "vm"
count = 2
image = "tiny"
resources = { cpu = "1", memory = "160MiB", disk = "128MiB" }
networks = ["wire"]
groups = ["pair"]
constraints = [{ anti_affinity = { group = "pair" } }]
"#;
/// The one that is limited; the other one is at the far end of its wire.
const VM: &str = "vm-1";
const PEER: &str = "vm-2";

const MIB: f64 = 1_048_576.0;
/// Sets `t` to the guest's uptime in hundredths of a second.
const CLOCK: &str = "now() { read -r t _ </proc/uptime; t=${t%.*}${t#*.}; }";

#[test]
fn every_limit_of_a_running_vm_is_felt_by_its_guest() {
    let Some(lab) = Lab::start(2) else { return };
    lab.apply(PAIR);
    let boot = boot_id(&lab);

    processor(&lab);
    disk_rates(&lab);
    network_rates(&lab);
    memory(&lab);
    disk_growth(&lab);
    what_cannot_be(&lab);

    assert_eq!(boot_id(&lab), boot, "the guest was restarted");
    assert_eq!(lab.vm(PROJECT, VM)["restarts"], 0);
}

fn boot_id(lab: &Lab) -> String {
    lab.exec(PROJECT, VM, &["cat", "/proc/sys/kernel/random/boot_id"])
}

/// `vm set`, and the limits that are in force afterwards.
#[track_caller]
fn set(lab: &Lab, options: &[&str]) -> Value {
    let arguments: Vec<_> =
        ["-p", PROJECT, "vm", "set", VM].iter().chain(options).copied().collect();
    lab.ok(&arguments);
    lab.vm(PROJECT, VM)["limits"].clone()
}

/// Seconds that a command takes in a guest.
fn seconds(lab: &Lab, vm: &str, command: &str) -> f64 {
    let script = format!(
        "{CLOCK}; now; start=$t; {command} >/dev/null 2>&1 || exit 9; now; echo $((t - start))"
    );
    let hundredths: u32 = lab.exec(PROJECT, vm, &["sh", "-c", &script]).parse().unwrap();
    f64::from(hundredths.max(1)) / 100.0
}

/// A rate that is within a tenth of `limit`. Measured again, twice at most: a machine that is busy
/// with something else makes one measurement slow.
#[track_caller]
fn assert_held(what: &str, limit: f64, mut measure: impl FnMut() -> f64) {
    let mut seen = Vec::new();
    for _ in 0..3 {
        let rate = measure();
        seen.push(rate);
        if (rate / limit - 1.0).abs() <= 0.1 {
            eprintln!("{what}: {rate:.2} for a limit of {limit}");
            return;
        }
    }
    panic!("{what}: {seen:.2?} for a limit of {limit}");
}

#[track_caller]
fn assert_beyond(what: &str, limit: f64, rate: f64) {
    eprintln!("{what} without a limit: {rate:.2}");
    assert!(rate > 2.0 * limit, "{what}: {rate} without a limit; cannot show one of {limit}");
}

/// Lets the VM's host win against everything else on this machine that wants its cores: other work
/// would slow the guest down where it has no limit, and not where it has one.
fn prefer(lab: &Lab) {
    let host = lab.vm(PROJECT, VM)["host"].as_str().unwrap().to_owned();
    let group = format!("plimsoll-{}-{host}", lab.name());
    let root = Path::new("/sys/fs/cgroup");
    let weights = std::fs::read_dir(root)
        .unwrap()
        .map(|hierarchy| (hierarchy.unwrap().path().join(&group).join("cpu.shares"), "262144"));
    let mut weights: Vec<_> = weights.collect();
    weights.push((root.join(&group).join("cpu.weight"), "10000"));
    for (file, most) in weights.into_iter().filter(|(file, _)| file.exists()) {
        std::fs::write(file, most).unwrap();
    }
}

/// The kernel's statistics of the thread that runs the VM's vCPU.
fn vcpu_thread(lab: &Lab) -> PathBuf {
    let vm = lab.vm(PROJECT, VM);
    let (host, id) = (vm["host"].as_str().unwrap(), vm["id"].as_str().unwrap());
    let record = lab.directory().join("hosts").join(host).join("vms").join(id).join("guard.json");
    let record: Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    let tasks = PathBuf::from(format!("/proc/{}/task", record["qemu"]["pid"]));
    let mut threads = std::fs::read_dir(tasks).unwrap().map(|task| task.unwrap().path());
    let vcpu = |task: &PathBuf| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("CPU 0"))
    };
    threads.find(vcpu).expect("QEMU names its threads").join("schedstat")
}

/// How fast a counted loop of the guest's shell runs under different limits.
struct Loops<'a> {
    lab: &'a Lab,
    vcpu: PathBuf,
    /// By limit: the most loops in a second of the guest's clock.
    best: BTreeMap<&'static str, f64>,
    /// The most of a core that the vCPU had without a limit.
    most: f64,
}

impl Loops<'_> {
    /// Seconds that the vCPU has run.
    fn ran(&self) -> f64 {
        let statistics = std::fs::read_to_string(&self.vcpu).unwrap();
        statistics.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
    }

    /// Loops per second of the guest's clock, and what part of a core the vCPU had meanwhile.
    fn rate(&self) -> (f64, f64) {
        let script = format!(
            "{CLOCK}; now; start=$t; count=0; past=0
            while [ $past -lt 100 ]; do
                i=0; while [ $i -lt 100 ]; do i=$((i+1)); done
                count=$((count+100)); now; past=$((t-start))
            done
            echo $count $past"
        );
        let before = self.ran();
        let counted = self.lab.exec(PROJECT, VM, &["sh", "-c", &script]);
        let ran = self.ran() - before;
        let (count, past) = counted.split_once(' ').unwrap();
        let (count, past): (f64, f64) = (count.parse().unwrap(), past.parse().unwrap());
        let seconds = past / 100.0;
        (count / seconds, (ran / seconds).min(1.0))
    }

    /// Measures under this limit. Without one, what the rate would have been with the whole core
    /// that a busy machine may not have given.
    fn measure(&mut self, cpu: &'static str) {
        assert_eq!(set(self.lab, &["--cpu", cpu])["cpu"], cpu);
        let (mut rate, core) = self.rate();
        if cpu == WHOLE {
            self.most = self.most.max(core);
            rate /= core;
        }
        eprintln!("cpu {cpu}: {rate:.0} loops/s with {core:.2} of a core");
        let best = self.best.entry(cpu).or_default();
        *best = best.max(rate);
    }

    /// What the loop does under a limit, of what it does without.
    fn ratio(&self, cpu: &str) -> f64 {
        self.best[cpu] / self.best[WHOLE]
    }
}

const WHOLE: &str = "1";

/// The best of several turns counts: whatever else this machine does only makes a guest slower, with
/// a limit or without.
fn processor(lab: &Lab) {
    const SHARES: [(&str, f64); 2] = [("500m", 0.5), ("250m", 0.25)];
    const LEAST_TURNS: u32 = 3;
    const MOST_TURNS: u32 = 15;
    prefer(lab);
    let vcpu = vcpu_thread(lab);
    let mut loops = Loops { lab, vcpu, best: BTreeMap::new(), most: 0.0 };
    loops.rate(); // QEMU translates the loop.
    for turn in 1..=MOST_TURNS {
        for cpu in [WHOLE, SHARES[0].0, SHARES[1].0] {
            loops.measure(cpu);
        }
        let held = SHARES.iter().all(|(cpu, share)| (loops.ratio(cpu) - share).abs() <= 0.05);
        if turn >= LEAST_TURNS && held {
            break;
        }
    }
    assert!(loops.most > 0.6, "the vCPU never had more than {:.2} of a core", loops.most);
    for (cpu, share) in SHARES {
        let ratio = loops.ratio(cpu);
        eprintln!("cpu {cpu}: {ratio:.3} of the rate of one core");
        assert!((ratio - share).abs() <= 0.05, "cpu {cpu}: {ratio:.3} of the rate of one core");
    }
    assert_eq!(set(lab, &["--cpu", WHOLE])["cpu"], WHOLE);
}

fn disk_rates(lab: &Lab) {
    // Past the guest's page cache, or its memory would be measured.
    let read = |size: &str, count: u32| {
        let command = format!("dd if=/dev/vda of=/dev/null iflag=direct bs={size} count={count}");
        f64::from(count) / seconds(lab, VM, &command)
    };
    let write = |size: &str, count: u32| {
        let command = format!(
            "dd if=/dev/zero of=/data/file oflag=direct conv=notrunc bs={size} count={count}"
        );
        f64::from(count) / seconds(lab, VM, &command)
    };
    // Where they are written later there is room by then.
    write("1M", 40);
    assert_beyond("MiB/s read", 10.0, read("1M", 100));
    assert_beyond("MiB/s written", 10.0, write("1M", 40));

    let limits = set(lab, &["--disk-bandwidth", "10MiB/s"]);
    assert_eq!((&limits["disk_bandwidth"], &limits["disk_iops"]), (&"10MiB/s".into(), &"0".into()));
    assert_held("MiB/s read", 10.0, || read("1M", 40));
    assert_held("MiB/s written", 10.0, || write("1M", 40));

    // Both in one change: one limit goes, another comes.
    assert_beyond("operations/s read", 100.0, read("4k", 500));
    let limits = set(lab, &["--disk-bandwidth", "0", "--disk-iops", "100"]);
    assert_eq!((&limits["disk_bandwidth"], &limits["disk_iops"]), (&"0B/s".into(), &"100".into()));
    assert_held("operations/s read", 100.0, || read("4k", 300));
    assert_held("operations/s written", 100.0, || write("4k", 300));

    let limits = set(lab, &["--disk-iops", "0"]);
    assert_eq!(limits["disk_iops"], "0");
    assert_beyond("MiB/s read again", 10.0, read("1M", 100));
}

fn network_rates(lab: &Lab) {
    const FILE_MIB: u32 = 8;
    for vm in [VM, PEER] {
        lab.exec(PROJECT, vm, &["sh", "-c", "head -c 8388608 /dev/zero >/www/file"]);
    }
    // Each fetches the other's file: what the file has, not what the wire carries.
    let fetch = |to: &str, from: &str| {
        let url = format!("http://{}/file", lab.address(PROJECT, from));
        f64::from(FILE_MIB) * MIB * 8.0
            / 1e6
            / seconds(lab, to, &format!("wget -q -O /dev/null {url}"))
    };
    assert_beyond("Mbit/s to the guest", 20.0, fetch(VM, PEER));
    assert_beyond("Mbit/s from the guest", 20.0, fetch(PEER, VM));
    assert_eq!(set(lab, &["--network-bandwidth", "20Mbit/s"])["network"], "20Mbit/s");
    assert_held("Mbit/s to the guest", 20.0, || fetch(VM, PEER));
    assert_held("Mbit/s from the guest", 20.0, || fetch(PEER, VM));
    assert_eq!(set(lab, &["--network-bandwidth", "0"])["network"], "0bit/s");
    assert_beyond("Mbit/s to the guest again", 20.0, fetch(VM, PEER));
    assert_beyond("Mbit/s from the guest again", 20.0, fetch(PEER, VM));
}

/// What the guest can still give its programs, in MiB.
fn free_memory(lab: &Lab) -> f64 {
    let kib = lab.exec(PROJECT, VM, &["awk", "/^MemFree/ { print $2 }", "/proc/meminfo"]);
    kib.parse::<f64>().unwrap() / 1024.0
}

fn memory(lab: &Lab) {
    let before = free_memory(lab);
    assert_eq!(set(lab, &["--memory", "128MiB"])["memory"], "128MiB");
    let taken = before - free_memory(lab);
    assert!((taken - 32.0).abs() < 8.0, "the balloon took {taken} MiB of the guest, not 32");
    assert_eq!(set(lab, &["--memory", "160MiB"])["memory"], "160MiB");
    let missing = before - free_memory(lab);
    assert!(missing < 8.0, "{missing} MiB did not come back");
}

fn disk_growth(lab: &Lab) {
    assert_eq!(set(lab, &["--disk", "192MiB"])["disk"], "192MiB");
    let size = lab.exec(PROJECT, VM, &["blockdev", "--getsize64", "/dev/vda"]);
    assert_eq!(size, (192 << 20).to_string());
    // The file system too, when the guest asks for it.
    lab.exec(PROJECT, VM, &["plimsoll-guest", "--grow", "/data"]);
    let kib = lab.exec(PROJECT, VM, &["sh", "-c", "df -k /data | awk 'END { print $2 }'"]);
    assert!(kib.parse::<u32>().unwrap() > 160 << 10, "/data has {kib} KiB");
}

/// Refusals: each says why, and leaves all as it is.
fn what_cannot_be(lab: &Lab) {
    let before = lab.vm(PROJECT, VM);
    for (options, why) in [
        (["--memory", "192MiB"], "booted"),
        (["--memory", "64MiB"], "too little for image"),
        (["--disk", "64MiB"], "less than the 192MiB"),
        (["--cpu", "64"], "insufficient cpu"),
        (["--network-bandwidth", "1kbit/s"], "at least 8kbit/s"),
    ] {
        let ran = lab.run(&["-p", PROJECT, "vm", "set", VM, options[0], options[1]]);
        assert_eq!(ran.code, Some(1), "{options:?}\n{}", ran.stdout);
        assert!(ran.stderr.contains(why), "{options:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("hint: "), "{options:?}: {}", ran.stderr);
    }
    let after = lab.vm(PROJECT, VM);
    for part in ["generation", "resources", "limits", "state"] {
        assert_eq!(after[part], before[part], "{part}");
    }
}

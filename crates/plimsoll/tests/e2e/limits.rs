//! Every limit of a VM, changed while it runs, as its guest feels it.
//!
//! Rates are measured inside the guest by its own clock, which a quota does not slow down, and
//! compared with what the same guest did before. What disturbs the machine meanwhile only makes a
//! guest slower: it is measured again.

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
    deflation(&lab);
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

/// Turns of a counted loop in the guest, in a second of its clock. The loop asks for nothing but
/// the processor: reading a clock or a file in it would measure QEMU's devices too.
fn loop_rate(lab: &Lab, turns: u32) -> f64 {
    let command = format!("awk 'BEGIN {{ for (i = 0; i < {turns}; i++) x += i }}'");
    f64::from(turns) / seconds(lab, VM, &command)
}

/// The best of several turns counts: whatever else this machine does only makes a guest slower, with
/// a limit or without.
fn processor(lab: &Lab) {
    const LIMITS: [(&str, f64); 3] = [("1", 1.0), ("500m", 0.5), ("250m", 0.25)];
    const LEAST_ROUNDS: u32 = 3;
    const MOST_ROUNDS: u32 = 30;
    /// About a second and a half of one core's loop.
    const TURNS: [u32; 3] = [300_000, 150_000, 75_000];
    let mut best = [0_f64; 3];
    let mut ratios = [0_f64; 3];
    loop_rate(lab, TURNS[0]); // QEMU translates the loop.
    for round in 1..=MOST_ROUNDS {
        for (index, (cpu, _)) in LIMITS.iter().enumerate() {
            assert_eq!(set(lab, &["--cpu", cpu])["cpu"], *cpu);
            let rate = loop_rate(lab, TURNS[index]);
            best[index] = best[index].max(rate);
            eprintln!("cpu {cpu}: {rate:.0} turns/s");
        }
        ratios = best.map(|rate| rate / best[0]);
        let held = LIMITS.iter().zip(ratios).all(|((_, share), r)| (r - share).abs() <= 0.05);
        if round >= LEAST_ROUNDS && held {
            break;
        }
    }
    for ((cpu, share), ratio) in LIMITS.iter().zip(ratios) {
        eprintln!("cpu {cpu}: {ratio:.3} of the rate of one core");
        assert!((ratio - share).abs() <= 0.05, "cpu {cpu}: {ratio:.3} of the rate of one core");
    }
    // And it comes back with the limit.
    assert_eq!(set(lab, &["--cpu", "1"])["cpu"], "1");
    let again = (0..3).map(|_| loop_rate(lab, TURNS[0])).fold(0.0, f64::max) / best[0];
    assert!(again > 0.8, "back at one core: {again:.3} of the rate before");
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
    // Beyond what it booted with, and back.
    assert_eq!(set(lab, &["--memory", "416MiB"])["memory"], "416MiB");
    let more = free_memory(lab) - before;
    assert!((more - 256.0).abs() < 16.0, "the guest has {more} MiB more, not 256");
    assert_eq!(set(lab, &["--memory", "160MiB"])["memory"], "160MiB");
    let missing = before - free_memory(lab);
    assert!(missing.abs() < 16.0, "{missing} MiB did not come back");
}

/// A part of it is taken and given back, and who gave it is told.
fn deflation(lab: &Lab) {
    let deflate = ["-p", PROJECT, "vm", "deflate", VM, "--memory", "20%", "--cpu", "50%"];
    let outcome = lab.json(&deflate);
    let level = |name: &str| {
        let levels = outcome["levels"].as_array().unwrap();
        levels.iter().find(|level| level["level"] == name).unwrap()["gave"].clone()
    };
    assert_eq!(level("guest"), serde_json::json!({"memory": "32MiB", "cpu": "0m"}));
    assert_eq!(level("host"), serde_json::json!({"memory": "0B", "cpu": "500m"}));
    let vm = lab.vm(PROJECT, VM);
    assert_eq!((&vm["limits"]["memory"], &vm["limits"]["cpu"]), (&"128MiB".into(), &"500m".into()));
    assert_eq!(vm["resources"]["memory"], "160MiB", "what is promised stays promised");
    lab.ok(&["-p", PROJECT, "vm", "inflate", VM]);
    let vm = lab.vm(PROJECT, VM);
    assert_eq!((&vm["limits"]["memory"], &vm["limits"]["cpu"]), (&"160MiB".into(), &"1".into()));
    assert_eq!(vm.get("deflation"), None);
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
        (["--memory", "1GiB"], "can have while it runs"),
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

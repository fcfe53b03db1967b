//! VMs that move between hosts while they work, on a lab with real guests.
//!
//! `PLIMSOLL_MIGRATIONS` says how often VMs move in the ring, `PLIMSOLL_DOWNTIME_MS` how long the median
//! move may be felt by a ping every 10 ms; without it that is only printed.

use std::time::Duration;

use super::{deaths::tunnels, lab::Lab};

pub(super) const PROJECT: &str = "ring";
/// MiB a second that each mover rewrites of its memory.
const CHURN: [u32; 3] = [0, 10, 50];
const PORT: usize = 7000;
const BOOTED: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);

const RING: &str = r#"
project = "ring"
[[network]]
name = "inner"
cidr = "10.40.0.0/24"
[[vm]]
name = "anchor"
image = "tiny"
resources = { cpu = "500m", memory = "128MiB", disk = "64MiB" }
networks = ["inner"]
[[vm]]
name = "mover"
count = 3
image = "tiny"
resources = { cpu = "1", memory = "256MiB", disk = "64MiB" }
networks = ["inner"]
groups = ["movers"]
constraints = [{ strength = "preferred", anti_affinity = { group = "movers" } }]
"#;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn mover(index: usize) -> String {
    format!("mover-{}", index + 1)
}

pub(super) fn sh(lab: &Lab, vm: &str, script: &str) -> String {
    lab.exec(PROJECT, vm, &["sh", "-c", script])
}

pub(super) fn until_speaking(lab: &Lab, count: usize) {
    lab.wait("every guest speaks", BOOTED, || {
        lab.vms(PROJECT).iter().filter(|vm| !vm["guest"].is_null()).count() == count
    });
}

/// Begins what a guest does all the time: it rewrites and checks memory, writes and reads back its disk,
/// and talks to the anchor over one connection. Little of it: four emulated guests share two cores with
/// all three hosts.
fn put_to_work(lab: &Lab, index: usize, anchor: &str) {
    let (vm, churn, port) = (mover(index), CHURN[index], PORT + index);
    // Its own side stays open: `nc` ends when it sees the other's end.
    let listen =
        format!("sleep 100000 < /dev/null | nc -l -p {port} > /run/heard-{index} 2>/dev/null &");
    sh(lab, "anchor", &listen);
    sh(
        lab,
        &vm,
        &format!(
            "plimsoll-workload hold --size 64M --churn {churn}M --touch 4M --seconds 0 \
             > /run/hold.jsonl 2>&1 < /dev/null &"
        ),
    );
    sh(
        lab,
        &vm,
        "(head -c 1048576 /dev/urandom > /run/block; i=0; while true; do \
          (echo $i; cat /run/block) > /run/want; cp /run/want /data/a; sync; \
          echo 3 > /proc/sys/vm/drop_caches; \
          cmp -s /run/want /data/a || echo corrupt >> /run/bad; \
          i=$((i+1)); sleep 0.5; done) > /dev/null 2>&1 < /dev/null &",
    );
    sh(
        lab,
        &vm,
        &format!(
            "(i=0; while true; do echo $i; i=$((i+1)); sleep 0.5; done) 2>/dev/null < /dev/null \
             | nc {anchor} {port} > /dev/null 2>&1 &"
        ),
    );
}

/// Whether all that a guest has and does is whole; how far its talk is.
fn check(lab: &Lab, index: usize) -> u64 {
    let vm = mover(index);
    assert_eq!(sh(lab, &vm, "cat /run/bad 2>/dev/null; true"), "", "{vm}: its disk is harmed");
    let held = "pidof plimsoll-workload > /dev/null && echo on || tail -n 1 /run/hold.jsonl";
    assert_eq!(sh(lab, &vm, held), "on", "{vm}: its memory is harmed");
    assert_ne!(sh(lab, &vm, "pidof nc; true"), "", "{vm}: its connection broke");
    // Each line is one more than the one before, or one is missing.
    let script = format!(
        "awk 'NR != $1 + 1 {{ print \"gap at\", NR; exit }} END {{ print NR }}' /run/heard-{index} | tail -n 1"
    );
    let heard = sh(lab, "anchor", &script);
    heard.parse().unwrap_or_else(|_| panic!("{vm}: what it said was lost: {heard}"))
}

/// The longest time without an answer, by a ping every 10 ms.
fn longest_silence(text: &str) -> f64 {
    let field = |line: &str, name: &str| -> Option<f64> {
        let rest = line.split_once(name)?.1;
        rest.split_whitespace().next()?.parse().ok()
    };
    let mut answers: Vec<f64> = text
        .lines()
        .filter_map(|line| Some(field(line, "seq=")? * 10.0 + field(line, "time=")?))
        .collect();
    answers.sort_by(f64::total_cmp);
    answers.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn host_of(lab: &Lab, vm: &str) -> String {
    lab.vm(PROJECT, vm)["host"].as_str().unwrap().to_owned()
}

/// VMs that all begin on the first host, since the others take none.
pub(super) fn all_on_the_first(lab: &Lab, hosts: u8, description: &str, count: usize) {
    let others: Vec<String> = (2..=hosts).map(|number| format!("host-{number}")).collect();
    for host in &others {
        lab.ok(&["host", "drain", host, "--cordon-only"]);
    }
    lab.apply(description);
    until_speaking(lab, count);
    for host in &others {
        lab.ok(&["host", "undrain", host]);
    }
    assert!(lab.vms(PROJECT).iter().all(|vm| vm["host"] == "host-1"));
}

pub(super) fn boots(lab: &Lab, count: usize) -> Vec<String> {
    let boot = |number| sh(lab, &format!("vm-{number}"), "cat /proc/sys/kernel/random/boot_id");
    (1..=count).map(boot).collect()
}

#[test]
fn vms_move_in_a_ring_and_nothing_of_theirs_is_harmed() {
    let count = number("PLIMSOLL_MIGRATIONS").unwrap_or(6);
    let Some(lab) = Lab::start_with(3, &["--local-disks"]) else { return };
    lab.apply(RING);
    until_speaking(&lab, 4);
    let anchor = lab.address(PROJECT, "anchor");
    (0..3).for_each(|index| put_to_work(&lab, index, &anchor));
    std::thread::sleep(Duration::from_secs(2));
    let (mut silences, mut downtimes, mut totals) = (Vec::new(), Vec::new(), Vec::new());
    for step in 0..count {
        let index = usize::try_from(step % 3).unwrap();
        let vm = mover(index);
        let before = check(&lab, index);
        let from = host_of(&lab, &vm);
        let to = match from.as_str() {
            "host-1" => "host-2",
            "host-2" => "host-3",
            _ => "host-1",
        };
        let address = lab.address(PROJECT, &vm);
        let ping = format!("ping -i 0.01 -w 12 {address} > /run/ping 2>&1 < /dev/null &");
        sh(&lab, "anchor", &ping);
        std::thread::sleep(Duration::from_millis(500));
        let moved = lab.json(&["-p", PROJECT, "vm", "migrate", &vm, "--to", to]);
        assert_eq!(moved["outcome"], "moved", "{moved}");
        assert_eq!(host_of(&lab, &vm), to);
        // It rests where it is now before it is looked at what it felt.
        std::thread::sleep(Duration::from_secs(1));
        sh(&lab, "anchor", "killall -INT ping; true");
        let silence = longest_silence(&sh(&lab, "anchor", "cat /run/ping"));
        eprintln!(
            "{step}: {vm} ({} MiB/s) from {from} to {to}: {} ms in all, stood still for {} ms, silent \
             for {silence:.0} ms{}",
            CHURN[index],
            moved["total_ms"],
            moved["downtime_ms"],
            if moved["post_copied"] == true { ", post-copy" } else { "" }
        );
        silences.push(silence);
        downtimes.push(moved["downtime_ms"].as_f64().unwrap());
        totals.push(moved["total_ms"].as_f64().unwrap());
        lab.wait("its talk goes on", SOON, || check(&lab, index) > before + 2);
    }
    for index in 0..3 {
        check(&lab, index);
    }
    let silence = median(&mut silences);
    eprintln!(
        "{count} moves: median silence {silence:.0} ms, downtime {:.0} ms, {:.0} ms in all",
        median(&mut downtimes),
        median(&mut totals)
    );
    if let Some(limit) = number("PLIMSOLL_DOWNTIME_MS") {
        assert!(silence <= limit as f64, "silent for {silence:.0} ms");
    }
    assert_eq!(tunnels(&lab), 0, "a tunnel is left");
    assert_eq!(lab.vms_running(), 4, "a QEMU is left");
}

//! Overloads that are found and ended by themselves, on a lab with real guests.
//!
//! `PLIMSOLL_NOISE_SECONDS` says how long a load swings around the threshold.

use std::time::{Duration, Instant};

use super::{
    lab::Lab,
    migration::{PROJECT, all_on_the_first, boots, sh},
};

const PATIENCE: Duration = Duration::from_secs(120);
/// In the background, for as long as the guest lives.
const SPIN: &str = "plimsoll-workload spin --seconds 0 > /dev/null 2>&1 < /dev/null &";

fn two_vms(resources: &str) -> String {
    format!(
        "project = \"{PROJECT}\"\n[[vm]]\nname = \"vm\"\ncount = 2\nimage = \"tiny\"\n\
         resources = {{ {resources} }}\n"
    )
}

fn balance(lab: &Lab, threshold: &str) {
    lab.ok(&["settings", "set", "--balance", "automatic", "--balance-threshold", threshold]);
}

/// Whether both VMs have a host of their own, and none moves.
fn apart(lab: &Lab) -> bool {
    let vms = lab.vms(PROJECT);
    vms[0]["host"] != vms[1]["host"] && vms.iter().all(|vm| vm["migration"].is_null())
}

#[test]
fn a_hotspot_is_found_and_one_of_its_vms_moves_away_for_good() {
    let Some(lab) = Lab::start_with(2, &["--cpu", "2"]) else { return };
    all_on_the_first(&lab, 2, &two_vms("cpu = \"1\", memory = \"128MiB\""), 2);
    let before = boots(&lab, 2);
    balance(&lab, "60%");
    for number in 1..=2 {
        sh(&lab, &format!("vm-{number}"), SPIN);
    }
    let began = Instant::now();
    lab.wait("each has a host of its own", PATIENCE, || apart(&lab));
    eprintln!("the hotspot was gone after {:.1} s", began.elapsed().as_secs_f64());
    std::thread::sleep(Duration::from_secs(15));
    assert!(apart(&lab), "they do not come together again");
    let status = lab.json(&["balance", "status"]);
    assert_eq!(status["moves_begun"], 1, "{status}");
    assert_eq!(boots(&lab, 2), before, "none was booted anew");
}

#[test]
fn an_application_whose_objective_breaks_is_helped_although_its_host_looks_idle() {
    let Some(lab) = Lab::start_with(2, &["--cpu", "4"]) else { return };
    all_on_the_first(&lab, 2, &two_vms("cpu = \"1\", memory = \"128MiB\""), 2);
    let before = boots(&lab, 2);
    // One of them takes a quarter of the host at most: nothing to worry about, seen from outside.
    sh(&lab, "vm-1", SPIN);
    balance(&lab, "75%");
    std::thread::sleep(Duration::from_secs(20));
    let status = lab.json(&["balance", "status"]);
    assert_eq!(status["moves_begun"], 0, "its host looks idle: {status}");
    // The other one's application takes five times as long as it may.
    let report = "mkdir -p /run/plimsoll; while true; do echo 50000 10000 > /run/plimsoll/latency.new; \
                  mv /run/plimsoll/latency.new /run/plimsoll/latency; sleep 2; done > /dev/null 2>&1 \
                  < /dev/null &";
    sh(&lab, "vm-2", &format!("({report})"));
    let began = Instant::now();
    lab.wait("it has a host of its own", PATIENCE, || apart(&lab));
    eprintln!("it was helped after {:.1} s", began.elapsed().as_secs_f64());
    let vms = lab.vms(PROJECT);
    let moved = vms.iter().find(|vm| vm["host"] == "host-2").unwrap();
    assert_eq!(moved["name"], "vm-2", "the one in need moves: {vms:?}");
    assert_eq!(boots(&lab, 2), before, "none was booted anew");
}

#[test]
fn a_load_that_swings_around_the_threshold_moves_little() {
    let seconds = std::env::var("PLIMSOLL_NOISE_SECONDS").ok();
    let seconds = seconds.and_then(|text| text.parse().ok()).unwrap_or(60);
    let Some(lab) = Lab::start_with(2, &["--cpu", "2"]) else { return };
    all_on_the_first(&lab, 2, &two_vms("cpu = \"1\", memory = \"128MiB\""), 2);
    // Each computes for one to five seconds and rests for as long: about half of its host together.
    for number in 1..=2 {
        let noise = "(while true; do plimsoll-workload spin --seconds $((RANDOM % 5 + 1)); \
                     sleep $((RANDOM % 5 + 1)); done) > /dev/null 2>&1 < /dev/null &";
        sh(&lab, &format!("vm-{number}"), noise);
    }
    balance(&lab, "50%");
    let (began, mut hottest) = (Instant::now(), 0.0_f64);
    while began.elapsed() < Duration::from_secs(seconds) {
        let status = lab.json(&["balance", "status"]);
        let loads = status["hosts"].as_array().unwrap().iter();
        let cpu = loads.filter_map(|host| host["cpu_percent"].as_f64());
        hottest = cpu.fold(hottest, f64::max);
        std::thread::sleep(Duration::from_secs(2));
    }
    let status = lab.json(&["balance", "status"]);
    let moves = status["moves_begun"].as_u64().unwrap();
    eprintln!("{moves} moves in {seconds} s of noise, at most {hottest:.0} % of a host");
    assert!(hottest > 50.0, "the threshold was never passed: {status}");
    assert!(moves <= 2, "{status}");
}

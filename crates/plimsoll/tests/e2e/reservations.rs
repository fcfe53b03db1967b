//! Booked time, with real guests: one waits for another, and moves up when that one goes early.

use std::time::Duration;

use super::{lab::Lab, observer::Observer};

const PROJECT: &str = "shop";
const PATIENCE: Duration = Duration::from_secs(120);

/// Most of the only host's cores, so that two cannot run at a time.
fn create<'a>(name: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["-p", PROJECT, "vm", "create", name, "--image", "tiny"];
    arguments.extend(["--memory", "128MiB", "--cpu", "3"]);
    arguments.extend(more);
    arguments
}

fn instant(value: &serde_json::Value) -> jiff::Timestamp {
    value.as_str().unwrap_or_else(|| panic!("no instant: {value}")).parse().unwrap()
}

#[test]
fn a_booked_vm_starts_when_the_one_before_it_goes_and_stops_at_its_end() {
    let Some(lab) = Lab::start(1) else { return };
    let observer = Observer::start(&lab, 4096);
    lab.ok(&["project", "create", PROJECT]);
    let first = lab.json(&create("first", &["--duration", "1h"]));
    assert_eq!(first["vms"][0]["state"], "running");
    let end = instant(&first["vms"][0]["spec"]["end_at"]);

    // The next one is promised the time behind it, and nobody the time in which it runs.
    let second = lab.json(&create("second", &["--duration", "40s", "--deadline", "+5h"]));
    let second = &second["vms"][0];
    assert_eq!(second["state"], "pending");
    assert!(instant(&second["booking"]["starts_at"]) >= end, "{second}");
    let refused = lab.run(&create("third", &["--duration", "20s", "--deadline", "+10m"]));
    assert_ne!(refused.code, Some(0));
    assert!(refused.stderr.contains("the first time it would fit is"), "{}", refused.stderr);
    let listed = lab.json(&["-p", PROJECT, "reservation", "list"]);
    let states: Vec<_> = listed.as_array().unwrap().iter().map(|one| &one["state"]).collect();
    assert_eq!(states, ["booked", "begun"], "{listed}");

    // It moves up as soon as there is room, and has all of its time.
    let second = second["id"].as_str().unwrap();
    assert!(observer.qemu(second).is_none());
    lab.ok(&["-p", PROJECT, "vm", "delete", "first"]);
    lab.wait("it runs long before its time", PATIENCE, || {
        observer.qemu(second).is_some() && lab.vm(PROJECT, "second")["state"] == "running"
    });
    let begun = lab.json(&["-p", PROJECT, "reservation", "list"]);
    let (from, until) = (instant(&begun[0]["starts_at"]), instant(&begun[0]["ends_at"]));
    assert_eq!(until.duration_since(from).as_secs(), 40, "{begun}");
    lab.wait("it is stopped at its end", PATIENCE, || {
        observer.qemu(second).is_none() && lab.vm(PROJECT, "second")["state"] == "stopped"
    });
    assert!(jiff::Timestamp::now() >= until, "not before its end");
}

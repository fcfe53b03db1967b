//! A host that is cut off: its VMs run elsewhere, and it comes back without them.

use std::{
    io::{BufRead as _, BufReader},
    time::Duration,
};

use super::lab::Lab;

const PAIR: &str = r#"
project = "shop"

[[vm]]
name = "db"
count = 2
image = "tiny"
resources = { cpu = "250m", memory = "128MiB" }
groups = ["db"]
constraints = [{ anti_affinity = { group = "db" } }]
"#;

#[test]
fn the_vm_of_a_lost_host_is_restarted_on_another() {
    let Some(lab) = Lab::start(3) else { return };
    lab.ok(&[
        "settings",
        "set",
        "--unreachable-after",
        "4s",
        "--dead-after",
        "12s",
        "--lease",
        "8s",
    ]);
    lab.apply(PAIR);
    let lost = lab.vm("shop", "db-1")["host"].as_str().unwrap().to_owned();
    let stays = lab.vm("shop", "db-2")["host"].as_str().unwrap().to_owned();

    lab.cut(&lost);
    lab.wait("db-1 runs on another host", Duration::from_secs(12 + 30), || {
        let vm = lab.vm("shop", "db-1");
        vm["state"] == "running" && vm["host"] != lost.as_str()
    });
    assert_eq!(lab.vm("shop", "db-2")["host"], stays.as_str(), "the other one stayed");
    let now = lab.vm("shop", "db-1")["host"].as_str().unwrap().to_owned();
    assert_ne!(now, stays, "anti-affinity holds in a failover too");

    lab.mend(&lost);
    lab.wait("the host is back and empty", Duration::from_secs(60), || {
        let host = lab.json(&["host", "show", &lost]);
        host["state"] == "up" && host["vms"] == 0
    });
    assert_eq!(lab.vms_running(), 2, "none runs twice");
}

#[test]
fn a_lab_that_was_taken_down_comes_back_with_its_vms() {
    let Some(lab) = Lab::start(2) else { return };
    lab.apply(PAIR);
    let mut follower = lab.spawn(&["events", "--follow", "--json"]);
    // It follows once it has shown something; before that a manager out of reach is an error.
    let mut events = BufReader::new(follower.stdout.take().unwrap()).lines();
    events.next().expect("there are events").unwrap();
    lab.down();
    assert_eq!(lab.vms_running(), 0, "QEMUs are left");
    lab.heal();
    lab.wait("both VMs run again", Duration::from_secs(90), || {
        lab.vms("shop").iter().all(|vm| vm["state"] == "running" && vm["guest"].is_object())
    });
    // The follower lived through the manager's end.
    let gave_up = follower.try_wait().unwrap();
    follower.kill().unwrap();
    drop(events);
    let output = follower.wait_with_output().unwrap();
    assert!(gave_up.is_none(), "gave up: {}", String::from_utf8_lossy(&output.stderr));
}

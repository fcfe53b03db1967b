//! `examples/webshop.toml` on three hosts: placed as it asks, reachable as it asks, changed as little
//! as can be, and gone without a trace.

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value;

use super::lab::Lab;

const EXAMPLE: &str = include_str!("../../../../examples/webshop.toml");
const PROJECT: &str = "webshop";

fn hosts_of(vms: &[Value], prefix: &str) -> Vec<String> {
    vms.iter()
        .filter(|vm| vm["name"].as_str().unwrap().starts_with(prefix))
        .map(|vm| vm["host"].as_str().unwrap().to_owned())
        .collect()
}

fn boot_of(lab: &Lab, vm: &str) -> String {
    lab.exec(PROJECT, vm, &["cat", "/proc/sys/kernel/random/boot_id"])
}

#[test]
fn the_webshop_from_the_first_apply_to_the_last() {
    let Some(lab) = Lab::start(3) else { return };
    let first = lab.apply(EXAMPLE);
    assert!(first.stdout.contains("+ vm web-1"), "the plan comes first:\n{}", first.stdout);

    let vms = lab.vms(PROJECT);
    assert!(vms.len() >= 8, "{}", lab.picture());
    for vm in &vms {
        assert_eq!(vm["state"], "running", "{vm:#}");
        assert!(vm["addresses"][0].is_string(), "{vm:#}");
    }
    let distinct: BTreeSet<_> = hosts_of(&vms, "web-").into_iter().collect();
    assert_eq!(distinct.len(), 3, "front ends are on different hosts");
    let distinct: BTreeSet<_> = hosts_of(&vms, "db-").into_iter().collect();
    assert_eq!(distinct.len(), 2, "the database pair is on different hosts");
    assert!(hosts_of(&vms, "batch-").len() >= 3);

    the_network_joins_hosts_and_separates_projects(&lab, &vms);

    let second = lab.apply(EXAMPLE);
    assert_eq!(second.stdout, "no changes\n");

    let boots: Vec<_> = ["payment", "web-1"].map(|vm| boot_of(&lab, vm)).into();
    let third = lab.apply(&EXAMPLE.replace("cpu = \"250m\", memory", "cpu = \"200m\", memory"));
    let changes: Vec<_> = third.stdout.lines().filter(|line| line.starts_with("  ~")).collect();
    assert_eq!(changes, ["  ~ vm payment           cpu 250m -> 200m"]);
    assert_eq!(lab.vm(PROJECT, "payment")["limits"]["cpu"], "200m");
    let after: Vec<_> = ["payment", "web-1"].map(|vm| boot_of(&lab, vm)).into();
    assert_eq!(boots, after, "nothing was restarted");

    let deleted = lab.apply_with(EXAMPLE, &["--delete"]).succeeded();
    assert!(deleted.stdout.contains("- project webshop"), "{}", deleted.stdout);
    let project = lab.run(&["project", "show", PROJECT]);
    assert_eq!(project.code, Some(1), "{}", project.stdout);
    lab.wait("no QEMU is left", Duration::from_secs(20), || {
        lab.status()["parts"].as_array().unwrap().iter().all(|part| part["vms"] == 0)
    });
}

/// Front ends reach each other across hosts; another project's VM reaches none of them.
fn the_network_joins_hosts_and_separates_projects(lab: &Lab, vms: &[Value]) {
    let kernel = lab.exec(PROJECT, "web-1", &["uname", "-r"]);
    assert!(kernel.contains("cloud"), "{kernel}");
    let on = |name: &str| hosts_of(vms, name).remove(0);
    assert_ne!(on("web-1"), on("web-2"));
    let url = format!("http://{}/", lab.address(PROJECT, "web-2"));
    let page = lab.exec(PROJECT, "web-1", &["wget", "-qO-", &url]);
    assert!(page.contains("web-2"), "{page}");

    let other = "project = \"other\"\n[[network]]\nname = \"net\"\ncidr = \"10.20.0.0/24\"\n\
        [[vm]]\nname = \"spy\"\nimage = \"tiny\"\nnetworks = [\"net\"]\n\
        resources = { cpu = \"250m\", memory = \"128MiB\" }\n";
    lab.apply(other);
    // The spy's own address is one of those; nobody answers at any other.
    let own = lab.address("other", "spy");
    let victim = ["web-1", "web-2", "web-3"]
        .map(|vm| lab.address(PROJECT, vm))
        .into_iter()
        .find(|address| *address != own)
        .unwrap();
    let spied = lab.try_exec("other", "spy", &["wget", "-qO-", &format!("http://{victim}/")]);
    assert_ne!(spied.code, Some(0), "{}", spied.stdout);
    assert_eq!(spied.stdout, "");
    lab.apply_with(other, &["--delete"]).succeeded();
}

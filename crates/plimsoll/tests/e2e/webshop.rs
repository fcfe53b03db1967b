//! `examples/webshop.toml` on three hosts: placed as it asks, reachable as it asks, changed as little
//! as can be, and gone without a trace.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
    time::Duration,
};

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

/// Which boot of its guest each VM is in.
fn boots(lab: &Lab, vms: &[Value]) -> BTreeMap<String, String> {
    let boot_id = |vm: &Value| {
        let name = vm["name"].as_str().unwrap();
        let boot = lab.exec(PROJECT, name, &["cat", "/proc/sys/kernel/random/boot_id"]);
        (name.to_owned(), boot)
    };
    vms.iter().map(boot_id).collect()
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

    assert!(!left_over(&lab).is_empty(), "what is counted at the end is there now");
    the_network_joins_hosts(&lab, &vms);

    let second = lab.apply(EXAMPLE);
    assert_eq!(second.stdout, "no changes\n");

    let before = boots(&lab, &vms);
    let third = lab.apply(&EXAMPLE.replace("cpu = \"250m\", memory", "cpu = \"200m\", memory"));
    let changes: Vec<_> = third.stdout.lines().filter(|line| line.starts_with("  ~")).collect();
    assert_eq!(changes, ["  ~ vm payment           cpu 250m -> 200m"]);
    assert_eq!(lab.vm(PROJECT, "payment")["limits"]["cpu"], "200m");
    assert_eq!(boots(&lab, &vms), before, "nothing was restarted");
    for vm in lab.vms(PROJECT) {
        let changed = vm["name"] == "payment";
        assert_eq!(vm["generation"], if changed { 2 } else { 1 }, "only that VM: {vm:#}");
        assert_eq!(vm["restarts"], 0, "{vm:#}");
    }

    let deleted = lab.apply_with(EXAMPLE, &["--delete"]).succeeded();
    assert!(deleted.stdout.contains("- project webshop"), "{}", deleted.stdout);
    let project = lab.run(&["project", "show", PROJECT]);
    assert_eq!(project.code, Some(1), "{}", project.stdout);
    assert!(lab.json(&["vm", "list", "--all-projects"]).as_array().unwrap().is_empty());
    lab.wait("nothing is left on the hosts", Duration::from_secs(20), || {
        let left = left_over(&lab);
        eprintln!("left over: {left:?}");
        left.is_empty()
    });
}

fn the_network_joins_hosts(lab: &Lab, vms: &[Value]) {
    let on = |name: &str| hosts_of(vms, name).remove(0);
    assert_ne!(on("web-1"), on("web-2"));
    let url = format!("http://{}/", lab.address(PROJECT, "web-2"));
    assert_eq!(lab.exec(PROJECT, "web-1", &["wget", "-qO-", &url]), "web-2");
}

/// What there is of VMs on the lab's hosts, apart from what the manager knows: processes, devices,
/// cgroups, directories with disks.
fn left_over(lab: &Lab) -> Vec<String> {
    let mut left = Vec::new();
    match lab.vms_running() {
        0 => {}
        count => left.push(format!("{count} QEMUs")),
    }
    let mut directories = vec![lab.directory().join("pool")];
    for host in ["host-1", "host-2", "host-3"] {
        let namespace = format!("plimsoll-{}-{host}", lab.name());
        let links = Command::new("ip")
            .args(["-netns", &namespace, "-json", "link", "show"])
            .output()
            .unwrap();
        let links: Vec<Value> = serde_json::from_slice(&links.stdout).unwrap();
        let names = links.iter().map(|link| link["ifname"].as_str().unwrap());
        // Taps, bridges, VXLANs and what limits them; not the host's own link.
        left.extend(names.filter(|name| name.starts_with("pl")).map(str::to_owned));
        directories.push(lab.directory().join("hosts").join(host).join("vms"));
        // Of version 2, and of each hierarchy of version 1.
        directories.push(Path::new("/sys/fs/cgroup").join(&namespace));
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap();
        directories.extend(hierarchies.map(|entry| entry.unwrap().path().join(&namespace)));
    }
    for directory in directories {
        // One that there is not holds nothing.
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        let vms = entries
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("vm-"));
        left.extend(vms.map(|entry| entry.path().display().to_string()));
    }
    left
}

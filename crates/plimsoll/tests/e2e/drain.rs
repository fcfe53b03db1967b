//! A host is emptied for maintenance, on a lab with real guests.
//!
//! `PLIMSOLL_DRAINED` says how many VMs it has: at least three.

use std::collections::BTreeMap;

use super::{
    lab::Lab,
    migration::{PROJECT, sh, until_speaking},
    observer::Observer,
};

/// What each host has: enough for all of the VMs, and not for those of two hosts.
const MEMORY_MIB: u64 = 2560;
const HOSTS: [&str; 4] = ["host-1", "host-2", "host-3", "host-4"];

fn vms(name: &str, count: usize, more: &str) -> String {
    format!(
        "project = \"{PROJECT}\"\n[[vm]]\nname = \"{name}\"\ncount = {count}\nimage = \"tiny\"\n\
         resources = {{ cpu = \"500m\", memory = \"128MiB\", disk = \"64MiB\" }}\n{more}"
    )
}

/// New VMs are placed on these hosts only.
fn open_only(lab: &Lab, open: &[&str]) {
    for host in HOSTS {
        if open.contains(&host) {
            lab.ok(&["host", "undrain", host]);
        } else {
            lab.ok(&["host", "drain", host, "--cordon-only"]);
        }
    }
}

/// Where each VM is, by its name.
fn places(lab: &Lab) -> BTreeMap<String, String> {
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    lab.vms(PROJECT).iter().map(|vm| (text(&vm["name"]), text(&vm["host"]))).collect()
}

fn boots(lab: &Lab) -> BTreeMap<String, String> {
    let boot = |vm: String| {
        let id = sh(lab, &vm, "cat /proc/sys/kernel/random/boot_id");
        (vm, id)
    };
    places(lab).into_keys().map(boot).collect()
}

#[test]
fn a_host_is_emptied_and_no_rule_is_broken_on_the_way() {
    let count = std::env::var("PLIMSOLL_DRAINED").ok().and_then(|text| text.parse().ok());
    let count: usize = count.unwrap_or(6);
    let memory = format!("{MEMORY_MIB}MiB");
    let options = ["--local-disks", "--cpu", "8", "--memory", &memory];
    let Some(lab) = Lab::start_with(4, &options) else { return };
    // Two pairs that must not share a host, with one of each on the first; the rest is all there.
    let apart = |group: &str| {
        format!(
            "groups = [\"{group}\"]\n\
             constraints = [{{ anti_affinity = {{ group = \"{group}\", scope = \"host\" }} }}]\n"
        )
    };
    open_only(&lab, &["host-1", "host-2"]);
    lab.apply(&vms("web", 2, &apart("web")));
    open_only(&lab, &["host-1", "host-3"]);
    lab.apply(&vms("db", 2, &apart("db")));
    until_speaking(&lab, 4);
    open_only(&lab, &["host-1"]);
    lab.apply(&vms("vm", count - 2, ""));
    until_speaking(&lab, count + 2);
    open_only(&lab, &HOSTS);
    let before = places(&lab);
    assert_eq!(before.values().filter(|host| *host == "host-1").count(), count, "{before:?}");
    let booted = boots(&lab);

    let observer = Observer::start(&lab, MEMORY_MIB);
    observer.expect_moves();
    for vm in lab.vms(PROJECT) {
        let name = vm["name"].as_str().unwrap();
        if let Some((group, _)) = name.split_once('-').filter(|(group, _)| *group != "vm") {
            observer.keep_apart(vm["id"].as_str().unwrap(), group);
        }
    }
    let drained = lab.ok(&["host", "drain", "host-1", "--max-parallel", "3"]);
    println!("{}", drained.stdout);
    let after = places(&lab);
    assert!(after.values().all(|host| host != "host-1"), "{after:?}");
    for group in ["web", "db"] {
        let [one, two] = [1, 2].map(|number| &after[&format!("{group}-{number}")]);
        assert_ne!(one, two, "{after:?}");
    }
    let stayed = |(vm, host): &(&String, &String)| *host != "host-1" && after[*vm] != **host;
    assert_eq!(before.iter().find(stayed), None, "others stay where they are");
    assert_eq!(boots(&lab), booted, "none was booted anew");
    assert!(observer.looks() > 20, "it was looked at all the time");
    observer.assert_clean();
    lab.ok(&["host", "undrain", "host-1"]);
    assert_eq!(places(&lab), after, "none is brought back");
}

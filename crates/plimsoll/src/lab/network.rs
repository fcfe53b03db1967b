//! Namespaces and links of a lab. Every call makes something true and may be made again.

use std::{net::Ipv4Addr, process::Command};

use super::layout::{
    Lab, LabSpec, MANAGER, host_address, host_names, manager_address, switch_port,
};
use crate::failure::{Failure, OrFail as _, Outcome};

/// The part that is the switch.
const SWITCH: &str = "sw";

/// Runs `ip`, and fails with what it said.
fn ip(arguments: &[&str]) -> Outcome<String> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .or_fail(|| "cannot run `ip`: install the package iproute2".to_owned())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Failure::new(said).context(format!("`ip {}` failed", arguments.join(" "))))
}

/// Whether a namespace is there.
pub(crate) fn exists(lab: &Lab, part: &str) -> bool {
    lab.namespace_path(part).exists()
}

fn ensure_namespace(lab: &Lab, part: &str) -> Outcome {
    let name = lab.namespace(part);
    if !exists(lab, part) {
        ip(&["netns", "add", &name])?;
    }
    ip(&["-n", &name, "link", "set", "lo", "up"]).map(drop)
}

/// Makes every namespace and link that is missing. Returns the parts whose namespace was made anew:
/// nothing that is remembered can be running in them.
pub(crate) fn ensure(lab: &Lab, spec: &LabSpec) -> Outcome {
    ensure_namespace(lab, SWITCH)?;
    let switch = lab.namespace(SWITCH);
    if !link_exists(&switch, "br0") {
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"])?;
    }
    ip(&["-n", &switch, "link", "set", "br0", "up"])?;
    ensure_port(lab, MANAGER, 0, manager_address())?;
    for (number, host) in host_names(spec.hosts) {
        ensure_port(lab, &host, number, host_address(number))?;
    }
    Ok(())
}

fn link_exists(namespace: &str, link: &str) -> bool {
    ip(&["-n", namespace, "link", "show", "dev", link]).is_ok()
}

fn ensure_port(lab: &Lab, part: &str, number: u8, address: Ipv4Addr) -> Outcome {
    ensure_namespace(lab, part)?;
    let (switch, inside) = (lab.namespace(SWITCH), lab.namespace(part));
    let port = switch_port(number);
    if !(link_exists(&switch, &port) && link_exists(&inside, "eth0")) {
        // Half a pair is of no use: the other end went with its namespace.
        let _ = ip(&["-n", &switch, "link", "del", &port]);
        ip(&[
            "-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns",
            &inside,
        ])?;
    }
    ip(&["-n", &switch, "link", "set", &port, "master", "br0"])?;
    let address = format!("{address}/24");
    ip(&["-n", &inside, "addr", "replace", &address, "dev", "eth0"])?;
    ip(&["-n", &inside, "link", "set", "eth0", "up"])?;
    set_link(lab, number, true)
}

/// Takes a part's link up or down, at the switch.
pub(crate) fn set_link(lab: &Lab, number: u8, up: bool) -> Outcome {
    let state = if up { "up" } else { "down" };
    let switch = lab.namespace(SWITCH);
    ip(&["-n", &switch, "link", "set", &switch_port(number), state]).map(drop)
}

/// The namespaces of the lab that are there, by part.
pub(crate) fn parts(lab: &Lab) -> Vec<String> {
    let prefix = lab.namespace("");
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return Vec::new() };
    let mut parts: Vec<String> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| name.strip_prefix(&prefix).map(str::to_owned))
        // A lab `a` must not take `a-b`'s namespaces for its own.
        .filter(|part| {
            part == SWITCH
                || part == MANAGER
                || part.strip_prefix("host-").is_some_and(|number| number.parse::<u8>().is_ok())
        })
        .collect();
    parts.sort();
    parts
}

/// Removes the lab's namespaces, with every link in them.
pub(crate) fn remove(lab: &Lab) -> Outcome {
    for part in parts(lab) {
        ip(&["netns", "del", &lab.namespace(&part)])?;
    }
    Ok(())
}

//! Takes a lab down, or harms it on purpose.

use std::{path::Path, time::Duration};

use fs_err as fs;
use rustix::process::Signal;

use super::{
    layout::{Lab, LabState, MANAGER, host_names},
    network,
    process::{Recorded, end, vm_processes},
};
use crate::{
    config::ConfigFile,
    failure::{Failure, OrFail as _, Outcome},
    output::progress::Progress,
};

/// What the manager and agents get to end by themselves.
const SERVER_GRACE: Duration = Duration::from_secs(8);
/// What a guard gets to end by itself once its QEMU is gone.
const GUARD_GRACE: Duration = Duration::from_secs(4);

/// Ends every process of the lab, and removes its namespaces.
pub(crate) fn down(lab: &Lab, progress: &Progress) -> Outcome {
    let state = lab.load()?;
    let mut state = state.ok_or_else(|| lab.not_there())?;
    progress.set("ending the manager and the agents");
    let servers: Vec<Recorded> = state.processes.values().cloned().collect();
    let mut left = end(&servers, SERVER_GRACE);
    progress.set("ending the VMs");
    // QEMU first: its guard ends with it. Nobody starts one any more. A QEMU that is asked to end does
    // so like one whose guest powered itself off, which the next `up` would not start again.
    // A tunnel ends with its QEMU, at once or soon.
    for (kind, grace) in [("qemu", Duration::ZERO), ("tunnel", GUARD_GRACE), ("guard", GUARD_GRACE)]
    {
        let processes = vm_processes(lab)
            .iter()
            .filter(|process| process.kind == kind)
            .map(super::process::VmProcess::recorded)
            .collect::<Outcome<Vec<_>>>()?;
        left.extend(end(&processes, grace));
    }
    if let Some(process) = left.first() {
        return Err(Failure::new(format!("process {} does not end", process.pid))
            .context(format!("cannot take lab `{}` down", lab.name)));
    }
    progress.set("removing the namespaces");
    network::remove(lab)?;
    for (_, host) in host_names(state.spec.hosts) {
        remove_cgroups(&lab.cgroup(&host));
        // An agent leaves it while VMs are held to less memory; now none lives.
        plimsoll_agent::swap::remove(&lab.host_directory(&host))
            .or_fail(|| format!("cannot remove the swap space of {host}"))?;
    }
    state.processes.clear();
    state.cut.clear();
    lab.save(&state)
}

/// Deletes the lab's data and forgets its context.
pub(crate) fn purge(lab: &Lab) -> Outcome {
    // Only what a lab makes: a directory that was named by mistake keeps the rest.
    for part in [MANAGER, "hosts", "pool", "logs", "config"] {
        remove_directory(&lab.directory.join(part))?;
    }
    for file in ["lab.json", "lock"] {
        match fs::remove_file(lab.directory.join(file)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    // Not empty: somebody keeps other things there.
    let _ = fs::remove_dir(&lab.directory);
    let server = super::status::server(lab);
    let config = ConfigFile::load()?;
    if config.contexts.get(&lab.name).is_some_and(|context| context.server == server) {
        ConfigFile::change(|config| {
            config.contexts.remove(&lab.name);
            config.current.take_if(|current| *current == lab.name);
        })?;
    }
    Ok(())
}

fn remove_directory(path: &Path) -> Outcome {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Removes a host's cgroups, which are empty now, from every hierarchy.
fn remove_cgroups(name: &str) {
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mounts") else { return };
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(place), Some(kind)) = (fields.next(), fields.next()) else { continue };
        if kind == "cgroup" || kind == "cgroup2" {
            remove_tree(&Path::new(place).join(name));
        }
    }
}

/// Removes a cgroup with those below it. Their files cannot be removed, and need not be.
fn remove_tree(group: &Path) {
    let Ok(entries) = std::fs::read_dir(group) else { return };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(group);
}

/// Kills the manager or a host's agent at once.
pub(crate) fn kill(lab: &Lab, target: &str) -> Outcome {
    let state = lab.load()?.ok_or_else(|| lab.not_there())?;
    let process = part(lab, &state, target)?;
    if !process.is_some_and(Recorded::is_alive) {
        return Err(Failure::new(format!("{target} of lab `{}` does not run", lab.name))
            .hint("`plimsoll lab up` starts it"));
    }
    if let Some(process) = process {
        process.signal(Signal::KILL);
        let dead = end(std::slice::from_ref(process), Duration::from_secs(5)).is_empty();
        if !dead {
            return Err(Failure::new(format!("process {} does not end", process.pid)));
        }
    }
    Ok(())
}

fn part<'a>(lab: &Lab, state: &'a LabState, target: &str) -> Outcome<Option<&'a Recorded>> {
    if target != MANAGER {
        host_number(lab, state, target)?;
    }
    Ok(state.processes.get(target))
}

fn host_number(lab: &Lab, state: &LabState, target: &str) -> Outcome<u8> {
    host_names(state.spec.hosts)
        .find(|(_, name)| name == target)
        .map(|(number, _)| number)
        .ok_or_else(|| {
            Failure::usage(format!("lab `{}` has no host `{target}`", lab.name))
                .hint(format!("its hosts are host-1 to host-{}", state.spec.hosts))
        })
}

/// Takes a host's link down, or up again.
pub(crate) fn set_link(lab: &Lab, target: &str, up: bool) -> Outcome {
    let mut state = lab.load()?.ok_or_else(|| lab.not_there())?;
    let number = host_number(lab, &state, target)?;
    network::set_link(lab, number, up)?;
    state.cut.retain(|name| name != target);
    if !up {
        state.cut.push(target.to_owned());
    }
    lab.save(&state)
}

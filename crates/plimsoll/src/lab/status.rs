//! What of a lab lives.

use std::path::Path;

use serde::Serialize;

use super::{
    layout::{Lab, LabState, MANAGER, host_address, host_names, manager_address},
    network,
    process::vm_processes,
};
use crate::{
    failure::Outcome,
    output::{Output, Tone, or_dash},
};

/// A lab, for programs.
#[derive(Debug, Serialize)]
pub(crate) struct LabStatus {
    pub(crate) name: String,
    pub(crate) directory: std::path::PathBuf,
    /// Where commands reach the manager.
    pub(crate) server: String,
    /// The manager and the hosts.
    pub(crate) parts: Vec<PartStatus>,
}

/// The manager or a host.
#[derive(Debug, Serialize)]
pub(crate) struct PartStatus {
    pub(crate) name: String,
    /// Of the manager or the agent, if one was started.
    pub(crate) pid: Option<i32>,
    pub(crate) alive: bool,
    /// Whether its link is up: not cut off.
    pub(crate) connected: bool,
    pub(crate) address: String,
    /// QEMUs that run there.
    pub(crate) vms: usize,
    pub(crate) log: std::path::PathBuf,
}

impl LabStatus {
    /// Looks at a lab.
    pub(crate) fn of(lab: &Lab, state: &LabState) -> Self {
        let vms = vm_processes(lab);
        let part = |name: &str, address: String| {
            let process = state.processes.get(name);
            PartStatus {
                name: name.to_owned(),
                pid: process.map(|process| process.pid),
                alive: process.is_some_and(super::process::Recorded::is_alive),
                connected: network::exists(lab, name) && !state.cut.iter().any(|cut| cut == name),
                address,
                vms: vms.iter().filter(|vm| vm.host == name && vm.kind == "qemu").count(),
                log: lab.log(name),
            }
        };
        let mut parts = vec![part(MANAGER, manager_address().to_string())];
        for (number, host) in host_names(state.spec.hosts) {
            parts.push(part(&host, host_address(number).to_string()));
        }
        Self {
            name: lab.name.to_string(),
            directory: lab.directory.clone(),
            server: server(lab),
            parts,
        }
    }
}

/// Where commands reach the manager.
pub(crate) fn server(lab: &Lab) -> String {
    format!("unix:{}", lab.socket().display())
}

/// Shows a lab.
pub(crate) fn show(lab: &Lab, output: Output) -> Outcome {
    let state = lab.load()?.ok_or_else(|| lab.not_there())?;
    output.show(&LabStatus::of(lab, &state), render)
}

/// A lab as people read it.
pub(crate) fn render(output: &Output, status: &LabStatus) -> String {
    let mut table = output.table(&["PART", "STATE", "PID", "ADDRESS", "LINK", "VMS", "LOG"]);
    for part in &status.parts {
        let (state, tone) = match (part.alive, part.pid) {
            (true, _) => ("alive", Tone::Good),
            (false, Some(_)) => ("dead", Tone::Bad),
            (false, None) => ("not started", Tone::Attention),
        };
        let log = part.log.strip_prefix(&status.directory).map_or(part.log.as_path(), Path::new);
        table.add_row([
            output.cell(&part.name, Tone::Plain),
            output.cell(state, tone),
            output.cell(or_dash(part.pid), Tone::Plain),
            output.cell(&part.address, Tone::Plain),
            output.cell(
                if part.connected { "up" } else { "cut" },
                if part.connected { Tone::Plain } else { Tone::Bad },
            ),
            output.cell(
                if part.name == MANAGER { "-".to_owned() } else { part.vms.to_string() },
                Tone::Plain,
            ),
            output.cell(log.display(), Tone::Plain),
        ]);
    }
    format!("lab {} in {}\n\n{}", status.name, status.directory.display(), output.finish(table))
}

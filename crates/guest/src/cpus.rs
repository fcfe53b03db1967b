//! Counts CPUs, and switches them on and off through sysfs.
//!
//! A vCPU that the host plugs in is offline until someone writes 1 to its `online` file. Taking one
//! off means the same file, never an unplug: QEMU 10.0 under TCG dies when an unplugged vCPU comes
//! back.

use std::io;

use plimsoll_api::guest::{CpuCounts, MAX_CPUS};

use crate::system::System;

const DIRECTORY: &str = "sys/devices/system/cpu";

/// Why CPUs could not be counted or switched.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// A list of CPUs could not be read.
    #[error("cannot read the list of {list} CPUs")]
    Read {
        /// `present` or `online`.
        list: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A list of CPUs is not in the kernel's form.
    #[error("the list of {list} CPUs is malformed")]
    Malformed {
        /// `present` or `online`.
        list: &'static str,
    },
    /// A CPU could not be switched.
    #[error("cannot switch CPU {cpu} {}", if *online { "on" } else { "off" })]
    Switch {
        /// Its number.
        cpu: u32,
        /// What was wanted.
        online: bool,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// How many CPUs are plugged in and how many run.
///
/// # Errors
/// The kernel's lists can't be read.
pub fn count(system: &System) -> Result<CpuCounts, CpuError> {
    let count = |list| Ok(u32::try_from(read(system, list)?.len()).unwrap_or(MAX_CPUS));
    Ok(CpuCounts { present: count("present")?, online: count("online")? })
}

/// Switches CPUs until `wanted` of those present run: the lowest come on first, the highest go off
/// first, and those that cannot go off (the first one) stay. Returns what was reached.
///
/// # Errors
/// The lists can't be read, or the kernel refused to switch a CPU.
pub fn set_online(system: &System, wanted: u32) -> Result<CpuCounts, CpuError> {
    let present = read(system, "present")?;
    let online = read(system, "online")?;
    let mut running = online.len();
    let wanted = usize::try_from(wanted.max(1)).unwrap_or(usize::MAX);
    for cpu in present.iter().filter(|cpu| !online.contains(cpu)) {
        if running >= wanted {
            break;
        }
        switch(system, *cpu, true)?;
        running += 1;
    }
    for cpu in online.iter().rev() {
        if running <= wanted {
            break;
        }
        // The boot CPU has no such file.
        if switch_file(system, *cpu).exists() {
            switch(system, *cpu, false)?;
            running -= 1;
        }
    }
    count(system)
}

fn switch_file(system: &System, cpu: u32) -> std::path::PathBuf {
    system.path(DIRECTORY).join(format!("cpu{cpu}/online"))
}

fn switch(system: &System, cpu: u32, online: bool) -> Result<(), CpuError> {
    std::fs::write(switch_file(system, cpu), if online { "1" } else { "0" })
        .map_err(|source| CpuError::Switch { cpu, online, source })
}

fn read(system: &System, list: &'static str) -> Result<Vec<u32>, CpuError> {
    let text = system
        .read(format!("{DIRECTORY}/{list}"))
        .map_err(|source| CpuError::Read { list, source })?;
    parse_list(text.trim()).ok_or(CpuError::Malformed { list })
}

/// Reads the kernel's form of a set of CPUs, as `0-3,5`.
fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= MAX_CPUS {
            return None;
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        assert_eq!(parse_list("0-3,5"), Some(vec![0, 1, 2, 3, 5]));
        assert_eq!(parse_list(""), Some(vec![]));
        for bad in ["x", "3-1", "0-99999999", "1-", "-1"] {
            assert_eq!(parse_list(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_lowest_come_on_and_the_highest_go_off() {
        let root = tempfile::tempdir().unwrap();
        let system = System::at(root.path());
        let directory = system.path(DIRECTORY);
        for cpu in 0..4 {
            std::fs::create_dir_all(directory.join(format!("cpu{cpu}"))).unwrap();
            if cpu > 0 {
                std::fs::write(directory.join(format!("cpu{cpu}/online")), "?").unwrap();
            }
        }
        let online =
            |cpu: u32| std::fs::read_to_string(directory.join(format!("cpu{cpu}/online"))).unwrap();
        std::fs::write(directory.join("present"), "0-3\n").unwrap();
        std::fs::write(directory.join("online"), "0\n").unwrap();
        set_online(&system, 3).unwrap();
        assert_eq!([online(1), online(2), online(3)], ["1", "1", "?"]);

        std::fs::write(directory.join("online"), "0-3\n").unwrap();
        let reached = set_online(&system, 0).unwrap();
        assert_eq!([online(1), online(2), online(3)], ["0", "0", "0"]);
        assert_eq!(reached, CpuCounts { present: 4, online: 4 });
    }

    #[test]
    fn this_machine_has_cpus() {
        let counts = count(&System::default()).unwrap();
        assert!(counts.online >= 1 && counts.present >= counts.online);
    }
}

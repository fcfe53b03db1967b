//! What the kernel offers for limits and for memory.

use std::path::Path;

use fs_err as fs;
use plimsoll_api::{
    ErrorChain,
    doctor::{CheckStatus, DoctorCheck},
};
use plimsoll_model::Bytes;

use super::{clock_probe, finding, good, memory_probe};
use crate::config::DeduplicationMode;
use crate::limits::memory::MemoryGroups;
use crate::limits::{CgroupMounts, CgroupVersion, CpuGroups};
use crate::swap;

const NEEDS_ROOT: &str = "run as root";

pub(super) fn cgroups() -> DoctorCheck {
    let name = "cgroups";
    let mounts = match CgroupMounts::of_this_process() {
        Ok(mounts) => mounts,
        Err(error) => {
            return finding(name, CheckStatus::Unusable, ErrorChain(&error).to_string(), None);
        }
    };
    let mut controllers: Vec<String> =
        mounts.v1.iter().flat_map(|mount| mount.controllers.clone()).collect();
    controllers.sort_unstable();
    let mut seen = Vec::new();
    if !controllers.is_empty() {
        seen.push(format!("version 1 with {}", controllers.join(", ")));
    }
    if mounts.v2.is_some() {
        let has = if mounts.v2_controllers.is_empty() {
            "no controllers".to_owned()
        } else {
            mounts.v2_controllers.join(", ")
        };
        seen.push(format!("version 2 with {has}"));
    }
    let seen = if seen.is_empty() { "none is mounted".to_owned() } else { seen.join("; ") };
    let groups = match CpuGroups::from_mounts(&mounts, "plimsoll-doctor") {
        Ok(groups) => groups,
        Err(_) => {
            let evidence = format!("{seen}; no cpu controller");
            let remedy = "mount a cgroup hierarchy with the cpu controller; without it CPU limits \
                          of VMs cannot be kept";
            return finding(name, CheckStatus::Missing, evidence, Some(remedy));
        }
    };
    let version = match groups.version() {
        CgroupVersion::V1 => 1,
        CgroupVersion::V2 => 2,
    };
    match groups.probe() {
        Ok(()) => good(name, format!("{seen}; CPU limits through version {version}")),
        Err(error) => {
            let evidence = format!("{seen}; {}", ErrorChain(&error));
            finding(name, CheckStatus::Unusable, evidence, Some(NEEDS_ROOT))
        }
    }
}

pub(super) fn memory(deduplication: DeduplicationMode) -> Vec<DoctorCheck> {
    let mut checks = vec![ksm(deduplication)];
    checks.extend(page_tracking());
    checks.push(swap());
    checks.push(memory_cgroup());
    checks
}

fn ksm(mode: DeduplicationMode) -> DoctorCheck {
    let path = Path::new("/sys/kernel/mm/ksm");
    let Ok(run) = fs::read_to_string(path.join("run")) else {
        let remedy = "a kernel with CONFIG_KSM; without it equal pages are not merged";
        return finding(
            "ksm",
            CheckStatus::Missing,
            "there is no /sys/kernel/mm/ksm",
            Some(remedy),
        );
    };
    let number = |file: &str| {
        fs::read_to_string(path.join(file))
            .map_or_else(|_| "?".to_owned(), |text| text.trim().to_owned())
    };
    let state = match run.trim() {
        "1" => "runs",
        "0" => "is there and off",
        _ => "is there and stopped",
    };
    let evidence = format!(
        "{state}; {} pages shared by {}, {} pages each {} ms",
        number("pages_shared"),
        number("pages_sharing"),
        number("pages_to_scan"),
        number("sleep_millisecs")
    );
    if fs::OpenOptions::new().write(true).open(path.join("run")).is_err() {
        return finding("ksm", CheckStatus::Warning, evidence, Some(NEEDS_ROOT));
    }
    if mode == DeduplicationMode::ForcedAcrossProjects {
        let evidence = format!("{evidence}; pages are merged between projects (forced)");
        let remedy = "take `mode` out of [deduplication] in the agent's configuration: every guest \
                      can find out what guests of other projects hold in memory";
        return finding("ksm", CheckStatus::Warning, evidence, Some(remedy));
    }
    good("ksm", evidence)
}

fn page_tracking() -> Vec<DoctorCheck> {
    let remedy = "Linux 6.7 or later and root; without it VMs cannot be protected by checkpoints \
                  or forked";
    let descriptor = match memory_probe::userfaultfd() {
        Ok(descriptor) => descriptor,
        Err(error) => {
            let check = |name| {
                finding(name, CheckStatus::Unusable, ErrorChain(&error).to_string(), Some(remedy))
            };
            return vec![check("userfaultfd"), check("pagemap_scan")];
        }
    };
    let userfaultfd = good("userfaultfd", "opens, and follows writes without questions (WP_ASYNC)");
    let scan = match memory_probe::dirty_pages(&descriptor) {
        Ok(()) => good("pagemap_scan", "one page of four was written, exactly that one was found"),
        Err(error) => finding(
            "pagemap_scan",
            CheckStatus::Unusable,
            ErrorChain(&error).to_string(),
            Some(remedy),
        ),
    };
    vec![userfaultfd, scan]
}

fn swap() -> DoctorCheck {
    let areas = match swap::areas() {
        Ok(areas) => areas,
        Err(error) => {
            let evidence = ErrorChain(&error).to_string();
            return finding("swap", CheckStatus::Unusable, evidence, Some("mount /proc"));
        }
    };
    let zram = if swap::zram_is_possible() { "zram is possible" } else { "no zram here" };
    if areas.is_empty() {
        let remedy = if swap::zram_is_possible() {
            "set `swap = { kind = \"zram\", size = \"2GiB\" }` (or a file) in agent.toml, and the \
             agent sets it up; without swap the host cannot take back memory that a guest does not \
             give"
        } else {
            "set `swap = { kind = \"file\", size = \"2GiB\" }` in agent.toml, and the agent sets it \
             up; without swap the host cannot take back memory that a guest does not give"
        };
        let evidence = format!("no swap area is in use ({zram})");
        return finding("swap", CheckStatus::Missing, evidence, Some(remedy));
    }
    let (size, free) = areas.iter().fold((Bytes::ZERO, Bytes::ZERO), |(size, free), area| {
        let left = area.size.saturating_sub(area.used);
        (size.saturating_add(area.size), free.saturating_add(left))
    });
    let names = areas.iter().map(|area| {
        let ours = if area.is_ours() { " (set up by an agent)" } else { "" };
        format!("{}{ours}", area.path.display())
    });
    let names = names.collect::<Vec<_>>().join(", ");
    good("swap", format!("{size} in {names}, {free} free; {zram}"))
}

fn memory_cgroup() -> DoctorCheck {
    let name = "memory_cgroup";
    let remedy = "mount a cgroup hierarchy with the memory controller and run as root; without it \
                  what is paged out of a VM may come back";
    let groups = match MemoryGroups::detect("plimsoll-doctor") {
        Ok(groups) => groups,
        Err(error) => {
            let evidence = ErrorChain(&error).to_string();
            return finding(name, CheckStatus::Missing, evidence, Some(remedy));
        }
    };
    let version = match groups.version() {
        CgroupVersion::V1 => 1,
        CgroupVersion::V2 => 2,
    };
    match groups.probe() {
        Ok(()) => good(name, format!("memory of VMs can be held through version {version}")),
        Err(error) => {
            finding(name, CheckStatus::Unusable, ErrorChain(&error).to_string(), Some(remedy))
        }
    }
}

pub(super) fn clock() -> DoctorCheck {
    match clock_probe::clock() {
        Ok(clock) if clock.synchronised => {
            good("clock", format!("synchronised, off by at most {} ms", clock.error_us / 1000))
        }
        Ok(_) => finding(
            "clock",
            CheckStatus::Warning,
            "nothing keeps the clock right",
            Some("run chrony or systemd-timesyncd: times in events and logs of hosts will differ"),
        ),
        Err(source) => finding("clock", CheckStatus::Unusable, source.to_string(), None),
    }
}

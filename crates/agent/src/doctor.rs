//! What this host can and cannot do: every line with what was seen and what to do about it.
//!
//! Nothing is taken from version numbers that can be tried: guest code is run, pages are tracked,
//! devices and rules are made (in a network namespace that ends with the check) and a group gets a
//! quota. All checks run at the same time and each has a limit, so that one that hangs costs its
//! own line and not the report; the whole takes about a second. The host is left as it was.

mod clock_probe;
mod devices;
mod kernel;
mod kvm_probe;
mod memory_probe;
mod network;
mod programs;
mod virtualisation;

#[cfg(test)]
mod tests;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use fs_err as fs;
use plimsoll_api::doctor::{CheckStatus, DoctorCheck, DoctorReport};

use crate::config::DeduplicationMode;

pub use programs::{LEAST_QEMU_MAJOR, QemuVersion, QemuVersionError, qemu_version};
pub use virtualisation::{KvmVerdict, LEAST_INSTRUCTIONS_PER_SECOND, probe_kvm};

/// No check may take longer.
const LIMIT: Duration = Duration::from_millis(2500);

/// What to look at.
#[derive(Clone, Debug)]
pub struct DoctorOptions {
    /// QEMU's program.
    pub qemu: PathBuf,
    /// Where VMs' disks are or will be kept.
    pub data_dir: PathBuf,
    /// The user that QEMU is configured to run as, if one is.
    pub qemu_user: Option<String>,
    /// Whose equal pages are merged.
    pub deduplication: DeduplicationMode,
}

impl Default for DoctorOptions {
    fn default() -> Self {
        Self {
            qemu: "qemu-system-x86_64".into(),
            data_dir: "/var/lib/plimsoll/agent".into(),
            qemu_user: None,
            deduplication: DeduplicationMode::default(),
        }
    }
}

/// Looks at everything. Never fails: what cannot be looked at is a line of the report.
pub async fn examine(options: &DoctorOptions) -> DoctorReport {
    let start = Instant::now();
    // One group after the other would add up; KVM's runs alone, because it is a measurement.
    let kvm = probe_kvm().await;
    let deduplication = options.deduplication;
    let (qemu, qemu_img, cgroups, memory, network, devices) = tokio::join!(
        programs::qemu(options.qemu.clone()),
        programs::qemu_img(),
        blocking("cgroups", || vec![kernel::cgroups()]),
        blocking("memory", move || kernel::memory(deduplication)),
        network::checks(),
        blocking("devices", devices::checks),
    );
    let (data_dir, user) = (options.data_dir.clone(), options.qemu_user.clone());
    let place = blocking("place", move || devices::place(&data_dir, user.as_deref())).await;
    let accelerator = kvm.accelerator();
    let (qemu, version) = qemu;
    let mut checks = vec![qemu, qemu_img, virtualisation::kvm_check(&kvm)];
    checks.push(virtualisation::nested_check(accelerator));
    checks.extend(cgroups.into_iter().chain(memory).chain(network).chain(devices).chain(place));
    DoctorReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
            .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned()),
        accelerator,
        kvm_instructions_per_second: kvm.instructions_per_second(),
        qemu_version: version.map(|version| version.to_string()),
        usable: !checks.iter().any(DoctorCheck::is_fatal),
        checks,
        duration_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
    }
}

/// Runs checks beside the async tasks, within the limit.
async fn blocking(
    what: &'static str,
    checks: impl FnOnce() -> Vec<DoctorCheck> + Send + 'static,
) -> Vec<DoctorCheck> {
    match tokio::time::timeout(LIMIT, tokio::task::spawn_blocking(checks)).await {
        Ok(Ok(checks)) => checks,
        Ok(Err(_)) => vec![finding(what, CheckStatus::Unusable, "the check itself broke", None)],
        Err(_) => vec![timed_out(what)],
    }
}

fn timed_out(what: &str) -> DoctorCheck {
    let evidence = format!("no answer within {} ms", LIMIT.as_millis());
    finding(what, CheckStatus::Unusable, evidence, Some("look into the kernel's log"))
}

fn finding(
    name: &str,
    status: CheckStatus,
    evidence: impl Into<String>,
    remedy: Option<&str>,
) -> DoctorCheck {
    DoctorCheck {
        name: name.to_owned(),
        status,
        required: false,
        evidence: evidence.into(),
        remedy: remedy.map(str::to_owned),
    }
}

fn good(name: &str, evidence: impl Into<String>) -> DoctorCheck {
    finding(name, CheckStatus::Ok, evidence, None)
}

fn required(check: DoctorCheck) -> DoctorCheck {
    DoctorCheck { required: true, ..check }
}

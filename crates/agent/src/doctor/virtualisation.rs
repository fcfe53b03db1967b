//! KVM, and VMs inside VMs.

use std::{io, path::Path};

use fs_err as fs;
use plimsoll_api::{
    ErrorChain,
    doctor::{CheckStatus, DoctorAccelerator, DoctorCheck},
};

use super::{
    finding, good,
    kvm_probe::{self, ProbeError},
};

/// Below this rate of 64-bit kernel-mode code KVM is slower than QEMU's translator.
pub const LEAST_INSTRUCTIONS_PER_SECOND: u64 = 100_000_000;

const WITHOUT: &str = "VMs run by translation (TCG), some ten times slower. On a physical server \
                       switch on VT-x or AMD-V in the firmware; on a virtual one ask for nested \
                       virtualisation";

/// What became of running code under KVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvmVerdict {
    /// It ran at this rate, in instructions per second.
    Ran {
        /// The rate.
        instructions_per_second: u64,
    },
    /// There is no `/dev/kvm`.
    Missing,
    /// It could not be run.
    Failed {
        /// Why.
        reason: String,
    },
}

impl KvmVerdict {
    /// What VMs should run with.
    #[must_use]
    pub fn accelerator(&self) -> DoctorAccelerator {
        match self.instructions_per_second() {
            Some(rate) if rate >= LEAST_INSTRUCTIONS_PER_SECOND => DoctorAccelerator::Kvm,
            _ => DoctorAccelerator::Tcg,
        }
    }

    /// The measured rate.
    #[must_use]
    pub const fn instructions_per_second(&self) -> Option<u64> {
        match self {
            Self::Ran { instructions_per_second } => Some(*instructions_per_second),
            _ => None,
        }
    }
}

/// Runs a few instructions of 64-bit kernel-mode code under KVM; takes less than a second.
pub async fn probe_kvm() -> KvmVerdict {
    let probe = tokio::task::spawn_blocking(kvm_probe::instructions_per_second).await;
    match probe {
        Ok(Ok(instructions_per_second)) => KvmVerdict::Ran { instructions_per_second },
        Ok(Err(ProbeError::Open { source })) if source.kind() == io::ErrorKind::NotFound => {
            KvmVerdict::Missing
        }
        Ok(Err(error)) => KvmVerdict::Failed { reason: ErrorChain(&error).to_string() },
        Err(_) => KvmVerdict::Failed { reason: "the probe itself broke".to_owned() },
    }
}

pub(super) fn kvm_check(verdict: &KvmVerdict) -> DoctorCheck {
    match verdict {
        KvmVerdict::Missing => {
            finding("kvm", CheckStatus::Missing, "there is no /dev/kvm", Some(WITHOUT))
        }
        KvmVerdict::Failed { reason } => {
            finding("kvm", CheckStatus::Unusable, reason.clone(), Some(WITHOUT))
        }
        KvmVerdict::Ran { instructions_per_second: rate } => {
            let rate_text = millions(*rate);
            if verdict.accelerator() == DoctorAccelerator::Kvm {
                return good("kvm", format!("64-bit kernel code runs at {rate_text}"));
            }
            let evidence = format!(
                "/dev/kvm is there, but 64-bit kernel code runs at {rate_text}: it is emulated \
                 (usable from {})",
                millions(LEAST_INSTRUCTIONS_PER_SECOND)
            );
            finding("kvm", CheckStatus::Unusable, evidence, Some(WITHOUT))
        }
    }
}

fn millions(rate: u64) -> String {
    let hundredths = rate / 10_000;
    format!("{}.{:02} million instructions/s", hundredths / 100, hundredths % 100)
}

pub(super) fn nested_check(accelerator: DoctorAccelerator) -> DoctorCheck {
    if accelerator == DoctorAccelerator::Tcg {
        return good(
            "nested_virtualisation",
            "by translation: QEMU gives guests SVM with `-cpu max`; what runs in them is slow",
        );
    }
    let parameter = |module: &str| {
        let path = Path::new("/sys/module").join(module).join("parameters/nested");
        fs::read_to_string(path).ok().map(|text| (module.to_owned(), text.trim().to_owned()))
    };
    match parameter("kvm_amd").or_else(|| parameter("kvm_intel")) {
        Some((module, value)) if value == "1" || value == "Y" => {
            good("nested_virtualisation", format!("{module} nested={value}"))
        }
        Some((module, value)) => finding(
            "nested_virtualisation",
            CheckStatus::Missing,
            format!("{module} nested={value}"),
            Some("load the module with `nested=1`; without, no VM can be a host"),
        ),
        None => finding(
            "nested_virtualisation",
            CheckStatus::Missing,
            "neither kvm_amd nor kvm_intel is loaded",
            Some("without, no VM can be a host"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_kvm_is_refused_with_its_rate() {
        let slow = KvmVerdict::Ran { instructions_per_second: 754_321 };
        assert_eq!(slow.accelerator(), DoctorAccelerator::Tcg);
        let check = kvm_check(&slow);
        assert_eq!(check.status, CheckStatus::Unusable);
        assert!(check.evidence.contains("at 0.75 million instructions/s"), "{}", check.evidence);
        let fast = KvmVerdict::Ran { instructions_per_second: 6_000_000_000 };
        assert_eq!(fast.accelerator(), DoctorAccelerator::Kvm);
        assert_eq!(
            kvm_check(&fast).evidence,
            "64-bit kernel code runs at 6000.00 million instructions/s"
        );
        assert_eq!(kvm_check(&KvmVerdict::Missing).status, CheckStatus::Missing);
    }
}

//! QEMU and its tools.

use std::{fmt, path::PathBuf, time::Duration};

use plimsoll_api::{
    ErrorChain,
    doctor::{CheckStatus, DoctorCheck},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{finding, good, required};
use crate::command::{CommandError, Tool};

/// The oldest major version of QEMU that is used. 7.2 loses memory of guests in migrations of many
/// passes under TCG while it says `completed`, and its heap is corrupt after a vCPU was unplugged;
/// nothing between 7.2 and 10.0 was tested.
pub const LEAST_QEMU_MAJOR: u32 = 10;

/// A cold start from a slow disk may take its time.
const LIMIT: Duration = Duration::from_millis(2000);
const INSTALL: &str = "install QEMU 10.0 or later (Debian 13 has it; Debian 12: `apt-get install \
                       -t bookworm-backports qemu-system-x86 qemu-utils`)";

/// A version of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct QemuVersion {
    /// The first number.
    pub major: u32,
    /// The second.
    pub minor: u32,
    /// The third.
    pub micro: u32,
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl QemuVersion {
    /// Whether it is new enough.
    #[must_use]
    pub const fn is_supported(&self) -> bool {
        self.major >= LEAST_QEMU_MAJOR
    }

    /// Reads what `--version` prints: `... version 10.0.2 (Debian ...)`.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.lines().next()?.split_once("version ")?;
        let number = |part: &str| part.parse().ok();
        let mut parts = rest.split(|c: char| !(c.is_ascii_digit() || c == '.')).next()?.split('.');
        let major = number(parts.next()?)?;
        let minor = number(parts.next()?)?;
        Some(Self { major, minor, micro: parts.next().and_then(number).unwrap_or(0) })
    }
}

/// Why QEMU's version is not known.
#[derive(Debug, Error)]
pub enum QemuVersionError {
    /// The program did not run.
    #[error("cannot ask QEMU for its version")]
    Run {
        /// What happened.
        #[source]
        source: CommandError,
    },
    /// It printed something else.
    #[error("`{text}` is not understood as a version of QEMU")]
    Unreadable {
        /// The beginning of it.
        text: String,
    },
}

/// The version of a QEMU program (`qemu-system-x86_64` or `qemu-img`).
///
/// # Errors
/// [`QemuVersionError`].
pub async fn qemu_version(program: PathBuf) -> Result<QemuVersion, QemuVersionError> {
    let output = Tool::new(program, ["--version"])
        .limit(LIMIT)
        .run()
        .await
        .map_err(|source| QemuVersionError::Run { source })?;
    let text = String::from_utf8_lossy(&output);
    QemuVersion::parse(&text)
        .ok_or_else(|| QemuVersionError::Unreadable { text: text.chars().take(80).collect() })
}

pub(super) async fn qemu(program: PathBuf) -> (DoctorCheck, Option<QemuVersion>) {
    let path = program.display().to_string();
    let version = qemu_version(program).await;
    let check = judge("qemu", &path, &version);
    (required(check), version.ok())
}

pub(super) async fn qemu_img() -> DoctorCheck {
    let version = qemu_version("qemu-img".into()).await;
    required(judge("qemu_img", "qemu-img", &version))
}

fn judge(
    name: &str,
    program: &str,
    version: &Result<QemuVersion, QemuVersionError>,
) -> DoctorCheck {
    match version {
        Ok(version) if version.is_supported() => good(name, format!("{program} {version}")),
        Ok(version) => {
            let why = if version.major < 8 {
                "it loses memory of guests in live migration and damages its heap when a vCPU is \
                 unplugged"
            } else {
                "nothing before 10.0 was tested"
            };
            let evidence = format!("{program} {version}: {why}");
            finding(name, CheckStatus::Unusable, evidence, Some(INSTALL))
        }
        Err(QemuVersionError::Run { source }) if source.is_missing_program() => {
            let evidence = format!("{program} is not installed");
            finding(name, CheckStatus::Missing, evidence, Some(INSTALL))
        }
        Err(error) => {
            finding(name, CheckStatus::Unusable, ErrorChain(error).to_string(), Some(INSTALL))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_old_ones_refused_with_a_reason() {
        let of = |text| QemuVersion::parse(text);
        let debian = of("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2~bpo12+1)\nCopyright");
        assert_eq!(debian, Some(QemuVersion { major: 10, minor: 0, micro: 2 }));
        assert_eq!(of("qemu-img version 9.1\n").unwrap().to_string(), "9.1.0");
        assert_eq!(of("something else"), None);
        assert_eq!(of("version x.y"), None);
        let old = judge("qemu", "q", &Ok(of("QEMU emulator version 7.2.22").unwrap()));
        assert_eq!(old.status, CheckStatus::Unusable);
        assert!(old.evidence.contains("loses memory"), "{}", old.evidence);
        assert!(old.remedy.unwrap().contains("backports"));
    }

    #[tokio::test]
    async fn a_qemu_that_is_not_there_is_missing_and_fatal() {
        let (check, version) = qemu("/nowhere/qemu".into()).await;
        assert_eq!((check.status, version), (CheckStatus::Missing, None));
        assert!(check.is_fatal());
    }
}

//! Where the guest's kernel and its settings are found.
//!
//! Everything the agent reads or writes of the running system goes through [`System`], so that a
//! test can put a made-up system in a directory.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Most bytes read of one file under `/proc`, `/sys` or `/etc`.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The root under which `/proc`, `/sys`, `/dev`, `/etc` and `/run` lie.
#[derive(Debug, Clone)]
pub struct System {
    root: PathBuf,
}

impl Default for System {
    fn default() -> Self {
        Self::at("/")
    }
}

impl System {
    /// A system whose root is `root`.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The path of `relative`, which has no leading slash.
    #[must_use]
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// Reads a text file, at most 1 MiB of it; bytes that are no UTF-8 are replaced.
    ///
    /// # Errors
    /// It cannot be opened or read.
    pub fn read(&self, relative: impl AsRef<Path>) -> io::Result<String> {
        let mut bytes = Vec::new();
        fs::File::open(self.path(relative))?.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The boot's id: another one means another boot. Empty if the kernel tells none.
    #[must_use]
    pub fn boot_id(&self) -> String {
        self.read("proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
    }

    /// Time since boot in milliseconds, 0 if the kernel does not tell.
    #[must_use]
    pub fn uptime_ms(&self) -> u64 {
        let text = self.read("proc/uptime").unwrap_or_default();
        text.split_whitespace().next().and_then(hundredths).map_or(0, |time| time * 10)
    }
}

/// Reads `12.34` as 1234, without going through a float.
pub(crate) fn hundredths(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = fraction.get(..2).unwrap_or(fraction);
    let mut part: u64 = digits.parse().ok()?;
    if digits.len() == 1 {
        part *= 10;
    }
    whole.parse::<u64>().ok()?.checked_mul(100)?.checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hundredths_are_read_exactly() {
        assert_eq!(hundredths("12.34"), Some(1234));
        assert_eq!(hundredths("0.07"), Some(7));
        assert_eq!(hundredths("3.5"), Some(350));
        assert_eq!(hundredths("9"), Some(900));
        for bad in ["", "x", "1.x", "-1.00", "1.", "99999999999999999999.0", ".5"] {
            assert_eq!(hundredths(bad), None, "{bad}");
        }
    }

    #[test]
    fn this_machine_has_an_uptime_and_a_boot_id() {
        assert!(System::default().uptime_ms() > 0);
        assert_eq!(System::default().boot_id().len(), 36);
        assert_eq!(System::at("/nonexistent").uptime_ms(), 0);
    }
}

//! The host's lease: the moment until which VMs that may be restarted elsewhere may run here.
//!
//! The agent writes the file after each answered report; every VM's guard reads it and kills its
//! VM when it has run out. All moments are on `CLOCK_BOOTTIME`, which counts on through suspension
//! and can't be set, in milliseconds.
//!
//! A deadline alone is not enough for a *start*: after a cut-off the manager may have given the VM
//! to another host, and what this agent was told before is stale. So the lease also says since when
//! it has held without a gap, and a VM starts only on a wish that was asked for after that.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::files::{self, FileError};

/// A moment on `CLOCK_BOOTTIME`, in milliseconds since the kernel booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootTime(pub u64);

impl BootTime {
    /// Now.
    ///
    /// # Panics
    /// Never: the clock exists since Linux 2.6.39.
    #[must_use]
    pub fn now() -> Self {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
            .expect("CLOCK_BOOTTIME exists since Linux 2.6.39");
        let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
        let millis = u64::try_from(now.tv_nsec() / 1_000_000).unwrap_or(0);
        Self(seconds.saturating_mul(1000).saturating_add(millis))
    }

    /// This moment plus `millis` milliseconds.
    #[must_use]
    pub const fn plus(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }
}

/// Why the lease could not be kept.
#[derive(Debug, Error)]
pub enum LeaseError {
    /// The kernel's boot id is not readable.
    #[error("cannot read the kernel's boot id")]
    BootId(#[source] io::Error),
    /// The file could not be written.
    #[error("cannot keep the host's lease")]
    Write(#[source] FileError),
}

/// The lease as it stands in its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The boot to which the moments belong.
    pub boot_id: String,
    /// The lease has held without a gap since then.
    pub since_boottime_ms: BootTime,
    /// It holds until then; `None`: for ever, hosts of this cluster have no lease.
    pub deadline_boottime_ms: Option<BootTime>,
}

impl Lease {
    /// Whether it holds at `now` in the boot `boot_id`.
    #[must_use]
    pub fn holds(&self, boot_id: &str, now: BootTime) -> bool {
        self.boot_id == boot_id && self.deadline_boottime_ms.is_none_or(|deadline| now < deadline)
    }

    /// Whether a VM may start at `now` on a wish that was asked for at `asked_at`: the lease holds,
    /// and has held without a gap since the wish was asked for. After a gap the VM may have been
    /// given to another host, and the wish be from before that.
    #[must_use]
    pub fn allows_start(&self, boot_id: &str, now: BootTime, asked_at: BootTime) -> bool {
        self.holds(boot_id, now) && self.since_boottime_ms <= asked_at
    }

    /// Reads a lease file. `None` where there is none, or it is not understood: no lease.
    #[must_use]
    pub fn read(path: &Path) -> Option<Self> {
        files::read_json(path).ok().flatten()
    }
}

/// The writer of the lease file: the agent's link to the manager has it.
#[derive(Debug)]
pub struct LeaseKeeper {
    path: PathBuf,
    boot_id: String,
    current: Option<Lease>,
}

impl LeaseKeeper {
    /// Goes on with the lease file at `path`, where there is one.
    ///
    /// # Errors
    /// [`LeaseError::BootId`].
    pub fn open(path: PathBuf) -> Result<Self, LeaseError> {
        let boot_id = files::boot_id().map_err(LeaseError::BootId)?;
        let current = Lease::read(&path).filter(|lease| lease.boot_id == boot_id);
        Ok(Self { path, boot_id, current })
    }

    /// Renews the lease: `asked_at` is when the answered report was sent, `lease_ms` what the
    /// answer granted from there ([`None`]: for ever). A renewal that would shorten the lease
    /// shortens it.
    ///
    /// # Errors
    /// [`LeaseError::Write`]: then the old deadline stands.
    pub fn renew(&mut self, asked_at: BootTime, lease_ms: Option<u64>) -> Result<(), LeaseError> {
        let since = match &self.current {
            Some(lease) if lease.holds(&self.boot_id, BootTime::now()) => lease.since_boottime_ms,
            // Not when it was asked: until the answer came the manager may have counted this host
            // as dead, and a wish asked for meanwhile may be from before that.
            _ => BootTime::now(),
        };
        let lease = Lease {
            boot_id: self.boot_id.clone(),
            since_boottime_ms: since,
            deadline_boottime_ms: lease_ms.map(|granted| asked_at.plus(granted)),
        };
        files::write_json(&self.path, &lease).map_err(LeaseError::Write)?;
        self.current = Some(lease);
        Ok(())
    }

    /// The lease as last written.
    #[must_use]
    pub fn current(&self) -> Option<&Lease> {
        self.current.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_needs_a_lease_without_a_gap_since_its_wish_was_asked_for() {
        let lease = |since, deadline: Option<u64>| Lease {
            boot_id: "boot".to_owned(),
            since_boottime_ms: BootTime(since),
            deadline_boottime_ms: deadline.map(BootTime),
        };
        for (lease, now, asked_at, allowed) in [
            (lease(100, Some(200)), 150, 100, true),
            (lease(100, Some(200)), 150, 99, false),
            (lease(100, Some(200)), 200, 150, false),
            (lease(100, None), 10_000, 100, true),
            (lease(100, None), 10_000, 0, false),
        ] {
            let (now, asked_at) = (BootTime(now), BootTime(asked_at));
            assert_eq!(lease.allows_start("boot", now, asked_at), allowed, "{lease:?} {now:?}");
            assert!(!lease.allows_start("another", now, asked_at));
        }
    }
}

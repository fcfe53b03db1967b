//! Waits for QEMU's end, and sees to it when the lease is over.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::record::{ExitReason, Launch, VmDirectory, name};
use super::{GuardError, is_fenced};
use crate::vm::files;
use crate::vm::lease::{BootTime, Lease};

/// How often the lease is looked at.
const TICK: Duration = Duration::from_millis(500);
/// A log that has grown to this is cut; one older piece of the same size is kept.
pub(crate) const LOG_BYTES: u64 = 4 * 1024 * 1024;

pub(super) struct Watcher<'a> {
    directory: &'a VmDirectory,
    lease_file: &'a Path,
    boot_id: String,
    signals: SignalFd,
}

impl<'a> Watcher<'a> {
    /// Call before QEMU's process is made, or its end may go unseen.
    pub(super) fn new(directory: &'a VmDirectory, launch: &'a Launch) -> Result<Self, GuardError> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block().map_err(|error| GuardError::Watch(error.into()))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals =
            SignalFd::with_flags(&set, flags).map_err(|error| GuardError::Watch(error.into()))?;
        let boot_id = files::boot_id().map_err(GuardError::Watch)?;
        Ok(Self { directory, lease_file: &launch.lease_file, boot_id, signals })
    }

    /// Returns when QEMU is gone for good.
    pub(super) fn watch(&self, qemu: Pid) -> Result<ExitReason, GuardError> {
        let mut verdict = None;
        loop {
            if let Some(ended) = reap(qemu)? {
                return Ok(verdict.unwrap_or(ended));
            }
            if verdict.is_none() && self.lease_is_over() {
                verdict = Some(ExitReason::LeaseExpired);
            }
            if verdict == Some(ExitReason::LeaseExpired) {
                // Again at each tick, in case anything could ever stop the first.
                let _ = kill(qemu, Signal::SIGKILL);
            }
            for log in [name::CONSOLE_LOG, name::QEMU_LOG] {
                // A log that cannot be cut is not worth a VM.
                drop(bound(&self.directory.file(log)));
            }
            if self.asked_to_end()? && verdict.is_none() {
                verdict = Some(ExitReason::HostShutdown);
                // QEMU's orderly end: disks are flushed, the guest is not asked.
                let _ = kill(qemu, Signal::SIGTERM);
            }
        }
    }

    /// Waits for a signal or a tick; true when a signal asks us to end.
    fn asked_to_end(&self) -> Result<bool, GuardError> {
        let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let tick = PollTimeout::try_from(TICK).unwrap_or(PollTimeout::ZERO);
        match poll(&mut fds, tick) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(GuardError::Watch(error.into())),
        }
        let mut asked = false;
        while let Some(signal) =
            self.signals.read_signal().map_err(|error| GuardError::Watch(error.into()))?
        {
            let number = i32::try_from(signal.ssi_signo).unwrap_or(0);
            asked |= number == libc::SIGTERM || number == libc::SIGINT;
        }
        Ok(asked)
    }

    fn lease_is_over(&self) -> bool {
        // No file, or one that is not understood, is no lease.
        is_fenced(self.directory)
            && !Lease::read(self.lease_file)
                .is_some_and(|lease| lease.holds(&self.boot_id, BootTime::now()))
    }
}

fn reap(qemu: Pid) -> Result<Option<ExitReason>, GuardError> {
    match waitpid(qemu, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(_, code)) => Ok(Some(ExitReason::Exited { code })),
        Ok(WaitStatus::Signaled(_, signal, _)) => {
            Ok(Some(ExitReason::Signalled { signal: signal as i32 }))
        }
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(None),
        Err(error) => Err(GuardError::Watch(error.into())),
    }
}

/// The older piece of a log.
pub(crate) fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// Copies a log that has grown too long aside and empties it. Its writers append, so they go on at
/// the new end; what they write between the copy and the cut is lost.
fn bound(path: &Path) -> io::Result<()> {
    if std::fs::metadata(path)?.size() < LOG_BYTES {
        return Ok(());
    }
    let mut log = File::options().read(true).write(true).open(path)?;
    let mut copy = File::create(older(path))?;
    io::copy(&mut io::Read::take(&mut log, 2 * LOG_BYTES), &mut copy)?;
    log.set_len(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_log_is_cut_at_its_bound_and_one_piece_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let mut writer = File::options().append(true).create(true).open(&path).unwrap();
        writer.write_all(b"short").unwrap();
        bound(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"short");
        writer.write_all(&vec![b'x'; usize::try_from(LOG_BYTES).unwrap()]).unwrap();
        bound(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().size(), 0);
        assert!(std::fs::metadata(older(&path)).unwrap().size() > LOG_BYTES);
        writer.write_all(b"after").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"after");
    }
}

//! Who sets the scanner of this machine, and what was set before.
//!
//! A lock that the kernel gives back when its holder dies, and beside it the settings as they were.
//! Both lie where a boot forgets them, as the kernel does. A holder that was killed leaves the
//! settings behind: whoever takes the lock next keeps them, and does not take the killed one's pace
//! for what was before.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::kernel::{Kernel, KsmError, Place, Settings};
use crate::vm::files;

const LOCK: &str = "ksm.lock";
const BEFORE: &str = "ksm.json";

/// What was set before, and in which boot.
#[derive(Debug, Serialize, Deserialize)]
struct Before {
    boot_id: String,
    settings: Settings,
}

/// The right to set the scanner, and the duty to set it back.
#[derive(Debug)]
pub(super) struct Hold {
    kernel: Kernel,
    before: Settings,
    path: PathBuf,
    _lock: Flock<File>,
}

impl Hold {
    /// Takes the scanner. Nothing is changed yet.
    pub(super) fn take(kernel: &Kernel, memory: &Path) -> Result<Self, KsmError> {
        let now = kernel.settings()?;
        kernel.require_rights()?;
        let lock = lock(memory)?;
        let path = memory.join(BEFORE);
        let failed = |source: files::FileError| KsmError::Memory {
            path: path.clone(),
            source: Box::new(source),
        };
        let boot_id = files::boot_id()
            .map_err(|source| KsmError::Memory { path: path.clone(), source: Box::new(source) })?;
        // What cannot be understood was not written by us to the end, so nothing was changed yet.
        let left = files::read_json::<Before>(&path).unwrap_or_default();
        let before = match left {
            Some(left) if left.boot_id == boot_id => left.settings,
            _ => {
                let before = Before { boot_id, settings: now };
                files::write_json(&path, &before).map_err(failed)?;
                before.settings
            }
        };
        Ok(Self { kernel: kernel.clone(), before, path, _lock: lock })
    }

    /// Sets everything as it was before, and lets go.
    pub(super) fn give_back(self) -> Result<(), KsmError> {
        self.kernel.restore(&self.before)?;
        files::remove(&self.path)
            .map_err(|source| KsmError::Memory { path: self.path, source: Box::new(source) })
    }

    /// Sets back what a holder that was killed has left. That there is none, or another holds it, is
    /// fine.
    pub(super) fn clean_up(kernel: &Kernel, memory: &Path) -> Result<(), KsmError> {
        if !memory.join(BEFORE).exists() {
            return Ok(());
        }
        match Self::take(kernel, memory) {
            Ok(hold) => hold.give_back(),
            Err(KsmError::Held | KsmError::Missing) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Makes sure that the scanner is there and that no agent of this machine sets it. What an agent that
/// was killed has left is set back.
///
/// # Errors
/// [`KsmError`] says why the scanner cannot be used.
pub fn require_free(place: &Place) -> Result<(), KsmError> {
    Hold::take(&Kernel::new(place.clone()), &place.memory)?.give_back()
}

fn lock(memory: &Path) -> Result<Flock<File>, KsmError> {
    let path = memory.join(LOCK);
    let failed =
        |source: std::io::Error| KsmError::Memory { path: path.clone(), source: Box::new(source) };
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(memory).map_err(failed)?;
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    match Flock::lock(file.map_err(failed)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, Errno::EWOULDBLOCK)) => Err(KsmError::Held),
        Err((_, errno)) => Err(failed(errno.into())),
    }
}

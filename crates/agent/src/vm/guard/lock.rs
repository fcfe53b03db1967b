//! The two locks that prove a VM's life.
//!
//! The guard holds one, QEMU inherits the other; each is let go by the kernel when the last process
//! with that open file is gone, and by nothing else (a QEMU that was broken into could let go of its
//! own, but never of the guard's). Locks of open file descriptions (`F_OFD_SETLK`) and not `flock`,
//! because with them one can ask whether a lock is held without taking it for a moment.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::c_short::try_from(libc::F_WRLCK).unwrap_or(1),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or(0),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(create).truncate(false).mode(0o600).open(path)
}

/// Takes the lock; it is held while any copy of the file's descriptor is open. `None`: another
/// holds it.
///
/// # Errors
/// The file cannot be made or locked.
pub(crate) fn take(path: &Path) -> io::Result<Option<File>> {
    let file = open(path, true)?;
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())) {
        Ok(_) => {}
        Err(Errno::EAGAIN | Errno::EACCES) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    // The VM's directory may have been removed and made anew between the two calls: then this is a
    // lock on a file that nobody else will ever look at.
    let (ours, named) = (file.metadata()?, std::fs::metadata(path)?);
    if (ours.dev(), ours.ino()) == (named.dev(), named.ino()) {
        Ok(Some(file))
    } else {
        Err(io::Error::new(io::ErrorKind::NotFound, "the lock file was replaced"))
    }
}

/// Whether anybody holds the lock, without touching it.
///
/// # Errors
/// The file cannot be read. That there is none means that nobody holds it.
pub(crate) fn is_held(path: &Path) -> io::Result<bool> {
    let file = match open(path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut lock = whole_file();
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_seen_without_being_taken_and_ends_with_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        assert!(!is_held(&path).unwrap());
        let held = take(&path).unwrap().unwrap();
        assert!(is_held(&path).unwrap());
        assert!(take(&path).unwrap().is_none());
        let copy = held.try_clone().unwrap();
        drop(held);
        assert!(is_held(&path).unwrap());
        drop(copy);
        assert!(!is_held(&path).unwrap());
        assert!(take(&path).unwrap().is_some());
    }
}

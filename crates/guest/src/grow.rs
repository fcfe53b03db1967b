//! Grows a mounted ext4 file system to the size of its disk.
//!
//! The disk of a VM is often larger than its image's. resize2fs would do the same, and its
//! libraries are larger than all the rest of the tiny image; the kernel does the work anyway.
#![expect(unsafe_code, reason = "the resize is an ioctl that no safe wrapper covers")]

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::ioctl::{Setter, opcode};

use crate::system::System;

/// `EXT4_IOC_RESIZE_FS` of the kernel's fs/ext4/ext4.h: the argument is the new size in blocks.
const RESIZE: rustix::ioctl::Opcode = opcode::write::<u64>(b'f', 16);

/// Why a file system could not be grown.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// The mount point can't be opened or asked.
    #[error("cannot look at {}", path.display())]
    Look {
        /// The mount point.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No ext4 file system is mounted there.
    #[error("{} is no mounted ext4 file system", path.display())]
    NotExt4 {
        /// The mount point.
        path: PathBuf,
    },
    /// The size of its disk is unknown.
    #[error("cannot read the size of {device}")]
    Size {
        /// The disk's device file.
        device: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot grow {} to {blocks} blocks", path.display())]
    Resize {
        /// The mount point.
        path: PathBuf,
        /// The wanted size.
        blocks: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Grows the ext4 file system mounted at `path` to its disk's size. A file system that has that
/// size already is left alone.
///
/// # Errors
/// Nothing is mounted there, it is no ext4, or the kernel refuses.
pub fn grow(system: &System, path: &Path) -> Result<(), GrowError> {
    let look = |source| GrowError::Look { path: path.to_owned(), source };
    let mounts = system.read("proc/self/mounts").map_err(look)?;
    let device =
        device_of(&mounts, path).ok_or_else(|| GrowError::NotExt4 { path: path.to_owned() })?;
    let name = device.trim_start_matches("/dev/").replace('/', "!");
    let sectors = system.read(format!("sys/class/block/{name}/size")).and_then(|text| {
        text.trim().parse::<u64>().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    });
    let sectors =
        sectors.map_err(|source| GrowError::Size { device: device.to_owned(), source })?;

    let mount = File::open(path).map_err(look)?;
    let status = rustix::fs::fstatvfs(&mount).map_err(|errno| look(errno.into()))?;
    // In 512-byte sectors, whatever the disk's own are.
    let blocks = sectors.saturating_mul(512) / status.f_frsize.max(1);
    // SAFETY: the opcode takes a pointer to a u64 that it only reads, which is what Setter passes;
    // the descriptor is open for as long as the call lasts.
    let resized = unsafe { rustix::ioctl::ioctl(&mount, Setter::<RESIZE, u64>::new(blocks)) };
    resized.map_err(|errno| GrowError::Resize {
        path: path.to_owned(),
        blocks,
        source: errno.into(),
    })
}

/// The device of the ext4 file system that is mounted at `path`.
fn device_of<'a>(mounts: &'a str, path: &Path) -> Option<&'a str> {
    // The last mount at a place hides those before it.
    mounts.lines().rev().find_map(|line| {
        let mut fields = line.split(' ');
        let (device, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (Path::new(point) == path && kind == "ext4" && device.starts_with("/dev/"))
            .then_some(device)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_of_a_mount_is_found() {
        let mounts = "/dev/vdb /data ext4 rw 0 0\n/dev/vda /data ext4 rw 0 0\nproc /proc proc rw";
        assert_eq!(device_of(mounts, Path::new("/data")), Some("/dev/vda"));
        assert_eq!(device_of(mounts, Path::new("/proc")), None);
    }

    #[test]
    fn a_directory_that_is_no_mount_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error = grow(&System::default(), directory.path()).unwrap_err();
        assert!(matches!(error, GrowError::NotExt4 { .. }), "{error}");
    }
}

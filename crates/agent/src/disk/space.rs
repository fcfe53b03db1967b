//! How much room there is, and how much of it is spoken for.

use std::path::Path;

use nix::sys::statvfs::statvfs;
use plimsoll_model::Bytes;
use std::{fs, os::unix::fs::OpenOptionsExt as _};

use super::{DiskError, DiskFacts, header};

/// The room of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceOnDisk {
    /// Its size.
    pub total: Bytes,
    /// What this process may still write.
    pub free: Bytes,
}

/// The room of the file system at a path; of its nearest parent where nothing is there yet.
///
/// # Errors
/// [`DiskError::Space`].
pub fn space_at(path: &Path) -> Result<SpaceOnDisk, DiskError> {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let facts = statvfs(existing)
        .map_err(|errno| DiskError::Space { path: path.to_owned(), source: errno.into() })?;
    let bytes = |blocks: u64| Bytes(blocks.saturating_mul(facts.fragment_size()));
    Ok(SpaceOnDisk { total: bytes(facts.blocks()), free: bytes(facts.blocks_available()) })
}

/// Tries whether files of a directory can be written past the page cache, as disks in shared storage
/// must be: else what a killed QEMU has written may reach the storage when another host already has
/// the disk.
///
/// # Errors
/// [`DiskError::CreateDirectory`], or [`DiskError::NotDirect`] if it cannot be.
pub fn require_direct_writes(directory: &Path) -> Result<(), DiskError> {
    fs::create_dir_all(directory)
        .map_err(|source| DiskError::CreateDirectory { path: directory.to_owned(), source })?;
    let path = directory.join(format!(".direct-{}", std::process::id()));
    let opened = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(nix::fcntl::OFlag::O_DIRECT.bits())
        .open(&path);
    let _ = fs::remove_file(&path);
    opened.map(drop).map_err(|source| DiskError::NotDirect { path: directory.to_owned(), source })
}

/// By how much all disks below a directory may still grow. A file that is no disk or just
/// vanishes counts as nothing.
pub(super) fn promised_growth(directory: &Path) -> Bytes {
    disks_below(directory).map(|facts| facts.virtual_size.saturating_sub(facts.allocated)).sum()
}

/// What all disks of VMs below a directory occupy.
#[must_use]
pub fn space_of_disks(directory: &Path) -> Bytes {
    disks_below(directory).map(|facts| facts.allocated).sum()
}

fn disks_below(directory: &Path) -> impl Iterator<Item = DiskFacts> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|vm| fs::read_dir(vm.path()).ok())
        .flat_map(|files| files.filter_map(Result::ok))
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "qcow2"))
        .filter_map(|path| header::disk_facts(&path).ok())
}

//! Disks of VMs: qcow2 overlays on images that never change, and the seed disk that tells a guest
//! who it is.
//!
//! ```text
//! <directory>/<vm-id>/disk-<n>.qcow2   what the guest writes; everything else comes from the image
//! <directory>/<vm-id>/seed.img         VFAT, label CIDATA: cloud-init's NoCloud and plimsoll.env
//! ```
//!
//! Paths are built from ids alone, never from names that users chose. A file appears under its
//! name only when it is complete, so after a crash a disk is either there and whole or absent.
//! Images come from users: [`inspect_image`] reads their header itself and refuses those that
//! refer to other files, which QEMU would open on the host.

mod digest;
mod header;
mod seed;
mod space;

#[cfg(test)]
mod tests;

use std::{
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use plimsoll_model::{Bytes, VmId};
use serde::{Deserialize, Serialize};
use std::fs;
use thiserror::Error;

use crate::command::{CommandError, Tool};

pub use digest::{Sha256Digest, sha256_of, verify_sha256};
pub use header::{ImageFacts, inspect_image};
pub use seed::{Seed, SeedError, SeedNic};
pub use space::{SpaceOnDisk, require_direct_writes, space_at, space_of_disks};

/// The largest virtual disk: a bound on what a number from outside can ask for.
pub const LARGEST_DISK: Bytes = Bytes(64 << 40);
/// User and group that QEMU runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Numeric user id.
    pub uid: u32,
    /// Numeric group id.
    pub gid: u32,
}

/// How a disk image is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageFormat {
    /// QEMU's own format.
    Qcow2,
    /// The bytes of the disk as they are.
    Raw,
}

impl ImageFormat {
    /// The name that QEMU uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }

    /// The format by QEMU's name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Qcow2, Self::Raw].into_iter().find(|format| format.as_str() == name)
    }
}

/// The image under an overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Where it is; absolute.
    pub path: PathBuf,
    /// Its declared format. Never guessed: a guest can write a qcow2 header into a raw disk.
    pub format: ImageFormat,
}

/// What a VM's disk is, as read from its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFacts {
    /// Its path.
    pub path: PathBuf,
    /// What the guest sees.
    pub virtual_size: Bytes,
    /// What it occupies on the host.
    pub allocated: Bytes,
    /// The image under it.
    pub base: Option<PathBuf>,
    /// QEMU found it damaged.
    pub corrupt: bool,
}

/// Why a disk could not be made, changed or read.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The directory could not be made.
    #[error("cannot create directory {}", path.display())]
    CreateDirectory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file system does not write past the page cache.
    #[error(
        "{} takes no direct writes (O_DIRECT), without which a disk is not safe to share: use a file \
         system that does, such as ext4, XFS or NFS, or keep disks on the hosts",
        path.display()
    )]
    NotDirect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A file or directory could not be removed.
    #[error("cannot remove {}", path.display())]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Owner or mode could not be set.
    #[error("cannot hand {} to the user that QEMU runs as", path.display())]
    HandOver {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The free space could not be determined.
    #[error("cannot tell the free space at {}", path.display())]
    Space {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Too little space is free for everything that was promised.
    #[error(
        "{} has {free} free, but {needed} are needed: {wanted} for this disk, {promised} that \
         other disks may still grow by, {reserve} kept back",
        path.display()
    )]
    NotEnoughSpace {
        path: PathBuf,
        free: Bytes,
        needed: Bytes,
        wanted: Bytes,
        promised: Bytes,
        reserve: Bytes,
    },
    /// The size is zero, not a multiple of 512, or too large.
    #[error("a disk cannot be {size} large: use a multiple of 512 bytes up to {LARGEST_DISK}")]
    Size { size: Bytes },
    /// The disk would be smaller than the image.
    #[error("a disk of {size} is too small for its image, which needs {base_size}")]
    SmallerThanImage { size: Bytes, base_size: Bytes },
    /// Shrinking would cut off what the guest has written.
    #[error("a disk cannot shrink from {from} to {to}")]
    Shrink { from: Bytes, to: Bytes },
    /// The image's path is relative.
    #[error("the path of an image must be absolute, not {}", path.display())]
    RelativeBase { path: PathBuf },
    /// The file is not what its format says.
    #[error("{} is not a {} image", path.display(), format.as_str())]
    NotAnImage { path: PathBuf, format: ImageFormat },
    /// The image asks QEMU to do what an image from outside must not.
    #[error("{} is refused: it {feature}", path.display())]
    UnsafeImage { path: PathBuf, feature: &'static str },
    /// The disk exists with another size or image.
    #[error("{} exists already, as another disk than asked for", path.display())]
    OtherDisk { path: PathBuf },
    /// A checksum does not match.
    #[error("{} has the SHA-256 {actual}, not {expected}", path.display())]
    Checksum { path: PathBuf, expected: Sha256Digest, actual: Sha256Digest },
    /// A text is not a checksum.
    #[error("`{text}` is not a SHA-256: it has 64 hexadecimal digits")]
    NotAChecksum { text: String },
    /// `qemu-img` failed.
    #[error("cannot {action} {}", path.display())]
    QemuImg {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: CommandError,
    },
    /// The seed disk's content is not allowed.
    #[error("cannot make the seed disk {}", path.display())]
    Seed {
        path: PathBuf,
        #[source]
        source: SeedError,
    },
    /// A task of ours ended without an answer.
    #[error("the task that reads {} was cancelled", path.display())]
    Cancelled { path: PathBuf },
}

/// The disks of one agent's VMs.
#[derive(Clone, Debug)]
pub struct Disks {
    directory: PathBuf,
    owner: Option<Owner>,
    reserve: Bytes,
}

impl Disks {
    /// Disks below `directory`. Files are handed to `owner`, if QEMU runs as somebody else than
    /// the agent. `reserve` stays free whatever is asked for.
    #[must_use]
    pub const fn new(directory: PathBuf, owner: Option<Owner>, reserve: Bytes) -> Self {
        Self { directory, owner, reserve }
    }

    /// The directory with everything of one VM.
    #[must_use]
    pub fn directory_of(&self, vm: VmId) -> PathBuf {
        self.directory.join(vm.to_string())
    }

    /// The file of a VM's n-th disk, from 0.
    #[must_use]
    pub fn disk_path(&self, vm: VmId, index: u8) -> PathBuf {
        self.directory_of(vm).join(format!("disk-{index}.qcow2"))
    }

    /// The file of a VM's seed disk.
    #[must_use]
    pub fn seed_path(&self, vm: VmId) -> PathBuf {
        self.directory_of(vm).join("seed.img")
    }

    /// Makes a disk that starts as a copy of `base` and costs nothing until the guest writes, or
    /// an empty one. If the same disk is there already, it is left as it is (it may be in use).
    ///
    /// # Errors
    /// [`DiskError`]; nothing is left behind.
    pub async fn create(
        &self,
        vm: VmId,
        index: u8,
        base: Option<&Base>,
        size: Bytes,
    ) -> Result<DiskFacts, DiskError> {
        check_size(size)?;
        if let Some(base) = base {
            if !base.path.is_absolute() {
                return Err(DiskError::RelativeBase { path: base.path.clone() });
            }
            let base_size = inspect_image(&base.path, base.format)?.virtual_size;
            if size < base_size {
                return Err(DiskError::SmallerThanImage { size, base_size });
            }
        }
        let path = self.disk_path(vm, index);
        if path.exists() {
            let facts = self.facts(vm, index)?;
            let same = facts.virtual_size == size
                && facts.base.as_deref() == base.map(|base| base.path.as_path());
            return if same { Ok(facts) } else { Err(DiskError::OtherDisk { path }) };
        }
        self.require_space(size)?;
        self.make_directory(vm)?;
        let unfinished = self.directory_of(vm).join(format!("disk-{index}.new"));
        remove_file(&unfinished)?;
        let mut arguments = vec!["create".into(), "-q".into(), "-f".into(), "qcow2".into()];
        if let Some(base) = base {
            arguments.extend(["-b".into(), base.path.clone().into_os_string()]);
            arguments.extend(["-F".into(), base.format.as_str().into()]);
        }
        arguments.extend([unfinished.clone().into_os_string(), size.get().to_string().into()]);
        let made = qemu_img("create", &path, arguments).await;
        let finished = made
            .and_then(|()| self.hand_over(&unfinished))
            .and_then(|()| finish(&unfinished, &path));
        if finished.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        finished?;
        self.facts(vm, index)
    }

    /// What a disk is now. Reads the header itself, so a running QEMU is not disturbed.
    ///
    /// # Errors
    /// [`DiskError::Read`], [`DiskError::NotAnImage`].
    pub fn facts(&self, vm: VmId, index: u8) -> Result<DiskFacts, DiskError> {
        header::disk_facts(&self.disk_path(vm, index))
    }

    /// Makes the disk of a VM that is *stopped* larger. QEMU holds a lock on the disk of a running
    /// one, which makes this fail; use `block_resize` of its monitor there. The same size again
    /// does nothing.
    ///
    /// # Errors
    /// [`DiskError::Shrink`], [`DiskError::NotEnoughSpace`], [`DiskError::QemuImg`].
    pub async fn grow(&self, vm: VmId, index: u8, size: Bytes) -> Result<DiskFacts, DiskError> {
        check_size(size)?;
        let facts = self.facts(vm, index)?;
        if size == facts.virtual_size {
            return Ok(facts);
        }
        if size < facts.virtual_size {
            return Err(DiskError::Shrink { from: facts.virtual_size, to: size });
        }
        self.require_space(size.saturating_sub(facts.virtual_size))?;
        let path = self.disk_path(vm, index);
        // Without its image: in a shared pool that lies elsewhere on each host, and it is never
        // larger than the disk, so that what is added reads as zeros.
        let alone = serde_json::json!({
            "driver": "qcow2",
            "backing": null,
            "file": {"driver": "file", "filename": path.to_string_lossy()},
        });
        let arguments = vec![
            "resize".into(),
            "-q".into(),
            format!("json:{alone}").into(),
            size.get().to_string().into(),
        ];
        qemu_img("resize", &path, arguments).await?;
        self.facts(vm, index)
    }

    /// Checks that the file system can hold `wanted` more, beside all that the disks which are
    /// there may still grow by and what is kept back.
    ///
    /// # Errors
    /// [`DiskError::NotEnoughSpace`], [`DiskError::Space`].
    pub fn require_space(&self, wanted: Bytes) -> Result<(), DiskError> {
        let promised = space::promised_growth(&self.directory);
        let needed = wanted.saturating_add(promised).saturating_add(self.reserve);
        let free = space_at(&self.directory)?.free;
        if needed <= free {
            return Ok(());
        }
        let path = self.directory.clone();
        Err(DiskError::NotEnoughSpace {
            path,
            free,
            needed,
            wanted,
            promised,
            reserve: self.reserve,
        })
    }

    /// Writes a VM's seed disk, replacing an older one.
    ///
    /// # Errors
    /// [`DiskError::Seed`] names the value that is not allowed.
    pub fn write_seed(&self, vm: VmId, seed: &Seed) -> Result<PathBuf, DiskError> {
        let path = self.seed_path(vm);
        let image =
            seed.image().map_err(|source| DiskError::Seed { path: path.clone(), source })?;
        self.make_directory(vm)?;
        let unfinished = self.directory_of(vm).join("seed.new");
        remove_file(&unfinished)?;
        let written = write_private(&unfinished, &image)
            .and_then(|()| self.hand_over(&unfinished))
            .and_then(|()| finish(&unfinished, &path));
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written.map(|()| path)
    }

    /// Deletes one disk. One that is not there is no error.
    ///
    /// # Errors
    /// [`DiskError::Remove`].
    pub fn delete(&self, vm: VmId, index: u8) -> Result<(), DiskError> {
        remove_file(&self.disk_path(vm, index))
    }

    /// Deletes everything of a VM.
    ///
    /// # Errors
    /// [`DiskError::Remove`].
    pub fn delete_all(&self, vm: VmId) -> Result<(), DiskError> {
        let path = self.directory_of(vm);
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(DiskError::Remove { path, source })
            }
            _ => Ok(()),
        }
    }

    /// The VMs that have disks here, in ascending order: to find left-overs.
    ///
    /// # Errors
    /// [`DiskError::Read`].
    pub fn vms(&self) -> Result<Vec<VmId>, DiskError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(DiskError::Read { path: self.directory.clone(), source }),
        };
        let mut vms: Vec<VmId> = entries
            .filter_map(Result::ok)
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        vms.sort_unstable();
        Ok(vms)
    }

    fn make_directory(&self, vm: VmId) -> Result<(), DiskError> {
        let path = self.directory_of(vm);
        fs::create_dir_all(&path)
            .map_err(|source| DiskError::CreateDirectory { path: path.clone(), source })?;
        fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700))
            .map_err(|source| DiskError::HandOver { path: path.clone(), source })?;
        self.chown(&path)
    }

    fn hand_over(&self, path: &Path) -> Result<(), DiskError> {
        fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .map_err(|source| DiskError::HandOver { path: path.to_owned(), source })?;
        self.chown(path)
    }

    fn chown(&self, path: &Path) -> Result<(), DiskError> {
        let Some(owner) = self.owner else { return Ok(()) };
        std::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid))
            .map_err(|source| DiskError::HandOver { path: path.to_owned(), source })
    }
}

fn check_size(size: Bytes) -> Result<(), DiskError> {
    let fits = size > Bytes::ZERO && size <= LARGEST_DISK && size.get().is_multiple_of(512);
    if fits { Ok(()) } else { Err(DiskError::Size { size }) }
}

async fn qemu_img(
    action: &'static str,
    path: &Path,
    arguments: Vec<std::ffi::OsString>,
) -> Result<(), DiskError> {
    Tool::new("qemu-img", arguments)
        .limit(Duration::from_secs(30))
        .run()
        .await
        .map(|_| ())
        .map_err(|source| DiskError::QemuImg { action, path: path.to_owned(), source })
}

/// Gives a complete file its name, so that it survives a power cut or was never there.
fn finish(unfinished: &Path, path: &Path) -> Result<(), DiskError> {
    let failed = |source| DiskError::Write { path: path.to_owned(), source };
    fs::File::open(unfinished).and_then(|file| file.sync_all()).map_err(failed)?;
    fs::rename(unfinished, path).map_err(failed)?;
    match path.parent() {
        Some(directory) => {
            fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
        }
        None => Ok(()),
    }
}

fn write_private(path: &Path, content: &[u8]) -> Result<(), DiskError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content))
        .map_err(|source| DiskError::Write { path: path.to_owned(), source })
}

fn remove_file(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(DiskError::Remove { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

//! Small files that must survive a crash at any instant: written beside, synced, renamed.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// No file of ours is near this size.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// Why a file could not be read or written.
#[derive(Debug, Error)]
pub enum FileError {
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not what was written there", path.display())]
    Content {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

/// Writes `value` as JSON, mode 0600: afterwards the file has the old or the new content, whatever
/// dies when.
///
/// # Errors
/// [`FileError::Write`].
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let failed = |source| FileError::Write { path: path.to_owned(), source };
    let bytes = serde_json::to_vec(value).map_err(|error| failed(io::Error::other(error)))?;
    let beside = path.with_extension("new");
    let write = || {
        let mut file = fs::OpenOptions::new();
        file.write(true).create(true).truncate(true);
        file.options_mut().mode(0o600);
        let mut file = file.open(&beside)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        sync_directory(path.parent().unwrap_or(Path::new(".")))
    };
    write().map_err(failed)
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path)?.sync_all()
}

/// Reads JSON; `None` where there is no file.
///
/// # Errors
/// [`FileError::Read`], [`FileError::Content`].
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    let read = |source| FileError::Read { path: path.to_owned(), source };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(read(source)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(read)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| FileError::Content { path: path.to_owned(), source })
}

/// Removes a file; that there is none is fine.
///
/// # Errors
/// Any other failure.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The id of the kernel's current boot.
pub(crate) fn boot_id() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned())
}

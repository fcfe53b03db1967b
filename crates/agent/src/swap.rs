//! Swap space that the agent sets up for its VMs, and takes away again.
//!
//! What a guest does not give back, its host can only write out ([`crate::pageout`]), and without
//! swap space it cannot. Where the operator asks for it the agent adds an area: compressed memory
//! (zram), which costs CPU time and a part of what it saves, or a file, which costs a wait for the
//! disk at each page that is needed again. By default it adds none: a swap area is the whole host's,
//! and every process of it is paged out to it.
//!
//! ```text
//!   nothing --make--> recorded --format, swapon--> in use --agent dies--> found again by its record
//!      ^                  |                          |
//!      +--- remove <------+--------- swapoff <-------+   (only if memory can take what is in it)
//! ```
//!
//! Invariants:
//! - What was made is written down (`swap.json`) before it is put to use; an agent that starts finds
//!   it, and never sets up a second one beside it.
//! - Nothing that is not ours is touched: an area is ours if its header carries the id of our record.
//! - An area with something in it goes only if available memory takes all of that and
//!   [`LEAST_AVAILABLE`] stays: else the host would run out of memory to save swap space.

mod area;
mod header;
mod system;
mod zram;

use std::io;
use std::path::{Path, PathBuf};

use plimsoll_model::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

pub use area::{Area, areas, available_memory};

use crate::config::SwapConfig;
use crate::disk::{DiskError, space_at};
use crate::vm::files::{self, FileError};

/// The record's name in the agent's directory.
const RECORD: &str = "swap.json";
/// No area is smaller.
pub const LEAST_SIZE: Bytes = Bytes::mib(16);
/// Available memory that is left when what was in an area comes back.
pub const LEAST_AVAILABLE: Bytes = Bytes::mib(256);
/// Disk space that a swap file leaves free.
const LEAST_DISK: Bytes = Bytes::gib(1);

/// Why swap space could not be set up or taken away.
#[derive(Debug, Error)]
pub enum SwapError {
    /// The size is none that an area can have.
    #[error("a swap area of {size} cannot be made: from {LEAST_SIZE} to {most} are possible")]
    Size {
        /// What was asked for.
        size: Bytes,
        /// The most.
        most: Bytes,
    },
    /// The file system has not enough room.
    #[error("{} has {free} free: not enough for a swap file of {size}", path.display())]
    NoSpace {
        /// The directory.
        path: PathBuf,
        /// What is free.
        free: Bytes,
        /// The file's size.
        size: Bytes,
    },
    /// The file system's room is not known.
    #[error("cannot tell how much room there is for a swap file")]
    Space(#[source] DiskError),
    /// The kernel has no zram, or only as a module that is not loaded.
    #[error("this kernel offers no zram (load the module `zram`)")]
    NoZram,
    /// The kernel's list of areas cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file or a device could not be made or changed.
    #[error("cannot {action} {}", path.display())]
    Make {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// What there was before could not be read, or what is now not be written down.
    #[error("cannot keep the record of swap space")]
    Record(#[source] FileError),
    /// Memory cannot take what is in it.
    #[error("{used} lie in {}, and memory has only {available} available", path.display())]
    InUse {
        /// The area.
        path: PathBuf,
        /// What is in it.
        used: Bytes,
        /// What memory has.
        available: Bytes,
    },
}

/// What an area is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Zram,
    File,
}

impl Kind {
    /// The kernel fills areas of a higher priority first. Above what an operator's areas have unless
    /// told otherwise (below 0), compressed memory before a disk.
    const fn priority(self) -> u16 {
        match self {
            Self::Zram => 100,
            Self::File => 10,
        }
    }
}

/// What was made, as it is written down before it is put to use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    kind: Kind,
    /// The device or the file.
    path: PathBuf,
    size: Bytes,
    /// In the area's header.
    id: Uuid,
    /// A device's number means another one after a boot.
    boot_id: String,
}

/// Makes the host's swap space what the configuration says: adds an area, finds the one of an agent
/// before, or removes that if it is no longer wanted. Returns the area that is in use. Blocks while
/// it writes.
///
/// # Errors
/// [`SwapError`]. An area that could not be removed stays in use, and on record.
pub fn set_up(config: &SwapConfig, data_dir: &Path) -> Result<Option<Area>, SwapError> {
    if let Some(record) = read_record(data_dir)? {
        if record.is_of(config, data_dir) && record.reuse()? {
            return record.area();
        }
        take_away(&record, data_dir)?;
    }
    let record = match config {
        SwapConfig::None {} => return Ok(None),
        SwapConfig::Zram { size } => make_zram(*size, data_dir)?,
        SwapConfig::File { size, directory } => {
            make_file(*size, directory.as_deref().unwrap_or(data_dir), data_dir)?
        }
    };
    record.area()
}

/// Removes what an agent with this directory has set up. Without anything there it succeeds. Blocks
/// while what is in it comes back.
///
/// # Errors
/// [`SwapError::InUse`] if memory cannot take it; what else failed. It then stays in use.
pub fn remove(data_dir: &Path) -> Result<(), SwapError> {
    match read_record(data_dir)? {
        Some(record) => take_away(&record, data_dir),
        None => Ok(()),
    }
}

/// Whether this kernel can make another zram device now.
#[must_use]
pub fn zram_is_possible() -> bool {
    zram::is_possible()
}

fn record_path(data_dir: &Path) -> PathBuf {
    data_dir.join(RECORD)
}

fn read_record(data_dir: &Path) -> Result<Option<Record>, SwapError> {
    files::read_json(&record_path(data_dir)).map_err(SwapError::Record)
}

fn boot_id() -> Result<String, SwapError> {
    let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
    files::boot_id().map_err(|source| SwapError::Read { path, source })
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SwapError {
    let path = path.to_owned();
    move |source| SwapError::Make { action, path, source }
}

impl Record {
    fn new(kind: Kind, path: PathBuf, size: Bytes, id: Uuid) -> Result<Self, SwapError> {
        Ok(Self { kind, path, size, id, boot_id: boot_id()? })
    }

    fn write(&self, data_dir: &Path) -> Result<(), SwapError> {
        files::write_json(&record_path(data_dir), self).map_err(SwapError::Record)
    }

    /// Whether the configuration means this very area.
    fn is_of(&self, config: &SwapConfig, data_dir: &Path) -> bool {
        match config {
            SwapConfig::None {} => false,
            SwapConfig::Zram { size } => self.kind == Kind::Zram && self.size == *size,
            SwapConfig::File { size, directory } => {
                let directory = directory.as_deref().unwrap_or(data_dir);
                self.kind == Kind::File
                    && self.size == *size
                    && self.path == file_path(directory, self.id)
            }
        }
    }

    /// The area as the kernel sees it, if it is in use.
    fn area(&self) -> Result<Option<Area>, SwapError> {
        Ok(areas()?.into_iter().find(|area| area.path == self.path))
    }

    /// Whether the header says that it is ours. A device of another boot never is.
    fn is_ours(&self) -> Result<bool, SwapError> {
        if self.kind == Kind::Zram && self.boot_id != boot_id()? {
            return Ok(false);
        }
        Ok(header::read_id(&self.path) == Some(self.id))
    }

    /// Whether it is in use, after it was put to use again if it is a file from before a boot.
    fn reuse(&self) -> Result<bool, SwapError> {
        if !self.is_ours()? {
            return Ok(false);
        }
        if self.area()?.is_none() {
            if self.kind == Kind::Zram {
                return Ok(false);
            }
            system::swap_on(&self.path, self.kind.priority())
                .map_err(failed("swap to", &self.path))?;
        }
        Ok(true)
    }
}

/// Ends the use of an area and removes what it is made of, if it is ours.
fn take_away(record: &Record, data_dir: &Path) -> Result<(), SwapError> {
    if record.is_ours()? {
        if let Some(area) = record.area()? {
            let available = available_memory()?;
            if area.used.saturating_add(LEAST_AVAILABLE) > available && area.used > Bytes::ZERO {
                return Err(SwapError::InUse { path: area.path, used: area.used, available });
            }
            system::swap_off(&record.path).map_err(failed("end swapping to", &record.path))?;
        }
        match record.kind {
            Kind::Zram => zram::remove(&record.path)?,
            Kind::File => {
                files::remove(&record.path).map_err(failed("remove", &record.path))?;
            }
        }
    } else if record.kind == Kind::File && record.area()?.is_none() {
        // Killed before the header was written; the name holds the record's id.
        files::remove(&record.path).map_err(failed("remove", &record.path))?;
    } else if record.kind == Kind::Zram && record.boot_id == boot_id()? {
        zram::remove_unused(&record.path)?;
    }
    let path = record_path(data_dir);
    files::remove(&path).map_err(failed("remove", &path))
}

fn check_size(size: Bytes, most: Bytes) -> Result<(), SwapError> {
    let most = most.min(header::MOST);
    if (LEAST_SIZE..=most).contains(&size) { Ok(()) } else { Err(SwapError::Size { size, most }) }
}

fn make_zram(size: Bytes, data_dir: &Path) -> Result<Record, SwapError> {
    // Beyond twice the memory even well compressed pages would not fit.
    check_size(size, Bytes(area::total_memory()?.get().saturating_mul(2)))?;
    let path = zram::add()?;
    let record = Record::new(Kind::Zram, path, size, Uuid::new_v4())?;
    let put_to_use = || {
        record.write(data_dir)?;
        zram::set_size(&record.path, size)?;
        header::write(&record.path, size, record.id).map_err(failed("write to", &record.path))?;
        system::swap_on(&record.path, record.kind.priority())
            .map_err(failed("swap to", &record.path))
    };
    put_to_use().inspect_err(|_| {
        // What failed first is what counts.
        let _ = zram::remove(&record.path);
        let _ = files::remove(&record_path(data_dir));
    })?;
    Ok(record)
}

fn file_path(directory: &Path, id: Uuid) -> PathBuf {
    directory.join(format!("plimsoll-{id}.swap"))
}

fn make_file(size: Bytes, directory: &Path, data_dir: &Path) -> Result<Record, SwapError> {
    check_size(size, header::MOST)?;
    let free = space_at(directory).map_err(SwapError::Space)?.free;
    if free < size.saturating_add(LEAST_DISK) {
        return Err(SwapError::NoSpace { path: directory.to_owned(), free, size });
    }
    std::fs::create_dir_all(directory).map_err(failed("make", directory))?;
    let id = Uuid::new_v4();
    let record = Record::new(Kind::File, file_path(directory, id), size, id)?;
    record.write(data_dir)?;
    let priority = record.kind.priority();
    let put_to_use = || {
        header::write(&record.path, size, id)?;
        system::swap_on(&record.path, priority)
    };
    let make = || {
        system::allocate(&record.path, size).map_err(failed("make", &record.path))?;
        match put_to_use() {
            // Some file systems take no swap file with blocks that were never written.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                system::fill(&record.path, size).and_then(|()| put_to_use())
            }
            other => other,
        }
        .map_err(failed("swap to", &record.path))
    };
    make().inspect_err(|_| {
        let _ = files::remove(&record.path);
        let _ = files::remove(&record_path(data_dir));
    })?;
    Ok(record)
}

#[cfg(test)]
mod tests;

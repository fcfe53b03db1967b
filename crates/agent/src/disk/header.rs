//! Reads qcow2 headers without QEMU: quick, safe on files that came from outside, and possible
//! while a QEMU holds its lock on the file.

use std::{
    ffi::OsString,
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use plimsoll_model::Bytes;
use std::fs;

use super::{DiskError, DiskFacts, ImageFormat, LARGEST_DISK};

const MAGIC: [u8; 4] = *b"QFI\xfb";
const HEADER_BYTES: usize = 104;
/// The format's own bound on the name of a backing file.
const LONGEST_BACKING_NAME: u32 = 1023;

const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;

/// What is to be known about an image before VMs are based on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFacts {
    /// Its format.
    pub format: ImageFormat,
    /// The least size of a disk on it.
    pub virtual_size: Bytes,
    /// What its file occupies.
    pub allocated: Bytes,
}

struct Header {
    backing: Option<PathBuf>,
    virtual_size: u64,
    encrypted: bool,
    incompatible: u64,
}

/// Reads an image of declared format and refuses what must not come from outside: a backing or
/// data file (QEMU would open any file on the host), encryption, damage, absurd sizes.
///
/// # Errors
/// [`DiskError::NotAnImage`], [`DiskError::UnsafeImage`], [`DiskError::Size`], [`DiskError::Read`].
pub fn inspect_image(path: &Path, format: ImageFormat) -> Result<ImageFacts, DiskError> {
    let metadata = metadata(path)?;
    let virtual_size = match format {
        ImageFormat::Raw => metadata.len().next_multiple_of(512),
        ImageFormat::Qcow2 => {
            let header = read_header(path)?;
            let refused = |feature| Err(DiskError::UnsafeImage { path: path.to_owned(), feature });
            if header.backing.is_some() {
                return refused("has a backing file");
            }
            if header.incompatible & INCOMPATIBLE_DATA_FILE != 0 {
                return refused("keeps its data in another file");
            }
            if header.encrypted {
                return refused("is encrypted");
            }
            if header.incompatible & INCOMPATIBLE_CORRUPT != 0 {
                return refused("is marked as damaged");
            }
            header.virtual_size
        }
    };
    if virtual_size == 0 || virtual_size > LARGEST_DISK.get() {
        return Err(DiskError::Size { size: Bytes(virtual_size) });
    }
    let allocated = Bytes(metadata.blocks().saturating_mul(512));
    Ok(ImageFacts { format, virtual_size: Bytes(virtual_size), allocated })
}

pub(super) fn disk_facts(path: &Path) -> Result<DiskFacts, DiskError> {
    let header = read_header(path)?;
    Ok(DiskFacts {
        path: path.to_owned(),
        virtual_size: Bytes(header.virtual_size),
        allocated: Bytes(metadata(path)?.blocks().saturating_mul(512)),
        base: header.backing,
        corrupt: header.incompatible & INCOMPATIBLE_CORRUPT != 0,
    })
}

/// Follows no symbolic link: a link in place of an image would lead anywhere.
fn metadata(path: &Path) -> Result<std::fs::Metadata, DiskError> {
    let metadata = fs::symlink_metadata(path)
        .map_err(|source| DiskError::Read { path: path.to_owned(), source })?;
    if metadata.is_file() {
        return Ok(metadata);
    }
    Err(DiskError::UnsafeImage { path: path.to_owned(), feature: "is not a regular file" })
}

fn read_header(path: &Path) -> Result<Header, DiskError> {
    metadata(path)?;
    let failed = |source| DiskError::Read { path: path.to_owned(), source };
    let not_an_image =
        || DiskError::NotAnImage { path: path.to_owned(), format: ImageFormat::Qcow2 };
    let mut file = fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    file.by_ref().take(HEADER_BYTES as u64).read_to_end(&mut bytes).map_err(failed)?;
    let field = |offset: usize| -> Option<u32> {
        Some(u32::from_be_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
    };
    let wide = |offset: usize| -> Option<u64> {
        Some(u64::from(field(offset)?) << 32 | u64::from(field(offset + 4)?))
    };
    if bytes.get(..4) != Some(&MAGIC[..]) {
        return Err(not_an_image());
    }
    let (Some(version @ 2..=3), Some(backing_offset), Some(backing_bytes), Some(virtual_size)) =
        (field(4), wide(8), field(16), wide(24))
    else {
        return Err(not_an_image());
    };
    let encrypted = field(32).ok_or_else(not_an_image)? != 0;
    // Version 2 has no feature bits.
    let incompatible = if version == 3 { wide(72).ok_or_else(not_an_image)? } else { 0 };
    let backing = if backing_offset == 0 {
        None
    } else if backing_bytes > LONGEST_BACKING_NAME {
        return Err(not_an_image());
    } else {
        let mut name = Vec::new();
        file.seek(SeekFrom::Start(backing_offset)).map_err(failed)?;
        file.take(u64::from(backing_bytes)).read_to_end(&mut name).map_err(failed)?;
        Some(PathBuf::from(OsString::from_vec(name)))
    };
    Ok(Header { backing, virtual_size, encrypted, incompatible })
}

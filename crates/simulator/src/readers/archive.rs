//! Files in `.tar` archives, plain or compressed.

use std::{
    io::{self, Read},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use tar::{Archive, Entry, EntryType, PaxExtensions};

use super::{Limits, Place, ReadError, source::Capped};

/// The most bytes of a member's name, with all that an archive says about it.
const NAME: u64 = 64 << 10;

/// What is done with a member, given its name and its bytes.
pub(super) type Each<'a> =
    dyn FnMut(&Path, &mut dyn Read) -> Result<ControlFlow<()>, ReadError> + 'a;

/// The archive that a path names, and the path inside it that follows.
pub(super) fn archive_of(path: &Path) -> Option<(PathBuf, Option<PathBuf>)> {
    let is_archive = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        [".tar", ".tar.xz", ".txz"].iter().any(|end| name.ends_with(end)) && path.is_file()
    };
    let archive = path.ancestors().find(|ancestor| is_archive(ancestor))?;
    let inside = path.strip_prefix(archive).ok().filter(|rest| !rest.as_os_str().is_empty());
    Some((archive.to_owned(), inside.map(Path::to_owned)))
}

/// Gives each file of an archive to `each`, until that says `Break`. Errors call the archive `file`.
///
/// # Errors
/// The first thing that is wrong, with the archive or as `each` says.
pub(super) fn members(
    file: &str,
    reader: impl Read,
    limits: &Limits,
    each: &mut Each<'_>,
) -> Result<(), ReadError> {
    let mut archive = Archive::new(Capped::new(reader, limits.bytes));
    let mut number = 0;
    let failed = |number, source| ReadError::Archive { file: file.to_owned(), number, source };
    // Raw: tar's own handling of long names would hold a name of any length.
    let entries = archive.entries().map_err(|source| failed(1, source))?.raw(true);
    let mut long_name = None;
    for entry in entries {
        number += 1;
        let mut entry = entry.map_err(|source| failed(number, source))?;
        if number > limits.records as u64 {
            let place = Place { file: file.to_owned(), line: 1, column: 1 };
            let limit = limits.records as u64;
            return Err(ReadError::TooMuch { place, what: "files in the archive", limit });
        }
        match entry.header().entry_type() {
            EntryType::GNULongName | EntryType::XHeader => {
                long_name = name_ahead(&mut entry).map_err(|source| failed(number, source))?;
                continue;
            }
            EntryType::Regular | EntryType::Continuous => {}
            _ => {
                long_name = None;
                continue;
            }
        }
        let name = match long_name.take() {
            Some(name) => name,
            None => entry.path().map_err(|source| failed(number, source))?.into_owned(),
        };
        if each(&name, &mut entry)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// The name that an entry of an archive gives to the one that follows.
fn name_ahead<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Option<PathBuf>> {
    if entry.size() > NAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a file's name is too long"));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes)?;
    let text = |bytes: &[u8]| PathBuf::from(String::from_utf8_lossy(bytes).into_owned());
    if entry.header().entry_type() == EntryType::GNULongName {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        return Ok(Some(text(&bytes[..end])));
    }
    for extension in PaxExtensions::new(&bytes) {
        let extension = extension?;
        if extension.key_bytes() == b"path" {
            return Ok(Some(text(extension.value_bytes())));
        }
    }
    Ok(None)
}

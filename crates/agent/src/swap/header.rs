//! The first page of a swap area, as the kernel reads it (`union swap_header` in its
//! `include/linux/swap.h`): what `mkswap` of util-linux writes.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use plimsoll_model::Bytes;
use uuid::Uuid;

const MAGIC: &[u8; 10] = b"SWAPSPACE2";
const LABEL: &[u8; 16] = b"plimsoll\0\0\0\0\0\0\0\0";
const VERSION: u32 = 1;
/// Where the version, the last page's number, the number of bad pages, id and label stand.
const VERSION_AT: usize = 1024;
const LAST_PAGE_AT: usize = 1028;
const BAD_PAGES_AT: usize = 1032;
const ID_AT: usize = 1036;
const LABEL_AT: usize = 1052;

/// The kernel counts pages of an area in 32 bits; with some to spare.
pub(super) const MOST: Bytes = Bytes::gib(8 << 10);

/// Makes a file or device of `size` a swap area.
pub(super) fn write(path: &Path, size: Bytes, id: Uuid) -> io::Result<()> {
    let page = page_size();
    let header = header(size, id, page)?;
    let file = File::options().write(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    file.write_all_at(&header, 0)?;
    file.sync_all()
}

/// The id of a swap area with our label.
pub(super) fn read_id(path: &Path) -> Option<Uuid> {
    let page = page_size();
    let mut header = vec![0; page];
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path).ok()?;
    file.read_exact_at(&mut header, 0).ok()?;
    let field = |at: usize, length: usize| header.get(at..at + length);
    let is_ours =
        field(page - MAGIC.len(), MAGIC.len())? == MAGIC && field(LABEL_AT, LABEL.len())? == LABEL;
    is_ours.then(|| Uuid::from_slice(field(ID_AT, 16)?).ok()).flatten()
}

fn page_size() -> usize {
    let known = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    known.and_then(|size| usize::try_from(size).ok()).unwrap_or(4096)
}

fn header(size: Bytes, id: Uuid, page: usize) -> io::Result<Vec<u8>> {
    let pages = size.get() / page as u64;
    let last = pages.checked_sub(1).and_then(|last| u32::try_from(last).ok());
    let last = last.filter(|last| *last > 0).ok_or(io::ErrorKind::InvalidInput)?;
    let mut header = vec![0; page];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = header.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(VERSION_AT, &VERSION.to_ne_bytes());
    put(LAST_PAGE_AT, &last.to_ne_bytes());
    put(BAD_PAGES_AT, &0_u32.to_ne_bytes());
    put(ID_AT, id.as_bytes());
    put(LABEL_AT, LABEL);
    put(page - MAGIC.len(), MAGIC);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_back_and_others_are_not_ours() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let id = Uuid::from_u128(0x1234);
        assert_eq!(read_id(file.path()), None, "too short");
        write(file.path(), Bytes::mib(16), id).unwrap();
        assert_eq!(read_id(file.path()), Some(id));
        let header = std::fs::read(file.path()).unwrap();
        assert_eq!(header[1028..1032], 4095_u32.to_ne_bytes(), "16 MiB are 4,096 pages");
        assert_eq!(&header[4086..], b"SWAPSPACE2");
        let mut other = header.clone();
        other[1052] = b'P';
        std::fs::write(file.path(), other).unwrap();
        assert_eq!(read_id(file.path()), None, "another label");
        assert_eq!(read_id(Path::new("/nonexistent")), None);
        assert!(write(file.path(), Bytes(4096), id).is_err(), "a header and no page");
        assert!(write(file.path(), Bytes(u64::MAX), id).is_err());
    }
}

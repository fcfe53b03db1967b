//! The system calls that add and end swap areas, and the file of one.
#![expect(unsafe_code, reason = "swapon and swapoff are in no safe crate in use")]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use plimsoll_model::Bytes;
use rustix::fs::{FallocateFlags, fallocate};

/// `SWAP_FLAG_PREFER` of `linux/swap.h`: the lower bits are a priority.
const PREFER: i32 = 0x8000;
const PRIORITY_MASK: u16 = 0x7fff;

/// Puts an area to use.
pub(super) fn swap_on(path: &Path, priority: u16) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = PREFER | i32::from(priority & PRIORITY_MASK);
    // SAFETY: the path is a C string that outlives the call; no other memory is involved.
    outcome(unsafe { libc::swapon(path.as_ptr(), flags) })
}

/// Ends the use of an area, once all that was in it is back in memory: seconds for each GiB.
pub(super) fn swap_off(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: as above.
    outcome(unsafe { libc::swapoff(path.as_ptr()) })
}

fn outcome(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a file of this size all of which is there: the kernel swaps to its blocks directly.
pub(super) fn allocate(path: &Path, size: Bytes) -> io::Result<()> {
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    match fallocate(&file, FallocateFlags::empty(), 0, size.get()) {
        Err(rustix::io::Errno::OPNOTSUPP) => fill(path, size),
        other => Ok(other?),
    }
}

/// Writes all of a file.
pub(super) fn fill(path: &Path, size: Bytes) -> io::Result<()> {
    let mut file = File::options().write(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let zeros = vec![0; 1 << 20];
    let mut left = size.get();
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(zeros.len()).min(zeros.len());
        file.write_all(zeros.get(..length).unwrap_or_default())?;
        left -= length as u64;
    }
    file.sync_all()
}

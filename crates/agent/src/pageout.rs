//! Takes memory from a process without its help: pages are written to swap and leave the host's
//! memory.
//!
//! It is blind. The kernel is told which addresses, and does not ask what they are worth to the
//! guest: a page of its page cache, which it could simply have dropped, is written out like any
//! other. So it is the last resort of the cascade (Sharma et al., Resource Deflation, EuroSys'19,
//! section 3). Pieces are taken all over the memory, so that no part of the guest bears all of it.
//! What the process touches again comes back.
#![expect(unsafe_code, reason = "process_madvise is in no safe crate in use")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use plimsoll_model::Bytes;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use thiserror::Error;

use crate::kernel_fields::memory_field;

/// Memory is given up in pieces of this size.
const PIECE: u64 = 2 << 20;
/// Pieces after which is looked how much went.
const LOOK: usize = 16;
/// Swap space that is left to the host.
const SWAP_RESERVE: u64 = 64 << 20;
/// A guest's memory is not smaller.
const LEAST_MAPPING: u64 = 32 << 20;

/// Why no pages could be written out.
#[derive(Debug, Error)]
pub enum PageOutError {
    /// The host has no swap space left.
    #[error("the host has no swap space left ({free} free)")]
    NoSwap {
        /// What is free.
        free: Bytes,
    },
    /// Something of /proc could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The process has no memory of a guest.
    #[error("process {process} has no mapping that is a guest's memory")]
    NoMapping {
        /// Its id.
        process: u32,
    },
    /// The process is gone.
    #[error("cannot open process {process}")]
    Process {
        /// Its id.
        process: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The VM's limit could not be set.
    #[error("cannot hold its memory")]
    Limit(#[source] Box<crate::limits::LimitsError>),
    /// The kernel refused.
    #[error("cannot page out memory of process {process}")]
    Advise {
        /// Its id.
        process: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
}

/// Writes about `wanted` of the memory of a QEMU to swap, as far as there is swap space, and returns
/// by how much its resident memory shrank. Blocks for as long as the writing takes.
///
/// # Errors
/// See [`PageOutError`]. What was written out before stays out.
pub fn page_out(process: u32, wanted: Bytes) -> Result<Bytes, PageOutError> {
    let free = swap_free()?;
    let wanted = wanted.get().min(free.get().saturating_sub(SWAP_RESERVE));
    if wanted == 0 {
        return Err(PageOutError::NoSwap { free });
    }
    let failed = |source| PageOutError::Process { process, source };
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let handle =
        pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| failed(io::Error::from(errno)))?;
    let mappings = guest_memory(&read(&format!("/proc/{process}/maps"))?);
    if mappings.is_empty() {
        return Err(PageOutError::NoMapping { process });
    }
    let before = resident(process)?;
    let mut went = 0;
    for pieces in scattered(&mappings).chunks(LOOK) {
        for piece in pieces {
            advise(&handle, *piece).map_err(|source| PageOutError::Advise { process, source })?;
        }
        went = before.saturating_sub(resident(process)?);
        if went >= wanted {
            break;
        }
    }
    Ok(Bytes(went))
}

/// Swap space of the host that is free.
///
/// # Errors
/// [`PageOutError::Read`].
pub fn swap_free() -> Result<Bytes, PageOutError> {
    Ok(memory_field(&read("/proc/meminfo")?, "SwapFree").unwrap_or_default())
}

fn read(path: &str) -> Result<String, PageOutError> {
    fs::read_to_string(Path::new(path))
        .map_err(|source| PageOutError::Read { path: path.to_owned(), source })
}

/// What a process has in the host's memory, in bytes.
fn resident(process: u32) -> Result<u64, PageOutError> {
    let text = read(&format!("/proc/{process}/status"))?;
    Ok(memory_field(&text, "RssAnon").unwrap_or_default().get())
}

/// The mappings that are large, private, writable and of no file: the guest's memory. QEMU's own
/// code cache is among them where it is large; paging it out costs time, nothing else.
fn guest_memory(maps: &str) -> Vec<Mapping> {
    maps.lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (start, end) = fields.next()?.split_once('-')?;
            let (rights, inode) = (fields.next()?, fields.nth(2)?);
            let of_no_file = inode == "0" && fields.next().is_none();
            let mapping = Mapping {
                start: u64::from_str_radix(start, 16).ok()?,
                end: u64::from_str_radix(end, 16).ok()?,
            };
            let large = mapping.end.checked_sub(mapping.start)? >= LEAST_MAPPING;
            (rights == "rw-p" && of_no_file && large).then_some(mapping)
        })
        .collect()
}

/// What the host holds of a guest's memory, by `/proc/PID/smaps`, in bytes.
pub(crate) fn guest_resident(smaps: &str) -> u64 {
    let mut sum: u64 = 0;
    let mut is_guest = false;
    for line in smaps.lines() {
        // A mapping's first line begins with its addresses, the others with a name and a colon.
        let first = line.split_whitespace().next().unwrap_or_default();
        if !first.ends_with(':') {
            is_guest = !guest_memory(line).is_empty();
        } else if is_guest && let Some(held) = memory_field(line, "Rss") {
            sum = sum.saturating_add(held.get());
        }
    }
    sum
}

/// The mappings in pieces, every sixteenth first, then those between.
fn scattered(mappings: &[Mapping]) -> Vec<Mapping> {
    let pieces: Vec<Mapping> = mappings
        .iter()
        .flat_map(|mapping| {
            let count = (mapping.end - mapping.start).div_ceil(PIECE);
            (0..count).map(|index| {
                let start = mapping.start + index * PIECE;
                Mapping { start, end: mapping.end.min(start + PIECE) }
            })
        })
        .collect();
    (0..LOOK).flat_map(|offset| pieces.iter().skip(offset).step_by(LOOK).copied()).collect()
}

fn advise(process: &OwnedFd, piece: Mapping) -> io::Result<()> {
    let length = usize::try_from(piece.end - piece.start).unwrap_or(usize::MAX);
    let address = usize::try_from(piece.start).unwrap_or(usize::MAX);
    let range =
        libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(address), iov_len: length };
    // SAFETY: the kernel reads one iovec, which lives until the call returns. The addresses in it
    // are the other process's: nothing of ours is touched, and paging out loses no content.
    let result = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            process.as_raw_fd(),
            &raw const range,
            1_usize,
            libc::MADV_PAGEOUT,
            0_u32,
        )
    };
    let error = io::Error::last_os_error();
    // A hole in the range is no failure: what is not there need not go.
    if result >= 0 || error.raw_os_error() == Some(libc::ENOMEM) { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c0000000-55d0c0800000 r-xp 00000000 fd:01 42 /usr/bin/qemu
55d0c1000000-55d0c2000000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0010000000 rw-p 00000000 00:00 0 
7f0010000000-7f0020000000 rw-s 00000000 00:01 7 /memfd:ram (deleted)
7f0020000000-7f0024000000 ---p 00000000 00:00 0 
7f0024000000-7f0024400000 rw-p 00000000 00:00 0 
nonsense
7fff00000000-7fff00021000 rw-p 00000000 00:00 0 [stack]";

    #[test]
    fn the_guests_memory_is_found() {
        let found = guest_memory(MAPS);
        assert_eq!(found, [Mapping { start: 0x7f00_0000_0000, end: 0x7f00_1000_0000 }]);
        assert!(guest_memory("").is_empty());
    }

    #[test]
    fn what_is_held_of_it_is_summed() {
        let smaps = "\
55d0c0000000-55d0c0800000 r-xp 00000000 fd:01 42 /usr/bin/qemu
Rss:                 100 kB
7f0000000000-7f0010000000 rw-p 00000000 00:00 0 
Size:             262144 kB
Rss:                2048 kB
Pss:                   1 kB
7f0020000000-7f0024000000 rw-p 00000000 00:00 0 
Rss:                1024 kB
7fff00000000-7fff00021000 rw-p 00000000 00:00 0 [stack]
Rss:                   8 kB";
        assert_eq!(guest_resident(smaps), 3 << 20);
        assert_eq!(guest_resident("nonsense"), 0);
    }

    #[test]
    fn pieces_cover_everything_once() {
        let mappings = [
            Mapping { start: 0, end: 50 * PIECE + 4096 },
            Mapping { start: 1 << 40, end: (1 << 40) + PIECE },
        ];
        let mut pieces = scattered(&mappings);
        assert_eq!(pieces.len(), 52);
        assert!(pieces[1].start - pieces[0].start >= 16 * PIECE, "they lie apart");
        pieces.sort_by_key(|piece| piece.start);
        assert!(pieces.windows(2).take(50).all(|pair| pair[0].end == pair[1].start));
        assert_eq!(pieces[50].end, 50 * PIECE + 4096);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        assert!(page_out(u32::MAX, Bytes(1)).is_err());
    }
}

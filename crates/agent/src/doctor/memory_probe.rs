//! Tries what reads a running VM's memory from outside: userfaultfd in asynchronous write-protect
//! mode, and `PAGEMAP_SCAN`, on a few pages of our own.
#![expect(unsafe_code, reason = "userfaultfd and PAGEMAP_SCAN are system calls on addresses")]

use std::{
    io,
    num::NonZero,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr::NonNull,
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use thiserror::Error;

const PAGE: usize = 4096;
const PAGES: usize = 4;
const WRITTEN_PAGE: usize = 2;

const UFFD_API: u64 = 0xaa;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 1 << 1;

const SCAN_WP_MATCHING: u64 = 1;
const SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const PAGE_IS_WRITTEN: u64 = 1 << 1;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRegister {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
#[derive(Default)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_length: u64,
    most_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

nix::ioctl_readwrite!(uffdio_api, 0xaa, 0x3f, UffdioApi);
nix::ioctl_readwrite!(uffdio_register, 0xaa, 0x00, UffdioRegister);
nix::ioctl_readwrite!(pagemap_scan, b'f', 16, ScanArguments);

/// Which step does not work.
#[derive(Debug, Error)]
#[error("{step} does not work")]
pub(super) struct Missing {
    pub(super) step: &'static str,
    #[source]
    source: io::Error,
}

fn missing(step: &'static str) -> impl FnOnce(nix::errno::Errno) -> Missing {
    move |errno| Missing { step, source: errno.into() }
}

struct Memory(NonNull<libc::c_void>);

impl Memory {
    fn address(&self) -> u64 {
        self.0.as_ptr().expose_provenance() as u64
    }

    fn write(&self, page: usize) {
        assert!(page < PAGES, "inside the mapping");
        // SAFETY: the byte lies in the mapping, which only this value knows.
        unsafe { self.0.as_ptr().cast::<u8>().add(page * PAGE).write_volatile(1) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and of this length.
        let _ = unsafe { munmap(self.0, PAGES * PAGE) };
    }
}

/// A userfaultfd with what is needed to follow writes without being asked about each.
pub(super) fn userfaultfd() -> Result<OwnedFd, Missing> {
    // SAFETY: the call takes flags only and returns a new descriptor or an error.
    let raw = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    let raw = nix::errno::Errno::result(raw).map_err(missing("userfaultfd"))?;
    let raw = i32::try_from(raw).map_err(|_| missing("userfaultfd")(nix::errno::Errno::EBADF))?;
    // SAFETY: the kernel just returned it, nobody else has it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(raw) };
    let features = FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED | FEATURE_WP_HUGETLBFS_SHMEM;
    let mut api = UffdioApi { api: UFFD_API, features, ioctls: 0 };
    // SAFETY: the structure has the kernel's layout and outlives the call.
    unsafe { uffdio_api(descriptor.as_raw_fd(), &raw mut api) }
        .map_err(missing("write-protection without questions (WP_ASYNC)"))?;
    Ok(descriptor)
}

/// Writes one page of four and sees whether exactly that one is reported.
pub(super) fn dirty_pages(descriptor: &OwnedFd) -> Result<(), Missing> {
    let length = NonZero::new(PAGES * PAGE).expect("four pages");
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new private mapping at an address that the kernel chooses replaces nothing.
    let memory = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }
        .map(Memory)
        .map_err(missing("a mapping"))?;
    let mut register = UffdioRegister {
        start: memory.address(),
        length: (PAGES * PAGE) as u64,
        mode: REGISTER_MODE_WP,
        ioctls: 0,
    };
    // SAFETY: the structure has the kernel's layout and outlives the call; the range is ours.
    unsafe { uffdio_register(descriptor.as_raw_fd(), &raw mut register) }
        .map_err(missing("registering memory for write-protection"))?;
    let pagemap = fs_err::File::open("/proc/self/pagemap")
        .map_err(|source| Missing { step: "/proc/self/pagemap", source })?;
    // The first round clears, the second must see what was written in between.
    scan(&pagemap, &memory)?;
    memory.write(WRITTEN_PAGE);
    let seen = scan(&pagemap, &memory)?;
    let expected = memory.address() + (WRITTEN_PAGE * PAGE) as u64;
    if seen == [(expected, expected + PAGE as u64)] {
        return Ok(());
    }
    let source = io::Error::other(format!("one page was written, {} ranges reported", seen.len()));
    Err(Missing { step: "PAGEMAP_SCAN", source })
}

fn scan(pagemap: &fs_err::File, memory: &Memory) -> Result<Vec<(u64, u64)>, Missing> {
    let mut regions: [PageRegion; PAGES] = Default::default();
    let mut arguments = ScanArguments {
        size: size_of::<ScanArguments>() as u64,
        flags: SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC,
        start: memory.address(),
        end: memory.address() + (PAGES * PAGE) as u64,
        regions: regions.as_mut_ptr().expose_provenance() as u64,
        regions_length: PAGES as u64,
        category_mask: PAGE_IS_WRITTEN,
        return_mask: PAGE_IS_WRITTEN,
        ..ScanArguments::default()
    };
    // SAFETY: the structure has the kernel's layout; it and the regions it points to, of which
    // there are as many as it says, outlive the call.
    let count = unsafe { pagemap_scan(pagemap.as_raw_fd(), &raw mut arguments) }
        .map_err(missing("PAGEMAP_SCAN"))?;
    let count = usize::try_from(count).unwrap_or(0).min(PAGES);
    Ok(regions[..count].iter().map(|region| (region.start, region.end)).collect())
}

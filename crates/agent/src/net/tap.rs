//! Opens a tap for QEMU, which then needs no access to `/dev/net/tun` and no capability.
#![expect(unsafe_code, reason = "TUNSETIFF is an ioctl that no safe crate in use offers")]

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use std::fs;

use super::NetError;

const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;

/// `struct ifreq`: a name of 16 bytes and a union of 24, of which the flags are the first two.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

nix::ioctl_write_int!(tun_set_interface, b'T', 202);

/// Opens a tap that is there, in the namespace of the calling thread, for `-netdev tap,fd=N` (with
/// `vnet_hdr`). The descriptor is closed on exec unless the caller hands it on.
///
/// # Errors
/// [`NetError::OpenTap`], among others when another process has it open already.
pub fn open_tap(tap: &str) -> Result<OwnedFd, NetError> {
    let failed = |source| NetError::OpenTap { tap: tap.to_owned(), source };
    let bytes = tap.as_bytes();
    let mut name = [0; libc::IFNAMSIZ];
    if bytes.is_empty() || bytes.len() >= name.len() {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    }
    name[..bytes.len()].copy_from_slice(bytes);
    let file =
        fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(failed)?;
    let request =
        InterfaceRequest { name, flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    // SAFETY: the descriptor is open, and the kernel reads and writes one `struct ifreq` at the
    // address, which `InterfaceRequest` has the size and layout of and which outlives the call.
    unsafe {
        tun_set_interface(file.as_raw_fd(), std::ptr::from_ref(&request).expose_provenance() as u64)
    }
    .map_err(|errno| failed(errno.into()))?;
    Ok(file.into())
}

//! Whether QEMU can fetch memory on first access on this host (post-copy), and letting it.
//!
//! QEMU handles faults of its guest's memory by userfaultfd, in the kernel's accesses too. To that it
//! needs `/dev/userfaultfd` (Linux 6.1) or a capability; a QEMU that runs as a user of its own has
//! neither. For as long as a VM arrives its user is let to the device, by an entry in the device's
//! access list that is taken away again. Where that is not possible there is no post-copy.

use std::io;
use std::path::Path;

use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::io::Errno;

const DEVICE: &str = "/dev/userfaultfd";
/// The kernel's form of an access list: a version, then entries of tag, permissions and id
/// (include/uapi/linux/posix_acl_xattr.h).
const ATTRIBUTE: &str = "system.posix_acl_access";
const VERSION: u32 = 2;
const ENTRY_BYTES: usize = 8;
const NOBODY: u32 = u32::MAX;
const READ_WRITE: u16 = 6;
/// Longer lists are not ours to change.
const LONGEST: usize = 4 + 64 * ENTRY_BYTES;

/// Who an entry is for. The order is the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    tag: u16,
    id: u32,
    permissions: u16,
}

const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;

/// Lets the user with this number to the device; `None`: our own, which as root has it anyway.
///
/// # Errors
/// There is no such device, or it takes no access list.
pub(crate) fn allow(user: Option<u32>) -> io::Result<()> {
    Path::new(DEVICE).metadata()?;
    match user {
        Some(user) => {
            change(|entries| entries.push(Entry { tag: USER, id: user, permissions: READ_WRITE }))
        }
        None if nix::unistd::geteuid().is_root() => Ok(()),
        None => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

/// Takes it away again. For a user that does not have it, nothing happens.
pub(crate) fn forbid(user: Option<u32>) {
    let Some(user) = user else { return };
    if let Err(error) = change(|_| {}).and_then(|()| {
        change(|entries| entries.retain(|entry| (entry.tag, entry.id) != (USER, user)))
    }) {
        tracing::warn!(user, %error, "cannot take the user from the list of {DEVICE}");
    }
}

fn change(how: impl FnOnce(&mut Vec<Entry>)) -> io::Result<()> {
    let mut entries = read()?;
    how(&mut entries);
    entries.sort_unstable();
    entries.dedup_by_key(|entry| (entry.tag, entry.id));
    if !entries.iter().any(|entry| entry.tag == USER) {
        // A list that says no more than a mode becomes the mode again.
        entries.retain(|entry| entry.tag != MASK);
    }
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for Entry { tag, id, permissions } in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    setxattr(DEVICE, ATTRIBUTE, &bytes, XattrFlags::empty()).map_err(Into::into)
}

/// The list as it is; where there is none, one that says what the device's mode says.
fn read() -> io::Result<Vec<Entry>> {
    let mut bytes = vec![0; LONGEST];
    let length = match getxattr(DEVICE, ATTRIBUTE, &mut bytes) {
        Ok(length) => length,
        Err(Errno::NODATA) => {
            let mode = std::os::unix::fs::PermissionsExt::mode(
                &Path::new(DEVICE).metadata()?.permissions(),
            );
            let bits = |shift: u32| u16::try_from(mode >> shift & 7).unwrap_or(0);
            return Ok(vec![
                Entry { tag: OWNER, id: NOBODY, permissions: bits(6) },
                Entry { tag: GROUP, id: NOBODY, permissions: bits(3) },
                Entry { tag: MASK, id: NOBODY, permissions: READ_WRITE },
                Entry { tag: OTHERS, id: NOBODY, permissions: bits(0) },
            ]);
        }
        Err(error) => return Err(error.into()),
    };
    parse(bytes.get(..length).unwrap_or_default())
        .ok_or_else(|| io::Error::other(format!("the access list of {DEVICE} cannot be read")))
}

fn parse(bytes: &[u8]) -> Option<Vec<Entry>> {
    let (version, rest) = bytes.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != VERSION || rest.len() % ENTRY_BYTES != 0 {
        return None;
    }
    let entry = |bytes: &[u8]| {
        let (tag, rest) = bytes.split_first_chunk::<2>()?;
        let (permissions, rest) = rest.split_first_chunk::<2>()?;
        let (id, _) = rest.split_first_chunk::<4>()?;
        Some(Entry {
            tag: u16::from_le_bytes(*tag),
            permissions: u16::from_le_bytes(*permissions),
            id: u32::from_le_bytes(*id),
        })
    };
    rest.chunks_exact(ENTRY_BYTES).map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_that_are_none_are_refused() {
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&[1, 0, 0, 0]), None, "an unknown version");
        assert_eq!(parse(&[2, 0, 0, 0, 1, 0]), None, "half an entry");
        assert_eq!(parse(&[2, 0, 0, 0]), Some(Vec::new()));
        let one = [2, 0, 0, 0, 2, 0, 6, 0, 7, 0, 0, 0];
        assert_eq!(parse(&one), Some(vec![Entry { tag: USER, id: 7, permissions: 6 }]));
    }

    #[test]
    fn a_user_is_let_to_the_device_and_no_longer() {
        if !nix::unistd::geteuid().is_root() || !Path::new(DEVICE).exists() {
            assert!(std::env::var_os("CI").is_none(), "needs root and {DEVICE}");
            eprintln!("SKIPPED: needs root and {DEVICE}");
            return;
        }
        let has = |user| read().unwrap().iter().any(|entry| (entry.tag, entry.id) == (USER, user));
        let user = 1_999_999_000 + std::process::id() % 900;
        allow(Some(user)).unwrap();
        allow(Some(user)).unwrap();
        assert!(has(user));
        forbid(Some(user));
        forbid(Some(user));
        assert!(!has(user));
    }
}

//! Areas that are in use, and the host's memory, as the kernel tells them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use plimsoll_model::Bytes;

use super::{SwapError, header};

const SWAPS: &str = "/proc/swaps";
const MEMINFO: &str = "/proc/meminfo";

/// A swap area in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// Its device or file.
    pub path: PathBuf,
    /// Its size.
    pub size: Bytes,
    /// What lies in it.
    pub used: Bytes,
    /// The kernel fills areas of a higher priority first.
    pub priority: i32,
}

impl Area {
    /// Whether an agent has set it up.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        header::read_id(&self.path).is_some()
    }
}

/// All areas in use on this host, ours or not.
///
/// # Errors
/// [`SwapError::Read`].
pub fn areas() -> Result<Vec<Area>, SwapError> {
    Ok(parse(&read(SWAPS)?))
}

/// Memory that is available without any swapping.
///
/// # Errors
/// [`SwapError::Read`].
pub fn available_memory() -> Result<Bytes, SwapError> {
    Ok(memory_field(&read(MEMINFO)?, "MemAvailable:"))
}

/// All of the memory.
pub(super) fn total_memory() -> Result<Bytes, SwapError> {
    Ok(memory_field(&read(MEMINFO)?, "MemTotal:"))
}

fn read(path: &str) -> Result<String, SwapError> {
    fs_err::read_to_string(path).map_err(|source| SwapError::Read { path: path.into(), source })
}

/// A field of kibibytes; 0 where it is missing.
fn memory_field(text: &str, name: &str) -> Bytes {
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = value.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    Bytes(kib.unwrap_or(0).saturating_mul(1024))
}

/// Reads `/proc/swaps`: a line of titles, then path, type, size, used, priority.
fn parse(text: &str) -> Vec<Area> {
    let area = |line: &str| {
        let mut fields = line.split_whitespace();
        let path = unescape(fields.next()?);
        let mut kib = fields.skip(1);
        let mut bytes = || kib.next()?.parse::<u64>().ok()?.checked_mul(1024).map(Bytes);
        let (size, used) = (bytes()?, bytes()?);
        Some(Area { path, size, used, priority: kib.next()?.parse().ok()? })
    };
    text.lines().skip(1).filter_map(area).collect()
}

/// The kernel writes blanks and backslashes in paths as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut path = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while let Some(&byte) = bytes.get(index) {
        let digits = bytes.get(index + 1..index + 4).filter(|_| byte == b'\\');
        let escaped = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        path.push(escaped.unwrap_or(byte));
        index += if escaped.is_some() { 4 } else { 1 };
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_is_understood() {
        let text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
            /dev/zram1                              partition\t1048572\t\t12\t\t100\n\
            /srv/a\\040b\\134c/x.swap                 file\t\t2097148\t\t0\t\t-2\n\
            nonsense\n/dev/sda1 partition x 0 0\n";
        let found = parse(text);
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[0],
            Area {
                path: "/dev/zram1".into(),
                size: Bytes(1_048_572 * 1024),
                used: Bytes(12 * 1024),
                priority: 100
            }
        );
        assert_eq!(
            (found[1].path.as_path(), found[1].priority),
            ("/srv/a b\\c/x.swap".as_ref(), -2)
        );
        assert!(parse("").is_empty());
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:       2048 kB\nMemAvailable:   1024 kB\n";
        assert_eq!(memory_field(text, "MemAvailable:"), Bytes::mib(1));
        assert_eq!(memory_field(text, "SwapFree:"), Bytes::ZERO);
        assert!(total_memory().unwrap() > available_memory().unwrap());
    }
}

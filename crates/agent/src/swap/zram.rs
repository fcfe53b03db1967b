//! zram devices: memory that is compressed, as a block device.
//!
//! Each has a directory `/sys/block/zramN`. A new one has size 0 and costs nothing until it is
//! written to; it goes only after a reset, which fails while it is open.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs_err as fs;
use plimsoll_model::Bytes;

use super::{SwapError, failed};

const CONTROL: &str = "/sys/class/zram-control";
/// The device's node follows the device by a moment where udev makes it.
const NODE_LOOKS: u32 = 50;
const NODE_PAUSE: Duration = Duration::from_millis(20);
/// `udev` may look into a device that has just changed, and holds it open meanwhile.
const BUSY_TRIES: u32 = 25;

pub(super) fn is_possible() -> bool {
    Path::new(CONTROL).join("hot_add").exists()
}

/// Makes a new device, without a size.
pub(super) fn add() -> Result<PathBuf, SwapError> {
    if !is_possible() {
        return Err(SwapError::NoZram);
    }
    let control = Path::new(CONTROL).join("hot_add");
    // Reading it makes one, and tells its number.
    let text = fs::read_to_string(&control).map_err(failed("read", &control))?;
    let path = PathBuf::from("/dev").join(format!("zram{}", text.trim()));
    for _ in 0..NODE_LOOKS {
        if path.exists() {
            return Ok(path);
        }
        std::thread::sleep(NODE_PAUSE);
    }
    remove_unused(&path)?;
    Err(SwapError::Make { action: "find", path, source: io::ErrorKind::NotFound.into() })
}

pub(super) fn set_size(device: &Path, size: Bytes) -> Result<(), SwapError> {
    write(&attribute(device, "disksize"), &size.get().to_string())
}

/// Empties and removes a device that is ours and not in use. One that is gone is no error.
pub(super) fn remove(device: &Path) -> Result<(), SwapError> {
    let reset = attribute(device, "reset");
    if !reset.exists() {
        return Ok(());
    }
    patiently(|| write(&reset, "1"))?;
    hot_remove(device)
}

/// Removes a device only if it never got a size: nobody uses it.
pub(super) fn remove_unused(device: &Path) -> Result<(), SwapError> {
    let size = fs::read_to_string(attribute(device, "disksize")).unwrap_or_default();
    if size.trim() == "0" { hot_remove(device) } else { Ok(()) }
}

fn hot_remove(device: &Path) -> Result<(), SwapError> {
    let name = device.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let number = name.strip_prefix("zram").unwrap_or_default();
    patiently(|| write(&Path::new(CONTROL).join("hot_remove"), number))
}

fn patiently(mut attempt: impl FnMut() -> Result<(), SwapError>) -> Result<(), SwapError> {
    for _ in 1..BUSY_TRIES {
        match attempt() {
            Err(SwapError::Make { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {}
            other => return other,
        }
        std::thread::sleep(NODE_PAUSE);
    }
    attempt()
}

fn attribute(device: &Path, name: &str) -> PathBuf {
    Path::new("/sys/block").join(device.file_name().unwrap_or_default()).join(name)
}

fn write(path: &Path, value: &str) -> Result<(), SwapError> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|error| {
            // fs_err wraps the number away.
            let source = error.raw_os_error().map_or(error, io::Error::from_raw_os_error);
            failed("write to", path)(source)
        })
}

//! Finds and opens the virtio-serial port to the host.
//!
//! udev makes `/dev/virtio-ports/NAME`; without udev the port is found by its name in
//! `/sys/class/virtio-ports/*/name` and opened as `/dev/vportNpM`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use plimsoll_api::guest::PORT_NAME;
use rustix::fs::{Mode, OFlags};

use crate::system::System;

/// Why there is no port.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The VM has no port of that name (yet).
    #[error("no virtio-serial port named {PORT_NAME}")]
    NotFound,
    /// The port is there and can't be opened; another process may hold it.
    #[error("cannot open the port {}", path.display())]
    Open {
        /// Its device file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The device file of the port.
///
/// # Errors
/// The VM has no such port.
pub fn find(system: &System) -> Result<PathBuf, PortError> {
    let by_name = system.path("dev/virtio-ports").join(PORT_NAME);
    if by_name.exists() {
        return Ok(by_name);
    }
    let class = Path::new("sys/class/virtio-ports");
    let ports = std::fs::read_dir(system.path(class)).map_err(|_| PortError::NotFound)?;
    for port in ports.flatten() {
        let name = system.read(class.join(port.file_name()).join("name")).unwrap_or_default();
        if name.trim() == PORT_NAME {
            return Ok(system.path("dev").join(port.file_name()));
        }
    }
    Err(PortError::NotFound)
}

/// Opens a port without blocking, for reading and writing.
///
/// # Errors
/// The file can't be opened.
pub fn open(path: &Path) -> Result<File, PortError> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let port = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| PortError::Open { path: path.to_owned(), source: errno.into() })?;
    Ok(File::from(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_by_its_sysfs_name() {
        let root = tempfile::tempdir().unwrap();
        let system = System::at(root.path());
        assert!(matches!(find(&system), Err(PortError::NotFound)));
        for (port, name) in [("vport0p1", "org.qemu.guest_agent.0\n"), ("vport0p2", PORT_NAME)] {
            let directory = system.path("sys/class/virtio-ports").join(port);
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(directory.join("name"), name).unwrap();
        }
        assert_eq!(find(&system).unwrap(), root.path().join("dev/vport0p2"));
        let link = root.path().join("dev/virtio-ports");
        std::fs::create_dir_all(&link).unwrap();
        std::fs::write(link.join(PORT_NAME), "").unwrap();
        assert_eq!(find(&system).unwrap(), link.join(PORT_NAME));
    }

    #[test]
    fn a_missing_device_is_named() {
        let error = open(Path::new("/nonexistent/port")).unwrap_err();
        assert_eq!(error.to_string(), "cannot open the port /nonexistent/port");
    }
}

//! Paths of unix sockets that fit: the kernel takes 107 bytes, a VM's directory may have more.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

/// More is not certain to fit into `sun_path`.
const LONGEST: usize = 100;

/// A path that names a socket for as long as this lives.
#[derive(Debug)]
pub(crate) struct SocketPath {
    path: PathBuf,
    /// Keeps the directory behind `/proc/self/fd/N` open.
    _directory: Option<File>,
}

impl SocketPath {
    /// A short path of the socket `name` in `directory`.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub(crate) fn new(directory: &Path, name: &str) -> std::io::Result<Self> {
        let path = directory.join(name);
        if path.as_os_str().len() <= LONGEST {
            return Ok(Self { path, _directory: None });
        }
        let opened = File::open(directory)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", opened.as_raw_fd()));
        Ok(Self { path, _directory: Some(opened) })
    }
}

impl AsRef<Path> for SocketPath {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sockets_in_deep_directories_are_reached() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("x".repeat(90)).join("y".repeat(90));
        std::fs::create_dir_all(&deep).unwrap();
        for place in [directory.path(), &deep] {
            let path = SocketPath::new(place, "s").unwrap();
            let _listener = tokio::net::UnixListener::bind(&path).unwrap();
            tokio::net::UnixStream::connect(&path).await.unwrap();
            assert!(place.join("s").exists());
        }
    }
}

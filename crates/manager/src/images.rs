//! Files of images on the manager's disk, known by their checksums.
//!
//! ```text
//!   DATA/blobs/incoming/UUID     while a file comes in; emptied at every start
//!   DATA/blobs/SHA256            a whole file: size and checksum verified, synced, never changed
//! ```
//!
//! Every image's files must be sent, also where another image has the same file already: who knows a
//! checksum shall not get what he does not have. The disk is looked at before it is taken: see
//! [`inspect`].

pub mod inspect;

use std::{
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use plimsoll_model::{ImageFile, ImageFileKind};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::io::AsyncWriteExt as _;

pub use inspect::{DiskFacts, InspectError};

/// A client that sends nothing for so long has gone.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const BUFFER: usize = 1 << 20;

/// Why a file was not taken, or is not given.
#[derive(Debug, Error)]
pub enum BlobError {
    /// The folder or a file in it could not be read or written.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The client's connection broke.
    #[error("the upload broke off after {received} bytes")]
    Broken {
        /// How much had come.
        received: u64,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The client stopped sending.
    #[error("the upload stood still for 60 s after {received} bytes")]
    Idle {
        /// How much had come.
        received: u64,
    },
    /// Fewer or more bytes than announced.
    #[error("the file has {received} bytes{}, but {announced} were announced", if *.more { " or more" } else { "" })]
    Size {
        /// How many came.
        received: u64,
        /// Whether it was cut off there.
        more: bool,
        /// How many were announced.
        announced: u64,
    },
    /// Other bytes than announced.
    #[error("the file's SHA-256 is {computed}, but {announced} was announced")]
    Checksum {
        /// What it is.
        computed: String,
        /// What was announced.
        announced: String,
    },
    /// The disk is not one that can be used.
    #[error("the disk cannot be used")]
    Disk(#[source] InspectError),
    /// There is no such file.
    #[error("there is no file with the SHA-256 {sha256}")]
    Missing {
        /// Its checksum.
        sha256: String,
    },
}

/// The files of all images.
#[derive(Clone, Debug)]
pub struct BlobStore {
    folder: PathBuf,
}

impl BlobStore {
    /// Opens the store in `data` (the manager's data folder), or makes it; what was coming in when
    /// the manager last ended is thrown away.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(data: &Path) -> Result<Self, BlobError> {
        let folder = data.join("blobs");
        let store = Self { folder };
        let incoming = store.incoming();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&incoming)
            .map_err(failed("make", &incoming))?;
        for entry in fs_err::read_dir(&incoming).map_err(failed("read", &incoming))? {
            let path = entry.map_err(failed("read", &incoming))?.path();
            fs_err::remove_file(&path).map_err(failed("remove", &path))?;
        }
        Ok(store)
    }

    /// Removes every file that is not needed: what deleted images have left behind.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn keep_only(&self, needed: &std::collections::BTreeSet<String>) -> Result<(), BlobError> {
        for entry in fs_err::read_dir(&self.folder).map_err(failed("read", &self.folder))? {
            let entry = entry.map_err(failed("read", &self.folder))?;
            let name = entry.file_name();
            let unneeded = name.to_str().is_some_and(|name| {
                plimsoll_api::join_token::parse_sha256(name).is_some() && !needed.contains(name)
            });
            if unneeded {
                let path = entry.path();
                fs_err::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    fn incoming(&self) -> PathBuf {
        self.folder.join("incoming")
    }

    /// Where a file is or would be; `None`: that is no checksum.
    fn path(&self, sha256: &str) -> Option<PathBuf> {
        plimsoll_api::join_token::parse_sha256(sha256).map(|_| self.folder.join(sha256))
    }

    /// Takes a file in: exactly the announced bytes. For a disk, tells what it is.
    ///
    /// # Errors
    /// Other bytes than announced, a disk that cannot be used, a broken connection, a full disk.
    /// Nothing is left behind then.
    pub async fn receive<E>(
        &self,
        announced: &ImageFile,
        stream: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<Option<DiskFacts>, BlobError>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let target = self
            .path(&announced.sha256)
            .ok_or_else(|| BlobError::Missing { sha256: announced.sha256.clone() })?;
        let temporary = Temporary(self.incoming().join(uuid::Uuid::new_v4().to_string()));
        let path = &temporary.0;
        write_incoming(path, announced, stream).await?;
        let facts = match announced.kind {
            ImageFileKind::Disk => Some(inspect::disk(path).await.map_err(BlobError::Disk)?),
            ImageFileKind::Kernel | ImageFileKind::Initrd => None,
        };
        tokio::fs::rename(path, &target).await.map_err(failed("move a file to", &target))?;
        let folder =
            tokio::fs::File::open(&self.folder).await.map_err(failed("open", &self.folder))?;
        folder.sync_all().await.map_err(failed("sync", &self.folder))?;
        Ok(facts)
    }

    /// Opens a file and tells its length.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub async fn read(&self, sha256: &str) -> Result<(tokio::fs::File, u64), BlobError> {
        let missing = || BlobError::Missing { sha256: sha256.chars().take(64).collect() };
        let path = self.path(sha256).ok_or_else(missing)?;
        let file = match tokio::fs::File::open(&path).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
            other => other.map_err(failed("open", &path))?,
        };
        let length = file.metadata().await.map_err(failed("read", &path))?.len();
        Ok((file, length))
    }

    /// Removes a file that no image has any more. One that is not there is no error.
    ///
    /// # Errors
    /// It cannot be removed.
    pub async fn remove(&self, sha256: &str) -> Result<(), BlobError> {
        let Some(path) = self.path(sha256) else { return Ok(()) };
        match tokio::fs::remove_file(&path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BlobError {
    let path = path.to_owned();
    move |source| BlobError::File { doing, path, source }
}

/// A file that is removed when whoever writes it gives up, also by a cancelled request.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Moved away on success.
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn write_incoming<E>(
    path: &Path,
    announced: &ImageFile,
    stream: impl Stream<Item = Result<Bytes, E>> + Send,
) -> Result<(), BlobError>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let file = tokio::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .await
        .map_err(failed("make", path))?;
    let mut file = tokio::io::BufWriter::with_capacity(BUFFER, file);
    let mut stream = std::pin::pin!(stream);
    let (mut hash, mut received, size) = (Sha256::new(), 0_u64, announced.size.0);
    loop {
        let next = tokio::time::timeout(IDLE_TIMEOUT, stream.next())
            .await
            .map_err(|_| BlobError::Idle { received })?;
        let Some(chunk) = next else { break };
        let chunk =
            chunk.map_err(|error| BlobError::Broken { received, source: Box::new(error) })?;
        received += chunk.len() as u64;
        if received > size {
            return Err(BlobError::Size { received, more: true, announced: size });
        }
        hash.update(&chunk);
        file.write_all(&chunk).await.map_err(failed("write", path))?;
    }
    if received != size {
        return Err(BlobError::Size { received, more: false, announced: size });
    }
    let computed = hash.finalize().iter().fold(String::new(), |mut text, byte| {
        use std::fmt::Write as _;
        let _ = write!(text, "{byte:02x}");
        text
    });
    if computed != announced.sha256 {
        return Err(BlobError::Checksum { computed, announced: announced.sha256.clone() });
    }
    file.flush().await.map_err(failed("write", path))?;
    file.into_inner().sync_all().await.map_err(failed("sync", path))
}

#[cfg(test)]
mod tests;

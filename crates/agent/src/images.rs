//! Files of images on this host, known by their checksum.
//!
//! ```text
//!   file(sha256) --there--> path
//!        | missing
//!        v
//!   one download for all who wait --> SHA.part --size and checksum right--> SHA (mode 0444)
//! ```
//!
//! A file appears under its name only when it is whole and right, and never changes after that:
//! overlays of many VMs lie on it. One that nothing here has used for a while is deleted.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use fs_err as fs;
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;
use plimsoll_model::{Bytes, ImageFile};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::{io::AsyncWrite, sync::Semaphore};

use crate::{
    disk::{DiskError, Sha256Digest, space_at},
    vm::{
        HostError,
        files::{remove, sync_directory},
        host::Images,
    },
};

/// The largest file of an image: a bound on what a number from outside can ask for.
const LARGEST_FILE: Bytes = Bytes(4 << 40);

/// So many files are fetched at once; more would share the same link.
const DOWNLOADS: usize = 2;

/// Why a file of an image is not here.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The checksum is not one.
    #[error("the image's file has no usable checksum")]
    Checksum(#[source] DiskError),
    /// It says to be larger than any image.
    #[error("an image's file of {size} is larger than {LARGEST_FILE}")]
    TooLarge {
        /// What it says.
        size: Bytes,
    },
    /// The cache's directory cannot be used.
    #[error("cannot use the image cache {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The room on the file system is not known.
    #[error("cannot tell whether there is room for the image")]
    Space(#[source] DiskError),
    /// There is too little room, and no file that nothing uses.
    #[error(
        "the image's file needs {size}, but only {free} are free beside the {reserve} kept back"
    )]
    NoSpace {
        /// What it needs.
        size: Bytes,
        /// What there is.
        free: Bytes,
        /// What stays free.
        reserve: Bytes,
    },
    /// The manager does not hand it out.
    #[error("cannot fetch the image's file {sha256}")]
    Fetch {
        /// Which.
        sha256: Sha256Digest,
        /// Why not.
        #[source]
        source: HostError,
    },
    /// It has another size than it says.
    #[error("the image's file {sha256} should have {expected}, but {received} came")]
    Size {
        /// Which.
        sha256: Sha256Digest,
        /// What it should have.
        expected: Bytes,
        /// What came.
        received: Bytes,
    },
    /// It is another file than asked for.
    #[error("what came as the image's file {expected} has the SHA-256 {actual}")]
    Mismatch {
        /// Asked for.
        expected: Sha256Digest,
        /// Got.
        actual: Sha256Digest,
    },
    /// It could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The task that fetched it ended without an answer.
    #[error("the download of the image's file {sha256} was cancelled")]
    Cancelled {
        /// Which.
        sha256: Sha256Digest,
    },
}

/// A failure that all who waited for the same download share.
#[derive(Clone, Debug, Error)]
#[error(transparent)]
pub struct SharedImageError(Arc<ImageError>);

impl SharedImageError {
    /// What failed.
    #[must_use]
    pub fn kind(&self) -> &ImageError {
        &self.0
    }
}

/// Where files of images come from: the manager, or a test.
pub trait BlobSource: Send + Sync + 'static {
    /// Writes the file with this checksum to `file`, at most `limit` bytes. A source from which
    /// nothing comes must fail after a time.
    fn copy<'a>(
        &'a self,
        sha256: Sha256Digest,
        file: &'a mut Partial,
        limit: Bytes,
    ) -> BoxFuture<'a, Result<(), HostError>>;
}

impl BlobSource for plimsoll_api::ClusterClient {
    fn copy<'a>(
        &'a self,
        sha256: Sha256Digest,
        file: &'a mut Partial,
        limit: Bytes,
    ) -> BoxFuture<'a, Result<(), HostError>> {
        async move {
            self.image(&sha256.to_string(), file, limit).await?;
            Ok(())
        }
        .boxed()
    }
}

/// A file that is being fetched; counts and digests what is written to it.
#[derive(Debug)]
pub struct Partial {
    file: tokio::fs::File,
    hasher: Sha256,
    written: u64,
}

impl AsyncWrite for Partial {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.file).poll_write(context, bytes))?;
        this.hasher.update(&bytes[..count]);
        this.written += count as u64;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().file).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().file).poll_shutdown(context)
    }
}

type Download = Shared<BoxFuture<'static, Result<PathBuf, SharedImageError>>>;

/// The image cache of one host.
#[derive(Clone)]
pub struct ImageCache {
    inner: Arc<Inner>,
}

struct Inner {
    directory: PathBuf,
    /// Stays free on the file system whatever is fetched.
    reserve: Bytes,
    source: Arc<dyn BlobSource>,
    downloads: Mutex<BTreeMap<[u8; 32], Download>>,
    turns: Semaphore,
    /// When each file was last asked for or seen in use, by this agent.
    last_used: Mutex<HashMap<String, tokio::time::Instant>>,
}

impl std::fmt::Debug for ImageCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageCache")
            .field("directory", &self.inner.directory)
            .finish_non_exhaustive()
    }
}

impl ImageCache {
    /// The cache in `directory`, which is made where it is missing. What an earlier agent left
    /// half-fetched is deleted.
    ///
    /// # Errors
    /// [`ImageError::Directory`].
    pub fn open(
        directory: PathBuf,
        reserve: Bytes,
        source: Arc<dyn BlobSource>,
    ) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Directory { path: directory.clone(), source };
        fs::create_dir_all(&directory).map_err(failed)?;
        fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
        for entry in fs::read_dir(&directory).map_err(failed)?.filter_map(Result::ok) {
            if entry.path().extension().is_some_and(|extension| extension == "part") {
                remove(&entry.path()).map_err(failed)?;
            }
        }
        let inner = Inner {
            directory,
            reserve,
            source,
            downloads: Mutex::default(),
            turns: Semaphore::new(DOWNLOADS),
            last_used: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The path of a file; fetches it where it is missing. All who ask for the same file at the same
    /// time share one download, which goes on even when they no longer wait.
    ///
    /// # Errors
    /// [`ImageError`]; nothing is left behind.
    pub async fn file(&self, file: &ImageFile) -> Result<PathBuf, SharedImageError> {
        let sha256: Sha256Digest =
            file.sha256.parse().map_err(|error| share(ImageError::Checksum(error)))?;
        if file.size > LARGEST_FILE {
            return Err(share(ImageError::TooLarge { size: file.size }));
        }
        self.inner.touch(&sha256.to_string());
        let path = self.inner.path(sha256);
        if has_size(&path, file.size) {
            return Ok(path);
        }
        let download = {
            let mut downloads = self.inner.downloads.lock();
            downloads
                .entry(sha256.0)
                .or_insert_with(|| start(Arc::clone(&self.inner), sha256, file.size))
                .clone()
        };
        download.await
    }

    /// Deletes files that nothing has used for `unused`. `in_use` are the checksums of files that
    /// VMs of this host lie on or want. Returns how many were deleted.
    ///
    /// # Errors
    /// [`ImageError::Directory`].
    pub fn evict(&self, unused: Duration, in_use: &BTreeSet<String>) -> Result<usize, ImageError> {
        for name in in_use {
            self.inner.touch(name);
        }
        self.inner.evict(unused, in_use)
    }
}

impl Images for ImageCache {
    fn file<'a>(&'a self, file: &'a ImageFile) -> BoxFuture<'a, Result<PathBuf, HostError>> {
        async move { self.file(file).await.map_err(|error| Box::new(error) as HostError) }.boxed()
    }
}

fn share(error: ImageError) -> SharedImageError {
    SharedImageError(Arc::new(error))
}

fn has_size(path: &Path, size: Bytes) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.len() == size.get())
}

/// A task of its own: the VM that asked may go away, others still want the file.
fn start(inner: Arc<Inner>, sha256: Sha256Digest, size: Bytes) -> Download {
    let task = tokio::spawn(async move {
        let result = inner.fetch(sha256, size).await.map_err(share);
        inner.downloads.lock().remove(&sha256.0);
        result
    });
    async move { task.await.unwrap_or_else(|_| Err(share(ImageError::Cancelled { sha256 }))) }
        .boxed()
        .shared()
}

impl Inner {
    fn path(&self, sha256: Sha256Digest) -> PathBuf {
        self.directory.join(sha256.to_string())
    }

    fn touch(&self, name: &str) {
        self.last_used.lock().insert(name.to_owned(), tokio::time::Instant::now());
    }

    async fn fetch(&self, sha256: Sha256Digest, size: Bytes) -> Result<PathBuf, ImageError> {
        let _turn = self.turns.acquire().await.map_err(|_| ImageError::Cancelled { sha256 })?;
        let path = self.path(sha256);
        // Whoever asked between the end of the last download and now finds it.
        if has_size(&path, size) {
            return Ok(path);
        }
        self.require_space(size)?;
        let part = path.with_extension("part");
        let fetched = self.fetch_to(&part, sha256, size).await.and_then(|()| {
            fs::rename(&part, &path)
                .and_then(|()| sync_directory(&self.directory))
                .map_err(|source| ImageError::Write { path: path.clone(), source })
        });
        if let Err(error) = fetched {
            let _ = remove(&part);
            return Err(error);
        }
        tracing::info!(%sha256, %size, "fetched a file of an image");
        Ok(path)
    }

    async fn fetch_to(
        &self,
        part: &Path,
        sha256: Sha256Digest,
        size: Bytes,
    ) -> Result<(), ImageError> {
        let write = |source| ImageError::Write { path: part.to_owned(), source };
        remove(part).map_err(write)?;
        let file = tokio::fs::File::create_new(part).await.map_err(write)?;
        let mut partial = Partial { file, hasher: Sha256::new(), written: 0 };
        // One byte more than there should be, so that a file that is too long is told as such.
        let limit = size.saturating_add(Bytes(1));
        self.source
            .copy(sha256, &mut partial, limit)
            .await
            .map_err(|source| ImageError::Fetch { sha256, source })?;
        let Partial { file, hasher, written } = partial;
        if written != size.get() {
            let received = Bytes(written);
            return Err(ImageError::Size { sha256, expected: size, received });
        }
        let actual = Sha256Digest(hasher.finalize().into());
        if actual != sha256 {
            return Err(ImageError::Mismatch { expected: sha256, actual });
        }
        file.set_permissions(std::fs::Permissions::from_mode(0o444)).await.map_err(write)?;
        file.sync_all().await.map_err(write)
    }

    fn require_space(&self, size: Bytes) -> Result<(), ImageError> {
        let needed = size.saturating_add(self.reserve);
        let free = || Ok(space_at(&self.directory).map_err(ImageError::Space)?.free);
        if free()? >= needed {
            return Ok(());
        }
        // Files that are merely kept for later make room; those in use were touched less than an
        // eviction's period ago.
        self.evict(SPARED_UNDER_PRESSURE, &BTreeSet::new())?;
        let free = free()?;
        if free >= needed {
            return Ok(());
        }
        Err(ImageError::NoSpace { size, free, reserve: self.reserve })
    }

    fn evict(&self, unused: Duration, in_use: &BTreeSet<String>) -> Result<usize, ImageError> {
        let failed = |source| ImageError::Directory { path: self.directory.clone(), source };
        let now = tokio::time::Instant::now();
        let mut evicted = 0;
        let mut present = BTreeSet::new();
        for entry in fs::read_dir(&self.directory).map_err(failed)?.filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.parse::<Sha256Digest>().is_err() {
                continue;
            }
            // A file of an earlier agent counts as used when this one first sees it.
            let last = *self.last_used.lock().entry(name.clone()).or_insert(now);
            let young = now.duration_since(last) < unused;
            if young || in_use.contains(&name) || self.is_coming(&name) {
                present.insert(name);
                continue;
            }
            remove(&entry.path()).map_err(failed)?;
            tracing::info!(file = name, "deleted a file of an image that nothing uses");
            evicted += 1;
        }
        let mut last_used = self.last_used.lock();
        last_used.retain(|name, last| present.contains(name) || now.duration_since(*last) < unused);
        Ok(evicted)
    }

    fn is_coming(&self, name: &str) -> bool {
        name.parse::<Sha256Digest>()
            .is_ok_and(|sha256| self.downloads.lock().contains_key(&sha256.0))
    }
}

/// More than the period at which the agent marks files as in use, with a wide margin.
const SPARED_UNDER_PRESSURE: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests;

//! A VM's serial console and its logs.
//!
//! QEMU's socket serves one client, so all sessions of a VM share one connection, which lives while
//! any of them does: everyone reads, one writes. What the guest writes is kept in the log whether
//! anybody is attached or not; the guard bounds it to two pieces of 4 MiB.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::guard::record::{VmDirectory, name};
use super::guard::watch::older;
use super::socket::SocketPath;

/// Sessions that one VM's console can have.
const MAX_SESSIONS: usize = 16;
/// Pieces that a slow reader may lag behind; then it misses some.
const BACKLOG: usize = 256;
/// Pieces of input that may wait for the guest.
const INPUT_QUEUE: usize = 16;
/// A guest that reads nothing for this long gets no more input.
const WRITE_LIMIT: Duration = Duration::from_secs(5);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const PIECE: usize = 16 << 10;
/// How often a followed log is looked at.
const FOLLOW: Duration = Duration::from_millis(200);
/// The most that is read back of a log.
const MAX_TAIL_BYTES: u64 = 8 << 20;

/// Why the console cannot be used.
#[derive(Debug, Error)]
pub enum ConsoleError {
    #[error("the VM's console cannot be reached (does the VM run?)")]
    Connect(#[source] io::Error),
    #[error("the VM's console has {MAX_SESSIONS} sessions already")]
    TooManySessions,
    #[error("another session writes to this console")]
    ReadOnly,
    #[error("the guest does not take the input")]
    Stuck,
    #[error("the console was closed: the VM has ended")]
    Closed,
}

#[derive(Debug)]
struct Hub {
    output: broadcast::Sender<Bytes>,
    input: mpsc::Sender<Bytes>,
    /// The session that writes.
    writer: Mutex<Option<u64>>,
    next_session: AtomicU64,
    ended: CancellationToken,
    _stop: DropGuard,
}

/// The console of one VM, connected or not.
#[derive(Clone, Debug)]
pub(super) struct Console {
    directory: VmDirectory,
    hub: Arc<tokio::sync::Mutex<Weak<Hub>>>,
}

impl Console {
    pub(super) fn new(directory: VmDirectory) -> Self {
        Self { directory, hub: Arc::default() }
    }

    pub(super) async fn attach(&self) -> Result<ConsoleSession, ConsoleError> {
        let mut slot = self.hub.lock().await;
        let hub = match slot.upgrade().filter(|hub| !hub.ended.is_cancelled()) {
            Some(hub) => hub,
            None => {
                let hub = self.connect().await?;
                *slot = Arc::downgrade(&hub);
                hub
            }
        };
        if hub.output.receiver_count() >= MAX_SESSIONS {
            return Err(ConsoleError::TooManySessions);
        }
        let output = hub.output.subscribe();
        let session = hub.next_session.fetch_add(1, Ordering::Relaxed);
        hub.writer.lock().get_or_insert(session);
        Ok(ConsoleSession { hub, session, output })
    }

    async fn connect(&self) -> Result<Arc<Hub>, ConsoleError> {
        let path = SocketPath::new(self.directory.path(), name::CONSOLE_SOCKET)
            .map_err(ConsoleError::Connect)?;
        let stream = timeout(CONNECT_LIMIT, UnixStream::connect(&path))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(ConsoleError::Connect)?;
        let (output, _) = broadcast::channel(BACKLOG);
        let (input, queue) = mpsc::channel(INPUT_QUEUE);
        let ended = CancellationToken::new();
        tokio::spawn(pump(stream, output.clone(), queue, ended.clone()));
        Ok(Arc::new(Hub {
            output,
            input,
            writer: Mutex::default(),
            next_session: AtomicU64::new(0),
            _stop: ended.clone().drop_guard(),
            ended,
        }))
    }
}

async fn pump(
    stream: UnixStream,
    output: broadcast::Sender<Bytes>,
    mut input: mpsc::Receiver<Bytes>,
    ended: CancellationToken,
) {
    let (mut reader, mut writer) = stream.into_split();
    let read = async {
        let mut buffer = vec![0; PIECE];
        while let Ok(count) = reader.read(&mut buffer).await {
            if count == 0 {
                break;
            }
            // Nobody attached right now: it is in the log.
            drop(output.send(Bytes::copy_from_slice(&buffer[..count])));
        }
    };
    let write = async {
        while let Some(piece) = input.recv().await {
            if writer.write_all(&piece).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = read => {}
        () = write => {}
        () = ended.cancelled() => {}
    }
    ended.cancel();
}

/// One user's view of a console.
#[derive(Debug)]
pub struct ConsoleSession {
    hub: Arc<Hub>,
    session: u64,
    output: broadcast::Receiver<Bytes>,
}

impl ConsoleSession {
    /// The next piece of what the guest writes; `None` when the VM has ended. A reader that is too
    /// slow misses pieces.
    pub async fn read(&mut self) -> Option<Bytes> {
        loop {
            tokio::select! {
                biased;
                piece = self.output.recv() => match piece {
                    Ok(piece) => return Some(piece),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
                () = self.hub.ended.cancelled() => return None,
            }
        }
    }

    /// Whether this session may write: it came first, or the one that wrote has left.
    #[must_use]
    pub fn may_write(&self) -> bool {
        *self.hub.writer.lock().get_or_insert(self.session) == self.session
    }

    /// Types into the console. At most 64 KiB at once are sensible.
    ///
    /// # Errors
    /// [`ConsoleError::ReadOnly`], [`ConsoleError::Stuck`], [`ConsoleError::Closed`].
    pub async fn write(&self, bytes: Bytes) -> Result<(), ConsoleError> {
        if !self.may_write() {
            return Err(ConsoleError::ReadOnly);
        }
        match timeout(WRITE_LIMIT, self.hub.input.send(bytes)).await {
            Err(_) => Err(ConsoleError::Stuck),
            Ok(Err(_)) => Err(ConsoleError::Closed),
            Ok(Ok(())) => Ok(()),
        }
    }
}

impl Drop for ConsoleSession {
    fn drop(&mut self) {
        let mut writer = self.hub.writer.lock();
        if *writer == Some(self.session) {
            *writer = None;
        }
    }
}

/// Reads a log from near its end, over its older piece, and on while it grows.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    /// What is left to read of the older piece.
    older: Option<io::Take<File>>,
    /// The log and how far it was read.
    current: Option<(File, u64)>,
    /// Where in a log that is not open yet to begin.
    start: u64,
}

impl LogReader {
    /// At most `tail_bytes` (and never more than 8 MiB) before the end. A log that is not there
    /// reads as empty.
    pub(super) fn open(path: PathBuf, tail_bytes: u64) -> Self {
        let tail = tail_bytes.min(MAX_TAIL_BYTES);
        let length = std::fs::metadata(&path).map_or(0, |metadata| metadata.size());
        let mut older_piece = None;
        if let Some(missing) = tail.checked_sub(length).filter(|missing| *missing > 0)
            && let Ok(mut file) = File::open(older(&path))
        {
            let size = file.metadata().map_or(0, |metadata| metadata.size());
            if file.seek(SeekFrom::Start(size.saturating_sub(missing))).is_ok() {
                older_piece = Some(file.take(missing));
            }
        }
        Self { path, older: older_piece, current: None, start: length.saturating_sub(tail) }
    }

    /// The next piece. At the end: `None`, or with `follow` waits for more; then `None` means that
    /// the log was deleted.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn next(&mut self, follow: bool) -> io::Result<Option<Bytes>> {
        loop {
            // A read of a local file's few KiB does not block noticeably.
            if let Some(piece) = self.read()? {
                return Ok(Some(piece));
            }
            let deleted = match &self.current {
                Some((file, _)) => file.metadata()?.nlink() == 0,
                None => !self.path.parent().is_some_and(std::path::Path::exists),
            };
            if !follow || deleted {
                return Ok(None);
            }
            sleep(FOLLOW).await;
        }
    }

    fn read(&mut self) -> io::Result<Option<Bytes>> {
        let mut buffer = vec![0; PIECE];
        if let Some(file) = &mut self.older {
            let count = file.read(&mut buffer)?;
            if count > 0 {
                buffer.truncate(count);
                return Ok(Some(buffer.into()));
            }
            self.older = None;
        }
        if self.current.is_none() {
            match File::open(&self.path) {
                Ok(file) => self.current = Some((file, self.start)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let Some((file, position)) = &mut self.current else { return Ok(None) };
        if file.metadata()?.size() < *position {
            // It was cut: what is in it now is new.
            *position = 0;
        }
        file.seek(SeekFrom::Start(*position))?;
        let count = file.read(&mut buffer)?;
        *position += u64::try_from(count).unwrap_or(0);
        buffer.truncate(count);
        Ok((count > 0).then(|| buffer.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use tokio::net::UnixListener;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn several_read_one_writes() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join(name::CONSOLE_SOCKET)).unwrap();
        let console = Console::new(VmDirectory::new(directory.path().to_owned()));
        let mut first = console.attach().await.unwrap();
        let mut second = console.attach().await.unwrap();
        let (mut guest, _) = listener.accept().await.unwrap();
        guest.write_all(b"login: ").await.unwrap();
        for session in [&mut first, &mut second] {
            let piece = timeout(LIMIT, session.read()).await.unwrap().unwrap();
            assert_eq!(&piece[..], b"login: ");
        }
        first.write(Bytes::from_static(b"root\n")).await.unwrap();
        let mut typed = [0; 5];
        timeout(LIMIT, guest.read_exact(&mut typed)).await.unwrap().unwrap();
        assert_eq!(&typed, b"root\n");
        assert!(matches!(second.write(Bytes::new()).await, Err(ConsoleError::ReadOnly)));
        drop(first);
        second.write(Bytes::from_static(b"x")).await.unwrap();
        drop(guest);
        assert!(timeout(LIMIT, second.read()).await.unwrap().is_none());
        drop(listener);
        assert!(matches!(console.attach().await, Err(ConsoleError::Connect(_))));
    }

    async fn all(reader: &mut LogReader) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(piece) = reader.next(false).await.unwrap() {
            bytes.extend_from_slice(&piece);
        }
        bytes
    }

    #[tokio::test]
    async fn a_log_is_read_from_its_end_over_both_pieces_and_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        assert!(all(&mut LogReader::open(path.clone(), 100)).await.is_empty());
        std::fs::write(older(&path), b"older piece,").unwrap();
        let mut log = File::options().append(true).create(true).open(&path).unwrap();
        log.write_all(b"newer").unwrap();
        assert_eq!(all(&mut LogReader::open(path.clone(), 3)).await, b"wer");
        assert_eq!(all(&mut LogReader::open(path.clone(), 11)).await, b"piece,newer");
        let mut reader = LogReader::open(path.clone(), 1000);
        assert_eq!(all(&mut reader).await, b"older piece,newer");
        log.write_all(b" more").unwrap();
        let more = timeout(LIMIT, reader.next(true)).await.unwrap().unwrap().unwrap();
        assert_eq!(&more[..], b" more");
        log.set_len(0).unwrap();
        log.write_all(b"cut").unwrap();
        let cut = timeout(LIMIT, reader.next(true)).await.unwrap().unwrap().unwrap();
        assert_eq!(&cut[..], b"cut");
        std::fs::remove_file(&path).unwrap();
        assert!(timeout(LIMIT, reader.next(true)).await.unwrap().unwrap().is_none());
    }
}

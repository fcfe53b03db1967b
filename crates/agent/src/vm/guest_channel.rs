//! The host's end of the guest agent's port.
//!
//! One task keeps the connection to the VM's socket, greets whatever answers, matches replies to
//! calls and remembers when the guest was last heard. It reconnects for as long as a handle lives.
//! The guest may be hostile: lines are bounded and checked by the protocol, a guest that sends
//! nonsense is left alone for a while, one that floods us is read slowly.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use plimsoll_api::guest::{
    Answer, Call, Event, Failure, FailureCode, Greeting, GuestMessage, HostMessage, LineBuffer,
    Outcome, PROTOCOL, Request, decode_line, encode_line,
};
use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::guard::record::{VmDirectory, name};
use super::socket::SocketPath;

/// Calls that may wait for their answers.
const MAX_CALLS: usize = 32;
/// A guest that was not heard for this long does not answer; it speaks every few seconds.
const SILENCE: Duration = Duration::from_secs(30);
/// Between two attempts to connect, and between two greetings that nobody answers.
const RECONNECT: Duration = Duration::from_millis(500);
const GREET_AGAIN: Duration = Duration::from_secs(10);
/// After this many broken lines in one connection the guest is left alone for [`PENANCE`].
const MAX_BROKEN_LINES: u32 = 100;
const PENANCE: Duration = Duration::from_secs(30);
/// What is read of a guest within a second; honest ones need 1 % of it.
const BYTES_PER_SECOND: usize = 16 << 20;
/// The port takes nothing while the guest does not read: then its connection is begun anew.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// Whether the guest's agent answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestStatus {
    /// It does not: there is none, it has not started yet, or it is stuck.
    Silent,
    /// It does.
    Speaking(Greeting),
}

/// Why a call to the guest's agent has no answer.
#[derive(Debug, Error)]
pub enum GuestCallError {
    #[error("the guest's agent does not answer (is it installed and running in the VM?)")]
    Silent,
    #[error("too many calls wait for the guest's agent")]
    Busy,
    #[error("the guest's agent did not answer within {limit:?}")]
    Timeout { limit: Duration },
    #[error("the connection to the guest's agent broke before the answer")]
    Broken,
    #[error("the call is not one that a guest can be asked")]
    Call(#[source] plimsoll_api::guest::ProtocolError),
    #[error("the guest's agent refused: {}", failure.message)]
    Refused { failure: Failure },
    #[error("the guest's agent answered another question")]
    WrongAnswer,
}

impl GuestCallError {
    /// The guest's own code, where it answered.
    #[must_use]
    pub fn code(&self) -> Option<FailureCode> {
        match self {
            Self::Refused { failure } => Some(failure.code),
            _ => None,
        }
    }
}

type Waiters = Arc<Mutex<HashMap<u64, oneshot::Sender<Outcome>>>>;

#[derive(Debug)]
struct Inner {
    lines: mpsc::Sender<Vec<u8>>,
    waiters: Waiters,
    status: watch::Receiver<GuestStatus>,
    opened: Instant,
    next_id: Arc<AtomicU64>,
    _stop: DropGuard,
}

/// A handle to the agent in one guest.
#[derive(Clone, Debug)]
pub struct GuestChannel {
    inner: Arc<Inner>,
}

impl GuestChannel {
    /// Starts to listen to the guest whose VM has this directory.
    #[must_use]
    pub fn open(directory: VmDirectory) -> Self {
        let (lines, queue) = mpsc::channel(MAX_CALLS);
        let (publish, status) = watch::channel(GuestStatus::Silent);
        let waiters = Waiters::default();
        // Ids go on over all connections, so that a late reply never meets another's call.
        let next_id = Arc::new(AtomicU64::new(1));
        let stop = CancellationToken::new();
        let link = Link {
            directory,
            waiters: Arc::clone(&waiters),
            publish,
            next_id: Arc::clone(&next_id),
            stop: stop.clone(),
        };
        tokio::spawn(link.run(queue));
        let opened = Instant::now();
        let inner = Inner { lines, waiters, status, opened, next_id, _stop: stop.drop_guard() };
        Self { inner: Arc::new(inner) }
    }

    /// Whether the guest answers, now and whenever that changes.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<GuestStatus> {
        self.inner.status.clone()
    }

    /// What is known of the guest now.
    #[must_use]
    pub fn now(&self) -> GuestStatus {
        self.inner.status.borrow().clone()
    }

    /// Whether the guest answers now.
    #[must_use]
    pub fn is_speaking(&self) -> bool {
        *self.inner.status.borrow() != GuestStatus::Silent
    }

    /// Gives a guest that was only just begun to be listened to, as after a move or this agent's
    /// restart, the time to be heard: at most `within` from then.
    pub async fn first_word(&self, within: Duration) {
        let mut status = self.status();
        let spoken = status.wait_for(|status| *status != GuestStatus::Silent);
        // What follows finds out that it is silent.
        let _ = timeout_at(self.inner.opened + within, spoken).await;
    }

    /// Asks the guest and waits for its answer, at most `limit`.
    ///
    /// # Errors
    /// [`GuestCallError`]. After a timeout the guest may still do what it was asked.
    pub async fn call(&self, call: Call, limit: Duration) -> Result<Answer, GuestCallError> {
        if !self.is_speaking() {
            return Err(GuestCallError::Silent);
        }
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let line = request_line(id, call)?;
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiters = self.inner.waiters.lock();
            if waiters.len() >= MAX_CALLS {
                return Err(GuestCallError::Busy);
            }
            waiters.insert(id, sender);
        }
        let _forget = Forget { waiters: &self.inner.waiters, id };
        self.inner.lines.try_send(line).map_err(|_| GuestCallError::Busy)?;
        match timeout(limit, receiver).await {
            Err(_) => Err(GuestCallError::Timeout { limit }),
            Ok(Err(_)) => Err(GuestCallError::Broken),
            Ok(Ok(Outcome::Done(answer))) => Ok(answer),
            Ok(Ok(Outcome::Failed(failure))) => Err(GuestCallError::Refused { failure }),
        }
    }
}

struct Forget<'a> {
    waiters: &'a Waiters,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.waiters.lock().remove(&self.id);
    }
}

fn request_line(id: u64, call: Call) -> Result<Vec<u8>, GuestCallError> {
    encode_line(&HostMessage::Request(Request { id, call })).map_err(GuestCallError::Call)
}

/// The task behind a channel.
struct Link {
    directory: VmDirectory,
    waiters: Waiters,
    publish: watch::Sender<GuestStatus>,
    next_id: Arc<AtomicU64>,
    stop: CancellationToken,
}

/// What one connection knows.
struct Session {
    /// The id of our last greeting: its reply begins the session.
    hello: u64,
    heard: Instant,
    broken_lines: u32,
    window: Instant,
    window_bytes: usize,
}

impl Link {
    async fn run(self, mut queue: mpsc::Receiver<Vec<u8>>) {
        loop {
            let pause = tokio::select! {
                () = self.stop.cancelled() => return,
                pause = self.connection(&mut queue) => pause,
            };
            self.publish.send_replace(GuestStatus::Silent);
            self.waiters.lock().clear();
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// One connection from beginning to end; returns how long to wait before the next.
    async fn connection(&self, queue: &mut mpsc::Receiver<Vec<u8>>) -> Duration {
        let Ok(path) = SocketPath::new(self.directory.path(), name::GUEST_SOCKET) else {
            return RECONNECT;
        };
        let Ok(stream) = UnixStream::connect(&path).await else { return RECONNECT };
        drop(path);
        while queue.try_recv().is_ok() {}
        let (mut reader, mut writer) = stream.into_split();
        let now = Instant::now();
        let mut session =
            Session { hello: 0, heard: now, broken_lines: 0, window: now, window_bytes: 0 };
        let mut lines = LineBuffer::new();
        let mut buffer = vec![0; 64 << 10];
        // An empty line first: a line that was cut by our predecessor's death ends there.
        if write(&mut writer, b"\n").await.is_err()
            || self.greet(&mut session, &mut writer).await.is_err()
        {
            return RECONNECT;
        }
        loop {
            let speaking = *self.publish.borrow() != GuestStatus::Silent;
            let patience = session.heard + if speaking { SILENCE } else { GREET_AGAIN };
            tokio::select! {
                read = read(&mut reader, &mut buffer, &mut session) => match read {
                    Ok(count) if count > 0 => {
                        lines.push(&buffer[..count]);
                        if let Err(pause) = self.take_lines(&mut lines, &mut session, &mut writer).await {
                            return pause;
                        }
                    }
                    _ => return RECONNECT,
                },
                line = queue.recv() => match line {
                    Some(line) if write(&mut writer, &line).await.is_ok() => {}
                    _ => return RECONNECT,
                },
                () = sleep_until(patience) => {
                    self.publish.send_replace(GuestStatus::Silent);
                    session.heard = Instant::now();
                    if self.greet(&mut session, &mut writer).await.is_err() {
                        return RECONNECT;
                    }
                }
            }
        }
    }

    async fn greet(&self, session: &mut Session, writer: &mut OwnedWriteHalf) -> io::Result<()> {
        session.hello = self.next_id.fetch_add(1, Ordering::Relaxed);
        let call = Call::Hello { protocol: PROTOCOL };
        let line = request_line(session.hello, call).map_err(io::Error::other)?;
        write(writer, &line).await
    }

    /// Deals with all complete lines. An error ends the connection and says for how long.
    async fn take_lines(
        &self,
        lines: &mut LineBuffer,
        session: &mut Session,
        writer: &mut OwnedWriteHalf,
    ) -> Result<(), Duration> {
        while let Some(line) = lines.next_line() {
            let Ok(message) = line.and_then(|line| decode_line::<GuestMessage>(&line)) else {
                session.broken_lines += 1;
                if session.broken_lines > MAX_BROKEN_LINES {
                    tracing::warn!(vm = %self.directory.path().display(), "guest sends nonsense");
                    return Err(PENANCE);
                }
                continue;
            };
            session.heard = Instant::now();
            match message {
                GuestMessage::Reply(reply) if reply.id == session.hello => {
                    if let Outcome::Done(Answer::Hello(greeting)) = reply.outcome {
                        self.publish.send_replace(GuestStatus::Speaking(greeting));
                    }
                }
                GuestMessage::Reply(reply) => {
                    if let Some(waiter) = self.waiters.lock().remove(&reply.id) {
                        drop(waiter.send(reply.outcome));
                    }
                }
                // The guest's agent started (again): what it was asked before is forgotten there.
                GuestMessage::Event(Event::Ready(_)) => {
                    self.waiters.lock().clear();
                    self.greet(session, writer).await.map_err(|_| RECONNECT)?;
                }
                GuestMessage::Event(Event::Heartbeat { .. } | Event::Unknown) => {}
            }
        }
        Ok(())
    }
}

async fn read(
    reader: &mut OwnedReadHalf,
    buffer: &mut [u8],
    session: &mut Session,
) -> io::Result<usize> {
    let window_end = session.window + Duration::from_secs(1);
    if session.window_bytes > BYTES_PER_SECOND {
        sleep_until(window_end).await;
    }
    let count = reader.read(buffer).await?;
    let now = Instant::now();
    if now >= window_end {
        session.window = now;
        session.window_bytes = 0;
    }
    session.window_bytes += count;
    Ok(count)
}

async fn write(writer: &mut OwnedWriteHalf, bytes: &[u8]) -> io::Result<()> {
    timeout(WRITE_LIMIT, writer.write_all(bytes))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests;

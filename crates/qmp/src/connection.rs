//! One connection to one QEMU: the greeting, then a reader and a writer task.
//!
//! The connection ends when QEMU closes it, when a line breaks the protocol, or when the last
//! [`Qmp`] handle is dropped. Whatever waits then gets [`QmpError::Closed`].

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::codec::{Encoder as _, FramedRead};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::codec::{CodecError, Message, QmpCodec};
use crate::descriptor;
use crate::error::QmpError;
use crate::event::Event;
use crate::types::Greeting;

/// Events kept for a receiver that lags; older ones are then counted as lost, never awaited.
const EVENT_BACKLOG: usize = 256;
/// Commands that may wait for the socket.
const COMMAND_QUEUE: usize = 64;

/// Events of one connection. A receiver that lags by more than 256 is told how many it lost.
pub type EventReceiver = broadcast::Receiver<Event>;

/// Time limits of a connection.
#[derive(Debug, Clone, Copy)]
pub struct ConnectOptions {
    /// For connect, greeting and capabilities together.
    pub handshake_timeout: Duration,
    /// For each command that does not bring its own.
    pub command_timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self { handshake_timeout: Duration::from_secs(5), command_timeout: Duration::from_secs(10) }
    }
}

type Answer = Result<Value, (String, String)>;

#[derive(Debug, Default)]
struct Pending {
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    closed: bool,
}

#[derive(Debug)]
struct Shared {
    pending: Mutex<Pending>,
    events: broadcast::Sender<Event>,
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        // No code panics while it holds the lock, and the map is valid between any two of its steps.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let mut pending = self.pending();
        pending.closed = true;
        // Dropping the senders wakes every waiter with an error.
        pending.waiting.clear();
    }

    fn answer(&self, id: Option<&Value>, answer: Answer) {
        let Some(id) = id.and_then(Value::as_u64) else {
            tracing::warn!(?id, "monitor answer without an id of ours");
            return;
        };
        match self.pending().waiting.remove(&id) {
            // The caller may have gone between; that is its right.
            Some(waiter) => drop(waiter.send(answer)),
            None => tracing::debug!(id, "monitor answer came after its command's time limit"),
        }
    }
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    lines: mpsc::Sender<Line>,
    next_id: AtomicU64,
    greeting: Greeting,
    command_timeout: Duration,
    ended: CancellationToken,
    _stop_tasks: DropGuard,
}

/// A line on its way to QEMU, and what goes with it.
#[derive(Debug)]
struct Line {
    command: Value,
    descriptor: Option<OwnedFd>,
}

/// A handle to one QEMU's monitor. Clones share the connection; the last one dropped closes it.
#[derive(Debug, Clone)]
pub struct Qmp {
    inner: Arc<Inner>,
}

/// Forgets a command whose caller stops waiting (timeout, or its future dropped).
struct ForgetOnDrop<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for ForgetOnDrop<'_> {
    fn drop(&mut self) {
        self.shared.pending().waiting.remove(&self.id);
    }
}

impl Qmp {
    /// Connects to the monitor socket at `path`, reads the greeting and enters command mode.
    /// The receiver has every event since then.
    ///
    /// # Errors
    /// No listener at `path`, no valid greeting, or the handshake's time limit.
    pub async fn connect(
        path: &Path,
        options: ConnectOptions,
    ) -> Result<(Self, EventReceiver), QmpError> {
        let limit = options.handshake_timeout;
        let connect = async {
            let stream = UnixStream::connect(path)
                .await
                .map_err(|source| QmpError::Connect { path: path.to_owned(), source })?;
            Self::handshake(stream, options).await
        };
        tokio::time::timeout(limit, connect)
            .await
            .map_err(|_| QmpError::HandshakeTimeout { limit })?
    }

    async fn handshake(
        stream: UnixStream,
        options: ConnectOptions,
    ) -> Result<(Self, EventReceiver), QmpError> {
        let (read, write) = stream.into_split();
        let mut reader = FramedRead::new(read, QmpCodec::default());
        let mut writer = write;
        let greeting = match reader.next().await {
            Some(Ok(Message::Greeting(greeting))) => greeting,
            Some(Ok(_)) => return Err(QmpError::NoGreeting),
            Some(Err(error)) => return Err(QmpError::Handshake(error)),
            None => return Err(QmpError::HandshakeEnded),
        };
        let enter = Line { command: json!({"execute": "qmp_capabilities"}), descriptor: None };
        send(&mut writer, enter).await.map_err(QmpError::Handshake)?;
        let (events, receiver) = broadcast::channel(EVENT_BACKLOG);
        loop {
            match reader.next().await {
                Some(Ok(Message::Return { .. })) => break,
                Some(Ok(Message::Event(event))) => drop(events.send(event)),
                Some(Ok(Message::Refusal { class, description, .. })) => {
                    let command = "qmp_capabilities".to_owned();
                    return Err(QmpError::Refused { command, class, description });
                }
                Some(Ok(Message::Greeting(_))) => return Err(QmpError::NoGreeting),
                Some(Err(error)) => return Err(QmpError::Handshake(error)),
                None => return Err(QmpError::HandshakeEnded),
            }
        }
        let shared = Arc::new(Shared { pending: Mutex::default(), events });
        let (lines, queue) = mpsc::channel(COMMAND_QUEUE);
        let ended = CancellationToken::new();
        tokio::spawn(read_messages(reader, Arc::clone(&shared), ended.clone()));
        tokio::spawn(write_lines(writer, queue, ended.clone()));
        let inner = Inner {
            shared,
            lines,
            next_id: AtomicU64::new(1),
            greeting,
            command_timeout: options.command_timeout,
            _stop_tasks: ended.clone().drop_guard(),
            ended,
        };
        Ok((Self { inner: Arc::new(inner) }, receiver))
    }

    /// Who we talk to.
    #[must_use]
    pub fn greeting(&self) -> &Greeting {
        &self.inner.greeting
    }

    /// The events from now on.
    #[must_use]
    pub fn subscribe(&self) -> EventReceiver {
        self.inner.shared.events.subscribe()
    }

    /// True once the connection is over; it does not come back.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inner.ended.is_cancelled()
    }

    /// Waits until the connection is over.
    pub async fn closed(&self) {
        self.inner.ended.cancelled().await;
    }

    /// Runs any command by name. `arguments` is an object, or null for none. The time limit is the
    /// connection's.
    ///
    /// # Errors
    /// QEMU's refusal, the time limit, or the connection's end.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.execute_within(command, arguments, self.inner.command_timeout).await
    }

    /// As [`Self::execute`], with its own time limit. After the limit the command may still take
    /// effect in QEMU: only its answer is given up.
    ///
    /// # Errors
    /// QEMU's refusal, the time limit, or the connection's end.
    pub async fn execute_within(
        &self,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        self.exchange(command, arguments, None, limit).await
    }

    /// As [`Self::execute`], with a descriptor that QEMU gets along with the command.
    pub(crate) async fn execute_with(
        &self,
        command: &str,
        arguments: Value,
        descriptor: OwnedFd,
    ) -> Result<Value, QmpError> {
        self.exchange(command, arguments, Some(descriptor), self.inner.command_timeout).await
    }

    async fn exchange(
        &self,
        command: &str,
        arguments: Value,
        descriptor: Option<OwnedFd>,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        let closed = || QmpError::Closed { command: command.to_owned() };
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        {
            let mut pending = self.inner.shared.pending();
            if pending.closed {
                return Err(closed());
            }
            pending.waiting.insert(id, sender);
        }
        let _forget = ForgetOnDrop { shared: &self.inner.shared, id };
        let mut line = json!({"execute": command, "id": id});
        if !arguments.is_null() {
            line["arguments"] = arguments;
        }
        let exchange = async {
            let line = Line { command: line, descriptor };
            self.inner.lines.send(line).await.map_err(|_| closed())?;
            receiver.await.map_err(|_| closed())
        };
        match tokio::time::timeout(limit, exchange).await {
            Err(_) => Err(QmpError::Timeout { command: command.to_owned(), limit }),
            Ok(Err(error)) => Err(error),
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err((class, description)))) => {
                Err(QmpError::Refused { command: command.to_owned(), class, description })
            }
        }
    }
}

async fn read_messages(
    mut reader: FramedRead<OwnedReadHalf, QmpCodec>,
    shared: Arc<Shared>,
    ended: CancellationToken,
) {
    loop {
        let message = tokio::select! {
            () = ended.cancelled() => break,
            message = reader.next() => message,
        };
        match message {
            Some(Ok(Message::Return { id, value })) => shared.answer(id.as_ref(), Ok(value)),
            Some(Ok(Message::Refusal { id, class, description })) => {
                shared.answer(id.as_ref(), Err((class, description)));
            }
            Some(Ok(Message::Event(event))) => {
                tracing::trace!(event = event.name, "monitor event");
                // No receiver: nobody wants it.
                drop(shared.events.send(event));
            }
            Some(Ok(Message::Greeting(_))) => tracing::warn!("monitor greeted twice"),
            Some(Err(error)) => {
                tracing::warn!(%error, "monitor connection given up");
                break;
            }
            None => break,
        }
    }
    shared.close();
    ended.cancel();
}

async fn write_lines(
    mut writer: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Line>,
    ended: CancellationToken,
) {
    loop {
        let line = tokio::select! {
            () = ended.cancelled() => return,
            line = queue.recv() => line,
        };
        let Some(line) = line else { return };
        let sent = tokio::select! {
            () = ended.cancelled() => return,
            sent = send(&mut writer, line) => sent,
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "monitor connection cannot be written to");
            ended.cancel();
            return;
        }
    }
}

/// Writes a line. A descriptor goes with its first byte, which is how QEMU knows whose it is.
async fn send(writer: &mut OwnedWriteHalf, line: Line) -> Result<(), CodecError> {
    let mut bytes = BytesMut::new();
    QmpCodec::default().encode(&line.command, &mut bytes)?;
    let sent = match &line.descriptor {
        Some(descriptor) => descriptor::send(writer.as_ref(), &bytes, descriptor).await?,
        None => 0,
    };
    Ok(writer.write_all(bytes.get(sent..).unwrap_or_default()).await?)
}

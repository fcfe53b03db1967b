//! Serves the host on an open port.
//!
//! ```text
//!             host opens the port: empty line, event ready
//!   waiting -------------------------------------------------> connected
//!      ^                                                        |  ^  hello: a new epoch
//!      |                 host is gone: a new epoch              |  +-- every request
//!      +--------------------------------------------------------+
//! ```
//!
//! Replies carry the epoch in which their request came. The writer drops lines of older epochs: a
//! host agent that was restarted starts its ids anew and must not take the late reply to its
//! predecessor's `exec` for its own. Commands themselves go on.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use plimsoll_api::ErrorChain;
use plimsoll_api::guest::{
    Answer, Call, Event, Failure, FailureCode, Greeting, GuestMessage, HostMessage, LineBuffer,
    MAX_MESSAGE_BYTES, MAX_TEXT_BYTES, Outcome, PROTOCOL, ProtocolError, Reply, Request,
    ShutdownMode, decode_line, encode_line, to_printable,
};
use rustix::event::{PollFd, PollFlags};

use crate::exec::{self, ExecError};
use crate::power::Way;
use crate::system::System;
use crate::{VERSION, cpus, deflate, facts, notice};

/// Most requests that run at the same time, those answered at once not counted.
pub const MAX_RUNNING: usize = 16;
/// Lines that wait for the host; a request's thread that finds no room waits.
const OUTBOX_LINES: usize = 16;
/// How long the host may leave a line unread before it is dropped.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// The first and the longest pause while no host is there.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Longest wait for input; nothing depends on it, it only bounds the wait.
const READ_LIMIT: Duration = Duration::from_secs(60);

/// Why serving ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The port can't be read any more.
    #[error("cannot read from the host")]
    Read(#[source] io::Error),
    /// The port can't be watched.
    #[error("cannot watch the port")]
    Watch(#[source] io::Error),
    /// A thread could not be started.
    #[error("cannot start the {thread} thread")]
    Thread {
        /// What it was for.
        thread: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What to do when the host is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnHangup {
    /// Wait for the next one, as on a virtio-serial port.
    Wait,
    /// Stop serving, as on a socket that nobody can open again.
    Return,
}

/// How to serve.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Time between two heartbeats.
    pub heartbeat: Duration,
    /// What to do when the host is gone.
    pub on_hangup: OnHangup,
    /// The guest that is served.
    pub system: System,
}

/// Serves the host until the port fails or, with [`OnHangup::Return`], until the host is gone.
///
/// # Errors
/// The port can't be read or watched, or the threads can't be started.
pub fn serve(port: File, settings: Settings) -> Result<(), ServeError> {
    let port = Arc::new(port);
    let (outbox, lines) = mpsc::sync_channel(OUTBOX_LINES);
    let session = Arc::new(Session {
        outbox,
        epoch: Arc::new(AtomicU64::new(0)),
        connected: AtomicBool::new(false),
        running: AtomicUsize::new(0),
        system: settings.system,
    });
    let writer = Writer { port: Arc::clone(&port), lines, epoch: Arc::clone(&session.epoch) };
    start("writer", move || writer.run())?;
    // Dropped when this function returns, which ends the heartbeat.
    let (_stop, stopped) = mpsc::channel();
    let beating = Arc::clone(&session);
    start("heartbeat", move || beating.heartbeat(settings.heartbeat, &stopped))?;
    session.read(&port, settings.on_hangup)
}

fn start(thread: &'static str, body: impl FnOnce() + Send + 'static) -> Result<(), ServeError> {
    let started = std::thread::Builder::new().name(thread.to_owned()).spawn(body);
    started.map(drop).map_err(|source| ServeError::Thread { thread, source })
}

struct Line {
    epoch: u64,
    bytes: Vec<u8>,
    /// Told when the line was written or dropped.
    done: Option<SyncSender<()>>,
}

struct Session {
    outbox: SyncSender<Line>,
    epoch: Arc<AtomicU64>,
    connected: AtomicBool,
    running: AtomicUsize,
    system: System,
}

/// Gives a place among the running requests back, however its thread ends.
struct Place(Arc<Session>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Session {
    fn read(self: &Arc<Self>, port: &File, on_hangup: OnHangup) -> Result<(), ServeError> {
        let mut port = port;
        let mut buffer = LineBuffer::new();
        let mut bytes = vec![0; 64 << 10];
        let mut pause = PAUSES.0;
        loop {
            let mut fds = [PollFd::from_borrowed_fd(port.as_fd(), PollFlags::IN)];
            let limit =
                if self.connected.load(Ordering::SeqCst) { READ_LIMIT } else { Duration::ZERO };
            exec::wait(&mut fds, limit).map_err(ServeError::Watch)?;
            let events = fds[0].revents();
            let hung_up = events.intersects(PollFlags::HUP | PollFlags::ERR);
            if !hung_up && !self.connected.load(Ordering::SeqCst) {
                pause = PAUSES.0;
                self.greet();
            }
            let count = if events.contains(PollFlags::IN) {
                match port.read(&mut bytes) {
                    Ok(count) => Some(count),
                    Err(error) if would_block(&error) => None,
                    Err(_) if hung_up => Some(0),
                    Err(error) => return Err(ServeError::Read(error)),
                }
            } else {
                hung_up.then_some(0)
            };
            match count {
                None => {}
                Some(0) => {
                    buffer.clear();
                    self.connected.store(false, Ordering::SeqCst);
                    self.epoch.fetch_add(1, Ordering::SeqCst);
                    if on_hangup == OnHangup::Return {
                        return Ok(());
                    }
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(PAUSES.1);
                }
                Some(count) => {
                    buffer.push(&bytes[..count]);
                    while let Some(line) = buffer.next_line() {
                        self.receive(line);
                    }
                }
            }
        }
    }

    /// Tells a host that has just opened the port who is here.
    fn greet(&self) {
        self.connected.store(true, Ordering::SeqCst);
        let epoch = self.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        let event = GuestMessage::Event(Event::Ready(self.greeting()));
        if let Ok(ready) = encode_line(&event) {
            // Whatever of an older line the host may have got ends at this newline.
            let bytes = [b"\n".as_slice(), &ready].concat();
            let _ = self.outbox.try_send(Line { epoch, bytes, done: None });
        }
    }

    fn greeting(&self) -> Greeting {
        Greeting {
            protocol: PROTOCOL,
            agent_version: VERSION.to_owned(),
            boot_id: to_printable(&self.system.boot_id(), MAX_TEXT_BYTES),
        }
    }

    fn heartbeat(&self, interval: Duration, stopped: &Receiver<()>) {
        for sequence in 0.. {
            if stopped.recv_timeout(interval) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            if !self.connected.load(Ordering::SeqCst) {
                continue;
            }
            let uptime_ms = self.system.uptime_ms();
            let event = GuestMessage::Event(Event::Heartbeat { sequence, uptime_ms });
            if let Ok(bytes) = encode_line(&event) {
                let epoch = self.epoch.load(Ordering::SeqCst);
                // A host that does not read loses heartbeats before it loses replies.
                let _ = self.outbox.try_send(Line { epoch, bytes, done: None });
            }
        }
    }

    fn receive(self: &Arc<Self>, line: Result<Vec<u8>, ProtocolError>) {
        let Ok(line) = line else { return };
        match decode_line(&line) {
            Ok(HostMessage::Request(request)) => self.serve_request(request),
            Err(error) => {
                // With an id the host is told; without one it is noise, such as a cut line.
                if let Some(id) = id_of(&line) {
                    let epoch = self.epoch.load(Ordering::SeqCst);
                    self.reply(epoch, id, failed(FailureCode::InvalidRequest, &error));
                }
            }
        }
    }

    fn serve_request(self: &Arc<Self>, request: Request) {
        let Request { id, call } = request;
        let epoch = self.epoch.load(Ordering::SeqCst);
        match call {
            Call::Hello { .. } => {
                let epoch = self.epoch.fetch_add(1, Ordering::SeqCst) + 1;
                self.reply(epoch, id, Outcome::Done(Answer::Hello(self.greeting())));
            }
            Call::Facts => {
                let facts = Box::new(facts::gather(&self.system));
                self.reply(epoch, id, Outcome::Done(Answer::Facts(facts)));
            }
            Call::Unknown => self.reply(epoch, id, unsupported("call")),
            Call::Shutdown { mode } => {
                self.in_thread(epoch, id, move |session| session.shut_down(epoch, id, mode));
            }
            Call::Exec(request) => self.in_thread(epoch, id, move |session| {
                session.reply(
                    epoch,
                    id,
                    match exec::run(&request) {
                        Ok(result) => Outcome::Done(Answer::Exec(result)),
                        Err(error) => failed(exec_code(&error), &error),
                    },
                );
            }),
            Call::SetOnlineCpus { count } => self.in_thread(epoch, id, move |session| {
                session.reply(
                    epoch,
                    id,
                    match cpus::set_online(&session.system, count) {
                        Ok(counts) => Outcome::Done(Answer::Cpus(counts)),
                        Err(error) => failed(FailureCode::Failed, &error),
                    },
                );
            }),
            Call::Deflate(request) => self.in_thread(epoch, id, move |session| {
                let result = deflate::deflate(&session.system, &request);
                session.reply(epoch, id, Outcome::Done(Answer::Deflated(result)));
            }),
            Call::Inflate => self.in_thread(epoch, id, move |session| {
                let result = deflate::inflate(&session.system);
                session.reply(epoch, id, Outcome::Done(Answer::Deflated(result)));
            }),
            Call::Notice { notice } => self.in_thread(epoch, id, move |session| {
                session.reply(
                    epoch,
                    id,
                    match notice::deliver(&session.system, &notice) {
                        Some(result) => Outcome::Done(Answer::Notice(result)),
                        None => unsupported("notice"),
                    },
                );
            }),
        }
    }

    /// Runs a request beside all others, or refuses it when too many run.
    fn in_thread(
        self: &Arc<Self>,
        epoch: u64,
        id: u64,
        body: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) {
        let place = Place(Arc::clone(self));
        if self.running.fetch_add(1, Ordering::SeqCst) >= MAX_RUNNING {
            let message = format!("{MAX_RUNNING} requests run already");
            self.reply(epoch, id, failure(FailureCode::Busy, &message));
            return;
        }
        let started = std::thread::Builder::new().name("request".to_owned()).spawn(move || {
            body(&place.0);
        });
        if let Err(error) = started {
            self.reply(epoch, id, failed(FailureCode::Busy, &error));
        }
    }

    fn shut_down(&self, epoch: u64, id: u64, mode: ShutdownMode) {
        let way = Way::find(&self.system, mode);
        let begun = Outcome::Done(Answer::ShutdownBegun);
        if !way.returns() {
            let (done, written) = mpsc::sync_channel(1);
            self.send(epoch, id, begun, Some(done));
            // The host may be gone, and the guest goes down all the same.
            let _ = written.recv_timeout(Duration::from_secs(1));
            // On failure there is nobody left to tell: the host sees that the guest still beats.
            let _ = way.go(&self.system, mode);
            return;
        }
        let outcome = match way.go(&self.system, mode) {
            Ok(()) => begun,
            Err(error) => failed(FailureCode::Failed, &error),
        };
        self.reply(epoch, id, outcome);
    }

    fn reply(&self, epoch: u64, id: u64, outcome: Outcome) {
        self.send(epoch, id, outcome, None);
    }

    fn send(&self, epoch: u64, id: u64, outcome: Outcome, done: Option<SyncSender<()>>) {
        let encode = |outcome| encode_line(&GuestMessage::Reply(Reply { id, outcome }));
        let bytes = encode(outcome).or_else(|error| encode(failed(FailureCode::Failed, &error)));
        if let Ok(bytes) = bytes {
            // The writer is gone only when serving has ended.
            let _ = self.outbox.send(Line { epoch, bytes, done });
        }
    }
}

fn exec_code(error: &ExecError) -> FailureCode {
    match error {
        ExecError::Start { source, .. } => match source.kind() {
            io::ErrorKind::NotFound => FailureCode::NotFound,
            io::ErrorKind::PermissionDenied => FailureCode::NotExecutable,
            _ => FailureCode::Failed,
        },
        ExecError::Watch { .. } => FailureCode::Failed,
    }
}

fn unsupported(what: &str) -> Outcome {
    let message = format!("guest agent {VERSION} does not know this {what}");
    failure(FailureCode::Unsupported, &message)
}

/// A failure whose message is the error and all its causes.
fn failed(code: FailureCode, error: &(dyn std::error::Error + 'static)) -> Outcome {
    failure(code, &ErrorChain(error).to_string())
}

fn failure(code: FailureCode, message: &str) -> Outcome {
    Outcome::Failed(Failure { code, message: to_printable(message, MAX_MESSAGE_BYTES) })
}

/// The id of a request that is otherwise unreadable.
fn id_of(line: &[u8]) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Outer {
        request: Inner,
    }
    #[derive(serde::Deserialize)]
    struct Inner {
        id: u64,
    }
    serde_json::from_slice::<Outer>(line).ok().map(|outer| outer.request.id)
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// The only thread that writes to the port.
struct Writer {
    port: Arc<File>,
    lines: Receiver<Line>,
    epoch: Arc<AtomicU64>,
}

impl Writer {
    fn run(self) {
        let mut cut = false;
        while let Ok(line) = self.lines.recv() {
            if line.epoch == self.epoch.load(Ordering::SeqCst) {
                // After a line that was cut short, a newline brings the host back in step.
                let prefix: &[u8] = if cut { b"\n" } else { b"" };
                cut = !self.write(prefix) || !self.write(&line.bytes);
            }
            if let Some(done) = line.done {
                // Nobody may wait for it any more.
                let _ = done.try_send(());
            }
        }
    }

    /// Writes all, or says that the host did not take it.
    fn write(&self, mut bytes: &[u8]) -> bool {
        let limit = Instant::now() + WRITE_LIMIT;
        let mut port = &*self.port;
        while !bytes.is_empty() {
            match port.write(bytes) {
                Ok(0) => return false,
                Ok(count) => bytes = &bytes[count..],
                Err(error) if would_block(&error) => {
                    let left = limit.saturating_duration_since(Instant::now());
                    let mut fds = [PollFd::from_borrowed_fd(port.as_fd(), PollFlags::OUT)];
                    if left.is_zero() || exec::wait(&mut fds, left).is_err() {
                        return false;
                    }
                    if fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests;

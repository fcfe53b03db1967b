//! The protocol between a host's agent and the agent inside a VM.
//!
//! It runs over one virtio-serial port ([`PORT_NAME`]): one JSON message per line, a line being at
//! most [`MAX_LINE_BYTES`] long. The host sends [`HostMessage`]s, the guest [`GuestMessage`]s:
//! replies, matched by their request's id and in any order, and events that nobody asked for.
//!
//! ```text
//!   host                                     guest
//!    | <------------- event ready ------------ |   the port was opened by both sides
//!    | ------------- hello (id 1) ------------> |   starts a session: replies to older
//!    | <------------ reply (id 1) ------------- |   requests are dropped from here on
//!    | ---- exec (id 2) ---> --- facts (3) ---> |
//!    | <----------- reply (id 3) -------------- |   answered while exec still runs
//!    | <------------ heartbeat ---------------- |   every few seconds
//!    | <----------- reply (id 2) -------------- |
//! ```
//!
//! Invariants:
//! - **Each side treats the other as hostile.** [`decode_line`] bounds the line, every list and
//!   every string, and refuses control characters in text that ends up on an operator's terminal.
//!   It never panics. What one side may send, [`encode_line`] checks by the same rules.
//! - **A stream can be cut anywhere** (either process may die in the middle of a line). Both sides
//!   therefore send an empty line when they connect; [`LineBuffer`] drops empty lines, and a cut
//!   line costs one decode error, not the stream.
//! - **Both sides can be newer.** Unknown fields are ignored, an unknown call is answered with
//!   [`FailureCode::Unsupported`], an unknown event is [`Event::Unknown`].
//! - Numbers are integers: a value survives encoding and decoding unchanged.

mod facts;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use facts::{
    ApplicationLatency, CpuCounts, CpuTime, Facts, Hundredths, InterfaceAddress, InterfaceFacts,
    MemoryFacts, Pressure, PressureFacts,
};

/// Version of this protocol; raised when a message changes its meaning.
pub const PROTOCOL: u32 = 1;
/// Name of the virtio-serial port, in QEMU's `virtserialport,name=` and in the guest's sysfs.
pub const PORT_NAME: &str = "org.plimsoll.guest.0";
/// Longest line in bytes, its newline not counted.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// Most arguments of a command, its name included.
pub const MAX_ARGUMENTS: usize = 1024;
/// Most environment variables given to a command.
pub const MAX_ENVIRONMENT: usize = 256;
/// Most bytes of a command's arguments and environment together.
pub const MAX_ARGUMENT_BYTES: usize = 64 << 10;
/// Most bytes of a command's standard input.
pub const MAX_STDIN_BYTES: usize = 384 << 10;
/// Most bytes kept of each of a command's two output streams.
pub const MAX_OUTPUT_BYTES: u32 = 256 << 10;
/// Longest time a command may run, in milliseconds (one hour).
pub const MAX_EXEC_TIMEOUT_MS: u64 = 3_600_000;
/// Longest time that applications may be given to free something, in milliseconds.
pub const MAX_DEFLATE_MS: u64 = 600_000;
/// Most hooks of one kind that a guest runs.
pub const MAX_HOOKS: usize = 32;
/// Most network interfaces in [`Facts`].
pub const MAX_INTERFACES: usize = 64;
/// Most addresses of one interface in [`Facts`].
pub const MAX_ADDRESSES: usize = 32;
/// Longest short text: names, versions, ids.
pub const MAX_TEXT_BYTES: usize = 256;
/// Longest message of a failure.
pub const MAX_MESSAGE_BYTES: usize = 4096;
/// Most CPUs a message may speak of.
pub const MAX_CPUS: u32 = 4096;

/// Why a line was refused.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The line is longer than [`MAX_LINE_BYTES`].
    #[error("the line is longer than {MAX_LINE_BYTES} bytes")]
    LineTooLong,
    /// The line is not a message of this protocol.
    #[error("the line is no message of the guest protocol")]
    Malformed(#[source] serde_json::Error),
    /// A message could not be written as JSON.
    #[error("the message cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
    /// A number, or the length of a list or a string, is above its limit.
    #[error("{field} is {actual}, more than {limit}")]
    OutOfBounds {
        /// Which part of the message.
        field: &'static str,
        /// What it is.
        actual: u64,
        /// What it may be at most.
        limit: u64,
    },
    /// A part that may not be empty is empty.
    #[error("{field} is empty")]
    Empty {
        /// Which part of the message.
        field: &'static str,
    },
    /// A text holds what it must not: control characters, NUL, or a broken form.
    #[error("{field} holds characters that are not allowed there")]
    BadText {
        /// Which part of the message.
        field: &'static str,
    },
}

/// A message of one direction, with its own bounds.
pub trait Message: Serialize + DeserializeOwned {
    /// Checks every bound of the message.
    ///
    /// # Errors
    /// The first bound that does not hold.
    fn check(&self) -> Result<(), ProtocolError>;
}

/// Decodes one line (with or without its newline) and checks all its bounds.
///
/// # Errors
/// The line is too long, is no message of this direction, or breaks a bound.
pub fn decode_line<M: Message>(line: &[u8]) -> Result<M, ProtocolError> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    if line.len() > MAX_LINE_BYTES {
        return Err(ProtocolError::LineTooLong);
    }
    let message: M = serde_json::from_slice(line).map_err(ProtocolError::Malformed)?;
    message.check()?;
    Ok(message)
}

/// Encodes a message as one line, newline included, after checking its bounds.
///
/// # Errors
/// The message breaks a bound, or its line is too long.
pub fn encode_line<M: Message>(message: &M) -> Result<Vec<u8>, ProtocolError> {
    message.check()?;
    let mut line = serde_json::to_vec(message).map_err(ProtocolError::Encode)?;
    if line.len() > MAX_LINE_BYTES {
        return Err(ProtocolError::LineTooLong);
    }
    line.push(b'\n');
    Ok(line)
}

/// Cuts a byte stream into lines, holding at most one line in memory.
///
/// A line that is too long is reported once, and skipped up to its newline.
#[derive(Debug, Default)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    /// Bytes before this index were searched for a newline and hold none.
    searched: usize,
    skipping: bool,
}

impl LineBuffer {
    /// An empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what was read. Take all lines with [`LineBuffer::next_line`] before the next `push`:
    /// that bounds the memory to one line and one read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Forgets everything: the stream begins anew.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The next complete line without its newline; empty lines are left out.
    pub fn next_line(&mut self) -> Option<Result<Vec<u8>, ProtocolError>> {
        loop {
            let newline = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n');
            let Some(offset) = newline else {
                self.searched = self.bytes.len();
                if self.skipping {
                    self.bytes.clear();
                    self.searched = 0;
                } else if self.bytes.len() > MAX_LINE_BYTES {
                    self.bytes.clear();
                    self.searched = 0;
                    self.skipping = true;
                    return Some(Err(ProtocolError::LineTooLong));
                }
                return None;
            };
            let rest = self.bytes.split_off(self.searched + offset + 1);
            let mut line = std::mem::replace(&mut self.bytes, rest);
            self.searched = 0;
            line.pop();
            if std::mem::take(&mut self.skipping) || line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            if line.len() > MAX_LINE_BYTES {
                return Some(Err(ProtocolError::LineTooLong));
            }
            return Some(Ok(line));
        }
    }
}

/// What the host sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostMessage {
    /// Something the guest shall do and answer.
    Request(Request),
}

/// One request of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host; its reply carries the same.
    pub id: u64,
    /// What is asked.
    pub call: Call,
}

/// What the host can ask of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Call {
    /// Starts a session; answered by [`Answer::Hello`].
    Hello {
        /// The host's [`PROTOCOL`].
        protocol: u32,
    },
    /// Asks for [`Facts`].
    Facts,
    /// Runs a command; answered by [`Answer::Exec`] when it has ended.
    Exec(ExecRequest),
    /// Asks the guest to go down in an orderly way. The answer means that it began.
    Shutdown {
        /// What to do at the end.
        mode: ShutdownMode,
    },
    /// Asks for `count` online CPUs; the first CPU always stays. Answered by [`Answer::Cpus`] with
    /// what was reached, which can differ.
    SetOnlineCpus {
        /// Wanted number of online CPUs, at least 1.
        count: u32,
    },
    /// Asks the guest's applications to free memory and to want less CPU, by their hooks. Answered by
    /// [`Answer::Deflated`]. Not waited for: what they freed the balloon then takes.
    Deflate(DeflateRequest),
    /// Tells the guest's applications that they may use again what was asked of them. Answered as
    /// [`Call::Deflate`].
    Inflate,
    /// Tells the guest's users and its hooks something.
    Notice {
        /// What they are told.
        notice: Notice,
    },
    /// A call that a newer host knows; answered with [`FailureCode::Unsupported`].
    #[serde(other)]
    Unknown,
}

/// A command to run in the guest, as root, without a shell around it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program (looked up in `PATH`) and its arguments.
    pub argv: Vec<String>,
    /// Variables set in addition to the agent's own.
    #[serde(default)]
    pub env: Vec<EnvironmentVariable>,
    /// Standard input, base64 on the wire; after it the command sees end of file.
    #[serde(default, with = "base64_bytes")]
    pub stdin: Vec<u8>,
    /// After this many milliseconds the command and its process group are killed.
    pub timeout_ms: u64,
    /// Bytes kept of each output stream, at most [`MAX_OUTPUT_BYTES`]; the rest is read and dropped.
    pub max_output_bytes: u32,
}

/// What applications are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeflateRequest {
    /// Memory to free, in bytes.
    pub memory_bytes: u64,
    /// CPU to do without, in thousandths of a core.
    pub cpu_millicores: u64,
    /// In how many milliseconds; 1 to [`MAX_DEFLATE_MS`].
    pub within_ms: u64,
}

/// One environment variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentVariable {
    /// Its name, without `=`.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// How a guest goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownMode {
    /// Power off.
    Poweroff,
    /// Start again.
    Reboot,
}

/// What a guest's users are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Notice {
    /// The VM's end time is near: it will be stopped.
    EndingSoon {
        /// Seconds left.
        seconds: u64,
    },
    /// A notice that a newer host knows; answered with [`FailureCode::Unsupported`].
    #[serde(other)]
    Unknown,
}

/// What the guest sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestMessage {
    /// The answer to one request.
    Reply(Reply),
    /// Something nobody asked for.
    Event(Event),
}

/// The answer to one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's id.
    pub id: u64,
    /// How it went.
    pub outcome: Outcome,
}

/// How a request went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Done(Answer),
    /// It was not.
    Failed(Failure),
}

/// The result of a request that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Answer {
    /// To [`Call::Hello`].
    Hello(Greeting),
    /// To [`Call::Facts`].
    Facts(Box<Facts>),
    /// To [`Call::Exec`]: the command ran, however it ended.
    Exec(ExecResult),
    /// To [`Call::Shutdown`]: the guest is going down.
    ShutdownBegun,
    /// To [`Call::SetOnlineCpus`].
    Cpus(CpuCounts),
    /// To [`Call::Notice`].
    Notice(NoticeResult),
    /// To [`Call::Deflate`] and [`Call::Inflate`].
    Deflated(DeflateResult),
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// The guest's [`PROTOCOL`].
    pub protocol: u32,
    /// Version of the guest agent.
    pub agent_version: String,
    /// The kernel's id of this boot: another one means that the guest was started anew.
    pub boot_id: String,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecResult {
    /// Its exit status, when it ended by itself.
    pub exit_code: Option<i32>,
    /// The signal that ended it, otherwise.
    pub signal: Option<i32>,
    /// It ran longer than it was allowed to, and was killed.
    pub timed_out: bool,
    /// Beginning of its standard output, base64 on the wire.
    #[serde(with = "base64_bytes")]
    pub stdout: Vec<u8>,
    /// Beginning of its standard error, base64 on the wire.
    #[serde(with = "base64_bytes")]
    pub stderr: Vec<u8>,
    /// There was more standard output than was kept.
    pub stdout_truncated: bool,
    /// There was more standard error than was kept.
    pub stderr_truncated: bool,
    /// How long it ran, in milliseconds.
    pub duration_ms: u64,
}

/// What applications gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeflateResult {
    /// One for each hook that was asked, in their order.
    pub hooks: Vec<HookResult>,
    /// The guest's memory afterwards.
    pub memory: MemoryFacts,
}

/// What one application's hook answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookResult {
    /// The name of its file.
    pub name: String,
    /// Memory that it says it freed, in bytes.
    pub freed_bytes: u64,
    /// CPU that it says it does without, in thousandths of a core.
    pub freed_millicores: u64,
    /// Why it did not answer; none if it did.
    #[serde(default)]
    pub failure: Option<String>,
}

/// Where a notice went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoticeResult {
    /// It was written to the guest's console.
    pub console: bool,
    /// Hooks that ran and succeeded.
    pub hooks_succeeded: u32,
    /// Hooks that failed or did not end in time.
    pub hooks_failed: u32,
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind of failure.
    pub code: FailureCode,
    /// The cause, for people.
    pub message: String,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// This agent does not know the call.
    Unsupported,
    /// The request breaks a bound.
    InvalidRequest,
    /// The program does not exist in the guest.
    NotFound,
    /// The program may not be executed.
    NotExecutable,
    /// Too many requests run already.
    Busy,
    /// The guest could not do it.
    Failed,
    /// A code that a newer guest knows.
    #[serde(other)]
    Other,
}

/// What the guest says without being asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// The agent serves: sent when it sees that the host has opened the port.
    Ready(Greeting),
    /// The agent is alive.
    Heartbeat {
        /// Counts up from the agent's start.
        sequence: u64,
        /// Time since the guest booted, in milliseconds.
        uptime_ms: u64,
    },
    /// An event that a newer guest knows.
    #[serde(other)]
    Unknown,
}

impl Message for HostMessage {
    fn check(&self) -> Result<(), ProtocolError> {
        let Self::Request(request) = self;
        match &request.call {
            Call::Exec(exec) => exec.check(),
            Call::SetOnlineCpus { count: 0 } => Err(ProtocolError::Empty { field: "count" }),
            Call::SetOnlineCpus { count } => at_most("count", u64::from(*count), MAX_CPUS.into()),
            Call::Deflate(request) if request.within_ms == 0 => {
                Err(ProtocolError::Empty { field: "within_ms" })
            }
            Call::Deflate(request) => at_most("within_ms", request.within_ms, MAX_DEFLATE_MS),
            Call::Hello { .. }
            | Call::Facts
            | Call::Inflate
            | Call::Shutdown { .. }
            | Call::Notice { .. }
            | Call::Unknown => Ok(()),
        }
    }
}

impl ExecRequest {
    /// Checks every bound.
    ///
    /// # Errors
    /// The first bound that does not hold.
    pub fn check(&self) -> Result<(), ProtocolError> {
        if self.argv.first().is_none_or(String::is_empty) {
            return Err(ProtocolError::Empty { field: "argv" });
        }
        length("argv", self.argv.len(), MAX_ARGUMENTS)?;
        length("env", self.env.len(), MAX_ENVIRONMENT)?;
        length("stdin", self.stdin.len(), MAX_STDIN_BYTES)?;
        let variables = self.env.iter().map(|variable| variable.name.len() + variable.value.len());
        let bytes = self.argv.iter().map(String::len).chain(variables).sum();
        length("argv and env", bytes, MAX_ARGUMENT_BYTES)?;
        if self.argv.iter().any(|argument| argument.contains('\0')) {
            return Err(ProtocolError::BadText { field: "argv" });
        }
        for variable in &self.env {
            let name = &variable.name;
            if name.is_empty() || name.contains(['=', '\0']) || variable.value.contains('\0') {
                return Err(ProtocolError::BadText { field: "env" });
            }
        }
        if self.timeout_ms == 0 {
            return Err(ProtocolError::Empty { field: "timeout_ms" });
        }
        at_most("timeout_ms", self.timeout_ms, MAX_EXEC_TIMEOUT_MS)?;
        at_most("max_output_bytes", self.max_output_bytes.into(), MAX_OUTPUT_BYTES.into())
    }
}

impl Message for GuestMessage {
    fn check(&self) -> Result<(), ProtocolError> {
        match self {
            Self::Event(Event::Ready(greeting)) => greeting.check(),
            Self::Event(Event::Heartbeat { .. } | Event::Unknown) => Ok(()),
            Self::Reply(Reply { outcome: Outcome::Failed(failure), .. }) => {
                printable("message", &failure.message, MAX_MESSAGE_BYTES)
            }
            Self::Reply(Reply { outcome: Outcome::Done(answer), .. }) => match answer {
                Answer::Hello(greeting) => greeting.check(),
                Answer::Facts(facts) => facts.check(),
                Answer::Exec(result) => result.check(),
                Answer::Cpus(counts) => counts.check(),
                Answer::Deflated(result) => result.check(),
                Answer::ShutdownBegun | Answer::Notice(_) => Ok(()),
            },
        }
    }
}

impl Greeting {
    fn check(&self) -> Result<(), ProtocolError> {
        printable("agent_version", &self.agent_version, MAX_TEXT_BYTES)?;
        printable("boot_id", &self.boot_id, MAX_TEXT_BYTES)
    }
}

impl ExecResult {
    fn check(&self) -> Result<(), ProtocolError> {
        at_most("stdout", as_u64(self.stdout.len()), MAX_OUTPUT_BYTES.into())?;
        at_most("stderr", as_u64(self.stderr.len()), MAX_OUTPUT_BYTES.into())
    }
}

impl DeflateResult {
    fn check(&self) -> Result<(), ProtocolError> {
        length("hooks", self.hooks.len(), MAX_HOOKS)?;
        for hook in &self.hooks {
            printable("hook name", &hook.name, MAX_TEXT_BYTES)?;
            printable("hook failure", hook.failure.as_deref().unwrap_or(""), MAX_MESSAGE_BYTES)?;
        }
        Ok(())
    }
}

fn as_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn length(field: &'static str, actual: usize, limit: usize) -> Result<(), ProtocolError> {
    at_most(field, as_u64(actual), as_u64(limit))
}

fn at_most(field: &'static str, actual: u64, limit: u64) -> Result<(), ProtocolError> {
    if actual > limit {
        return Err(ProtocolError::OutOfBounds { field, actual, limit });
    }
    Ok(())
}

/// Refuses control characters: an escape sequence in a hostname would act on the operator's
/// terminal.
fn printable(field: &'static str, text: &str, limit: usize) -> Result<(), ProtocolError> {
    length(field, text.len(), limit)?;
    if text.chars().any(char::is_control) {
        return Err(ProtocolError::BadText { field });
    }
    Ok(())
}

/// Makes any text fit for a text field: control characters become spaces, and it is cut to
/// `limit` bytes at a character's end.
#[must_use]
pub fn to_printable(text: &str, limit: usize) -> String {
    let mut clean = String::with_capacity(text.len().min(limit));
    for character in text.trim().chars() {
        let character = if character.is_control() { ' ' } else { character };
        if clean.len() + character.len_utf8() > limit {
            break;
        }
        clean.push(character);
    }
    clean
}

/// Bytes as base64 text, the standard alphabet with padding.
mod base64_bytes {
    use std::borrow::Cow;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        STANDARD.decode(text.as_bytes()).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;

//! A scripted QEMU for tests: it greets, then goes through its script one command after the other.
//!
//! The script is also a check: a command other than the expected one, or a script that is not
//! finished, is an error of [`FakeServer::finish`].

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use crate::descriptor;

/// What the server does in reaction to a command.
#[derive(Debug, Clone)]
pub enum Action {
    /// Answers the current command with success.
    Return(Value),
    /// Refuses the current command.
    Refuse { class: &'static str, description: &'static str },
    /// Sends an event.
    Event { name: &'static str, data: Value },
    /// Sends bytes as they are.
    Raw(Vec<u8>),
    /// Keeps the current command's id and answers it only at the next `AnswerHeld`.
    Hold,
    /// Answers the oldest held command.
    AnswerHeld(Value),
    /// Writes to the descriptor that came along with the current command, and closes it.
    WriteToDescriptor(Vec<u8>),
    /// Hangs up; the script ends here.
    Close,
}

/// One expected command and the reaction to it.
#[derive(Debug, Clone)]
pub struct Step {
    pub command: &'static str,
    /// Checked only when given.
    pub arguments: Option<Value>,
    pub actions: Vec<Action>,
}

impl Step {
    /// Expects `command` with any arguments and reacts with `actions`.
    #[must_use]
    pub fn new(command: &'static str, actions: Vec<Action>) -> Self {
        Self { command, arguments: None, actions }
    }

    /// Expects `command` and answers `value`.
    #[must_use]
    pub fn returns(command: &'static str, value: Value) -> Self {
        Self::new(command, vec![Action::Return(value)])
    }

    /// Expects exactly these arguments too.
    #[must_use]
    pub fn with_arguments(mut self, arguments: Value) -> Self {
        self.arguments = Some(arguments);
        self
    }
}

/// Why a script did not go through.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    #[error("cannot listen or speak on the fake monitor's socket")]
    Io(#[source] std::io::Error),
    #[error("a client's line is not JSON")]
    Json(#[source] serde_json::Error),
    #[error("expected `{expected}`, got {got}")]
    Unexpected { expected: String, got: Value },
    #[error("no descriptor came along with `{command}`")]
    NoDescriptor { command: String },
    #[error("the client hung up before `{expected}`")]
    HungUp { expected: String },
    #[error("the script was not finished within {limit:?}")]
    Unfinished { limit: Duration },
    #[error("the fake monitor's task failed")]
    Task(#[source] tokio::task::JoinError),
}

/// A listening fake monitor that serves one client.
#[derive(Debug)]
pub struct FakeServer {
    task: JoinHandle<Result<(), ScriptError>>,
}

/// The greeting of QEMU 10.0.2.
#[must_use]
pub fn greeting() -> Value {
    json!({"QMP": {
        "version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "fake"},
        "capabilities": ["oob"]
    }})
}

impl FakeServer {
    /// Listens at `path` and serves the first client: greeting, `qmp_capabilities`, `script`, and
    /// then silence until the client hangs up.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(path: &Path, script: Vec<Step>) -> Result<Self, ScriptError> {
        let listener = UnixListener::bind(path).map_err(ScriptError::Io)?;
        let task = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.map_err(ScriptError::Io)?;
            serve(stream, script).await
        });
        Ok(Self { task })
    }

    /// Listens at `path` and sends each client `bytes` and nothing else, then hangs up.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start_raw(path: &Path, bytes: Vec<u8>) -> Result<Self, ScriptError> {
        let listener = UnixListener::bind(path).map_err(ScriptError::Io)?;
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.map_err(ScriptError::Io)?;
            // The client may hang up at any byte: that is its verdict on them.
            drop(stream.write_all(&bytes).await);
            Ok(())
        });
        Ok(Self { task })
    }

    /// Waits for the script's end.
    ///
    /// # Errors
    /// The client strayed from the script, or did not go through it within `limit`.
    pub async fn finish(self, limit: Duration) -> Result<(), ScriptError> {
        match tokio::time::timeout(limit, self.task).await {
            Err(_) => Err(ScriptError::Unfinished { limit }),
            Ok(Err(error)) => Err(ScriptError::Task(error)),
            Ok(Ok(result)) => result,
        }
    }
}

async fn serve(stream: UnixStream, script: Vec<Step>) -> Result<(), ScriptError> {
    let (read, mut write) = stream.into_split();
    let mut reader = Reader(read);
    send(&mut write, &greeting()).await?;
    let mut held = Vec::new();
    let handshake = Step::returns("qmp_capabilities", json!({}));
    for step in std::iter::once(handshake).chain(script) {
        let Some(line) = reader.line().await? else {
            return Err(ScriptError::HungUp { expected: step.command.to_owned() });
        };
        let request: Value = serde_json::from_slice(&line.bytes).map_err(ScriptError::Json)?;
        let matches = request["execute"] == step.command
            && step.arguments.as_ref().is_none_or(|wanted| request["arguments"] == *wanted);
        if !matches {
            let expected = step.command.to_owned();
            return Err(ScriptError::Unexpected { expected, got: request });
        }
        let mut descriptors = line.descriptors;
        for action in step.actions {
            if let Action::WriteToDescriptor(bytes) = action {
                let descriptor = descriptors.pop().ok_or_else(|| ScriptError::NoDescriptor {
                    command: step.command.to_owned(),
                })?;
                std::fs::File::from(descriptor).write_all(&bytes).map_err(ScriptError::Io)?;
            } else if !act(action, &request["id"], &mut held, &mut write).await? {
                return Ok(());
            }
        }
    }
    while reader.line().await?.is_some() {}
    Ok(())
}

/// One line of the client, and the descriptors that came with its bytes.
struct ClientLine {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

struct Reader(OwnedReadHalf);

impl Reader {
    /// The next line, without its end; `None` once the client has hung up.
    ///
    /// The kernel ends a read after bytes that descriptors came with, but not before them: like QEMU,
    /// it is read byte by byte, so that each descriptor is found with its own line.
    async fn line(&mut self) -> Result<Option<ClientLine>, ScriptError> {
        let mut line = ClientLine { bytes: Vec::new(), descriptors: Vec::new() };
        loop {
            let mut byte = [0];
            let received = descriptor::receive(self.0.as_ref(), &mut byte).await;
            // A client that hangs up with answers unread resets the connection.
            let (count, descriptors) = match received {
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    (0, Vec::new())
                }
                received => received.map_err(ScriptError::Io)?,
            };
            line.descriptors.extend(descriptors);
            match byte {
                _ if count == 0 => return Ok(None),
                [b'\n'] => return Ok(Some(line)),
                [byte] => line.bytes.push(byte),
            }
        }
    }
}

/// Does one action; false when the connection is to be closed.
async fn act(
    action: Action,
    id: &Value,
    held: &mut Vec<Value>,
    write: &mut OwnedWriteHalf,
) -> Result<bool, ScriptError> {
    match action {
        Action::Return(value) => send(write, &json!({"return": value, "id": id})).await?,
        Action::Refuse { class, description } => {
            let error = json!({"class": class, "desc": description});
            send(write, &json!({"error": error, "id": id})).await?;
        }
        Action::Event { name, data } => {
            let timestamp = json!({"seconds": 1, "microseconds": 2});
            send(write, &json!({"event": name, "data": data, "timestamp": timestamp})).await?;
        }
        Action::Raw(bytes) => write.write_all(&bytes).await.map_err(ScriptError::Io)?,
        Action::Hold => held.push(id.clone()),
        Action::AnswerHeld(value) => {
            if !held.is_empty() {
                let id = held.remove(0);
                send(write, &json!({"return": value, "id": id})).await?;
            }
        }
        // Done by the caller, who has the descriptors.
        Action::WriteToDescriptor(_) => {}
        Action::Close => return Ok(false),
    }
    Ok(true)
}

async fn send(write: &mut OwnedWriteHalf, value: &Value) -> Result<(), ScriptError> {
    let line = format!("{value}\r\n");
    write.write_all(line.as_bytes()).await.map_err(ScriptError::Io)
}

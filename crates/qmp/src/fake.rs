//! A scripted QEMU for tests: it greets, then goes through its script one command after the other.
//!
//! The script is also a check: a command other than the expected one, or a script that is not
//! finished, is an error of [`FakeServer::finish`].

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

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
    let mut reader = BufReader::new(read);
    send(&mut write, &greeting()).await?;
    let mut held = Vec::new();
    let handshake = Step::returns("qmp_capabilities", json!({}));
    for step in std::iter::once(handshake).chain(script) {
        let mut line = String::new();
        if reader.read_line(&mut line).await.map_err(ScriptError::Io)? == 0 {
            return Err(ScriptError::HungUp { expected: step.command.to_owned() });
        }
        let request: Value = serde_json::from_str(&line).map_err(ScriptError::Json)?;
        let matches = request["execute"] == step.command
            && step.arguments.as_ref().is_none_or(|wanted| request["arguments"] == *wanted);
        if !matches {
            let expected = step.command.to_owned();
            return Err(ScriptError::Unexpected { expected, got: request });
        }
        for action in step.actions {
            if !act(action, &request["id"], &mut held, &mut write).await? {
                return Ok(());
            }
        }
    }
    let mut rest = Vec::new();
    drop(reader.read_to_end(&mut rest).await);
    Ok(())
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
        Action::Close => return Ok(false),
    }
    Ok(true)
}

async fn send(write: &mut OwnedWriteHalf, value: &Value) -> Result<(), ScriptError> {
    let line = format!("{value}\r\n");
    write.write_all(line.as_bytes()).await.map_err(ScriptError::Io)
}

//! Runs the host's own tools (`ip`, `bridge`, `tc`, `nft`, `qemu-img`): no shell, bounded in time
//! and output, with what the tool said in the error.

use std::{
    ffi::{OsStr, OsString},
    io,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    time::timeout,
};

/// Far more than any tool prints about one thing; a listing of 10,000 devices is some 15 MiB.
const LONGEST_OUTPUT: usize = 32 << 20;
const LONGEST_STDERR: usize = 4 << 10;

/// Why a tool did not do what it was asked.
#[derive(Debug, Error)]
pub enum CommandError {
    /// It is not there, or may not be run.
    #[error("cannot start `{program}`")]
    Start {
        /// The tool.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Its input or output broke.
    #[error("lost touch with `{command}`")]
    Talk {
        /// The command line.
        command: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It took too long and was killed.
    #[error("`{command}` did not finish in {} ms", limit.as_millis())]
    TimedOut {
        /// The command line.
        command: String,
        /// How long it had.
        limit: Duration,
    },
    /// It said no.
    #[error("`{command}` failed ({status}): {stderr}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to its standard error, shortened.
        stderr: String,
    },
    /// It printed more than can be right.
    #[error("`{command}` printed more than {LONGEST_OUTPUT} bytes")]
    TooMuchOutput {
        /// The command line.
        command: String,
    },
    /// It printed something else than it is documented to.
    #[error("cannot understand what `{command}` printed")]
    Output {
        /// The command line.
        command: String,
        /// Where it deviates.
        #[source]
        source: serde_json::Error,
    },
}

impl CommandError {
    /// Whether the tool ran, failed, and said something that contains `text`.
    #[must_use]
    pub fn says(&self, text: &str) -> bool {
        matches!(self, Self::Failed { stderr, .. } if stderr.contains(text))
    }

    /// Whether the tool is not installed.
    #[must_use]
    pub fn is_missing_program(&self) -> bool {
        matches!(self, Self::Start { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// One run of a tool.
#[derive(Debug)]
pub(crate) struct Tool {
    program: OsString,
    arguments: Vec<OsString>,
    input: Vec<u8>,
    limit: Duration,
}

impl Tool {
    /// A tool that has ten seconds: all of these answer in milliseconds on a healthy host.
    pub(crate) fn new<A: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        let arguments = arguments.into_iter().map(|text| text.as_ref().to_owned()).collect();
        let program = program.as_ref().to_owned();
        Self { program, arguments, input: Vec::new(), limit: Duration::from_secs(10) }
    }

    pub(crate) fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    pub(crate) fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    fn command_line(&self) -> String {
        let mut line = self.program.to_string_lossy().into_owned();
        for argument in &self.arguments {
            line.push(' ');
            line.push_str(&argument.to_string_lossy());
        }
        line
    }

    /// Runs it and returns what it printed.
    pub(crate) async fn run(self) -> Result<Vec<u8>, CommandError> {
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| CommandError::Start {
                program: self.program.to_string_lossy().into_owned(),
                source,
            })?;
        let talk = talk(&mut child, &self.input);
        let (status, stdout, stderr) = match timeout(self.limit, talk).await {
            Ok(said) => {
                said.map_err(|source| CommandError::Talk { command: self.command_line(), source })?
            }
            Err(_) => {
                // Killed here and not only on drop, so that it is reaped before the next attempt.
                let _ = child.kill().await;
                return Err(CommandError::TimedOut {
                    command: self.command_line(),
                    limit: self.limit,
                });
            }
        };
        if stdout.len() > LONGEST_OUTPUT {
            return Err(CommandError::TooMuchOutput { command: self.command_line() });
        }
        if status.success() {
            return Ok(stdout);
        }
        let stderr = String::from_utf8_lossy(&stderr).trim().replace('\n', "; ");
        Err(CommandError::Failed { command: self.command_line(), status, stderr })
    }

    /// Runs it and reads what it printed as JSON; nothing printed counts as an empty list.
    pub(crate) async fn json<T: serde::de::DeserializeOwned>(self) -> Result<T, CommandError> {
        let command = self.command_line();
        let stdout = self.run().await?;
        let text: &[u8] = if stdout.trim_ascii().is_empty() { b"[]" } else { &stdout };
        serde_json::from_slice(text).map_err(|source| CommandError::Output { command, source })
    }
}

async fn talk(child: &mut Child, input: &[u8]) -> io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            match stdin.write_all(input).await {
                // A tool that has seen enough may close early; its exit status counts.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
                _ => {}
            }
        }
        Ok(())
    };
    let ((), stdout, stderr) =
        tokio::try_join!(write, read(stdout, LONGEST_OUTPUT + 1), read(stderr, LONGEST_STDERR))?;
    Ok((child.wait().await?, stdout, stderr))
}

/// Reads to the end, but keeps only the first bytes: a tool must not block on a full pipe.
async fn read(from: Option<impl AsyncRead + Unpin>, keep: usize) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let Some(mut from) = from else { return Ok(kept) };
    let mut buffer = vec![0; 16 << 10];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(kept);
        }
        let room = keep.saturating_sub(kept.len()).min(count);
        kept.extend_from_slice(&buffer[..room]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_tool_says_and_how_it_ends_is_kept() {
        let out = Tool::new("cat", [""; 0]).input("hello").run().await.unwrap();
        assert_eq!(out, b"hello");
        let error = Tool::new("sh", ["-c", "echo no way >&2; exit 3"]).run().await.unwrap_err();
        assert!(error.says("no way"), "{error}");
        assert!(error.to_string().contains("exit status: 3"), "{error}");
        let error = Tool::new("plimsoll-no-such-tool", [""; 0]).run().await.unwrap_err();
        assert!(error.is_missing_program());
        let error = Tool::new("echo", ["{"]).json::<serde_json::Value>().await.unwrap_err();
        assert!(matches!(error, CommandError::Output { .. }));
    }

    #[tokio::test]
    async fn a_tool_that_hangs_is_ended() {
        let limit = Duration::from_millis(50);
        let error = Tool::new("sleep", ["100"]).limit(limit).run().await.unwrap_err();
        assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
    }
}

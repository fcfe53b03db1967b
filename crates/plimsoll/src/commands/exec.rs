//! `plimsoll vm exec`, `logs` and `console`.

use std::io::{IsTerminal as _, Read as _};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::StreamExt as _;
use nix::sys::termios::{self, SetArg, Termios};
use plimsoll_api::{
    agent::{ExecRequest, LogQuery, LogSource},
    client::Console,
};
use plimsoll_model::{Bytes, Name};
use serde::Serialize;
use tokio::io::AsyncReadExt as _;

use crate::{
    cli::vm::{ExecArgs, LogsArgs},
    config::Connection,
    failure::{FAILED, Failure, OrFail as _, Outcome},
    output::{self, Output},
};

/// The most that a program in a VM can be given to read.
const MOST_INPUT: usize = 256 << 10;
/// What `timeout(1)` answers too.
const TIMED_OUT: u8 = 124;
/// Ctrl-].
const ESCAPE: u8 = 0x1d;

/// What came of a program, for programs.
#[derive(Serialize)]
struct Executed<'a> {
    exit_code: Option<i32>,
    signal: Option<i32>,
    timed_out: bool,
    stdout: &'a str,
    stderr: &'a str,
    truncated: bool,
}

/// Runs a program in a VM; its exit code is ours.
pub(crate) async fn exec(args: &ExecArgs, connection: &Connection, output: Output) -> Outcome<u8> {
    let project = connection.project()?;
    let timeout_ms = u64::try_from(args.timeout.as_millis()).unwrap_or(u64::MAX);
    if timeout_ms == 0 || timeout_ms > 600_000 {
        return Err(Failure::usage("--timeout must be more than nothing and at most 10m"));
    }
    let mut input = Vec::new();
    if args.stdin {
        std::io::stdin().lock().take(MOST_INPUT as u64 + 1).read_to_end(&mut input)?;
        if input.len() > MOST_INPUT {
            return Err(Failure::usage("standard input is longer than 256 KiB")
                .hint("a network of the project carries more"));
        }
    }
    let request =
        ExecRequest { argv: args.argv.clone(), stdin: STANDARD.encode(input), timeout_ms };
    let name = &args.name;
    let response = connection
        .client
        .exec(&project, name, &request)
        .await
        .or_fail(|| format!("cannot run `{}` in vm `{name}`", args.argv[0]))?;
    let decode = |text: &str| {
        STANDARD.decode(text).or_fail(|| "cannot understand what the program wrote".to_owned())
    };
    let (stdout, stderr) = (decode(&response.stdout)?, decode(&response.stderr)?);
    if output.is_json() {
        output.json(&Executed {
            exit_code: response.exit_code,
            signal: response.signal,
            timed_out: response.timed_out,
            stdout: &String::from_utf8_lossy(&stdout),
            stderr: &String::from_utf8_lossy(&stderr),
            truncated: response.truncated,
        })?;
    } else {
        output.bytes(&stdout)?;
        output::talk_bytes(&stderr);
        if response.truncated {
            output::talk("plimsoll: the program wrote more than 256 KiB; the rest was cut off");
        }
        if response.timed_out {
            output::talk("plimsoll: the program was ended because its time was over (--timeout)");
        }
    }
    Ok(match (response.timed_out, response.exit_code, response.signal) {
        (true, _, _) => TIMED_OUT,
        (_, Some(code), _) => u8::try_from(code).unwrap_or(FAILED),
        (_, None, Some(signal)) => u8::try_from(128 + signal).unwrap_or(FAILED),
        (_, None, None) => FAILED,
    })
}

/// Prints a VM's log.
pub(crate) async fn logs(args: &LogsArgs, connection: &Connection, output: Output) -> Outcome {
    let project = connection.project()?;
    if args.tail > Bytes::mib(4) {
        return Err(Failure::usage("--tail may be at most 4MiB"));
    }
    if args.follow && output.is_json() {
        return Err(Failure::usage("--follow and --json do not go together for a log of bytes"));
    }
    let what = || format!("cannot read the log of vm `{}`", args.name);
    let source = if args.source == "qemu" { LogSource::Qemu } else { LogSource::Console };
    let query = LogQuery { source, tail_bytes: Some(args.tail.0), follow: args.follow };
    let mut stream = connection.client.logs(&project, &args.name, &query).await.or_fail(what)?;
    let mut whole = Vec::new();
    loop {
        let chunk = tokio::select! {
            chunk = stream.next() => chunk,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(chunk) = chunk else { break };
        let chunk = chunk.or_fail(what)?;
        if output.is_json() {
            whole.extend_from_slice(&chunk);
        } else if output.is_terminal() {
            output.bytes(&printable(&chunk))?;
        } else {
            output.bytes(&chunk)?;
        }
    }
    if output.is_json() {
        let log = String::from_utf8_lossy(&whole);
        output.json(&serde_json::json!({ "vm": args.name, "source": args.source, "log": log }))?;
    }
    Ok(())
}

/// What a terminal may be given of a guest's log: no control characters but those that lay lines out,
/// or a guest could retitle, clear or question the terminal of whoever reads its log.
fn printable(chunk: &[u8]) -> Vec<u8> {
    let keep = |byte: &u8| !byte.is_ascii_control() || matches!(byte, b'\n' | b'\r' | b'\t');
    chunk.iter().copied().filter(keep).collect()
}

/// A terminal that sends every key as it is; the old one comes back when this goes.
struct RawTerminal {
    before: Option<Termios>,
}

impl RawTerminal {
    fn enter() -> Outcome<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(Self { before: None });
        }
        let before = termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
        Ok(Self { before: Some(before) })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// Attaches to a VM's serial console.
pub(crate) async fn console(name: &Name, connection: &Connection, output: Output) -> Outcome {
    if output.is_json() {
        return Err(Failure::usage("a console has no JSON form")
            .hint("`plimsoll vm logs --json` prints what the guest wrote to it"));
    }
    let project = connection.project()?;
    let console = connection
        .client
        .console(&project, name)
        .await
        .or_fail(|| format!("cannot attach to the console of vm `{name}`"))?;
    output::talk(&format!("attached to vm {name}; Ctrl-] leaves"));
    let terminal = RawTerminal::enter()?;
    let result = carry(console, output).await;
    drop(terminal);
    output::talk("\nleft the console");
    result
}

/// Carries bytes both ways until one side ends.
async fn carry(console: Console, output: Output) -> Outcome {
    let (mut sender, mut receiver) = console.split();
    let mut stdin = tokio::io::stdin();
    let mut keys = [0; 1024];
    let mut reading = true;
    loop {
        tokio::select! {
            count = stdin.read(&mut keys), if reading => {
                let typed = &keys[..count?];
                if typed.is_empty() {
                    // What was piped in is over; the guest may still answer.
                    reading = false;
                    continue;
                }
                let end = typed.iter().position(|key| *key == ESCAPE);
                let send = &typed[..end.unwrap_or(typed.len())];
                if !send.is_empty() {
                    sender.send(send.to_vec().into()).await?;
                }
                if end.is_some() {
                    let _ = sender.close().await;
                    return Ok(());
                }
            }
            bytes = receiver.receive() => match bytes? {
                Some(bytes) => output.bytes(&bytes)?,
                None => return Ok(()),
            },
        }
    }
}

//! Runs one command: bounded in time and in output, its process group killed when time is up.
//!
//! ```text
//!   running --exit--> draining --both pipes closed, or GRACE over--> done
//!      |
//!      +--deadline--> killed --exit--> draining ...
//! ```
//!
//! A command has ended when its own process has. Processes that it left in the background go on; if
//! they still hold its output, what they write after [`GRACE`] is lost. On timeout the whole process
//! group is killed; a process that has left the group (a daemon) is not.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use plimsoll_api::guest::{ExecRequest, ExecResult};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// How long a command that has ended may still be heard through pipes that others hold open.
pub const GRACE: Duration = Duration::from_millis(200);
/// How long a killed command may take to disappear; longer means it hangs in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// The search path where the agent's own environment has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It could not be started.
    #[error("cannot start {program}")]
    Start {
        /// Its first argument.
        program: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Its pipes or its process could not be watched; it was killed.
    #[error("cannot watch {program}")]
    Watch {
        /// Its first argument.
        program: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Runs a command to its end or to its time limit.
///
/// # Errors
/// It could not be started or not be watched. A command that ran and failed is a result.
pub fn run(request: &ExecRequest) -> Result<ExecResult, ExecError> {
    let Some((program, arguments)) = request.argv.split_first() else {
        let source = io::Error::from(io::ErrorKind::InvalidInput);
        return Err(ExecError::Start { program: String::new(), source });
    };
    let started = Instant::now();
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/").process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, value) in [("PATH", DEFAULT_PATH), ("HOME", "/root")] {
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    command.envs(request.env.iter().map(|variable| (&variable.name, &variable.value)));
    let mut child =
        command.spawn().map_err(|source| ExecError::Start { program: program.clone(), source })?;
    match Watch::new(&mut child, request, started).and_then(Watch::finish) {
        Ok((watch, ended)) => {
            let status = if ended { child.wait().ok() } else { None };
            if !ended {
                // It hangs in the kernel: its remains are collected whenever it comes back.
                std::thread::spawn(move || child.wait());
            }
            Ok(watch.into_result(status, started))
        }
        Err(source) => {
            // An error here only means that it is gone already.
            let _ = child.kill();
            let _ = child.wait();
            Err(ExecError::Watch { program: program.clone(), source })
        }
    }
}

/// One output stream: what is kept of it, and whether there was more.
#[derive(Debug)]
struct Capture {
    pipe: Option<File>,
    kept: Vec<u8>,
    limit: usize,
    truncated: bool,
}

impl Capture {
    fn new(pipe: Option<impl Into<OwnedFd>>, limit: u32) -> io::Result<Self> {
        let pipe = pipe.map(|pipe| nonblocking(pipe.into())).transpose()?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Ok(Self { pipe, kept: Vec::new(), limit, truncated: false })
    }

    /// Reads once, which poll said will not block.
    fn read(&mut self, buffer: &mut [u8]) {
        let Some(pipe) = &mut self.pipe else { return };
        match pipe.read(buffer) {
            Ok(0) => self.pipe = None,
            Ok(count) => {
                let room = self.limit - self.kept.len();
                self.kept.extend_from_slice(&buffer[..count.min(room)]);
                self.truncated |= count > room;
            }
            Err(error) if is_transient(&error) => {}
            Err(_) => self.pipe = None,
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn nonblocking(pipe: OwnedFd) -> io::Result<File> {
    let flags = rustix::fs::fcntl_getfl(&pipe)?;
    rustix::fs::fcntl_setfl(&pipe, flags | OFlags::NONBLOCK)?;
    Ok(File::from(pipe))
}

/// A command being watched.
struct Watch<'a> {
    group: Pid,
    process: OwnedFd,
    stdin: Option<File>,
    unwritten: &'a [u8],
    stdout: Capture,
    stderr: Capture,
    deadline: Instant,
    timed_out: bool,
}

impl<'a> Watch<'a> {
    fn new(child: &mut Child, request: &'a ExecRequest, started: Instant) -> io::Result<Self> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let group = pid.ok_or(io::ErrorKind::InvalidData)?;
        let stdin = child.stdin.take().map(|pipe| nonblocking(pipe.into())).transpose()?;
        Ok(Self {
            group,
            process: pidfd_open(group, PidfdFlags::empty())?,
            stdin,
            unwritten: &request.stdin,
            stdout: Capture::new(child.stdout.take(), request.max_output_bytes)?,
            stderr: Capture::new(child.stderr.take(), request.max_output_bytes)?,
            deadline: started + Duration::from_millis(request.timeout_ms),
            timed_out: false,
        })
    }

    /// Feeds and reads the command until it has ended; says whether it really did.
    fn finish(mut self) -> io::Result<(Self, bool)> {
        let mut buffer = vec![0; 64 << 10];
        let mut ended = false;
        loop {
            if self.unwritten.is_empty() {
                self.stdin = None;
            }
            if ended && self.stdout.pipe.is_none() && self.stderr.pipe.is_none() {
                return Ok((self, true));
            }
            let now = Instant::now();
            if now >= self.deadline {
                if ended {
                    return Ok((self, true));
                }
                if self.timed_out {
                    return Ok((self, false));
                }
                self.timed_out = true;
                self.deadline = now + KILL_LIMIT;
                // The child is not reaped yet, so its group's id still means this group.
                let _ = kill_process_group(self.group, Signal::KILL);
            }
            if self.step(&mut buffer, !ended, self.deadline.saturating_duration_since(now))? {
                ended = true;
                self.stdin = None;
                self.deadline = Instant::now() + GRACE;
            }
        }
    }

    /// Waits for one of the descriptors and serves those that are ready; true if the process ended.
    fn step(&mut self, buffer: &mut [u8], alive: bool, limit: Duration) -> io::Result<bool> {
        // An ended process's descriptor stays readable: it would turn the grace time into a spin.
        let process = alive.then(|| self.process.as_fd());
        let sources = [
            (self.stdin.as_ref().map(AsFd::as_fd), PollFlags::OUT),
            (self.stdout.pipe.as_ref().map(AsFd::as_fd), PollFlags::IN),
            (self.stderr.pipe.as_ref().map(AsFd::as_fd), PollFlags::IN),
            (process, PollFlags::IN),
        ];
        let mut ready = [false; 4];
        let mut places = Vec::with_capacity(4);
        let mut fds = Vec::with_capacity(4);
        for (place, (fd, flags)) in sources.into_iter().enumerate() {
            if let Some(fd) = fd {
                places.push(place);
                fds.push(PollFd::from_borrowed_fd(fd, flags));
            }
        }
        wait(&mut fds, limit)?;
        for (place, fd) in places.into_iter().zip(&fds) {
            ready[place] = !fd.revents().is_empty();
        }
        if ready[0] {
            self.feed();
        }
        if ready[1] {
            self.stdout.read(buffer);
        }
        if ready[2] {
            self.stderr.read(buffer);
        }
        Ok(ready[3])
    }

    fn feed(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        match stdin.write(self.unwritten) {
            Ok(count) => self.unwritten = &self.unwritten[count..],
            Err(error) if is_transient(&error) => {}
            // The command does not want the rest.
            Err(_) => self.unwritten = &[],
        }
    }

    fn into_result(self, status: Option<ExitStatus>, started: Instant) -> ExecResult {
        ExecResult {
            exit_code: status.and_then(|status| status.code()),
            signal: status.and_then(|status| status.signal()),
            timed_out: self.timed_out,
            stdout: self.stdout.kept,
            stderr: self.stderr.kept,
            stdout_truncated: self.stdout.truncated,
            stderr_truncated: self.stderr.truncated,
            duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Waits until a descriptor is ready or the time is over; an interruption counts as ready.
pub(crate) fn wait(fds: &mut [PollFd<'_>], limit: Duration) -> io::Result<()> {
    // A bound that every tv_sec can hold; callers come back anyway.
    let limit = Timespec::try_from(limit.min(Duration::from_secs(3600)))
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    match poll(fds, Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests;

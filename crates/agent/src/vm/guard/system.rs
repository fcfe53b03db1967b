//! The system calls of the guard that need care.
#![expect(unsafe_code, reason = "fork has no safe form")]

use std::io;
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::{ForkResult, Pid};

/// In which process we are after a fork.
pub(crate) enum Forked {
    Parent(Pid),
    Child,
}

/// Splits this process, which must have a single thread.
///
/// # Errors
/// The kernel has no process left, or this process has several threads.
pub(crate) fn fork() -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        let text = format!("a process with {threads} threads must not fork");
        return Err(io::Error::other(text));
    }
    // SAFETY: there is no other thread (checked above) that could hold a lock or be in the middle
    // of an allocation, so the child may do whatever this process may.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Forked::Parent(child)),
        ForkResult::Child => Ok(Forked::Child),
    }
}

/// Gives `file` the descriptor `number` too, to be inherited by the next program.
///
/// # Errors
/// The number is in use.
pub(crate) fn inherit_as(file: impl AsFd, number: i32) -> io::Result<()> {
    let got = fcntl(file.as_fd(), FcntlArg::F_DUPFD(number))?;
    if got == number {
        return Ok(());
    }
    nix::unistd::close(got)?;
    Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("descriptor {number} is in use")))
}

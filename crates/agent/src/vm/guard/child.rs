//! From a fork to QEMU's program.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Gid, Pid, Uid};

use super::GuardError;
use super::record::Launch;
use super::system::{self, Forked};

/// Starts QEMU. `before` gets its process id and must succeed before its program begins. Returns
/// when the program has begun.
pub(super) fn start(
    launch: &Launch,
    qemu_lock: &File,
    before: impl FnOnce(i32) -> Result<(), GuardError>,
) -> Result<Pid, GuardError> {
    let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| GuardError::Fork(e.into()));
    let (go_reader, go_writer) = pipe()?;
    let (failure_reader, failure_writer) = pipe()?;
    let guard = nix::unistd::getpid();
    match system::fork().map_err(GuardError::Fork)? {
        Forked::Parent(pid) => {
            drop((go_reader, failure_writer));
            if let Err(error) = before(pid.as_raw()) {
                // Without the word to go the child ends by itself.
                drop(go_writer);
                let _ = nix::sys::wait::waitpid(pid, None);
                return Err(error);
            }
            File::from(go_writer).write_all(b"g").map_err(GuardError::Fork)?;
            let mut message = String::new();
            // Ends when the program begins, which closes the other end, or with the child.
            File::from(failure_reader).read_to_string(&mut message).map_err(GuardError::Fork)?;
            if message.is_empty() {
                return Ok(pid);
            }
            let _ = nix::sys::wait::waitpid(pid, None);
            Err(GuardError::Exec { message })
        }
        Forked::Child => {
            drop((go_writer, failure_reader));
            let error = become_qemu(launch, qemu_lock, go_reader, guard);
            drop(File::from(failure_writer).write_all(error.to_string().as_bytes()));
            // Nothing of the guard may run here: no destructors, no exit handlers.
            kill_self();
        }
    }
}

fn kill_self() -> ! {
    loop {
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), Signal::SIGKILL);
    }
}

/// Returns only when it fails.
fn become_qemu(launch: &Launch, qemu_lock: &File, go: OwnedFd, guard: Pid) -> io::Error {
    match try_become_qemu(launch, qemu_lock, go, guard) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn try_become_qemu(
    launch: &Launch,
    qemu_lock: &File,
    go: OwnedFd,
    guard: Pid,
) -> io::Result<std::convert::Infallible> {
    let mut word = [0];
    File::from(go).read_exact(&mut word)?;
    fcntl(qemu_lock, FcntlArg::F_SETFD(FdFlag::empty()))?;
    std::env::set_current_dir("/")?;
    // A core dump would hold the guest's memory.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    if let Some(user) = &launch.user {
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        nix::unistd::setgroups(&[])?;
        nix::unistd::setresgid(gid, gid, gid)?;
        nix::unistd::setresuid(uid, uid, uid)?;
    }
    nix::sys::prctl::set_no_new_privs()?;
    // After the change of user, which would clear it; it survives exec.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if nix::unistd::getppid() != guard {
        return Err(io::Error::other("the guard died"));
    }
    SigSet::empty().thread_set_mask()?;
    let text = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::other);
    let program = text(launch.program.as_os_str().as_bytes())?;
    let mut arguments = vec![program.clone()];
    for argument in &launch.arguments {
        arguments.push(text(argument.as_bytes())?);
    }
    let environment = [c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"];
    Ok(nix::unistd::execve(&program, &arguments, &environment)?)
}

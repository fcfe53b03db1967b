//! The guard: a tiny process between the agent and a VM's QEMU, one for each VM.
//!
//! ```text
//!   agent --runs--> plimsoll vm-guard --directory DIR     takes the locks and the launch file,
//!                      | fork                             opens everything, answers by its exit
//!                      v
//!                    guard (own session, adopted by init) --fork--> QEMU (PDEATHSIG = KILL)
//!                      | guard.json before QEMU's program begins
//!                      | every 500 ms: lease, size of logs
//!                      | exit.json when QEMU has ended, then the locks go
//! ```
//!
//! - The agent may die at any instant: the guard and QEMU go on.
//! - The guard may die at any instant: the kernel kills QEMU.
//! - One start per launch file: it is taken away under the lock, so that a guard which the agent
//!   has given up on cannot start anything later.
//! - Under the marker file `fenced`, QEMU is killed when the host's lease has run out, whether or
//!   not anything else of ours lives.
//! - QEMU opens nothing itself: disks, logs, sockets and taps are opened here and inherited. So it
//!   can run as a user without rights on any file.
//!
//! No runtime, no threads: one page table, some 100 KiB of its own memory.

pub mod record;

mod child;
pub(crate) mod lock;
mod system;
pub(crate) mod watch;

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use plimsoll_api::ErrorChain;
use plimsoll_model::Timestamp;
use thiserror::Error;

use self::record::{
    Access, ExitReason, ExitRecord, GuardRecord, Launch, ProcessId, Source, VmDirectory, name,
};
use super::files::{self, FileError};
use super::lease::{BootTime, Lease};

/// The guard's exit status when the VM's locks are held: another guard lives.
pub const EXIT_HELD: u8 = 3;

/// Why the guard did not start QEMU.
#[derive(Debug, Error)]
pub enum GuardError {
    /// The directory is not there or not ours.
    #[error("cannot enter the VM's directory {}", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The state of the VM's locks is not known.
    #[error("cannot take the VM's lock `{name}`")]
    Lock {
        name: &'static str,
        #[source]
        source: io::Error,
    },
    /// There is no permission to start.
    #[error("there is no launch file: nothing may be started")]
    NoLaunch,
    /// A file of the VM could not be read or written.
    #[error("cannot keep the VM's record")]
    Record(#[source] FileError),
    /// The launch file could not be taken, or an old record not removed.
    #[error("cannot take the launch file")]
    TakeLaunch(#[source] io::Error),
    /// One of QEMU's files could not be opened.
    #[error("cannot open {what} for QEMU")]
    Open {
        what: String,
        #[source]
        source: io::Error,
    },
    /// The host's lease has run out, or had before the wish to start was heard.
    #[error("the host has no lease for it: a VM that may run elsewhere is not started")]
    NoLease,
    /// The kernel refused a step on the way to the daemon.
    #[error("cannot become the VM's guard")]
    Daemon(#[source] io::Error),
    /// QEMU's process could not be made.
    #[error("cannot make QEMU's process")]
    Fork(#[source] io::Error),
    /// QEMU's program could not be begun.
    #[error("cannot run QEMU: {message}")]
    Exec { message: String },
    /// QEMU could not be watched.
    #[error("cannot watch QEMU")]
    Watch(#[source] io::Error),
}

/// Runs as the guard of the VM whose directory is `directory`: the body of the hidden verb
/// `plimsoll vm-guard --directory DIR`. Call it before any thread is made. Returns in two
/// processes: soon in the caller's (QEMU runs, or it could not be started), and in the daemon when
/// QEMU has ended.
///
/// The exit status is 0 on success, [`EXIT_HELD`] if the VM's guard or QEMU lives already.
///
/// # Errors
/// [`GuardError`]: QEMU was not started, or is dead again.
pub fn guard_main(directory: &Path) -> Result<ExitCode, GuardError> {
    let entered = std::env::set_current_dir(directory);
    entered.map_err(|source| GuardError::Directory { path: directory.to_owned(), source })?;
    // From here on all names are relative: unix sockets allow no more than 107 bytes of path.
    let directory = VmDirectory::new(PathBuf::new());
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let Some(guard_lock) = take_lock(name::GUARD_LOCK)? else {
        return Ok(ExitCode::from(EXIT_HELD));
    };
    let Some(qemu_lock) = take_lock(name::QEMU_LOCK)? else {
        return Ok(ExitCode::from(EXIT_HELD));
    };
    let launch = take_launch(&directory)?;
    check_lease(&directory, &launch)?;
    let log = open_log(&directory.file(name::QEMU_LOG))?;
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|error| GuardError::Daemon(error.into()))?;
    match system::fork().map_err(GuardError::Daemon)? {
        system::Forked::Parent(_) => {
            drop(writer);
            parent_verdict(reader)
        }
        system::Forked::Child => {
            drop(reader);
            let mut verdict = File::from(writer);
            let result = daemon(&directory, &launch, log, &qemu_lock, &mut verdict);
            if let Err(error) = &result {
                report_failure(&directory, &launch, error, &mut verdict);
            }
            drop(guard_lock);
            // Whoever started us has its answer; nobody looks at the daemon's own status.
            result.map(|()| ExitCode::SUCCESS)
        }
    }
}

fn take_lock(name: &'static str) -> Result<Option<File>, GuardError> {
    lock::take(Path::new(name)).map_err(|source| GuardError::Lock { name, source })
}

fn take_launch(directory: &VmDirectory) -> Result<Launch, GuardError> {
    let path = directory.file(name::LAUNCH);
    let launch: Launch =
        files::read_json(&path).map_err(GuardError::Record)?.ok_or(GuardError::NoLaunch)?;
    let take = || {
        files::remove(&directory.file(name::EXIT))?;
        fs_err::rename(&path, directory.file(name::LAUNCHED))?;
        files::sync_directory(directory.path())
    };
    take().map_err(GuardError::TakeLaunch)?;
    Ok(launch)
}

/// A VM under the marker `fenced` starts only if the lease allows it.
fn check_lease(directory: &VmDirectory, launch: &Launch) -> Result<(), GuardError> {
    if !is_fenced(directory) {
        return Ok(());
    }
    let boot_id = files::boot_id().map_err(GuardError::Watch)?;
    let allowed = Lease::read(&launch.lease_file)
        .is_some_and(|lease| lease.allows_start(&boot_id, BootTime::now(), launch.asked_at));
    if allowed { Ok(()) } else { Err(GuardError::NoLease) }
}

/// Whether the VM may run only under the host's lease: also where that cannot be told.
fn is_fenced(directory: &VmDirectory) -> bool {
    directory.file(name::FENCED).try_exists().unwrap_or(true)
}

fn open_log(path: &Path) -> Result<File, GuardError> {
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|source| GuardError::Open { what: format!("the log {}", path.display()), source })
}

/// The first process waits for the daemon's word: nothing means that QEMU runs.
fn parent_verdict(reader: OwnedFd) -> Result<ExitCode, GuardError> {
    let mut message = String::new();
    File::from(reader).read_to_string(&mut message).map_err(GuardError::Daemon)?;
    match message.as_str() {
        "running" => Ok(ExitCode::SUCCESS),
        "" => Err(GuardError::Exec { message: "the guard died".to_owned() }),
        _ => Err(GuardError::Exec { message }),
    }
}

fn report_failure(
    directory: &VmDirectory,
    launch: &Launch,
    error: &GuardError,
    verdict: &mut File,
) {
    let message = ErrorChain(error).to_string();
    let reason = ExitReason::NotStarted { message: message.clone() };
    // Both are for whoever asks later; the locks, which go now, are what counts.
    drop(write_exit(directory, launch, reason));
    drop(verdict.write_all(message.as_bytes()));
}

pub(crate) fn write_exit(
    directory: &VmDirectory,
    launch: &Launch,
    reason: ExitReason,
) -> Result<(), FileError> {
    let record = ExitRecord { launch: launch.number, reason, at: Timestamp::now() };
    files::write_json(&directory.file(name::EXIT), &record)
}

/// The daemon's whole life.
fn daemon(
    directory: &VmDirectory,
    launch: &Launch,
    log: File,
    qemu_lock: &File,
    verdict: &mut File,
) -> Result<(), GuardError> {
    detach(&log)?;
    let watcher = watch::Watcher::new(directory, launch)?;
    let opened = open_all(launch)?;
    let qemu = child::start(launch, qemu_lock, |pid| {
        write_record(directory, launch, pid)?;
        join_groups(launch, pid);
        // Again, as late as can be: to open a disk on storage that hangs can take any time, and
        // meanwhile the VM may have been given to another host.
        check_lease(directory, launch)
    })?;
    // QEMU's own copies live on; ours would keep its sockets open beyond its death.
    drop(opened);
    close_numbers(launch);
    drop(log);
    verdict.write_all(b"running").map_err(GuardError::Daemon)?;
    close_verdict(verdict)?;
    let reason = watcher.watch(qemu)?;
    write_exit(directory, launch, reason).map_err(GuardError::Record)
}

/// Replaces the pipe to the first process by nothing, so that it sees the end.
fn close_verdict(verdict: &mut File) -> Result<(), GuardError> {
    *verdict = File::open("/dev/null").map_err(GuardError::Daemon)?;
    Ok(())
}

fn write_record(directory: &VmDirectory, launch: &Launch, qemu: i32) -> Result<(), GuardError> {
    let watch = |source| GuardError::Watch(source);
    let record = GuardRecord {
        vm: launch.vm,
        launch: launch.number,
        uuid: launch.uuid,
        boot_id: files::boot_id().map_err(watch)?,
        guard: ProcessId::of(nix::unistd::getpid().as_raw()).map_err(watch)?,
        qemu: ProcessId::of(qemu).map_err(watch)?,
    };
    files::write_json(&directory.file(name::GUARD), &record).map_err(GuardError::Record)
}

/// Puts QEMU's process into its groups. A group that is gone is no reason not to run: the agent sees
/// that QEMU is not in it, and says so. Standard error is the VM's log by now.
fn join_groups(launch: &Launch, qemu: i32) {
    for procs in &launch.groups {
        let joined = std::fs::OpenOptions::new()
            .append(true)
            .open(procs)
            .and_then(|mut file| file.write_all(qemu.to_string().as_bytes()));
        if let Err(error) = joined {
            let text = format!("vm-guard: cannot join {}: {error}\n", procs.display());
            let _ = io::stderr().write_all(text.as_bytes());
        }
    }
}

/// Leaves the agent's session and its standard streams: a pipe of the agent's that stays open here
/// would keep the agent waiting.
fn detach(log: &File) -> Result<(), GuardError> {
    let detach = || -> io::Result<()> {
        nix::unistd::setsid()?;
        nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
        nix::unistd::dup2_stdout(log)?;
        nix::unistd::dup2_stderr(log)?;
        Ok(())
    };
    detach().map_err(GuardError::Daemon)
}

fn open_all(launch: &Launch) -> Result<Vec<OwnedFd>, GuardError> {
    let mut opened = Vec::new();
    for descriptor in &launch.descriptors {
        let what = match &descriptor.source {
            Source::Listen { name } => format!("the socket {name}"),
            Source::File { path, .. } => path.display().to_string(),
            Source::Log { name } => format!("the log {name}"),
            Source::Tap { name } => format!("the tap {name}"),
        };
        let open = || -> io::Result<OwnedFd> {
            let file = open_source(&descriptor.source)?;
            system::inherit_as(&file, descriptor.number)?;
            Ok(file)
        };
        opened.push(open().map_err(|source| GuardError::Open { what, source })?);
    }
    Ok(opened)
}

fn open_source(source: &Source) -> io::Result<OwnedFd> {
    match source {
        Source::Listen { name } => {
            let path = Path::new(name);
            files::remove(path)?;
            Ok(std::os::unix::net::UnixListener::bind(path)?.into())
        }
        Source::File { path, access } => {
            let mut options = std::fs::OpenOptions::new();
            options.read(true).write(*access != Access::Read);
            if *access == Access::WriteDirect {
                options.custom_flags(nix::fcntl::OFlag::O_DIRECT.bits());
            }
            Ok(options.open(path)?.into())
        }
        Source::Log { name } => {
            Ok(std::fs::OpenOptions::new().append(true).create(true).open(name)?.into())
        }
        Source::Tap { name } => {
            // The ioctl would make a missing tap anew, connected to nothing.
            nix::net::if_::if_nametoindex(name.as_str())?;
            crate::net::open_tap(name).map_err(io::Error::other)
        }
    }
}

fn close_numbers(launch: &Launch) {
    for descriptor in &launch.descriptors {
        // Open: `open_all` made it, and nothing closes numbers but this.
        let _ = nix::unistd::close(descriptor.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A start on a wish that was asked for at `asked_at`, with a lease since `since`.
    fn check(fenced: bool, since: u64, lease_ms: u64, asked_at: u64) -> Result<(), GuardError> {
        let directory = tempfile::tempdir().unwrap();
        let lease_file = directory.path().join("lease.json");
        let lease = Lease {
            boot_id: files::boot_id().unwrap(),
            since_boottime_ms: BootTime(since),
            deadline_boottime_ms: Some(BootTime(since).plus(lease_ms)),
        };
        files::write_json(&lease_file, &lease).unwrap();
        if fenced {
            fs_err::write(directory.path().join(name::FENCED), b"").unwrap();
        }
        let vm = plimsoll_model::VmId(uuid::Uuid::from_u128(1));
        let launch = Launch {
            vm,
            number: 1,
            uuid: vm.0,
            program: PathBuf::new(),
            arguments: Vec::new(),
            user: None,
            descriptors: Vec::new(),
            groups: Vec::new(),
            lease_file,
            asked_at: BootTime(asked_at),
        };
        check_lease(&VmDirectory::new(directory.path().to_owned()), &launch)
    }

    #[test]
    fn a_wish_from_before_a_gap_of_the_lease_starts_nothing() {
        let now = BootTime::now().0;
        assert!(check(true, now, 60_000, now).is_ok());
        // While the start was prepared the lease ran out, the VM was given to another host, and a
        // refused connection began a new lease.
        assert!(matches!(check(true, now, 60_000, now - 1), Err(GuardError::NoLease)));
        assert!(matches!(check(true, now - 10, 5, now), Err(GuardError::NoLease)));
        // What is not to be started elsewhere needs none.
        assert!(check(false, now - 10, 5, now - 20).is_ok());
    }
}

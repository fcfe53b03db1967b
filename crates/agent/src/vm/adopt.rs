//! Finds a VM's processes again from what is on disk and in `/proc`.
//!
//! ```text
//!   locks held?  --no-->  launch file taken away under both locks: nothing can start any more
//!      | yes                 --> Dead, and how (exit.json of the same launch, or unknown)
//!      v
//!   guard.json, same boot, both processes there with the same start times, QEMU's arguments with
//!   the VM's uuid, its monitor says the same uuid    --all-->  Running
//!      | not (yet)
//!      v
//!   asked again for a while (a guard may just be starting)   --still not-->  Impostor
//! ```
//!
//! The locks alone decide between alive and dead: every other trace can be stale. An impostor is
//! something alive that cannot be identified; nothing is started beside it and nothing of it is
//! killed.

use std::io;
use std::time::Duration;

use plimsoll_model::VmId;
use plimsoll_qmp::{ConnectOptions, Qmp, QmpError};
use thiserror::Error;
use tokio::time::{Instant, sleep};

use super::files::{self, FileError};
use super::guard::lock;
use super::guard::record::{ExitReason, ExitRecord, GuardRecord, VmDirectory, name};
use super::socket::SocketPath;

/// A guard that starts needs milliseconds to write its record; QEMU, on a busy host, seconds to
/// answer.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

/// What became of a VM's processes.
#[derive(Debug)]
pub enum Verdict {
    /// They run, and are the VM's.
    Running(Box<Adopted>),
    /// Nothing runs, and nothing will before the next launch.
    Dead(Option<ExitRecord>),
    /// Something holds the VM's locks, but is not what was written down.
    Impostor(Mismatch),
}

/// A running VM that was found.
#[derive(Debug)]
pub struct Adopted {
    pub record: GuardRecord,
    pub qmp: Qmp,
}

/// In what the living process differs from the record.
#[derive(Debug, Error)]
pub enum Mismatch {
    #[error("its guard has not written its record")]
    NoRecord,
    #[error("its record belongs to another VM")]
    OtherVm,
    #[error("its record is from before the host's last boot")]
    OtherBoot,
    #[error("process {pid} is not the one that was started")]
    OtherProcess { pid: i32 },
    #[error("the arguments of process {pid} do not have the VM's uuid")]
    OtherArguments { pid: i32 },
    #[error("its monitor does not answer")]
    Monitor(#[source] QmpError),
    #[error("its monitor cannot be reached")]
    Socket(#[source] io::Error),
    #[error("its monitor says that it is {uuid}")]
    OtherUuid { uuid: String },
}

/// Why nothing can be said.
#[derive(Debug, Error)]
pub enum AdoptError {
    #[error("cannot examine the VM's locks")]
    Lock(#[source] io::Error),
    #[error("cannot read the VM's record")]
    Record(#[source] FileError),
    #[error("cannot take the launch file away")]
    Disarm(#[source] io::Error),
    #[error("cannot read the kernel's boot id")]
    BootId(#[source] io::Error),
}

/// Decides what became of the VM in `directory`. After [`Verdict::Dead`] no guard that was ever
/// begun can still start QEMU: a new launch file is needed.
///
/// # Errors
/// [`AdoptError`]: then nothing may be started.
pub async fn adopt(vm: VmId, directory: &VmDirectory) -> Result<Verdict, AdoptError> {
    adopt_within(vm, directory, PATIENCE).await
}

async fn adopt_within(
    vm: VmId,
    directory: &VmDirectory,
    patience: Duration,
) -> Result<Verdict, AdoptError> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(exit) = disarm(directory)? {
            return Ok(Verdict::Dead(exit));
        }
        let mismatch = match identify(vm, directory).await? {
            Ok(adopted) => return Ok(Verdict::Running(Box::new(adopted))),
            Err(mismatch) => mismatch,
        };
        if Instant::now() >= deadline {
            return Ok(Verdict::Impostor(mismatch));
        }
        sleep(PAUSE).await;
    }
}

/// Whether a guard or a QEMU of the VM lives.
///
/// # Errors
/// [`AdoptError::Lock`].
pub fn is_alive(directory: &VmDirectory) -> Result<bool, AdoptError> {
    for name in [name::GUARD_LOCK, name::QEMU_LOCK] {
        if lock::is_held(&directory.file(name)).map_err(AdoptError::Lock)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes the permission to start away, if nothing lives; `None` if something does. The exit record
/// is that of the newest launch, if it left one.
fn disarm(directory: &VmDirectory) -> Result<Option<Option<ExitRecord>>, AdoptError> {
    if !directory.path().exists() {
        return Ok(Some(None));
    }
    // A guard takes them in this order too, and whoever comes second gives up.
    let Some(_guard) = lock::take(&directory.file(name::GUARD_LOCK)).map_err(AdoptError::Lock)?
    else {
        return Ok(None);
    };
    let Some(_qemu) = lock::take(&directory.file(name::QEMU_LOCK)).map_err(AdoptError::Lock)?
    else {
        return Ok(None);
    };
    files::remove(&directory.file(name::LAUNCH)).map_err(AdoptError::Disarm)?;
    files::sync_directory(directory.path()).map_err(AdoptError::Disarm)?;
    // How it ended is for people; that it ended is known.
    Ok(Some(files::read_json(&directory.file(name::EXIT)).unwrap_or_default()))
}

async fn identify(
    vm: VmId,
    directory: &VmDirectory,
) -> Result<Result<Adopted, Mismatch>, AdoptError> {
    let record: Option<GuardRecord> =
        files::read_json(&directory.file(name::GUARD)).map_err(AdoptError::Record)?;
    let Some(record) = record else { return Ok(Err(Mismatch::NoRecord)) };
    let boot_id = files::boot_id().map_err(AdoptError::BootId)?;
    if let Err(mismatch) = check_processes(vm, &record, &boot_id) {
        return Ok(Err(mismatch));
    }
    Ok(check_monitor(vm, directory).await.map(|qmp| Adopted { record, qmp }))
}

fn check_processes(vm: VmId, record: &GuardRecord, boot_id: &str) -> Result<(), Mismatch> {
    if record.vm != vm || record.uuid != vm.0 {
        return Err(Mismatch::OtherVm);
    }
    if record.boot_id != boot_id {
        return Err(Mismatch::OtherBoot);
    }
    for process in [record.guard, record.qemu] {
        if !process.exists() {
            return Err(Mismatch::OtherProcess { pid: process.pid });
        }
    }
    let uuid = record.uuid.hyphenated().to_string();
    let arguments = record.qemu.command_line();
    let named = arguments.split(|byte| *byte == 0).any(|argument| argument == uuid.as_bytes());
    if named { Ok(()) } else { Err(Mismatch::OtherArguments { pid: record.qemu.pid }) }
}

async fn check_monitor(vm: VmId, directory: &VmDirectory) -> Result<Qmp, Mismatch> {
    let path = SocketPath::new(directory.path(), name::QMP_SOCKET).map_err(Mismatch::Socket)?;
    let options =
        ConnectOptions { handshake_timeout: PATIENCE, command_timeout: Duration::from_secs(20) };
    let (qmp, _) = Qmp::connect(path.as_ref(), options).await.map_err(Mismatch::Monitor)?;
    let uuid = qmp.query_uuid().await.map_err(Mismatch::Monitor)?.uuid;
    if uuid == vm.0.hyphenated().to_string() { Ok(qmp) } else { Err(Mismatch::OtherUuid { uuid }) }
}

/// How the launch `number` ended, as far as is known.
#[must_use]
pub(crate) fn exit_of(number: u64, exit: Option<ExitRecord>) -> Option<ExitReason> {
    exit.filter(|record| record.launch == number).map(|record| record.reason)
}

#[cfg(test)]
mod tests;

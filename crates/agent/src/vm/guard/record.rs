//! What is written down about a VM's processes, so that whoever comes later knows.

use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;
use plimsoll_model::{Timestamp, VmId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::vm::lease::BootTime;

/// Names of the files in a VM's directory.
pub(crate) mod name {
    /// Permission for one start: the guard takes it away when it begins.
    pub(crate) const LAUNCH: &str = "launch.json";
    /// The launch that the newest guard took.
    pub(crate) const LAUNCHED: &str = "launched.json";
    /// The processes of the newest launch.
    pub(crate) const GUARD: &str = "guard.json";
    /// How the newest launch ended.
    pub(crate) const EXIT: &str = "exit.json";
    /// There while the VM may run only under the host's lease.
    pub(crate) const FENCED: &str = "fenced";
    /// Held by the guard for its life.
    pub(crate) const GUARD_LOCK: &str = "guard.lock";
    /// Held by QEMU for its life.
    pub(crate) const QEMU_LOCK: &str = "qemu.lock";
    /// What the guest writes to its serial console.
    pub(crate) const CONSOLE_LOG: &str = "console.log";
    /// What QEMU and the guard say.
    pub(crate) const QEMU_LOG: &str = "qemu.log";
    /// QEMU's monitor.
    pub(crate) const QMP_SOCKET: &str = "qmp.sock";
    /// The guest agent's port.
    pub(crate) const GUEST_SOCKET: &str = "guest.sock";
    /// The serial console.
    pub(crate) const CONSOLE_SOCKET: &str = "console.sock";
}

/// How QEMU is to be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The VM.
    pub vm: VmId,
    /// Counts the VM's launches on this host.
    pub number: u64,
    /// The machine's UUID, in QEMU's command line too.
    pub uuid: Uuid,
    /// QEMU.
    pub program: PathBuf,
    /// Its arguments, without its own name.
    pub arguments: Vec<String>,
    /// Whom QEMU runs as; `None`: as the guard.
    pub user: Option<UserIds>,
    /// What QEMU finds open when it starts.
    pub descriptors: Vec<Descriptor>,
    /// Groups that QEMU joins before its program begins: what it takes elsewhere is never counted
    /// there. Each by the file into which a process id is written.
    #[serde(default)]
    pub groups: Vec<PathBuf>,
    /// The host's lease.
    pub lease_file: PathBuf,
    /// When the wish was asked for on which this start is: under the marker `fenced` it must still
    /// be good at the instant at which QEMU begins.
    pub asked_at: BootTime,
}

/// Whom a process runs as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserIds {
    pub uid: u32,
    pub gid: u32,
}

/// One open file of QEMU. The guard opens it with its own rights: QEMU itself may open nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Its number, as the arguments name it.
    pub number: i32,
    /// What it is.
    pub source: Source,
}

/// How a file is opened for QEMU. It must be just what QEMU would open: QEMU takes a descriptor from a
/// set only if its flags, `O_DIRECT` among them, are the ones that it asks for (10.0.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// To read.
    Read,
    /// To read and write.
    Write,
    /// To read and write past the page cache.
    WriteDirect,
}

/// What a descriptor is opened on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A listening unix socket of this name in the VM's directory.
    Listen { name: String },
    /// A file that exists.
    File { path: PathBuf, access: Access },
    /// A log of this name in the VM's directory, made where missing, only ever appended to.
    Log { name: String },
    /// An existing tap device.
    Tap { name: String },
}

/// A process, told apart from a later one with the same number by its start time (clock ticks since
/// boot, field 22 of `/proc/PID/stat`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: i32,
    pub start_time: u64,
}

impl ProcessId {
    /// The process with this number now.
    ///
    /// # Errors
    /// There is none, or `/proc` is not readable.
    pub fn of(pid: i32) -> io::Result<Self> {
        Self::with_state(pid).map(|(process, _)| process)
    }

    fn with_state(pid: i32) -> io::Result<(Self, char)> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        // The second field is the program's name in parentheses and may hold anything.
        let (_, rest) = stat.rsplit_once(')').ok_or_else(invalid)?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next().and_then(|field| field.chars().next()).ok_or_else(invalid)?;
        let start_time = fields.nth(18).and_then(|field| field.parse().ok()).ok_or_else(invalid)?;
        Ok((Self { pid, start_time }, state))
    }

    /// Whether it still lives. One that has ended and was not waited for (a zombie) does not: who
    /// inherits our processes may never wait for them.
    #[must_use]
    pub fn exists(self) -> bool {
        Self::with_state(self.pid)
            .is_ok_and(|(now, state)| now == self && !matches!(state, 'Z' | 'X'))
    }

    /// Its arguments as one text, separated by NUL. Empty for a zombie.
    #[must_use]
    pub fn command_line(self) -> Vec<u8> {
        fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default()
    }
}

/// The processes of a launch. Written before QEMU's program begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardRecord {
    pub vm: VmId,
    pub launch: u64,
    pub uuid: Uuid,
    /// The kernel's boot to which the processes belong.
    pub boot_id: String,
    pub guard: ProcessId,
    pub qemu: ProcessId,
}

/// How a launch ended. Written before the guard lets its lock go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub launch: u64,
    pub reason: ExitReason,
    pub at: Timestamp,
}

/// Why QEMU is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// It ended by itself: 0 when the guest powered off.
    Exited { code: i32 },
    /// A signal ended it.
    Signalled { signal: i32 },
    /// The host's lease ran out, and the guard killed it.
    LeaseExpired,
    /// The guard was told to end (the host shuts down) and ended it.
    HostShutdown,
    /// It never ran.
    NotStarted { message: String },
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited { code: 0 } => f.write_str("the guest powered off"),
            Self::Exited { code } => write!(f, "QEMU ended with status {code}"),
            Self::Signalled { signal } => write!(f, "QEMU was killed by signal {signal}"),
            Self::LeaseExpired => f.write_str("ended because the host's lease had run out"),
            Self::HostShutdown => f.write_str("ended because the host shuts down"),
            Self::NotStarted { message } => write!(f, "QEMU was not started: {message}"),
        }
    }
}

/// The files of one VM's directory.
#[derive(Clone, Debug)]
pub struct VmDirectory(PathBuf);

impl VmDirectory {
    /// The directory at `path`.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

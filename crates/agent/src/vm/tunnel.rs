//! The tunnel through which a VM's memory and disk travel from host to host.
//!
//! ```text
//!   source                                                        target
//!   QEMU --socketpair-- tunnel == TLS, a connection a channel == tunnel --socketpair-- QEMU
//!                                                                    \--unix socket--- QEMU's NBD
//! ```
//!
//! Each end is a process of its own (`plimsoll vm-tunnel --directory DIR`), so that no agent's death
//! breaks a copy that is under way: after a switch to post-copy the VM would be lost with it. QEMU
//! itself opens no path and no address; its ends are given to it over its monitor.
//!
//! Both ends show certificates of the cluster's CA, and each lets only the one host be at the other
//! end of which it was told. What the process must know it reads from a file that it removes; nothing
//! secret is in its arguments. It ends with its channels: QEMU's death, at either end, ends both.
//!
//! The source's QEMU is told to use a channel only once both ends have met on all of them: it waits for
//! an NBD server's greeting under its big lock, and its guest would wait along with it.

mod pump;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use plimsoll_api::tls::{Identity, TlsError};
use plimsoll_model::HostId;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::{Instant, sleep};

use super::files::{self, FileError};
use super::guard::record::{ProcessId, VmDirectory, name};
use super::registry::Environment;
use super::socket::SocketPath;

pub use pump::tunnel_main;

/// What the process reads at its start.
const PLAN: &str = "tunnel.json";
/// Which process it is.
const PROCESS: &str = "tunnel-process.json";
/// What became of the source's end.
const OUTCOME: &str = "tunnel-outcome.json";
/// Where QEMU's NBD server listens, on the target.
const DISK_SOCKET: &str = "disk.sock";
/// Both ends meet within this.
const MEET_LIMIT: Duration = Duration::from_secs(60);
/// A process that does not say how it went, on a host that is overloaded.
const WORD_LIMIT: Duration = MEET_LIMIT.saturating_add(Duration::from_secs(10));
const LOOK: Duration = Duration::from_millis(5);

/// Why there is no tunnel.
#[derive(Debug, Error)]
pub enum TunnelError {
    /// The other agent's address has no host in it.
    #[error("`{address}` is no address of an agent")]
    Address { address: String },
    /// The target's end cannot listen.
    #[error("cannot listen for the other end")]
    Listen(#[source] io::Error),
    /// What the process must know could not be written or read.
    #[error("cannot keep the tunnel's plan")]
    Plan(#[source] FileError),
    /// No command to run tunnels with is configured.
    #[error("no command to run tunnels with is configured")]
    NoCommand,
    /// The process cannot be started.
    #[error("cannot start the tunnel's process")]
    Start(#[source] io::Error),
    /// The process lacks what it should have been given.
    #[error("the tunnel was not given its {what}")]
    Inherit {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS for the tunnel")]
    Tls(#[source] TlsError),
    /// The other end was not reached, or did not come, in time.
    #[error("the other end of the tunnel was not there in time")]
    Late,
    /// Somebody else is at the other end, or it does not take the channel.
    #[error("the other end of the tunnel refused")]
    Refused(#[source] io::Error),
    /// The process has said why there is none.
    #[error("{message}")]
    Failed { message: String },
    /// The process has ended without a word, or gave none.
    #[error("the tunnel's process does not say whether it has reached the other end")]
    Silent,
    /// The other end cannot be reached.
    #[error("cannot reach the other end of the tunnel")]
    Connect(#[source] io::Error),
    /// QEMU's NBD server cannot be reached.
    #[error("cannot reach QEMU's server of the disk")]
    Disk(#[source] io::Error),
    /// The runtime cannot be made.
    #[error("cannot run the tunnel")]
    Run(#[source] io::Error),
}

/// How agents reach each other.
#[derive(Clone, Debug)]
pub struct Reach {
    /// What this host shows to others.
    pub identity: Identity,
    /// The cluster's CA, PEM.
    pub ca_pem: String,
    /// Where this host listens.
    pub listen: IpAddr,
    /// The command that runs [`tunnel_main`] when `--directory DIR` is added to it.
    pub tunnel_command: Vec<PathBuf>,
}

/// The other end, as the source knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Far<'a> {
    pub host: HostId,
    /// Where its agent listens.
    pub agent: &'a str,
    /// The tunnel's own port there.
    pub port: u16,
}

/// What a tunnel's process must know.
#[derive(Serialize, Deserialize)]
struct Plan {
    certificate_pem: String,
    key_pem: String,
    ca_pem: String,
    /// Who must be at the other end.
    peer: HostId,
    role: Role,
    /// The disk has a channel too.
    disk: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Role {
    /// Standard input is the memory's channel, standard output the disk's.
    Source { address: String, port: u16 },
    /// Standard input is the memory's channel, standard output a listening TCP socket.
    Target,
}

/// What the source's process says once it knows.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    /// Both ends have met, on all channels.
    Met,
    Failed {
        message: String,
    },
}

/// Opens the source's end, and returns once it has met the target's on all channels.
///
/// # Errors
/// [`TunnelError`].
pub(crate) async fn open_to(
    environment: &Environment,
    directory: &VmDirectory,
    far: Far<'_>,
    memory: OwnedFd,
    disk: Option<OwnedFd>,
) -> Result<(), TunnelError> {
    let invalid = || TunnelError::Address { address: far.agent.to_owned() };
    let (address, _) = far.agent.rsplit_once(':').ok_or_else(invalid)?;
    let address = address.trim_start_matches('[').trim_end_matches(']').to_owned();
    let role = Role::Source { address, port: far.port };
    let has_disk = disk.is_some();
    let disk = disk.map_or_else(Stdio::null, Stdio::from);
    let process = start(environment, directory, far.host, role, has_disk, memory.into(), disk)?;
    outcome(directory, process).await
}

async fn outcome(directory: &VmDirectory, process: ProcessId) -> Result<(), TunnelError> {
    let deadline = Instant::now() + WORD_LIMIT;
    loop {
        // Before the look at its word, which is its last but one act.
        let is_over = !process.exists() || Instant::now() >= deadline;
        match files::read_json(&directory.file(OUTCOME)).map_err(TunnelError::Plan)? {
            Some(Outcome::Met) => return Ok(()),
            Some(Outcome::Failed { message }) => return Err(TunnelError::Failed { message }),
            None if is_over => return Err(TunnelError::Silent),
            None => sleep(LOOK).await,
        }
    }
}

/// Opens the target's end, for `from`, and returns the port where it listens.
///
/// # Errors
/// [`TunnelError`].
pub(crate) fn open_for(
    environment: &Environment,
    directory: &VmDirectory,
    from: HostId,
    memory: OwnedFd,
    disk: bool,
) -> Result<u16, TunnelError> {
    let listen = || {
        let listener = TcpListener::bind(SocketAddr::new(environment.reach.listen, 0))?;
        Ok((listener.local_addr()?.port(), OwnedFd::from(listener)))
    };
    let (port, listener) = listen().map_err(TunnelError::Listen)?;
    let (role, memory) = (Role::Target, Stdio::from(memory));
    start(environment, directory, from, role, disk, memory, listener.into())?;
    Ok(port)
}

/// A listening socket for QEMU's NBD server, to which the target's end connects.
///
/// # Errors
/// The socket cannot be made.
pub(crate) fn listen_for_disk(directory: &VmDirectory) -> io::Result<OwnedFd> {
    let path = SocketPath::new(directory.path(), DISK_SOCKET)?;
    files::remove(path.as_ref())?;
    Ok(UnixListener::bind(&path)?.into())
}

fn start(
    environment: &Environment,
    directory: &VmDirectory,
    peer: HostId,
    role: Role,
    disk: bool,
    memory: Stdio,
    second: Stdio,
) -> Result<ProcessId, TunnelError> {
    // One at a time: an earlier attempt's must not meet this one's channels.
    kill_process(directory);
    files::remove(&directory.file(OUTCOME)).map_err(TunnelError::Start)?;
    let Identity { certificate_pem, key_pem } = environment.reach.identity.clone();
    let ca_pem = environment.reach.ca_pem.clone();
    let plan = Plan { certificate_pem, key_pem, ca_pem, peer, role, disk };
    files::write_json(&directory.file(PLAN), &plan).map_err(TunnelError::Plan)?;
    let command = &environment.reach.tunnel_command;
    let (program, arguments) = command.split_first().ok_or(TunnelError::NoCommand)?;
    let log = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(directory.file(name::QEMU_LOG))
        .map_err(TunnelError::Start)?;
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .arg("--directory")
        .arg(directory.path())
        .stdin(memory)
        .stdout(second)
        .stderr(log)
        .spawn()
        .map_err(TunnelError::Start)?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    // Whoever is a child has to be waited for.
    tokio::spawn(async move { child.wait().await });
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    let process = pid.ok_or_else(gone).and_then(ProcessId::of).map_err(TunnelError::Start)?;
    files::write_json(&directory.file(PROCESS), &process).map_err(TunnelError::Plan)?;
    Ok(process)
}

/// Ends the tunnel of this VM, if there is one.
pub(crate) fn end(directory: &VmDirectory) {
    kill_process(directory);
    forget(directory);
}

fn kill_process(directory: &VmDirectory) {
    let process: Option<ProcessId> = files::read_json(&directory.file(PROCESS)).unwrap_or_default();
    let Some(process) = process else { return };
    let handle = Pid::from_raw(process.pid)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        // Looked at once it is held: a number may be another process's by now, a handle may not.
        .filter(|_| process.exists());
    if let Some(handle) = handle {
        // It may end by itself just now.
        let _ = pidfd_send_signal(handle, Signal::KILL);
    }
}

/// Removes what a tunnel has left in the VM's directory; one that still works goes on.
pub(crate) fn forget(directory: &VmDirectory) {
    for name in [PLAN, PROCESS, OUTCOME, DISK_SOCKET] {
        if let Err(error) = files::remove(&directory.file(name)) {
            tracing::warn!(%error, name, "a tunnel's file stays");
        }
    }
}

fn read_plan(directory: &Path) -> Result<Plan, TunnelError> {
    let path = directory.join(PLAN);
    let absent = || {
        let source = io::Error::from(io::ErrorKind::NotFound);
        TunnelError::Plan(FileError::Read { path: path.clone(), source })
    };
    let plan = files::read_json(&path).map_err(TunnelError::Plan)?.ok_or_else(absent)?;
    let removed = files::remove(&path);
    removed.map_err(|source| TunnelError::Plan(FileError::Write { path, source }))?;
    Ok(plan)
}

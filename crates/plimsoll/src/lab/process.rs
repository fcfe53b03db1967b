//! Processes of a lab: started in a namespace, remembered, recognised, ended.
//!
//! A process id alone says nothing: the kernel gives it to others later. A process is ours if its
//! id, the time at which it began and the boot of the machine are those that were written down. A
//! VM's guard and QEMU were started by an agent: they are ours if they run in a namespace of the
//! lab and their command line names a VM whose directory the lab has. Signals go through a pidfd that
//! was opened before the look, so they cannot reach a successor.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::File,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _, process::CommandExt as _},
    },
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use fs_err as fs;
use nix::sched::{CloneFlags, setns};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::{layout::Lab, network};
use crate::{
    cli::lab::LabProcessArgs,
    failure::{Failure, OrFail as _, Outcome},
};

/// Between two looks at whether a process has ended.
const POLL: Duration = Duration::from_millis(30);

/// A process that was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recorded {
    /// Its id.
    pub(crate) pid: i32,
    /// When it began, in clock ticks since the boot (`/proc/PID/stat`).
    pub(crate) started: u64,
    /// The kernel's boot id.
    pub(crate) boot: String,
}

/// What the kernel says of a process.
struct Seen {
    started: u64,
    state: char,
}

fn look(pid: i32) -> Option<Seen> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; what follows the last `)` is fixed.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some(Seen { started, state })
}

fn boot_id() -> Outcome<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

impl Recorded {
    /// What is to be written down of a process that was just started.
    fn of(pid: u32) -> Outcome<Self> {
        let pid = i32::try_from(pid)?;
        let seen = look(pid).ok_or_else(|| Failure::new("a process ended as soon as it began"))?;
        Ok(Self { pid, started: seen.started, boot: boot_id()? })
    }

    /// Whether it lives.
    pub(crate) fn is_alive(&self) -> bool {
        look(self.pid).is_some_and(|seen| seen.started == self.started && seen.state != 'Z')
            && boot_id().is_ok_and(|boot| boot == self.boot)
    }

    /// A handle on it, if it lives.
    fn handle(&self) -> Option<OwnedFd> {
        let handle = open(self.pid)?;
        // Looked at after the handle was opened: the handle is of what was seen.
        self.is_alive().then_some(handle)
    }

    /// Sends it a signal, if it lives.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(handle) = self.handle() {
            let _ = pidfd_send_signal(&handle, signal);
        }
    }
}

fn open(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// Starts this program with these arguments in a part's namespace, in a session of its own, with
/// its output going to the part's log.
pub(crate) fn start(lab: &Lab, part: &str, arguments: &[&OsStr]) -> Outcome<Recorded> {
    let log = lab.log(part);
    if let Some(parent) = log.parent() {
        fs::create_dir_all(parent)?;
    }
    let file = File::options().create(true).append(true).open(&log)?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("lab-process")
        .arg("--netns")
        .arg(lab.namespace_path(part))
        .arg("--")
        .args(arguments)
        // What was typed for this command is not meant for the servers.
        .env_remove("PLIMSOLL_PROJECT")
        .env_remove("PLIMSOLL_CONTEXT")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    let child = command.spawn().or_fail(|| format!("cannot start {part}"))?;
    Recorded::of(child.id())
}

/// Enters the namespace and becomes the other command: `setns` and `setsid` change the one thread
/// that there is, and the process id stays.
pub(crate) fn become_process(args: &LabProcessArgs) -> Outcome<u8> {
    let namespace = File::open(&args.netns).or_fail(|| "cannot enter the namespace".to_owned())?;
    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
        .or_fail(|| format!("cannot enter the namespace {}", args.netns.display()))?;
    drop(namespace);
    // Fails only for a process group's leader, which a shell may have made us.
    let _ = nix::unistd::setsid();
    let program = std::env::current_exe()?;
    let arguments: Vec<&OsString> = args.argv.iter().collect();
    Err(Command::new(program).arg0("plimsoll").args(arguments).exec())
        .or_fail(|| "cannot become the lab's process".to_owned())
}

/// A process of a VM of the lab: its guard or its QEMU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct VmProcess {
    /// Its id.
    pub(crate) pid: i32,
    /// The part in whose namespace it runs.
    pub(crate) host: String,
    /// `guard` or `qemu`.
    pub(crate) kind: &'static str,
    #[serde(skip)]
    started: u64,
}

/// The processes of VMs that run in the lab.
pub(crate) fn vm_processes(lab: &Lab) -> Vec<VmProcess> {
    let namespaces: BTreeMap<(u64, u64), String> = network::parts(lab)
        .into_iter()
        .filter_map(|part| {
            let file = std::fs::metadata(lab.namespace_path(&part)).ok()?;
            Some(((file.dev(), file.ino()), part))
        })
        .collect();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut found: Vec<_> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| {
            let namespace = std::fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
            let host = namespaces.get(&(namespace.dev(), namespace.ino()))?;
            let seen = look(pid).filter(|seen| seen.state != 'Z')?;
            let kind = vm_process_kind(lab, host, pid)?;
            Some(VmProcess { pid, host: host.clone(), kind, started: seen.started })
        })
        .collect();
    found.sort_by(|a, b| (&a.host, a.pid).cmp(&(&b.host, b.pid)));
    found
}

/// Whether a process is the guard, the tunnel or the QEMU of a VM of this host.
fn vm_process_kind(lab: &Lab, host: &str, pid: i32) -> Option<&'static str> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let vms = lab.host_directory(host).join("vms");
    match arguments.as_slice() {
        [_, verb @ (b"vm-guard" | b"vm-tunnel"), b"--directory", directory, ..] => {
            let kind = if *verb == b"vm-guard" { "guard" } else { "tunnel" };
            Path::new(OsStr::from_bytes(directory)).starts_with(&vms).then_some(kind)
        }
        [program, rest @ ..] => {
            let program = Path::new(OsStr::from_bytes(program)).file_name()?;
            if !program.as_bytes().starts_with(b"qemu-system-") {
                return None;
            }
            // QEMU gets its files already open, and names none of them: its uuid is the VM's id.
            let place = rest.iter().position(|argument| *argument == b"-uuid")?;
            let uuid: uuid::Uuid = std::str::from_utf8(rest.get(place + 1)?).ok()?.parse().ok()?;
            vms.join(plimsoll_model::VmId(uuid).to_string()).is_dir().then_some("qemu")
        }
        [] => None,
    }
}

impl VmProcess {
    /// What was written down of it, for whoever ends it.
    pub(crate) fn recorded(&self) -> Outcome<Recorded> {
        Ok(Recorded { pid: self.pid, started: self.started, boot: boot_id()? })
    }
}

/// Asks processes to end, and after `grace` (at once, if that is zero) ends them. Returns those that nothing ended.
pub(crate) fn end(processes: &[Recorded], grace: Duration) -> Vec<Recorded> {
    let left = |processes: &[Recorded], limit: Duration| {
        let deadline = Instant::now() + limit;
        loop {
            let alive: Vec<_> = processes.iter().filter(|p| p.is_alive()).cloned().collect();
            if alive.is_empty() || Instant::now() >= deadline {
                return alive;
            }
            std::thread::sleep(POLL);
        }
    };
    if !grace.is_zero() {
        for process in processes {
            process.signal(Signal::TERM);
        }
    }
    let stubborn = left(processes, grace);
    for process in &stubborn {
        process.signal(Signal::KILL);
    }
    left(&stubborn, Duration::from_secs(10))
}

//! Takes the guest down in an orderly way, whatever its init is.
//!
//! | init | how |
//! |---|---|
//! | systemd | `systemctl --no-block poweroff` |
//! | busybox | a signal to process 1, which runs the shutdown lines of its inittab |
//! | another one with its own command | `/sbin/poweroff`, `/sbin/reboot` |
//! | none | end all processes, unmount, reboot(2) |

use std::io;
use std::time::{Duration, Instant};

use plimsoll_api::guest::{ExecRequest, ShutdownMode};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::system::RebootCommand;

use crate::exec::{self, ExecError};
use crate::system::System;

/// How long processes may take to end by themselves when there is no init to end them.
const TERM_LIMIT: Duration = Duration::from_secs(3);
const COMMAND_LIMIT_MS: u64 = 20_000;

/// Why the guest does not go down.
#[derive(Debug, thiserror::Error)]
pub enum PowerError {
    /// Process 1 could not be signalled.
    #[error("cannot signal the init process")]
    Signal(#[source] io::Error),
    /// The init's own command could not be run.
    #[error("cannot run the shutdown command")]
    Run(#[source] ExecError),
    /// The init's own command failed.
    #[error("the shutdown command ended with {exit_code:?}: {stderr}")]
    Command {
        /// Its exit status, none if it was killed.
        exit_code: Option<i32>,
        /// What it said.
        stderr: String,
    },
    /// The kernel refused.
    #[error("the kernel refused to go down")]
    Reboot(#[source] io::Error),
}

/// The way in which this guest goes down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// A command of the init system.
    Command(Vec<String>),
    /// A signal to process 1.
    SignalInit(Signal),
    /// By ourselves.
    Direct,
}

impl Way {
    /// Finds out what this system needs.
    #[must_use]
    pub fn find(system: &System, mode: ShutdownMode) -> Self {
        let command = match mode {
            ShutdownMode::Poweroff => "poweroff",
            ShutdownMode::Reboot => "reboot",
        };
        if system.path("run/systemd/system").is_dir() {
            let argv = ["systemctl", "--no-block", command];
            return Self::Command(argv.map(ToOwned::to_owned).to_vec());
        }
        let init = std::fs::read_link(system.path("proc/1/exe")).unwrap_or_default();
        let name = system.read("proc/1/comm").unwrap_or_default();
        let is_init = matches!(name.trim(), "init" | "linuxrc");
        if is_init && init.file_name().is_some_and(|name| name == "busybox") {
            return Self::SignalInit(match mode {
                ShutdownMode::Poweroff => Signal::USR2,
                ShutdownMode::Reboot => Signal::TERM,
            });
        }
        let program = system.path("sbin").join(command);
        if is_init && program.exists() {
            return Self::Command(vec![program.to_string_lossy().into_owned()]);
        }
        Self::Direct
    }

    /// Whether the guest still runs for a while after [`Way::go`] has returned. If not, the answer
    /// has to be sent before.
    #[must_use]
    pub fn returns(&self) -> bool {
        *self != Self::Direct
    }

    /// Goes down. [`Way::Direct`] returns only on failure.
    ///
    /// # Errors
    /// The init system or the kernel refused.
    pub fn go(&self, system: &System, mode: ShutdownMode) -> Result<(), PowerError> {
        match self {
            Self::Command(argv) => run_command(argv),
            Self::SignalInit(signal) => {
                kill_process(Pid::INIT, *signal).map_err(|errno| PowerError::Signal(errno.into()))
            }
            Self::Direct => direct(system, mode),
        }
    }
}

fn run_command(argv: &[String]) -> Result<(), PowerError> {
    let request = ExecRequest {
        argv: argv.to_vec(),
        env: Vec::new(),
        stdin: Vec::new(),
        timeout_ms: COMMAND_LIMIT_MS,
        max_output_bytes: 1024,
    };
    let result = exec::run(&request).map_err(PowerError::Run)?;
    if result.exit_code == Some(0) {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&result.stderr).into_owned();
    Err(PowerError::Command { exit_code: result.exit_code, stderr })
}

fn direct(system: &System, mode: ShutdownMode) -> Result<(), PowerError> {
    // Group 1 stands for every process but the first and ourselves.
    let _ = kill_process_group(Pid::INIT, Signal::TERM);
    let limit = Instant::now() + TERM_LIMIT;
    while Instant::now() < limit && others_run(system) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = kill_process_group(Pid::INIT, Signal::KILL);
    rustix::fs::sync();
    unmount_all(system);
    rustix::fs::sync();
    let command = match mode {
        ShutdownMode::Poweroff => RebootCommand::PowerOff,
        ShutdownMode::Reboot => RebootCommand::Restart,
    };
    rustix::system::reboot(command).map_err(|errno| PowerError::Reboot(errno.into()))
}

/// Whether user processes besides the first one and this one are left.
fn others_run(system: &System) -> bool {
    let Ok(entries) = std::fs::read_dir(system.path("proc")) else { return false };
    let own = std::process::id();
    entries.flatten().any(|entry| {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        pid.is_some_and(|pid| {
            // Kernel threads have no command line, and neither do zombies.
            pid > 1
                && pid != own
                && system.read(format!("proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
        })
    })
}

/// Unmounts what can be, last mounted first, and makes the rest read-only.
fn unmount_all(system: &System) {
    let mounts = system.read("proc/self/mounts").unwrap_or_default();
    for line in mounts.lines().rev() {
        let mut fields = line.split(' ');
        let (Some(device), Some(point)) = (fields.next(), fields.next()) else { continue };
        if device.starts_with('/') && rustix::mount::unmount(point, UnmountFlags::empty()).is_err()
        {
            let _ = rustix::mount::mount_remount(point, MountFlags::RDONLY, "");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn system(comm: &str, exe: &str) -> (tempfile::TempDir, System) {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("proc/1")).unwrap();
        std::fs::create_dir_all(root.path().join("sbin")).unwrap();
        std::fs::write(root.path().join("proc/1/comm"), format!("{comm}\n")).unwrap();
        symlink(exe, root.path().join("proc/1/exe")).unwrap();
        let system = System::at(root.path());
        (root, system)
    }

    #[test]
    fn systemd_is_asked() {
        let (root, system) = system("systemd", "/usr/lib/systemd/systemd");
        std::fs::create_dir_all(root.path().join("run/systemd/system")).unwrap();
        let way = Way::find(&system, ShutdownMode::Reboot);
        let argv = ["systemctl", "--no-block", "reboot"].map(ToOwned::to_owned).to_vec();
        assert_eq!(way, Way::Command(argv));
        assert!(way.returns());
    }

    #[test]
    fn busybox_gets_its_signals() {
        let (_root, system) = system("init", "/bin/busybox");
        let way = |mode| Way::find(&system, mode);
        assert_eq!(way(ShutdownMode::Poweroff), Way::SignalInit(Signal::USR2));
        assert_eq!(way(ShutdownMode::Reboot), Way::SignalInit(Signal::TERM));
    }

    #[test]
    fn another_init_is_asked_by_its_command_and_none_at_all_not() {
        let (root, system) = system("init", "/usr/sbin/init");
        assert_eq!(Way::find(&system, ShutdownMode::Poweroff), Way::Direct);
        let program = root.path().join("sbin/poweroff");
        std::fs::write(&program, "").unwrap();
        let argv = vec![program.to_string_lossy().into_owned()];
        assert_eq!(Way::find(&system, ShutdownMode::Poweroff), Way::Command(argv));
        std::fs::write(root.path().join("proc/1/comm"), "sh\n").unwrap();
        assert_eq!(Way::find(&system, ShutdownMode::Poweroff), Way::Direct);
    }

    #[test]
    fn a_failing_command_says_what_it_said() {
        let argv = ["sh", "-c", "echo no >&2; exit 4"].map(ToOwned::to_owned);
        let error = run_command(&argv).unwrap_err();
        assert_eq!(error.to_string(), "the shutdown command ended with Some(4): no\n");
    }
}

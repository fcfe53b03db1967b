//! The ways to end a VM, from gentle to sure: its guest agent, the ACPI power button, QEMU's
//! `quit`, SIGKILL.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use plimsoll_api::ErrorChain;
use plimsoll_api::cluster::ObservedPhase;
use plimsoll_api::guest::{Call, ShutdownMode};
use tokio::time::Instant;

use super::{Process, RETRY, Runner, wait_dead};
use crate::vm::guard::record::ProcessId;

const ASK_LIMIT: Duration = Duration::from_secs(5);
/// A guest that is still booting may have missed the power button: it is pressed again.
const PRESS_AGAIN: Duration = Duration::from_secs(5);
/// QEMU closes its disks within this, or is killed.
const QUIT_LIMIT: Duration = Duration::from_secs(10);
/// The kernel ends a killed process at once, unless it hangs in I/O.
const KILL_LIMIT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(500);

/// A VM on its way to its end.
#[derive(Debug)]
pub(super) struct Stopping {
    /// Then it is ended without being asked.
    deadline: Instant,
    /// The guest's agent has begun to shut down.
    agent_obeys: bool,
    pressed: Option<Instant>,
}

impl Runner {
    /// One step towards the end of a running VM. `grace`: how long the guest may take.
    pub(super) async fn stop_step(&mut self, grace: Duration) -> (ObservedPhase, Duration) {
        if !self.record.end_asked {
            self.record.end_asked = true;
            // Before the first step: an end that nobody remembers to have asked for is a crash.
            if let Err(error) = self.record.write(&self.directory) {
                self.record.end_asked = false;
                self.message = Some(ErrorChain(&error).to_string());
                return (ObservedPhase::Running, RETRY);
            }
        }
        let Process::Live(live, stopping) = &mut self.process else {
            return (ObservedPhase::Stopping, Duration::ZERO);
        };
        let now = Instant::now();
        let stopping = stopping.get_or_insert_with(|| Stopping {
            deadline: now + grace,
            agent_obeys: false,
            pressed: None,
        });
        // A shorter patience may come later, a longer one changes nothing any more.
        stopping.deadline = stopping.deadline.min(now + grace);
        if now < stopping.deadline {
            self.message = Some("the guest is asked to shut down".to_owned());
            if !stopping.agent_obeys && stopping.pressed.is_none_or(|at| now - at >= PRESS_AGAIN) {
                let call = Call::Shutdown { mode: ShutdownMode::Poweroff };
                stopping.agent_obeys = live.guest.call(call, ASK_LIMIT).await.is_ok();
                if !stopping.agent_obeys {
                    drop(live.qmp.system_powerdown().await);
                }
                stopping.pressed = Some(Instant::now());
            }
            let left = stopping.deadline.saturating_duration_since(Instant::now());
            return (ObservedPhase::Stopping, left.min(LOOK));
        }
        self.message = Some("it is being ended".to_owned());
        drop(live.qmp.quit().await);
        if !wait_dead(&self.directory, Instant::now() + QUIT_LIMIT).await {
            let processes = [live.record.qemu, live.record.guard];
            for process in processes {
                end(process);
                if wait_dead(&self.directory, Instant::now() + KILL_LIMIT).await {
                    break;
                }
            }
        }
        // What is true now is for the locks to say.
        self.process = Process::Unknown;
        self.guest_sender.send_replace(None);
        (ObservedPhase::Stopping, Duration::ZERO)
    }
}

/// Kills a process that is still the one that was written down.
fn end(process: ProcessId) {
    if process.exists() {
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
}

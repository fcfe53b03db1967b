//! What a runner must know after a crash of the agent: `vm.json` in the VM's directory, written
//! before it is acted on.

use plimsoll_api::deduplication::Merging;
use plimsoll_model::{Bytes, ProjectId, RestartPolicy};
use serde::{Deserialize, Serialize};

use super::deflation::Held;
use crate::vm::files::{self, FileError};
use crate::vm::guard::record::{ExitReason, VmDirectory};

const NAME: &str = "vm.json";

/// A runner's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Record {
    /// The highest incarnation that was asked for.
    pub incarnation: u64,
    /// The newest generation of that wish.
    pub generation: u64,
    /// The newest launch; 0: never launched.
    pub launch: u64,
    /// The newest launch's machine.
    pub machine: LaunchedMachine,
    /// Reboots that were asked for until the newest launch: it has done them all.
    pub reboots_done: u64,
    /// Restarts after crashes.
    pub restarts: u32,
    /// We asked the newest launch to end: that it did is no crash, and no wish of the guest.
    pub end_asked: bool,
    /// The newest launch was seen running.
    pub lived: bool,
    /// How the newest launch ended, once it has and that was dealt with.
    pub ended: Option<Ended>,
    /// What is held back from the newest launch, once that has settled.
    pub held: Option<Held>,
}

/// What can't be changed while a machine runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct LaunchedMachine {
    pub max_vcpus: u32,
    pub memory: Bytes,
    /// Most memory, with all that is elastic.
    pub max_memory: Bytes,
    pub interfaces: usize,
    /// Whose it is, and whether its pages may be merged; `None`: it was launched before that was
    /// known, and they may not.
    pub project: Option<ProjectId>,
    pub merging: Option<Merging>,
}

/// An end that was dealt with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ended {
    pub launch: u64,
    pub how: End,
    /// For people.
    pub message: String,
    /// The wish's generation then: a newer wish to run starts it whatever it was.
    pub generation: u64,
}

/// How a VM ended, as far as it matters for what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum End {
    /// We wanted it.
    Asked,
    /// The guest wanted it.
    PoweredOff,
    /// The host did it for its own reasons: lease, shutdown.
    Host,
    /// Nobody wanted it.
    Crashed,
    /// It never ran.
    NotStarted,
}

impl End {
    /// The end of a launch. `reason` is `None` when nobody wrote it down: its guard was killed, or
    /// the host lost power.
    pub(super) fn of(reason: Option<&ExitReason>, asked: bool, lived: bool) -> Self {
        match reason {
            Some(ExitReason::LeaseExpired | ExitReason::HostShutdown) => Self::Host,
            Some(ExitReason::NotStarted { .. }) => Self::NotStarted,
            _ if asked => Self::Asked,
            // It did not like its command line, or what it found there.
            Some(ExitReason::Exited { code: 1.. }) if !lived => Self::NotStarted,
            Some(ExitReason::Exited { code: 0 }) => Self::PoweredOff,
            Some(ExitReason::Exited { .. } | ExitReason::Signalled { .. }) | None => Self::Crashed,
        }
    }
}

/// What to do with a VM that should run and does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Start,
    /// As the guest wished.
    StayStopped,
    /// It crashed, and is not to be restarted.
    StayFailed,
}

impl Record {
    /// The record in a directory; a new one where there is none.
    pub(super) fn read(directory: &VmDirectory) -> Result<Self, FileError> {
        Ok(files::read_json(&directory.file(NAME))?.unwrap_or_default())
    }

    pub(super) fn write(&self, directory: &VmDirectory) -> Result<(), FileError> {
        files::write_json(&directory.file(NAME), self)
    }

    /// Whether the VM is to be started, by its last end.
    pub(super) fn next(&self, policy: RestartPolicy, generation: u64) -> Next {
        let Some(ended) = &self.ended else { return Next::Start };
        if generation > ended.generation || policy == RestartPolicy::Always {
            return Next::Start;
        }
        match (ended.how, policy) {
            (End::PoweredOff, _) => Next::StayStopped,
            (End::Crashed, RestartPolicy::Never) => Next::StayFailed,
            _ => Next::Start,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart() {
        let exited = |code| Some(ExitReason::Exited { code });
        for (reason, asked, expected) in [
            (exited(0), false, End::PoweredOff),
            (exited(0), true, End::Asked),
            (exited(1), false, End::Crashed),
            (Some(ExitReason::Signalled { signal: 9 }), true, End::Asked),
            (Some(ExitReason::Signalled { signal: 11 }), false, End::Crashed),
            (Some(ExitReason::LeaseExpired), true, End::Host),
            (Some(ExitReason::HostShutdown), false, End::Host),
            (None, false, End::Crashed),
        ] {
            assert_eq!(End::of(reason.as_ref(), asked, true), expected, "{reason:?} {asked}");
        }
    }

    #[test]
    fn a_qemu_that_ends_before_it_runs_was_not_started() {
        let reason = Some(ExitReason::Exited { code: 1 });
        assert_eq!(End::of(reason.as_ref(), false, false), End::NotStarted);
    }

    #[test]
    fn the_policy_decides_after_crashes_and_the_guest_after_its_power_off() {
        use RestartPolicy::{Always, Never, OnFailure};
        let next = |how, policy, generation| {
            let ended = Ended { launch: 1, how, message: String::new(), generation: 5 };
            Record { ended: Some(ended), ..Record::default() }.next(policy, generation)
        };
        assert_eq!(next(End::PoweredOff, OnFailure, 5), Next::StayStopped);
        assert_eq!(next(End::PoweredOff, Always, 5), Next::Start);
        assert_eq!(next(End::PoweredOff, OnFailure, 6), Next::Start);
        assert_eq!(next(End::Crashed, OnFailure, 5), Next::Start);
        assert_eq!(next(End::Crashed, Never, 5), Next::StayFailed);
        assert_eq!(next(End::Crashed, Never, 6), Next::Start);
        assert_eq!(next(End::Host, Never, 5), Next::Start);
        assert_eq!(next(End::Asked, Never, 5), Next::Start);
        assert_eq!(Record::default().next(Never, 0), Next::Start);
    }
}

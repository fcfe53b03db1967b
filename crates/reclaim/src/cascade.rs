//! Splits what is wanted of one VM between its applications, its kernel and the host.
//!
//! After Sharma et al. (Resource Deflation, EuroSys'19): whoever knows best what can be spared is
//! asked first, each level has a deadline, and the next takes what is still lacking. A level is
//! asked again for the whole rest, never for a part, as nobody knows beforehand what another gives.
//! A guest that does not answer is not asked: its applications cannot be reached either.

use plimsoll_model::{Amount, Bytes, Level, MilliCores};
use serde::{Deserialize, Serialize};

/// What the levels of a VM can give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    /// What can be had of the guest; `None` when it does not answer.
    pub guest: Option<GuestLevel>,
    /// What the host can page out.
    pub swap: Bytes,
}

/// What can be had of a guest that answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestLevel {
    /// Whether applications have registered a hook.
    pub hooks: bool,
    /// How much smaller its memory can be: down to what it cannot do without, or its minimum.
    pub memory: Bytes,
    /// How many vCPUs are online; one stays.
    pub vcpus: u32,
}

/// One level's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Who is asked.
    pub level: Level,
    /// For how much at most. Applications give nothing themselves: they free what the levels below
    /// then take, so they are told of all of it.
    pub at_most: Amount,
    /// Until when, in milliseconds after the beginning.
    pub until_ms: u64,
}

impl Step {
    /// What to ask this level for, when so much of what was wanted has been given already.
    #[must_use]
    pub fn ask(&self, wanted: Amount, given: Amount) -> Amount {
        let Amount { memory, cpu } = self.at_most;
        Amount {
            memory: wanted.memory.saturating_sub(given.memory).min(memory),
            cpu: whole(self.level, wanted.cpu.saturating_sub(given.cpu)).min(cpu),
        }
    }
}

/// So much CPU, as a level can take it: a guest's kernel takes whole vCPUs.
fn whole(level: Level, cpu: MilliCores) -> MilliCores {
    match level {
        Level::Guest => MilliCores(cpu.0 / 1000 * 1000),
        Level::Application | Level::Host => cpu,
    }
}

/// The parts of the time, in percent, at which applications and the guest's kernel must be through.
const APPLICATION_PERCENT: u64 = 50;
const GUEST_PERCENT: u64 = 85;
/// A level that would have less time than this, in milliseconds, is passed over.
const LEAST_MS: u64 = 50;

/// The steps, in order, by which `wanted` is taken from a VM within so many milliseconds. Levels
/// that can give nothing are left out. The last deadline is `within_ms`.
#[must_use]
pub fn cascade(wanted: Amount, levels: &Levels, within_ms: u64) -> Vec<Step> {
    let until = |percent| within_ms / 100 * percent + within_ms % 100 * percent / 100;
    let mut steps = Vec::with_capacity(3);
    let mut add = |level, at_most: Amount, until_ms| {
        if at_most != Amount::default() {
            steps.push(Step { level, at_most, until_ms });
        }
    };
    if let Some(guest) = levels.guest {
        let asked = if within_ms >= 2 * LEAST_MS { until(APPLICATION_PERCENT) } else { 0 };
        if guest.hooks && asked > 0 {
            add(Level::Application, wanted, asked);
        }
        let spare = MilliCores(u64::from(guest.vcpus.saturating_sub(1)) * 1000);
        let at_most = Amount {
            memory: wanted.memory.min(guest.memory),
            cpu: whole(Level::Guest, wanted.cpu).min(spare),
        };
        if until(GUEST_PERCENT) - asked >= LEAST_MS / 2 {
            add(Level::Guest, at_most, until(GUEST_PERCENT));
        }
    }
    let at_most = Amount { memory: wanted.memory.min(levels.swap), cpu: wanted.cpu };
    add(Level::Host, at_most, within_ms);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(mib: u64, cpu: u64) -> Amount {
        Amount { memory: Bytes::mib(mib), cpu: MilliCores(cpu) }
    }

    fn levels() -> Levels {
        let guest = GuestLevel { hooks: true, memory: Bytes::mib(300), vcpus: 4 };
        Levels { guest: Some(guest), swap: Bytes::mib(1000) }
    }

    fn step(level: Level, at_most: Amount, until_ms: u64) -> Step {
        Step { level, at_most, until_ms }
    }

    #[test]
    fn each_level_has_its_time_and_the_next_takes_the_rest() {
        let wanted = amount(500, 2500);
        let steps = cascade(wanted, &levels(), 5000);
        let expected = [
            step(Level::Application, wanted, 2500),
            step(Level::Guest, amount(300, 2000), 4250),
            step(Level::Host, wanted, 5000),
        ];
        assert_eq!(steps, expected);
        assert_eq!(steps[1].ask(wanted, amount(0, 0)), amount(300, 2000));
        assert_eq!(steps[1].ask(wanted, amount(250, 600)), amount(250, 1000));
        assert_eq!(steps[2].ask(wanted, amount(300, 2000)), amount(200, 500));
        assert_eq!(steps[2].ask(wanted, amount(600, 9000)), amount(0, 0));
    }

    #[test]
    fn levels_that_can_give_nothing_are_passed_over() {
        let silent = Levels { guest: None, ..levels() };
        let host = [step(Level::Host, amount(500, 1000), 5000)];
        assert_eq!(cascade(amount(500, 1000), &silent, 5000), host);
        let names = |wanted, levels: &Levels, within| -> Vec<Level> {
            cascade(wanted, levels, within).iter().map(|step| step.level).collect()
        };
        // Nothing to page out to, and nothing of its CPU is wanted.
        let no_swap = Levels { swap: Bytes::ZERO, ..levels() };
        assert_eq!(names(amount(500, 0), &no_swap, 5000), [Level::Application, Level::Guest]);
        // A part of a core: no vCPU can go for it.
        assert_eq!(names(amount(0, 900), &levels(), 5000), [Level::Application, Level::Host]);
        assert_eq!(names(amount(500, 0), &levels(), 60), [Level::Guest, Level::Host]);
        assert_eq!(names(amount(500, 0), &levels(), 0), [Level::Host]);
        assert_eq!(names(amount(0, 0), &levels(), 5000), []);
        assert_eq!(names(amount(u64::MAX >> 20, u64::MAX), &levels(), u64::MAX).len(), 3);
    }
}

//! [`plimsoll_balance::consolidate`] in the experiment.

use plimsoll_balance::consolidate::{self, Aim, Unconstrained};
use plimsoll_model::{Bytes, MilliCores};

use super::{Experiment, HOST_MB, Memory, fleet::Fleet};

/// What the deciding code is told. A MIPS is taken as a thousandth of a core.
pub(super) struct Plimsoll {
    aim: Aim,
    hosts: Vec<consolidate::Host>,
    /// Samples of each VM up to now.
    seen: Vec<Vec<MilliCores>>,
    /// The round in which each VM moved last.
    moved: Vec<Option<usize>>,
}

impl Plimsoll {
    pub(super) fn new(experiment: &Experiment, aim: &Aim) -> Self {
        let memory = match experiment.memory {
            Memory::Ignored => Bytes(u64::MAX),
            Memory::Enforced => Bytes::mib(u64::from(HOST_MB)),
        };
        let hosts = experiment.hosts.iter().map(|host| consolidate::Host {
            cpu: cpu(host.mips),
            cpu_of_one: cpu(host.core_mips),
            memory,
            power: host.power.clone(),
            awake: false,
        });
        Self {
            aim: *aim,
            hosts: hosts.collect(),
            seen: vec![Vec::new(); experiment.vms.len()],
            moved: vec![None; experiment.vms.len()],
        }
    }

    pub(super) fn decide(
        &mut self,
        experiment: &Experiment,
        round: usize,
        fleet: &Fleet,
    ) -> Vec<(usize, usize)> {
        for (number, host) in self.hosts.iter_mut().enumerate() {
            host.awake = !fleet.vms_of(number).is_empty();
        }
        for (seen, vm) in self.seen.iter_mut().zip(&experiment.vms) {
            seen.push(cpu(vm.asked[round]));
        }
        let there: Vec<_> =
            (0..experiment.vms.len()).filter_map(|vm| Some((vm, fleet.host_of(vm)?))).collect();
        let vms = there.iter().map(|(number, host)| {
            let (number, host) = (*number, *host);
            let vm = &experiment.vms[number];
            let ago = |moved: usize| u32::try_from(round - moved).unwrap_or(u32::MAX);
            consolidate::Vm {
                cpu: cpu(vm.mips),
                memory: Bytes::mib(u64::from(vm.memory_mb)),
                host,
                recent: &self.seen[number],
                moved_ago: self.moved[number].map(ago),
            }
        });
        let vms: Vec<_> = vms.collect();
        let plan = consolidate::plan(&self.hosts, &vms, &mut Unconstrained, &self.aim);
        let moves: Vec<_> = plan.moves.iter().map(|one| (there[one.vm].0, one.to)).collect();
        for (vm, _) in &moves {
            self.moved[*vm] = Some(round);
        }
        moves
    }
}

/// MIPS of the experiment are whole numbers, or nearly so.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "casts of floats saturate, and MIPS are not negative"
)]
const fn cpu(mips: f64) -> MilliCores {
    MilliCores(mips.round() as u64)
}

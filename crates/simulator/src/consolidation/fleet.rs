//! Who is where, and on the way to where.

use super::{ConsolidationError, Experiment, HOST_MB};

/// VMs on hosts.
#[derive(Clone, Debug)]
pub(super) struct Fleet {
    /// Where a VM runs; none once it has ended.
    at: Vec<Option<usize>>,
    /// Where a VM is on its way to.
    coming: Vec<Option<usize>>,
    /// VMs of each host, with those on their way to it.
    on: Vec<Vec<usize>>,
}

impl Fleet {
    /// VMs as `CloudSim` places them at first, in their order, by what they may ask for at most and
    /// their memory: each where power rises the least above an idle host's, which is an empty host as
    /// long as there is one.
    pub(super) fn placed(experiment: &Experiment) -> Result<Self, ConsolidationError> {
        let mut booked = vec![(0.0, 0); experiment.hosts.len()];
        let mut at = Vec::with_capacity(experiment.vms.len());
        for vm in &experiment.vms {
            let mut best: Option<(f64, usize)> = None;
            for (number, host) in experiment.hosts.iter().enumerate() {
                let (mips, memory_mb) = booked[number];
                let fits = vm.mips <= host.core_mips
                    && mips + vm.mips <= host.mips
                    && memory_mb + vm.memory_mb <= HOST_MB;
                if !fits {
                    continue;
                }
                let watts = host.power.watts((mips + vm.mips) / host.mips) - host.power.watts(0.0);
                if best.is_none_or(|(least, _)| watts < least) {
                    best = Some((watts, number));
                }
            }
            let (_, host) = best.ok_or(ConsolidationError::Full {
                number: at.len() + 1,
                of: experiment.vms.len(),
            })?;
            booked[host].0 += vm.mips;
            booked[host].1 += vm.memory_mb;
            at.push(host);
        }
        Ok(Self::at(at, experiment.hosts.len()))
    }

    /// VMs on these hosts.
    pub(super) fn at(at: Vec<usize>, hosts: usize) -> Self {
        let mut on = vec![Vec::new(); hosts];
        for (vm, host) in at.iter().enumerate() {
            on[*host].push(vm);
        }
        Self { coming: vec![None; at.len()], at: at.into_iter().map(Some).collect(), on }
    }

    /// Where a VM runs; none once it has ended.
    pub(super) fn host_of(&self, vm: usize) -> Option<usize> {
        self.at[vm]
    }

    /// Whether the VM is on its way from this host.
    pub(super) fn is_leaving(&self, vm: usize, host: usize) -> bool {
        self.at[vm] == Some(host) && self.coming[vm].is_some()
    }

    /// Whether the VM is on its way to this host.
    pub(super) fn is_coming(&self, vm: usize, host: usize) -> bool {
        self.coming[vm] == Some(host)
    }

    /// VMs of a host, those on their way to it too.
    pub(super) fn vms_of(&self, host: usize) -> &[usize] {
        &self.on[host]
    }

    /// Hosts with VMs.
    pub(super) fn used(&self) -> usize {
        self.on.iter().filter(|vms| !vms.is_empty()).count()
    }

    /// VMs set out to hosts. One that is sent twice goes where it was sent last.
    pub(super) fn begin(&mut self, moves: &[(usize, usize)]) {
        for (vm, to) in moves {
            if let Some(before) = self.coming[*vm].take() {
                self.on[before].retain(|one| one != vm);
            }
            if self.at[*vm].is_some_and(|at| at != *to) {
                self.coming[*vm] = Some(*to);
                self.on[*to].push(*vm);
            }
        }
    }

    /// VMs that are on their way and of which this is true arrive.
    pub(super) fn finish(&mut self, arrives: impl Fn(usize) -> bool) {
        for vm in 0..self.at.len() {
            if let Some(to) = self.coming[vm].filter(|_| arrives(vm)) {
                self.leave(vm);
                self.at[vm] = Some(to);
                self.coming[vm] = None;
            }
        }
    }

    /// VMs that are not on their way and of which this is true end.
    pub(super) fn end(&mut self, ends: impl Fn(usize) -> bool) {
        for vm in 0..self.at.len() {
            if self.coming[vm].is_none() && ends(vm) {
                self.leave(vm);
                self.at[vm] = None;
            }
        }
    }

    /// VMs that have not ended.
    pub(super) fn vms(&self) -> usize {
        self.at.iter().flatten().count()
    }

    fn leave(&mut self, vm: usize) {
        if let Some(host) = self.at[vm] {
            self.on[host].retain(|one| *one != vm);
        }
    }
}

//! Clusters and requests drawn from a tape of bytes: cheap to make by the hundred thousand, and a
//! failing tape is shrunk by cutting and zeroing bytes.

use std::collections::BTreeSet;

use plimsoll_model::{
    BitsPerSecond, Bytes, BytesPerSecond, Constraint, ExclusiveAgainst, HostId, IoPerSecond, Label,
    MilliCores, Name, Policy, ProjectId, Resources, Rule, Scope, Strength, VmId,
};
use plimsoll_placement::{AnyModel, HostState, Request, TypicalRequest, Unschedulable, Workload};
use uuid::Uuid;

pub(crate) struct Tape<'a>(pub(crate) std::slice::Iter<'a, u8>);

impl<'a> Tape<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes.iter())
    }

    /// A number below `end`; 0 when the tape is at its end.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::from(self.0.next().copied().unwrap_or(0)) % end
    }

    /// True once in so many times, false at the end of the tape.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == times - 1
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.0.len() == 0
    }

    fn amount(&mut self, end: usize) -> u64 {
        self.below(end) as u64
    }

    pub(crate) fn policy(&mut self) -> Policy {
        Policy::ALL[self.below(Policy::ALL.len())]
    }

    pub(crate) fn host(&mut self, id: HostId, accelerators: bool) -> HostState {
        let rack = [None, Some("r1"), Some("r2")][self.below(3)].map(label);
        let zone = [None, Some("z1"), Some("z2")][self.below(3)].map(label);
        let mut labels = std::collections::BTreeMap::new();
        if let Some(value) = [None, Some("ssd"), Some("disk")][self.below(3)] {
            labels.insert(label("storage"), label(value));
        }
        let mut capacity = Resources {
            cpu: MilliCores::cores(self.amount(7) + 2),
            memory: Bytes::gib(self.amount(7) + 2),
            disk: Bytes::gib(self.amount(4) * 5),
            disk_bandwidth: BytesPerSecond(self.amount(3) * 100),
            disk_iops: IoPerSecond(self.amount(3) * 100),
            network: BitsPerSecond(self.amount(3) * 1000),
            ..Resources::default()
        };
        if self.once_in(8) {
            capacity.cpu = MilliCores::ZERO;
        }
        if self.once_in(4) {
            capacity.cpu.0 += self.amount(2);
        }
        if accelerators && self.once_in(2) {
            let amount = [1000, 2000, 2500, 3000][self.below(4)];
            capacity.accelerators.0.insert(label("t4"), amount);
        }
        if accelerators && self.once_in(4) {
            let amount = [1000, 2000][self.below(2)];
            capacity.accelerators.0.insert(label("a10"), amount);
        }
        HostState {
            id,
            name: format!("node-{}", id.0).parse().unwrap(),
            rack,
            zone,
            labels,
            capacity,
            pool: [None, None, Some("ceph")][self.below(3)].map(name),
            unschedulable: self.once_in(8).then_some(Unschedulable::Draining),
        }
    }

    pub(crate) fn hosts(&mut self, accelerators: bool) -> Vec<HostState> {
        let mut ids = BTreeSet::new();
        for _ in 0..=self.below(6) {
            ids.insert(HostId(1 + u32::try_from(self.below(20)).unwrap()));
        }
        ids.into_iter().map(|id| self.host(id, accelerators)).collect()
    }

    pub(crate) fn request(&mut self, vm: VmId, accelerators: bool) -> Request {
        let mut demand = Resources {
            cpu: MilliCores(self.amount(5) * 500),
            memory: Bytes::mib(self.amount(5) * 512),
            disk: Bytes::gib(self.amount(3)),
            ..Resources::default()
        };
        if self.once_in(3) {
            demand.disk_bandwidth = BytesPerSecond(self.amount(3) * 40);
            demand.disk_iops = IoPerSecond(self.amount(3) * 40);
            demand.network = BitsPerSecond(self.amount(3) * 400);
        }
        // By one unit too much or just enough; of elements whose unit is coarse enough for the
        // scores of two hosts to be clearly equal or clearly different.
        if self.once_in(4) {
            demand.cpu.0 += self.amount(2);
            demand.network.0 += self.amount(2);
        }
        if accelerators && self.once_in(3) {
            let amount = [250, 400, 500, 700, 1000, 2000, 1500][self.below(7)];
            demand.accelerators.0.insert(label("t4"), amount);
        }
        let accelerator = (accelerators && self.once_in(6)).then(|| self.any_model());
        let project = ProjectId(Uuid::from_u128(self.below(2) as u128));
        let mut request = Request::new(vm, project, demand);
        request.accelerator = accelerator;
        request.application = [None, Some("shop"), Some("mail")][self.below(3)].map(name);
        for group in ["g", "h"] {
            if self.once_in(2) {
                request.groups.insert(name(group));
            }
        }
        for _ in 0..[0, 0, 1, 1, 2, 3][self.below(6)] {
            request.constraints.push(self.constraint());
        }
        if self.once_in(12) {
            request.pinned_host = Some(HostId(1 + u32::try_from(self.below(20)).unwrap()));
        }
        if self.once_in(6) {
            request.excluded_host = Some(HostId(1 + u32::try_from(self.below(20)).unwrap()));
        }
        if self.once_in(12) {
            request.pool = Some(name("ceph"));
        }
        request
    }

    fn any_model(&mut self) -> AnyModel {
        let models: &[&str] =
            [&[][..], &["t4"], &["a10"], &["a10", "t4"], &["h100"]][self.below(5)];
        let models = models.iter().copied().map(label).collect();
        AnyModel { models, thousandths: [250, 400, 500, 1000, 2000][self.below(5)] }
    }

    /// What is said to be usually asked for.
    pub(crate) fn workload(&mut self, accelerators: bool) -> Vec<TypicalRequest> {
        let count = self.below(6);
        let typical = (0..count).map(|number| {
            let request = self.request(vm(number), accelerators);
            let Request { demand, accelerator, .. } = request;
            TypicalRequest { demand, accelerator, weight: self.amount(40) }
        });
        Workload::new(typical.collect::<Vec<_>>()).requests().to_vec()
    }

    fn constraint(&mut self) -> Constraint {
        let strength = [Strength::Required, Strength::Preferred][self.below(2)];
        let group = name(["g", "h"][self.below(2)]);
        let scope = [Scope::Host, Scope::Rack, Scope::Zone][self.below(3)];
        let rule = match self.below(6) {
            0 | 1 => Rule::AntiAffinity { group, scope },
            2 | 3 => Rule::Affinity { group, scope },
            4 => Rule::Exclusive {
                against: [ExclusiveAgainst::OtherProjects, ExclusiveAgainst::OtherApplications]
                    [self.below(2)],
            },
            _ => {
                let values = if self.once_in(3) {
                    vec![label("disk"), label("ssd")]
                } else {
                    vec![label("ssd")]
                };
                Rule::HostLabel { key: label("storage"), values }
            }
        };
        Constraint { strength, rule }
    }
}

pub(crate) fn vm(number: usize) -> VmId {
    VmId(Uuid::from_u128(number as u128))
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn label(text: &str) -> Label {
    text.parse().unwrap()
}

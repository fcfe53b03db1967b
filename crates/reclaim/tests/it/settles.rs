//! Closed loops: guests do as they are asked, use memory as Linux does, and are seen again.
//!
//! Each guest has processes that need a fixed amount, and files that would fill a fixed amount of
//! cache; what is left over is free. Under such a constant load targets must settle and stay.

use std::cell::Cell;

use plimsoll_model::{Amount, Bytes, Elasticity, MilliCores};
use plimsoll_reclaim::{GuestView, HostView, Memory, Plan, Pressure, Target, VmView, plan};
use proptest::{
    collection::vec,
    prelude::{ProptestConfig, any},
    test_runner::TestRunner,
};

use crate::scene::{Tape, drawn, elasticity, vm_id};

const MIB: u64 = 1 << 20;
const CASES: u32 = 5000;
/// By when targets must have settled, and for how long they must stay.
const SETTLED: usize = 200;
const STAY: usize = 200;

/// A guest under a constant load.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) elasticity: Elasticity,
    pub(crate) promised: u64,
    /// What its processes need.
    pub(crate) needs: u64,
    /// How much cache its files would fill ...
    pub(crate) files: u64,
    /// ... and how much of it is read again and again.
    pub(crate) hot: u64,
    /// Whether it tells the host of pages that it has freed.
    pub(crate) reports: bool,
    pub(crate) answers: bool,
    /// Its size at present.
    pub(crate) size: u64,
    pub(crate) target: u64,
    pub(crate) paged_out: u64,
    /// Free pages that the host still holds.
    stale: u64,
}

impl Guest {
    pub(crate) fn new(elasticity: Elasticity, promised: u64, needs: u64, files: u64) -> Self {
        Self {
            elasticity,
            promised,
            needs,
            files,
            hot: files / 4,
            reports: true,
            answers: true,
            size: promised,
            target: promised,
            paged_out: 0,
            stale: 0,
        }
    }

    /// What the kernel keeps free.
    fn watermark(&self) -> u64 {
        self.promised / 100 + 2 * MIB
    }

    fn caches(&self) -> u64 {
        self.files.min(self.size.saturating_sub(self.needs + self.watermark()))
    }

    fn free(&self) -> u64 {
        self.size.saturating_sub(self.needs + self.caches())
    }

    pub(crate) fn resident(&self) -> u64 {
        let used = (self.needs + self.caches()).min(self.size);
        used.saturating_sub(self.paged_out) + self.stale.min(self.free())
    }

    /// Part of the time that it waits: its hot files do not fit.
    fn pressure(&self) -> Pressure {
        let lacking = self.hot.saturating_sub(self.caches());
        let some = if lacking == 0 { 0 } else { 100 + 800 * lacking / self.hot.max(1) };
        Pressure { some: u16::try_from(some).unwrap(), full: 0 }
    }

    pub(crate) fn view<'a>(&'a self, number: usize) -> VmView<'a> {
        let guest = GuestView {
            total: Bytes(self.size),
            free: Bytes(self.free()),
            available: Bytes(self.free() + self.caches() / 10 * 9),
            active_file: Bytes(self.hot.min(self.caches())),
            pressure: self.pressure(),
            starved: self.needs > self.size,
        };
        let promised = Amount { memory: Bytes(self.promised), cpu: MilliCores(1000) };
        VmView {
            vm: vm_id(number),
            elasticity: &self.elasticity,
            promised,
            allocated: Amount { memory: Bytes(self.target), ..promised },
            resident: Bytes(self.resident()),
            guest: self.answers.then_some(guest),
            working_set: self
                .answers
                .then_some(Bytes(self.needs + self.caches() / 10 + self.hot.min(self.caches()))),
            growing: false,
            asked: Amount::default(),
        }
    }

    /// Carries a target out. The balloon takes up to a GiB a second; what is paged out is not touched.
    pub(crate) fn follow(&mut self, target: &Target) {
        self.target = target.memory.0;
        let before = self.caches();
        if self.answers {
            self.size = self.target.max(self.size.saturating_sub(1 << 30));
        }
        if !self.reports {
            // What a shrinking cache frees is held until the balloon takes it.
            self.stale = (self.stale + before.saturating_sub(self.caches())).min(self.free());
        }
        if let Some(resident) = target.resident {
            self.paged_out += self.resident().saturating_sub(resident.0);
        }
        self.paged_out = self.paged_out.min(self.needs + self.caches());
    }
}

/// A host with guests.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) memory: u64,
    pub(crate) swap: u64,
    pub(crate) guests: Vec<Guest>,
    pub(crate) remembered: Memory,
}

impl World {
    pub(crate) fn host(&self) -> HostView {
        let resident: u64 = self.guests.iter().map(Guest::resident).sum();
        let paged_out: u64 = self.guests.iter().map(|guest| guest.paged_out).sum();
        HostView {
            memory: Bytes(self.memory),
            overhead: Bytes(0),
            available: Bytes(self.memory.saturating_sub(resident)),
            swap_free: Bytes(self.swap.saturating_sub(paged_out)),
            cpu: MilliCores(8000),
            pressure: Pressure::default(),
            idle_tax: 750,
        }
    }

    pub(crate) fn round(&mut self) -> Plan {
        let views: Vec<VmView<'_>> =
            self.guests.iter().enumerate().map(|(number, guest)| guest.view(number)).collect();
        let (plan, remembered) = plan(&self.host(), &views, &self.remembered);
        self.remembered = remembered;
        for (guest, target) in self.guests.iter_mut().zip(&plan.targets) {
            guest.follow(target);
        }
        plan
    }
}

fn world(tape: &mut Tape<'_>) -> World {
    let guests: Vec<Guest> = (0..1 + tape.below(6))
        .map(|_| {
            let promised = (64 + tape.below(2000)) * MIB;
            let amount = Amount { memory: Bytes(promised), cpu: MilliCores(1000) };
            let needs = promised / 10 + tape.below(700) * promised / 1000;
            let files = tape.below(1000) * promised / 800;
            let mut guest = Guest::new(elasticity(tape, amount), promised, needs, files);
            guest.hot = files / 256 * tape.below(256);
            guest.reports = !tape.once_in(3);
            guest.answers = !tape.once_in(8);
            if !guest.reports {
                guest.stale = guest.free();
            }
            guest
        })
        .collect();
    let resident: u64 = guests.iter().map(Guest::resident).sum();
    // From three quarters of what they would hold to more than that.
    let memory = resident / 100 * (75 + tape.below(45));
    World { memory, swap: tape.below(2000) * MIB, guests, remembered: Memory::default() }
}

fn sizes(plan: &Plan) -> Vec<(Bytes, Option<Bytes>, u16)> {
    plan.targets.iter().map(|target| (target.memory, target.resident, target.cpu_weight)).collect()
}

#[test]
fn under_a_constant_load_targets_settle_and_stay() {
    let (cut, states) = (Cell::new(0), Cell::new([0; 4]));
    let config = ProptestConfig { cases: CASES, ..ProptestConfig::default() };
    let result =
        TestRunner::new_with_rng(config, drawn()).run(&vec(any::<u8>(), 0..200), |bytes| {
            let mut world = world(&mut Tape::new(&bytes));
            for _ in 0..SETTLED {
                world.round();
            }
            let settled = world.round();
            for round in 0..STAY {
                let next = world.round();
                assert_eq!(
                    sizes(&next),
                    sizes(&settled),
                    "round {round} of {world:#?} {next:#?} {settled:#?}"
                );
                assert_eq!(next.state, settled.state);
            }
            let is_cut = world.guests.iter().any(|guest| guest.target < guest.promised);
            cut.set(cut.get() + u32::from(is_cut));
            let mut counts = states.get();
            counts[settled.state as usize] += 1;
            states.set(counts);
            Ok(())
        });
    if let Err(error) = result {
        panic!("{error}");
    }
    eprintln!("{} hosts with VMs that are cut; states {:?}", cut.get(), states.get());
    assert!(cut.get() > CASES / 4);
}

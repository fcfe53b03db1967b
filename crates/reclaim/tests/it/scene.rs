//! Hosts with VMs, as they may be seen: likely ones and impossible ones.

use plimsoll_model::{
    Amount, Bytes, Elasticity, Fraction, MilliCores, UtilityCurve, UtilityCurves, UtilityPoint,
    VmId,
};
use plimsoll_reclaim::{GuestView, HostView, Pressure, VmView};
use uuid::Uuid;

const MIB: u64 = 1 << 20;

/// Random bytes as a source of choices, so that a failing case shrinks to a short one.
pub(crate) struct Tape<'a> {
    bytes: &'a [u8],
}

impl<'a> Tape<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    fn byte(&mut self) -> u64 {
        let Some((first, rest)) = self.bytes.split_first() else { return 0 };
        self.bytes = rest;
        u64::from(*first)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        let number = if limit > 256 { self.byte() << 8 | self.byte() } else { self.byte() };
        number % limit.max(1)
    }

    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == times - 1
    }

    /// Any number, the extremes more often.
    fn any(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => u64::MAX - self.byte(),
            3 => self.byte(),
            _ => (0..8).fold(0, |number, _| number << 8 | self.byte()) >> self.below(64),
        }
    }

    fn mib(&mut self, limit: u64) -> Bytes {
        Bytes(self.below(limit) * MIB + self.below(3) * 777)
    }

    /// A part of an amount, from nothing to all.
    fn part(&mut self, of: Bytes) -> Bytes {
        Bytes(of.0 / 255 * self.byte() + if self.once_in(4) { of.0 % 255 } else { 0 })
    }
}

/// A VM and what is seen of it.
#[derive(Clone, Debug)]
pub(crate) struct Vm {
    pub(crate) id: VmId,
    pub(crate) elasticity: Elasticity,
    pub(crate) promised: Amount,
    pub(crate) allocated: Amount,
    pub(crate) resident: Bytes,
    pub(crate) guest: Option<GuestView>,
    pub(crate) working_set: Option<Bytes>,
    pub(crate) growing: bool,
    pub(crate) asked: Amount,
}

impl Vm {
    pub(crate) fn view(&self) -> VmView<'_> {
        VmView {
            vm: self.id,
            elasticity: &self.elasticity,
            promised: self.promised,
            allocated: self.allocated,
            resident: self.resident,
            guest: self.guest,
            working_set: self.working_set,
            growing: self.growing,
            asked: self.asked,
        }
    }

    /// What it always has.
    pub(crate) fn minimum(&self) -> Amount {
        let (memory, cpu) = self.elasticity.minimum(self.promised.memory, self.promised.cpu);
        Amount { memory, cpu }
    }

    pub(crate) fn is_guaranteed(&self) -> bool {
        matches!(self.elasticity, Elasticity::Guaranteed)
    }

    /// What is left free in its guest, as the documentation says: 32 MiB, or 3 %.
    pub(crate) fn reserve(&self) -> u64 {
        (self.promised.memory.0 / 100 * 3).max(32 * MIB)
    }
}

/// A host and its VMs.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    pub(crate) host: HostView,
    pub(crate) vms: Vec<Vm>,
}

impl Scene {
    pub(crate) fn views(&self) -> Vec<VmView<'_>> {
        self.vms.iter().map(Vm::view).collect()
    }
}

pub(crate) fn vm_id(number: usize) -> VmId {
    VmId(Uuid::from_u128(number as u128 + 1))
}

pub(crate) fn with_shares(elasticity: &Elasticity, more: u32) -> Elasticity {
    let mut elasticity = elasticity.clone();
    if let Elasticity::Burstable { shares, .. } | Elasticity::Deflatable { shares, .. } =
        &mut elasticity
    {
        *shares = shares.saturating_add(more).min(10_000);
    }
    elasticity
}

fn curve(tape: &mut Tape<'_>) -> UtilityCurve {
    let count = 2 + tape.below(5);
    let (mut allocation, mut utility) = (0, 0);
    let mut points = Vec::new();
    for left in (0..count).rev() {
        allocation += 1 + tape.below(250_000 / count * 4);
        utility += tape.below(1_000_000 / count);
        let allocation = if left == 0 { 1_000_000 } else { allocation.min(999_990 - left) };
        let millionths = |number| Fraction::millionths(u32::try_from(number).unwrap());
        points.push(UtilityPoint {
            allocation: millionths(allocation),
            utility: millionths(utility),
        });
    }
    points.dedup_by_key(|point| point.allocation);
    UtilityCurve::new(points).unwrap_or_else(|_| {
        let whole = UtilityPoint { allocation: Fraction::ONE, utility: Fraction::ONE };
        let none = UtilityPoint { allocation: Fraction::ZERO, utility: Fraction::ZERO };
        UtilityCurve::new(vec![none, whole]).unwrap()
    })
}

pub(crate) fn elasticity(tape: &mut Tape<'_>, promised: Amount) -> Elasticity {
    let memory_min = tape.part(promised.memory);
    let cpu_min = MilliCores(tape.part(Bytes(promised.cpu.0)).0);
    let shares = match tape.below(4) {
        0 => 1 + u32::try_from(tape.below(10_000)).unwrap(),
        1 => 200,
        _ => 100,
    };
    match tape.below(5) {
        0 => Elasticity::Guaranteed,
        1 | 2 => Elasticity::Burstable { memory_min, cpu_min, shares },
        kind => {
            let utility = (kind == 3).then(|| UtilityCurves {
                memory: (!tape.once_in(3)).then(|| curve(tape)),
                cpu: tape.once_in(2).then(|| curve(tape)),
            });
            Elasticity::Deflatable { memory_min, cpu_min, shares, utility }
        }
    }
}

/// A VM as it may be seen.
fn likely(tape: &mut Tape<'_>, number: usize) -> Vm {
    let promised = Amount { memory: tape.mib(8192), cpu: MilliCores(100 + tape.below(8000)) };
    let elasticity = elasticity(tape, promised);
    let (least, _) = elasticity.minimum(promised.memory, promised.cpu);
    let cut = tape.once_in(2);
    let size = if cut { promised.memory.saturating_sub(least) } else { Bytes::ZERO };
    let allocated = promised.memory.saturating_sub(tape.part(size));
    let total = if tape.once_in(6) { promised.memory } else { allocated };
    let free = tape.part(total);
    let free = if tape.once_in(3) { Bytes(free.0 / 50) } else { free };
    let caches = tape.part(total.saturating_sub(free));
    let resident = match tape.below(4) {
        0 => total,
        1 => tape.part(total),
        _ => total.saturating_sub(free),
    };
    let pressure = Pressure {
        some: if tape.once_in(5) { u16::try_from(tape.below(1000)).unwrap() } else { 0 },
        full: 0,
    };
    let guest = GuestView {
        total,
        free,
        available: free.saturating_add(caches),
        active_file: tape.part(caches),
        pressure,
        starved: tape.once_in(20),
    };
    let asked = if tape.once_in(6) {
        Amount {
            memory: tape.part(promised.memory),
            cpu: MilliCores(tape.part(Bytes(promised.cpu.0)).0),
        }
    } else {
        Amount::default()
    };
    Vm {
        id: vm_id(number),
        elasticity,
        promised,
        allocated: Amount { memory: allocated, cpu: promised.cpu },
        resident,
        guest: (!tape.once_in(6)).then_some(guest),
        working_set: (!tape.once_in(3)).then(|| tape.part(total)),
        growing: tape.once_in(10),
        asked,
    }
}

/// A VM of which anything may be said.
fn wild(tape: &mut Tape<'_>, number: usize) -> Vm {
    let amount =
        |tape: &mut Tape<'_>| Amount { memory: Bytes(tape.any()), cpu: MilliCores(tape.any()) };
    let promised = amount(tape);
    let (memory_min, cpu_min) = (Bytes(tape.any()), MilliCores(tape.any()));
    let shares = u32::try_from(tape.any() >> 32).unwrap();
    let elasticity = match tape.below(3) {
        0 => Elasticity::Guaranteed,
        1 => Elasticity::Burstable { memory_min, cpu_min, shares },
        _ => {
            let utility = tape
                .once_in(2)
                .then(|| UtilityCurves { memory: Some(curve(tape)), cpu: Some(curve(tape)) });
            Elasticity::Deflatable { memory_min, cpu_min, shares, utility }
        }
    };
    let guest = GuestView {
        total: Bytes(tape.any()),
        free: Bytes(tape.any()),
        available: Bytes(tape.any()),
        active_file: Bytes(tape.any()),
        pressure: Pressure {
            some: u16::try_from(tape.any() >> 48).unwrap(),
            full: u16::try_from(tape.any() >> 48).unwrap(),
        },
        starved: tape.once_in(5),
    };
    Vm {
        id: vm_id(number),
        elasticity,
        promised,
        allocated: amount(tape),
        resident: Bytes(tape.any()),
        guest: (!tape.once_in(4)).then_some(guest),
        working_set: tape.once_in(2).then(|| Bytes(tape.any())),
        growing: tape.once_in(4),
        asked: if tape.once_in(3) { amount(tape) } else { Amount::default() },
    }
}

/// A host that is as short of memory as the tape says, with up to eight VMs.
pub(crate) fn scene(tape: &mut Tape<'_>) -> Scene {
    let impossible = tape.once_in(6);
    let vms: Vec<Vm> = (0..1 + usize::try_from(tape.below(8)).unwrap())
        .map(|number| if impossible { wild(tape, number) } else { likely(tape, number) })
        .collect();
    let host = if impossible {
        HostView {
            memory: Bytes(tape.any()),
            overhead: Bytes(tape.any()),
            available: Bytes(tape.any()),
            swap_free: Bytes(tape.any()),
            cpu: MilliCores(tape.any()),
            pressure: Pressure { some: 0, full: u16::try_from(tape.any() >> 48).unwrap() },
            idle_tax: u16::try_from(tape.any() >> 48).unwrap(),
        }
    } else {
        let resident: u64 = vms.iter().map(|vm| vm.resident.0).sum();
        let overhead = vms.len() as u64 * 90 * MIB;
        let used = resident + overhead;
        // From a tenth less than there is to a fifth more.
        let memory = Bytes(used / 1000 * (900 + tape.below(320)));
        HostView {
            memory,
            overhead: Bytes(overhead),
            available: Bytes(memory.0.saturating_sub(used) + tape.mib(64).0),
            swap_free: if tape.once_in(3) { Bytes::ZERO } else { tape.mib(4096) },
            cpu: MilliCores(tape.below(20_000)),
            pressure: Pressure::default(),
            idle_tax: if tape.once_in(4) { u16::try_from(tape.below(1000)).unwrap() } else { 750 },
        }
    };
    Scene { host, vms }
}

/// The same cases at every run, so that a change is judged by what it changes. Other ones are for
/// whoever looks for them.
pub(crate) fn drawn() -> proptest::test_runner::TestRng {
    proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha)
}

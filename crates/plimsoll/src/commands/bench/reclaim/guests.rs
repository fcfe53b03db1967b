//! Made-up guests whose loads change, and who do as they are asked.
//!
//! Each has processes whose need wanders, and files that would fill a cache; what is left is free.

use plimsoll_model::{
    Amount, Bytes, Elasticity, Fraction, MilliCores, UtilityCurve, UtilityCurves, UtilityPoint,
    VmId,
};
use plimsoll_reclaim::{
    DEFAULT_IDLE_TAX, GuestView, HostView, Pressure, Target, VmView, WorkingSet,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use uuid::Uuid;

const GIB: u64 = 1 << 30;
/// What QEMU holds beside the guest's memory.
const OVERHEAD: u64 = 96 << 20;

/// All guests of a host.
pub(super) struct Guests {
    random: ChaCha8Rng,
    memory: u64,
    guests: Vec<Guest>,
}

struct Guest {
    id: VmId,
    elasticity: Elasticity,
    promised: Amount,
    size: u64,
    needs: u64,
    files: u64,
    paged_out: u64,
    answers: bool,
    working_set: WorkingSet,
}

impl Guests {
    /// So many guests, promised so many percent of the host's memory.
    pub(super) fn new(vms: u32, promised_percent: u32, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let guests: Vec<Guest> = (0..vms).map(|number| Guest::new(number, &mut random)).collect();
        let promised: u64 = guests.iter().map(|guest| guest.promised.memory.0 + OVERHEAD).sum();
        Self { random, memory: promised / u64::from(promised_percent) * 100, guests }
    }

    /// A second passes.
    pub(super) fn live(&mut self) {
        for guest in &mut self.guests {
            guest.live(&mut self.random);
        }
    }

    pub(super) fn host(&self) -> HostView {
        let overhead = self.guests.len() as u64 * OVERHEAD;
        let resident: u64 = self.guests.iter().map(Guest::resident).sum();
        let paged_out: u64 = self.guests.iter().map(|guest| guest.paged_out).sum();
        HostView {
            memory: Bytes(self.memory),
            overhead: Bytes(overhead),
            available: Bytes(self.memory.saturating_sub(overhead + resident)),
            swap_free: Bytes((self.memory / 2).saturating_sub(paged_out)),
            cpu: MilliCores::cores(self.guests.len() as u64),
            pressure: Pressure::default(),
            idle_tax: DEFAULT_IDLE_TAX,
        }
    }

    pub(super) fn views(&self) -> Vec<VmView<'_>> {
        self.guests.iter().map(Guest::view).collect()
    }

    pub(super) fn follow(&mut self, targets: &[Target]) {
        for (guest, target) in self.guests.iter_mut().zip(targets) {
            guest.size = target.memory.0;
            if let Some(resident) = target.resident {
                guest.paged_out += guest.resident().saturating_sub(resident.0);
            }
        }
    }
}

impl Guest {
    fn new(number: u32, random: &mut ChaCha8Rng) -> Self {
        let memory = random.random_range(1..=16) * GIB;
        let promised =
            Amount { memory: Bytes(memory), cpu: MilliCores(random.random_range(1..=8) * 1000) };
        Self {
            id: VmId(Uuid::from_u128(u128::from(number) + 1)),
            elasticity: elasticity(promised, random),
            promised,
            size: memory,
            needs: memory / 100 * random.random_range(10..40),
            files: memory / 100 * random.random_range(0..80),
            paged_out: 0,
            answers: true,
            working_set: WorkingSet::default(),
        }
    }

    fn live(&mut self, random: &mut ChaCha8Rng) {
        let memory = self.promised.memory.0;
        // Up to a percent a second, and sometimes another load.
        let step = memory / 100;
        let needs = match random.random_range(0..1000) {
            0 => memory / 100 * random.random_range(10..60),
            _ => (self.needs + random.random_range(0..=2 * step)).saturating_sub(step),
        };
        self.needs = needs.clamp(memory / 20, self.size);
        self.answers = if self.answers { random.random_range(0..1000) > 0 } else { true };
        // What is paged out comes back slowly.
        self.paged_out -= self.paged_out / 64;
        let guest = self.guest();
        self.working_set.observe(Some(&guest), None, 1000);
    }

    fn caches(&self) -> u64 {
        let kept_free = self.promised.memory.0 / 100;
        self.files.min(self.size.saturating_sub(self.needs + kept_free))
    }

    fn resident(&self) -> u64 {
        (self.needs + self.caches()).saturating_sub(self.paged_out)
    }

    fn guest(&self) -> GuestView {
        let free = self.size.saturating_sub(self.needs + self.caches());
        let hot = self.files / 8;
        let some = if self.caches() < hot { 150 } else { 0 };
        GuestView {
            total: Bytes(self.size),
            free: Bytes(free),
            available: Bytes(free + self.caches() / 10 * 9),
            active_file: Bytes(hot.min(self.caches())),
            pressure: Pressure { some, full: 0 },
            starved: self.needs >= self.size,
        }
    }

    fn view(&self) -> VmView<'_> {
        VmView {
            vm: self.id,
            elasticity: &self.elasticity,
            promised: self.promised,
            allocated: Amount { memory: Bytes(self.size), ..self.promised },
            resident: Bytes(self.resident()),
            guest: self.answers.then(|| self.guest()),
            working_set: self.working_set.estimate(),
            growing: false,
            asked: Amount::default(),
        }
    }
}

/// A tenth guaranteed; of the others half burstable, a quarter with a curve of its own.
fn elasticity(promised: Amount, random: &mut ChaCha8Rng) -> Elasticity {
    let memory_min = Bytes(promised.memory.0 / 8);
    let cpu_min = MilliCores(promised.cpu.0 / 10);
    let shares = [50, 100, 100, 200, 1000][random.random_range(0..5)];
    match random.random_range(0..20) {
        0 | 1 => Elasticity::Guaranteed,
        2..=10 => Elasticity::Burstable { memory_min, cpu_min, shares },
        kind => {
            let utility =
                (kind > 15).then(|| UtilityCurves { memory: curve(random), cpu: curve(random) });
            Elasticity::Deflatable { memory_min, cpu_min, shares, utility }
        }
    }
}

/// A curve as it is measured: eleven points, rising ever less on the whole, but not everywhere.
fn curve(random: &mut ChaCha8Rng) -> Option<UtilityCurve> {
    let mut lost = 1_000_000;
    let points = (1..=11).map(|step| {
        lost = lost / 100 * random.random_range(50..95);
        UtilityPoint {
            allocation: Fraction::of(step, 11),
            utility: Fraction::millionths(1_000_000 - lost),
        }
    });
    UtilityCurve::new(points.collect()).ok()
}

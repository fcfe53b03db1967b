//! The values of a host's state.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    hash::{BuildHasherDefault, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use plimsoll_model::{Element, Label, Policy, Resources};

use super::{
    state::{Pool, State},
    workload::{TypicalRequest, Workload},
};
use crate::{
    devices::{DeviceShare, Devices, WHOLE, demanded},
    row::{Row, SCALARS},
};

/// Of how many states the values are remembered; then they are forgotten.
const MAX_KNOWN: usize = 1 << 18;

/// How much of the workload the typical requests of FGD make up, in percent.
const TYPICAL_PERCENT: u128 = 95;

/// A workload, ready to judge hosts by.
#[derive(Debug)]
pub(crate) struct Measure {
    workload: Workload,
    fragment: Tables,
    room: Tables,
    /// How many cores a typical request could fill, where none asks for accelerators.
    cores: Option<Vec<Typical>>,
    known: [Mutex<Known>; 2],
    /// By demand, the costs on hosts without accelerators.
    costs: Mutex<HashMap<Scalars, Costs>>,
}

/// By what is free of a host.
type Costs = HashMap<Scalars, f64, BuildHasherDefault<Mixer>>;

/// Of how many demands costs are remembered, and of how many states for each.
const MAX_DEMANDS: usize = 256;
const MAX_COSTS: usize = MAX_KNOWN / MAX_DEMANDS;

/// A measure in the hands of one decision, which needs no lock for what is remembered of hosts
/// without accelerators. Of two decisions at a time the second remembers nothing.
#[derive(Debug)]
pub(crate) struct Judge {
    measure: Arc<Measure>,
    demand: Scalars,
    costs: RefCell<Costs>,
}

/// An amount of each scalar. It is looked up for every state of the index, so hash and comparison
/// are free of branches.
#[derive(Clone, Copy, Debug)]
struct Scalars([u64; SCALARS]);

impl PartialEq for Scalars {
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).fold(0, |apart, (a, b)| apart | (a ^ b)) == 0
    }
}

impl Eq for Scalars {}

impl Hash for Scalars {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut factor = 1_u64;
        let sum = self.0.iter().fold(0_u64, |sum, word| {
            factor = factor.wrapping_mul(0xD129_0D3B_3D27_41B5);
            sum.wrapping_add((word ^ word >> 32).wrapping_mul(factor))
        });
        state.write_u64(sum);
    }
}

/// Values of states by their keys.
#[derive(Debug, Default)]
struct Known {
    values: HashMap<Box<[u64]>, f64, BuildHasherDefault<Mixer>>,
    key: Vec<u64>,
}

/// The requests that can use a model, for every model that one of them names, and for all others.
#[derive(Debug)]
struct Tables {
    models: BTreeMap<Label, Table>,
    others: Table,
}

#[derive(Debug, Default)]
struct Table {
    /// The number of the model among those that are told apart.
    number: u64,
    /// The different amounts that are asked for of the model.
    needs: Vec<u64>,
    typical: Vec<Typical>,
}

/// A typical request as a user of one model.
#[derive(Clone, Debug)]
struct Typical {
    scalars: [u64; SCALARS],
    /// The place of what it asks of the model.
    need: usize,
    /// What it asks of other models beside.
    beside: Vec<(Label, u64)>,
    /// Its share of the workload.
    weight: f64,
}

/// What free devices are worth to those who ask for one amount.
#[derive(Clone, Copy, Debug)]
struct Use {
    /// How much of them is on devices that are large enough, in thousandths; 0 when too few are.
    usable: u64,
    /// How much of them requests of this amount could take, in thousandths.
    most: u64,
}

impl Use {
    fn new(devices: &[u64], need: u64) -> Self {
        if need < WHOLE {
            let large = devices.iter().filter(|free| **free >= need);
            let most = devices.iter().map(|free| free / need).sum::<u64>() * need;
            return Self { usable: large.sum(), most };
        }
        let whole = devices.iter().filter(|free| **free == WHOLE).count() as u64;
        let each = need.div_ceil(WHOLE);
        let usable = if whole >= each { whole * WHOLE } else { 0 };
        Self { usable, most: whole / each * each * WHOLE }
    }
}

impl Tables {
    /// `typical` with their shares of the workload.
    fn new(typical: &[(TypicalRequest, f64)]) -> Self {
        let named = typical.iter().flat_map(|(request, _)| {
            let any = request.accelerator.iter().flat_map(|any| &any.models);
            demanded(&request.demand.accelerators).map(|(model, _)| model).chain(any)
        });
        let mut models: BTreeMap<Label, Table> =
            named.map(|model| (model.clone(), Table::default())).collect();
        for (number, (model, table)) in (1..).zip(&mut models) {
            *table = Table::new(number, Some(model), typical);
        }
        Self { models, others: Table::new(0, None, typical) }
    }

    fn of(&self, model: &Label) -> &Table {
        self.models.get(model).unwrap_or(&self.others)
    }
}

impl Table {
    fn new(number: u64, model: Option<&Label>, typical: &[(TypicalRequest, f64)]) -> Self {
        let mut table = Self { number, ..Self::default() };
        for (request, weight) in typical {
            let TypicalRequest { demand, accelerator, .. } = request;
            let any = accelerator.as_ref().filter(|any| match model {
                Some(model) => any.accepts(model),
                None => any.models.is_empty(),
            });
            if accelerator.is_some() && any.is_none() {
                continue;
            }
            let own = model.map_or(0, |model| demand.accelerators.get(model));
            let need = own + any.map_or(0, |any| any.thousandths);
            if need == 0 {
                continue;
            }
            let at = table.needs.iter().position(|known| *known == need).unwrap_or_else(|| {
                table.needs.push(need);
                table.needs.len() - 1
            });
            let beside = demanded(&demand.accelerators).filter(|(other, _)| Some(*other) != model);
            table.typical.push(Typical {
                scalars: demand.scalars(),
                need: at,
                beside: beside.map(|(other, need)| (other.clone(), need)).collect(),
                weight: *weight,
            });
        }
        table
    }
}

impl Typical {
    /// Whether a host with so much free has what it asks for of other models.
    fn fits_beside(&self, state: &State<'_>) -> bool {
        self.beside.iter().all(|(model, need)| {
            let pool = state.pools.iter().find(|pool| pool.model == model);
            pool.is_some_and(|pool| Use::new(state.devices_of(pool), *need).most > 0)
        })
    }

    /// How many could run on a host with so much free, as far as scalars go; infinite for one
    /// that asks for none.
    fn count(&self, state: &State<'_>) -> f64 {
        let mut most = f64::INFINITY;
        for (need, free) in self.scalars.iter().zip(&state.free) {
            if *need > 0 && *free < u64::MAX {
                most = f64::min(most, *free as f64 / *need as f64);
            }
        }
        most
    }
}

impl Judge {
    /// For a decision about a demand.
    pub(crate) fn new(measure: Arc<Measure>, demand: &Resources) -> Self {
        let demand = Scalars(demand.scalars());
        let costs = measure.costs().remove(&demand).unwrap_or_default();
        Self { measure, demand, costs: RefCell::new(costs) }
    }

    /// The score of a host that can hold a demand.
    pub(crate) fn score(&self, policy: Policy, row: &Row, demand: &Resources) -> f64 {
        let measure = &self.measure;
        let cost = match (policy, &measure.cores) {
            (Policy::LeastStranding, Some(typical)) if row.pools().is_empty() => {
                self.cost_of_scalars(typical, row, demand)
            }
            _ => measure.place(policy, row, demand).0,
        };
        // The levels of FGD are better the higher they are.
        if policy == Policy::LeastStranding { cost } else { -cost }
    }

    /// The devices that a demand gets on a host that can hold it.
    pub(crate) fn devices(&self, policy: Policy, row: &Row, demand: &Resources) -> Devices {
        let (_, state, chosen) = self.measure.place(policy, row, demand);
        devices(row, demand, &state, &chosen)
    }

    /// The cost on a host without accelerators, where nobody asks for any.
    fn cost_of_scalars(&self, typical: &[Typical], row: &Row, demand: &Resources) -> f64 {
        debug_assert_eq!(self.demand.0, demand.scalars(), "the model changes no scalar");
        let mut key = Scalars(row.free);
        for (i, free) in key.0.iter_mut().enumerate() {
            if !row.accounts(i) {
                *free = u64::MAX;
            }
        }
        let mut costs = self.costs.borrow_mut();
        if costs.len() >= MAX_COSTS {
            costs.clear();
        }
        *costs.entry(key).or_insert_with(|| {
            let mut state = self.measure.state(true, row);
            let before = cores(typical, &state);
            state.take(demand);
            round(before - cores(typical, &state))
        })
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        let costs = self.costs.take();
        if costs.is_empty() {
            return;
        }
        let mut kept = self.measure.costs();
        if kept.len() >= MAX_DEMANDS {
            kept.clear();
        }
        kept.insert(self.demand, costs);
    }
}

impl Measure {
    pub(crate) fn new(workload: Workload) -> Self {
        let asks = |request: &&TypicalRequest| {
            request.accelerator.is_some() || demanded(&request.demand.accelerators).next().is_some()
        };
        let all = workload.requests();
        let users: Vec<_> = all.iter().filter(asks).cloned().collect();
        let cores = users.is_empty().then(|| {
            let with_cores = all.iter().filter(|request| request.demand.cpu.0 > 0).cloned();
            let users = in_shares(with_cores.collect());
            let typical = users.into_iter().map(|(request, weight)| Typical {
                scalars: request.demand.scalars(),
                need: 0,
                beside: Vec::new(),
                weight,
            });
            typical.collect()
        });
        Self {
            fragment: Tables::new(&in_shares(typical(all))),
            room: Tables::new(&in_shares(users)),
            cores,
            workload,
            known: Default::default(),
            costs: Mutex::default(),
        }
    }

    pub(crate) const fn workload(&self) -> &Workload {
        &self.workload
    }

    fn costs(&self) -> MutexGuard<'_, HashMap<Scalars, Costs>> {
        self.costs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The best way to place a demand: its cost, of which less is better, the state after it, and
    /// of each share the pool, the device and the amount.
    fn place<'a>(
        &self,
        policy: Policy,
        row: &'a Row,
        demand: &Resources,
    ) -> (f64, State<'a>, Vec<(usize, usize, u64)>) {
        let by_room = policy == Policy::LeastStranding;
        let known = &self.known[usize::from(by_room)];
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut value = |state: &State<'_>| self.value(by_room, state, &mut known);
        let mut state = self.state(by_room, row);
        let before = value(&state);
        let cost = |after: f64| if by_room { before - after } else { -level(before - after) };
        let shares = state.take(demand);
        let mut best = None;
        let mut chosen = Vec::new();
        for (pool, share) in shares {
            let mut least: Option<(f64, usize)> = None;
            for device in state.options(pool, share) {
                state.devices[device] -= share;
                let cost = round(cost(value(&state)));
                state.devices[device] += share;
                // Devices come by number: of equals the first stays.
                if least.is_none_or(|(least, _)| cost < least) {
                    least = Some((cost, device));
                }
            }
            if let Some((cost, device)) = least {
                state.devices[device] -= share;
                chosen.push((pool, device, share));
                best = Some(cost);
            }
        }
        let cost = best.unwrap_or_else(|| round(cost(value(&state))));
        (cost, state, chosen)
    }

    /// How much of a host's free accelerators typical requests could not use, in devices.
    pub(crate) fn fragments(&self, row: &Row) -> f64 {
        let mut known = self.known[0].lock().unwrap_or_else(PoisonError::into_inner);
        self.value(false, &self.state(false, row), &mut known)
    }

    fn state<'a>(&self, by_room: bool, row: &'a Row) -> State<'a> {
        let tables = if by_room { &self.room } else { &self.fragment };
        State::new(row, |model| tables.of(model).number)
    }

    fn value(&self, by_room: bool, state: &State<'_>, known: &mut Known) -> f64 {
        let tables = if by_room { &self.room } else { &self.fragment };
        state.key(&mut known.key);
        if let Some(value) = known.values.get(known.key.as_slice()) {
            return *value;
        }
        let value = match (by_room, &self.cores) {
            (true, Some(typical)) => cores(typical, state),
            (true, None) => state.sum(|pool| room(tables.of(pool.model), state, pool)),
            (false, _) => state.sum(|pool| fragment(tables.of(pool.model), state, pool)),
        };
        if known.values.len() >= MAX_KNOWN {
            known.values.clear();
        }
        known.values.insert(known.key.as_slice().into(), value);
        value
    }
}

/// The devices of one model that typical requests could not use.
fn fragment(table: &Table, state: &State<'_>, pool: &Pool<'_>) -> f64 {
    const CPU: usize = 0;
    let devices = state.devices_of(pool);
    let uses: Vec<_> = table.needs.iter().map(|need| Use::new(devices, *need)).collect();
    let mut usable = 0.0;
    for typical in &table.typical {
        if typical.scalars[CPU] <= state.free[CPU] && typical.fits_beside(state) {
            usable += typical.weight * uses[typical.need].usable as f64;
        }
    }
    (devices.iter().sum::<u64>() as f64 - usable) / WHOLE as f64
}

/// The room that the devices of one model are: what is free, times the mean of the fourth root of
/// the part of it that each typical request could fill on its own.
fn room(table: &Table, state: &State<'_>, pool: &Pool<'_>) -> f64 {
    let devices = state.devices_of(pool);
    let free = devices.iter().sum::<u64>() as f64;
    if free == 0.0 {
        return 0.0;
    }
    let uses: Vec<_> = table.needs.iter().map(|need| Use::new(devices, *need)).collect();
    let mut mean = 0.0;
    for typical in &table.typical {
        let most = uses[typical.need].most as f64;
        if most > 0.0 && typical.fits_beside(state) {
            let filled = f64::min(most, typical.count(state) * table.needs[typical.need] as f64);
            mean += typical.weight * f64::sqrt(f64::sqrt(filled / free));
        }
    }
    free / WHOLE as f64 * mean
}

/// The room that a host's cores are, where nobody asks for accelerators; VMs are counted whole.
fn cores(typical: &[Typical], state: &State<'_>) -> f64 {
    const CPU: usize = 0;
    let free = state.free[CPU];
    if free == 0 {
        return 0.0;
    }
    let mut mean = 0.0;
    for typical in typical {
        let filled = typical.count(state).floor() * typical.scalars[CPU] as f64;
        mean += typical.weight * f64::sqrt(f64::sqrt(filled / free as f64));
    }
    free as f64 / WHOLE as f64 * mean
}

/// Requests with their shares of all.
fn in_shares(requests: Vec<TypicalRequest>) -> Vec<(TypicalRequest, f64)> {
    let all: u128 = requests.iter().map(|request| u128::from(request.weight)).sum();
    let share = |request: &TypicalRequest| request.weight as f64 / all as f64;
    requests.into_iter().map(|request| (request.clone(), share(&request))).collect()
}

/// The typical requests of FGD: told apart by cores and accelerators only, the most frequent
/// until they are 95 % of all.
fn typical(all: &[TypicalRequest]) -> Vec<TypicalRequest> {
    let cores = Workload::new(all.iter().map(|request| {
        let mut demand = Resources { cpu: request.demand.cpu, ..Resources::default() };
        demand.accelerators = request.demand.accelerators.clone();
        TypicalRequest { demand, ..request.clone() }
    }));
    let all: u128 = cores.requests().iter().map(|request| u128::from(request.weight)).sum();
    let mut sum = 0;
    let mut typical = Vec::new();
    for request in cores.requests() {
        if sum * 100 >= all * TYPICAL_PERCENT {
            break;
        }
        sum += u128::from(request.weight);
        typical.push(request.clone());
    }
    typical
}

/// The percentage, rounded down, that the logistic function makes of devices won from fragments.
fn level(won: f64) -> f64 {
    (100.0 / (1.0 + exp(-round(won)))).floor()
}

/// The exponential, of the same bits on every machine.
fn exp(x: f64) -> f64 {
    const HALVINGS: u32 = 10;
    let x = x.clamp(-100.0, 100.0) / f64::from(1 << HALVINGS);
    let (mut sum, mut term) = (1.0, 1.0);
    for n in 1..=8 {
        term *= x / f64::from(n);
        sum += term;
    }
    for _ in 0..HALVINGS {
        sum *= sum;
    }
    sum
}

/// The devices of a demand: untouched ones for whole devices, and those chosen for shares.
fn devices(
    row: &Row,
    demand: &Resources,
    state: &State<'_>,
    chosen: &[(usize, usize, u64)],
) -> Devices {
    let number = |device: usize| u32::try_from(device).expect("there are at most MAX_DEVICES");
    let before = State::new(row, |_| 0);
    let mut devices: BTreeMap<Label, Vec<DeviceShare>> = BTreeMap::new();
    for (model, need) in demanded(&demand.accelerators) {
        let Some(at) = before.pools.iter().position(|pool| pool.model == model) else { continue };
        let free = before.devices_of(&before.pools[at]);
        let untouched = (0..free.len()).filter(|device| free[*device] == WHOLE);
        let whole = usize::try_from(need / WHOLE).unwrap_or(usize::MAX);
        let whole = untouched.take(whole);
        let mut shares: Vec<_> = whole
            .map(|device| DeviceShare { device: number(device), thousandths: WHOLE })
            .collect();
        for (pool, device, share) in chosen.iter().filter(|(pool, ..)| *pool == at) {
            let device = number(state.number(*pool, *device));
            shares.push(DeviceShare { device, thousandths: *share });
        }
        shares.sort();
        devices.insert(model.clone(), shares);
    }
    Devices(devices)
}

/// To 12 decimal digits, as all scores are.
fn round(value: f64) -> f64 {
    crate::score::round(value)
}

/// A hash of numbers that are not chosen by an enemy: a bad one costs time, not correctness.
#[derive(Debug, Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        for byte in rest {
            self.write_u64((*byte).into());
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

const _: () = assert!(matches!(Element::SCALARS[0], Element::Cpu), "the cores come first");

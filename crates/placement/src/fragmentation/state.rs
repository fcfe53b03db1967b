//! A host's free amounts, for trying a placement out.

use plimsoll_model::{Label, Resources};

use crate::{
    devices::{WHOLE, demanded},
    row::{Row, SCALARS},
};

/// What is free of a host.
#[derive(Clone, Debug)]
pub(super) struct State<'a> {
    /// Of each scalar; [`u64::MAX`] where the host does not account for it.
    pub(super) free: [u64; SCALARS],
    /// Of each device, pool by pool.
    pub(super) devices: Vec<u64>,
    pub(super) pools: Vec<Pool<'a>>,
}

/// The devices of one model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pool<'a> {
    pub(super) model: &'a Label,
    /// The number under which the workload knows the model.
    number: u64,
    start: usize,
    end: usize,
}

impl<'a> State<'a> {
    /// What is free of a host; `number` tells apart the models that the workload tells apart.
    pub(super) fn new(row: &'a Row, number: impl Fn(&Label) -> u64) -> Self {
        let mut free = row.free;
        for (i, free) in free.iter_mut().enumerate() {
            if !row.accounts(i) {
                *free = u64::MAX;
            }
        }
        let mut state = Self { free, devices: Vec::with_capacity(8), pools: Vec::new() };
        for pool in row.detail.held.pools.iter().filter(|pool| pool.capacity > 0) {
            let start = state.devices.len();
            state.devices.extend(pool.free_devices());
            let (model, end) = (&pool.model, state.devices.len());
            state.pools.push(Pool { model, number: number(model), start, end });
        }
        state
    }

    pub(super) fn devices_of(&self, pool: &Pool<'_>) -> &[u64] {
        &self.devices[pool.start..pool.end]
    }

    /// The sum of a value over the pools.
    pub(super) fn sum(&self, value: impl Fn(&Pool<'_>) -> f64) -> f64 {
        self.pools.iter().map(value).sum()
    }

    /// Takes the scalars of a demand, and the lowest untouched devices for its whole devices.
    /// What is left of the demand are shares: of each the place of its pool, and the amount.
    pub(super) fn take(&mut self, demand: &Resources) -> Vec<(usize, u64)> {
        for (free, need) in self.free.iter_mut().zip(demand.scalars()) {
            if *free < u64::MAX {
                *free = free.saturating_sub(need);
            }
        }
        let mut shares = Vec::new();
        for (model, need) in demanded(&demand.accelerators) {
            let Some(at) = self.pools.iter().position(|pool| pool.model == model) else { continue };
            let Pool { start, end, .. } = self.pools[at];
            let mut whole = need / WHOLE;
            for device in &mut self.devices[start..end] {
                if whole > 0 && *device == WHOLE {
                    *device = 0;
                    whole -= 1;
                }
            }
            if !need.is_multiple_of(WHOLE) {
                shares.push((at, need % WHOLE));
            }
        }
        shares
    }

    /// The devices, among those of all pools, that a share could go to: of equally free ones the
    /// first.
    pub(super) fn options(&self, pool: usize, share: u64) -> Vec<usize> {
        let Pool { start, end, .. } = self.pools[pool];
        let fits = (start..end).filter(|at| self.devices[*at] >= share);
        fits.filter(|at| !self.devices[start..*at].contains(&self.devices[*at])).collect()
    }

    /// The number of a device within its pool.
    pub(super) fn number(&self, pool: usize, device: usize) -> usize {
        device - self.pools[pool].start
    }

    /// Writes down all on which a value of the state depends: two states of the same key have the
    /// same value.
    pub(super) fn key(&self, key: &mut Vec<u64>) {
        key.clear();
        key.extend(self.free);
        for pool in &self.pools {
            let devices = self.devices_of(pool);
            key.push(pool.number << 32 | devices.len() as u64);
            let start = key.len();
            key.extend(devices);
            key[start..].sort_unstable();
        }
    }
}

//! Accelerator devices: a share sits on one device, whole devices are whole.

use std::collections::BTreeMap;

use plimsoll_model::{Accelerators, Label};
use serde::{Deserialize, Serialize};

/// One device in thousandths of itself.
pub(crate) const WHOLE: u64 = 1000;

/// The most devices of one model on one host that are told apart; a host that declares more is
/// taken to have this many, so that a wrong declaration cannot exhaust the memory.
pub const MAX_DEVICES: usize = 1024;

/// So much of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceShare {
    /// The device's number among those of its model on its host, from 0.
    pub device: u32,
    /// How much of it, in thousandths.
    pub thousandths: u64,
}

/// The devices of a host that a VM has, by model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Devices(pub BTreeMap<Label, Vec<DeviceShare>>);

impl Devices {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The shares of devices of one model.
    #[must_use]
    pub fn of(&self, model: &Label) -> &[DeviceShare] {
        self.0.get(model).map_or(&[], Vec::as_slice)
    }

    /// Those of the models asked for, no share of more than a device.
    pub(crate) fn asked_for(&self, accelerators: &Accelerators) -> Self {
        let kept = demanded(accelerators).filter_map(|(model, _)| {
            let mut shares = self.0.get(model)?.clone();
            for share in &mut shares {
                share.thousandths = share.thousandths.min(WHOLE);
            }
            Some((model.clone(), shares))
        });
        Self(kept.collect())
    }
}

/// The devices of one model on one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DevicePool {
    pub(crate) model: Label,
    /// Thousandths in all, at most `MAX_DEVICES` devices' worth.
    pub(crate) capacity: u64,
    /// What VMs were promised in all, on a device or not.
    pub(crate) committed: u128,
    /// What VMs were promised of each device; more than it has when facts say so.
    devices: Vec<u64>,
}

impl DevicePool {
    pub(crate) fn new(model: Label, capacity: u64) -> Self {
        let capacity = capacity.min(MAX_DEVICES as u64 * WHOLE);
        let count = usize::try_from(capacity.div_ceil(WHOLE)).unwrap_or(MAX_DEVICES);
        Self { model, capacity, committed: 0, devices: vec![0; count] }
    }

    /// Whether requests cannot tell two pools apart but by the devices' numbers.
    pub(crate) fn is_in_the_same_state_as(&self, other: &Self) -> bool {
        let free = |pool: &Self| {
            let mut free: Vec<_> =
                (0..pool.devices.len()).map(|device| pool.free_of(device)).collect();
            free.sort_unstable();
            free
        };
        self.model == other.model && self.capacity == other.capacity && free(self) == free(other)
    }

    /// What the device has in all: the last one of a broken number is only a part of a device.
    fn size(&self, device: usize) -> u64 {
        (self.capacity - device as u64 * WHOLE).min(WHOLE)
    }

    fn free_of(&self, device: usize) -> u64 {
        self.size(device).saturating_sub(self.devices[device])
    }

    /// What is free of each device.
    pub(crate) fn free_devices(&self) -> impl Iterator<Item = u64> {
        (0..self.devices.len()).map(|device| self.free_of(device))
    }

    /// What is free in all.
    pub(crate) fn free(&self) -> u64 {
        (0..self.devices.len()).map(|device| self.free_of(device)).sum()
    }

    /// Whether a VM with this need is not on devices for all of it, or one of its devices is
    /// promised more than once over.
    pub(crate) fn is_over(&self, need: u64, shares: &[DeviceShare]) -> bool {
        let placed: u64 = shares.iter().map(|share| share.thousandths).sum();
        placed < need
            || shares.iter().any(|share| {
                let device = share.device as usize;
                self.devices.get(device).is_none_or(|used| *used > self.size(device))
            })
    }

    /// What is free on the emptiest device.
    pub(crate) fn largest(&self) -> u64 {
        (0..self.devices.len()).map(|device| self.free_of(device)).max().unwrap_or(0)
    }

    /// Whether a request of so much can be met: its whole devices by untouched ones, and the rest,
    /// if any, by one more.
    pub(crate) fn fits(&self, need: u64) -> bool {
        let (whole, share) = (need / WHOLE, need % WHOLE);
        let mut untouched = 0;
        let mut partly = false;
        for device in 0..self.devices.len() {
            match self.free_of(device) {
                WHOLE => untouched += 1,
                free => partly |= free >= share,
            }
        }
        untouched >= whole && (share == 0 || partly || untouched > whole)
    }

    /// Chooses devices: untouched ones for whole devices, the fullest that still has room for a
    /// share (best fit, so that whole devices stay whole), the lowest number among equals. Where
    /// nothing fits, the emptiest device is charged: a fact is recorded even if it is too much.
    pub(crate) fn choose(&self, need: u64) -> Vec<DeviceShare> {
        let mut devices = self.devices.clone();
        let mut chosen = Vec::new();
        let number = |device: usize| u32::try_from(device).expect("there are at most MAX_DEVICES");
        let free =
            |devices: &[u64], device: usize| self.size(device).saturating_sub(devices[device]);
        if devices.is_empty() {
            return chosen;
        }
        let mut rest = need;
        while rest > 0 && chosen.len() < devices.len() {
            let part = rest.min(WHOLE);
            let best = (0..devices.len())
                .filter(|device| free(&devices, *device) >= part)
                .min_by_key(|device| (free(&devices, *device), *device))
                .or_else(|| (0..devices.len()).min_by_key(|device| (devices[*device], *device)));
            let Some(device) = best else { break };
            devices[device] = devices[device].saturating_add(part);
            chosen.push(DeviceShare { device: number(device), thousandths: part });
            rest -= part;
        }
        chosen.sort();
        chosen
    }

    pub(crate) fn add(&mut self, need: u64, shares: &[DeviceShare]) {
        self.committed += u128::from(need);
        for share in shares {
            if let Some(device) = self.devices.get_mut(share.device as usize) {
                *device += share.thousandths;
            }
        }
    }

    pub(crate) fn remove(&mut self, need: u64, shares: &[DeviceShare]) {
        self.committed -= u128::from(need);
        for share in shares {
            if let Some(device) = self.devices.get_mut(share.device as usize) {
                *device -= share.thousandths;
            }
        }
    }

    /// Takes over what another state of the same pool has more of, device by device.
    pub(crate) fn raise(&mut self, other: &Self) {
        self.committed = self.committed.max(other.committed);
        for (device, other) in self.devices.iter_mut().zip(&other.devices) {
            *device = (*device).max(*other);
        }
    }
}

/// The demand for accelerators without its zero entries.
pub(crate) fn demanded(accelerators: &Accelerators) -> impl Iterator<Item = (&Label, u64)> {
    accelerators.0.iter().map(|(model, need)| (model, *need)).filter(|(_, need)| *need > 0)
}

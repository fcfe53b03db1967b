//! Networks for VMs: those that are wanted, made when a VM comes and removed when none is left.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use plimsoll_api::{ErrorChain, cluster::DesiredNetwork};
use plimsoll_model::{BitsPerSecond, Interface, NetworkId, VmId};
use serde::Deserialize;
use thiserror::Error;
use tokio::time::Instant;

use crate::{
    command::{CommandError, Tool},
    link::NetworkSet,
    net::{Fabric, NetworkWanted, NicRates, NicWanted, bridge_name, tap_name},
    vm::{
        HostError, Networks, Tap,
        files::{self, FileError},
    },
};

/// As many as a seed can tell a guest of.
const MOST_INTERFACES: u8 = 32;

/// A network that has not changed is looked at again after so long.
const REFRESH: Duration = Duration::from_secs(60);

/// Why a network is not as a VM needs it, beside what can go wrong with the network itself.
#[derive(Debug, Error)]
pub enum HostNetworksError {
    /// The manager has not said what it is.
    #[error("this host has not been told what {network} is")]
    Unknown {
        /// Which.
        network: NetworkId,
    },
    /// More interfaces than a VM can have.
    #[error("a VM can have {MOST_INTERFACES} interfaces, not {count}")]
    TooManyInterfaces {
        /// How many there would be.
        count: usize,
    },
    /// It could not be seen which VMs are on a network.
    #[error("cannot see what is on network {vni}")]
    Members {
        /// Its VXLAN identifier.
        vni: u32,
        /// Why not.
        #[source]
        source: CommandError,
    },
    /// What is known could not be kept or read.
    #[error("cannot remember the networks")]
    Remember(#[source] FileError),
}

/// What the agent knows of a network.
#[derive(Debug)]
struct Known {
    wanted: DesiredNetwork,
    /// Whether the manager still lists it. One that it does not list is kept while a VM uses it.
    listed: bool,
    /// When it was last made so.
    ensured: Option<Instant>,
}

/// The networks of one host's VMs.
#[derive(Debug)]
pub struct HostNetworks {
    fabric: Fabric,
    own_address: Option<IpAddr>,
    /// Keeps what is known for the next agent.
    path: PathBuf,
    known: Mutex<BTreeMap<NetworkId, Known>>,
    /// The limit of each VM's single interface, in each direction.
    rates: Mutex<HashMap<VmId, BitsPerSecond>>,
    /// Nothing is removed between making a network and putting the first VM on it.
    turn: tokio::sync::Mutex<()>,
}

impl HostNetworks {
    /// The networks in `fabric`, with what an earlier agent knew of them. `own_address` is this
    /// host's on the underlay.
    ///
    /// # Errors
    /// [`HostNetworksError::Remember`].
    pub fn open(
        fabric: Fabric,
        own_address: Option<IpAddr>,
        path: PathBuf,
    ) -> Result<Self, HostNetworksError> {
        let remembered: Vec<DesiredNetwork> =
            files::read_json(&path).map_err(HostNetworksError::Remember)?.unwrap_or_default();
        let known = remembered
            .into_iter()
            .map(|wanted| (wanted.network, Known { wanted, listed: true, ensured: None }))
            .collect();
        Ok(Self {
            fabric,
            own_address,
            path,
            known: Mutex::new(known),
            rates: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        })
    }

    /// What a network is to be.
    ///
    /// # Errors
    /// [`HostNetworksError::Unknown`].
    pub fn wanted(&self, network: NetworkId) -> Result<DesiredNetwork, HostNetworksError> {
        let known = self.known.lock();
        let found = known.get(&network).ok_or(HostNetworksError::Unknown { network })?;
        Ok(found.wanted.clone())
    }

    fn remember(&self, known: &BTreeMap<NetworkId, Known>) -> Result<(), HostNetworksError> {
        let networks: Vec<_> = known.values().map(|known| &known.wanted).collect();
        files::write_json(&self.path, &networks).map_err(HostNetworksError::Remember)
    }

    async fn ensure(&self, wanted: &DesiredNetwork) -> Result<(), HostError> {
        let peers = wanted.peers.iter().copied().filter(|peer| Some(*peer) != self.own_address);
        let network = NetworkWanted {
            vni: wanted.vni,
            cidr: wanted.cidr,
            outside: wanted.outside,
            mtu: wanted.mtu,
            peers: peers.collect(),
        };
        self.fabric.ensure_network(&network).await?;
        if let Some(known) = self.known.lock().get_mut(&wanted.network)
            && known.wanted == *wanted
        {
            known.ensured = Some(Instant::now());
        }
        Ok(())
    }

    async fn attach_nic(
        &self,
        vm: VmId,
        index: usize,
        interface: &Interface,
    ) -> Result<Tap, HostError> {
        let index = u8::try_from(index)
            .ok()
            .filter(|index| *index < MOST_INTERFACES)
            .ok_or(HostNetworksError::TooManyInterfaces { count: index.saturating_add(1) })?;
        let wanted = self.wanted(interface.network)?;
        let rate = self.rates.lock().get(&vm).copied().unwrap_or_default();
        let _turn = self.turn.lock().await;
        self.ensure(&wanted).await?;
        let nic = self
            .fabric
            .ensure_nic(&NicWanted {
                vm,
                index,
                vni: wanted.vni,
                mac: interface.mac,
                address: interface.address,
                // The guard opens the tap and hands it to QEMU.
                owner_uid: None,
                rates: NicRates::both(rate),
            })
            .await?;
        Ok(Tap { name: nic.tap, mtu: nic.mtu })
    }

    async fn limit_all(
        &self,
        vm: VmId,
        count: usize,
        rate: BitsPerSecond,
    ) -> Result<BitsPerSecond, HostError> {
        let count = u8::try_from(count)
            .ok()
            .filter(|count| *count <= MOST_INTERFACES)
            .ok_or(HostNetworksError::TooManyInterfaces { count })?;
        let each = BitsPerSecond(rate.get() / u64::from(count.max(1)));
        self.rates.lock().insert(vm, each);
        let mut sum = BitsPerSecond::ZERO;
        for index in 0..count {
            let in_force = self.fabric.set_rates(vm, index, NicRates::both(each)).await?;
            let least = in_force.to_guest.min(in_force.from_guest);
            sum = sum.saturating_add(least.unwrap_or_default());
        }
        Ok(sum)
    }

    async fn detach_all(&self, vm: VmId) -> Result<(), HostError> {
        self.rates.lock().remove(&vm);
        let taps = self.fabric.taps()?;
        let has = |index: &u8| taps.contains_key(&tap_name(vm, *index));
        let indexes: Vec<u8> = (0..MOST_INTERFACES).filter(has).collect();
        for index in &indexes {
            self.fabric.remove_nic(vm, *index).await?;
        }
        // It may have been the last that kept a network here. What fails is tried again.
        if !indexes.is_empty() {
            for (vni, error) in self.remove_unlisted().await {
                tracing::warn!(vni, error = %ErrorChain(&*error), "a network stays for now");
            }
        }
        Ok(())
    }

    /// Networks that are listed and were not looked at since they changed, or for long.
    fn due(&self) -> Vec<DesiredNetwork> {
        let known = self.known.lock();
        let due = |known: &&Known| {
            known.listed && known.ensured.is_none_or(|then| then.elapsed() >= REFRESH)
        };
        known.values().filter(due).map(|known| known.wanted.clone()).collect()
    }

    async fn settle_all(&self) -> Vec<(u32, HostError)> {
        let mut failures = Vec::new();
        for wanted in self.due() {
            if let Err(error) = self.ensure(&wanted).await {
                failures.push((wanted.vni, error));
            }
        }
        failures.extend(self.remove_unlisted().await);
        failures
    }

    /// Removes networks that are not listed and that no VM uses.
    async fn remove_unlisted(&self) -> Vec<(u32, HostError)> {
        let mut failures = Vec::new();
        let present = match self.fabric.networks() {
            Ok(present) => present,
            Err(error) => {
                failures.push((0, error.into()));
                return failures;
            }
        };
        let listed: BTreeSet<u32> = {
            let known = self.known.lock();
            known.values().filter(|known| known.listed).map(|known| known.wanted.vni).collect()
        };
        for vni in present.into_iter().filter(|vni| !listed.contains(vni)) {
            if let Err(error) = self.remove_unused(vni).await {
                failures.push((vni, error));
            }
        }
        failures
    }

    async fn remove_unused(&self, vni: u32) -> Result<(), HostError> {
        let _turn = self.turn.lock().await;
        let again = self.known.lock().values().any(|known| known.listed && known.wanted.vni == vni);
        if again || has_taps(vni).await? {
            return Ok(());
        }
        self.fabric.remove_network(vni).await?;
        tracing::info!(vni, "removed a network that no VM here uses");
        let mut known = self.known.lock();
        known.retain(|_, known| known.listed || known.wanted.vni != vni);
        Ok(self.remember(&known)?)
    }
}

async fn has_taps(vni: u32) -> Result<bool, HostNetworksError> {
    #[derive(Deserialize)]
    struct Member {
        #[serde(default)]
        ifname: String,
    }
    let bridge = bridge_name(vni);
    let arguments = ["-json", "link", "show", "master", &bridge];
    let members: Vec<Member> = Tool::new("ip", arguments)
        .json()
        .await
        .map_err(|source| HostNetworksError::Members { vni, source })?;
    // The VXLAN device is a member too.
    Ok(members.iter().any(|member| member.ifname.starts_with("plt")))
}

impl Networks for HostNetworks {
    fn attach<'a>(
        &'a self,
        vm: VmId,
        index: usize,
        interface: &'a Interface,
    ) -> BoxFuture<'a, Result<Tap, HostError>> {
        self.attach_nic(vm, index, interface).boxed()
    }

    fn limit(
        &self,
        vm: VmId,
        count: usize,
        rate: BitsPerSecond,
    ) -> BoxFuture<'_, Result<BitsPerSecond, HostError>> {
        self.limit_all(vm, count, rate).boxed()
    }

    fn detach(&self, vm: VmId) -> BoxFuture<'_, Result<(), HostError>> {
        self.detach_all(vm).boxed()
    }
}

impl NetworkSet for HostNetworks {
    fn know(&self, networks: &[DesiredNetwork]) -> Result<(), HostError> {
        let mut known = self.known.lock();
        let mut changed = false;
        for entry in known.values_mut() {
            entry.listed = false;
        }
        for wanted in networks {
            let entry = known.entry(wanted.network).or_insert_with(|| {
                changed = true;
                Known { wanted: wanted.clone(), listed: true, ensured: None }
            });
            entry.listed = true;
            if entry.wanted != *wanted {
                entry.wanted = wanted.clone();
                entry.ensured = None;
                changed = true;
            }
        }
        if changed { Ok(self.remember(&known)?) } else { Ok(()) }
    }

    fn settle(&self) -> BoxFuture<'_, Vec<(u32, HostError)>> {
        self.settle_all().boxed()
    }
}

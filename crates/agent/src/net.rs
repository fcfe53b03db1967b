//! Networks of projects on this host, and the taps of VMs on them.
//!
//! ```text
//!  QEMU                                  host                                     other hosts
//!  virtio-net -- plt<nic> (tap) --+
//!                 | tbf: to guest  +-- plb<vni> (bridge) -- plx<vni> (VXLAN) ==UDP== plx<vni>
//!                 | ingress        |      | gateway address, on networks with a way outside
//!                 +-> pli<nic>     |      +-- routing, masquerade (nftables)
//!                     (ifb, tbf:   |
//!                      from guest) +
//! ```
//!
//! Each network is a bridge of its own, and VMs of different networks never share one. Between
//! hosts its frames travel in VXLAN; frames to everybody are sent once to each peer (head-end
//! replication), so the underlay needs no multicast. VXLAN itself protects nothing: whoever can
//! send UDP on the underlay can inject frames, so the underlay must be trusted or encrypted below.
//!
//! What a guest sends passes a guard (nftables, family `bridge`, a chain for each tap): its own
//! MAC and IPv4 address come out of its tap, and nothing else does; IPv6 is not carried yet. Guests
//! reach no address of the host itself, and no other network through it.
//!
//! Everything here is level-triggered: `ensure_*` takes the whole wish, compares it with what is
//! there, changes what differs and may be called again at any time. All state is in the kernel, in
//! the network namespace of the calling thread, so an agent that restarts finds it again.
//!
//! It is done through iproute2 (`ip`, `bridge`, `tc` with JSON output) and `nft`: the netlink
//! crates know no tbf, ifb or mirred, and these tools come with every distribution.

mod guard;
mod links;
mod name;
mod network;
mod nic;
mod rates;
mod tap;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
};

use plimsoll_model::{BitsPerSecond, Cidr, MacAddress, VmId};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::Mutex;

use crate::command::CommandError;

pub use guard::GuardState;
pub(crate) use guard::prepare as prepare_guard;
pub use name::{bridge_name, ifb_name, tap_name, vxlan_name};
pub use tap::open_tap;

/// The UDP port of VXLAN.
pub const VXLAN_PORT: u16 = 4789;
/// The MTU of guests on a network between hosts whose own links have 1,500 bytes.
pub const DEFAULT_MTU: u16 = 1450;

/// Where this host sends and receives VXLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Underlay {
    /// Its own address, to which peers send.
    pub address: IpAddr,
    /// The UDP port, the same on all hosts.
    pub port: u16,
}

/// A network as it shall be on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkWanted {
    /// VXLAN network identifier, 1 to 2^24 - 1; it names the network's devices too.
    pub vni: u32,
    /// Its addresses.
    pub cidr: Cidr,
    /// Whether guests reach what lies outside, through this host.
    pub outside: bool,
    /// Largest packet of guests, in bytes: 576 to 9,000.
    pub mtu: u16,
    /// The underlay addresses of the other hosts that carry the network now.
    pub peers: BTreeSet<IpAddr>,
}

/// A network as it is on this host, read back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInForce {
    /// The network.
    pub vni: u32,
    /// Its bridge.
    pub bridge: String,
    /// Largest packet, in bytes.
    pub mtu: u16,
    /// The hosts that frames to everybody are sent to.
    pub peers: BTreeSet<IpAddr>,
    /// The gateway's address on the bridge, on networks with a way outside.
    pub gateway: Option<Ipv4Addr>,
}

/// Limits of one network interface; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicRates {
    /// What the guest receives.
    pub to_guest: Option<BitsPerSecond>,
    /// What the guest sends.
    pub from_guest: Option<BitsPerSecond>,
}

impl NicRates {
    /// The same limit in both directions; 0 is no limit, as in a VM's resource vector.
    #[must_use]
    pub fn both(rate: BitsPerSecond) -> Self {
        let limit = (rate > BitsPerSecond::ZERO).then_some(rate);
        Self { to_guest: limit, from_guest: limit }
    }
}

/// A VM's network interface as it shall be on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicWanted {
    /// The VM.
    pub vm: VmId,
    /// Which of its interfaces, from 0.
    pub index: u8,
    /// The network, which must be there already.
    pub vni: u32,
    /// The guest's MAC address.
    pub mac: MacAddress,
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The user that QEMU runs as, if it opens the tap by name; not needed with [`open_tap`].
    pub owner_uid: Option<u32>,
    /// Its limits.
    pub rates: NicRates,
}

/// A VM's network interface as it is on this host, read back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicInForce {
    /// The tap device.
    pub tap: String,
    /// Largest packet, in bytes.
    pub mtu: u16,
    /// Its limits, as the kernel has them.
    pub rates: NicRates,
    /// Whether only its own addresses may come out of it.
    pub guarded: bool,
}

/// What went through a network interface since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicCounters {
    /// Bytes the guest received.
    pub to_guest_bytes: u64,
    /// Packets the guest received.
    pub to_guest_packets: u64,
    /// Packets for the guest that were dropped.
    pub to_guest_dropped: u64,
    /// Bytes the guest sent.
    pub from_guest_bytes: u64,
    /// Packets the guest sent.
    pub from_guest_packets: u64,
    /// Packets of the guest that were dropped.
    pub from_guest_dropped: u64,
}

/// Why a network or interface could not be made, changed, read or removed.
#[derive(Debug, Error)]
pub enum NetError {
    /// Not a VXLAN network identifier.
    #[error("network identifier {vni} is not from 1 to 16777215")]
    Vni { vni: u32 },
    /// A packet size that no network of ours has.
    #[error("MTU {mtu} is not from 576 to 9000")]
    Mtu { mtu: u16 },
    /// A limit that the kernel cannot keep.
    #[error("a network limit of {rate} is too low: at least 8kbit/s")]
    RateTooLow { rate: BitsPerSecond },
    /// Other hosts are on the network, but this host has no underlay address.
    #[error("network {vni} spans hosts, but this host has no underlay address")]
    NoUnderlay { vni: u32 },
    /// The network is not on this host.
    #[error("network {vni} is not on this host")]
    NoNetwork { vni: u32 },
    /// The interface is not on this host.
    #[error("{vm} has no interface {index} on this host")]
    NoNic { vm: VmId, index: u8 },
    /// A device of that name is something else.
    #[error("device {device} exists, but is not ours: it is {found}")]
    NameTaken { device: String, found: String },
    /// A way outside needs nftables, which does not work here.
    #[error("network {vni} cannot have a way outside: nftables is unusable here: {reason}")]
    NoOutside { vni: u32, reason: String },
    /// Two networks with ways outside would share addresses on this host.
    #[error("network {vni} ({cidr}) overlaps with addresses of {device} on this host")]
    Overlap { vni: u32, cidr: Cidr, device: String },
    /// A device could not be looked at.
    #[error("cannot look at {device}")]
    Show {
        device: String,
        #[source]
        source: CommandError,
    },
    /// A network could not be set up.
    #[error("cannot set up network {vni}")]
    SetUpNetwork {
        vni: u32,
        #[source]
        source: CommandError,
    },
    /// The peers of a network could not be set.
    #[error("cannot set the peers of network {vni}")]
    Peers {
        vni: u32,
        #[source]
        source: CommandError,
    },
    /// A network could not be removed.
    #[error("cannot remove network {vni}")]
    RemoveNetwork {
        vni: u32,
        #[source]
        source: CommandError,
    },
    /// An interface could not be set up.
    #[error("cannot set up {tap}")]
    SetUpNic {
        tap: String,
        #[source]
        source: CommandError,
    },
    /// An interface could not be removed.
    #[error("cannot remove {tap}")]
    RemoveNic {
        tap: String,
        #[source]
        source: CommandError,
    },
    /// A limit could not be set.
    #[error("cannot limit {tap}")]
    Limit {
        tap: String,
        #[source]
        source: CommandError,
    },
    /// The limit could be set, but the kernel has another.
    #[error("{tap} should be limited to {wanted:?}, but the kernel has {in_force:?}")]
    NotInForce { tap: String, wanted: NicRates, in_force: NicRates },
    /// The guard could not be set.
    #[error("cannot guard {subject}")]
    Guard {
        subject: String,
        #[source]
        source: CommandError,
    },
    /// A kernel setting could not be written.
    #[error("cannot set {} to {value}", path.display())]
    Setting {
        path: PathBuf,
        value: &'static str,
        #[source]
        source: io::Error,
    },
    /// A tap could not be opened.
    #[error("cannot open {tap}")]
    OpenTap {
        tap: String,
        #[source]
        source: io::Error,
    },
    /// The counters could not be read.
    #[error("cannot read the network counters")]
    Counters {
        #[source]
        source: io::Error,
    },
}

/// The networks of one host.
#[derive(Clone, Debug)]
pub struct Fabric {
    underlay: Option<Underlay>,
    guard: GuardState,
    /// Two tasks that ensure the same network must not both find it missing.
    turn: Arc<Mutex<()>>,
}

impl Fabric {
    /// Prepares the namespace of the calling thread: the tables of the guard, where nftables
    /// works. Without it networks work too, but guests can pretend to be their neighbours, and no
    /// network has a way outside; [`Self::guard`] says so.
    pub async fn prepare(underlay: Option<Underlay>) -> Self {
        let guard = guard::prepare().await;
        if let GuardState::Unavailable { reason } = &guard {
            tracing::warn!(%reason, "no protection against forged addresses on this host");
        }
        Self { underlay, guard, turn: Arc::default() }
    }

    /// Whether guests are kept from forging addresses.
    #[must_use]
    pub const fn guard(&self) -> &GuardState {
        &self.guard
    }

    /// Makes a network as wished.
    ///
    /// # Errors
    /// [`NetError`]; whatever was done stays and is completed by the next call.
    pub async fn ensure_network(&self, wanted: &NetworkWanted) -> Result<NetworkInForce, NetError> {
        let _turn = self.turn.lock().await;
        network::ensure(self.underlay, &self.guard, wanted).await
    }

    /// Removes a network with its bridge and VXLAN device; taps on it lose their connection. One
    /// that is not there is no error.
    ///
    /// # Errors
    /// [`NetError::RemoveNetwork`], [`NetError::Guard`].
    pub async fn remove_network(&self, vni: u32) -> Result<(), NetError> {
        let _turn = self.turn.lock().await;
        network::remove(&self.guard, vni).await
    }

    /// The networks on this host, in ascending order: to find left-overs.
    ///
    /// # Errors
    /// [`NetError::Counters`].
    pub fn networks(&self) -> Result<Vec<u32>, NetError> {
        let mut vnis: Vec<u32> =
            links::counters()?.keys().filter_map(|device| name::vni_of_bridge(device)).collect();
        vnis.sort_unstable();
        Ok(vnis)
    }

    /// Makes a VM's interface as wished, before QEMU starts or while it runs.
    ///
    /// # Errors
    /// [`NetError`]; whatever was done stays and is completed by the next call.
    pub async fn ensure_nic(&self, wanted: &NicWanted) -> Result<NicInForce, NetError> {
        let _turn = self.turn.lock().await;
        nic::ensure(&self.guard, wanted).await
    }

    /// Changes the limits of an interface that is there.
    ///
    /// # Errors
    /// [`NetError::NoNic`], [`NetError::Limit`], [`NetError::NotInForce`].
    pub async fn set_rates(
        &self,
        vm: VmId,
        index: u8,
        rates: NicRates,
    ) -> Result<NicRates, NetError> {
        let _turn = self.turn.lock().await;
        let mtu = nic::mtu(vm, index).await?;
        rates::ensure(vm, index, mtu, rates).await
    }

    /// The limits of an interface, as the kernel has them.
    ///
    /// # Errors
    /// [`NetError::NoNic`], [`NetError::Show`].
    pub async fn rates(&self, vm: VmId, index: u8) -> Result<NicRates, NetError> {
        nic::mtu(vm, index).await?;
        rates::in_force(vm, index).await
    }

    /// Removes a VM's interface. One that is not there is no error.
    ///
    /// # Errors
    /// [`NetError::RemoveNic`], [`NetError::Guard`].
    pub async fn remove_nic(&self, vm: VmId, index: u8) -> Result<(), NetError> {
        let _turn = self.turn.lock().await;
        nic::remove(&self.guard, &tap_name(vm, index)).await
    }

    /// Removes a tap that no VM of this host has any more, with all that belongs to it.
    ///
    /// # Errors
    /// As [`Self::remove_nic`]; a name that is not a tap of ours is [`NetError::NameTaken`].
    pub async fn remove_tap(&self, tap: &str) -> Result<(), NetError> {
        if !name::is_tap(tap) {
            let found = "not a tap of ours".to_owned();
            return Err(NetError::NameTaken { device: tap.to_owned(), found });
        }
        let _turn = self.turn.lock().await;
        nic::remove(&self.guard, tap).await
    }

    /// The taps on this host with what went through them, by device name (see [`tap_name`]).
    /// Cheap: one read for all.
    ///
    /// # Errors
    /// [`NetError::Counters`].
    pub fn taps(&self) -> Result<BTreeMap<String, NicCounters>, NetError> {
        taps()
    }
}

/// As [`Fabric::taps`], in the network namespace of the calling thread.
pub(crate) fn taps() -> Result<BTreeMap<String, NicCounters>, NetError> {
    let mut taps = links::counters()?;
    taps.retain(|device, _| name::is_tap(device));
    Ok(taps)
}

/// What came in by a device of this host, and what went out: bytes. None where it cannot be read.
pub(crate) fn device_bytes(device: &str) -> Option<[u64; 2]> {
    let counters = links::counters().ok()?;
    // Counters are named as a guest behind the device sees them.
    let NicCounters { from_guest_bytes, to_guest_bytes, .. } = *counters.get(device)?;
    Some([from_guest_bytes, to_guest_bytes])
}

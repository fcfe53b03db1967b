//! Addresses on networks. The search goes on behind the last address given out, so that one which
//! was freed is used again as late as possible: neighbours may still have it in their ARP caches.

use std::net::Ipv4Addr;

use plimsoll_model::{Cidr, Interface, MacAddress, Network};

use crate::{app::AppError, core::State};

/// The largest VXLAN network identifier.
const MAX_VNI: u32 = (1 << 24) - 1;

/// An interface on the network with an address that nobody has.
///
/// # Errors
/// There is none left.
pub(crate) fn interface(state: &State, network: &Network) -> Result<Interface, AppError> {
    let address = free_address(state, network)
        .ok_or_else(|| AppError::NoAddress { network: network.name.clone() })?;
    Ok(Interface {
        network: network.id,
        network_name: network.name.clone(),
        mac: mac(address),
        address,
    })
}

/// Locally administered, and different for all addresses of a network: networks are isolated from
/// each other, so that is enough.
fn mac(address: Ipv4Addr) -> MacAddress {
    let [a, b, c, d] = address.octets();
    MacAddress([0x52, 0x54, a, b, c, d])
}

fn free_address(state: &State, network: &Network) -> Option<Ipv4Addr> {
    let cidr = &network.cidr;
    let first = u32::from(cidr.gateway()) + 1;
    let count = cidr.size() - 3;
    let start = state
        .address_cursors
        .get(&network.id)
        .and_then(|last| u32::from(*last).checked_sub(first))
        .map_or(0, |last| last + 1);
    (0..count)
        .map(|i| Ipv4Addr::from(first + (start + i) % count))
        .find(|address| !state.addresses.contains_key(&(network.id, *address)))
}

/// A VXLAN identifier that no network has.
pub(crate) fn free_vni(state: &State) -> Option<u32> {
    let start = state.settings.last_vni;
    (0..MAX_VNI).map(|i| (start + i) % MAX_VNI + 1).find(|vni| !state.vnis.contains_key(vni))
}

/// A range for a network that names none: the first /24 of 10.64.0.0/10 that overlaps with no other
/// of its project.
pub(crate) fn free_cidr(taken: &[Cidr]) -> Option<Cidr> {
    (64..128u8)
        .flat_map(|b| (0..=255u8).map(move |c| Ipv4Addr::new(10, b, c, 0)))
        .filter_map(|first| Cidr::new(first, 24).ok())
        .find(|cidr| !taken.iter().any(|other| overlap(cidr, other)))
}

/// Whether two ranges have an address in common.
pub(crate) fn overlap(a: &Cidr, b: &Cidr) -> bool {
    a.contains(b.gateway()) || b.contains(a.gateway())
}

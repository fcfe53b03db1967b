//! One network on this host: its bridge, its VXLAN device and peers, its way outside.

use std::{collections::BTreeSet, io, net::IpAddr, path::PathBuf};

use plimsoll_model::{Cidr, MacAddress};
use serde::Deserialize;
use std::fs;

use super::{
    GuardState, NetError, NetworkInForce, NetworkWanted, Underlay, bridge_name, guard, links,
    vxlan_name,
};
use crate::command::{CommandError, Tool};

/// Frames to this address of a VXLAN device go to all of its destinations.
const TO_EVERYBODY: &str = "00:00:00:00:00:00";

pub(super) async fn ensure(
    underlay: Option<Underlay>,
    guard: &GuardState,
    wanted: &NetworkWanted,
) -> Result<NetworkInForce, NetError> {
    let NetworkWanted { vni, mtu, .. } = *wanted;
    if !(1..1 << 24).contains(&vni) {
        return Err(NetError::Vni { vni });
    }
    if !(576..=9000).contains(&mtu) {
        return Err(NetError::Mtu { mtu });
    }
    if underlay.is_none() && !wanted.peers.is_empty() {
        return Err(NetError::NoUnderlay { vni });
    }
    if wanted.outside {
        if let GuardState::Unavailable { reason } = guard {
            return Err(NetError::NoOutside { vni, reason: reason.clone() });
        }
        refuse_overlap(vni, wanted.cidr).await?;
    }
    // Before the bridge is up, so that there is no moment without it.
    guard::ensure_network(guard, vni, wanted.outside.then_some(wanted.cidr)).await?;
    ensure_bridge(wanted).await?;
    if let Some(underlay) = underlay {
        ensure_vxlan(underlay, vni, mtu).await?;
        ensure_peers(underlay, wanted).await?;
    }
    in_force(wanted).await
}

/// The host routes by address, so two ranges that overlap cannot both be reached through it.
async fn refuse_overlap(vni: u32, cidr: Cidr) -> Result<(), NetError> {
    let own = bridge_name(vni);
    let overlaps = |found: &links::HostAddress| {
        let mask = u32::MAX.checked_shl(32 - u32::from(found.prefix.min(32))).unwrap_or(0);
        let same = u32::from(found.address) & mask == u32::from(cidr.gateway()) & mask;
        found.device != own && (same || cidr.contains(found.address))
    };
    match links::addresses().await?.into_iter().find(overlaps) {
        Some(found) => Err(NetError::Overlap { vni, cidr, device: found.device }),
        None => Ok(()),
    }
}

/// The same on every host, so that a guest that moves finds its gateway where it was.
pub(super) fn gateway_mac(vni: u32) -> MacAddress {
    let [_, a, b, c] = vni.to_be_bytes();
    MacAddress([0x02, 0x50, 0x4c, a, b, c])
}

async fn ensure_bridge(wanted: &NetworkWanted) -> Result<(), NetError> {
    let NetworkWanted { vni, mtu, cidr, outside, .. } = *wanted;
    let bridge = bridge_name(vni);
    let set_up = |source| NetError::SetUpNetwork { vni, source };
    match links::show(&bridge).await? {
        Some(link) => link.require_kind(&bridge, "bridge")?,
        None => links::ip_batch(&[format!(
            "link add name {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
        )])
        .await
        .map_err(set_up)?,
    }
    // IPv6 is not carried, and the host itself shall have no address of it on the guests' side.
    setting(&format!("ipv6/conf/{bridge}/disable_ipv6"), "1")?;
    // A host answers for all of its addresses on all of its devices; not to guests.
    setting(&format!("ipv4/conf/{bridge}/arp_ignore"), if outside { "1" } else { "8" })?;
    setting(&format!("ipv4/conf/{bridge}/forwarding"), if outside { "1" } else { "0" })?;
    setting(&format!("ipv4/conf/{bridge}/rp_filter"), "1")?;
    if outside {
        setting("ipv4/ip_forward", "1")?;
    }
    let gateway = format!("{}/{}", cidr.gateway(), cidr.prefix());
    let mut commands = vec![format!(
        "link set dev {bridge} address {} mtu {mtu} addrgenmode none up",
        gateway_mac(vni)
    )];
    let stale = links::addresses()
        .await?
        .into_iter()
        .filter(|found| found.device == bridge)
        .map(|found| format!("{}/{}", found.address, found.prefix))
        .filter(|address| !(outside && *address == gateway));
    commands.extend(stale.map(|address| format!("address del {address} dev {bridge}")));
    if outside {
        commands.push(format!("address replace {gateway} dev {bridge}"));
    }
    links::ip_batch(&commands).await.map_err(set_up)
}

async fn ensure_vxlan(underlay: Underlay, vni: u32, mtu: u16) -> Result<(), NetError> {
    let (vxlan, bridge) = (vxlan_name(vni), bridge_name(vni));
    let Underlay { address, port } = underlay;
    let mut commands = Vec::new();
    let mut there = false;
    if let Some(link) = links::show(&vxlan).await? {
        link.require_kind(&vxlan, "vxlan")?;
        let local = if address.is_ipv4() { "local" } else { "local6" };
        there = *link.data("id") == vni
            && *link.data("port") == port
            && *link.data(local) == address.to_string();
        if !there {
            // The host's address changed: none of this can be changed on the device that is there.
            commands.push(format!("link del dev {vxlan}"));
        }
    }
    if !there {
        commands.push(format!(
            "link add name {vxlan} type vxlan id {vni} local {address} dstport {port}"
        ));
    }
    commands.push(format!("link set dev {vxlan} mtu {mtu} addrgenmode none master {bridge} up"));
    links::ip_batch(&commands).await.map_err(|source| NetError::SetUpNetwork { vni, source })
}

async fn ensure_peers(underlay: Underlay, wanted: &NetworkWanted) -> Result<(), NetError> {
    let vni = wanted.vni;
    let mut peers = wanted.peers.clone();
    // A list of all hosts of a network contains this one: it would hear itself.
    peers.remove(&underlay.address);
    let is = peers_of(vni).await?;
    let vxlan = vxlan_name(vni);
    let change =
        |verb: &str, peer: &IpAddr| format!("fdb {verb} {TO_EVERYBODY} dev {vxlan} dst {peer}");
    let mut commands: Vec<String> = Vec::new();
    commands.extend(peers.difference(&is).map(|peer| change("append", peer)));
    commands.extend(is.difference(&peers).map(|peer| change("del", peer)));
    if commands.is_empty() {
        return Ok(());
    }
    let mut input = commands.join("\n");
    input.push('\n');
    Tool::new("bridge", ["-batch", "-"])
        .input(input)
        .run()
        .await
        .map(|_| ())
        .map_err(|source| NetError::Peers { vni, source })
}

async fn peers_of(vni: u32) -> Result<BTreeSet<IpAddr>, NetError> {
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        mac: String,
        dst: Option<IpAddr>,
    }
    let vxlan = vxlan_name(vni);
    let entries: Vec<Entry> =
        match Tool::new("bridge", ["-json", "fdb", "show", "dev", &vxlan]).json().await {
            Ok(entries) => entries,
            Err(error) if links::is_no_such_device(&error) => Vec::new(),
            Err(source) => return Err(NetError::Peers { vni, source }),
        };
    let to_everybody = |entry: Entry| if entry.mac == TO_EVERYBODY { entry.dst } else { None };
    Ok(entries.into_iter().filter_map(to_everybody).collect())
}

async fn in_force(wanted: &NetworkWanted) -> Result<NetworkInForce, NetError> {
    let vni = wanted.vni;
    let bridge = bridge_name(vni);
    let link = links::show(&bridge).await?.ok_or(NetError::NoNetwork { vni })?;
    let gateway = links::addresses()
        .await?
        .into_iter()
        .find(|found| found.device == bridge)
        .map(|found| found.address);
    Ok(NetworkInForce {
        vni,
        mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
        peers: peers_of(vni).await?,
        gateway,
        bridge,
    })
}

pub(super) async fn remove(guard: &GuardState, vni: u32) -> Result<(), NetError> {
    for device in [vxlan_name(vni), bridge_name(vni)] {
        delete(&device).await.map_err(|source| NetError::RemoveNetwork { vni, source })?;
    }
    // After the bridge is gone, so that there is no moment without it.
    guard::remove_network(guard, vni).await
}

/// Deletes a device; one that is not there is no error.
pub(super) async fn delete(device: &str) -> Result<(), CommandError> {
    match Tool::new("ip", ["link", "del", "dev", device]).run().await {
        Err(error) if !links::is_no_such_device(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Writes a setting of the kernel's network in the namespace of the calling thread. A kernel
/// without the protocol has no such setting and needs none.
pub(super) fn setting(path: &str, value: &'static str) -> Result<(), NetError> {
    let path = PathBuf::from("/proc/sys/net").join(path);
    match fs::read_to_string(&path) {
        Ok(text) if text.trim() == value => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        _ => {}
    }
    fs::write(&path, value).map_err(|source| NetError::Setting { path, value, source })
}

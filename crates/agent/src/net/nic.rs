//! The tap of a VM's interface.

use nix::unistd::User;
use plimsoll_model::VmId;

use super::{
    GuardState, NetError, NicInForce, NicWanted, bridge_name, guard, links, name, network, rates,
    tap_name,
};

pub(super) async fn ensure(guard: &GuardState, wanted: &NicWanted) -> Result<NicInForce, NetError> {
    let NicWanted { vm, index, vni, mac, address, owner_uid, rates } = *wanted;
    rates::check(rates)?;
    let (tap, bridge) = (tap_name(vm, index), bridge_name(vni));
    let network = links::show(&bridge).await?.ok_or(NetError::NoNetwork { vni })?;
    network.require_kind(&bridge, "bridge")?;
    let alias = format!("{vm} {index}");
    let mut commands = Vec::new();
    let mut there = false;
    if let Some(link) = links::show(&tap).await? {
        link.require_kind(&tap, "tun")?;
        if let Some(other) = link.ifalias.as_deref().filter(|found| *found != alias) {
            let found = format!("that of {other}");
            return Err(NetError::NameTaken { device: tap, found });
        }
        there = *link.data("type") == "tap"
            && *link.data("vnet_hdr") == true
            && owner(&link) == owner_uid;
        if !there && link.is_in_use() {
            let found = "a tap in use, made for another user".to_owned();
            return Err(NetError::NameTaken { device: tap, found });
        }
        if !there {
            commands.push(format!("link del dev {tap}"));
        }
    }
    if !there {
        let user = owner_uid.map(|uid| format!(" user {uid}")).unwrap_or_default();
        commands.push(format!("tuntap add dev {tap} mode tap vnet_hdr{user}"));
    }
    let set_up = |source| NetError::SetUpNic { tap: tap.clone(), source };
    if !commands.is_empty() {
        links::ip_batch(&commands).await.map_err(set_up)?;
    }
    network::setting(&format!("ipv6/conf/{tap}/disable_ipv6"), "1")?;
    // Guard and limits come before the bridge: never a moment in which the guest is free.
    guard::ensure_nic(guard, &tap, mac, address).await?;
    let mtu = u16::try_from(network.mtu).unwrap_or(u16::MAX);
    let rates = rates::ensure(vm, index, mtu, rates).await?;
    links::ip_batch(&[format!(
        "link set dev {tap} mtu {mtu} addrgenmode none alias \"{alias}\" master {bridge} up"
    )])
    .await
    .map_err(set_up)?;
    let link = links::show(&tap).await?.ok_or(NetError::NoNic { vm, index })?;
    if link.master.as_deref() != Some(bridge.as_str()) {
        let found = format!("on {}", link.master.as_deref().unwrap_or("no bridge"));
        return Err(NetError::NameTaken { device: tap, found });
    }
    let guarded = matches!(guard, GuardState::Active);
    Ok(NicInForce { tap, mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX), rates, guarded })
}

/// The user of a tap: `ip` prints the name where there is one, otherwise the number.
fn owner(tap: &links::Link) -> Option<u32> {
    let user = tap.data("user");
    let by_name = |name: &str| Some(User::from_name(name).ok()??.uid.as_raw());
    match user.as_u64() {
        Some(uid) => u32::try_from(uid).ok(),
        None => by_name(user.as_str()?),
    }
}

/// The MTU of an interface that is there.
pub(super) async fn mtu(vm: VmId, index: u8) -> Result<u16, NetError> {
    let tap = tap_name(vm, index);
    let link = links::show(&tap).await?.ok_or(NetError::NoNic { vm, index })?;
    link.require_kind(&tap, "tun")?;
    Ok(u16::try_from(link.mtu).unwrap_or(u16::MAX))
}

pub(super) async fn remove(guard: &GuardState, tap: &str) -> Result<(), NetError> {
    for device in [tap.to_owned(), name::ifb_of(tap)] {
        network::delete(&device)
            .await
            .map_err(|source| NetError::RemoveNic { tap: tap.to_owned(), source })?;
    }
    guard::remove_nic(guard, tap).await
}

//! What guests may send: rules of nftables, one chain for each tap and each network.
//!
//! - family `bridge`: out of a tap come only frames with the guest's own MAC and IPv4 address;
//! - family `inet`: nothing of a guest reaches the host itself (but a ping to its gateway), no
//!   network reaches another through the host, and what leaves a network with a way outside
//!   leaves with the host's address.
//!
//! A change is one script, which the kernel takes as a whole or not at all. Chains are emptied and
//! filled anew, so that nothing has to be compared. All tables are named `plimsoll`; there is one
//! agent for each network namespace.

use std::net::Ipv4Addr;

use plimsoll_model::{Cidr, MacAddress};
use serde::{Deserialize, Serialize};

use super::{NetError, bridge_name};
use crate::command::{CommandError, Tool};

/// Whether the rules are in force on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum GuardState {
    /// They are.
    Active,
    /// nftables is not installed or the kernel lacks a part of it.
    Unavailable {
        /// What failed.
        reason: String,
    },
}

/// The tables with everything that does not depend on taps and networks.
const TABLES: &str = r#"
add table bridge plimsoll
add map bridge plimsoll taps { type ifname : verdict; }
add chain bridge plimsoll prerouting { type filter hook prerouting priority -200; policy accept; }
flush chain bridge plimsoll prerouting
add rule bridge plimsoll prerouting iifname vmap @taps

add table inet plimsoll
add map inet plimsoll networks { type ifname : verdict; }
add set inet plimsoll outside { type ifname; }
add map inet plimsoll gateways { type ifname : verdict; }
add chain inet plimsoll input { type filter hook input priority -10; policy accept; }
flush chain inet plimsoll input
add rule inet plimsoll input iifname != "plb*" accept
add rule inet plimsoll input ct state established,related accept
add rule inet plimsoll input iifname vmap @gateways
add rule inet plimsoll input drop
add chain inet plimsoll forward { type filter hook forward priority -10; policy accept; }
flush chain inet plimsoll forward
add rule inet plimsoll forward iifname vmap @networks
add rule inet plimsoll forward oifname "plb*" ct state established,related accept
add rule inet plimsoll forward oifname "plb*" drop
add chain inet plimsoll postrouting { type nat hook postrouting priority 100; policy accept; }
flush chain inet plimsoll postrouting
add rule inet plimsoll postrouting iifname @outside oifname != "plb*" masquerade
"#;

pub(crate) async fn prepare() -> GuardState {
    match nft(TABLES.to_owned()).await {
        Ok(()) => GuardState::Active,
        Err(error) => GuardState::Unavailable { reason: reason(&error) },
    }
}

fn reason(error: &CommandError) -> String {
    if error.is_missing_program() {
        return "`nft` is not installed".to_owned();
    }
    match error {
        CommandError::Failed { stderr, .. } => stderr.chars().take(200).collect(),
        other => other.to_string(),
    }
}

pub(super) async fn ensure_network(
    guard: &GuardState,
    vni: u32,
    outside: Option<Cidr>,
) -> Result<(), NetError> {
    let bridge = bridge_name(vni);
    let mut script = without_network(vni);
    let mut add = |line: std::fmt::Arguments<'_>| {
        script.push_str("add ");
        script.push_str(&line.to_string());
        script.push('\n');
    };
    let table = "inet plimsoll";
    add(format_args!("chain {table} {bridge}"));
    add(format_args!("rule {table} {bridge} oifname \"{bridge}\" accept"));
    if let Some(cidr) = outside {
        let gateway = cidr.gateway();
        add(format_args!("rule {table} {bridge} oifname \"plb*\" drop"));
        add(format_args!("rule {table} {bridge} ip saddr {cidr} accept"));
        add(format_args!("element {table} outside {{ \"{bridge}\" }}"));
        add(format_args!("chain {table} {bridge}_in"));
        add(format_args!(
            "rule {table} {bridge}_in ip daddr {gateway} icmp type echo-request accept"
        ));
        add(format_args!("element {table} gateways {{ \"{bridge}\" : jump {bridge}_in }}"));
    }
    add(format_args!("rule {table} {bridge} drop"));
    add(format_args!("element {table} networks {{ \"{bridge}\" : jump {bridge} }}"));
    apply(guard, bridge, script).await
}

pub(super) async fn remove_network(guard: &GuardState, vni: u32) -> Result<(), NetError> {
    apply(guard, bridge_name(vni), without_network(vni)).await
}

/// Removes everything of a network, whether or not it is there: in one transaction it is added
/// first, which never fails.
fn without_network(vni: u32) -> String {
    let bridge = bridge_name(vni);
    let mut script = String::new();
    for (map, chain) in [("networks", bridge.clone()), ("gateways", format!("{bridge}_in"))] {
        script.push_str(&format!(
            "add chain inet plimsoll {chain}\n\
             add element inet plimsoll {map} {{ \"{bridge}\" : jump {chain} }}\n\
             delete element inet plimsoll {map} {{ \"{bridge}\" }}\n\
             flush chain inet plimsoll {chain}\n\
             delete chain inet plimsoll {chain}\n"
        ));
    }
    script.push_str(&format!(
        "add element inet plimsoll outside {{ \"{bridge}\" }}\n\
         delete element inet plimsoll outside {{ \"{bridge}\" }}\n"
    ));
    script
}

pub(super) async fn ensure_nic(
    guard: &GuardState,
    tap: &str,
    mac: MacAddress,
    address: Ipv4Addr,
) -> Result<(), NetError> {
    // 0.0.0.0: probes for duplicate addresses. Requests of DHCP come from there too, but nobody
    // answers them: addresses are handed out by the manager. Reverse ARP (0x8035): QEMU tells bridges
    // where a machine is that has moved, before its guest runs.
    let script = format!(
        "add chain bridge plimsoll {tap}\n\
         flush chain bridge plimsoll {tap}\n\
         add rule bridge plimsoll {tap} ether saddr != {mac} drop\n\
         add rule bridge plimsoll {tap} ether type arp arp saddr ether {mac} \
             arp saddr ip {{ 0.0.0.0, {address} }} accept\n\
         add rule bridge plimsoll {tap} ether type ip ip saddr {address} accept\n\
         add rule bridge plimsoll {tap} ether type 0x8035 accept\n\
         add rule bridge plimsoll {tap} drop\n\
         add element bridge plimsoll taps {{ \"{tap}\" : jump {tap} }}\n"
    );
    apply(guard, tap.to_owned(), script).await
}

pub(super) async fn remove_nic(guard: &GuardState, tap: &str) -> Result<(), NetError> {
    let script = format!(
        "add chain bridge plimsoll {tap}\n\
         add element bridge plimsoll taps {{ \"{tap}\" : jump {tap} }}\n\
         delete element bridge plimsoll taps {{ \"{tap}\" }}\n\
         flush chain bridge plimsoll {tap}\n\
         delete chain bridge plimsoll {tap}\n"
    );
    apply(guard, tap.to_owned(), script).await
}

async fn apply(guard: &GuardState, subject: String, script: String) -> Result<(), NetError> {
    match guard {
        GuardState::Unavailable { .. } => Ok(()),
        GuardState::Active => {
            nft(script).await.map_err(|source| NetError::Guard { subject, source })
        }
    }
}

async fn nft(script: String) -> Result<(), CommandError> {
    Tool::new("nft", ["-f", "-"]).input(script).run().await.map(|_| ())
}

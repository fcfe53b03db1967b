//! Limits of an interface in both directions.
//!
//! Towards the guest the tap's own queue is slowed down (tbf). What comes from the guest has no
//! queue on the host, so it is redirected to an ifb device, whose queue is slowed down (ingress
//! qdisc, u32, mirred: everything that a small kernel may have, without matchall and police).
//! TCP's own headers count, so a TCP stream carries some 4 % less than the limit.

use plimsoll_model::{BitsPerSecond, VmId};
use serde::Deserialize;
use serde_json::Value;

use super::{NetError, NicRates, ifb_name, links, network, tap_name};
use crate::command::{CommandError, Tool};

/// Below this a single packet takes seconds.
const LOWEST_RATE: BitsPerSecond = BitsPerSecond(8_000);
/// A bucket holds this much time of traffic: small enough for an even flow, large enough that a
/// timer that fires late loses nothing.
const BURST_PER_SECOND: u64 = 100;
/// How long a packet may wait before it is dropped.
const LATENCY: &str = "50ms";

#[derive(Debug, Deserialize)]
struct Qdisc {
    kind: String,
    #[serde(default)]
    root: bool,
    #[serde(default)]
    options: Value,
}

pub(super) fn check(rates: NicRates) -> Result<(), NetError> {
    match [rates.to_guest, rates.from_guest].into_iter().flatten().find(|rate| *rate < LOWEST_RATE)
    {
        Some(rate) => Err(NetError::RateTooLow { rate }),
        None => Ok(()),
    }
}

pub(super) async fn ensure(
    vm: VmId,
    index: u8,
    mtu: u16,
    wanted: NicRates,
) -> Result<NicRates, NetError> {
    check(wanted)?;
    let (tap, ifb) = (tap_name(vm, index), ifb_name(vm, index));
    let limited = |source| NetError::Limit { tap: tap.clone(), source };
    shape(&tap, mtu, wanted.to_guest).await.map_err(limited)?;
    match wanted.from_guest {
        Some(rate) => redirect(&tap, &ifb, mtu, rate).await?,
        None => {
            // The redirection first: packets sent to a device that is gone are lost.
            if qdiscs(&tap).await.map_err(limited)?.iter().any(|qdisc| qdisc.kind == "ingress") {
                tc(["qdisc", "del", "dev", &tap, "ingress"]).await.map_err(limited)?;
            }
            network::delete(&ifb).await.map_err(limited)?;
        }
    }
    let in_force = in_force(vm, index).await?;
    if agree(wanted, in_force) {
        Ok(in_force)
    } else {
        Err(NetError::NotInForce { tap, wanted, in_force })
    }
}

pub(super) async fn in_force(vm: VmId, index: u8) -> Result<NicRates, NetError> {
    let (tap, ifb) = (tap_name(vm, index), ifb_name(vm, index));
    let show = |source| NetError::Show { device: tap.clone(), source };
    let to_guest = rate_of(&qdiscs(&tap).await.map_err(show)?);
    let from_guest = if is_redirected(&tap, &ifb).await.map_err(show)? {
        rate_of(&qdiscs(&ifb).await.map_err(show)?)
    } else {
        None
    };
    Ok(NicRates { to_guest, from_guest })
}

/// Whether these are the same limits, up to the kernel's rounding to bytes per second.
fn agree(wanted: NicRates, is: NicRates) -> bool {
    let same = |wanted: Option<BitsPerSecond>, is: Option<BitsPerSecond>| match (wanted, is) {
        (None, None) => true,
        (Some(wanted), Some(is)) => wanted.get().abs_diff(is.get()) <= wanted.get() / 100 + 8,
        _ => false,
    };
    same(wanted.to_guest, is.to_guest) && same(wanted.from_guest, is.from_guest)
}

/// Slows down what leaves the host through a device.
async fn shape(device: &str, mtu: u16, rate: Option<BitsPerSecond>) -> Result<(), CommandError> {
    match rate {
        Some(rate) => {
            // A bucket must hold a whole frame, or no frame ever passes.
            let burst = (rate.get() / 8 / BURST_PER_SECOND).max(2 * (u64::from(mtu) + 100));
            let (rate, burst) = (format!("{}bit", rate.get()), burst.to_string());
            tc([
                "qdisc", "replace", "dev", device, "root", "handle", "1:", "tbf", "rate", &rate,
                "burst", &burst, "latency", LATENCY,
            ])
            .await
        }
        None if rate_of(&qdiscs(device).await?).is_some() => {
            tc(["qdisc", "del", "dev", device, "root"]).await
        }
        None => Ok(()),
    }
}

async fn redirect(tap: &str, ifb: &str, mtu: u16, rate: BitsPerSecond) -> Result<(), NetError> {
    let limited = |source| NetError::Limit { tap: tap.to_owned(), source };
    match links::show(ifb).await? {
        Some(link) => link.require_kind(ifb, "ifb")?,
        None => {
            links::ip_batch(&[format!("link add name {ifb} type ifb")]).await.map_err(limited)?;
        }
    }
    network::setting(&format!("ipv6/conf/{ifb}/disable_ipv6"), "1")?;
    shape(ifb, mtu, Some(rate)).await.map_err(limited)?;
    links::ip_batch(&[format!("link set dev {ifb} mtu {mtu} up")]).await.map_err(limited)?;
    if is_redirected(tap, ifb).await.map_err(limited)? {
        return Ok(());
    }
    // Whatever half of it is there goes: filters cannot be replaced without their handle.
    if qdiscs(tap).await.map_err(limited)?.iter().any(|qdisc| qdisc.kind == "ingress") {
        tc(["qdisc", "del", "dev", tap, "ingress"]).await.map_err(limited)?;
    }
    tc(["qdisc", "add", "dev", tap, "handle", "ffff:", "ingress"]).await.map_err(limited)?;
    tc([
        "filter", "add", "dev", tap, "parent", "ffff:", "protocol", "all", "prio", "10", "u32",
        "match", "u32", "0", "0", "action", "mirred", "egress", "redirect", "dev", ifb,
    ])
    .await
    .map_err(limited)
}

async fn is_redirected(tap: &str, ifb: &str) -> Result<bool, CommandError> {
    let filters: Vec<Value> =
        Tool::new("tc", ["-json", "filter", "show", "dev", tap, "parent", "ffff:"]).json().await?;
    let to_ifb = |action: &Value| action["kind"] == "mirred" && action["to_dev"] == ifb;
    let actions = |filter: &Value| {
        filter["options"]["actions"].as_array().is_some_and(|actions| actions.iter().any(to_ifb))
    };
    Ok(filters.iter().any(actions))
}

async fn qdiscs(device: &str) -> Result<Vec<Qdisc>, CommandError> {
    match Tool::new("tc", ["-json", "qdisc", "show", "dev", device]).json().await {
        Err(error) if links::is_no_such_device(&error) => Ok(Vec::new()),
        other => other,
    }
}

fn rate_of(qdiscs: &[Qdisc]) -> Option<BitsPerSecond> {
    let tbf = qdiscs.iter().find(|qdisc| qdisc.root && qdisc.kind == "tbf")?;
    // tc prints bytes per second in JSON, whatever unit was written.
    Some(BitsPerSecond(tbf.options["rate"].as_u64()?.saturating_mul(8)))
}

async fn tc<const N: usize>(arguments: [&str; N]) -> Result<(), CommandError> {
    Tool::new("tc", arguments).run().await.map(|_| ())
}

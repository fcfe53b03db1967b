//! Looks at devices: through `ip -json`, and all counters at once through `/proc`.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde::Deserialize;
use serde_json::Value;
use std::fs;

use super::{NetError, NicCounters};
use crate::command::{CommandError, Tool};

/// A device as `ip -json -details link` describes it.
#[derive(Debug, Deserialize)]
pub(super) struct Link {
    pub(super) mtu: u32,
    #[serde(default)]
    pub(super) flags: Vec<String>,
    #[serde(default)]
    pub(super) master: Option<String>,
    #[serde(default)]
    pub(super) ifalias: Option<String>,
    #[serde(default)]
    linkinfo: LinkInfo,
}

#[derive(Debug, Default, Deserialize)]
struct LinkInfo {
    #[serde(default)]
    info_kind: String,
    #[serde(default)]
    info_data: Value,
}

impl Link {
    pub(super) fn kind(&self) -> &str {
        &self.linkinfo.info_kind
    }

    /// One property of its kind, such as the `id` of a VXLAN device.
    pub(super) fn data(&self, key: &str) -> &Value {
        &self.linkinfo.info_data[key]
    }

    /// Whether something holds the other end, such as QEMU that of a tap.
    pub(super) fn is_in_use(&self) -> bool {
        self.flags.iter().any(|flag| flag == "LOWER_UP")
    }

    pub(super) fn require_kind(&self, device: &str, kind: &str) -> Result<(), NetError> {
        if self.kind() == kind {
            return Ok(());
        }
        let found = match self.kind() {
            "" => "a device without a kind".to_owned(),
            other => format!("a device of kind {other}"),
        };
        Err(NetError::NameTaken { device: device.to_owned(), found })
    }
}

/// The device of that name, if there is one.
pub(super) async fn show(device: &str) -> Result<Option<Link>, NetError> {
    let listed = Tool::new("ip", ["-json", "-details", "link", "show", "dev", device]).json().await;
    match listed {
        Ok(links) => Ok(Vec::into_iter(links).next()),
        Err(error) if is_no_such_device(&error) => Ok(None),
        Err(source) => Err(NetError::Show { device: device.to_owned(), source }),
    }
}

/// Whether a tool failed because the device is not there.
pub(super) fn is_no_such_device(error: &CommandError) -> bool {
    error.says("does not exist") || error.says("Cannot find device")
}

/// Several `ip` commands in one process; stops at the first that fails.
pub(super) async fn ip_batch(commands: &[String]) -> Result<(), CommandError> {
    let mut input = commands.join("\n");
    input.push('\n');
    Tool::new("ip", ["-batch", "-"]).input(input).run().await.map(|_| ())
}

/// An IPv4 address of a device of this host.
#[derive(Debug)]
pub(super) struct HostAddress {
    pub(super) device: String,
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
}

/// All IPv4 addresses of this host.
pub(super) async fn addresses() -> Result<Vec<HostAddress>, NetError> {
    #[derive(Deserialize)]
    struct Device {
        #[serde(default)]
        ifname: String,
        #[serde(default)]
        addr_info: Vec<Address>,
    }
    #[derive(Deserialize)]
    struct Address {
        local: Option<Ipv4Addr>,
        #[serde(default)]
        prefixlen: u8,
    }
    let devices: Vec<Device> = Tool::new("ip", ["-json", "-4", "address", "show"])
        .json()
        .await
        .map_err(|source| NetError::Show { device: "the addresses".to_owned(), source })?;
    let found = devices.into_iter().flat_map(|device| {
        let Device { ifname, addr_info } = device;
        addr_info.into_iter().filter_map(move |Address { local, prefixlen }| {
            Some(HostAddress { device: ifname.clone(), address: local?, prefix: prefixlen })
        })
    });
    Ok(found.collect())
}

/// Counters of all devices in the namespace of the calling thread, by name.
pub(super) fn counters() -> Result<BTreeMap<String, NicCounters>, NetError> {
    fs::read_to_string("/proc/thread-self/net/dev")
        .map(|text| parse_counters(&text))
        .map_err(|source| NetError::Counters { source })
}

fn parse_counters(text: &str) -> BTreeMap<String, NicCounters> {
    let line = |line: &str| {
        let (device, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> =
            numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
        // What the host receives from a tap is what the guest sends.
        let counters = NicCounters {
            from_guest_bytes: *numbers.first()?,
            from_guest_packets: *numbers.get(1)?,
            from_guest_dropped: *numbers.get(3)?,
            to_guest_bytes: *numbers.get(8)?,
            to_guest_packets: *numbers.get(9)?,
            to_guest_dropped: *numbers.get(11)?,
        };
        Some((device.trim().to_owned(), counters))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_seen_from_the_guest() {
        let found = parse_counters(
            "Inter-|   Receive                      |  Transmit\n face |bytes    packets errs drop\n\
             plt0: 10 2 0 1 0 0 0 0 30 4 0 5 0 0 0 0\n broken: 1 x\n",
        );
        assert_eq!(found.len(), 1);
        let tap = found["plt0"];
        assert_eq!((tap.from_guest_bytes, tap.from_guest_dropped), (10, 1));
        assert_eq!((tap.to_guest_bytes, tap.to_guest_packets, tap.to_guest_dropped), (30, 4, 5));
    }
}

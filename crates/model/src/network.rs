//! Networks of projects and the addresses on them.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

use crate::{
    Timestamp,
    id::{NetworkId, ProjectId},
    name::Name,
};

/// An IPv4 address on a network.
pub type Address = Ipv4Addr;

/// A range of IPv4 addresses such as `10.10.0.0/24`, with no bits set below the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    first: Ipv4Addr,
    prefix: u8,
}

/// Why a text is not a range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "`{text}` is not a range of IPv4 addresses: use a network address and a prefix from 8 to 29, \
     such as 10.10.0.0/24"
)]
pub struct InvalidCidr {
    text: String,
}

impl Cidr {
    /// The range that begins at `first`.
    ///
    /// # Errors
    /// The prefix is not in 8..=29, or `first` has bits set below it.
    pub fn new(first: Ipv4Addr, prefix: u8) -> Result<Self, InvalidCidr> {
        let cidr = Self { first, prefix };
        if (8..=29).contains(&prefix) && u32::from(first) & (cidr.size() - 1) == 0 {
            Ok(cidr)
        } else {
            Err(InvalidCidr { text: format!("{first}/{prefix}") })
        }
    }

    /// How many addresses it has, the network's own and the broadcast address included.
    #[must_use]
    pub const fn size(&self) -> u32 {
        1 << (32 - self.prefix as u32)
    }

    /// The length of the prefix, in bits.
    #[must_use]
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The gateway: the first usable address.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.first) + 1)
    }

    /// The addresses that guests can have: all but the network's, the gateway's and the broadcast.
    pub fn guests(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let first = u32::from(self.first);
        (first + 2..first + self.size() - 1).map(Ipv4Addr::from)
    }

    /// Whether the address lies in it.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & !(self.size() - 1) == u32::from(self.first)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.first, self.prefix))
    }
}

impl FromStr for Cidr {
    type Err = InvalidCidr;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_once('/')
            .and_then(|(first, prefix)| Some((first.parse().ok()?, prefix.parse().ok()?)))
            .and_then(|(first, prefix)| Self::new(first, prefix).ok())
            .ok_or_else(|| InvalidCidr { text: text.chars().take(40).collect() })
    }
}

/// A MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

/// Why a text is not a MAC address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not a MAC address such as 52:54:00:12:34:56")]
pub struct InvalidMacAddress {
    text: String,
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        f.pad(&format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"))
    }
}

impl FromStr for MacAddress {
    type Err = InvalidMacAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidMacAddress { text: text.chars().take(40).collect() };
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(invalid)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_some() { Err(invalid()) } else { Ok(Self(octets)) }
    }
}

macro_rules! as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .into()
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::ToSchema for $name {}
    };
}

as_text!(Cidr);
as_text!(MacAddress);

/// An isolated layer-2 network of a project, spanning the hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Network {
    /// Its id.
    pub id: NetworkId,
    /// Its project.
    pub project: ProjectId,
    /// Its name, unique in the project.
    pub name: Name,
    /// Its addresses. Networks of different projects may overlap.
    pub cidr: Cidr,
    /// The VXLAN network identifier, unique in the cluster: 1 to 2^24 - 1.
    pub vni: u32,
    /// Whether guests reach what lies outside, through their host (NAT).
    pub outside: bool,
    /// When it was created.
    pub created_at: Timestamp,
}

/// A VM's place on a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Interface {
    /// The network.
    pub network: NetworkId,
    /// The network's name.
    pub network_name: Name,
    /// The MAC address.
    pub mac: MacAddress,
    /// The address handed out to it.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub address: Address,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hand_out_all_but_three_addresses() {
        let cidr: Cidr = "10.10.0.0/29".parse().unwrap();
        let guests: Vec<_> = cidr.guests().collect();
        assert_eq!(guests.len(), 5);
        assert_eq!(guests[0], Ipv4Addr::new(10, 10, 0, 2));
        assert_eq!(cidr.gateway(), Ipv4Addr::new(10, 10, 0, 1));
        assert!(cidr.contains(guests[4]));
        assert!(!cidr.contains(Ipv4Addr::new(10, 10, 0, 8)));
        for text in ["10.10.0.1/24", "10.0.0.0/30", "10.0.0.0/7", "10.0.0.0", "x/24", "::/64"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn mac_addresses_print_and_parse() {
        let mac = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0xab]);
        assert_eq!(mac.to_string().parse(), Ok(mac));
        for text in
            ["", "52:54:00:12:34", "52:54:00:12:34:5", "52:54:00:12:34:56:78", "zz:54:00:12:34:56"]
        {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }
}

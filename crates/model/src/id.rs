//! Identifiers. VMs and other things of projects carry a uuid, so that nothing about one project
//! can be guessed from another's; hosts are numbered in the order in which they joined, because
//! policies break ties by the lowest host id.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;
use uuid::Uuid;

/// Text that is not an id of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not an id of the form `{prefix}-...`")]
pub struct ParseIdError {
    text: String,
    prefix: &'static str,
}

macro_rules! textual {
    ($name:ident, $prefix:literal) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .description(Some(concat!("An id of the form `", $prefix, "-...`")))
                    .into()
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::ToSchema for $name {}
    };
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Uuid);

        impl $name {
            /// What ids of this kind begin with, before the dash.
            pub const PREFIX: &'static str = $prefix;
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "-{}"), self.0.simple())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.strip_prefix(concat!($prefix, "-"))
                    .and_then(|rest| Uuid::try_parse(rest).ok())
                    .map(Self)
                    .ok_or_else(|| ParseIdError { text: text.to_owned(), prefix: $prefix })
            }
        }

        textual!($name, $prefix);
    };
}

uuid_id!(
    /// A virtual machine.
    VmId,
    "vm"
);
uuid_id!(
    /// A project (tenant).
    ProjectId,
    "project"
);
uuid_id!(
    /// An image.
    ImageId,
    "image"
);
uuid_id!(
    /// A network.
    NetworkId,
    "net"
);
uuid_id!(
    /// A token: of a user, or one with which a host joins.
    TokenId,
    "token"
);

/// A host, numbered from 1 in the order of joining; a number is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub u32);

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("host-{}", self.0))
    }
}

impl FromStr for HostId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix("host-")
            .and_then(|rest| rest.parse().ok())
            .map(Self)
            .ok_or_else(|| ParseIdError { text: text.to_owned(), prefix: "host" })
    }
}

textual!(HostId, "host");

/// The place of an event in the cluster's log, from 1 without gaps.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EventSequence(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_with_their_kind_and_parse_back() {
        let id = VmId(Uuid::from_u128(0x3f2c));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.to_string().starts_with("vm-0000"));
        assert!("host-1".parse::<VmId>().is_err());
        assert_eq!("host-12".parse(), Ok(HostId(12)));
        assert!("host--1".parse::<HostId>().is_err());
    }
}

//! Quantities as people write them: `2` or `500m` cores, `4GiB`, `100MiB/s`, `20Mbit/s`.
//!
//! Each unit is a newtype over `u64` in its base unit. Text is the only wire form, so that a TOML
//! file, the REST API, the store and the CLI all show the same thing; printing picks the largest
//! unit that stays exact, and what is printed parses back to the same value.

use std::{fmt, iter::Sum, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// A quantity that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseUnitError {
    /// Nothing, or no digits at the start.
    #[error("`{text}` is not a quantity: expected a number and a unit such as {example}")]
    NotANumber { text: String, example: &'static str },
    /// The suffix is not one of this quantity's units.
    #[error("`{unit}` is not a unit of {quantity}: use one of {allowed}")]
    UnknownUnit { unit: String, quantity: &'static str, allowed: &'static str },
    /// The value is finer than the base unit, such as `0.0001` cores.
    #[error("`{text}` is finer than {base}")]
    TooFine { text: String, base: &'static str },
    /// The value does not fit.
    #[error("`{text}` is too large")]
    TooLarge { text: String },
}

struct Scale {
    quantity: &'static str,
    base: &'static str,
    example: &'static str,
    allowed: &'static str,
    /// (suffix, how many base units one of it is); the first is what a bare number means.
    units: &'static [(&'static str, u64)],
    /// Units that printing may use, largest first; the last must be 1.
    printed: &'static [(&'static str, u64)],
}

fn parse(text: &str, scale: &Scale) -> Result<u64, ParseUnitError> {
    let trimmed = text.trim();
    let split = trimmed
        .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_'))
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let number = number.replace('_', "");
    let unit = unit.trim();
    let not_a_number =
        || ParseUnitError::NotANumber { text: text.to_owned(), example: scale.example };
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) => (whole, fraction),
        None => (number.as_str(), ""),
    };
    if whole.is_empty() || fraction.contains('.') || (number.contains('.') && fraction.is_empty()) {
        return Err(not_a_number());
    }
    let factor = if unit.is_empty() {
        scale.units[0].1
    } else {
        scale.units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor).ok_or_else(
            || ParseUnitError::UnknownUnit {
                unit: unit.to_owned(),
                quantity: scale.quantity,
                allowed: scale.allowed,
            },
        )?
    };
    let too_large = || ParseUnitError::TooLarge { text: text.to_owned() };
    let whole: u128 = whole.parse().map_err(|_| too_large())?;
    let mut value = whole.checked_mul(u128::from(factor)).ok_or_else(too_large)?;
    let fraction = fraction.trim_end_matches('0');
    if !fraction.is_empty() {
        let digits = u32::try_from(fraction.len()).map_err(|_| too_large())?;
        let too_fine = || ParseUnitError::TooFine { text: text.to_owned(), base: scale.base };
        let denominator = 10u128.checked_pow(digits).ok_or_else(too_fine)?;
        let numerator: u128 = fraction.parse().map_err(|_| too_fine())?;
        let scaled = numerator.checked_mul(u128::from(factor)).ok_or_else(too_fine)?;
        if scaled % denominator != 0 {
            return Err(too_fine());
        }
        value = value.checked_add(scaled / denominator).ok_or_else(too_large)?;
    }
    u64::try_from(value).map_err(|_| too_large())
}

fn print(value: u64, scale: &Scale, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (suffix, factor) = scale
        .printed
        .iter()
        .find(|(_, factor)| value != 0 && value.is_multiple_of(*factor))
        .or(scale.printed.last())
        .copied()
        .unwrap_or(("", 1));
    // `pad` keeps width and alignment working in tables.
    f.pad(&format!("{}{suffix}", value / factor))
}

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident, $scale:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// Nothing of it.
            pub const ZERO: Self = Self(0);

            /// The value in the base unit.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The sum, or the largest value where it does not fit.
            #[must_use]
            pub const fn saturating_add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }

            /// The difference, never below zero.
            #[must_use]
            pub const fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }
        }

        impl Sum for $name {
            fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
                iter.fold(Self(0), Self::saturating_add)
            }
        }

        impl FromStr for $name {
            type Err = ParseUnitError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse(text, &$scale).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                print(self.0, &$scale, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "a quantity such as {}", $scale.example)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }

                    // A bare number means what it means in text: `cpu = 2` is two cores.
                    fn visit_u64<E: de::Error>(self, value: u64) -> Result<$name, E> {
                        value.to_string().parse().map_err(E::custom)
                    }

                    fn visit_i64<E: de::Error>(self, value: i64) -> Result<$name, E> {
                        value.to_string().parse().map_err(E::custom)
                    }

                    fn visit_f64<E: de::Error>(self, value: f64) -> Result<$name, E> {
                        value.to_string().parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Visitor)
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .description(Some(concat!("A quantity as people write it: ", stringify!($name))))
                    .examples([$scale.example])
                    .into()
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::ToSchema for $name {}
    };
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

const CPU: Scale = Scale {
    quantity: "CPU",
    base: "a thousandth of a core",
    example: "2 or 500m",
    allowed: "cores (no suffix), m (thousandths)",
    units: &[("", 1000), ("m", 1)],
    printed: &[("", 1000), ("m", 1)],
};

const BYTES: Scale = Scale {
    quantity: "memory or disk space",
    base: "a byte",
    example: "4GiB or 512MiB",
    allowed: "B, KiB, MiB, GiB, TiB, kB, MB, GB, TB",
    units: &[
        ("B", 1),
        ("KiB", KIB),
        ("MiB", MIB),
        ("GiB", GIB),
        ("TiB", TIB),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
    ],
    printed: &[("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB), ("B", 1)],
};

const BYTES_PER_SECOND: Scale = Scale {
    quantity: "disk bandwidth",
    base: "a byte per second",
    example: "100MiB/s",
    allowed: "B/s, KiB/s, MiB/s, GiB/s, kB/s, MB/s, GB/s",
    units: &[
        ("B/s", 1),
        ("KiB/s", KIB),
        ("MiB/s", MIB),
        ("GiB/s", GIB),
        ("kB/s", 1_000),
        ("MB/s", 1_000_000),
        ("GB/s", 1_000_000_000),
    ],
    printed: &[("GiB/s", GIB), ("MiB/s", MIB), ("KiB/s", KIB), ("B/s", 1)],
};

const BITS_PER_SECOND: Scale = Scale {
    quantity: "network bandwidth",
    base: "a bit per second",
    example: "20Mbit/s",
    allowed: "bit/s, kbit/s, Mbit/s, Gbit/s",
    units: &[("bit/s", 1), ("kbit/s", 1_000), ("Mbit/s", 1_000_000), ("Gbit/s", 1_000_000_000)],
    printed: &[("Gbit/s", 1_000_000_000), ("Mbit/s", 1_000_000), ("kbit/s", 1_000), ("bit/s", 1)],
};

const IO_PER_SECOND: Scale = Scale {
    quantity: "disk operations",
    base: "one operation per second",
    example: "500",
    allowed: "operations per second (no suffix), IOPS",
    units: &[("", 1), ("IOPS", 1)],
    printed: &[("", 1)],
};

quantity!(
    /// CPU in thousandths of a core: `2` is two cores, `500m` half of one.
    MilliCores,
    CPU
);
quantity!(
    /// Memory or disk space in bytes: `4GiB`. A bare number is bytes.
    Bytes,
    BYTES
);
quantity!(
    /// Disk bandwidth in bytes per second: `100MiB/s`.
    BytesPerSecond,
    BYTES_PER_SECOND
);
quantity!(
    /// Network bandwidth in bits per second, in each direction: `20Mbit/s`.
    BitsPerSecond,
    BITS_PER_SECOND
);
quantity!(
    /// Disk operations per second: `500`.
    IoPerSecond,
    IO_PER_SECOND
);

impl Bytes {
    /// So many mebibytes.
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        Self(count * MIB)
    }

    /// So many gibibytes.
    #[must_use]
    pub const fn gib(count: u64) -> Self {
        Self(count * GIB)
    }
}

impl MilliCores {
    /// So many whole cores.
    #[must_use]
    pub const fn cores(count: u64) -> Self {
        Self(count * 1000)
    }

    /// The least number of whole vCPUs that can use this much, at least one.
    #[must_use]
    pub const fn vcpus(self) -> u64 {
        let count = self.0.div_ceil(1000);
        if count == 0 { 1 } else { count }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    #[test]
    fn people_write_quantities_in_many_ways() {
        assert_eq!("2".parse(), Ok(MilliCores(2000)));
        assert_eq!("0.5".parse(), Ok(MilliCores(500)));
        assert_eq!("1500m".parse(), Ok(MilliCores(1500)));
        assert_eq!("4GiB".parse(), Ok(Bytes::gib(4)));
        assert_eq!("1.5 GiB".parse(), Ok(Bytes::mib(1536)));
        assert_eq!("100Mbit/s".parse(), Ok(BitsPerSecond(100_000_000)));
        assert_eq!("10MiB/s".parse(), Ok(BytesPerSecond(10 * MIB)));
        assert_eq!(MilliCores(1500).to_string(), "1500m");
        assert_eq!(MilliCores(2000).to_string(), "2");
        assert_eq!(Bytes::mib(1536).to_string(), "1536MiB");
    }

    #[test]
    fn nonsense_is_refused_with_its_cause() {
        for text in ["", "-1", "x", "1.", ".5", "1..5", "1e3", "GiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
        assert!(matches!("4Gb".parse::<Bytes>(), Err(ParseUnitError::UnknownUnit { .. })));
        assert!(matches!("0.0001".parse::<MilliCores>(), Err(ParseUnitError::TooFine { .. })));
        assert!(matches!("99999999999TiB".parse::<Bytes>(), Err(ParseUnitError::TooLarge { .. })));
    }

    #[test]
    fn a_bare_number_in_a_file_means_what_it_means_in_text() {
        assert_eq!(serde_json::from_str::<MilliCores>("2").ok(), Some(MilliCores(2000)));
        assert_eq!(serde_json::from_str::<MilliCores>("0.25").ok(), Some(MilliCores(250)));
        assert!(serde_json::from_str::<MilliCores>("-1").is_err());
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(value in any::<u64>()) {
            assert_eq!(MilliCores(value).to_string().parse(), Ok(MilliCores(value)));
            assert_eq!(Bytes(value).to_string().parse(), Ok(Bytes(value)));
            assert_eq!(BytesPerSecond(value).to_string().parse(), Ok(BytesPerSecond(value)));
            assert_eq!(BitsPerSecond(value).to_string().parse(), Ok(BitsPerSecond(value)));
        }

        #[test]
        fn parsing_never_panics(text in ".{0,40}") {
            let _ = text.parse::<Bytes>();
            let _ = text.parse::<MilliCores>();
        }
    }
}

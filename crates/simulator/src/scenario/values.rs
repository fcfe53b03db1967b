//! Values with a syntax of their own: periods, rates, amounts that are drawn, numbered domains.

use std::{fmt, marker::PhantomData, str::FromStr};

use plimsoll_model::Label;
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use thiserror::Error;

use crate::engine::SimTime;

/// A text that is neither a period nor a rate.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidValue {
    /// Not a period.
    #[error("`{text}` is not a period: use numbers and units, such as 90s, 30m, 2h 30m, 7d or 2w")]
    Period {
        /// What was written, cut short.
        text: String,
    },
    /// Not a rate.
    #[error("`{text}` is not a rate: use a number above zero and a unit, such as 30/h or 0.5/s")]
    Rate {
        /// What was written, cut short.
        text: String,
    },
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

/// How many milliseconds a unit of time has. A day has 24 hours.
fn unit_ms(unit: &str) -> Option<u64> {
    Some(match unit {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 604_800_000,
        _ => return None,
    })
}

/// A length of simulated time, in milliseconds: `90s`, `2h 30m`, `7d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(pub u64);

impl Period {
    /// As a point in time: so long after the start.
    #[must_use]
    pub const fn after_start(self) -> SimTime {
        SimTime(self.0)
    }
}

impl FromStr for Period {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let wrong = || InvalidValue::Period { text: cut(text) };
        let mut rest = text.trim();
        let mut sum = 0_u64;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let count: u64 = rest[..digits].parse().map_err(|_| wrong())?;
            rest = rest[digits..].trim_start();
            let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            let unit = unit_ms(&rest[..letters]).ok_or_else(wrong)?;
            rest = rest[letters..].trim_start();
            let more = count.checked_mul(unit).ok_or_else(wrong)?;
            sum = sum.checked_add(more).ok_or_else(wrong)?;
        }
        Ok(Self(sum))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 5] =
            [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
        let mut rest = self.0;
        let mut parts = Vec::new();
        for (unit, size) in UNITS {
            if rest >= size {
                parts.push(format!("{}{unit}", rest / size));
                rest %= size;
            }
        }
        f.pad(&if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") })
    }
}

/// How often something happens: `30/h`, `0.5/s`. Above zero.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Rate {
    per_ms: f64,
}

impl Rate {
    /// How often in a millisecond; above zero.
    #[must_use]
    pub const fn per_ms(self) -> f64 {
        self.per_ms
    }
}

impl FromStr for Rate {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let wrong = || InvalidValue::Rate { text: cut(text) };
        let (number, unit) = text.split_once('/').ok_or_else(wrong)?;
        let number = number.trim();
        // `inf`, `nan` and `1e9` are numbers to Rust, not to people.
        if !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(wrong());
        }
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let unit = unit_ms(unit.trim()).ok_or_else(wrong)?;
        #[expect(clippy::cast_precision_loss, reason = "units of time are small")]
        let per_ms = number / unit as f64;
        // Rarer than once in a thousand years is a slip of the pen, and bounds what is divided by it.
        if per_ms.is_finite() && per_ms > 3e-14 { Ok(Self { per_ms }) } else { Err(wrong()) }
    }
}

macro_rules! text_value {
    ($name:ident, $expecting:literal) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}

text_value!(Period, "a period such as \"90s\", \"2h 30m\" or \"7d\"");
text_value!(Rate, "a rate such as \"30/h\" or \"0.5/s\"");

/// How the values between two ends are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// Each as likely as the other.
    #[default]
    Uniform,
    /// Each doubling as likely as the other: many small ones, few large ones.
    LogUniform,
}

/// An amount: always the same, or drawn from a range with both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount<T> {
    /// Always this.
    Fixed(T),
    /// Drawn for each batch.
    Range {
        /// The least.
        from: T,
        /// The most.
        to: T,
        /// Drawn amounts are `from` and multiples of this above it; none: any.
        step: Option<T>,
        /// How they are spread.
        spread: Spread,
    },
}

impl<T: Copy> Amount<T> {
    /// The least and the most that it can be.
    pub const fn ends(&self) -> (T, T) {
        match self {
            Self::Fixed(value) => (*value, *value),
            Self::Range { from, to, .. } => (*from, *to),
        }
    }

    /// The same in another type.
    pub fn map<U>(&self, f: impl Fn(T) -> U) -> Amount<U> {
        match self {
            Self::Fixed(value) => Amount::Fixed(f(*value)),
            Self::Range { from, to, step, spread } => {
                Amount::Range { from: f(*from), to: f(*to), step: step.map(&f), spread: *spread }
            }
        }
    }
}

impl<T: Default> Default for Amount<T> {
    fn default() -> Self {
        Self::Fixed(T::default())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RangeEntry<T> {
    from: T,
    to: T,
    #[serde(default = "none")]
    step: Option<T>,
    #[serde(default)]
    spread: Spread,
}

fn none<T>() -> Option<T> {
    None
}

impl<'de, T> Deserialize<'de> for Amount<T>
where
    T: Deserialize<'de> + PartialOrd + Default + fmt::Display,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AmountVisitor<T>(PhantomData<T>);
        impl<'de, T> Visitor<'de> for AmountVisitor<T>
        where
            T: Deserialize<'de> + PartialOrd + Default + fmt::Display,
        {
            type Value = Amount<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount, or a range such as { from = 1, to = 8 }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                T::deserialize(de::value::StrDeserializer::new(text)).map(Amount::Fixed)
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
                T::deserialize(de::value::I64Deserializer::new(value)).map(Amount::Fixed)
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Self::Value, E> {
                T::deserialize(de::value::F64Deserializer::new(value)).map(Amount::Fixed)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let RangeEntry { from, to, step, spread } =
                    RangeEntry::<T>::deserialize(de::value::MapAccessDeserializer::new(map))?;
                if from > to {
                    return Err(de::Error::custom(format!("`from` ({from}) is above `to` ({to})")));
                }
                if step.as_ref().is_some_and(|step| *step <= T::default()) {
                    return Err(de::Error::custom("`step` must be above zero"));
                }
                if spread == Spread::LogUniform && from <= T::default() {
                    return Err(de::Error::custom(
                        "a log_uniform range must begin above zero: it has no smallest doubling",
                    ));
                }
                Ok(Amount::Range { from, to, step, spread })
            }
        }
        deserializer.deserialize_any(AmountVisitor(PhantomData))
    }
}

/// Racks or zones: so many numbered ones, or those of these names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Domains {
    /// So many.
    Count(u32),
    /// These.
    Names(Vec<Label>),
}

impl<'de> Deserialize<'de> for Domains {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DomainsVisitor;
        impl<'de> Visitor<'de> for DomainsVisitor {
            type Value = Domains;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("how many there are, or a list of their names")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Domains, E> {
                u32::try_from(value)
                    .map(Domains::Count)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Domains, A::Error> {
                let mut names: Vec<Label> = Vec::new();
                while let Some(name) = seq.next_element()? {
                    if names.contains(&name) {
                        return Err(de::Error::custom(format!("`{name}` is there twice")));
                    }
                    if names.len() >= 1000 {
                        return Err(de::Error::custom("more than 1000 names"));
                    }
                    names.push(name);
                }
                Ok(Domains::Names(names))
            }
        }
        deserializer.deserialize_any(DomainsVisitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn periods_are_written_in_many_ways() {
        for (text, ms) in [
            ("90s", 90_000),
            ("2h 30m", 9_000_000),
            ("2h30m", 9_000_000),
            ("7d", 604_800_000),
            ("1w", 604_800_000),
            ("250ms", 250),
            (" 5 min ", 300_000),
        ] {
            assert_eq!(text.parse(), Ok(Period(ms)), "{text}");
        }
        for text in ["", "5", "h", "-5s", "1.5h", "5 parsecs", "99999999999999999d", "1h!", "é"] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
        assert_eq!(Period(0).to_string(), "0s");
        assert_eq!(Period(90_061_001).to_string(), "1d 1h 1m 1s 1ms");
    }

    #[test]
    fn rates_are_numbers_by_a_unit_of_time() {
        let per_ms = |text: &str| text.parse::<Rate>().map(Rate::per_ms);
        assert_eq!(per_ms("3600/h"), Ok(0.001));
        assert_eq!(per_ms("0.5 / s"), Ok(0.0005));
        for text in ["", "5", "0/h", "-1/h", "inf/s", "nan/s", "1e9/s", "/h", "5/x", "1.2.3/h"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(ms in any::<u64>()) {
            prop_assert_eq!(Period(ms).to_string().parse(), Ok(Period(ms)));
        }

        #[test]
        fn parsing_never_panics(text in ".{0,30}") {
            let _ = text.parse::<Period>();
            let _ = text.parse::<Rate>();
        }
    }
}

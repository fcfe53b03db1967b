//! Names that people give to things, safe to appear in file names, DNS and logs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "`{text}` is not a name: use 1 to {max} lower-case letters, digits and `-`, \
     beginning with a letter and ending with a letter or digit"
)]
pub struct InvalidName {
    text: String,
    max: usize,
}

/// A name of a VM, project, network, image, host, application or placement group: a DNS label
/// (RFC 1123) that begins with a letter, so that it can be a guest's host name and is never taken
/// for a number or an option.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// The longest name, in characters.
    pub const MAX: usize = 63;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let legal = text.len() <= Self::MAX
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && !text.ends_with('-')
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if legal {
            Ok(Self(text.to_owned()))
        } else {
            let text = text.chars().take(Self::MAX + 1).collect();
            Err(InvalidName { text, max: Self::MAX })
        }
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A key or value of a host's label: 1 to 63 characters of `[A-Za-z0-9._/-]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(String);

impl Label {
    /// The label as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Why a text is not a label.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not a label: use 1 to 63 letters, digits, `.`, `_`, `/` and `-`")]
pub struct InvalidLabel {
    text: String,
}

impl FromStr for Label {
    type Err = InvalidLabel;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let legal = (1..=63).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._/-".contains(&b));
        if legal {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidLabel { text: text.chars().take(64).collect() })
        }
    }
}

impl Serialize for Label {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(feature = "openapi")]
mod schema {
    use utoipa::openapi::{ObjectBuilder, RefOr, schema};

    impl utoipa::PartialSchema for super::Name {
        fn schema() -> RefOr<schema::Schema> {
            ObjectBuilder::new()
                .schema_type(schema::Type::String)
                .pattern(Some("^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"))
                .max_length(Some(Self::MAX))
                .into()
        }
    }
    impl utoipa::ToSchema for super::Name {}

    impl utoipa::PartialSchema for super::Label {
        fn schema() -> RefOr<schema::Schema> {
            ObjectBuilder::new()
                .schema_type(schema::Type::String)
                .pattern(Some("^[A-Za-z0-9._/-]{1,63}$"))
                .max_length(Some(63))
                .into()
        }
    }
    impl utoipa::ToSchema for super::Label {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for text in ["a", "web-1", "a0", &"x".repeat(63)] {
            assert!(text.parse::<Name>().is_ok(), "{text}");
        }
        for text in ["", "1a", "-a", "a-", "A", "a_b", "a.b", "../x", "é", &"x".repeat(64)] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }
}

//! Join tokens: all that a new host needs to find the manager and to be sure that it is the right
//! one, in one line that can be copied.
//!
//! `plj1.<address:port, URL-safe base64>.<SHA-256 of the CA's certificate, hex>.<secret>`

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use thiserror::Error;

/// A join token, taken apart.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Where the users' API listens: `address:port`.
    pub address: String,
    /// SHA-256 of the cluster CA's certificate (DER).
    pub ca_sha256: [u8; 32],
    /// The one-use secret: what [`crate::cluster::JoinRequest::token`] takes.
    pub secret: String,
}

/// A text that is not a join token. The text itself is not repeated: it may be a real secret with a
/// letter missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("this is not a join token: {reason}; make one with `plimsoll join-token create`")]
pub struct InvalidJoinToken {
    reason: &'static str,
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "plj1.{}.", URL_SAFE_NO_PAD.encode(&self.address))?;
        for byte in self.ca_sha256 {
            write!(f, "{byte:02x}")?;
        }
        write!(f, ".{}", self.secret)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("address", &self.address).finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = InvalidJoinToken;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |reason| InvalidJoinToken { reason };
        let mut parts = text.trim().split('.');
        if parts.next() != Some("plj1") {
            return Err(invalid("it does not begin with `plj1.`"));
        }
        let (Some(address), Some(digest), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid("it does not have four parts"));
        };
        let address = URL_SAFE_NO_PAD
            .decode(address)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .filter(|address| address.contains(':') && address.len() <= 300)
            .ok_or(invalid("its address cannot be read"))?;
        let ca_sha256 = parse_sha256(digest).ok_or(invalid("its checksum cannot be read"))?;
        let secret_is_plain = (16..=200).contains(&secret.len())
            && secret.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        if !secret_is_plain {
            return Err(invalid("its secret cannot be read"));
        }
        Ok(Self { address, ca_sha256, secret: secret.to_owned() })
    }
}

/// Reads 64 lower-case hexadecimal digits.
#[must_use]
pub fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    let bytes = text.as_bytes();
    let plain =
        bytes.len() == 64 && bytes.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
    if !plain {
        return None;
    }
    let mut digest = [0; 32];
    for (slot, pair) in digest.iter_mut().zip(bytes.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        *slot = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            address: "192.0.2.1:7700".to_owned(),
            ca_sha256: [0xa5; 32],
            secret: "x".repeat(43),
        }
    }

    #[test]
    fn tokens_print_and_parse() {
        assert_eq!(token().to_string().parse(), Ok(token()));
        assert!(!format!("{:?}", token()).contains("xxx"), "the secret is not shown");
    }

    #[test]
    fn what_is_no_token_is_refused_without_repeating_it() {
        let good = token().to_string();
        for text in ["", "plj1", "plj1.a.b.c", &good[1..], &good[..80], &format!("{good}.more")] {
            let error = text.parse::<JoinToken>().unwrap_err().to_string();
            assert!(text.len() < 10 || !error.contains(text), "{error}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "(plj1)?.{0,80}") {
            let _ = text.parse::<JoinToken>();
        }
    }
}

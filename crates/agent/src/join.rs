//! Becoming a host of a cluster, once, and remembering it.
//!
//! ```text
//!   token --> CA's checksum pinned --> POST /v1/join with a certificate request
//!                                       |
//!   join-key.pem (0600, made here, never leaves) + the answer --> membership.json (0600)
//! ```
//!
//! The key is on disk before the request goes out: if the answer is lost, the same key asks again.
//! The membership appears in one rename: a crash leaves the host joined or not, never in between.

use std::{
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use fs_err as fs;
use plimsoll_api::{
    ClientError, ErrorCode, JoinToken, client,
    cluster::{JoinRequest, JoinResponse},
    error_chain::involves,
    join_token::InvalidJoinToken,
    tls::{self, Identity, TlsError},
};
use plimsoll_model::{HostId, HostSpec, Name};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::vm::files::{self, FileError};

/// Why the host could not join, or its membership not be read.
#[derive(Debug, Error)]
pub enum JoinError {
    /// No token was given and the host is in no cluster yet.
    #[error(
        "this host is in no cluster yet: give a token with `--join` (make one with \
         `plimsoll join-token create` on the manager)"
    )]
    NotAMember,
    /// The token is not one.
    #[error("cannot use the token")]
    Token(#[source] InvalidJoinToken),
    /// The host is in a cluster already, and the token is of another one.
    #[error(
        "this host is {host} of another cluster than the token's; remove {} first if it shall leave \
         that one",
        path.display()
    )]
    OtherCluster {
        /// Its number there.
        host: HostId,
        /// Where that is remembered.
        path: PathBuf,
    },
    /// The key could not be made.
    #[error("cannot make the host's key")]
    MakeKey(#[source] rcgen::Error),
    /// The certificate request could not be made.
    #[error("cannot make the certificate request")]
    MakeRequest(#[source] rcgen::Error),
    /// The key could not be kept.
    #[error("cannot keep the host's key in {}", path.display())]
    KeepKey {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The manager that answers is not the one that made the token.
    #[error(
        "the manager at {address} does not have the certificate authority that the token names: \
         it may be another cluster, or somebody in between"
    )]
    OtherAuthority {
        /// Where.
        address: String,
        /// What the TLS library said.
        #[source]
        source: Box<ClientError>,
    },
    /// The token was used, has expired or was never made.
    #[error("the token was used already, has expired or was revoked: make a new one")]
    TokenSpent(#[source] Box<ClientError>),
    /// Another host has the name.
    #[error("there is a host named {name} already: choose another with `--name`")]
    NameTaken {
        /// The name.
        name: Name,
        /// What the manager said.
        #[source]
        source: Box<ClientError>,
    },
    /// The manager did not let it join for another reason, or is not there.
    #[error("cannot join the cluster at {address}")]
    Request {
        /// Where.
        address: String,
        /// Why not.
        #[source]
        source: Box<ClientError>,
    },
    /// What the manager answered does not fit the host's key or the token.
    #[error("the manager's answer does not fit: {reason}")]
    Answer {
        /// In what.
        reason: &'static str,
    },
    /// Certificate and key cannot be used.
    #[error("cannot use the host's certificate")]
    Tls(#[source] TlsError),
    /// The membership could not be kept.
    #[error("cannot keep the membership")]
    Keep(#[source] FileError),
    /// The membership could not be read.
    #[error("cannot read the membership")]
    Load(#[source] FileError),
}

/// That this host is in a cluster.
#[derive(Clone, Serialize, Deserialize)]
pub struct Membership {
    /// Its number.
    pub host: HostId,
    /// Its name.
    pub name: Name,
    /// Where the manager listens for agents: `address:port`.
    pub cluster_address: String,
    /// The cluster's CA, PEM.
    pub ca_pem: String,
    /// The host's certificate, PEM.
    pub certificate_pem: String,
    /// Its private key, PEM.
    key_pem: String,
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership")
            .field("host", &self.host)
            .field("name", &self.name)
            .field("cluster_address", &self.cluster_address)
            .finish_non_exhaustive()
    }
}

impl Membership {
    /// Where it is kept.
    #[must_use]
    pub fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("membership.json")
    }

    /// Reads it; `None` where the host has never joined.
    ///
    /// # Errors
    /// [`JoinError::Load`].
    pub fn load(data_dir: &Path) -> Result<Option<Self>, JoinError> {
        files::read_json(&Self::path(data_dir)).map_err(JoinError::Load)
    }

    /// What the host shows to prove who it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity { certificate_pem: self.certificate_pem.clone(), key_pem: self.key_pem.clone() }
    }

    /// That of a host that has joined, and where `token` is one of the same cluster or absent; joins
    /// otherwise.
    ///
    /// # Errors
    /// [`JoinError`].
    pub async fn load_or_join(
        data_dir: &Path,
        token: Option<&str>,
        name: &Name,
        spec: &HostSpec,
    ) -> Result<Self, JoinError> {
        let token =
            token.map(|text| text.parse::<JoinToken>().map_err(JoinError::Token)).transpose()?;
        match (Self::load(data_dir)?, token) {
            (None, None) => Err(JoinError::NotAMember),
            (None, Some(token)) => Self::join(data_dir, &token, name, spec).await,
            (Some(membership), None) => Ok(membership),
            (Some(membership), Some(token)) => {
                let ours = tls::certificate_sha256(&membership.ca_pem).map_err(JoinError::Tls)?;
                if ours == token.ca_sha256 {
                    tracing::info!(host = %membership.host, "already a member; the token is not used");
                    return Ok(membership);
                }
                Err(JoinError::OtherCluster { host: membership.host, path: Self::path(data_dir) })
            }
        }
    }

    async fn join(
        data_dir: &Path,
        token: &JoinToken,
        name: &Name,
        spec: &HostSpec,
    ) -> Result<Self, JoinError> {
        let key_path = data_dir.join("join-key.pem");
        let key = load_or_make_key(&key_path)?;
        let request = JoinRequest {
            token: token.secret.clone(),
            name: name.clone(),
            certificate_request_pem: certificate_request(&key, name)?,
            spec: spec.clone(),
        };
        let response =
            client::join(token, request).await.map_err(|error| refusal(error, token, name))?;
        let membership = Self::from_response(response, token, name, &key)?;
        files::write_json(&Self::path(data_dir), &membership).map_err(JoinError::Keep)?;
        // The key is in the membership now.
        let _ = files::remove(&key_path);
        tracing::info!(host = %membership.host, %name, "joined the cluster");
        Ok(membership)
    }

    fn from_response(
        response: JoinResponse,
        token: &JoinToken,
        name: &Name,
        key: &KeyPair,
    ) -> Result<Self, JoinError> {
        let membership = Self {
            host: response.host,
            name: name.clone(),
            cluster_address: response.cluster_address,
            ca_pem: response.ca_pem,
            certificate_pem: response.certificate_pem,
            key_pem: key.serialize_pem(),
        };
        let ca = tls::certificate_sha256(&membership.ca_pem).map_err(JoinError::Tls)?;
        if ca != token.ca_sha256 {
            return Err(JoinError::Answer { reason: "its CA is not the token's" });
        }
        let name = common_name(&membership.certificate_pem);
        if name.as_deref() != Some(membership.host.to_string().as_str()) {
            return Err(JoinError::Answer { reason: "the certificate is not the host's" });
        }
        // Fails where key and certificate do not belong together.
        tls::client_config(&membership.ca_pem, Some(&membership.identity()))
            .map_err(JoinError::Tls)?;
        Ok(membership)
    }
}

fn refusal(error: ClientError, token: &JoinToken, name: &Name) -> JoinError {
    let address = token.address.clone();
    let code = error.code();
    let source = Box::new(error);
    match code {
        Some(ErrorCode::Unauthenticated) => JoinError::TokenSpent(source),
        Some(ErrorCode::AlreadyExists) => JoinError::NameTaken { name: name.clone(), source },
        None if matches!(*source, ClientError::OtherCa { .. })
            || is_certificate_error(source.as_ref()) =>
        {
            JoinError::OtherAuthority { address, source }
        }
        _ => JoinError::Request { address, source },
    }
}

/// Whether the other side's certificate was refused, somewhere down the chain of causes.
fn is_certificate_error(error: &(dyn std::error::Error + 'static)) -> bool {
    involves(error, |tls| matches!(tls, rustls::Error::InvalidCertificate(_)))
}

fn common_name(certificate_pem: &str) -> Option<String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate_pem.as_bytes()).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let mut names = certificate.subject().iter_common_name();
    Some(names.next()?.as_str().ok()?.to_owned())
}

fn load_or_make_key(path: &Path) -> Result<KeyPair, JoinError> {
    // A key that cannot be read was cut off by a crash before anybody saw it.
    if let Ok(key) = fs::read_to_string(path)
        && let Ok(key) = KeyPair::from_pem(&key)
    {
        return Ok(key);
    }
    let key = KeyPair::generate().map_err(JoinError::MakeKey)?;
    let failed = |source| JoinError::KeepKey { path: path.to_owned(), source };
    files::remove(path).map_err(failed)?;
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    options.options_mut().mode(0o600);
    let mut file = options.open(path).map_err(failed)?;
    file.write_all(key.serialize_pem().as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    Ok(key)
}

fn certificate_request(key: &KeyPair, name: &Name) -> Result<String, JoinError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // The manager chooses the name in the certificate; this one only tells people whose request it is.
    params.distinguished_name.push(DnType::CommonName, name.as_str());
    params.serialize_request(key).and_then(|request| request.pem()).map_err(JoinError::MakeRequest)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::testing::FakeManager;

    #[test]
    fn a_key_is_made_once_and_only_the_owner_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("join-key.pem");
        let first = load_or_make_key(&path).unwrap();
        let again = load_or_make_key(&path).unwrap();
        assert_eq!(first.serialize_pem(), again.serialize_pem());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "cut of").unwrap();
        let anew = load_or_make_key(&path).unwrap();
        assert_ne!(first.serialize_pem(), anew.serialize_pem());
    }

    #[test]
    fn a_request_carries_the_name_and_is_signed() {
        let key = KeyPair::generate().unwrap();
        let pem = certificate_request(&key, &"host-a".parse().unwrap()).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        assert_eq!(pem.label, "CERTIFICATE REQUEST");
    }

    #[tokio::test]
    async fn without_token_and_membership_there_is_a_clear_error() {
        let directory = tempfile::tempdir().unwrap();
        let spec = crate::testing::host_spec();
        let name = "host-a".parse().unwrap();
        let load = |token| Membership::load_or_join(directory.path(), token, &name, &spec);
        assert!(matches!(load(None).await, Err(JoinError::NotAMember)));
        let error = load(Some("plj1.nonsense")).await.unwrap_err();
        assert!(matches!(error, JoinError::Token(_)), "{error}");
    }

    #[tokio::test]
    async fn a_host_joins_once_and_remembers_it() {
        let directory = tempfile::tempdir().unwrap();
        let manager = FakeManager::start().await;
        let spec = crate::testing::host_spec();
        let secret = "s".repeat(43);
        manager.book(|book| book.token = Some(secret.clone()));
        let token = manager.token(&secret).to_string();
        let load = async |token: Option<&str>, name: &str| {
            let name = name.parse().unwrap();
            Membership::load_or_join(directory.path(), token, &name, &spec).await
        };
        let error = load(Some(&token), "taken").await.unwrap_err();
        assert!(matches!(error, JoinError::NameTaken { .. }), "{error:?}");
        let joined = load(Some(&token), "host-a").await.unwrap();
        let path = Membership::path(directory.path());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!directory.path().join("join-key.pem").exists());
        assert!(!format!("{joined:?}").contains("PRIVATE"));
        // Without a token, and with the one that is spent, it is what it is.
        for token in [None, Some(token.as_str())] {
            assert_eq!(load(token, "host-a").await.unwrap().host, HostId(1));
        }
        let other = JoinToken { ca_sha256: [1; 32], ..manager.token(&secret) }.to_string();
        let error = load(Some(&other), "host-a").await.unwrap_err();
        assert!(matches!(error, JoinError::OtherCluster { .. }), "{error:?}");
        assert_eq!(manager.book(|book| book.joined.len()), 1);
    }

    #[tokio::test]
    async fn what_can_go_wrong_has_a_name() {
        let directory = tempfile::tempdir().unwrap();
        let mut manager = FakeManager::start().await;
        let spec = crate::testing::host_spec();
        let name = "host-a".parse().unwrap();
        let secret = "s".repeat(43);
        let load = async |token: JoinToken| {
            let token = token.to_string();
            let joined = Membership::load_or_join(directory.path(), Some(&token), &name, &spec);
            joined.await.unwrap_err()
        };
        let error = load(manager.token(&secret)).await;
        assert!(matches!(error, JoinError::TokenSpent(_)), "{error:?}");
        let error = load(JoinToken { ca_sha256: [1; 32], ..manager.token(&secret) }).await;
        assert!(matches!(error, JoinError::OtherAuthority { .. }), "{error:?}");
        manager.stop().await;
        let error = load(manager.token(&secret)).await;
        assert!(matches!(error, JoinError::Request { .. }), "{error:?}");
        assert!(Membership::load(directory.path()).unwrap().is_none());
    }
}

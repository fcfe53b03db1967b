//! TLS as every part of Plimsoll speaks it: rustls with ring, one cluster CA, names that say who
//! somebody is rather than where.
//!
//! The manager's certificate is valid for the name `manager`, a host's for `host-N`, wherever they
//! listen: an address that changes needs no new certificate, and a host can never pass for the
//! manager. Both sides of the agents' port and of the agents' own ports must show a certificate of
//! the cluster's CA. Revocation is not in TLS: who accepts a host's certificate asks whether that
//! host is still a member.

use std::sync::Arc;

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// The name for which the manager's certificate is valid.
pub const MANAGER: &str = "manager";

/// Why TLS could not be set up.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A PEM text could not be read.
    #[error("cannot read the {what} as PEM")]
    Pem {
        /// What it was to be.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A PEM text has no certificate.
    #[error("there is no certificate in the {what}")]
    Empty {
        /// What it was to be.
        what: &'static str,
    },
    /// The certificates and keys do not make a configuration.
    #[error("cannot set up TLS with the {what}")]
    Configuration {
        /// What did not fit.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The CA cannot be used to verify anybody.
    #[error("cannot verify others with the CA")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}

/// A certificate (with what leads to the CA, if anything) and its private key, in PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificates, the own one first.
    pub certificate_pem: String,
    /// The private key, PKCS#8.
    pub key_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Identity {
    fn parse(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let chain = certificates(&self.certificate_pem, "certificate")?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|source| TlsError::Pem { what: "private key", source })?;
        Ok((chain, key))
    }
}

/// Whom a server lets in.
#[derive(Clone, Copy, Debug)]
pub enum ClientAuth<'a> {
    /// Everybody: who it is, is told later, by a token.
    Token,
    /// Only holders of a certificate of this CA (PEM).
    Certificate(&'a str),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| TlsError::Pem { what, source })?;
    if certificates.is_empty() { Err(TlsError::Empty { what }) } else { Ok(certificates) }
}

fn roots(ca_pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca_pem, "CA's certificate")? {
        roots
            .add(certificate)
            .map_err(|source| TlsError::Configuration { what: "CA's certificate", source })?;
    }
    Ok(roots)
}

/// SHA-256 of a certificate's DER: what join tokens pin.
///
/// # Errors
/// The text has no certificate.
pub fn certificate_sha256(pem: &str) -> Result<[u8; 32], TlsError> {
    let certificates = certificates(pem, "certificate")?;
    let first = certificates.first().ok_or(TlsError::Empty { what: "certificate" })?;
    Ok(Sha256::digest(first).into())
}

/// A client that trusts only this CA, and shows `identity` to who asks for one.
///
/// # Errors
/// What was given cannot be read, or does not fit together.
pub fn client_config(ca_pem: &str, identity: Option<&Identity>) -> Result<ClientConfig, TlsError> {
    let builder = client_builder()?.with_root_certificates(roots(ca_pem)?);
    let Some(identity) = identity else { return Ok(builder.with_no_client_auth()) };
    let (chain, key) = identity.parse()?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|source| TlsError::Configuration { what: "certificate and its key", source })
}

/// A client that trusts nobody: for connections without TLS, of which the HTTP client nevertheless
/// wants a configuration.
///
/// # Errors
/// rustls refuses its own defaults.
pub fn no_tls_config() -> Result<ClientConfig, TlsError> {
    Ok(client_builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

/// A client that trusts the one CA with this checksum, which the server must send along with its own
/// certificate: for a host that joins and knows nothing but a token.
///
/// # Errors
/// rustls refuses its own defaults.
pub fn pinned_client_config(ca_sha256: [u8; 32]) -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let verifier =
        PinnedCa { ca_sha256, algorithms: provider.signature_verification_algorithms, provider };
    Ok(client_builder()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// A client that trusts the CAs that this machine trusts.
///
/// # Errors
/// This machine's CAs cannot be read.
pub fn platform_client_config() -> Result<ClientConfig, TlsError> {
    use rustls_platform_verifier::BuilderVerifierExt as _;
    Ok(client_builder()?
        .with_platform_verifier()
        .map_err(|source| TlsError::Configuration { what: "CAs of this machine", source })?
        .with_no_client_auth())
}

fn client_builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, TlsError>
{
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Configuration { what: "protocol versions", source })
}

/// A server with this identity.
///
/// # Errors
/// What was given cannot be read, or does not fit together.
pub fn server_config(
    identity: &Identity,
    clients: ClientAuth<'_>,
) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Configuration { what: "protocol versions", source })?;
    let builder = match clients {
        ClientAuth::Token => builder.with_no_client_auth(),
        ClientAuth::Certificate(ca_pem) => {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca_pem)?), provider())
                    .build()
                    .map_err(TlsError::Verifier)?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let (chain, key) = identity.parse()?;
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|source| TlsError::Configuration { what: "certificate and its key", source })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The common name of the certificate that the other side has shown (and rustls has verified):
/// `manager` or `host-N`. `None`: it has shown none, or one without exactly one name.
#[must_use]
pub fn peer_common_name(chain: Option<&[CertificateDer<'_>]>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(chain?.first()?).ok()?;
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.to_owned();
    names.next().is_none().then_some(name)
}

/// Trusts exactly the CA with this checksum.
#[derive(Debug)]
struct PinnedCa {
    ca_sha256: [u8; 32],
    algorithms: WebPkiSupportedAlgorithms,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates
            .iter()
            .find(|certificate| Sha256::digest(certificate).as_slice() == self.ca_sha256)
            .ok_or(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::clone(&self.provider),
        )
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

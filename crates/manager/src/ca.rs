//! The cluster's certificate authority: made at the first start, kept in the data folder, asked for
//! two kinds of certificates.
//!
//! - The **manager's**, made anew at each start with a key that never touches the disk: good for the
//!   name `manager` and for the addresses at which it listens.
//! - A **host's**, good for the name `host-N` alone. Of the request that a joining host sends only
//!   the public key is taken: what names it asks for does not matter.
//!
//! There are no revocation lists: every request by a host is checked against the members of the
//! cluster, so that a removed host's certificate is worth nothing from then on.
//!
//! Files: `ca.key` (mode 0600) is written first, then `ca.pem`. With a key and no certificate the
//! first start did not get far enough to issue anything, and the certificate is made.

use std::{
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use plimsoll_api::tls::{self, Identity, TlsError};
use plimsoll_model::{HostId, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use thiserror::Error;

/// The longest certificate request, in bytes of PEM.
const REQUEST_LIMIT: usize = 16 * 1024;
/// Membership is what is checked on each request; the years only keep a forgotten key from being
/// good for ever.
const YEARS: i16 = 10;

/// Why the CA cannot do what it was asked.
#[derive(Debug, Error)]
pub enum CaError {
    /// A file could not be read or written.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// `read` or `write`.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others can read the private key.
    #[error(
        "{} can be read by others: if nobody has read it, `chmod 600` it", path.display()
    )]
    KeyExposed {
        /// The key's file.
        path: PathBuf,
    },
    /// The certificate is there, the key is not.
    #[error("{} is missing, but its certificate is there: restore it from a backup", path.display())]
    KeyMissing {
        /// The key's file.
        path: PathBuf,
    },
    /// A certificate or key could not be made or read.
    #[error("cannot {doing}")]
    Certificate {
        /// What was tried.
        doing: &'static str,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// The own certificate cannot be read back.
    #[error("cannot read the CA's certificate")]
    Unreadable(#[source] TlsError),
    /// A joining host's request is too long.
    #[error("the certificate request is longer than {REQUEST_LIMIT} bytes")]
    RequestTooLong,
    /// A joining host's request is none, or its signature is wrong.
    #[error("the certificate request cannot be read")]
    Request(#[source] rcgen::Error),
    /// No randomness.
    #[error("the system gives no random numbers")]
    Random(#[source] getrandom::Error),
}

/// The cluster's CA with its key.
pub struct CertificateAuthority {
    certificate_pem: String,
    sha256: [u8; 32],
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority").finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// Opens the CA in `folder`, or makes it.
    ///
    /// # Errors
    /// Files cannot be read or written, others can read the key, or half of the pair is missing.
    pub fn open(folder: &Path, now: Timestamp) -> Result<Self, CaError> {
        let (key_path, certificate_path) = (folder.join("ca.key"), folder.join("ca.pem"));
        let key = match read_private(&key_path)? {
            Some(pem) => KeyPair::from_pem(&pem).map_err(failed("read the CA's key"))?,
            None if certificate_path.exists() => {
                return Err(CaError::KeyMissing { path: key_path });
            }
            None => {
                let key = KeyPair::generate().map_err(failed("make the CA's key"))?;
                write_durably(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
                key
            }
        };
        let certificate_pem = match fs_err::read_to_string(&certificate_path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let pem = ca_parameters(now)?
                    .self_signed(&key)
                    .map_err(failed("make the CA's certificate"))?
                    .pem();
                write_durably(&certificate_path, pem.as_bytes(), 0o644)?;
                pem
            }
            Err(source) => {
                return Err(CaError::File { doing: "read", path: certificate_path, source });
            }
        };
        let sha256 = tls::certificate_sha256(&certificate_pem).map_err(CaError::Unreadable)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key)
            .map_err(failed("read the CA's certificate"))?;
        Ok(Self { certificate_pem, sha256, issuer })
    }

    /// The CA's certificate, PEM: no secret.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// SHA-256 of the CA's certificate: what join tokens pin.
    #[must_use]
    pub const fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// A new identity for the manager, good for the name `manager` and for these addresses (IP
    /// addresses or host names). The CA's certificate is part of the chain, for hosts that know only
    /// its checksum.
    ///
    /// # Errors
    /// An address that fits into no certificate.
    pub fn manager_identity(
        &self,
        addresses: &[String],
        now: Timestamp,
    ) -> Result<Identity, CaError> {
        let mut names = vec![tls::MANAGER.to_owned(), "localhost".to_owned()];
        names.extend(addresses.iter().cloned());
        names.dedup();
        let key = KeyPair::generate().map_err(failed("make the manager's key"))?;
        let certificate = leaf_parameters(tls::MANAGER, names, now)?
            .signed_by(&key, &self.issuer)
            .map_err(failed("make the manager's certificate"))?;
        let chain = format!("{}{}", certificate.pem(), self.certificate_pem);
        Ok(Identity { certificate_pem: chain, key_pem: key.serialize_pem() })
    }

    /// Signs the public key of a joining host's request as `host`'s.
    ///
    /// # Errors
    /// [`CaError::RequestTooLong`] and [`CaError::Request`] are the host's fault.
    pub fn sign_host(
        &self,
        host: HostId,
        request_pem: &str,
        now: Timestamp,
    ) -> Result<String, CaError> {
        if request_pem.len() > REQUEST_LIMIT {
            return Err(CaError::RequestTooLong);
        }
        let request =
            CertificateSigningRequestParams::from_pem(request_pem).map_err(CaError::Request)?;
        let name = host.to_string();
        let certificate = leaf_parameters(&name, vec![name.clone()], now)?
            .signed_by(&request.public_key, &self.issuer)
            .map_err(failed("make the host's certificate"))?;
        Ok(certificate.pem())
    }
}

const fn failed(doing: &'static str) -> impl FnOnce(rcgen::Error) -> CaError {
    move |source| CaError::Certificate { doing, source }
}

fn parameters(common_name: &str, now: Timestamp) -> Result<CertificateParams, CaError> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.remove(DnType::CommonName);
    parameters.distinguished_name.push(DnType::CommonName, common_name);
    parameters.distinguished_name.push(DnType::OrganizationName, "Plimsoll");
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(CaError::Random)?;
    // A positive number, as X.509 wants it.
    serial[0] &= 0x7f;
    parameters.serial_number = Some(SerialNumber::from_slice(&serial));
    // From the first of last month: clocks of hosts differ.
    let date = now.to_zoned(jiff::tz::TimeZone::UTC).date();
    let (year, month) =
        if date.month() == 1 { (date.year() - 1, 12) } else { (date.year(), date.month() - 1) };
    let month = u8::try_from(month).unwrap_or(1);
    parameters.not_before = rcgen::date_time_ymd(i32::from(year), month, 1);
    parameters.not_after = rcgen::date_time_ymd(i32::from(year + YEARS), month, 1);
    Ok(parameters)
}

fn ca_parameters(now: Timestamp) -> Result<CertificateParams, CaError> {
    let mut parameters = parameters("Plimsoll cluster CA", now)?;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(parameters)
}

fn leaf_parameters(
    common_name: &str,
    names: Vec<String>,
    now: Timestamp,
) -> Result<CertificateParams, CaError> {
    let mut parameters = parameters(common_name, now)?;
    for name in names {
        let name = match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(
                name.try_into().map_err(failed("put a host name into a certificate"))?,
            ),
        };
        parameters.subject_alt_names.push(name);
    }
    parameters.is_ca = IsCa::ExplicitNoCa;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Hosts and the manager are servers to each other as well as clients.
    parameters.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    parameters.use_authority_key_identifier_extension = true;
    Ok(parameters)
}

/// The text of a private file; `None` if there is none.
fn read_private(path: &Path) -> Result<Option<String>, CaError> {
    let failed = |source| CaError::File { doing: "read", path: path.to_owned(), source };
    match fs_err::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
        Ok(data) if data.mode() & 0o077 != 0 => {
            return Err(CaError::KeyExposed { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    fs_err::read_to_string(path).map(Some).map_err(failed)
}

/// Writes a file whole or not at all: a crash leaves the old one, or none.
pub(crate) fn write_durably(path: &Path, content: &[u8], mode: u32) -> Result<(), CaError> {
    let failed = |source| CaError::File { doing: "write", path: path.to_owned(), source };
    let write = || {
        let temporary = path.with_extension("new");
        // Left by a crash: its mode may be another.
        match fs_err::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs_err::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |folder| fs_err::File::open(folder)?.sync_all())
    };
    write().map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn now() -> Timestamp {
        Timestamp::now()
    }

    fn request(name: &str) -> (String, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (parameters.serialize_request(&key).unwrap().pem().unwrap(), key)
    }

    #[test]
    fn the_ca_is_made_once_and_its_key_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let first = CertificateAuthority::open(folder.path(), now()).unwrap();
        let again = CertificateAuthority::open(folder.path(), now()).unwrap();
        assert_eq!(first.sha256(), again.sha256());
        let mode = fs_err::metadata(folder.path().join("ca.key")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn half_a_ca_and_an_exposed_key_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        CertificateAuthority::open(folder.path(), now()).unwrap();
        let key = folder.path().join("ca.key");
        fs_err::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = CertificateAuthority::open(folder.path(), now()).unwrap_err();
        assert!(matches!(error, CaError::KeyExposed { .. }), "{error}");
        fs_err::remove_file(&key).unwrap();
        let error = CertificateAuthority::open(folder.path(), now()).unwrap_err();
        assert!(matches!(error, CaError::KeyMissing { .. }), "{error}");
    }

    #[test]
    fn a_crash_between_key_and_certificate_is_mended() {
        let folder = tempfile::tempdir().unwrap();
        CertificateAuthority::open(folder.path(), now()).unwrap();
        fs_err::remove_file(folder.path().join("ca.pem")).unwrap();
        CertificateAuthority::open(folder.path(), now()).unwrap();
    }

    #[test]
    fn a_host_gets_its_own_name_whatever_it_asks_for() {
        let folder = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::open(folder.path(), now()).unwrap();
        let (request, _) = request("manager");
        let pem = ca.sign_host(HostId(7), &request, now()).unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let certificate = block.parse_x509().unwrap();
        let text = format!("{:?}", certificate.subject_alternative_name().unwrap().unwrap().value);
        assert!(text.contains("host-7") && !text.contains("manager"), "{text}");
        assert!(certificate.subject().to_string().contains("CN=host-7"));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::open(folder.path(), now()).unwrap();
        for text in ["", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", &"x".repeat(20_000)] {
            assert!(ca.sign_host(HostId(1), text, now()).is_err());
        }
        // A request whose signature is wrong: somebody else's key.
        let (mut good, _) = request("host");
        let middle = good.len() - 60;
        let replacement = if good.as_bytes()[middle] == b'A' { "B" } else { "A" };
        good.replace_range(middle..=middle, replacement);
        assert!(ca.sign_host(HostId(1), &good, now()).is_err());
    }
}

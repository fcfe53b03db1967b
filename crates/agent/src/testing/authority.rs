//! A cluster's certificate authority.

use plimsoll_api::tls::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};

/// A cluster's certificate authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = named("cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate and key for `manager` or `host-N`, with the CA's behind it.
    pub(crate) fn identity(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = member(name).signed_by(&key, &self.issuer).unwrap();
        let certificate_pem = format!("{}{}", certificate.pem(), self.pem);
        Identity { certificate_pem, key_pem: key.serialize_pem() }
    }

    /// A certificate as the manager makes it: with a name of its choice.
    pub(crate) fn sign(&self, request_pem: &str, name: &str) -> String {
        let request = CertificateSigningRequestParams::from_pem(request_pem).unwrap();
        member(name).signed_by(&request.public_key, &self.issuer).unwrap().pem()
    }
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn member(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

//! Certificates for servers of a test.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// A certificate for localhost, as PEM.
#[derive(Debug)]
pub struct Certified {
    /// The certificate of the authority that has signed it.
    pub authority: String,
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// A certificate for localhost by a new authority.
pub fn certified() -> Certified {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).expect("an authority").pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["localhost".into()]).expect("parameters");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate").pem();
    Certified { authority, certificate, key: key.serialize_pem() }
}

impl Certified {
    /// The configuration of a client that believes its authority.
    pub fn client(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.as_bytes()).expect("PEM")).expect("a certificate");
        let tls = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        tls.with_safe_default_protocol_versions().expect("TLS").with_root_certificates(roots).with_no_client_auth()
    }
}

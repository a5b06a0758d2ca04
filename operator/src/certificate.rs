//! The certificate that the API server meets at the webhook: made here, by an authority of our own.
//!
//! The authority lives ten years and stays in the Secret with its key, so that a renewal changes nothing that the API server
//! trusts. Whoever can read that Secret could pose as the webhook anyway. When the authority itself is renewed, the API
//! server is told to trust both, because a replica may still serve with the old one.

pub mod keeper;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a serving certificate lasts.
pub const LIFETIME: Duration = DAY.saturating_mul(90);
/// How long before its end it is renewed.
pub const RENEWAL: Duration = DAY.saturating_mul(30);
/// How long the authority lasts.
const AUTHORITY_LIFETIME: Duration = DAY.saturating_mul(3_650);
/// How long before its end the authority is renewed.
const AUTHORITY_RENEWAL: Duration = DAY.saturating_mul(365);
/// Clocks differ: a certificate is valid from a little before it was made.
const SKEW: Duration = Duration::from_secs(60 * 60);
/// What ends a certificate in PEM.
const END: &str = "-----END CERTIFICATE-----\n";

/// A serving certificate, its authority, and the keys of both, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    authorities: String,
    authority_key: String,
    chain: String,
    key: String,
}

/// Why a certificate cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// It cannot be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// It is not PEM.
    #[error("{part} is not PEM: {error}")]
    Pem {
        /// Which of its parts.
        part: &'static str,
        /// Why.
        error: rustls::pki_types::pem::Error,
    },
    /// It is not for this name.
    #[error("{0:?} is not a name that a certificate can be for")]
    Name(String),
    /// A client would refuse it, or a server cannot use it.
    #[error("it cannot be served: {0}")]
    Tls(#[from] rustls::Error),
    /// A client could not check it.
    #[error("it cannot be checked: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// Keys are not for logs.
impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("chain", &self.chain).finish_non_exhaustive()
    }
}

const AUTHORITIES: &str = "ca.crt";
const AUTHORITY_KEY: &str = "ca.key";
const CHAIN: &str = "tls.crt";
const KEY: &str = "tls.key";

impl Certificate {
    /// Makes a certificate for these DNS names. The authority of the previous one is kept while it lasts.
    pub fn renew(previous: Option<&Self>, names: &[String], now: SystemTime) -> Result<Self, CertificateError> {
        let kept = previous.filter(|previous| previous.authority_lasts(now + AUTHORITY_RENEWAL));
        if let Some(kept) = kept.and_then(|previous| previous.reissue(names, now).ok()) {
            return Ok(kept);
        }
        let key = KeyPair::generate()?;
        let params = authority(now);
        let authority = params.self_signed(&key)?.pem();
        let old =
            previous.filter(|previous| previous.authority_lasts(now)).map(|previous| first(&previous.authorities));
        let authorities = format!("{authority}{}", old.unwrap_or_default());
        let issuer = Issuer::new(params, &key);
        Self::issue(authorities, key.serialize_pem(), &issuer, names, now)
    }

    /// A new certificate by the same authority; an error if the authority cannot vouch for it.
    fn reissue(&self, names: &[String], now: SystemTime) -> Result<Self, CertificateError> {
        let issuer = Issuer::from_ca_cert_pem(&self.authorities, KeyPair::from_pem(&self.authority_key)?)?;
        let renewed = Self::issue(self.authorities.clone(), self.authority_key.clone(), &issuer, names, now)?;
        renewed.check(names, now)?;
        Ok(renewed)
    }

    fn issue(
        authorities: String,
        authority_key: String,
        issuer: &Issuer<'_, impl rcgen::SigningKey>,
        names: &[String],
        now: SystemTime,
    ) -> Result<Self, CertificateError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        params.not_before = (now - SKEW).into();
        params.not_after = (now + LIFETIME).into();
        params.distinguished_name.push(DnType::CommonName, "wspool webhook");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let chain = params.signed_by(&key, issuer)?.pem();
        Ok(Self { authorities, authority_key, chain, key: key.serialize_pem() })
    }

    /// Checks that a server can use it, and that a client that trusts its authorities accepts it at a time, by all names.
    pub fn check(&self, names: &[String], at: SystemTime) -> Result<(), CertificateError> {
        self.server_config()?;
        let mut roots = RootCertStore::empty();
        for authority in certificates(AUTHORITIES, &self.authorities)? {
            roots.add(authority)?;
        }
        let chain = certificates(CHAIN, &self.chain)?;
        let (leaf, rest) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build()?;
        let at = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        for name in names {
            let name = ServerName::try_from(name.as_str()).map_err(|_| CertificateError::Name(name.clone()))?;
            verifier.verify_server_cert(leaf, rest, &name, &[], at)?;
        }
        Ok(())
    }

    /// Whether it must be renewed now: it ends within [`RENEWAL`], its authority within a year, or it is unfit.
    pub fn needs_renewal(&self, names: &[String], now: SystemTime) -> bool {
        self.check(names, now + RENEWAL).is_err() || !self.authority_lasts(now + AUTHORITY_RENEWAL)
    }

    /// The TLS of a server that has it.
    pub fn server_config(&self) -> Result<ServerConfig, CertificateError> {
        self.server_config_for(None)
    }

    /// The TLS of a server that has it, and checks its clients' certificates with a verifier.
    pub fn server_config_for(
        &self,
        clients: Option<Arc<dyn ClientCertVerifier>>,
    ) -> Result<ServerConfig, CertificateError> {
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes());
        let key = key.map_err(|error| CertificateError::Pem { part: KEY, error })?;
        let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let config = match clients {
            Some(verifier) => config.with_client_cert_verifier(verifier),
            None => config.with_no_client_auth(),
        };
        let mut config = config.with_single_cert(certificates(CHAIN, &self.chain)?, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// What a client must trust: the authority, and while it is being renewed the one before. PEM.
    pub fn authorities(&self) -> &str {
        &self.authorities
    }

    /// As the data of a Secret.
    pub fn to_data(&self) -> BTreeMap<String, ByteString> {
        let parts = [
            (AUTHORITIES, &self.authorities),
            (AUTHORITY_KEY, &self.authority_key),
            (CHAIN, &self.chain),
            (KEY, &self.key),
        ];
        parts.into_iter().map(|(name, pem)| (name.to_owned(), ByteString(pem.clone().into_bytes()))).collect()
    }

    /// From the data of a Secret; `None` if parts are missing. It may be unfit: see [`Self::needs_renewal`].
    pub fn from_data(data: &BTreeMap<String, ByteString>) -> Option<Self> {
        let part = |name: &str| String::from_utf8(data.get(name)?.0.clone()).ok();
        Some(Self {
            authorities: part(AUTHORITIES)?,
            authority_key: part(AUTHORITY_KEY)?,
            chain: part(CHAIN)?,
            key: part(KEY)?,
        })
    }

    fn authority_lasts(&self, until: SystemTime) -> bool {
        let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(self.authorities.as_bytes()) else { return false };
        let Ok(authority) = pem.parse_x509() else { return false };
        let until = until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        u64::try_from(authority.validity().not_after.timestamp()).is_ok_and(|end| end > until)
    }
}

fn authority(now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = (now - SKEW).into();
    params.not_after = (now + AUTHORITY_LIFETIME).into();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "wspool webhook authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// The first certificate of several in PEM.
fn first(pem: &str) -> &str {
    pem.find(END).map_or("", |end| &pem[..end + END.len()])
}

/// All certificates of a PEM; an error names the part that it is.
pub(crate) fn certificates(part: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    certificates.map_err(|error| CertificateError::Pem { part, error })
}

/// One for all: the process-wide default would depend on what other crates enable.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

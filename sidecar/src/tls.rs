//! TLS towards others: whose certificates are believed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file of `caFrom`.
    #[error("the certificates in {0} cannot be read: {1}")]
    Authorities(PathBuf, String),
    /// Anything else.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

/// The configuration of a client that believes the authorities in a file, or else the public ones.
pub fn client(ca: Option<&Path>) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    match ca {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(file) => {
            let broken = |error: &dyn std::fmt::Display| TlsError::Authorities(file.to_owned(), error.to_string());
            let pem = std::fs::read(file).map_err(|error| broken(&error))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|error| broken(&error))?;
                roots.add(certificate).map_err(|error| broken(&error))?;
            }
            if roots.is_empty() {
                return Err(broken(&"there is none in it"));
            }
        }
    }
    let tls = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    Ok(tls.with_safe_default_protocol_versions()?.with_root_certificates(roots).with_no_client_auth())
}

//! Who everybody is: keys and certificates, signed anew for each control plane.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rcgen::{KeyUsagePurpose, SanType};

/// Who may do everything.
pub const ADMIN: &str = "admin";
/// The controller manager.
pub const CONTROLLERS: &str = "controllers";
/// The API server, as aggregated API servers know it.
pub const FRONT_PROXY: &str = "front-proxy";

/// Somebody whom the front proxy's authority vouches for too, and who is not the API server.
pub const STRANGER: &str = "stranger";

/// Writes the files of a control plane.
#[derive(Debug)]
pub struct Certificates<'a> {
    folder: &'a Path,
}

/// Somebody who can sign.
type Authority = Issuer<'static, KeyPair>;

impl Certificates<'_> {
    /// Writes into the folder, as PEM:
    ///
    /// | files | who |
    /// |---|---|
    /// | `ca.crt` | who signs all but the front proxy |
    /// | `front-proxy-ca.crt` | who signs the front proxy, and nobody else |
    /// | `apiserver.crt`, `.key` | the API server at `address` |
    /// | `admin`, `controllers`, `front-proxy`, `stranger` | see the constants |
    /// | `accounts.key`, `.pub` | what the tokens of service accounts are signed with |
    pub fn write(folder: &Path, address: IpAddr) {
        let write = Certificates { folder };
        let ca = write.authority("ca");
        let mut server = params("kube-apiserver", None);
        server.subject_alt_names = vec![SanType::IpAddress(address)];
        write.signed("apiserver", &server, &ca);
        write.signed(ADMIN, &params("admin", Some("system:masters")), &ca);
        write.signed(CONTROLLERS, &params("system:kube-controller-manager", None), &ca);
        let front_proxy_ca = write.authority("front-proxy-ca");
        write.signed(FRONT_PROXY, &params(FRONT_PROXY, None), &front_proxy_ca);
        write.signed(STRANGER, &params(STRANGER, None), &front_proxy_ca);
        let accounts = key();
        write.file("accounts.key", &accounts.serialize_pem());
        write.file("accounts.pub", &accounts.public_key_pem());
    }

    fn authority(&self, name: &str) -> Authority {
        let mut params = params(name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages.clear();
        let key = key();
        let certificate = params.self_signed(&key).expect("an authority's certificate");
        self.file(&format!("{name}.crt"), &certificate.pem());
        Issuer::new(params, key)
    }

    fn signed(&self, name: &str, params: &CertificateParams, authority: &Authority) {
        let key = key();
        let certificate = params.signed_by(&key, authority).expect("a signed certificate");
        self.file(&format!("{name}.crt"), &certificate.pem());
        self.file(&format!("{name}.key"), &key.serialize_pem());
    }

    fn file(&self, name: &str, text: &str) {
        fs::write(self.folder.join(name), text).expect("a folder that can be written");
    }
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

/// For a client and a server: Kubernetes takes the common name for the user, the organization for its group.
fn params(user: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params
}

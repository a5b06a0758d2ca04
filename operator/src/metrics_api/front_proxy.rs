//! The API server as the front proxy: how it shows that a request comes from it, and for whom.
//!
//! It publishes that in the ConfigMap `extension-apiserver-authentication`: the authority of its client certificate, the names
//! that this may be for, and the headers in which it says who asks. TLS refuses a certificate of another authority; it is
//! checked again at each request, so that a connection does not outlive what it was trusted by.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use axum::http::HeaderMap;
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client};
use percent_encoding::percent_decode_str;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::sync::watch;

use crate::certificate::{CertificateError, certificates, provider};

/// The ConfigMap, and its namespace.
const NAME: &str = "extension-apiserver-authentication";
const NAMESPACE: &str = "kube-system";
const AUTHORITY: &str = "requestheader-client-ca-file";
const ALLOWED_NAMES: &str = "requestheader-allowed-names";
const USERS: &str = "requestheader-username-headers";
const UIDS: &str = "requestheader-uid-headers";
const GROUPS: &str = "requestheader-group-headers";
const EXTRA_PREFIXES: &str = "requestheader-extra-headers-prefix";

/// What tells the API server from anybody else.
pub struct FrontProxy {
    verifier: Arc<dyn ClientCertVerifier>,
    data: BTreeMap<String, String>,
    /// None means any that the authority vouches for.
    allowed_names: Vec<String>,
    users: Vec<String>,
    uids: Vec<String>,
    groups: Vec<String>,
    extra_prefixes: Vec<String>,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The UID, if there is one.
    pub uid: Option<String>,
    /// The groups.
    pub groups: Vec<String>,
    /// What else is known.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Why nobody can be known from a ConfigMap.
#[derive(Debug, thiserror::Error)]
pub enum FrontProxyError {
    /// It has no such key.
    #[error("it has no {0}: this API server has no aggregation layer")]
    Missing(&'static str),
    /// It is not a list.
    #[error("its {key} is not a list of names in JSON: {error}")]
    List {
        /// Which key.
        key: &'static str,
        /// Why.
        error: serde_json::Error,
    },
    /// The authority cannot be used.
    #[error("its {AUTHORITY} cannot be used: {0}")]
    Authority(#[from] CertificateError),
    /// The authority cannot be used.
    #[error("its {AUTHORITY} cannot be used: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// Why it is not known who asks.
#[derive(Debug, thiserror::Error)]
pub enum Unauthenticated {
    /// No certificate.
    #[error("the request does not come through the API server: it has no client certificate")]
    NoCertificate,
    /// Of another authority, or outdated.
    #[error("the request does not come through the API server: its client certificate is refused: {0}")]
    Refused(rustls::Error),
    /// For somebody else.
    #[error("the request does not come through the API server: its client certificate is for {0:?}")]
    Name(String),
    /// No user.
    #[error("the request does not say who has made it")]
    NoUser,
}

impl fmt::Debug for FrontProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrontProxy").field("data", &self.data).finish_non_exhaustive()
    }
}

impl FrontProxy {
    /// From the ConfigMap's data.
    pub fn read(data: &BTreeMap<String, String>) -> Result<Self, FrontProxyError> {
        let pem = data.get(AUTHORITY).ok_or(FrontProxyError::Missing(AUTHORITY))?;
        let mut roots = RootCertStore::empty();
        for authority in certificates(AUTHORITY, pem)? {
            roots.add(authority).map_err(CertificateError::from)?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        let list = |key: &'static str| -> Result<Vec<String>, FrontProxyError> {
            let Some(text) = data.get(key) else { return Ok(Vec::new()) };
            serde_json::from_str(text).map_err(|error| FrontProxyError::List { key, error })
        };
        Ok(Self {
            verifier: verifier.allow_unauthenticated().build()?,
            data: data.clone(),
            allowed_names: list(ALLOWED_NAMES)?,
            users: list(USERS)?,
            uids: list(UIDS)?,
            groups: list(GROUPS)?,
            extra_prefixes: list(EXTRA_PREFIXES)?.iter().map(|prefix| prefix.to_ascii_lowercase()).collect(),
        })
    }

    /// What TLS checks clients with.
    pub fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.verifier)
    }

    /// Who has made a request. `chain` is the client's, its own certificate first.
    pub fn authenticate(&self, chain: &[Vec<u8>], headers: &HeaderMap, now: UnixTime) -> Result<User, Unauthenticated> {
        let chain: Vec<CertificateDer<'_>> = chain.iter().map(|der| der.as_slice().into()).collect();
        let (own, others) = chain.split_first().ok_or(Unauthenticated::NoCertificate)?;
        self.verifier.verify_client_cert(own, others, now).map_err(Unauthenticated::Refused)?;
        let name = common_name(own).unwrap_or_default();
        if !self.allowed_names.is_empty() && !self.allowed_names.contains(&name) {
            return Err(Unauthenticated::Name(name));
        }
        let first =
            |names: &[String]| names.iter().find_map(|name| headers.get(name)?.to_str().ok().map(str::to_owned));
        let groups = self.groups.iter().flat_map(|name| headers.get_all(name));
        Ok(User {
            name: first(&self.users).filter(|user| !user.is_empty()).ok_or(Unauthenticated::NoUser)?,
            uid: first(&self.uids),
            groups: groups.filter_map(|group| group.to_str().ok().map(str::to_owned)).collect(),
            extra: self.extra(headers),
        })
    }

    fn extra(&self, headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in headers {
            let key = self.extra_prefixes.iter().find_map(|prefix| name.as_str().strip_prefix(prefix));
            if let (Some(key), Ok(value)) = (key, value.to_str()) {
                let key = percent_decode_str(key).decode_utf8_lossy().into_owned();
                extra.entry(key).or_default().push(value.to_owned());
            }
        }
        extra
    }
}

fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    certificate.subject().iter_common_name().next()?.as_str().ok().map(str::to_owned)
}

/// Follows the ConfigMap for ever. What cannot be used changes nothing.
pub async fn follow(client: Client, known: watch::Sender<Option<Arc<FrontProxy>>>) {
    let maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    let mut maps = std::pin::pin!(watch_object(maps, NAME).default_backoff());
    while let Some(map) = maps.next().await {
        let data = match map {
            Ok(Some(map)) => map.data.unwrap_or_default(),
            Ok(None) => BTreeMap::new(),
            Err(error) => {
                tracing::warn!(%error, "the ConfigMap {NAMESPACE}/{NAME} cannot be watched; the watch begins again");
                continue;
            }
        };
        if known.borrow().as_ref().is_some_and(|known| known.data == data) {
            continue;
        }
        match FrontProxy::read(&data) {
            Ok(front_proxy) => drop(known.send_replace(Some(Arc::new(front_proxy)))),
            Err(error) => {
                tracing::error!(%error, "the ConfigMap {NAMESPACE}/{NAME} does not say who may ask for metrics");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

    use super::*;

    struct Authority(Issuer<'static, KeyPair>, String);

    fn authority() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority(Issuer::new(params, key), pem)
    }

    impl Authority {
        fn chain(&self, name: &str) -> Vec<Vec<u8>> {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            let certificate = params.signed_by(&KeyPair::generate().unwrap(), &self.0).unwrap();
            vec![certificate.der().to_vec()]
        }

        fn front_proxy(&self, allowed: &str) -> FrontProxy {
            let data = [
                (AUTHORITY, self.1.as_str()),
                (ALLOWED_NAMES, allowed),
                (USERS, r#"["X-Remote-User"]"#),
                (GROUPS, r#"["X-Remote-Group"]"#),
                (EXTRA_PREFIXES, r#"["X-Remote-Extra-"]"#),
            ];
            let data = data.map(|(key, value)| (key.to_owned(), value.to_owned()));
            FrontProxy::read(&data.into()).unwrap()
        }
    }

    fn headers() -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", "jane".parse().unwrap());
        headers.append("x-remote-group", "a".parse().unwrap());
        headers.append("x-remote-group", "b".parse().unwrap());
        headers.insert("x-remote-extra-example.com%2fscope", "read".parse().unwrap());
        headers
    }

    #[test]
    fn the_api_server_says_who_asks() {
        let authority = authority();
        let chain = authority.chain("front-proxy");
        for allowed in [r#"["front-proxy"]"#, "[]"] {
            let user = authority.front_proxy(allowed).authenticate(&chain, &headers(), UnixTime::now()).unwrap();
            let extra = BTreeMap::from([("example.com/scope".to_owned(), vec!["read".to_owned()])]);
            let groups = vec!["a".to_owned(), "b".to_owned()];
            assert_eq!(user, User { name: "jane".into(), uid: None, groups, extra });
        }
    }

    #[test]
    fn nobody_else_does() {
        let (authority, foreign) = (authority(), authority());
        let front_proxy = authority.front_proxy(r#"["front-proxy"]"#);
        let ask = |chain: &[Vec<u8>], headers: &HeaderMap| {
            front_proxy.authenticate(chain, headers, UnixTime::now()).unwrap_err()
        };
        assert!(matches!(ask(&[], &headers()), Unauthenticated::NoCertificate));
        assert!(matches!(ask(&foreign.chain("front-proxy"), &headers()), Unauthenticated::Refused(_)));
        assert!(matches!(ask(&authority.chain("other"), &headers()), Unauthenticated::Name(name) if name == "other"));
        let own = authority.chain("front-proxy");
        assert!(matches!(ask(&own, &HeaderMap::new()), Unauthenticated::NoUser));
    }

    #[test]
    fn a_configmap_that_does_not_say_it_is_refused_by_key() {
        let error = FrontProxy::read(&BTreeMap::new()).unwrap_err();
        assert!(error.to_string().starts_with("it has no requestheader-client-ca-file"), "{error}");
        let mut data = authority().front_proxy("[]").data;
        data.insert(ALLOWED_NAMES.into(), "front-proxy".into());
        let error = FrontProxy::read(&data).unwrap_err();
        assert!(error.to_string().starts_with("its requestheader-allowed-names is not a list"), "{error}");
    }
}

//! Where the webhook's certificate is kept: a Secret on which all replicas agree, and the configuration through which the
//! API server trusts it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum_server::tls_rustls::RustlsConfig;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;

use super::{Certificate, CertificateError};

/// How often the Secret and the configuration are looked at. The other replica renews weeks ahead; what this bounds is how
/// long pods are refused after somebody has overwritten the `caBundle`.
const INTERVAL: Duration = Duration::from_secs(30);
/// How long one request to the API server may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Whose fields the `caBundle`s are.
const MANAGER: &str = "wspool-operator";
/// Lost races after which a round is given up. With two replicas one is enough.
const ATTEMPTS: usize = 4;

/// The names of what is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The operator's namespace.
    pub namespace: String,
    /// The Secret, in that namespace.
    pub secret: String,
    /// The `MutatingWebhookConfiguration`.
    pub configuration: String,
    /// The Service through which the API server comes, in that namespace.
    pub service: String,
}

/// Keeps the certificate.
#[derive(Clone)]
pub struct Keeper {
    secrets: Api<Secret>,
    configurations: Api<MutatingWebhookConfiguration>,
    place: Place,
    names: Vec<String>,
}

/// Why the certificate is not settled.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The API server refused.
    #[error("cannot {verb} {object}: {error}")]
    Kube {
        /// What was asked.
        verb: &'static str,
        /// Of what.
        object: String,
        /// Why not.
        error: Box<kube::Error>,
    },
    /// The API server did not answer in time.
    #[error("cannot {verb} {object}: no answer in {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout {
        /// What was asked.
        verb: &'static str,
        /// Of what.
        object: String,
    },
    /// Others wrote at the same time, again and again.
    #[error("the Secret {0} changed {ATTEMPTS} times while it was being written")]
    Contended(String),
    /// The certificate cannot be made or used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

impl Keeper {
    /// A keeper of what is in a place.
    pub fn new(client: Client, place: Place) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &place.namespace),
            configurations: Api::all(client),
            names: vec![format!("{}.{}.svc", place.service, place.namespace)],
            place,
        }
    }

    /// Agrees with the other replicas on a certificate, and makes the API server trust it.
    pub async fn settle(&self, now: SystemTime) -> Result<Certificate, KeeperError> {
        let certificate = self.agree(now).await?;
        self.publish(&certificate).await?;
        Ok(certificate)
    }

    /// Settles again and again until told to stop, and serves what it settles on. `current` is what is served now.
    pub async fn keep(self, current: watch::Sender<Certificate>, tls: RustlsConfig, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            let settled = match self.settle(SystemTime::now()).await {
                Ok(settled) if settled == *current.borrow() => continue,
                Ok(settled) => settled.server_config().map(|config| (settled, config)).map_err(KeeperError::from),
                Err(error) => Err(error),
            };
            match settled {
                Ok((settled, config)) => {
                    tls.reload_from_config(Arc::new(config));
                    current.send_replace(settled);
                    tracing::info!(secret = self.place.secret, "the webhook serves a new certificate");
                }
                Err(error) => tracing::warn!(%error, "the webhook's certificate cannot be looked after"),
            }
        }
    }

    /// The certificate in the Secret; made and written there if it is missing or must be renewed. Who writes first wins.
    async fn agree(&self, now: SystemTime) -> Result<Certificate, KeeperError> {
        let name = &self.place.secret;
        for _ in 0..ATTEMPTS {
            let present = self.on_secret("get", self.secrets.get_opt(name)).await?;
            let held = present.as_ref().and_then(|secret| Certificate::from_data(secret.data.as_ref()?));
            if let Some(held) = held.as_ref().filter(|held| !held.needs_renewal(&self.names, now)) {
                return Ok(held.clone());
            }
            let renewed = Certificate::renew(held.as_ref(), &self.names, now)?;
            let written = match present {
                None => {
                    let secret = self.secret(&renewed);
                    self.on_secret("create", self.secrets.create(&PostParams::default(), &secret)).await
                }
                Some(mut secret) => {
                    // It is sent with the resourceVersion that was read.
                    secret.data.get_or_insert_default().extend(renewed.to_data());
                    self.on_secret("update", self.secrets.replace(name, &PostParams::default(), &secret)).await
                }
            };
            match written {
                Ok(_) => {
                    tracing::info!(secret = name, "made a certificate for the webhook");
                    return Ok(renewed);
                }
                Err(KeeperError::Kube { error, .. }) if lost_race(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Err(KeeperError::Contended(name.clone()))
    }

    /// Makes the API server trust the certificate's authorities.
    async fn publish(&self, certificate: &Certificate) -> Result<(), KeeperError> {
        let name = &self.place.configuration;
        let object = || format!("the MutatingWebhookConfiguration {name}");
        let present = within("get", object(), self.configurations.get(name)).await?;
        let bundle = ByteString(certificate.authorities().as_bytes().to_vec());
        let stale: Vec<_> = present
            .webhooks
            .iter()
            .flatten()
            .filter(|webhook| webhook.client_config.ca_bundle.as_ref() != Some(&bundle))
            .map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": bundle}}))
            .collect();
        if stale.is_empty() {
            return Ok(());
        }
        // Strategic: webhooks are merged by name, and everything else in them stays.
        let patch = Patch::Strategic(json!({"webhooks": stale}));
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        within("patch", object(), self.configurations.patch(name, &params, &patch)).await?;
        tracing::info!(configuration = name, "the API server trusts the webhook's authority");
        Ok(())
    }

    fn secret(&self, certificate: &Certificate) -> Secret {
        Secret {
            metadata: ObjectMeta { name: Some(self.place.secret.clone()), ..ObjectMeta::default() },
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(certificate.to_data()),
            ..Secret::default()
        }
    }

    async fn on_secret<T>(
        &self,
        verb: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, KeeperError> {
        within(verb, format!("the Secret {}", self.place.secret), request).await
    }
}

/// Whether another replica has created the object, changed it, or deleted it in between.
fn lost_race(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409))
}

async fn within<T>(
    verb: &'static str,
    object: String,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, KeeperError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(KeeperError::Kube { verb, object, error: Box::new(error) }),
        Err(_) => Err(KeeperError::Timeout { verb, object }),
    }
}

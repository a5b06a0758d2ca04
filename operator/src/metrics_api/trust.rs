//! The API server's trust in this API: the certificate that is served, and its authority in the `APIService`s. These are made
//! by whoever installs the operator; one that leads to somebody else's Service is left alone.

use std::sync::Arc;
use std::time::Duration;

use axum_server::tls_rustls::RustlsConfig;
use k8s_openapi::ByteString;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::sync::{oneshot, watch};

use super::documents::Version;
use super::front_proxy::FrontProxy;
use super::question::GROUP;
use crate::certificate::Certificate;
use crate::cluster::ask::{AskError, Kube, if_there};

/// How often the `APIService`s are looked at.
const INTERVAL: Duration = Duration::from_secs(30);
/// And how soon again when one is not there: installers make them last.
const AGAIN: Duration = Duration::from_secs(2);
/// Whose field the `caBundle` is.
const MANAGER: &str = "wspool-operator";

/// Keeps both.
pub struct Trust {
    kube: Kube,
    services: Api<APIService>,
    /// The namespace and the name of the operator's Service.
    service: (String, String),
    certificate: watch::Receiver<Certificate>,
    front_proxy: watch::Receiver<Option<Arc<FrontProxy>>>,
    tls: RustlsConfig,
}

impl Trust {
    /// Serves this certificate, for the operator's Service in its namespace.
    pub fn new(
        kube: &Kube,
        service: (String, String),
        certificate: watch::Receiver<Certificate>,
        front_proxy: watch::Receiver<Option<Arc<FrontProxy>>>,
        tls: RustlsConfig,
    ) -> Self {
        Self { kube: kube.clone(), services: Api::all(kube.client()), service, certificate, front_proxy, tls }
    }

    /// Keeps them until it is dropped. `begun` is told when clients are asked for certificates: one that connected before
    /// would stay without.
    pub async fn keep(mut self, begun: oneshot::Sender<()>) {
        if self.front_proxy.wait_for(Option::is_some).await.is_err() {
            return;
        }
        self.serve();
        // Whoever waited for it may have ended.
        let _ = begun.send(());
        loop {
            let certificate = self.certificate.borrow_and_update().clone();
            self.front_proxy.mark_unchanged();
            // First: the API server must trust what is served next.
            let all = self.publish(&certificate).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "the APIServices cannot be looked after");
                false
            });
            self.serve();
            tokio::select! {
                Ok(()) = self.certificate.changed() => {}
                Ok(()) = self.front_proxy.changed() => {}
                () = tokio::time::sleep(if all { INTERVAL } else { AGAIN }) => {}
            }
        }
    }

    fn serve(&self) {
        let verifier = self.front_proxy.borrow().as_ref().map(|front_proxy| front_proxy.verifier());
        match self.certificate.borrow().server_config_for(verifier) {
            Ok(config) => self.tls.reload_from_config(Arc::new(config)),
            Err(error) => tracing::warn!(%error, "the metrics API keeps its old certificate"),
        }
    }

    /// Has the authorities in the `APIService`s; says whether all were there.
    async fn publish(&self, certificate: &Certificate) -> Result<bool, AskError> {
        let bundle = ByteString(certificate.authorities().as_bytes().to_vec());
        let mut all = true;
        for version in Version::ALL {
            let name = format!("{}.{GROUP}", version.name());
            let object = || format!("the APIService {name}");
            let Some(found) = if_there(self.kube.ask("get", object(), self.services.get(&name)).await)? else {
                all = false;
                continue;
            };
            let spec = found.spec.unwrap_or_default();
            let leads_to = spec.service.map(|to| (to.namespace.unwrap_or_default(), to.name.unwrap_or_default()));
            if leads_to.as_ref() != Some(&self.service) {
                tracing::warn!(
                    name,
                    ?leads_to,
                    "an APIService of custom metrics is somebody else's, and is left alone"
                );
                continue;
            }
            if spec.ca_bundle.as_ref() == Some(&bundle) {
                continue;
            }
            let patch = Patch::Merge(json!({"spec": {"caBundle": bundle}}));
            let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
            self.kube.ask("patch", object(), self.services.patch(&name, &params, &patch)).await?;
            tracing::info!(name, "the API server trusts the metrics API's authority");
        }
        Ok(all)
    }
}

//! The mutating webhook: a pod that the API server is about to create is injected, left alone, or refused with a reason.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use axum_server::tls_rustls::RustlsConfig;
use json_patch::{Patch, PatchOperation};
use k8s_openapi::api::core::v1::PodSpec;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use serde_json::Value;
use tokio::sync::watch;

use crate::inject::{PoolFacts, Refusal, Sidecar, Verdict, inject};

/// Where the API server sends its questions.
pub const PATH: &str = "/mutate";
/// The largest question taken: the API server takes objects up to 3 MiB.
const LARGEST_REVIEW: usize = 8 * 1024 * 1024;
/// How long questions under way may take when the process ends: the API server waits no longer.
const GRACE: Duration = Duration::from_secs(5);

/// Answers what is known of the pool with a namespace and a name.
pub type Pools = Arc<dyn Fn(&str, &str) -> Option<PoolFacts> + Send + Sync>;

/// What the webhook decides with.
#[derive(Clone)]
pub struct Webhook {
    /// What injected pods get.
    pub sidecar: Sidecar,
    /// The pools that are known now.
    pub pools: Pools,
}

/// Why a pod is not let in.
#[derive(Debug, thiserror::Error)]
enum Denial {
    /// It cannot be injected.
    #[error("wspool: {0}")]
    Refused(#[from] Refusal),
    /// It is not a pod.
    #[error("wspool cannot read the pod: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// There is none.
    #[error("wspool cannot read the pod: the request has no object")]
    NoObject,
}

/// The webhook's routes.
pub fn routes(webhook: Webhook) -> Router {
    Router::new().route(PATH, post(mutate)).layer(DefaultBodyLimit::max(LARGEST_REVIEW)).with_state(Arc::new(webhook))
}

/// Serves over TLS until told to stop; then lets questions under way end.
pub async fn serve(
    listener: TcpListener,
    routes: Router,
    tls: RustlsConfig,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let handle = axum_server::Handle::new();
    let server = axum_server::from_tcp_rustls(listener, tls)?.http1_only().handle(handle.clone());
    let mut serving = std::pin::pin!(server.serve(routes.into_make_service()));
    tokio::select! {
        ended = &mut serving => return ended,
        // Nobody left who could tell is the same as being told.
        _ = stop.wait_for(|stop| *stop) => {}
    }
    handle.graceful_shutdown(Some(GRACE));
    serving.await
}

async fn mutate(
    State(webhook): State<Arc<Webhook>>,
    body: Bytes,
) -> Result<Json<AdmissionReview<DynamicObject>>, (StatusCode, String)> {
    let review = serde_json::from_slice(&body);
    let review = review.map_err(|error| (StatusCode::BAD_REQUEST, format!("not an AdmissionReview: {error}\n")))?;
    Ok(Json(webhook.answer(review)))
}

impl Webhook {
    /// Answers an `AdmissionReview`, whatever it is.
    fn answer(&self, review: Value) -> AdmissionReview<DynamicObject> {
        let uid = review.pointer("/request/uid").and_then(Value::as_str).unwrap_or_default().to_owned();
        let request: Result<AdmissionRequest<DynamicObject>, String> =
            serde_json::from_value::<AdmissionReview<DynamicObject>>(review)
                .map_err(|error| error.to_string())
                .and_then(|review| review.try_into().map_err(|_| "it has no request".to_owned()));
        let response = match request {
            Ok(request) => self.respond(&request),
            Err(error) => {
                let mut response =
                    AdmissionResponse::invalid(format!("wspool cannot read the AdmissionReview: {error}"));
                // The API server takes no other answer as one to its question.
                response.uid = uid;
                response
            }
        };
        response.into_review()
    }

    fn respond(&self, request: &AdmissionRequest<DynamicObject>) -> AdmissionResponse {
        let response = AdmissionResponse::from(request);
        let new_pod = request.operation == Operation::Create
            && request.resource.resource == "pods"
            && request.sub_resource.as_deref().is_none_or(str::is_empty);
        if !new_pod {
            return response;
        }
        let namespace = request.namespace.as_deref().unwrap_or_default();
        match self.decide(request, namespace) {
            Ok(Verdict::NotAsked | Verdict::AlreadyInjected) => response,
            Ok(Verdict::Inject(injection)) => {
                tracing::info!(namespace, pool = injection.pool, port = injection.port, "a pod gets the sidecar");
                let patch = Patch(injection.edits.into_iter().map(PatchOperation::Add).collect());
                response.clone().with_patch(patch).unwrap_or_else(|error| response.deny(error))
            }
            Err(denial) => {
                tracing::warn!(namespace, %denial, "a pod is refused");
                response.deny(denial)
            }
        }
    }

    fn decide(&self, request: &AdmissionRequest<DynamicObject>, namespace: &str) -> Result<Verdict, Denial> {
        let pod = request.object.as_ref().ok_or(Denial::NoObject)?;
        let spec: PodSpec = serde_json::from_value(pod.data.get("spec").cloned().unwrap_or_default())?;
        Ok(inject(&pod.metadata, &spec, &self.sidecar, |pool| (self.pools)(namespace, pool))?)
    }
}

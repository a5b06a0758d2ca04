//! The pools' connections as Kubernetes' custom metrics: an aggregated API, `custom.metrics.k8s.io`.
//!
//! ```text
//!  autoscaler ──► kube-apiserver ──TLS, as the front proxy, X-Remote-User──► here
//!                      ▲                                                      ├─ FrontProxy: who asks (401)
//!                      └──────────── SubjectAccessReview ─────────────────────┤─ Reviews: whether he may (403)
//!                                                                             └─ a pool's Figure (404, 503)
//! ```
//!
//! | module | noun |
//! |---|---|
//! | [`question`] | what is asked, by its path |
//! | [`front_proxy`] | who asks |
//! | [`reviews`] | who may |
//! | [`documents`] | what is answered |
//! | [`selector`] | the selector of a question about several pools |
//! | [`trust`] | the `APIService`s, and the certificate that is served |

pub mod documents;
pub mod front_proxy;
pub mod question;
pub mod reviews;
pub mod selector;
pub mod trust;

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use axum_server::tls::TlsInfo;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use kube::core::SelectorExt as _;
use rustls::pki_types::UnixTime;
use serde_json::Value;
use tokio::sync::watch;

use crate::cluster::autoscaler::METRIC;
use crate::cluster::figure;
use crate::cluster::index::PoolKey;
use crate::cluster::watches::SharedIndex;
use crate::pool::WebSocketPool;
use documents::{DISCOVERY, Item, Version, failure};
use front_proxy::{FrontProxy, User};
use question::{Question, RESOURCE};
use reviews::Reviews;

/// What answers are made of.
pub struct MetricsApi {
    /// The pools.
    pub index: SharedIndex,
    /// How requests show who has made them; `None` until it is known.
    pub front_proxy: watch::Receiver<Option<Arc<FrontProxy>>>,
    /// Who may ask.
    pub reviews: Reviews,
}

/// The API's routes: one for all, so that what is allowed and what is answered are read from a path in one way.
pub fn routes(api: MetricsApi) -> Router {
    Router::new().fallback(answer).with_state(Arc::new(api))
}

async fn answer(
    State(api): State<Arc<MetricsApi>>,
    Extension(tls): Extension<Arc<TlsInfo>>,
    request: Parts,
) -> Response {
    match api.answer(&tls, &request).await {
        Ok(document) if document["kind"] == "APIGroupDiscoveryList" => json(StatusCode::OK, DISCOVERY, &document),
        Ok(document) => json(StatusCode::OK, "application/json", &document),
        Err((code, message)) => json(code, "application/json", &failure(code, &message)),
    }
}

fn json(code: StatusCode, kind: &'static str, document: &Value) -> Response {
    let body = Bytes::from(document.to_string());
    let mut response = (code, [(header::CONTENT_TYPE, kind)], body).into_response();
    if code == StatusCode::UNAUTHORIZED {
        // A certificate is shown once for a connection: with a new authority, or a new name, only a new one can do better.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whether the newer form of discovery is understood.
fn accepts_discovery(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|kind| {
        let has = |word: &str| kind.split(';').any(|part| part.trim() == word);
        has("g=apidiscovery.k8s.io") && has("v=v2") && has("as=APIGroupDiscoveryList")
    })
}

/// An answer that is none: its code, and a sentence.
type Failure = (StatusCode, String);

impl MetricsApi {
    async fn answer(&self, tls: &TlsInfo, request: &Parts) -> Result<Value, Failure> {
        let user = self.authenticate(tls, request)?;
        let path = request.uri.path();
        // That there is nothing is no secret: the API server asks for descriptions (/openapi) as somebody without rights.
        let unknown = || (StatusCode::NOT_FOUND, format!("there is nothing at {path}"));
        let question = Question::read(path).ok_or_else(unknown)?;
        let attributes = question::attributes(&request.method, path, &question);
        match self.reviews.allows(&user, attributes).await {
            Ok(true) => {}
            Ok(false) => {
                let message = format!("User {:?} may not {} {path}", user.name, request.method);
                return Err((StatusCode::FORBIDDEN, message));
            }
            Err(error) => {
                tracing::warn!(%error, "nobody can say who may read metrics");
                return Err((StatusCode::SERVICE_UNAVAILABLE, error.to_string()));
            }
        }
        if request.method != Method::GET {
            let message = format!("{} is not allowed: metrics are only read", request.method);
            return Err((StatusCode::METHOD_NOT_ALLOWED, message));
        }
        match question {
            Question::Groups if accepts_discovery(&request.headers) => Ok(documents::discovery()),
            Question::Groups => Ok(documents::groups()),
            Question::Group => Ok(documents::group()),
            Question::Resources(version) => Ok(documents::resources(version)),
            Question::Metric { version, namespace, resource, name, metric } => {
                if resource != RESOURCE || metric != METRIC {
                    let message =
                        format!("wspool serves the metric {METRIC} of {RESOURCE}, not {metric} of {resource}");
                    return Err((StatusCode::NOT_FOUND, message));
                }
                let query = request.uri.query().unwrap_or_default();
                self.metric(version, &PoolKey { namespace, name }, query, Timestamp::now())
            }
        }
    }

    fn authenticate(&self, tls: &TlsInfo, request: &Parts) -> Result<User, Failure> {
        let front_proxy = self.front_proxy.borrow().clone();
        let refused = |message: String| (StatusCode::UNAUTHORIZED, message);
        let front_proxy =
            front_proxy.ok_or_else(|| refused("the API server's client authority is not known".into()))?;
        let user = front_proxy.authenticate(&tls.peer_certificates, &request.headers, UnixTime::now());
        user.map_err(|error| refused(error.to_string()))
    }

    fn metric(&self, version: Version, key: &PoolKey, query: &str, now: Timestamp) -> Result<Value, Failure> {
        let options = question::Options::read(query).map_err(|error| (StatusCode::BAD_REQUEST, error))?;
        let pools = if key.name == "*" {
            let selects = |pool: &Arc<WebSocketPool>| options.pools.matches(pool.labels());
            let pools = self.index.lock().resources(&key.namespace);
            pools.into_iter().filter(selects).collect::<Vec<_>>()
        } else {
            self.index.lock().resource(key).into_iter().collect()
        };
        if pools.is_empty() {
            let what =
                if key.name == "*" { "such WebSocketPool".to_owned() } else { format!("WebSocketPool {}", key.name) };
            let message = format!("wspool knows no {what} in the namespace {}", key.namespace);
            return Err((StatusCode::NOT_FOUND, message));
        }
        let items = pools.iter().map(|pool| {
            let figure = figure::of(pool, now);
            // Without one of them a sum would be too small.
            let missing = |error| {
                let message = format!("no figure for the WebSocketPool {}: {error}", pool.name_any());
                (StatusCode::SERVICE_UNAVAILABLE, message)
            };
            Ok(Item { name: pool.name_any(), figure: figure.map_err(missing)? })
        });
        let items = items.collect::<Result<Vec<_>, Failure>>()?;
        Ok(documents::values(version, &key.namespace, &items))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_whose_client_is_not_known_ends_and_no_other_does() {
        let connection = |code| {
            let response = json(code, "application/json", &failure(code, "why"));
            response.headers().get(header::CONNECTION).cloned()
        };
        assert_eq!(connection(StatusCode::UNAUTHORIZED), Some(HeaderValue::from_static("close")));
        assert_eq!(
            [StatusCode::OK, StatusCode::FORBIDDEN, StatusCode::SERVICE_UNAVAILABLE].map(connection),
            [None, None, None]
        );
    }
}

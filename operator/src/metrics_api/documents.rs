//! The documents of the API, as its readers know them: discovery, values, failures.

use axum::http::StatusCode;
use kube::Resource as _;
use serde_json::{Value, json};

use super::question::{GROUP, RESOURCE};
use crate::cluster::autoscaler::METRIC;
use crate::cluster::figure::Figure;
use crate::pool::WebSocketPool;

/// A version of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The first.
    V1Beta1,
    /// The second, which today's autoscalers prefer.
    V1Beta2,
}

impl Version {
    /// All of them, the preferred one first.
    pub const ALL: [Self; 2] = [Self::V1Beta2, Self::V1Beta1];

    /// By its name.
    pub fn read(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.name() == name)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1Beta1 => "v1beta1",
            Self::V1Beta2 => "v1beta2",
        }
    }

    fn group_version(self) -> String {
        format!("{GROUP}/{}", self.name())
    }
}

/// A pool, and its figure.
#[derive(Clone, Debug)]
pub struct Item {
    /// The pool's name.
    pub name: String,
    /// How many connections.
    pub figure: Figure,
}

/// `APIGroupList`.
pub fn groups() -> Value {
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [group_body()]})
}

/// The content type of [`discovery`].
pub const DISCOVERY: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// `APIGroupDiscoveryList`: everything that is served, in one document. An API server in front asks for it as an
/// administrator; for the older documents it asks as somebody without any rights, who is refused.
pub fn discovery() -> Value {
    let version = |version: Version| {
        let resource = json!({
            "resource": format!("{RESOURCE}/{METRIC}"),
            "responseKind": {"group": "", "version": "", "kind": "MetricValueList"},
            "scope": "Namespaced",
            "singularResource": "",
            "verbs": ["get"],
        });
        json!({"version": version.name(), "resources": [resource], "freshness": "Current"})
    };
    let group = json!({"metadata": {"name": GROUP}, "versions": Version::ALL.map(version)});
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": [group]})
}

/// `APIGroup`.
pub fn group() -> Value {
    let mut group = group_body();
    group["kind"] = "APIGroup".into();
    group["apiVersion"] = "v1".into();
    group
}

fn group_body() -> Value {
    let versions =
        Version::ALL.map(|version| json!({"groupVersion": version.group_version(), "version": version.name()}));
    json!({"name": GROUP, "versions": versions, "preferredVersion": versions[0]})
}

/// `APIResourceList`.
pub fn resources(version: Version) -> Value {
    let resource = json!({
        "name": format!("{RESOURCE}/{METRIC}"),
        "singularName": "",
        "namespaced": true,
        "kind": "MetricValueList",
        "verbs": ["get"],
    });
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": version.group_version(),
        "resources": [resource],
    })
}

/// `MetricValueList`.
pub fn values(version: Version, namespace: &str, items: &[Item]) -> Value {
    let item = |Item { name, figure }: &Item| {
        let pool = json!({
            "kind": WebSocketPool::kind(&()),
            "namespace": namespace,
            "name": name,
            "apiVersion": WebSocketPool::api_version(&()),
        });
        // Whole seconds, as every reader knows them.
        let at = k8s_openapi::jiff::Timestamp::from_second(figure.at.as_second()).unwrap_or(figure.at);
        let mut value = json!({
            "describedObject": pool,
            "timestamp": at.to_string(),
            "value": figure.connections.to_string(),
        });
        match version {
            Version::V1Beta1 => value["metricName"] = METRIC.into(),
            Version::V1Beta2 => value["metric"] = json!({"name": METRIC, "selector": null}),
        }
        value
    };
    json!({
        "kind": "MetricValueList",
        "apiVersion": version.group_version(),
        "metadata": {},
        "items": items.iter().map(item).collect::<Vec<_>>(),
    })
}

/// `Status` of a request that failed.
pub fn failure(code: StatusCode, message: &str) -> Value {
    let reason = match code {
        StatusCode::BAD_REQUEST => "BadRequest",
        StatusCode::UNAUTHORIZED => "Unauthorized",
        StatusCode::FORBIDDEN => "Forbidden",
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::METHOD_NOT_ALLOWED => "MethodNotAllowed",
        _ => "ServiceUnavailable",
    };
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code.as_u16(),
    })
}

//! The workload whose pods form a pool, as far as its scale subresource goes: a Deployment, a StatefulSet, or any other kind
//! that has one.

use k8s_openapi::api::autoscaling::v1::Scale;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PostParams};
use kube::{Api, discovery};

use super::ask::{AskError, Kube};
use crate::pool;

/// A workload of a kind that was found.
#[derive(Clone)]
pub struct Target {
    kube: Kube,
    api: Api<DynamicObject>,
    of: pool::Target,
}

/// How many pods a workload should have, and has.
#[derive(Clone, Debug, PartialEq)]
pub struct Scaled {
    /// How many it should have.
    pub desired: u32,
    /// How many there are, old and new.
    pub replicas: i32,
    scale: Scale,
}

/// Why a workload cannot be scaled, or asked.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// No such kind.
    #[error("the API server knows no kind {} in {}: correct spec.target", .0.kind, .0.api_version)]
    Kind(pool::Target),
    /// No such object.
    #[error("there is no {} {} in the pool's namespace: create it, or correct spec.target.name", .0.kind, .0.name)]
    Missing(pool::Target),
    /// The API server refused, or did not answer.
    #[error(transparent)]
    Ask(#[from] AskError),
}

impl Target {
    /// Finds out how the API server calls this kind.
    pub async fn find(kube: &Kube, namespace: &str, of: &pool::Target) -> Result<Self, TargetError> {
        let (group, version) = of.api_version.split_once('/').unwrap_or(("", &of.api_version));
        let kind = GroupVersionKind::gvk(group, version, &of.kind);
        let client = kube.client();
        let asked = kube.ask("discover", format!("{} {}", of.api_version, of.kind), async {
            match discovery::pinned_kind(&client, &kind).await {
                Ok((resource, _)) => Ok(Some(resource)),
                Err(kube::Error::Discovery(_)) => Ok(None),
                Err(error) => Err(error),
            }
        });
        let resource: Option<ApiResource> = match asked.await {
            Err(error) if error.is_missing() => None,
            answer => answer?,
        };
        let resource = resource.ok_or_else(|| TargetError::Kind(of.clone()))?;
        let api = Api::namespaced_with(client, namespace, &resource);
        Ok(Self { kube: kube.clone(), api, of: of.clone() })
    }

    /// What it is.
    pub fn of(&self) -> &pool::Target {
        &self.of
    }

    /// Reads its scale. It is a read of what is stored, not of a cache: watches of pods and of workloads come in any order.
    pub async fn scale(&self) -> Result<Scaled, TargetError> {
        let asked = self.kube.ask("get", self.object(), self.api.get_scale(&self.of.name)).await;
        asked.map(Scaled::from).map_err(|error| self.missing(error))
    }

    /// Scales it, unless somebody has written it since it was read.
    pub async fn set(&self, from: &Scaled, replicas: u32) -> Result<Scaled, TargetError> {
        let mut scale = from.scale.clone();
        scale.spec.get_or_insert_default().replicas = i32::try_from(replicas).ok();
        let params = PostParams::default();
        let asked =
            self.kube.ask("update", self.object(), self.api.replace_scale(&self.of.name, &params, &scale)).await;
        asked.map(Scaled::from).map_err(|error| self.missing(error))
    }

    fn missing(&self, error: AskError) -> TargetError {
        if error.is_missing() { TargetError::Missing(self.of.clone()) } else { TargetError::Ask(error) }
    }

    fn object(&self) -> String {
        format!("the scale of {} {}", self.of.kind, self.of.name)
    }
}

impl From<Scale> for Scaled {
    fn from(scale: Scale) -> Self {
        let desired = scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default();
        Self {
            desired: u32::try_from(desired).unwrap_or_default(),
            replicas: scale.status.as_ref().map_or(0, |status| status.replicas),
            scale,
        }
    }
}

//! Keeps a pool's HorizontalPodAutoscaler, as [`autoscaler`](super::super::autoscaler) decides.

use std::time::{Duration, Instant};

use k8s_openapi::api::autoscaling::v1::{Scale, ScaleSpec};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};

use super::super::ask::{AskError, Kube, if_there};
use super::super::autoscaler::{self, Plan};
use super::super::objects::{MANAGER, Owner};
use super::super::trouble::Trouble;
use crate::pool::{Autoscaling, WebSocketPool};

/// How often the namespace's autoscalers are looked at.
const INTERVAL: Duration = Duration::from_secs(10);

/// What a plan depends on, beside the autoscalers: a change of it is not waited for.
type Cause = (Option<Autoscaling>, Option<u32>, bool);

/// The autoscaler of one pool.
pub(super) struct ScalerKeeper {
    kube: Kube,
    scalers: Api<HorizontalPodAutoscaler>,
    pools: Api<WebSocketPool>,
    look_again: Instant,
    cause: Option<Cause>,
    plan: Option<Plan>,
}

impl ScalerKeeper {
    /// A keeper that has looked at nothing yet.
    pub(super) fn new(kube: &Kube, namespace: &str) -> Self {
        Self {
            kube: kube.clone(),
            scalers: Api::namespaced(kube.client(), namespace),
            pools: Api::namespaced(kube.client(), namespace),
            look_again: Instant::now(),
            cause: None,
            plan: None,
        }
    }

    /// Whether somebody scales the pool, as far as is known.
    pub(super) fn is_scaled(&self) -> bool {
        self.plan.as_ref().is_some_and(|plan| plan.is_scaled)
    }

    /// What is in the way of an autoscaler.
    pub(super) fn trouble(&self) -> Option<&Trouble> {
        self.plan.as_ref()?.trouble.as_ref()
    }

    /// Has the autoscaler that should be there, if any. `replicas` are the target's, if they are known.
    pub(super) async fn keep(
        &mut self,
        owner: &Owner,
        pool: &WebSocketPool,
        replicas: Option<u32>,
    ) -> Result<(), AskError> {
        let now = Instant::now();
        let cause = Some((pool.spec.autoscaling, pool.spec.replicas, replicas.is_some()));
        if now < self.look_again && self.cause == cause {
            return Ok(());
        }
        let all = ListParams::default();
        let there = self.kube.ask("list", "the HorizontalPodAutoscalers", self.scalers.list(&all)).await?.items;
        let plan = autoscaler::plan(owner, &pool.spec, replicas, &there);
        // Before the autoscaler: it can do nothing with a pool that has no number.
        if let Some(seed) = plan.seed {
            self.seed(pool, seed).await?;
        }
        let name = &owner.key.name;
        let object = || format!("the HorizontalPodAutoscaler {name}");
        if let Some(wanted) = &plan.wanted {
            // Also when it is there: what somebody has changed in it is set right.
            let params = PatchParams::apply(MANAGER).force();
            self.kube.ask("apply", object(), self.scalers.patch(name, &params, &Patch::Apply(wanted))).await?;
        } else if plan.remove {
            let params = DeleteParams::default();
            if_there(self.kube.ask("delete", object(), self.scalers.delete(name, &params)).await)?;
        }
        self.plan = Some(plan);
        self.cause = cause;
        self.look_again = now + INTERVAL;
        Ok(())
    }

    /// Writes the pool's replicas, unless somebody has written the pool since it was read.
    async fn seed(&self, pool: &WebSocketPool, replicas: u32) -> Result<(), AskError> {
        let name = pool.name_any();
        let scale = Scale {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: pool.namespace(),
                resource_version: pool.resource_version(),
                ..ObjectMeta::default()
            },
            spec: Some(ScaleSpec { replicas: i32::try_from(replicas).ok() }),
            status: None,
        };
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let request = self.pools.replace_scale(&name, &params, &scale);
        match self.kube.ask("update", format!("the scale of WebSocketPool {name}"), request).await {
            Ok(_) => tracing::info!(pool = name, replicas, "the pool has its target's replicas from now on"),
            // It is seen soon, and decided anew.
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

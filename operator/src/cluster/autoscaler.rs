//! The autoscaler of a pool: which HorizontalPodAutoscaler there should be, and whether others are in its way, as functions
//! of what is there.
//!
//! Two autoscalers over the same pods stop each other: Kubernetes calls it `AmbiguousSelector`, and scales by neither.

use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, MetricIdentifier, MetricSpec,
    MetricTarget, ObjectMetricSource,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{Resource as _, ResourceExt as _};

use super::objects::Owner;
use super::trouble::Trouble;
use crate::pool::{Autoscaling, PoolSpec, Target, WebSocketPool};

/// The metric of a pool.
pub const METRIC: &str = "connections";

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The autoscaler that should be there.
    pub wanted: Option<Box<HorizontalPodAutoscaler>>,
    /// Whether one of ours is there that should not be.
    pub remove: bool,
    /// The replicas that the pool has had so far, to be written into it: whoever scales it must find a number.
    pub seed: Option<u32>,
    /// Whether anybody scales the pool by its own scale.
    pub is_scaled: bool,
    /// What is in the way.
    pub trouble: Option<Trouble>,
}

/// Decides. `there` are all autoscalers of the namespace; `replicas` are the target's, if they are known.
pub fn plan(owner: &Owner, spec: &PoolSpec, replicas: Option<u32>, there: &[HorizontalPodAutoscaler]) -> Plan {
    let name = owner.key.name.as_str();
    let (ours, foreign): (Vec<_>, Vec<_>) =
        there.iter().partition(|scaler| scaler.name_any() == name && owner.has(*scaler));
    let of_pool: Vec<_> = foreign
        .iter()
        .filter(|scaler| is_of(scaler, &WebSocketPool::group(&()), &WebSocketPool::kind(&()), name))
        .map(|s| s.name_any())
        .collect();
    let of_target = |target: &Target| {
        let group = target.api_version.split_once('/').map_or("", |(group, _)| group);
        let others = foreign.iter().filter(|scaler| is_of(scaler, group, &target.kind, &target.name));
        others.map(|scaler| scaler.name_any()).collect::<Vec<_>>()
    };
    let of_target = spec.target.as_ref().map(of_target).unwrap_or_default();
    let namesake = foreign.iter().any(|scaler| scaler.name_any() == name);

    let trouble = match (&spec.autoscaling, of_pool.as_slice(), of_target.as_slice()) {
        (Some(_), [], []) if namesake => Some(format!(
            "the HorizontalPodAutoscaler {name} is somebody else's, and the pool's would have its name: rename or delete it"
        )),
        (Some(_), [], []) | (None, [] | [_], []) => None,
        (Some(_), of_pool, of_target) => {
            let others = [of_pool, of_target].concat();
            Some(format!(
                "HorizontalPodAutoscaler {} and spec.autoscaling would scale the same pods, and Kubernetes would then scale by \
                 neither: the pool's is not made; delete the other one, or leave spec.autoscaling out",
                others.join(" and ")
            ))
        }
        (None, [], [one]) if spec.replicas.is_some() => Some(format!(
            "HorizontalPodAutoscaler {one} scales the target, and so does spec.replicas of the pool: let it scale the \
             WebSocketPool {name} instead, or take spec.replicas away"
        )),
        (None, [], _) => None,
        (None, of_pool, of_target) => {
            let others = [of_pool, of_target].concat();
            Some(format!(
                "the HorizontalPodAutoscalers {} scale the same pods, and Kubernetes scales by neither: keep one, of the \
                 WebSocketPool {name}",
                others.join(" and ")
            ))
        }
    };
    let wanted = spec.autoscaling.filter(|_| trouble.is_none());
    let is_scaled = wanted.is_some() || !of_pool.is_empty();
    let fewest = wanted.map_or(0, |wanted| wanted.min_replicas);
    Plan {
        seed: replicas.filter(|_| is_scaled && spec.replicas.is_none()).map(|replicas| replicas.max(fewest)),
        remove: wanted.is_none() && !ours.is_empty(),
        wanted: wanted.map(|wanted| Box::new(scaler(owner, wanted))),
        is_scaled,
        trouble: trouble.map(|sentence| ("AutoscalerConflict", sentence)),
    }
}

/// Whether an autoscaler scales this object, of any version.
fn is_of(scaler: &HorizontalPodAutoscaler, group: &str, kind: &str, name: &str) -> bool {
    let of = &scaler.spec.scale_target_ref;
    let version = of.api_version.as_deref().unwrap_or_default();
    let of_group = version.split_once('/').map_or("", |(group, _)| group);
    (of_group, of.kind.as_str(), of.name.as_str()) == (group, kind, name)
}

/// The pool's own: it scales the pool, which drains pods before it scales the target.
fn scaler(owner: &Owner, wanted: Autoscaling) -> HorizontalPodAutoscaler {
    let pool = CrossVersionObjectReference {
        api_version: Some(WebSocketPool::api_version(&()).into_owned()),
        kind: WebSocketPool::kind(&()).into_owned(),
        name: owner.key.name.clone(),
    };
    let metric = ObjectMetricSource {
        described_object: pool.clone(),
        metric: MetricIdentifier { name: METRIC.to_owned(), selector: None },
        target: MetricTarget {
            type_: "AverageValue".to_owned(),
            average_value: Some(Quantity(wanted.connections_per_pod.to_string())),
            ..MetricTarget::default()
        },
    };
    let count = |replicas: u32| i32::try_from(replicas).unwrap_or(i32::MAX);
    HorizontalPodAutoscaler {
        metadata: owner.metadata(owner.key.name.clone()),
        spec: HorizontalPodAutoscalerSpec {
            scale_target_ref: pool,
            min_replicas: Some(count(wanted.min_replicas)),
            max_replicas: count(wanted.max_replicas),
            metrics: Some(vec![MetricSpec {
                type_: "Object".to_owned(),
                object: Some(metric),
                ..MetricSpec::default()
            }]),
            behavior: None,
        },
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use serde_json::json;

    use super::super::index::PoolKey;
    use super::*;

    fn owner() -> Owner {
        let key = PoolKey { namespace: "chats".into(), name: "chat".into() };
        Owner { key, uid: "1".into(), port: None }
    }

    fn spec(autoscaled: bool, replicas: Option<u32>) -> PoolSpec {
        let target = Target { api_version: "apps/v1".into(), kind: "Deployment".into(), name: "web".into() };
        let autoscaling = Autoscaling { min_replicas: 2, max_replicas: 20, connections_per_pod: 1000 };
        PoolSpec {
            target: Some(target),
            autoscaling: autoscaled.then_some(autoscaling),
            replicas,
            ..PoolSpec::default()
        }
    }

    /// Somebody's autoscaler.
    fn other(name: &str, version: &str, kind: &str, of: &str) -> HorizontalPodAutoscaler {
        let scaler = json!({
            "metadata": {"name": name},
            "spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": version, "kind": kind, "name": of}},
        });
        serde_json::from_value(scaler).unwrap()
    }

    #[test]
    fn the_pools_autoscaler_scales_the_pool_by_its_own_connections() {
        let plan = plan(&owner(), &spec(true, Some(3)), Some(3), &[]);
        let scaler = serde_json::to_value(plan.wanted.unwrap()).unwrap();
        let pool = json!({"apiVersion": "wspool.dev/v1alpha1", "kind": "WebSocketPool", "name": "chat"});
        let metric = json!({
            "type": "Object",
            "object": {
                "describedObject": pool,
                "metric": {"name": "connections"},
                "target": {"type": "AverageValue", "averageValue": "1000"},
            },
        });
        let spec = json!({"scaleTargetRef": pool, "minReplicas": 2, "maxReplicas": 20, "metrics": [metric]});
        assert_eq!(scaler["spec"], spec);
        assert_eq!((plan.seed, plan.remove, plan.trouble), (None, false, None));
    }

    #[test]
    fn a_pool_without_replicas_gets_those_of_its_target_when_somebody_scales_it() {
        let seed = |spec: PoolSpec, there: &[HorizontalPodAutoscaler]| plan(&owner(), &spec, Some(5), there).seed;
        assert_eq!(seed(spec(false, None), &[]), None);
        assert_eq!(seed(spec(true, None), &[]), Some(5));
        assert_eq!(seed(spec(true, Some(4)), &[]), None);
        let by_hand = other("mine", "wspool.dev/v1alpha1", "WebSocketPool", "chat");
        assert_eq!(seed(spec(false, None), &[by_hand]), Some(5));
        assert_eq!(plan(&owner(), &spec(true, None), None, &[]).seed, None, "the target is not known");
        assert_eq!(plan(&owner(), &spec(true, None), Some(0), &[]).seed, Some(2), "0 would switch an autoscaler off");
    }

    /// Whether the pool asks for one, its replicas, what is there, and what is said of it.
    type Case<'a> = (bool, Option<u32>, &'a [HorizontalPodAutoscaler], Option<&'a str>);

    #[test]
    fn two_over_the_same_pods_are_told_of_and_none_is_added_to_them() {
        let of_target = other("cpu", "apps/v1", "Deployment", "web");
        let of_pool = other("mine", "wspool.dev/v1", "WebSocketPool", "chat");
        let elsewhere = other("else", "apps/v1", "StatefulSet", "web");
        let mut ours = scaler(&owner(), spec(true, None).autoscaling.unwrap());
        ours.metadata.uid = Some("2".into());
        let cases: [Case<'_>; 8] = [
            (true, None, &[elsewhere.clone(), ours.clone()], None),
            (true, None, from_ref(&of_target), Some("HorizontalPodAutoscaler cpu and spec.autoscaling")),
            (true, None, &[of_pool.clone(), ours.clone()], Some("HorizontalPodAutoscaler mine and spec.autoscaling")),
            (true, None, &[other("chat", "apps/v1", "Deployment", "x")], Some("chat is somebody else's")),
            (false, None, from_ref(&of_target), None),
            (false, Some(3), from_ref(&of_target), Some("cpu scales the target, and so does spec.replicas")),
            (false, Some(3), from_ref(&of_pool), None),
            (
                false,
                Some(3),
                &[of_pool.clone(), of_target.clone()],
                Some("HorizontalPodAutoscalers mine and cpu scale the same"),
            ),
        ];
        for (index, (autoscaled, replicas, there, words)) in cases.into_iter().enumerate() {
            let plan = plan(&owner(), &spec(autoscaled, replicas), Some(3), there);
            let said = plan.trouble.map(|(_, sentence)| sentence);
            match words {
                Some(words) => {
                    assert!(said.as_ref().is_some_and(|said| said.contains(words)), "case {index}: {said:?}");
                }
                None => assert_eq!(said, None, "case {index}"),
            }
            assert_eq!(plan.wanted.is_some(), autoscaled && words.is_none(), "case {index}");
            let has_ours = there.iter().any(|scaler| scaler.metadata.uid.is_some());
            assert_eq!(plan.remove, has_ours && words.is_some(), "case {index}");
        }
    }

    #[test]
    fn it_goes_with_the_field() {
        let ours = scaler(&owner(), spec(true, None).autoscaling.unwrap());
        let plan = plan(&owner(), &spec(false, Some(3)), Some(3), &[ours]);
        assert_eq!((plan.remove, plan.wanted, plan.is_scaled), (true, None, false));
    }
}

//! The routers of a pool: their Deployment, and whether the pool's Service leads to them. As functions of the pool and its
//! pods.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{PodTemplateSpec, Service, TopologySpreadConstraint};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::objects::Owner;
use super::pod::{PodFacts, ROLE_LABEL};
use super::trouble::Trouble;
use crate::driver::Standing;
use crate::inject::{POOL_LABEL, Sidecar, router};
use crate::planner::Role;

/// The value of [`ROLE_LABEL`].
const ROUTER: &str = "router";

/// Where connections enter that come by the pool's Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// At any pod of the pool.
    Anywhere,
    /// At its routers.
    Routers,
}

impl Entrance {
    /// Where they enter by a Service as it was found.
    pub fn of(service: &Service) -> Self {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        match selector.is_some_and(|selector| selector.contains_key(ROLE_LABEL)) {
            true => Self::Routers,
            false => Self::Anywhere,
        }
    }

    /// Where they should enter: at routers once all that are wanted are ready, so that the first is not overrun, and from
    /// then on while there is one. A pool without a ready router is entered as if it had none.
    #[must_use]
    pub fn next(self, wanted: u32, ready: usize) -> Self {
        let enough = match self {
            Self::Anywhere => usize::try_from(wanted).is_ok_and(|wanted| ready >= wanted),
            Self::Routers => ready > 0,
        };
        if wanted > 0 && enough { Self::Routers } else { Self::Anywhere }
    }

    /// What selects the pods of a pool where connections enter.
    pub fn selector(self, pool: &str) -> BTreeMap<String, String> {
        match self {
            Self::Anywhere => BTreeMap::from([(POOL_LABEL.to_owned(), pool.to_owned())]),
            Self::Routers => labels(pool),
        }
    }
}

/// How many routers take connections now.
pub fn ready(pods: &[PodFacts]) -> usize {
    pods.iter().filter(|pod| pod.role == Role::Router && pod.standing == Some(Standing::Present)).count()
}

/// What is wrong with routers that have not come after so long.
pub fn missing(pool: &str, wanted: u32, ready: usize) -> Option<Trouble> {
    (usize::try_from(wanted).unwrap_or(usize::MAX) > ready).then(|| {
        let name = name_of(pool);
        let sentence = format!(
            "{ready} of {wanted} routers are ready: look at the pods of the Deployment {name}; their image is pulled with \
             the secrets of the namespace's default ServiceAccount"
        );
        ("RoutersNotReady", sentence)
    })
}

/// What is said when somebody else has a Deployment of the routers' name.
pub fn taken(name: &str) -> Trouble {
    let sentence = format!(
        "the Deployment {name} is somebody else's, and the pool's routers would have its name: rename or delete it"
    );
    ("RouterTaken", sentence)
}

/// What the Deployment of a pool's routers is called.
pub fn name_of(pool: &str) -> String {
    format!("{pool}-{ROUTER}")
}

/// The Deployment of a pool's routers.
pub fn deployment(owner: &Owner, sidecar: &Sidecar, replicas: u32, drain: Duration) -> Deployment {
    let pool = &owner.key.name;
    let mut pod = router::pod(sidecar, pool, drain);
    pod.topology_spread_constraints = Some(vec![TopologySpreadConstraint {
        max_skew: 1,
        topology_key: "kubernetes.io/hostname".to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(selector(pool)),
        // Those of an earlier template are about to go.
        match_label_keys: Some(vec!["pod-template-hash".to_owned()]),
        ..TopologySpreadConstraint::default()
    }]);
    // One that goes has sent its connections to those that are there: none goes before its successor is.
    let rolling = RollingUpdateDeployment {
        max_surge: Some(IntOrString::String("25%".to_owned())),
        max_unavailable: Some(IntOrString::Int(0)),
    };
    Deployment {
        metadata: metadata(owner),
        spec: Some(DeploymentSpec {
            replicas: Some(i32::try_from(replicas).unwrap_or(i32::MAX)),
            selector: selector(pool),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(rolling),
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels(pool)), ..ObjectMeta::default() }),
                spec: Some(pod),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

/// What keeps a node drain from taking all routers at once.
pub fn budget(owner: &Owner) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: metadata(owner),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(selector(&owner.key.name)),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}

fn metadata(owner: &Owner) -> ObjectMeta {
    let mut metadata = owner.metadata(name_of(&owner.key.name));
    metadata.labels.get_or_insert_default().insert(ROLE_LABEL.to_owned(), ROUTER.to_owned());
    metadata
}

fn selector(pool: &str) -> LabelSelector {
    LabelSelector { match_labels: Some(labels(pool)), ..LabelSelector::default() }
}

fn labels(pool: &str) -> BTreeMap<String, String> {
    let labels = [(POOL_LABEL, pool), (ROLE_LABEL, ROUTER)];
    labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::super::index::PoolKey;
    use super::super::pod::Injected;
    use super::*;

    fn made() -> Deployment {
        let key = PoolKey { namespace: "chats".into(), name: "chat".into() };
        let owner = Owner { key, uid: "1".into(), port: Some(3000) };
        let sidecar = Sidecar { image: "sidecar:1".into(), cpu: "100m".into(), memory: "128Mi".into() };
        deployment(&owner, &sidecar, 2, Duration::from_secs(60))
    }

    #[test]
    fn clients_enter_at_routers_when_all_are_ready_and_as_long_as_one_is() {
        use Entrance::{Anywhere, Routers};
        let cases = [
            (Anywhere, 0, 0, Anywhere),
            (Anywhere, 2, 1, Anywhere),
            (Anywhere, 2, 2, Routers),
            (Routers, 2, 1, Routers),
            (Routers, 2, 0, Anywhere),
            (Routers, 5, 2, Routers),
            (Routers, 0, 2, Anywhere),
        ];
        for (before, wanted, ready, after) in cases {
            assert_eq!(before.next(wanted, ready), after, "{before:?}, {wanted} wanted, {ready} ready");
        }
    }

    #[test]
    fn a_pod_of_the_deployment_is_a_router_of_the_pool_with_a_sidecar_and_time_to_drain() {
        let template = made().spec.unwrap().template;
        let mut metadata = template.metadata.unwrap();
        (metadata.name, metadata.uid) = (Some("chat-router-1".into()), Some("uid".into()));
        let facts = PodFacts::read(&Pod { metadata, spec: template.spec, status: None }).unwrap();
        assert_eq!((facts.role, facts.sidecar, facts.pool.as_str()), (Role::Router, Injected::Yes, "chat"));
        assert_eq!((facts.image.as_str(), facts.grace_seconds), ("sidecar:1", 90));
    }

    #[test]
    fn a_router_drains_by_the_copy_beside_its_token_and_has_no_app() {
        let pod = made().spec.unwrap().template.spec.unwrap();
        let container = json!(pod.containers[0]);
        let hook = json!(["/wspool/bin/wspool-sidecar", "prestop", "--timeout=1m", "--delay=3s"]);
        assert_eq!(container["lifecycle"]["preStop"]["exec"]["command"], hook);
        let names: Vec<_> = container["env"].as_array().unwrap().iter().map(|env| env["name"].clone()).collect();
        assert!(names.contains(&json!("WSPOOL_ROLE")) && !names.contains(&json!("WSPOOL_UPSTREAM")), "{names:?}");
    }

    #[test]
    fn a_service_says_by_its_selector_where_clients_enter() {
        for entrance in [Entrance::Anywhere, Entrance::Routers] {
            let service = json!({"metadata": {}, "spec": {"selector": entrance.selector("chat")}});
            assert_eq!(Entrance::of(&serde_json::from_value(service).unwrap()), entrance);
        }
    }

    #[test]
    fn routers_that_do_not_come_are_named_with_what_to_look_at() {
        assert_eq!(missing("chat", 2, 2), None);
        let (reason, sentence) = missing("chat", 2, 1).unwrap();
        assert_eq!(reason, "RoutersNotReady");
        assert!(sentence.starts_with("1 of 2 routers are ready: look at the pods of the Deployment chat-router"));
    }
}

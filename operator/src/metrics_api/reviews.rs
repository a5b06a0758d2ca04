//! Who may ask: the API server says so, in a `SubjectAccessReview` for each kind of request.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::authorization::v1::{SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;

use super::front_proxy::User;
use super::question::Attributes;
use crate::cluster::ask::{AskError, Kube};

/// How long an answer is good: Kubernetes' own delegation keeps them for ten seconds.
const LIFETIME: Duration = Duration::from_secs(10);
/// Answers that are kept at once. Whoever asks for many things is asked about anew.
const KEPT: usize = 1024;

/// Asks, and remembers for a while.
pub struct Reviews {
    kube: Kube,
    api: Api<SubjectAccessReview>,
    known: Mutex<BTreeMap<String, (bool, Instant)>>,
}

impl Reviews {
    /// Asks this API server.
    pub fn new(kube: &Kube) -> Self {
        Self { kube: kube.clone(), api: Api::all(kube.client()), known: Mutex::default() }
    }

    /// Whether a user may do this.
    pub async fn allows(&self, user: &User, attributes: Attributes) -> Result<bool, AskError> {
        let spec = spec(user, attributes);
        let key = serde_json::to_string(&spec).expect("a spec is JSON");
        if let Some(allowed) = self.known(&key, Instant::now()) {
            return Ok(allowed);
        }
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let params = PostParams::default();
        let request = self.api.create(&params, &review);
        let answer = self.kube.ask("create", "a SubjectAccessReview", request).await?;
        let allowed = answer.status.is_some_and(|status| status.allowed && status.denied != Some(true));
        self.learn(key, allowed, Instant::now());
        Ok(allowed)
    }

    fn known(&self, key: &str, now: Instant) -> Option<bool> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(key).filter(|(_, until)| now < *until).map(|(allowed, _)| *allowed)
    }

    fn learn(&self, key: String, allowed: bool, now: Instant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KEPT {
            known.retain(|_, (_, until)| now < *until);
        }
        if known.len() < KEPT {
            known.insert(key, (allowed, now + LIFETIME));
        }
    }
}

fn spec(user: &User, attributes: Attributes) -> SubjectAccessReviewSpec {
    let (resource_attributes, non_resource_attributes) = match attributes {
        Attributes::Resource(attributes) => (Some(*attributes), None),
        Attributes::Path(attributes) => (None, Some(attributes)),
    };
    SubjectAccessReviewSpec {
        user: Some(user.name.clone()),
        groups: Some(user.groups.clone()),
        uid: user.uid.clone(),
        extra: Some(user.extra.clone()),
        resource_attributes,
        non_resource_attributes,
    }
}

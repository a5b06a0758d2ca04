//! The pools and their pods, as the watches tell of them. Synchronous: it is told, and tells those who follow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::ResourceExt as _;
use tokio::sync::watch;

use super::pod::PodFacts;
use crate::inject;
use crate::pool::{Target, WebSocketPool};

/// Names a pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

impl std::fmt::Display for PoolKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What is known of one pool.
#[derive(Clone, Debug, Default)]
pub struct PoolState {
    /// The resource; `None` while only pods name it.
    pub pool: Option<Arc<WebSocketPool>>,
    /// The pods whose label names it, by UID.
    pub pods: BTreeMap<String, PodFacts>,
    /// How often its placement's ConfigMap has gone.
    pub placements_lost: u64,
    /// The older pool whose target is the same, if there is one.
    pub elder: Option<String>,
}

/// All pools. Whoever follows one sees each of its changes; whoever follows [`Index::pools`] sees them come and go.
#[derive(Debug, Default)]
pub struct Index {
    states: BTreeMap<PoolKey, watch::Sender<PoolState>>,
    /// The pool of each pod.
    pods: BTreeMap<String, PoolKey>,
    /// ConfigMaps that are there.
    placements: BTreeSet<PoolKey>,
    /// The UIDs of the resources that are there.
    pools: watch::Sender<BTreeMap<PoolKey, String>>,
}

/// A pool with a namespace, all of which are watched, or `None` for those of all namespaces.
pub type Scope<'a> = Option<&'a str>;

impl Index {
    /// The resources that are there, with their UIDs.
    pub fn pools(&self) -> watch::Receiver<BTreeMap<PoolKey, String>> {
        self.pools.subscribe()
    }

    /// Follows a pool; it need not be there yet.
    pub fn follow(&mut self, key: &PoolKey) -> watch::Receiver<PoolState> {
        self.state(key).subscribe()
    }

    /// What injection must know of a pool.
    pub fn facts(&self, namespace: &str, name: &str) -> Option<inject::PoolFacts> {
        let key = PoolKey { namespace: namespace.to_owned(), name: name.to_owned() };
        let state = self.states.get(&key)?.borrow();
        state.pool.as_deref().map(inject::PoolFacts::from)
    }

    /// One resource, as it was heard last.
    pub fn resource(&self, key: &PoolKey) -> Option<Arc<WebSocketPool>> {
        self.states.get(key)?.borrow().pool.clone()
    }

    /// The resources of a namespace, as they were heard last.
    pub fn resources(&self, namespace: &str) -> Vec<Arc<WebSocketPool>> {
        let states = self.states.iter().filter(|(key, _)| key.namespace == namespace);
        states.filter_map(|(_, state)| state.borrow().pool.clone()).collect()
    }

    /// A pool was made or changed.
    pub fn apply_pool(&mut self, pool: WebSocketPool) {
        let (Some(key), Some(uid)) = (key_of(&pool), pool.uid()) else { return };
        let claim = |pool: &WebSocketPool| (pool.spec.target.clone(), pool.creation_timestamp());
        let before = self.resource(&key).map(|pool| claim(&pool));
        // Most changes are of a status.
        let claims_anew = before.as_ref() != Some(&claim(&pool));
        let namespace = key.namespace.clone();
        self.state(&key).send_modify(|state| state.pool = Some(Arc::new(pool)));
        self.pools.send_if_modified(|pools| pools.insert(key, uid.clone()).is_none_or(|old| old != uid));
        if claims_anew {
            self.settle_targets(&namespace);
        }
    }

    /// A pool is gone.
    pub fn delete_pool(&mut self, key: &PoolKey) {
        if let Some(state) = self.states.get(key) {
            state.send_modify(|state| state.pool = None);
        }
        self.pools.send_if_modified(|pools| pools.remove(key).is_some());
        self.tidy(key);
        self.settle_targets(&key.namespace);
    }

    /// These are all pools of a scope.
    pub fn retain_pools(&mut self, scope: Scope<'_>, seen: &BTreeSet<PoolKey>) {
        let known: Vec<_> = self.pools.borrow().keys().cloned().collect();
        for key in known.iter().filter(|key| is_in(scope, &key.namespace) && !seen.contains(key)) {
            self.delete_pool(key);
        }
    }

    /// A pod was made or changed. One that is of no pool any more is `None`.
    pub fn apply_pod(&mut self, namespace: &str, uid: &str, facts: Option<PodFacts>) {
        let key = facts.as_ref().map(|facts| PoolKey { namespace: namespace.to_owned(), name: facts.pool.clone() });
        if self.pods.get(uid).is_some_and(|before| Some(before) != key.as_ref()) {
            self.delete_pod(uid);
        }
        let (Some(key), Some(facts)) = (key, facts) else { return };
        self.pods.insert(uid.to_owned(), key.clone());
        self.state(&key).send_if_modified(|state| {
            let before = state.pods.insert(uid.to_owned(), facts);
            before.as_ref() != state.pods.get(uid)
        });
    }

    /// A pod is gone.
    pub fn delete_pod(&mut self, uid: &str) {
        let Some(key) = self.pods.remove(uid) else { return };
        if let Some(state) = self.states.get(&key) {
            state.send_modify(|state| drop(state.pods.remove(uid)));
        }
        self.tidy(&key);
    }

    /// These are all pods of a scope.
    pub fn retain_pods(&mut self, scope: Scope<'_>, seen: &BTreeSet<String>) {
        let gone = self.pods.iter().filter(|(uid, key)| is_in(scope, &key.namespace) && !seen.contains(*uid));
        let gone: Vec<_> = gone.map(|(uid, _)| uid.clone()).collect();
        for uid in &gone {
            self.delete_pod(uid);
        }
    }

    /// A pool's placement is there.
    pub fn apply_placement(&mut self, key: PoolKey) {
        self.placements.insert(key);
    }

    /// A pool's placement is gone.
    pub fn delete_placement(&mut self, key: &PoolKey) {
        if self.placements.remove(key)
            && let Some(state) = self.states.get(key)
        {
            state.send_modify(|state| state.placements_lost += 1);
        }
    }

    /// These are all placements of a scope.
    pub fn retain_placements(&mut self, scope: Scope<'_>, seen: &BTreeSet<PoolKey>) {
        let gone = self.placements.iter().filter(|key| is_in(scope, &key.namespace) && !seen.contains(key));
        let gone: Vec<_> = gone.cloned().collect();
        for key in &gone {
            self.delete_placement(key);
        }
    }

    /// A workload that several pools of a namespace name belongs to the oldest of them.
    fn settle_targets(&self, namespace: &str) {
        let mut pools = self.resources(namespace);
        pools.sort_by_key(|pool| (pool.creation_timestamp(), pool.name_any()));
        let mut oldest: BTreeMap<&Target, String> = BTreeMap::new();
        for pool in &pools {
            if let Some(target) = &pool.spec.target {
                oldest.entry(target).or_insert_with(|| pool.name_any());
            }
        }
        for pool in &pools {
            let Some(state) = key_of(&**pool).and_then(|key| self.states.get(&key)) else { continue };
            let elder = pool.spec.target.as_ref().and_then(|target| oldest.get(target)).cloned();
            let elder = elder.filter(|name| *name != pool.name_any());
            state.send_if_modified(|state| std::mem::replace(&mut state.elder, elder.clone()) != elder);
        }
    }

    fn state(&mut self, key: &PoolKey) -> &watch::Sender<PoolState> {
        self.states.entry(key.clone()).or_default()
    }

    /// Forgets a pool of which nothing is left and that nobody follows.
    fn tidy(&mut self, key: &PoolKey) {
        let empty = |state: &watch::Sender<PoolState>| {
            let of = state.borrow();
            of.pool.is_none() && of.pods.is_empty() && state.receiver_count() == 0
        };
        if self.states.get(key).is_some_and(empty) {
            self.states.remove(key);
        }
    }
}

/// The key of an object that is a pool, or is named like one.
pub fn key_of(pool: &impl kube::Resource) -> Option<PoolKey> {
    let meta = pool.meta();
    Some(PoolKey { namespace: meta.namespace.clone()?, name: meta.name.clone()? })
}

fn is_in(scope: Scope<'_>, namespace: &str) -> bool {
    scope.is_none_or(|scope| scope == namespace)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::pod::tests::facts;
    use super::*;

    fn pool(name: &str, uid: &str) -> WebSocketPool {
        let pool = json!({
            "metadata": {"name": name, "namespace": "chats", "uid": uid},
            "spec": {"port": 3000, "key": {"from": [{"query": "user"}]}},
        });
        serde_json::from_value(pool).unwrap()
    }

    fn chat() -> PoolKey {
        PoolKey { namespace: "chats".into(), name: "chat".into() }
    }

    fn apply_pod(index: &mut Index, name: &str, pool: &str) {
        let pod = facts(name, |pod| pod["metadata"]["labels"]["wspool.dev/pool"] = json!(pool));
        index.apply_pod("chats", &format!("uid-{name}"), Some(pod));
    }

    #[test]
    fn pods_and_pools_may_come_in_any_order() {
        let mut index = Index::default();
        apply_pod(&mut index, "a", "chat");
        assert_eq!(index.facts("chats", "chat"), None);
        index.apply_pool(pool("chat", "1"));
        let state = index.follow(&chat()).borrow().clone();
        assert_eq!((state.pods.len(), state.pool.is_some()), (1, true));
        assert_eq!(index.facts("chats", "chat").unwrap().port, Some(3000));
    }

    #[test]
    fn who_follows_a_pool_hears_what_changes_and_nothing_else() {
        let mut index = Index::default();
        let mut state = index.follow(&chat());
        apply_pod(&mut index, "a", "chat");
        assert!(state.has_changed().unwrap());
        state.mark_unchanged();
        apply_pod(&mut index, "a", "chat");
        apply_pod(&mut index, "b", "other");
        assert!(!state.has_changed().unwrap());
        index.delete_pod("uid-a");
        assert!(state.has_changed().unwrap());
    }

    #[test]
    fn a_pod_whose_label_changes_is_in_one_pool_at_a_time() {
        let mut index = Index::default();
        let state = index.follow(&chat());
        apply_pod(&mut index, "a", "chat");
        apply_pod(&mut index, "a", "other");
        assert!(state.borrow().pods.is_empty());
        index.apply_pod("chats", "uid-a", None);
        assert!(index.pods.is_empty());
    }

    #[test]
    fn after_a_new_list_only_what_it_names_is_left_and_only_in_its_scope() {
        let mut index = Index::default();
        for name in ["a", "b"] {
            apply_pod(&mut index, name, "chat");
        }
        index.apply_pool(pool("chat", "1"));
        index.apply_placement(chat());
        index.retain_pods(Some("elsewhere"), &BTreeSet::new());
        index.retain_pools(Some("elsewhere"), &BTreeSet::new());
        index.retain_placements(Some("elsewhere"), &BTreeSet::new());
        let state = index.follow(&chat());
        assert_eq!((state.borrow().pods.len(), state.borrow().placements_lost), (2, 0));
        index.retain_pods(None, &["uid-a".to_owned()].into());
        index.retain_placements(None, &BTreeSet::new());
        assert_eq!((state.borrow().pods.len(), state.borrow().placements_lost), (1, 1));
        index.retain_pools(None, &BTreeSet::new());
        assert!(index.pools().borrow().is_empty() && state.borrow().pool.is_none());
    }

    #[test]
    fn a_workload_that_two_pools_name_is_left_to_the_older_one() {
        let mut index = Index::default();
        let made = |name: &str, time: &str| {
            let mut pool = pool(name, name);
            pool.metadata.creation_timestamp = Some(serde_json::from_value(json!(time)).unwrap());
            let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"});
            pool.spec.target = Some(serde_json::from_value(target).unwrap());
            pool
        };
        let key = |name: &str| PoolKey { namespace: "chats".into(), name: name.into() };
        let (a, b) = (index.follow(&key("a")), index.follow(&key("b")));
        index.apply_pool(made("a", "2026-01-02T00:00:00Z"));
        index.apply_pool(made("b", "2026-01-01T00:00:00Z"));
        assert_eq!((a.borrow().elder.clone(), b.borrow().elder.clone()), (Some("b".into()), None));
        index.delete_pool(&key("b"));
        assert_eq!(a.borrow().elder, None);
    }

    #[test]
    fn a_pool_that_was_made_anew_is_another_one() {
        let mut index = Index::default();
        index.apply_pool(pool("chat", "1"));
        let mut pools = index.pools();
        pools.mark_unchanged();
        index.apply_pool(pool("chat", "1"));
        assert!(!pools.has_changed().unwrap());
        index.apply_pool(pool("chat", "2"));
        assert!(pools.has_changed().unwrap());
    }
}

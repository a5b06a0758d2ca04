//! The watches that feed the index.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::{join_all, join3};
use futures_util::{Stream, StreamExt as _};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{Config, Error, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::index::{Index, PoolKey, Scope, key_of};
use super::pod::PodFacts;
use super::store;
use crate::inject::POOL_LABEL;
use crate::pool::WebSocketPool;

/// The index, as the watches, the webhook and the leader share it. It is never locked over an await.
#[derive(Clone, Debug, Default)]
pub struct SharedIndex(Arc<Mutex<Index>>);

impl SharedIndex {
    /// The index, for a moment.
    pub fn lock(&self) -> MutexGuard<'_, Index> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows pods, pools and placements in these namespaces, or in all when none is named. `missing` counts the lists that
/// have not been read whole yet.
pub async fn run(client: Client, namespaces: &[String], index: SharedIndex, missing: watch::Sender<usize>) {
    let scopes: Vec<Scope<'_>> = match namespaces {
        [] => vec![None],
        named => named.iter().map(|name| Some(name.as_str())).collect(),
    };
    missing.send_replace(scopes.len() * 3);
    let follows = scopes.into_iter().map(|scope| {
        let labelled = Config::default().labels(POOL_LABEL);
        let pods = watcher(api::<Pod>(&client, scope), labelled.clone());
        let pools = watcher(api::<WebSocketPool>(&client, scope), Config::default());
        let placements = watcher(api::<PartialObjectMeta<ConfigMap>>(&client, scope), labelled);
        join3(
            follow(pods, scope, &index, &missing),
            follow(pools, scope, &index, &missing),
            follow(placements, scope, &index, &missing),
        )
    });
    join_all(follows).await;
}

fn api<K>(client: &Client, scope: Scope<'_>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    match scope {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// An object that the index knows.
trait Indexed: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static {
    /// What it is called for people.
    const KIND: &'static str;
    /// What tells one from another.
    type Id: Ord;

    fn id(&self) -> Option<Self::Id>;
    fn apply(self, index: &mut Index);
    fn delete(&self, index: &mut Index);
    fn retain(index: &mut Index, scope: Scope<'_>, seen: &BTreeSet<Self::Id>);
}

async fn follow<K: Indexed>(
    events: impl Stream<Item = Result<Event<K>, Error>>,
    scope: Scope<'_>,
    index: &SharedIndex,
    missing: &watch::Sender<usize>,
) -> Infallible {
    let mut events = std::pin::pin!(events.default_backoff());
    let mut seen = BTreeSet::new();
    let mut complete = false;
    loop {
        match events.next().await {
            Some(Ok(Event::Init)) => seen.clear(),
            Some(Ok(Event::InitApply(object))) => {
                seen.extend(object.id());
                object.apply(&mut index.lock());
            }
            Some(Ok(Event::InitDone)) => {
                K::retain(&mut index.lock(), scope, &std::mem::take(&mut seen));
                if !std::mem::replace(&mut complete, true) {
                    missing.send_modify(|missing| *missing -= 1);
                }
            }
            Some(Ok(Event::Apply(object))) => object.apply(&mut index.lock()),
            Some(Ok(Event::Delete(object))) => object.delete(&mut index.lock()),
            Some(Err(error)) if is_ordinary(&error) => {
                tracing::debug!(kind = K::KIND, %error, "a watch ended; it begins again");
            }
            Some(Err(error)) => tracing::warn!(kind = K::KIND, %error, "a watch broke; it begins again"),
            // Without an end by its documentation.
            None => std::future::pending().await,
        }
    }
}

/// API servers end watches when they are old, when they restart, and when they have forgotten where a watch was.
fn is_ordinary(error: &Error) -> bool {
    match error {
        Error::WatchFailed(_) => true,
        Error::WatchError(status) => status.code == 410,
        _ => false,
    }
}

impl Indexed for Pod {
    const KIND: &'static str = "pods";
    type Id = String;

    fn id(&self) -> Option<String> {
        self.uid()
    }

    fn apply(self, index: &mut Index) {
        if let (Some(uid), Some(namespace)) = (self.uid(), self.namespace()) {
            index.apply_pod(&namespace, &uid, PodFacts::read(&self));
        }
    }

    fn delete(&self, index: &mut Index) {
        if let Some(uid) = self.uid() {
            index.delete_pod(&uid);
        }
    }

    fn retain(index: &mut Index, scope: Scope<'_>, seen: &BTreeSet<String>) {
        index.retain_pods(scope, seen);
    }
}

impl Indexed for WebSocketPool {
    const KIND: &'static str = "pools";
    type Id = PoolKey;

    fn id(&self) -> Option<PoolKey> {
        key_of(self)
    }

    fn apply(self, index: &mut Index) {
        index.apply_pool(self);
    }

    fn delete(&self, index: &mut Index) {
        if let Some(key) = key_of(self) {
            index.delete_pool(&key);
        }
    }

    fn retain(index: &mut Index, scope: Scope<'_>, seen: &BTreeSet<PoolKey>) {
        index.retain_pools(scope, seen);
    }
}

impl Indexed for PartialObjectMeta<ConfigMap> {
    const KIND: &'static str = "placements";
    type Id = PoolKey;

    fn id(&self) -> Option<PoolKey> {
        let name = store::pool_of(&self.name_any())?.to_owned();
        Some(PoolKey { namespace: self.namespace()?, name })
    }

    fn apply(self, index: &mut Index) {
        if let Some(key) = self.id() {
            index.apply_placement(key);
        }
    }

    fn delete(&self, index: &mut Index) {
        if let Some(key) = self.id() {
            index.delete_placement(&key);
        }
    }

    fn retain(index: &mut Index, scope: Scope<'_>, seen: &BTreeSet<PoolKey>) {
        index.retain_placements(scope, seen);
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn a_watch_that_the_api_server_has_ended_is_ordinary_and_one_that_it_refuses_is_not() {
        let said = |code| Error::WatchError(Box::new(Status { code, ..Status::default() }));
        assert!(is_ordinary(&said(410)));
        assert!(!is_ordinary(&said(403)));
        let broken = || kube::Error::ReadEvents(std::io::ErrorKind::UnexpectedEof.into());
        assert!(is_ordinary(&Error::WatchFailed(broken())));
        assert!(!is_ordinary(&Error::WatchStartFailed(broken())));
    }
}

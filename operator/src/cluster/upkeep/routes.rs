//! Keeps the routes to a pool's slots, as [`routes`](super::super::routes) says.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use ring::SlotId;

use super::super::ask::{AskError, Kube, if_there};
use super::super::objects::{MANAGER, Owner};
use super::super::routes::{self, Kind};
use super::super::trouble::Trouble;
use super::refusal;
use crate::pool::PoolSpec;

/// How often they are set right if somebody has changed them.
const INTERVAL: Duration = Duration::from_secs(60);

/// The routes of one pool.
pub(super) struct RoutesKeeper {
    kube: Kube,
    kinds: [Keeper; 2],
}

/// Its routes of one kind.
struct Keeper {
    kind: Kind,
    api: Api<DynamicObject>,
    /// What is there, once it has been looked at.
    written: Option<Vec<DynamicObject>>,
    look_again: Instant,
}

impl RoutesKeeper {
    /// A keeper that has looked at nothing yet.
    pub(super) fn new(kube: &Kube, namespace: &str) -> Self {
        let keeper = |kind: Kind| Keeper {
            kind,
            api: Api::namespaced_with(kube.client(), namespace, &kind.resource()),
            written: None,
            look_again: Instant::now(),
        };
        Self { kube: kube.clone(), kinds: Kind::ALL.map(keeper) }
    }

    /// Has the routes that should be there, and no others.
    pub(super) async fn keep(
        &mut self,
        owner: &Owner,
        spec: &PoolSpec,
        slots: &BTreeSet<SlotId>,
    ) -> Result<(), Trouble> {
        for keeper in &mut self.kinds {
            keeper.keep(&self.kube, owner, routes::wanted(keeper.kind, owner, spec, slots)).await?;
        }
        Ok(())
    }
}

impl Keeper {
    async fn keep(&mut self, kube: &Kube, owner: &Owner, wanted: Vec<DynamicObject>) -> Result<(), Trouble> {
        let now = Instant::now();
        let is_right = self.written.as_ref() == Some(&wanted);
        if is_right && (wanted.is_empty() || now < self.look_again) {
            return Ok(());
        }
        let there = self.there(kube, owner).await.map_err(refusal)?;
        for object in &wanted {
            let name = object.name_any();
            let found = kube.ask("get", self.called(&name), self.api.get(&name)).await;
            if if_there(found).map_err(refusal)?.is_some_and(|found| !owner.has(&found)) {
                return Err(routes::taken(self.kind, &name));
            }
            let (params, patch) = (PatchParams::apply(MANAGER).force(), Patch::Apply(object));
            match kube.ask("apply", self.called(&name), self.api.patch(&name, &params, &patch)).await {
                Err(error) if error.is_missing() && self.kind == Kind::HttpRoute => return Err(routes::unknown()),
                applied => drop(applied.map_err(refusal)?),
            }
        }
        for left in leftovers(owner, &there, &wanted) {
            let (name, params) = (left.name_any(), DeleteParams::default());
            if_there(kube.ask("delete", self.called(&name), self.api.delete(&name, &params)).await).map_err(refusal)?;
        }
        (self.written, self.look_again) = (Some(wanted), now + INTERVAL);
        Ok(())
    }

    /// Those of the pool that are there. None is where the API server knows no such kind.
    async fn there(&self, kube: &Kube, owner: &Owner) -> Result<Vec<DynamicObject>, AskError> {
        let these = ListParams::default().labels(&owner.selector());
        let listed = if_there(kube.ask("list", self.kind.resource().plural, self.api.list(&these)).await)?;
        Ok(listed.map(|listed| listed.items).unwrap_or_default())
    }

    fn called(&self, name: &str) -> String {
        format!("the {} {name}", self.kind.resource().kind)
    }
}

/// Those of the pool's own that should not be there any more. Anybody can give an object the pool's labels.
fn leftovers<'a>(
    owner: &Owner,
    there: &'a [DynamicObject],
    wanted: &[DynamicObject],
) -> impl Iterator<Item = &'a DynamicObject> {
    there.iter().filter(|there| owner.has(*there) && wanted.iter().all(|wanted| wanted.name_any() != there.name_any()))
}

#[cfg(test)]
mod tests {
    use super::super::super::index::PoolKey;
    use super::*;

    #[test]
    fn what_has_the_pools_labels_and_not_the_pool_as_its_owner_is_left_alone() {
        let key = PoolKey { namespace: "chats".into(), name: "chat".into() };
        let owner = Owner { key, uid: "1".into(), port: Some(3000) };
        let route = |name: &str| {
            let mut route = DynamicObject::new(name, &Kind::HttpRoute.resource());
            route.metadata = owner.metadata(name.into());
            route
        };
        let mut copied = route("copied");
        copied.metadata.owner_references = None;
        let there = [route("chat-0"), route("chat-1"), copied];
        let left: Vec<_> = leftovers(&owner, &there, &[route("chat-0")]).map(DynamicObject::name_any).collect();
        assert_eq!(left, ["chat-1"]);
    }
}

//! Keeps the objects around a pool as they should be: Services and endpoints, routers, deletion costs, the target's scale,
//! the status, and events. What should be done is decided by functions of other modules; here it is done.

mod routes;
mod scaler;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::runtime::events::Event;
use kube::{Api, Resource as _, ResourceExt as _};
use ring::SlotId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;

use super::ask::{AskError, if_there};
use super::feeder::Seen;
use super::index::PoolState;
use super::notice;
use super::objects::{MANAGER, Owner, SLOT_LABEL, SlotAddress, slot_addresses};
use super::pod::{DELETION_COST, PodFacts};
use super::replicas::{self, Step};
use super::router::{self, Entrance};
use super::status::{self, Subject};
use super::steward::Means;
use super::trouble::{self, Trouble};
use crate::pool::{PoolStatus, WebSocketPool};
use crate::rebalance::view::PoolView;
use routes::RoutesKeeper;
use scaler::ScalerKeeper;

/// The least time between two rounds: the view changes with each report.
const PAUSE: Duration = Duration::from_millis(100);
/// How often a round is made although nothing has changed: what failed is tried again.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often the namespace's Services are looked at.
const SERVICES_INTERVAL: Duration = Duration::from_secs(10);
/// How long routers may take to be ready.
const ROUTERS_PATIENCE: Duration = Duration::from_secs(60);
/// Requests that are under way at once, where many objects are written.
const AT_ONCE: usize = 8;
/// The longest note that an event may have.
const LONGEST_NOTE: usize = 1024;

/// The upkeep of one pool.
pub struct Upkeep {
    means: Means,
    owner: Owner,
    state: watch::Receiver<PoolState>,
    seen: watch::Receiver<Seen>,
    services: Api<Service>,
    slices: Api<EndpointSlice>,
    pods: Api<Pod>,
    pools: Api<WebSocketPool>,
    deployments: Api<Deployment>,
    budgets: Api<PodDisruptionBudget>,
    /// The pool's Service, as it was applied.
    service: Option<Service>,
    routers: Routers,
    /// Since when fewer routers are ready than should be.
    routers_short: Option<Instant>,
    /// When their Deployment is looked at again, if they are late.
    routers_again: Instant,
    /// A Service that leads past the sidecars, and when it is looked for again.
    bypass: Option<Trouble>,
    look_again: Instant,
    /// The slots whose objects are there, once they have been listed.
    slots: Option<BTreeMap<SlotId, SlotObjects>>,
    /// Deletion costs that were written, and may not be seen yet.
    costs: BTreeMap<String, i32>,
    routes: RoutesKeeper,
    scaler: ScalerKeeper,
    status: Option<PoolStatus>,
    written: Option<Instant>,
    /// What was in the way when objects were kept last, and until when they are left alone for it.
    troubles: Vec<Trouble>,
    rest_until: Instant,
    told: Option<PoolView>,
    refused: Option<String>,
}

/// What is known of the routers' Deployment.
#[derive(Clone, Debug, PartialEq)]
enum Routers {
    /// An earlier operator may have made it, or somebody may have changed it.
    Unknown,
    /// It is not there.
    Absent,
    /// It was written so.
    Written(Box<Deployment>),
}

/// What is known of a slot's objects.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SlotObjects {
    /// An earlier operator has made them.
    Found,
    /// They were written, with this address.
    Written(Option<SlotAddress>),
}

impl Upkeep {
    /// An upkeep that has done nothing yet.
    pub fn new(means: Means, owner: Owner, state: watch::Receiver<PoolState>, seen: watch::Receiver<Seen>) -> Self {
        let (client, namespace) = (means.kube.client(), owner.key.namespace.clone());
        Self {
            services: Api::namespaced(client.clone(), &namespace),
            slices: Api::namespaced(client.clone(), &namespace),
            pods: Api::namespaced(client.clone(), &namespace),
            deployments: Api::namespaced(client.clone(), &namespace),
            budgets: Api::namespaced(client.clone(), &namespace),
            pools: Api::namespaced(client, &namespace),
            owner,
            state,
            seen,
            service: None,
            routers: Routers::Unknown,
            routers_short: None,
            routers_again: Instant::now(),
            bypass: None,
            look_again: Instant::now(),
            slots: None,
            costs: BTreeMap::new(),
            routes: RoutesKeeper::new(&means.kube, &namespace),
            scaler: ScalerKeeper::new(&means.kube, &namespace),
            status: None,
            written: None,
            troubles: Vec::new(),
            rest_until: Instant::now(),
            told: None,
            refused: None,
            means,
        }
    }

    /// Says that the pool cannot be driven, and why.
    pub async fn refuse(&mut self, reason: &'static str, message: &str) {
        let before = self.status();
        let after = status::of_refusal(self.subject(&before), reason, message);
        self.write_status(&before, after).await;
        if self.refused.as_deref() != Some(message) {
            self.refused = Some(message.to_owned());
            self.tell(notice::trouble(reason, message)).await;
        }
    }

    /// Keeps everything up, as the view says, until the view's driver ends.
    pub async fn run(&mut self, mut view: watch::Receiver<PoolView>) {
        self.refused = None;
        loop {
            let now = view.borrow_and_update().clone();
            self.seen.mark_unchanged();
            self.state.mark_unchanged();
            self.round(now).await;
            tokio::time::sleep(PAUSE).await;
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                _ = self.state.changed() => {}
                _ = self.seen.changed() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    async fn round(&mut self, mut view: PoolView) {
        let now = Instant::now();
        // An API server in trouble is not asked more often; what was wrong stays said.
        if now >= self.rest_until {
            let pods: Vec<PodFacts> = self.state.borrow().pods.values().cloned().collect();
            let troubles = self.keep(&view, &pods).await;
            for (reason, message) in troubles.iter().filter(|trouble| !self.troubles.contains(trouble)) {
                tracing::warn!(pool = %self.owner.key, reason, "{message}");
            }
            self.rest_until = if troubles.is_empty() { now } else { now + INTERVAL };
            self.troubles = troubles;
        }
        for (reason, message) in &self.troubles {
            view.degrade(reason, message);
        }
        for (reason, message) in self.bypass.iter().chain(&self.load(&view)).chain(self.scaler.trouble()) {
            view.degrade(reason, message);
        }
        self.means.shown.show(&self.owner.key, &view);
        let before = self.status();
        let after = status::of_view(self.subject(&before), &view);
        self.write_status(&before, after).await;
        let events = match &self.told {
            Some(told) => notice::between(told, &view),
            None => notice::first(&view),
        };
        self.told = Some(view);
        for event in events {
            self.tell(event).await;
        }
    }

    /// Keeps all objects as they should be; says what is in the way.
    async fn keep(&mut self, view: &PoolView, pods: &[PodFacts]) -> Vec<Trouble> {
        let mut troubles = Vec::new();
        // The endpoints first: clients wait for them.
        troubles.extend(self.keep_slots(slot_addresses(view, pods)).await.err());
        // Routers are there before the Service leads to them, and until it no longer does.
        troubles.extend(self.keep_routers(view, pods).await.err());
        troubles.extend(self.keep_service(pods).await.err());
        troubles.extend(self.keep_routes(view).await.err());
        troubles.extend(self.end_routers().await.err());
        troubles.extend(self.keep_costs(view, pods).await.err().map(refusal));
        troubles.extend(self.keep_scale(view, pods).await.err());
        troubles.extend(self.keep_scaler().await.err().map(refusal));
        troubles.extend(self.find_bypass(pods).await.err().map(refusal));
        troubles
    }

    async fn find_bypass(&mut self, pods: &[PodFacts]) -> Result<(), AskError> {
        let now = Instant::now();
        let Some(port) = self.owner.port.filter(|_| now >= self.look_again) else { return Ok(()) };
        self.look_again = now + SERVICES_INTERVAL;
        let all = ListParams::default();
        let services = self.means.kube.ask("list", "the Services", self.services.list(&all)).await?;
        self.bypass = trouble::of_services(&self.owner.key.name, port, &services.items, pods);
        Ok(())
    }

    fn load(&self, view: &PoolView) -> Option<Trouble> {
        let state = self.state.borrow();
        let spec = &state.pool.as_ref()?.spec;
        trouble::of_load(spec.limits, spec.drain, view)
    }

    /// One Service and one EndpointSlice for each slot, and none for a slot that was retired.
    async fn keep_slots(&mut self, wanted: BTreeMap<SlotId, Option<SlotAddress>>) -> Result<(), Trouble> {
        let mut there = match self.slots.take() {
            Some(there) => there,
            None => {
                self.slots_there().await.map_err(refusal)?.into_iter().map(|slot| (slot, SlotObjects::Found)).collect()
            }
        };
        let done = self.change_slots(&mut there, wanted).await;
        self.slots = Some(there);
        done
    }

    async fn change_slots(
        &self,
        there: &mut BTreeMap<SlotId, SlotObjects>,
        wanted: BTreeMap<SlotId, Option<SlotAddress>>,
    ) -> Result<(), Trouble> {
        let retired: Vec<SlotId> = there.keys().filter(|slot| !wanted.contains_key(slot)).copied().collect();
        let writes: Vec<_> = wanted
            .into_iter()
            .filter_map(|(slot, holder)| match there.get(&slot) {
                Some(SlotObjects::Written(written)) if *written == holder => None,
                Some(SlotObjects::Written(_)) => Some(self.write_slot(slot, holder, true)),
                Some(SlotObjects::Found) | None => Some(self.write_slot(slot, holder, false)),
            })
            .collect();
        let mut writing = stream::iter(writes).buffer_unordered(AT_ONCE);
        while let Some(written) = writing.next().await {
            let (slot, holder) = written?;
            there.insert(slot, SlotObjects::Written(holder));
        }
        drop(writing);
        for slot in retired {
            let name = self.owner.slot_name(slot);
            let params = DeleteParams::default();
            let object = || format!("Service and EndpointSlice {name}");
            if_there(self.means.kube.ask("delete", object(), self.services.delete(&name, &params)).await)
                .map_err(refusal)?;
            if_there(self.means.kube.ask("delete", object(), self.slices.delete(&name, &params)).await)
                .map_err(refusal)?;
            there.remove(&slot);
        }
        Ok(())
    }

    async fn write_slot(
        &self,
        slot: SlotId,
        holder: Option<SlotAddress>,
        has_service: bool,
    ) -> Result<(SlotId, Option<SlotAddress>), Trouble> {
        if !has_service {
            self.apply_service(&self.owner.slot_service(slot)).await?;
        }
        let slice = self.owner.slot_slice(slot, holder.as_ref());
        self.apply(&self.slices, &self.owner.slot_name(slot), &slice).await.map_err(refusal)?;
        Ok((slot, holder))
    }

    /// The slots for which an earlier operator has made objects.
    async fn slots_there(&self) -> Result<BTreeSet<SlotId>, AskError> {
        let these = ListParams::default().labels(&self.owner.slot_selector());
        let listed = self.means.kube.ask("list", "the Services of slots", self.services.list(&these)).await?;
        let ids = listed.items.iter().filter_map(|service| service.labels().get(SLOT_LABEL)?.parse().ok().map(SlotId));
        Ok(ids.collect())
    }

    /// The pool's Service.
    async fn keep_service(&mut self, pods: &[PodFacts]) -> Result<(), Trouble> {
        self.owner.port = self.state.borrow().pool.as_ref().and_then(|pool| pool.spec.port);
        if self.service.is_none() {
            self.service = self.find_service(&self.owner.key.name).await?;
        }
        let entrance = self.service.as_ref().map_or(Entrance::Anywhere, Entrance::of);
        let wanted = self.owner.service(entrance.next(self.routers_wanted(), router::ready(pods)));
        if self.service.as_ref() != Some(&wanted) {
            self.apply_service(&wanted).await?;
            self.service = Some(wanted);
        }
        Ok(())
    }

    /// Applies a Service, unless somebody else has one of that name.
    async fn apply_service(&self, wanted: &Service) -> Result<(), Trouble> {
        let name = wanted.name_any();
        self.find_service(&name).await?;
        self.apply(&self.services, &name, wanted).await.map_err(refusal)
    }

    async fn find_service(&self, name: &str) -> Result<Option<Service>, Trouble> {
        let found = self.means.kube.ask("get", format!("the Service {name}"), self.services.get(name)).await;
        let found = if_there(found).map_err(refusal)?;
        if found.as_ref().is_some_and(|found| !self.owner.has(found)) {
            let sentence = format!(
                "the Service {name} is somebody else's, and the pool's would have its name: let it lead to port 7480 of the \
                 pods, where their sidecars are, or rename or delete it"
            );
            return Err(("ServiceTaken", sentence));
        }
        Ok(found)
    }

    /// The routes to the slots from outside.
    async fn keep_routes(&mut self, view: &PoolView) -> Result<(), Trouble> {
        let Some(pool) = self.state.borrow().pool.clone() else { return Ok(()) };
        let slots = view.slots.iter().map(|slot| slot.id).collect();
        self.routes.keep(&self.owner, &pool.spec, &slots).await
    }

    fn routers_wanted(&self) -> u32 {
        self.state.borrow().pool.as_ref().map_or(0, |pool| pool.spec.router.replicas)
    }

    /// The routers, if any are wanted, once there is a placement for them.
    async fn keep_routers(&mut self, view: &PoolView, pods: &[PodFacts]) -> Result<(), Trouble> {
        let (replicas, now) = (self.routers_wanted(), Instant::now());
        let missing = router::missing(&self.owner.key.name, replicas, router::ready(pods));
        if missing.is_none() {
            self.routers_short = None;
        }
        let late = missing.filter(|_| now >= *self.routers_short.get_or_insert(now) + ROUTERS_PATIENCE);
        if late.is_some() && now >= self.routers_again {
            // Somebody may have deleted or changed it.
            (self.routers, self.routers_again) = (Routers::Unknown, now + SERVICES_INTERVAL);
        }
        if replicas == 0 || view.epoch == 0 {
            return Ok(());
        }
        let drain = self.state.borrow().pool.as_ref().map_or(Duration::ZERO, |pool| pool.spec.drain.timeout.0);
        let wanted = Box::new(router::deployment(&self.owner, &self.means.sidecar, replicas, drain));
        if !matches!(&self.routers, Routers::Written(written) if *written == wanted) {
            let name = wanted.name_any();
            if self.find_deployment(&name).await.map_err(refusal)?.is_some_and(|found| !self.owner.has(&found)) {
                return Err(router::taken(&name));
            }
            self.apply(&self.deployments, &name, &*wanted).await.map_err(refusal)?;
            self.apply(&self.budgets, &name, &router::budget(&self.owner)).await.map_err(refusal)?;
            self.routers = Routers::Written(wanted);
        }
        late.map_or(Ok(()), Err)
    }

    /// Removes the routers when none are wanted, and the Service does not lead to them.
    async fn end_routers(&mut self) -> Result<(), Trouble> {
        let entered = self.service.as_ref().map(Entrance::of) == Some(Entrance::Routers);
        if self.routers_wanted() > 0 || entered || self.routers == Routers::Absent {
            return Ok(());
        }
        let (name, params) = (router::name_of(&self.owner.key.name), DeleteParams::default());
        if self.find_deployment(&name).await.map_err(refusal)?.is_some_and(|found| self.owner.has(&found)) {
            let object = || format!("the routers {name}");
            let deleted = self.means.kube.ask("delete", object(), self.deployments.delete(&name, &params)).await;
            if_there(deleted).map_err(refusal)?;
            if_there(self.means.kube.ask("delete", object(), self.budgets.delete(&name, &params)).await)
                .map_err(refusal)?;
        }
        self.routers = Routers::Absent;
        Ok(())
    }

    async fn find_deployment(&self, name: &str) -> Result<Option<Deployment>, AskError> {
        let object = format!("the Deployment {name}");
        if_there(self.means.kube.ask("get", object, self.deployments.get(name)).await)
    }

    /// Each pod's deletion cost, so that a ReplicaSet takes the right one.
    async fn keep_costs(&mut self, view: &PoolView, pods: &[PodFacts]) -> Result<(), AskError> {
        let costs = replicas::costs_to_write(pods, view);
        let due: HashSet<&str> = costs.iter().map(|(pod, _)| pod.uid.as_str()).collect();
        self.costs.retain(|uid, _| due.contains(uid.as_str()));
        let due = costs.into_iter().filter(|(pod, cost)| self.costs.get(&pod.uid) != Some(cost));
        let writes: Vec<_> = due.map(|(pod, cost)| self.write_cost(pod, cost)).collect();
        let mut writing = stream::iter(writes).buffer_unordered(AT_ONCE);
        let mut written = Vec::new();
        let done = loop {
            match writing.next().await {
                Some(Ok(cost)) => written.extend(cost),
                Some(Err(error)) => break Err(error),
                None => break Ok(()),
            }
        };
        drop(writing);
        self.costs.extend(written);
        done
    }

    /// What was written of which pod, if it is still there.
    async fn write_cost(&self, pod: &PodFacts, cost: i32) -> Result<Option<(String, i32)>, AskError> {
        let patch = json!({"metadata": {"uid": pod.uid, "annotations": {DELETION_COST: cost.to_string()}}});
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        let request = self.pods.patch_metadata(&pod.name, &params, &patch);
        match self.means.kube.ask("patch", format!("the deletion cost of pod {}", pod.name), request).await {
            Ok(_) => Ok(Some((pod.uid.clone(), cost))),
            // It has gone, and perhaps another one of its name has come.
            Err(error) if error.is_missing() || error.is_conflict() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The target's scale, where the pool says how many replicas it wants.
    async fn keep_scale(&mut self, view: &PoolView, pods: &[PodFacts]) -> Result<(), Trouble> {
        let wanted = self.state.borrow().pool.as_ref().and_then(|pool| pool.spec.replicas);
        let Seen { target: Some(target), scaled: Some(scaled) } = self.seen.borrow().clone() else { return Ok(()) };
        let decide = |desired| replicas::step(wanted, desired, view, pods);
        if !matches!(decide(scaled.desired), Step::Set(_)) {
            return Ok(());
        }
        // What was seen may be old: it is decided on what is there, and written only over that.
        let failed = |error: super::target::TargetError| ("CannotScale", error.to_string());
        let scaled = target.scale().await.map_err(failed)?;
        let Step::Set(replicas) = decide(scaled.desired) else { return Ok(()) };
        target.set(&scaled, replicas).await.map_err(failed)?;
        let of = target.of();
        tracing::info!(pool = %self.owner.key, from = scaled.desired, to = replicas, "the target is scaled");
        self.tell(notice::scaled(&of.kind, &of.name, scaled.desired, replicas)).await;
        Ok(())
    }

    /// The pool's autoscaler.
    async fn keep_scaler(&mut self) -> Result<(), AskError> {
        let Some(pool) = self.state.borrow().pool.clone() else { return Ok(()) };
        let replicas = self.seen.borrow().scaled.as_ref().map(|scaled| scaled.desired);
        self.scaler.keep(&self.owner, &pool, replicas).await
    }

    async fn apply<K>(&self, api: &Api<K>, name: &str, object: &K) -> Result<(), AskError>
    where
        K: Clone + Serialize + DeserializeOwned + std::fmt::Debug,
    {
        let params = PatchParams::apply(MANAGER).force();
        self.means.kube.ask("apply", name, api.patch(name, &params, &Patch::Apply(object))).await.map(drop)
    }

    /// What the status says now.
    fn status(&self) -> PoolStatus {
        let known = || self.state.borrow().pool.as_ref().and_then(|pool| pool.status.clone());
        self.status.clone().or_else(known).unwrap_or_default()
    }

    fn subject<'a>(&'a self, before: &'a PoolStatus) -> Subject<'a> {
        let generation = self.state.borrow().pool.as_ref().and_then(|pool| pool.metadata.generation);
        Subject {
            name: &self.owner.key.name,
            generation: generation.unwrap_or_default(),
            replicas: self.seen.borrow().scaled.as_ref().map_or(0, |scaled| scaled.replicas),
            before,
            now: Timestamp::now(),
        }
    }

    async fn write_status(&mut self, before: &PoolStatus, after: PoolStatus) {
        let now = Instant::now();
        let is_scaled = self.means.serves_metrics || self.scaler.is_scaled();
        if status::due(before, &after, is_scaled, self.written, now).is_none_or(|due| due > now) {
            return;
        }
        let name = &self.owner.key.name;
        let body = json!({
            "apiVersion": WebSocketPool::api_version(&()),
            "kind": WebSocketPool::kind(&()),
            "status": after,
        });
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(body);
        let request = self.pools.patch_status(name, &params, &patch);
        // Also when it fails: an API server in trouble is not asked more often.
        self.written = Some(now);
        match self.means.kube.ask("apply", format!("the status of {}", self.owner.key), request).await {
            Ok(_) => self.status = Some(after),
            Err(error) => tracing::warn!(%error, "the status is not written"),
        }
    }

    async fn tell(&self, mut event: Event) {
        if let Some(note) = &mut event.note {
            note.truncate(note.floor_char_boundary(LONGEST_NOTE));
        }
        let object = self.owner.object();
        let published = self.means.recorder.publish(&event, &object);
        if let Err(error) = self.means.kube.ask("write", format!("an event of {}", self.owner.key), published).await {
            tracing::warn!(%error, "an event is not written");
        }
    }
}

#[allow(clippy::needless_pass_by_value, reason = "it is mapped over errors")]
fn refusal(error: AskError) -> Trouble {
    ("CannotApply", error.to_string())
}
